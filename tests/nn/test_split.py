"""The two parts of a backbone are the backbone."""

from __future__ import annotations

import pytest
import torch

from wildcat.errors import ConfigError
from wildcat.nn.backbones import create_backbone
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


def test_a_network_without_stages_is_refused() -> None:
    with pytest.raises(ConfigError, match="test_vit cannot be cut before its last stage"):
        split_backbone(create_backbone("test_vit", "none", image_size=160), 160)
