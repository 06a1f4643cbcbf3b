"""The segmenter: levels on one grid, log-odds against the background, and that it learns masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wildcat.errors import ShapeError
from wildcat.nn.backbones import create_backbone
from wildcat.nn.segmenter import Segmenter, on_grid, segmentation_loss


@pytest.mark.parametrize(
    ("name", "strides"),
    [
        ("test_resnet", (4, 8, 16, 32)),
        ("test_convnext", (4, 8, 16, 32)),
        ("test_efficientnet", (4, 8, 16, 32)),
        ("test_vit", (16, 16)),
    ],
)
def test_levels_end_with_the_features(name: str, strides: tuple[int, ...]) -> None:
    backbone = create_backbone(name, "none", image_size=160).eval()
    images = torch.randn(2, 3, 160, 160)
    with torch.inference_mode():
        levels = backbone.levels(images)
        torch.testing.assert_close(levels[-1], backbone(images))
    assert tuple(160 // level.shape[-1] for level in levels) == strides


def test_levels_at_another_stride() -> None:
    backbone = create_backbone("test_resnet", "none", output_stride=16).eval()
    levels = backbone.levels(torch.zeros(1, 3, 160, 96))
    assert [tuple(level.shape[-2:]) for level in levels] == [(40, 24), (20, 12), (10, 6), (10, 6)]


def test_maps_lie_on_the_second_coarsest_grid() -> None:
    segmenter = Segmenter([5, 6, 7], num_classes=3, width=8).eval()
    levels = [torch.randn(2, 5, 16, 24), torch.randn(2, 6, 8, 12), torch.randn(2, 7, 4, 6)]
    assert segmenter(levels).shape == (2, 3, 8, 12)
    assert Segmenter([7], 3, 8).eval()(levels[-1:]).shape == (2, 3, 4, 6)


def test_the_projection_of_a_mean_is_the_mean_of_projections() -> None:
    segmenter, level = Segmenter([5, 6], num_classes=3, width=8).eval(), torch.randn(2, 5, 16, 24)
    segmenter.measure([level, torch.randn(2, 6, 8, 12)])
    projected: list[torch.Tensor] = []
    segmenter.laterals[0].register_forward_hook(lambda _module, _inputs, output: projected.append(output))
    segmenter([level, torch.randn(2, 6, 8, 12)])
    of_places = segmenter.laterals[0](segmenter.scales[0](level))
    assert projected[0].shape[-2:] == (8, 12)
    torch.testing.assert_close(projected[0], on_grid(of_places, (8, 12)))


def test_another_grid_by_hand() -> None:
    maps = torch.tensor([[[[1.0, 3.0], [5.0, 7.0]]]])
    assert on_grid(maps, (1, 1)).tolist() == [[[[4.0]]]]
    assert on_grid(maps, (2, 2)) is maps
    assert on_grid(maps, (2, 4))[0, 0, 0].tolist() == [1.0, 1.5, 2.5, 3.0]


def test_standardised_levels_have_mean_0_and_spread_1() -> None:
    level = 3 * torch.randn(4, 5, 6, 7) + torch.arange(5.0)[:, None, None]
    level[:, 2] = 4.0  # never varies
    segmenter = Segmenter([5], 2)
    segmenter.measure([level])
    scaled = segmenter.scales[0](level)
    torch.testing.assert_close(scaled.mean(dim=(0, 2, 3)), torch.zeros(5), atol=1e-4, rtol=0)
    spread = scaled.std(dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(spread[[0, 1, 3, 4]], torch.ones(4))
    assert spread[2] == 0
    segmenter.measure([torch.ones(1, 5, 1, 1)])  # one image, one cell
    assert bool(segmenter.scales[0](torch.ones(1, 5, 1, 1)).isfinite().all())


def test_loss_is_the_cross_entropy_of_soft_labels() -> None:
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(2, 3, 4, 5))
    targets = rng.dirichlet(np.ones(4), size=(2, 4, 5)).transpose(0, 3, 1, 2)
    total = 0.0
    for b in range(2):
        for y in range(4):
            for x in range(5):
                odds = np.exp(np.concatenate([[0.0], maps[b, :, y, x]]))
                total -= float((targets[b, :, y, x] * np.log(odds / odds.sum())).sum())
    loss = segmentation_loss(torch.from_numpy(maps), torch.from_numpy(targets))
    assert float(loss) == pytest.approx(total / 40)
    assert float(segmentation_loss(torch.from_numpy(maps), torch.zeros(2, 4, 4, 5))) == 0.0


def test_wrong_levels_and_sizes() -> None:
    with pytest.raises(ShapeError, match=r"\(5, 6\) channels, the network takes \(5, 7\)"):
        Segmenter([5, 7], 3)([torch.zeros(1, 5, 4, 4), torch.zeros(1, 6, 2, 2)])
