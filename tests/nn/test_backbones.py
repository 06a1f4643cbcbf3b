"""Any timm network gives a map, the embedded ones with their exact weights; what cannot be is said in a sentence."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

from wildcat.errors import ConfigError, RunError, ShapeError
from wildcat.nn import backbones
from wildcat.nn.backbones import create_backbone, list_backbones
from wildcat.regions.points import peak_points


def random_images(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=shape).astype(np.float32))


# --- maps of every kind of network -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext"])
@pytest.mark.parametrize("stride", [32, 16, 8])
def test_convolutional_maps_have_the_stride_asked_for(name: str, stride: int) -> None:
    backbone = create_backbone(name, "none", stride).eval()
    with torch.no_grad():
        features = backbone(torch.zeros(1, 3, 96, 160))
    assert features.shape == (1, backbone.num_features, 96 // stride, 160 // stride)


@pytest.mark.parametrize(
    "name",
    [
        "test_vit",
        "test_mambaout",
        pytest.param("test_coatnet", marks=pytest.mark.skipif(not timm.is_model("test_coatnet"), reason="old timm")),
        "starnet_s1",
        "vgg11",
    ],
)
def test_networks_without_a_choice_of_stride_say_so(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        create_backbone(name, "none", output_stride=8, image_size=64)
    assert caught.value.message == f"{name} has no choice of output stride (asked for 8)."
    assert "Leave --output-stride at 32" in caught.value.hint


@pytest.mark.parametrize("name", ["test_resnet", "test_mambaout", "test_vit"])
@pytest.mark.parametrize(("height", "width"), [(128, 128), (128, 256), (256, 128)])
def test_rows_and_columns_of_the_map_are_those_of_the_image(name: str, height: int, width: int) -> None:
    """A change at the top right of the image changes the map at its top right, most of all."""
    torch.manual_seed(0)
    backbone = create_backbone(name, "none", image_size=128).eval()
    grey = torch.zeros(1, 3, height, width)
    marked = grey.clone()
    marked[:, :, :32, -32:] = random_images(1, 3, 32, 32)
    with torch.no_grad():
        change = (backbone(marked) - backbone(grey)).square().sum(dim=1)[0]
    rows, columns = change.shape
    assert rows * width == columns * height
    row, column = divmod(int(change.argmax()), columns)
    assert row < rows / 4
    assert column >= columns * 3 / 4


def test_tokens_become_a_map_without_class_and_register_tokens() -> None:
    backbone = create_backbone("test_vit", "none", image_size=96).eval()
    images = random_images(2, 3, 96, 96)
    with torch.no_grad():
        tokens = backbone.network.forward_features(images)
        features = backbone(images)
    prefix = tokens.shape[1] - 36  # 96 / 16 = 6 patches a side
    assert prefix == 1
    for row in range(6):
        for column in range(6):
            assert torch.equal(features[:, :, row, column], tokens[:, prefix + 6 * row + column])


def test_channels_last_networks_are_turned() -> None:
    backbone = create_backbone("test_mambaout", "none").eval()
    images = random_images(1, 3, 64, 96)
    with torch.no_grad():
        raw = backbone.network.forward_features(images)
        features = backbone(images)
    assert raw.shape == (1, 2, 3, backbone.num_features)
    np.testing.assert_array_equal(features.numpy(), np.moveaxis(raw.numpy(), -1, 1))


def test_a_stride_that_is_the_only_one_of_a_network() -> None:
    with torch.no_grad():
        assert create_backbone("test_vit", "none", output_stride=16, image_size=64)(
            torch.zeros(1, 3, 64, 64)
        ).shape == ((1, 64, 4, 4))


# --- sizes of images ----------------------------------------------------------------------------------------------


# edge: convolutions that leave it out; halves: sums of levels that need equal sizes; patches: of 16 pixels
SIZES = {"test_convnext": (32, "edge"), "dla46x_c": (32, "halves"), "test_vit": (16, "patches"), "test_resnet": (1, "")}


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize(("height", "width"), [(225, 225), (250, 250), (200, 330)])
def test_maps_cover_images_of_any_size(name: str, height: int, width: int) -> None:
    """An object at an edge of the image is at that edge of the map, in pixels of the image."""
    torch.manual_seed(0)
    backbone = create_backbone(name, "none", image_size=max(height, width)).eval()
    assert backbone.multiple == SIZES[name][0]
    grey = torch.zeros(1, 3, height, width)
    for top, left in ((0, width - 40), (height - 40, 0), (height - 40, width - 40)):
        marked = grey.clone()
        marked[:, :, top : top + 40, left : left + 40] = random_images(1, 3, 40, 40)
        with torch.no_grad():
            change = (backbone(marked) - backbone(grey)).square().sum(dim=1)
        x, y = peak_points(change.numpy(), (height, width))[0]
        assert abs(x - left - 20) <= 36
        assert abs(y - top - 20) <= 36


def test_resampling_keeps_images_that_fit() -> None:
    backbone = create_backbone("dla46x_c", "none").eval()
    images = random_images(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(backbone(images), backbone.network.forward_features(images))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pit_ti_224", "pit_ti_224 gives one vector for each image, not a map: all points would be in the centre."),
        ("crossvit_tiny_240", "crossvit_tiny_240 gives a list of features, not a map."),
    ],
)
def test_networks_without_a_map_are_refused_before_weights_are_fetched(name: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        create_backbone(name, "imagenet", image_size=64)
    assert caught.value.message == message
    assert caught.value.hint == "Choose another backbone; wildcat backbones --check NAME tells whether one works."


def test_a_size_that_cannot_work_is_answered_with_the_nearest_that_does() -> None:
    """Windows of 8 cells at 1/32: 320 pixels would be resampled to 512, 1.6 times the side."""
    with pytest.raises(ConfigError) as caught:
        create_backbone("halonet26t", "none", image_size=320)
    assert caught.value.message == "halonet26t does not take images of 320 pixels."
    assert caught.value.hint == "The nearest --image-size that works is 256."
    assert create_backbone("halonet26t", "none", image_size=225).multiple == 256


def test_sizes_beyond_a_table_of_positions_are_found_with_weights() -> None:
    """The meta device does not check indices: mvitv2 fails at 200 pixels there only with real tensors."""
    backbone = create_backbone("mvitv2_tiny", "none", image_size=200).eval()
    with torch.no_grad():
        rows, columns = backbone(torch.zeros(1, 3, 200, 200)).shape[-2:]
    assert rows == columns == 7


def test_an_image_of_another_size_than_a_transformer_was_made_for() -> None:
    backbone = create_backbone("gmlp_ti16_224", "none", image_size=64)
    with pytest.raises(ShapeError) as caught:
        backbone(torch.zeros(1, 3, 96, 64))
    assert caught.value.message == "gmlp_ti16_224 does not take images of 96 x 64 pixels."
    assert caught.value.hint == "The nearest --image-size that works is 64."


def test_transformers_that_interpolate_their_positions_take_other_sizes() -> None:
    backbone = create_backbone("test_vit3", "none", image_size=64).eval()
    with torch.no_grad():
        assert backbone(torch.zeros(1, 3, 96, 50)).shape[-2:] == (6, 4)


def test_errors_that_are_not_about_the_size_are_raised_as_they_are() -> None:
    backbone = create_backbone("test_resnet", "none")
    with pytest.raises(RuntimeError, match="expected input"):
        backbone(torch.zeros(1, 4, 64, 64))


def test_a_network_that_gives_no_map_is_refused() -> None:
    class Flat(nn.Module):
        pretrained_cfg = MappingProxyType({"mean": (0.5,) * 3, "std": (0.5,) * 3})
        num_features = 8

        def forward_features(self, images: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(images), 8)

    with pytest.raises(ShapeError, match=r"flat gives \(2, 8\), not a map with 8 channels"):
        backbones.Backbone("flat", Flat())(torch.zeros(2, 3, 32, 32))


def test_a_class_token_that_is_not_counted_is_no_cell() -> None:
    """As volo has it: 2 x 2 patches after a class token."""

    class Uncounted(nn.Module):
        pretrained_cfg = MappingProxyType({"mean": (0.5,) * 3, "std": (0.5,) * 3})
        num_features = 1
        cls_token = torch.zeros(1, 1, 1)

        def forward_features(self, images: torch.Tensor) -> torch.Tensor:
            return torch.arange(5.0)[None, :, None].repeat(len(images), 1, 1)

    features = backbones.Backbone("uncounted", Uncounted())(torch.zeros(2, 3, 32, 32))
    assert features[1, 0].tolist() == [[1, 2], [3, 4]]


def test_tokens_that_tile_nothing_are_refused() -> None:
    class Odd(nn.Module):
        pretrained_cfg = MappingProxyType({"mean": (0.5,) * 3, "std": (0.5,) * 3})
        num_features = 8

        def forward_features(self, images: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(images), 7, 8)

    with pytest.raises(ShapeError, match="7 tokens do not tile a 32 x 32 image"):
        backbones.Backbone("odd", Odd())(torch.zeros(2, 3, 32, 32))


# --- names ----------------------------------------------------------------------------------------------------------


def test_typos_are_answered_with_the_nearest_names() -> None:
    with pytest.raises(ConfigError) as caught:
        create_backbone("lite00")
    assert caught.value.message == "there is no backbone 'lite00'."
    assert "lite0" in caught.value.hint
    with pytest.raises(ConfigError, match=r"(?s)there is no backbone 'resnet5O'.*did you mean .*resnet50"):
        create_backbone("resnet5O")


def test_an_unknown_tag_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        create_backbone("resnet50.a1_in1", weights="none")
    assert caught.value.message == "resnet50 has no weights 'a1_in1'."
    assert "a1_in1k" in caught.value.hint
    assert create_backbone("test_resnet.r160_in1k", weights="none").num_features == 96


def test_list_backbones() -> None:
    names = list_backbones()
    assert names[:3] == ["lite0", "lite1", "lite2"]
    assert set(timm.list_models()) < set(names)
    assert list_backbones("test_vit") == [n for n in timm.list_models() if "test_vit" in n]
    assert list_backbones("resnet*d") == [n for n in timm.list_models() if n.startswith("resnet") and n.endswith("d")]
    assert list_backbones("nothing_like_this") == []


# --- weights ---------------------------------------------------------------------------------------------------------


def test_weights_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def unreachable(*args: Any, pretrained: bool, **kwargs: Any) -> nn.Module:
        if pretrained:
            raise OSError("We couldn't connect to 'https://huggingface.co'\nand more")
        return create(*args, pretrained=False, **kwargs)

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(RunError) as caught:
        create_backbone("resnet18")
    assert caught.value.message == (
        "the ImageNet weights of resnet18 could not be fetched "
        "(OSError: We couldn't connect to 'https://huggingface.co')."
    )
    assert "take lite0" in caught.value.hint
    assert "--weights none --tune all" in caught.value.hint, "--tune head and last refuse none"
