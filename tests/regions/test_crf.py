"""Dense CRF against exact mean field over all pairs of pixels, and the lattice against a table of dictionaries."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from scipy.spatial.distance import cdist
from scipy.special import softmax

from wildcat.errors import ConfigError, ShapeError
from wildcat.regions import permutohedral
from wildcat.regions.crf import MILD_CRF, CrfParams, dense_crf
from wildcat.regions.permutohedral import _sort, build_lattice

Array = NDArray[Any]
DEEPLAB = MILD_CRF
WIDE = CrfParams()
CCNN = CrfParams(
    appearance_weight=10, appearance_sigma_xy=35, appearance_sigma_rgb=61, smoothness_weight=15, smoothness_sigma=19
)


def scene(height: int, width: int, seed: int) -> tuple[Array, Array]:
    """A shaded image of a disc and a box on a background, and its labels 0, 1, 2."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    labels = np.zeros((height, width), np.int64)
    labels[(y - 0.4 * height) ** 2 + (x - 0.3 * width) ** 2 < (0.25 * height) ** 2] = 1
    labels[int(0.3 * height) : int(0.9 * height), int(0.6 * width) : int(0.85 * width)] = 2
    colours = rng.integers(30, 220, (3, 3))[labels]
    shade = 20 * np.sin(x / 9 + y / 13)[..., None]
    return np.clip(colours + shade + rng.normal(0, 3, colours.shape), 0, 255).astype(np.uint8), labels


def soft(labels: Array, classes: Any, blur: float, seed: int) -> Array:
    """Probabilities like those of a coarse network: blurred masks times smooth noise."""
    rng = np.random.default_rng(seed)
    masks = np.stack([ndimage.gaussian_filter((labels == c).astype(float), blur) for c in classes])
    noise = ndimage.gaussian_filter(rng.standard_normal(masks.shape), (0, 2 * blur, 2 * blur)) * 5 * blur
    scores = (masks + 0.01) * np.exp(noise)
    return scores / scores.sum(axis=0)


def loop_mean_field(image: Array, prior: Array, params: CrfParams) -> Array:
    """Algorithm 1 of the NIPS 2011 paper, one pixel and one neighbour at a time."""
    classes, height, width = prior.shape
    places = [(i, j) for i in range(height) for j in range(width)]

    def smooth(a: tuple[int, int], b: tuple[int, int]) -> float:
        return math.exp(-((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2) / (2 * params.smoothness_sigma**2))

    def appear(a: tuple[int, int], b: tuple[int, int]) -> float:
        near = ((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2) / (2 * params.appearance_sigma_xy**2)
        change = image[a].astype(float) - image[b].astype(float)
        return math.exp(-near - float(change @ change) / (2 * params.appearance_sigma_rgb**2))

    kernels = [(params.smoothness_weight, smooth), (params.appearance_weight, appear)]
    sums = [{a: sum(kernel(a, b) for b in places) for a in places} for _, kernel in kernels]

    def divisor(total: dict[tuple[int, int], float], a: tuple[int, int], b: tuple[int, int]) -> float:
        return {
            "symmetric": math.sqrt(total[a] * total[b]),
            "after": total[a],
            "before": total[b],
            "none": 1.0,
        }[params.normalization]

    belief = prior / prior.sum(axis=0)
    for _ in range(params.iterations):
        new = np.zeros_like(belief)
        for a in places:
            energy = np.array([-math.log(max(float(prior[(c, *a)]), 1e-18)) for c in range(classes)])
            for (weight, kernel), total in zip(kernels, sums, strict=True):
                for b in places:
                    energy -= weight * kernel(a, b) / divisor(total, a, b) * belief[(slice(None), *b)]
            value = np.exp(energy.min() - energy)
            new[(slice(None), *a)] = value / value.sum()
        belief = new
    return belief


def exact_crf(image: Array, prior: Array, params: CrfParams | None = None) -> Array:
    """`loop_mean_field` with matrices: float64, all pairs of pixels, for images of a few thousand pixels."""
    params = params or CrfParams()
    classes, height, width = prior.shape
    y, x = np.mgrid[:height, :width]
    positions = np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float64)
    colors = image.reshape(-1, 3) / params.appearance_sigma_rgb
    pairs = np.zeros((height * width, height * width))
    for weight, features in (
        (params.smoothness_weight, positions / params.smoothness_sigma),
        (params.appearance_weight, np.concatenate([positions / params.appearance_sigma_xy, colors], axis=1)),
    ):
        kernel = np.exp(-0.5 * cdist(features, features, "sqeuclidean"))
        sums = kernel.sum(axis=1)
        before = {"symmetric": sums**-0.5, "before": 1 / sums}.get(params.normalization, np.ones_like(sums))
        after = {"symmetric": sums**-0.5, "after": 1 / sums}.get(params.normalization, np.ones_like(sums))
        pairs += weight * after[:, None] * kernel * before
    start = (prior / prior.sum(axis=0)).reshape(classes, -1).T
    belief = start
    for _ in range(params.iterations):
        belief = softmax(np.log(np.maximum(start, 1e-18)) + pairs @ belief, axis=1)
    return belief.T.reshape(classes, height, width)


def loop_lattice(features: Array, values: Array) -> Array:
    """The permutohedral lattice with one dictionary of tuples, in float64; features (N, d), values (N,)."""
    d = features.shape[1]
    basis = np.zeros((d + 1, d))  # columns: orthogonal axes of the plane of sum 0, as in section 3.1
    for axis in range(d):
        basis[: axis + 1, axis] = 1
        basis[axis + 1, axis] = -(axis + 1)
        basis[:, axis] /= math.sqrt((axis + 1) * (axis + 2))
    elevated = features @ basis.T * (math.sqrt(2 / 3) * (d + 1))
    simplices = []
    for point in elevated:
        zero = np.round(point / (d + 1)).astype(int) * (d + 1)
        excess = int(zero.sum()) // (d + 1)
        by_residual = np.argsort(-(point - zero))  # largest first
        for axis in by_residual[::-1][:excess] if excess > 0 else by_residual[: -excess or 0]:
            zero[axis] -= (d + 1) * int(np.sign(excess))
        order = np.argsort(-(point - zero))
        delta = np.sort(point - zero)[::-1]
        # from corner to corner, the axes with the largest residual are the last to step down
        corners = {tuple(zero): 1 - (delta[0] - delta[-1]) / (d + 1)}
        for k in range(1, d + 1):
            corner = zero + k
            corner[order[d + 1 - k :]] -= d + 1
            corners[tuple(corner)] = (delta[d - k] - delta[d + 1 - k]) / (d + 1)
        simplices.append(corners)
    table: dict[tuple[int, ...], float] = {}
    for corners, value in zip(simplices, values, strict=True):
        for corner, weight in corners.items():
            table[corner] = table.get(corner, 0.0) + weight * value
    for axis in range(d + 1):
        step = np.ones(d + 1, int)
        step[axis] = -d
        table = {
            corner: value
            + 0.5 * table.get(tuple(np.array(corner) + step), 0.0)
            + 0.5 * table.get(tuple(np.array(corner) - step), 0.0)
            for corner, value in table.items()
        }
    gain = 1 / (1 + 2.0**-d)
    return np.array([gain * sum(w * table[c] for c, w in corners.items()) for corners in simplices])


@pytest.mark.parametrize("normalization", ["symmetric", "after", "before", "none"])
def test_exact_equals_the_loops(normalization: Any) -> None:
    image, labels = scene(5, 7, seed=1)
    prior = soft(labels, range(3), 1.0, seed=2)
    params = CrfParams(3, 2.0, 4.0, 40.0, 1.5, 1.2, normalization)
    np.testing.assert_allclose(exact_crf(image, prior, params), loop_mean_field(image, prior, params), atol=1e-10)


@pytest.mark.parametrize("d", [1, 2, 3, 5])
def test_lattice_equals_the_dictionary(d: int) -> None:
    rng = np.random.default_rng(d)
    features, values = rng.normal(0, 1.5, (60, d)), rng.standard_normal((60, 4))
    lattice = build_lattice(torch.from_numpy(features.T.astype(np.float32)).contiguous())
    found = lattice.filter(torch.from_numpy(values).float()).numpy()
    wanted = np.stack([loop_lattice(features, column) for column in values.T], axis=1)
    np.testing.assert_allclose(found, wanted, atol=2e-4)


def test_lattice_approaches_the_gaussian() -> None:
    """With dense points every vertex has neighbours, and the filter is a Gaussian of standard deviation 1."""
    y, x = np.mgrid[:40, :40] / 4.0
    features = np.stack([x.ravel(), y.ravel()])
    lattice = build_lattice(torch.from_numpy(features).float())
    centre = 20 * 40 + 20
    impulse = torch.zeros(1600, 1)
    impulse[centre] = 1
    response = lattice.filter(impulse)[:, 0].double().numpy()
    gaussian = np.exp(-0.5 * ((features - features[:, [centre]]) ** 2).sum(axis=0))
    np.testing.assert_allclose(
        response / response.sum(), gaussian / gaussian.sum(), atol=0.15 * gaussian.max() / gaussian.sum()
    )
    spread = (response * (features[0] - features[0, centre]) ** 2).sum() / response.sum()
    assert spread == pytest.approx(1.0, abs=0.2)


def test_both_sorts_agree() -> None:
    keys = torch.from_numpy(np.random.default_rng(0).integers(0, 500, 2000))
    for bound in (500, 2**62):  # key and index fit into one int64, or do not
        ordered, places = _sort(keys, bound)
        np.testing.assert_array_equal(places, np.argsort(keys.numpy(), kind="stable"))
        np.testing.assert_array_equal(ordered, np.sort(keys.numpy()))


@pytest.mark.parametrize("params", [DEEPLAB, replace(DEEPLAB, normalization="after"), WIDE, CCNN])
def test_agrees_with_exact_on_scenes(params: CrfParams) -> None:
    agreement = []
    for seed in range(4):
        image, labels = scene(48, 64, seed)
        prior = soft(labels, range(3), 3.0, seed)
        exact, fast = exact_crf(image, prior, params), dense_crf(image, prior, params)
        agreement.append((exact.argmax(axis=0) == fast.argmax(axis=0)).mean())
    assert np.mean(agreement) >= 0.99


@pytest.mark.parametrize("normalization", ["symmetric", "after", "before", "none"])
def test_smoothness_alone_is_exact(normalization: Any) -> None:
    image, labels = scene(37, 70, seed=3)  # the matrix of the kernel has several blocks in both directions
    prior = soft(labels, range(3), 2.0, seed=3)
    for sigma in (1.0, 3.0, 50.0):
        weight = 3.0 / sigma**2 if normalization == "none" else 3.0
        params = CrfParams(3, 0.0, smoothness_weight=weight, smoothness_sigma=sigma, normalization=normalization)
        np.testing.assert_allclose(dense_crf(image, prior, params), exact_crf(image, prior, params), atol=2e-3)


def test_real_images(real_data: Path) -> None:
    """On VOC val images: 99 % of the labels of the exact CRF at 48 x 64, and higher accuracy at full size."""
    folder = real_data / "VOCdevkit" / "VOC2012"
    names = (folder / "ImageSets" / "Segmentation" / "val.txt").read_text().split()[:6]
    agreement, before, after = [], [], []
    for seed, name in enumerate(names):
        image = Image.open(folder / "JPEGImages" / f"{name}.jpg").convert("RGB")
        mask = Image.open(folder / "SegmentationClass" / f"{name}.png")
        small = np.asarray(image.resize((64, 48), Image.Resampling.BILINEAR))
        truth = np.asarray(mask.resize((64, 48), Image.Resampling.NEAREST))
        prior = soft(truth, np.unique(truth[truth < 255]), 2.0, seed)
        exact, fast = exact_crf(small, prior), dense_crf(small, prior)
        agreement.append((exact.argmax(axis=0) == fast.argmax(axis=0)).mean())
        known = np.asarray(mask) < 255
        present = np.unique(np.asarray(mask)[known])
        prior = soft(np.asarray(mask), present, 8.0, seed)
        labels = present[prior.argmax(axis=0)], present[dense_crf(np.asarray(image), prior, MILD_CRF).argmax(axis=0)]
        for found, accuracy in zip(labels, (before, after), strict=True):
            accuracy.append((found == np.asarray(mask))[known].mean())
    assert np.mean(agreement) >= 0.99
    assert np.mean(after) > np.mean(before)


def test_masks_follow_the_edges_of_the_image() -> None:
    image, labels = scene(60, 80, seed=5)
    prior = soft(labels, range(3), 3.0, seed=5)
    before, after = ((p.argmax(axis=0) == labels).mean() for p in (prior, dense_crf(image, prior)))
    assert 1 - after < 0.5 * (1 - before)


def test_probabilities_and_scale_of_the_input() -> None:
    image, labels = scene(17, 23, seed=6)
    prior = soft(labels, range(3), 2.0, seed=6)
    result = dense_crf(image, prior)
    np.testing.assert_allclose(result.sum(axis=0), 1, atol=1e-5)
    assert result.min() >= 0
    np.testing.assert_allclose(dense_crf(image, prior * 7), result, atol=1e-5)
    np.testing.assert_allclose(dense_crf(image, prior * 1e-60), result, atol=1e-5)
    np.testing.assert_array_equal(dense_crf(image, prior), result)  # deterministic, to the bit


def test_no_iterations_or_no_kernel_return_the_input() -> None:
    image, labels = scene(9, 8, seed=7)
    prior = soft(labels, range(3), 2.0, seed=7)
    for params in (CrfParams(iterations=0), CrfParams(appearance_weight=0, smoothness_weight=0)):
        np.testing.assert_allclose(dense_crf(image, prior, params), prior, atol=1e-6)


def test_large_weights_do_not_overflow() -> None:
    image, labels = scene(24, 32, seed=8)
    prior = soft(labels, range(3), 2.0, seed=8)
    params = CrfParams(appearance_weight=300, smoothness_weight=300)
    fast, exact = dense_crf(image, prior, params), exact_crf(image, prior, params)
    assert np.isfinite(fast).all()
    assert (fast.argmax(axis=0) == exact.argmax(axis=0)).mean() > 0.98


def test_a_zero_probability_can_be_overruled() -> None:
    """One pixel of a uniform image has probability 1 for a wrong class; the floor of 1e-18 lets its neighbours win."""
    prior = np.zeros((2, 9, 9))
    prior[0] = 1
    prior[:, 4, 4] = 0, 1
    params = CrfParams(smoothness_weight=60, smoothness_sigma=3)
    image = np.zeros((9, 9, 3), np.uint8)
    assert dense_crf(image, prior, params).argmax(axis=0)[4, 4] == 0


def test_absent_classes_are_skipped() -> None:
    image, labels = scene(30, 40, seed=9)
    prior = np.concatenate([soft(labels, range(3), 2.0, seed=9), np.full((5, 30, 40), 5e-5)])
    prior /= prior.sum(axis=0)
    skipped, full = dense_crf(image, prior), dense_crf(image, prior, CrfParams(min_probability=0))
    assert (skipped[3:] == 0).all()
    assert (full[3:] > 0).all()
    np.testing.assert_allclose(skipped, full, atol=2e-3)
    np.testing.assert_allclose(skipped[:3], dense_crf(image, prior[:3]), atol=1e-6)
    np.testing.assert_allclose(dense_crf(image, prior, CrfParams(iterations=0)).sum(axis=0), 1, atol=1e-6)


def test_weak_classes_keep_their_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two thirds of 21 classes become weak at once, the others compete; then one class is left."""
    image, labels = scene(40, 56, seed=13)
    prior = np.concatenate([soft(labels, range(3), 3.0, seed=13), soft(labels, range(3, 21), 3.0, seed=14) * 0.1])
    filtered: list[int] = []
    original = permutohedral.Lattice.filter

    def counting(self: permutohedral.Lattice, values: torch.Tensor) -> torch.Tensor:
        filtered.append(values.shape[1])
        return original(self, values)

    monkeypatch.setattr(permutohedral.Lattice, "filter", counting)
    found, wanted = dense_crf(image, prior), exact_crf(image, prior)
    assert filtered[2] == 20 and filtered[-1] <= 3
    assert (found.argmax(axis=0) == wanted.argmax(axis=0)).mean() > 0.995
    np.testing.assert_allclose(found[3:], wanted[3:], atol=0.02)
    np.testing.assert_allclose(found.sum(axis=0), 1, atol=1e-5)


def test_many_equal_classes_are_all_filtered() -> None:
    prior = np.full((150, 6, 6), 1 / 150)
    np.testing.assert_allclose(dense_crf(np.zeros((6, 6, 3), np.uint8), prior), prior, atol=1e-5)


def test_the_best_class_is_filtered_even_below_the_minimum() -> None:
    prior = np.full((4, 3, 3), 0.25)
    prior[2] = 0.3
    result = dense_crf(np.zeros((3, 3, 3), np.uint8), prior, CrfParams(min_probability=0.9))
    np.testing.assert_array_equal(result.argmax(axis=0), 2)


def test_a_high_minimum_leaves_each_pixel_a_class() -> None:
    """Of one pixel only classes below the minimum are possible."""
    prior = np.zeros((3, 1, 2))
    prior[:, 0, 0], prior[:, 0, 1] = (1, 0, 0), (0, 0.5, 0.5)
    result = dense_crf(np.zeros((1, 2, 3), np.uint8), prior, CrfParams(min_probability=0.6))
    np.testing.assert_allclose(result.sum(axis=0), 1, atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (12, 16)])
def test_uniform_and_thin_images(size: tuple[int, int]) -> None:
    image = np.full((*size, 3), 77, np.uint8)
    np.testing.assert_allclose(dense_crf(image, np.full((1, *size), 0.3)), 1)  # one class
    prior = np.random.default_rng(0).uniform(0.2, 1, (3, *size))
    fast, exact = dense_crf(image, prior), exact_crf(image, prior)
    np.testing.assert_allclose(fast, exact, atol=0.05)


def test_tensors_give_tensors_and_inputs_stay_unchanged() -> None:
    image, labels = scene(12, 15, seed=10)
    prior = soft(labels, range(3), 2.0, seed=10).astype(np.float32)
    originals = image.copy(), prior.copy()
    wanted = dense_crf(image, prior)
    assert wanted.dtype == np.float32
    tensor = torch.from_numpy(prior).requires_grad_()
    for pixels in (image, torch.from_numpy(image)):
        result = dense_crf(pixels, tensor)
        assert isinstance(result, torch.Tensor)
        assert not result.requires_grad
        np.testing.assert_array_equal(result, wanted)
    last = tensor.detach().permute(1, 2, 0).contiguous()  # as a network with channels last returns them
    np.testing.assert_allclose(dense_crf(image, last.permute(2, 0, 1)), wanted, atol=1e-6)
    np.testing.assert_array_equal(image, originals[0])
    np.testing.assert_array_equal(prior, originals[1])


@pytest.mark.filterwarnings("error")
def test_read_only_and_flipped_arrays() -> None:
    image, labels = scene(10, 14, seed=11)
    prior = soft(labels, range(3), 2.0, seed=11)
    flipped = dense_crf(image[:, ::-1], prior[:, :, ::-1])
    np.testing.assert_array_equal(flipped, dense_crf(image[:, ::-1].copy(), prior[:, :, ::-1].copy()))
    image.flags.writeable = False
    dense_crf(image, prior)


def test_a_narrow_kernel_works_or_raises() -> None:
    image, labels = scene(20, 30, seed=12)
    prior = soft(labels, range(3), 2.0, seed=12)
    narrow = CrfParams(appearance_sigma_rgb=0.5, appearance_sigma_xy=2)
    exact, fast = exact_crf(image, prior, narrow), dense_crf(image, prior, narrow)
    assert (exact.argmax(axis=0) == fast.argmax(axis=0)).mean() > 0.99
    with pytest.raises(ConfigError, match="too narrow"):
        dense_crf(image, prior, CrfParams(appearance_sigma_rgb=1e-4))


IMAGE = np.zeros((4, 5, 3), np.uint8)
PRIOR = np.full((2, 4, 5), 0.5)


def spoiled(value: float) -> Array:
    prior = PRIOR.copy()
    prior[:, 1, 2] = value
    return prior


@pytest.mark.parametrize(
    ("image", "prior", "error", "words"),
    [
        (IMAGE.astype(np.float32), PRIOR, ShapeError, "float32, not"),
        (IMAGE[:, :, :1], PRIOR, ShapeError, r"\(4, 5, 1\)"),
        (IMAGE[:, :, 0], PRIOR, ShapeError, r"\(4, 5\)"),
        (np.zeros((0, 5, 3), np.uint8), np.zeros((2, 0, 5)), ShapeError, r"\(0, 5, 3\)"),
        (IMAGE, PRIOR[0], ShapeError, r"\(4, 5\), not \(C, H, W\)"),
        (IMAGE, PRIOR[:0], ShapeError, r"\(0, 4, 5\), not"),
        (IMAGE, PRIOR.transpose(0, 2, 1), ShapeError, "5 x 4 and the image is 4 x 5"),
        (IMAGE, spoiled(float("nan")), ConfigError, "NaN"),
        (IMAGE, spoiled(float("inf")), ConfigError, "infinite"),
        (IMAGE, spoiled(-0.25), ConfigError, "-0.25, below 0"),
        (IMAGE, spoiled(0), ConfigError, "row 1, column 2"),
    ],
)
def test_bad_input(image: Array, prior: Array, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        dense_crf(image, prior)


@pytest.mark.parametrize(
    "setting",
    [
        {"iterations": -1},
        {"iterations": 2.5},
        {"iterations": True},
        {"appearance_weight": -1.0},
        {"smoothness_weight": float("nan")},
        {"appearance_sigma_xy": 0.0},
        {"appearance_sigma_rgb": float("inf")},
        {"smoothness_sigma": -3.0},
        {"normalization": "symetric"},
        {"min_probability": 1.0},
    ],
)
def test_bad_settings(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(setting))):
        CrfParams(**setting)
