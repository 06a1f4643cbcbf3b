"""Each method of its own head equals its formula, written as loops, and the limits in which it is another method."""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, log_softmax, logit, softmax
from torch import Tensor, nn

from wildcat.errors import ConfigError
from wildcat.methods import HEADS, METHODS
from wildcat.nn.backbones import Backbone
from wildcat.nn.factory import create_model
from wildcat.nn.heads.background import softmax_logits
from wildcat.nn.heads.compact_bilinear import EPSILON, TensorSketch
from wildcat.nn.heads.descriptor import DescriptorNetwork
from wildcat.nn.heads.mop_cnn import MultiScaleVlad, vlad, windows
from wildcat.nn.heads.negative_parts import SPARSITY, PartFilters
from wildcat.nn.heads.netvlad import SECOND, SoftVlad
from wildcat.nn.heads.rrsvm import RankPool
from wildcat.nn.heads.spleap import LearnedParts
from wildcat.nn.heads.wsddn import DetectionNetwork
from wildcat.nn.model import Labelled
from wildcat.nn.pooling import spatial_pool
from wildcat.train.optim import multilabel_loss


class Pixels(nn.Module):
    """A network whose features are the image, of D = 6 channels."""

    pretrained_cfg = MappingProxyType({"mean": (0.5,) * 3, "std": (0.5,) * 3})
    num_features = 6

    def forward_features(self, images: Tensor) -> Tensor:
        return images


def random(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def with_random_weights(module: Any) -> Any:
    """The module in double precision, all its parameters drawn at random."""
    module = module.double()
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter.copy_(random(i, *parameter.shape))
    return module


def labelled(*batches: Tensor) -> Labelled:
    """Training images: these features, with the labels of one class."""

    def images() -> Iterator[tuple[Tensor, Tensor]]:
        return ((x, torch.ones(len(x), 1)) for x in batches)

    return images


# --- RRSVM ----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 1000), st.integers(1, 40), st.integers(1, 9))
@settings(max_examples=30)
def test_rank_weights_fall_to_zero_or_more_and_sum_to_one(seed: int, n: int, size: int) -> None:
    weights = with_random_weights(RankPool(3, size)).weights(n).detach().numpy()
    assert weights.shape == (3, n)
    assert (weights >= 0).all() and (np.diff(weights, axis=1) <= 1e-12).all()
    np.testing.assert_allclose(weights.sum(axis=1), 1)


def test_rank_pooling_is_the_weighted_sum_of_the_sorted_regions() -> None:
    pool, x = with_random_weights(RankPool(2, size=5)), random(9, 3, 2, 4, 5)
    weights = pool.weights(20).detach().numpy()
    expected = [[np.sort(x[b, c].numpy().ravel())[::-1] @ weights[c] for c in range(2)] for b in range(3)]
    np.testing.assert_allclose(pool(x).detach().numpy(), expected)


def test_max_top_and_average_pooling_are_limits_of_rank_pooling() -> None:
    x = random(1, 2, 3, 4, 4)
    pool = RankPool(3, size=11).double()  # 1/1024, 1/512, ..., 1/2, 1
    for chosen, k in ((0, 1), (5, 1), (8, 4), (9, 8), (10, 1.0)):
        with torch.no_grad():
            pool.mixture.fill_(-math.inf)[:, chosen] = 0
        torch.testing.assert_close(pool(x), spatial_pool(x, k, 0, 0.0))


# --- parts ----------------------------------------------------------------------------------------------------------


def test_spleap_is_a_loop_over_parts_and_regions() -> None:
    pool, x = with_random_weights(LearnedParts(6, parts=4)), random(9, 2, 6, 2, 3)
    (v, a), (u, b) = (
        (layer.weight[:, :, 0, 0].detach().numpy(), layer.bias.detach().numpy()) for layer in (pool.hidden, pool.parts)
    )
    beta, found = pool.sharpness.detach().numpy(), pool(x).detach().numpy()
    for image in range(2):
        regions = [x[image, :, i, j].numpy() for i in range(2) for j in range(3)]
        for p in range(4):
            h = np.array([u[p] @ np.maximum(v @ region + a, 0) + b[p] for region in regions])
            assert found[image, p] == pytest.approx(softmax(beta[p] * h) @ h)


def test_average_and_maximum_are_limits_of_spleap() -> None:
    pool, x = with_random_weights(LearnedParts(6, parts=4)), random(9, 2, 6, 2, 3)
    responses = pool.regions(x).flatten(2)
    for beta, expected in ((0.0, responses.mean(-1)), (1e4, responses.amax(-1))):
        nn.init.constant_(pool.sharpness, beta)
        torch.testing.assert_close(pool(x), expected)


def test_negative_parts_score_by_the_highest_response_to_each_filter() -> None:
    model = with_random_weights(DescriptorNetwork(Backbone("pixels", Pixels()), 2, PartFilters(6, parts=3)))
    x = random(5, 2, 6, 3, 4)
    w, u = (layer.weight[:, :, 0, 0].detach().numpy() for layer in (model.pool.filters, model.transfer))
    bias, found = model.transfer.bias.detach().numpy(), model.head(x)
    for image in range(2):
        responses = np.stack([w @ x[image, :, i, j].numpy() for i in range(3) for j in range(4)])
        np.testing.assert_allclose(found.scores[image].detach(), u @ responses.max(axis=0) + bias)
        np.testing.assert_allclose(found.class_maps[image].flatten(1).detach(), u @ responses.T + bias[:, None])


def test_the_group_lasso_shrinks_parts_as_its_proximal_operator_does() -> None:
    """The operator's result minimises |u - v|^2 / 2 + step |u|: no other length along v has less."""
    pool, lr = PartFilters(6, parts=3), 2.0
    weights = random(0, 4, 3, 1, 1)
    weights[:, 1] *= 0.9 * lr * SPARSITY / weights[:, 1].norm()
    before, step = weights.clone(), lr * SPARSITY
    pool.shrink(weights, lr)
    for j in range(3):
        length = float(before[:, j].norm())
        tried = np.linspace(0, length, 100_001)
        best = tried[np.argmin((tried - length) ** 2 / 2 + step * tried)]
        np.testing.assert_allclose(weights[:, j], before[:, j] * best / length, atol=2e-5)
    assert (weights[:, 1] == 0).all() and (weights[:, [0, 2]] != 0).all()


def test_part_filters_start_as_regions_of_the_training_images() -> None:
    model = DescriptorNetwork(Backbone("pixels", Pixels()), 2, PartFilters(6, parts=5)).double()
    x = random(1, 4, 6, 2, 2)
    mean, std = random(2, 6), random(3, 6).abs() + 0.5
    model.standardize(mean, std)
    model.fit(labelled(x[:1], x[1:]), seed=3)
    regions = ((x - mean[:, None, None]) / std[:, None, None]).permute(0, 2, 3, 1).reshape(-1, 6)
    likeness = model.pool.filters.weight[:, :, 0, 0] @ nn.functional.normalize(regions, dim=1).T
    assert len(set(likeness.argmax(dim=1).tolist())) == 5, "five different regions"
    torch.testing.assert_close(likeness.amax(dim=1), torch.ones(5, dtype=torch.float64))
    vectors = model.pool(model.statistics.standardized(x))
    standardised = model.transfer.standardized(vectors[:, :, None, None])
    torch.testing.assert_close(
        standardised.mean(0).abs().sum(), torch.zeros((), dtype=torch.float64), atol=1e-6, rtol=0
    )


# --- compact bilinear pooling ---------------------------------------------------------------------------------------


def test_the_sketch_is_the_count_sketch_of_the_outer_product() -> None:
    pool, x = TensorSketch(6, size=7).double(), random(1, 1, 6, 2, 2)
    (h1, h2), (s1, s2) = pool.bins.numpy(), pool.signs.numpy()
    sketch = np.zeros(7)
    for region in x[0].flatten(1).T.numpy():
        for i in range(6):
            for j in range(6):
                sketch[(h1[i] + h2[j]) % 7] += s1[i] * s2[j] * region[i] * region[j] / 4
    root = sketch / np.sqrt(np.abs(sketch) + EPSILON * np.abs(sketch).mean())
    np.testing.assert_allclose(pool(x)[0], math.sqrt(6) * root / np.linalg.norm(root), rtol=1e-4, atol=1e-9)


def test_the_sketch_approximates_the_bilinear_kernel() -> None:
    """Over 2,000 sketches the mean of <sketch(x), sketch(y)> is <x, y>^2, with the stated standard deviation."""
    torch.manual_seed(0)
    x, y = random(1, 1, 6, 1, 1), random(2, 1, 6, 1, 1)
    x = x + y  # not orthogonal
    found = []
    for _ in range(2000):
        pool = TensorSketch(6, size=32)
        sketches = [torch.fft.irfft(a * b, n=32) for a, b in (pool.spectra(x), pool.spectra(y))]
        found.append(float((sketches[0] * sketches[1]).sum()))
    exact, bound = float((x * y).sum()) ** 2, float(x.norm() ** 2 * y.norm() ** 2) * math.sqrt(8 / 32)
    assert np.std(found) < bound
    assert np.mean(found) == pytest.approx(exact, abs=4 * bound / math.sqrt(2000))


def test_a_region_adds_its_class_map_to_the_score() -> None:
    model = with_random_weights(DescriptorNetwork(Backbone("pixels", Pixels()), 3, TensorSketch(6, size=16)))
    output = model.float().head(random(1, 2, 6, 3, 4).float())
    torch.testing.assert_close(output.class_maps.mean(dim=(2, 3)), output.scores, rtol=1e-4, atol=1e-4)
    assert output.class_maps.std(dim=(2, 3)).min() > 0.01


# --- VLAD -----------------------------------------------------------------------------------------------------------


def test_netvlad_is_a_loop_over_clusters_and_regions() -> None:
    pool, x = with_random_weights(SoftVlad(6, clusters=3)), random(9, 2, 6, 2, 3)
    w, b, c = (p.detach().numpy() for p in (pool.assign, pool.offset, pool.centres))
    found = pool(x).detach().numpy()
    for image in range(2):
        residuals = np.zeros((3, 6))
        for i in range(2):
            for j in range(3):
                region = x[image, :, i, j].numpy() / np.linalg.norm(x[image, :, i, j])
                a = softmax([w[k] @ region + b[k] for k in range(3)])
                for k in range(3):
                    residuals[k] += a[k] * (region - c[k])
        vector = np.concatenate([residual / np.linalg.norm(residual) for residual in residuals])
        np.testing.assert_allclose(found[image], vector / np.linalg.norm(vector) * math.sqrt(6))


def test_netvlad_starts_at_the_clusters_of_the_training_images() -> None:
    """Of regions around two directions, each belongs to its own; the other has about the weight that is stated."""
    centres = nn.functional.normalize(random(0, 2, 6), dim=1)
    rows = centres[torch.arange(80) % 2] + 0.01 * random(1, 80, 6)
    x = rows.reshape(20, 2, 2, 6).permute(0, 3, 1, 2)
    pool = SoftVlad(6, clusters=2).double()
    pool.fit(labelled(x), seed=0)
    found = nn.functional.normalize(pool.centres.detach(), dim=1) @ centres.T
    assert sorted(found.argmax(dim=1).tolist()) == [0, 1] and (found.amax(dim=1) > 0.999).all()
    regions = nn.functional.normalize(x, dim=1).flatten(2)
    weights = (pool.assign @ regions + pool.offset[:, None]).softmax(dim=1)
    assert float(weights.amin(dim=1).detach().median()) == pytest.approx(SECOND, rel=0.5)


def test_vlad_is_a_loop_over_windows() -> None:
    x, centres = random(1, 2, 3, 4, 4), random(2, 5, 3)
    found, means = vlad(windows(x, 2), centres).numpy(), np.zeros((3, 3, 3))
    for image in range(2):
        residuals = np.zeros((5, 3))
        for i in range(3):
            for j in range(3):
                means[:, i, j] = x[image, :, i : i + 2, j : j + 2].numpy().mean(axis=(1, 2))
                k = np.argmin(np.linalg.norm(centres.numpy() - means[:, i, j], axis=1))
                residuals[k] += means[:, i, j] - centres[k].numpy()
        expected = np.sign(residuals) * np.sqrt(np.abs(residuals))
        np.testing.assert_allclose(found[image], expected.ravel(), atol=1e-3)
    assert windows(x, 4).shape == (2, 3, 4, 4)


def test_mop_cnn_joins_three_levels_of_equal_length() -> None:
    pool, x = MultiScaleVlad(6, clusters=4).double(), random(1, 30, 6, 4, 4)
    pool.fit(labelled(x[:10], x[10:]), seed=0)
    torch.testing.assert_close(pool.components @ pool.components.T, torch.eye(6, dtype=torch.float64))
    vectors = pool(x)
    assert vectors.shape == (30, pool.size) == (30, 6 + 2 * 4 * 6)
    for level in vectors.split([6, 24, 24], dim=1):
        torch.testing.assert_close(level.norm(dim=1), torch.full((30,), math.sqrt(2), dtype=torch.float64))


# --- WSDDN ----------------------------------------------------------------------------------------------------------


def test_wsddn_is_the_sum_over_regions_of_two_softmaxes() -> None:
    model = with_random_weights(DetectionNetwork(Backbone("pixels", Pixels()), 3))
    model.standardize(random(7, 6), random(8, 6).abs() + 0.5)
    x = random(5, 4, 6, 2, 3)
    classes = model.transfer(x).flatten(2).detach().numpy()
    detections = model.pool.detect(model.transfer.standardized(x)).flatten(2).detach().numpy()
    regions = softmax(classes, axis=1) * softmax(detections, axis=2)
    phi, output = regions.sum(axis=2), model.head(x)
    assert (phi <= 1).all()
    np.testing.assert_allclose(expit(output.scores.detach().numpy()), phi)
    maps = output.class_maps.flatten(2).detach().numpy()
    assert (np.argsort(maps, axis=2) == np.argsort(regions, axis=2)).all(), "regions are ranked as in the paper"
    best = detections.argmax(axis=2)[..., None]
    at_best = logit(np.take_along_axis(softmax(classes, axis=1), best, 2))
    np.testing.assert_allclose(np.take_along_axis(maps, best, 2), at_best)
    labels = torch.tensor([[1, -1, 1], [-1, -1, 1], [1, 1, 1], [-1, -1, -1]])
    signs = labels.numpy()
    paper = -np.log(signs * (phi - 0.5) + 0.5).sum(axis=1)  # the loss of the paper, section 3.3
    np.testing.assert_allclose(multilabel_loss(output.scores, labels).detach(), paper)


def test_softmax_logits_do_not_cancel() -> None:
    values = random(1, 2, 5, 3) * 50
    log_p = log_softmax(values.numpy(), axis=1)
    rest = np.log(-np.expm1(np.minimum(log_p, -1e-300)))
    finite = log_p < -1e-6
    np.testing.assert_allclose(softmax_logits(values).numpy()[finite], (log_p - rest)[finite], rtol=1e-6)
    assert softmax_logits(torch.tensor([[100.0, 0.0]])).tolist() == [[100.0, -100.0]]


# --- all of them ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HEADS)
def test_a_head_gives_what_its_method_says(name: str) -> None:
    torch.manual_seed(0)
    model = create_model("test_resnet", 3, 1, pretrained=False, head=name, head_size=0 if name == "wsddn" else 5)
    mean = torch.randn(model.backbone.num_features)
    model.standardize(mean, torch.rand(len(mean)) + 0.5)
    assert torch.equal(model.feature_mean, mean)
    output = model.head(torch.randn(2, len(mean), 4, 6))
    assert output.scores.shape == (2, 3)
    assert model.has_maps == METHODS[name].has_maps == bool(output.class_maps.numel())
    assert output.class_maps.shape == ((2, 3, 4, 6) if model.has_maps else (2, 3, 0, 0))
    assert output.maps.shape == (2, 3, 1, *output.class_maps.shape[2:])
    assert model.fuse().head(torch.ones(1, model.backbone.num_features, 4, 4)).scores.shape == (1, 3)
    output.scores.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.transfer.parameters())


def test_sizes_and_classes_that_a_head_cannot_have() -> None:
    with pytest.raises(ConfigError, match=r"there is no head 'netvald'\.\n.*did you mean netvlad"):
        create_model("test_resnet", 3, pretrained=False, head="netvald")
    with pytest.raises(ConfigError, match="head_size=3: wsddn has no size"):
        create_model("test_resnet", 3, pretrained=False, head="wsddn", head_size=3)
    for head in ("netvlad", "rrsvm"):
        with pytest.raises(ConfigError, match=f"head_size=-1: give .* of {head} itself"):
            create_model("test_resnet", 3, pretrained=False, head=head, head_size=-1)
    with pytest.raises(ConfigError, match="there is one class"):
        create_model("test_resnet", 1, pretrained=False, head="wsddn")
    with pytest.raises(
        ConfigError, match=r"netvlad computes 64 clusters, and there are 22.*\n?.*head_size=22 or fewer"
    ):
        SoftVlad(6).check(22, (4, 4))
    with pytest.raises(ConfigError, match="the map has 2 x 2 cells"):
        MultiScaleVlad(6).check(100, (2, 2))
