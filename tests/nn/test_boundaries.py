"""The boundary network: levels of any backbone in, probabilities on the finest grid out."""

from __future__ import annotations

import pytest
import torch

from wildcat.errors import ShapeError
from wildcat.nn.backbones import create_backbone
from wildcat.nn.boundaries import BoundaryNetwork


@pytest.mark.parametrize(("name", "stride"), [("test_resnet", 4), ("test_efficientnet", 4), ("test_vit", 16)])
def test_on_the_finest_grid_of_a_backbone(name: str, stride: int) -> None:
    backbone = create_backbone(name, "none", image_size=160).eval()
    with torch.no_grad():
        levels = backbone.levels(torch.randn(2, 3, 160, 96))
        network = BoundaryNetwork([level.shape[1] for level in levels]).eval()
        network.measure(levels)
        found, walls = network(levels), network.walls(levels)
    coarse = max(8, stride)
    assert walls.shape == (2, 160 // coarse, 96 // coarse)
    assert bool((walls[:, 0, 0] == found[:, : coarse // stride, : coarse // stride].amax(dim=(1, 2))).all())
    assert found.shape == (2, 160 // stride, 96 // stride)
    assert float(found.min()) > 0 and float(found.max()) < 1


def test_one_image_does_not_change_another() -> None:
    torch.manual_seed(0)
    network, levels = BoundaryNetwork([3, 5]), [torch.randn(2, 3, 8, 8), torch.randn(2, 5, 4, 4)]
    network.measure(levels)
    alone = network([level[:1] for level in levels])
    torch.testing.assert_close(network(levels)[:1], alone)


def test_gradients_stop_at_the_levels_measurement() -> None:
    network, level = BoundaryNetwork([4]), torch.randn(1, 4, 6, 6)
    network.measure([level])
    network([level]).sum().backward()
    assert network.join.weight.grad is not None and network.branches[0][0].weight.grad is not None
    assert not any(scale.mean.requires_grad or scale.std.requires_grad for scale in network.scales)


def test_wrong_levels() -> None:
    with pytest.raises(ShapeError, match=r"\(3,\) channels, the network takes \(4,\)"):
        BoundaryNetwork([4])([torch.zeros(1, 3, 4, 4)])
