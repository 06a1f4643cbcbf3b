"""The two parts of a backbone are the backbone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from wildcat.errors import ConfigError
from wildcat.nn.backbones import Backbone, create_backbone
from wildcat.nn.split import split_backbone


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext"])
def test_the_parts_share_the_layers_and_give_the_same_features(name: str) -> None:
    torch.manual_seed(0)
    backbone = create_backbone(name, "none").eval()
    first, last = split_backbone(backbone, 96)
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(last(first(images)), backbone(images))
    own = {id(p) for p in backbone.parameters()}
    parts = [{id(p) for p in part.parameters()} for part in (first, last.layers)]
    assert parts[0] and parts[1] and not parts[0] & parts[1] and parts[0] | parts[1] <= own
    last(first(images)).sum().backward()
    trained = {name for name, p in backbone.named_parameters() if id(p) in parts[1]}
    assert all(backbone.get_parameter(name).grad is not None for name in trained)


class Stages(nn.Module):
    """A network of three stages in the manner of timm: the last one only pools, or the second gives several maps."""

    def __init__(self, several: bool) -> None:
        super().__init__()
        self.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
        self.num_features, self.several = 5, several
        self.one, self.two, self.three = nn.Conv2d(3, 4, 2, 2), nn.Conv2d(4, 5, 2, 2), nn.MaxPool2d(2)
        self.pair = Pair(self.two)
        self.feature_info = [
            {"reduction": 2, "module": "one"},
            {"reduction": 4, "module": "pair" if several else "two"},
            {"reduction": 8, "module": "three"},
        ]

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        x = self.one(images)
        features: torch.Tensor = self.three(self.pair(x)[0] if self.several else self.two(x))
        return features


class Pair(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [self.layer(x), x]


def test_the_last_stage_has_weights() -> None:
    """The last stage of VGG, as timm lists it, is a pooling."""
    network = Stages(several=False)
    _, last = split_backbone(Backbone("like-vgg", network), 64)
    assert {id(p) for p in last.layers.parameters()} == {id(p) for p in network.two.parameters()}


def test_stages_of_several_maps_are_refused() -> None:
    network = Stages(several=True)
    network.three = nn.Conv2d(5, 5, 2, 2)
    with pytest.raises(ConfigError, match="like-hrnet cannot be cut before its last stage"):
        split_backbone(Backbone("like-hrnet", network), 64)


def test_a_network_without_stages_is_refused() -> None:
    with pytest.raises(ConfigError, match="test_vit cannot be cut before its last stage"):
        split_backbone(create_backbone("test_vit", "none", image_size=160), 160)
