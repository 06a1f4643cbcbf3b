"""Masks against tables worked by hand and loops over pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from wildcat.errors import ConfigError, ShapeError
from wildcat.regions import (
    CrfParams,
    MaskParams,
    class_probabilities_with_background,
    maps_to_mask,
    strongest_class,
    upsample_maps,
    write_mask,
)
from wildcat.regions import dense_crf as real_dense_crf
from wildcat.regions.masks import select_classes

Array = NDArray[Any]
PALETTE = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]], np.uint8)


def bilinear(grid: Array, height: int, width: int) -> Array:
    """Bilinear resampling with aligned cell edges, one pixel at a time."""
    h, w = grid.shape
    out = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            y = min(max((i + 0.5) * h / height - 0.5, 0), h - 1)
            x = min(max((j + 0.5) * w / width - 0.5, 0), w - 1)
            top, left = int(y), int(x)
            below, right = min(top + 1, h - 1), min(left + 1, w - 1)
            upper = (1 - x + left) * grid[top, left] + (x - left) * grid[top, right]
            lower = (1 - x + left) * grid[below, left] + (x - left) * grid[below, right]
            out[i, j] = (1 - y + top) * upper + (y - top) * lower
    return out


def test_gate_selects_the_predicted_classes() -> None:
    prob, maps = np.array([0.2, 0.7, 0.5, 0.49]), np.arange(4.0)[:, None, None]
    for gate, expected in ((0.5, [1, 2]), (0.0, [0, 1, 2, 3]), (0.99, []), ((0.1, 0.8, 0.5, 0.5), [0, 2])):
        classes, selected = select_classes(maps, prob, gate)
        assert classes.tolist() == selected.flatten().tolist() == expected


@pytest.mark.parametrize("size", [(7, 11), (3, 4), (2, 9)])
def test_upsampling_against_the_loop(size: tuple[int, int]) -> None:
    maps = np.random.default_rng(0).standard_normal((2, 3, 4))
    wanted = np.stack([bilinear(grid, *size) for grid in maps])
    np.testing.assert_allclose(upsample_maps(maps, size), wanted, atol=1e-6)


def test_normalised_maps() -> None:
    maps = np.array([[[8.0, 2.0], [-4.0, 0.0]], [[-1.0, -2.0], [-3.0, -4.0]]])
    constant = 0.5
    wanted = np.array([[[constant, constant], [constant, constant]], [[1, 0.25], [0, 0]], [[0, 0], [0, 0]]])
    found = class_probabilities_with_background(maps, MaskParams(constant=constant))
    np.testing.assert_allclose(found, wanted / wanted.sum(axis=0), atol=1e-6)


def test_constant_rule_by_hand() -> None:
    maps = np.array([[[10.0, 4.0, -1.0]], [[0.0, 2.0, 1.0]]])  # normalised: 1 .4 0 and 0 1 .5
    params = MaskParams(rule="constant", constant=0.25)
    wanted = [[0.25 / 1.25, 0.25 / 1.65, 0.25 / 0.75], [1 / 1.25, 0.4 / 1.65, 0], [0, 1 / 1.65, 0.5 / 0.75]]
    found = class_probabilities_with_background(maps, params)
    np.testing.assert_allclose(found[:, 0], wanted, atol=1e-6)


def test_power_rule_by_hand() -> None:
    maps = np.array([[[10.0, 5.0, 1.0, -3.0]]])  # normalised: 1 .5 .1 0; background (1 - x)^2: 0 .25 .81 1
    found = class_probabilities_with_background(maps, MaskParams(rule="power", exponent=2))
    np.testing.assert_allclose(found[0, 0], [0, 0.25 / 0.75, 0.81 / 0.91, 1], atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=0), 1, atol=1e-6)


def test_trained_rule_is_the_softmax() -> None:
    rng = np.random.default_rng(1)
    maps, background = rng.standard_normal((3, 4, 5)), rng.standard_normal((4, 5))
    found = class_probabilities_with_background(maps, MaskParams(rule="trained"), background)
    raised = np.exp(np.concatenate([background[None], maps]))
    np.testing.assert_allclose(found, raised / raised.sum(axis=0), atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    classes=st.integers(0, 5),
    rule=st.sampled_from(["constant", "power", "trained"]),
    gate=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
)
def test_mask_against_the_loop(seed: int, classes: int, rule: Any, gate: float) -> None:
    """At each pixel the highest score of the background and the gated classes, by the rules as written."""
    rng = np.random.default_rng(seed)
    maps, prob = rng.normal(1, 2, (classes, 3, 4)), rng.uniform(0, 1, classes)
    background = rng.normal(1, 2, (3, 4)) if rule == "trained" else None
    params = MaskParams(gate=gate, rule=rule, constant=0.3, exponent=1.5)
    found = maps_to_mask(maps, prob, (8, 10), params, background_map=background)

    chosen = [c for c in range(classes) if prob[c] >= gate]
    grids = {c: bilinear(maps[c], 8, 10) for c in chosen}
    if rule != "trained":
        grids = {c: np.maximum(g, 0) / max(g.max(), 1e-30) for c, g in grids.items()}
    for i in range(8):
        for j in range(10):
            scores = {c + 1: grid[i, j] for c, grid in grids.items()}
            highest = max(scores.values(), default=0.0)
            if background is not None:
                scores[0] = bilinear(background, 8, 10)[i, j]
            else:
                scores[0] = 0.3 if rule == "constant" else (1 - highest) ** 1.5
            ordered = sorted(scores.values())
            if len(ordered) < 2 or ordered[-1] - ordered[-2] > 1e-5:  # rounding decides ties
                assert found[i, j] == max(scores, key=lambda label: scores[label])


def test_no_gated_class_is_all_background() -> None:
    image = np.zeros((6, 9, 3), np.uint8)
    maps, prob = np.ones((3, 2, 3)), np.array([0.1, 0.2, 0.3])
    for crf in (None, CrfParams()):
        for rule, background in (("constant", None), ("power", None), ("trained", np.zeros((2, 3)))):
            mask = maps_to_mask(
                maps, prob, (6, 9), MaskParams(rule=rule), background_map=background, image=image, crf=crf
            )  # type: ignore[arg-type]
            np.testing.assert_array_equal(mask, np.zeros((6, 9), np.int64))


def test_labels_are_class_indices_even_beyond_a_byte() -> None:
    maps, prob = np.zeros((400, 1, 2)), np.zeros(400)
    maps[299, 0, 0], maps[7, 0, 1] = 5.0, 3.0
    prob[[7, 299]] = 0.9
    mask = maps_to_mask(maps, prob, (1, 2))
    assert mask.dtype == np.int64
    assert mask.tolist() == [[300, 8]]


def test_crf_aligns_the_mask_with_the_edge_of_the_image() -> None:
    """The image's edge is at column 20, the coarse map's near 16."""
    image = np.full((24, 32, 3), 40, np.uint8)
    image[:, :20] = 200
    maps, prob = np.array([[[4.0, 4.0, 1.0, 0.0]], [[9.0, 9.0, 9.0, 9.0]]]), np.array([0.8, 0.1])
    truth = np.zeros((24, 32), np.int64)
    truth[:, :20] = 1
    params = MaskParams(constant=0.3)
    soft = maps_to_mask(maps, prob, (24, 32), params)
    sharp = maps_to_mask(maps, prob, (24, 32), params, image=image, crf=CrfParams())
    assert (soft != truth).mean() > 0.02
    np.testing.assert_array_equal(sharp, truth)


def test_crf_filters_the_gated_classes_only(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []

    def counting(image: Any, probabilities: Any, params: CrfParams) -> Any:
        counts.append(len(probabilities))
        return real_dense_crf(image, probabilities, params)

    monkeypatch.setattr("wildcat.regions.masks.dense_crf", counting)
    prob = np.array([0.9, 0.1, 0.8, 0.2])
    maps_to_mask(np.ones((4, 2, 2)), prob, (4, 4), image=np.zeros((4, 4, 3), np.uint8), crf=CrfParams())
    assert counts == [3]  # the background and two classes


def test_tensors_give_tensors() -> None:
    rng = np.random.default_rng(3)
    maps, prob = rng.standard_normal((3, 4, 5)).astype(np.float32), np.array([0.6, 0.4, 0.9])
    wanted = maps_to_mask(maps, prob, (9, 13))
    found = maps_to_mask(torch.from_numpy(maps), torch.from_numpy(prob), (9, 13))
    assert isinstance(found, torch.Tensor)
    assert found.dtype == torch.int64
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"maps": np.zeros((2, 3))}, ShapeError, r"\(2, 3\), not \(C, h, w\)"),
        ({"maps": np.full((2, 3, 4), np.nan)}, ConfigError, "NaN"),
        ({"class_prob": np.zeros(3)}, ShapeError, r"\(3,\) for 2 maps"),
        ({"class_prob": np.zeros((2, 2))}, ShapeError, r"\(2, 2\) for 2 maps"),
        ({"class_prob": np.array([3.2, 0.1])}, ConfigError, "outside"),
        ({"class_prob": np.array([np.nan, 0.1])}, ConfigError, "outside"),
        ({"crf": CrfParams()}, ConfigError, "crf needs the image"),
        ({"crf": CrfParams(), "image": np.zeros((5, 8, 3), np.uint8)}, ShapeError, "6 x 8 and the image is 5 x 8"),
        ({"params": MaskParams(rule="trained")}, ConfigError, "needs a background_map"),
        ({"background_map": np.zeros((3, 4))}, ConfigError, "takes no background_map"),
    ],
)
def test_bad_input(arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    good: dict[str, Any] = {"maps": np.ones((2, 3, 4)), "class_prob": np.ones(2), "size": (6, 8)}
    with pytest.raises(error, match=words):
        maps_to_mask(**(good | arguments))


@pytest.mark.parametrize(
    "setting",
    [{"gate": 1.5}, {"rule": "constnat"}, {"constant": 0.0}, {"constant": float("nan")}, {"exponent": 0.0}],
)
def test_bad_settings(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(setting))):
        MaskParams(**setting)


def test_written_mask_reads_back(tmp_path: Path) -> None:
    mask = np.array([[0, 1, 2], [3, 2, 0]])
    path = tmp_path / "mask.png"
    path.write_bytes(b"old")
    write_mask(path, mask, PALETTE)
    with Image.open(path) as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), mask)
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), PALETTE[mask])
    assert [p.name for p in tmp_path.iterdir()] == ["mask.png"]


@pytest.mark.parametrize("label", [255, 300, -1])
def test_unwritable_masks(tmp_path: Path, label: int) -> None:
    with pytest.raises(ConfigError, match=f"label {label}; a PNG mask has labels 0 to 254"):
        write_mask(tmp_path / "mask.png", np.full((2, 2), label), PALETTE)
    assert not list(tmp_path.iterdir())


def test_the_highest_label_is_written(tmp_path: Path) -> None:
    palette = np.arange(255 * 3).reshape(255, 3) % 256
    write_mask(tmp_path / "mask.png", np.full((3, 2), 254), palette)
    with Image.open(tmp_path / "mask.png") as image:
        np.testing.assert_array_equal(np.asarray(image), 254)


# --- the strongest class, gates per class, and the rule "power" -----------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), classes=st.integers(0, 4), whole=st.booleans())
def test_strongest_class_against_the_loop(seed: int, classes: int, whole: bool) -> None:
    """With integer maps classes tie; the first of equal classes wins."""
    rng = np.random.default_rng(seed)
    maps, prob = rng.normal(1, 2, (classes, 5, 6)), rng.uniform(0, 1, classes)
    maps = np.round(maps) if whole else maps
    gates = rng.uniform(0, 1, classes)
    strength, labels = strongest_class(maps, prob, (5, 6), gates.tolist())  # the size of the maps: no resampling
    for i in range(5):
        for j in range(6):
            best, label = 0.0, 0
            for c in range(classes):
                if prob[c] >= gates[c] and maps[c].max() > 0:
                    value = np.float32(maps[c, i, j]) / np.float32(maps[c].max())
                    if value > best:
                        best, label = value, c + 1
            assert strength[i, j] == pytest.approx(best, abs=1e-6)
            if best > 0:  # otherwise the label is arbitrary
                assert labels[i, j] == label


def test_ties_go_to_the_background_then_to_the_first_class() -> None:
    maps = np.array([[[4.0, 2.0, 1.0]], [[8.0, 4.0, 2.0]], [[0.0, 3.0, 0.0]]])  # normalised, 0 and 1 are equal
    assert maps_to_mask(maps[:2], np.ones(2), (1, 3), MaskParams(constant=0.5)).tolist() == [[1, 0, 0]]
    assert maps_to_mask(maps, np.ones(3), (1, 3), MaskParams(constant=0.5)).tolist() == [[1, 3, 0]]
    power = MaskParams(rule="power", exponent=1.0)  # at 1/2 both are 1/2
    assert maps_to_mask(maps[:2], np.ones(2), (1, 3), power).tolist() == [[1, 0, 0]]
    background = np.array([[4.0, 5.0, 0.0]])
    trained = MaskParams(rule="trained")
    assert maps_to_mask(maps[:1], np.ones(1), (1, 3), trained, background_map=background).tolist() == [[0, 0, 1]]


@pytest.mark.parametrize("exponent", [0.5, 1.0, 4.0, 30.0])
def test_power_draws_what_a_constant_draws(exponent: float) -> None:
    power = MaskParams(rule="power", exponent=exponent)
    assert power.threshold == pytest.approx((1 - power.threshold) ** exponent)  # type: ignore[operator]
    maps, prob = np.random.default_rng(7).normal(1, 2, (3, 6, 7)), np.ones(3)
    same = MaskParams(constant=power.threshold)  # type: ignore[arg-type]
    found = maps_to_mask(maps, prob, (30, 40), power)
    assert 0 < (found == 0).mean() < 1
    np.testing.assert_array_equal(found, maps_to_mask(maps, prob, (30, 40), same))


def test_rules_without_a_threshold() -> None:
    assert MaskParams(constant=0.3).threshold == 0.3
    assert MaskParams(rule="trained").threshold is None


def test_one_gate_per_class() -> None:
    with pytest.raises(ShapeError, match="2 gates for 3 classes"):
        select_classes(np.ones((3, 1, 1)), np.array([0.2, 0.7, 0.5]), (0.1, 0.8))
    with pytest.raises(ConfigError, match=r"gate=\(0\.5, 1\.5\)"):
        MaskParams(gate=(0.5, 1.5))
    for gate in ([0.25, 0.5], np.array([0.25, 0.5])):
        assert MaskParams(gate=gate).gates(2) == (0.25, 0.5)  # type: ignore[arg-type]
    for gates in ((0.1,), (0.1, 0.2, 0.3)):
        with pytest.raises(ShapeError, match=f"{len(gates)} gates for 2 classes"):
            MaskParams(gate=gates).gates(2)


def test_zero_probabilities_draw_nothing_and_gate_0_draws_everything() -> None:
    maps, prob = np.ones((2, 3, 3)), np.zeros(2)
    assert not maps_to_mask(maps, prob, (4, 4)).any()
    assert (maps_to_mask(maps, prob, (4, 4), MaskParams(gate=0.0)) == 1).all()
    assert not maps_to_mask(-maps, prob, (4, 4), MaskParams(gate=0.0)).any()  # no positive evidence


def test_crf_on_an_image_of_one_color_preserves_symmetry() -> None:
    maps = np.zeros((1, 4, 4))
    maps[0, 1:3, 1:3] = 1
    image = np.full((32, 32, 3), 90, np.uint8)
    soft = maps_to_mask(maps, np.ones(1), (32, 32), MaskParams(constant=0.4))
    sharp = maps_to_mask(maps, np.ones(1), (32, 32), MaskParams(constant=0.4), image=image, crf=CrfParams())
    assert set(np.unique(sharp)) <= {0, 1}
    np.testing.assert_array_equal(sharp, sharp[::-1, ::-1])
    assert soft.any()


# --- the raw rule, and large images ---------------------------------------------------------------------------------


def test_score_rule_by_hand() -> None:
    maps = np.array([[[3.0, 1.0, -1.0, -5.0]], [[0.0, 2.0, -1.5, -2.0]]])
    for score, wanted in ((0.0, [1, 2, 0, 0]), (-1.2, [1, 2, 1, 0]), (2.5, [1, 0, 0, 0])):
        params = MaskParams(rule="score", score=score)
        assert maps_to_mask(maps, np.ones(2), (1, 4), params).tolist() == [wanted]
        assert class_probabilities_with_background(maps, params).argmax(axis=0).tolist() == [wanted]
        assert params.threshold == score
    found = class_probabilities_with_background(maps, MaskParams(rule="score", score=1.0))
    exponents = np.exp(np.concatenate([np.ones((1, 1, 4)), maps]))
    np.testing.assert_allclose(found, exponents / exponents.sum(axis=0), atol=1e-6)


def test_strips_do_not_change_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    maps, prob = rng.normal(size=(4, 7, 9)).astype(np.float32), np.array([0.9, 0.6, 0.2, 0.8])
    background = rng.normal(size=(7, 9)).astype(np.float32)
    settings = [(MaskParams(rule=rule), None) for rule in ("score", "constant", "power")]  # type: ignore[arg-type]
    settings.append((MaskParams(rule="trained"), background))  # type: ignore[arg-type]
    for params, other in settings:
        whole = maps_to_mask(maps, prob, (50, 41), params, background_map=other)
        strength, label = strongest_class(maps, prob, (50, 41), rule=params.rule)
        with monkeypatch.context() as small:
            small.setattr("wildcat.regions.masks.STRIP_VALUES", 3 * 41 * 3 + 7)
            np.testing.assert_array_equal(maps_to_mask(maps, prob, (50, 41), params, background_map=other), whole)
            strips = strongest_class(maps, prob, (50, 41), rule=params.rule)
        np.testing.assert_allclose(strips[0], strength, atol=1e-5)
        np.testing.assert_array_equal(strips[1], label)


def test_a_crf_runs_on_a_reduced_large_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two halves of different colors and maps with a shifted border: the CRF finds the edge at both sizes."""
    image = np.zeros((60, 80, 3), np.uint8)
    image[:, 40:] = 200
    maps = np.zeros((1, 6, 8), np.float32)
    maps[:, :, 5:] = 4.0
    params = MaskParams(rule="score", score=1.5)
    sharp = maps_to_mask(maps, np.ones(1), (60, 80), params, image=image, crf=CrfParams())
    sizes: list[tuple[int, ...]] = []

    def watched(photo: Array, *rest: Any) -> Any:
        sizes.append(photo.shape)
        return real_dense_crf(photo, *rest)

    monkeypatch.setattr("wildcat.regions.masks.dense_crf", watched)
    monkeypatch.setattr("wildcat.regions.masks.CRF_PIXELS", 1200)
    reduced = maps_to_mask(maps, np.ones(1), (60, 80), params, image=image, crf=CrfParams())
    assert sizes == [(30, 40, 3)] and reduced.shape == (60, 80)
    assert (sharp != maps_to_mask(maps, np.ones(1), (60, 80), params)).any()
    assert (reduced == sharp).mean() > 0.98 and reduced[:, 42:].all() and not reduced[:, :38].any()


def test_boundaries_stop_a_class() -> None:
    """A seed in the left half fills it up to the wall, and nothing beyond."""
    maps = np.full((1, 8, 16), -4.0, np.float32)
    maps[0, :, :6] = 1.5
    walls = np.zeros((8, 16), np.float32)
    walls[:, 9] = 1.0
    plain = maps_to_mask(maps, np.asarray([0.9]), (8, 16), MaskParams(rule="score"))
    spread = maps_to_mask(maps, np.asarray([0.9]), (8, 16), MaskParams(rule="score"), boundaries=walls)
    assert plain[:, :6].all() and not plain[:, 6:].any()
    assert spread[:, :9].all() and not spread[:, 10:].any()
    image = np.zeros((8, 16, 3), np.uint8)
    image[:, 10:] = 255
    sharp = maps_to_mask(
        maps, np.asarray([0.9]), (8, 16), MaskParams(rule="score"), boundaries=walls, image=image, crf=CrfParams()
    )
    assert sharp[:, :9].all() and not sharp[:, 10:].any()


@pytest.mark.parametrize("rule", ["score", "constant", "power", "trained"])
def test_without_steps_boundaries_change_nothing(rule: str) -> None:
    rng = np.random.default_rng(3)
    maps, background = rng.normal(size=(3, 6, 9)), rng.normal(size=(6, 9))
    extra = {"background_map": background} if rule == "trained" else {}
    params, size = MaskParams(gate=0.0, rule=rule), (6, 9)  # type: ignore[arg-type]
    plain = maps_to_mask(maps, np.ones(3), size, params, **extra)
    walls = np.full((6, 9), 1 - 1e-7)  # each pixel is a room of its own
    np.testing.assert_array_equal(maps_to_mask(maps, np.ones(3), size, params, boundaries=walls, **extra), plain)
