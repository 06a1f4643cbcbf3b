"""Every engine computes the features of the network; cached graphs are verified; errors are one sentence."""

from __future__ import annotations

import gc
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.padding import pad_same
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import wildcat
from wildcat.config import TrainConfig
from wildcat.data.readers.synthetic import write_shapes
from wildcat.data.readers.voc import read_voc
from wildcat.data.transforms import Preprocess
from wildcat.device import cpu_has_bf16
from wildcat.engines import PRECISIONS, calibrate_int8, fold, graph_cache, open_engine, runtimes, torch_backend
from wildcat.errors import ConfigError, EngineError, MissingExtra
from wildcat.models.member import Member
from wildcat.models.run import WEIGHTS, create_run, save_weights
from wildcat.nn.backbones import Backbone, create_backbone
from wildcat.nn.factory import create_model
from wildcat.predictor import Predictor

SIZE = 64
CPU = torch.device("cpu")
GRAPHS = [
    (name, precision) for name, all_of in PRECISIONS.items() for precision in all_of if name not in ("torch", "compile")
]


pytestmark = pytest.mark.usefixtures("cache")


def network(seed: int = 0, **settings: Any) -> Any:
    """A tiny network whose normalisations have statistics and weights that leave a trace."""
    torch.manual_seed(seed)
    model = create_model("test_resnet", num_classes=3, pretrained=False, **settings).eval()
    with torch.no_grad():
        for norm in (m for m in model.modules() if isinstance(m, _BatchNorm)):
            for values, low, high in ((norm.running_mean, -0.2, 0.2), (norm.running_var, 0.5, 2)):
                values.uniform_(low, high)  # type: ignore[union-attr]
            norm.weight.uniform_(0.5, 2)
            norm.bias.uniform_(-0.2, 0.2)
    return model


def images(count: int = 3, size: int = SIZE) -> Tensor:
    return torch.from_numpy(np.random.default_rng(3).normal(size=(count, 3, size, size)).astype(np.float32))


@pytest.fixture(scope="module")
def model() -> Any:
    made = network()
    rng = np.random.default_rng(5)
    batches = [torch.from_numpy(rng.normal(size=(8, 3, SIZE, SIZE)).astype(np.float32)) for _ in range(4)]
    assert calibrate_int8(made.backbone, SIZE, batches) == 32
    return made


# --- the same features ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in PRECISIONS if name != "compile"])
def test_an_engine_gives_the_networks_features_for_any_batch(name: Any, model: Any) -> None:
    engine = open_engine(name, "fp32", model.backbone, SIZE, CPU)
    for count in (1, 3):
        inputs = images(count).to(memory_format=torch.channels_last)
        with torch.inference_mode():
            expected = model.features(inputs)
        torch.testing.assert_close(engine.features(inputs), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_resampled_images_give_the_same_maps(name: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A network that takes multiples of 32 pixels, at 50."""
    monkeypatch.setenv("WILDCAT_CACHE", str(tmp_path))
    backbone = create_backbone("test_convnext", "none", image_size=50).eval()
    batch = images(2, size=50)
    with torch.inference_mode():
        expected, found = backbone(batch), open_engine(name, "fp32", backbone, 50, CPU).features(batch)
    assert expected.shape == (2, 64, 2, 2)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_folding_keeps_the_multiple() -> None:
    backbone = create_backbone("dla46x_c", "none", image_size=50).eval()
    folded = fold(backbone, 50)
    assert folded is not backbone and folded.multiple == 32
    with torch.inference_mode():
        torch.testing.assert_close(folded(images(1, size=50)), backbone(images(1, size=50)), rtol=1e-3, atol=1e-3)


@pytest.mark.skipif(not cpu_has_bf16(), reason="no bf16 instructions")
@pytest.mark.parametrize(("name", "precision"), [("torch", "bf16"), *(g for g in GRAPHS if g[1] != "fp32")])
def test_coarser_precisions_are_near_and_not_the_same(name: Any, precision: Any, model: Any) -> None:
    engine = open_engine(name, precision, model.backbone, SIZE, CPU)
    with torch.inference_mode():
        expected, found = model.features(images()), engine.features(images())
    assert found.dtype == torch.float32
    error = float((found - expected).norm() / expected.norm())
    if precision == "int8":
        assert 1e-3 < error < 0.1
    else:  # processors without bfloat16 may compute in float32
        assert error < 0.03


def test_torch_compile_takes_any_batch(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_backend, "COMPILER", "aot_eager")  # what inductor is given, without the minutes it takes
    engine = open_engine("compile", "fp32", model.backbone, SIZE, CPU)
    for count in (2, 1, 5):
        with torch.inference_mode():
            expected = model.features(images(count))
        torch.testing.assert_close(engine.features(images(count)), expected, rtol=1e-3, atol=1e-3)


def test_a_failing_compiler_is_reported(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no g++ here\nand a long trace")

    monkeypatch.setattr(torch_backend, "COMPILER", broken)
    with pytest.raises(EngineError, match=r"cannot compile test_resnet.* here: .*no g\+\+ here.*\.\n.*C\+\+ compiler"):
        open_engine("compile", "fp32", model.backbone, SIZE, CPU)


@pytest.mark.parametrize("settings", [{"pooling": "attention"}, {"architecture": "b"}, {"architecture": "c"}])
def test_views_sizes_and_modalities_work_with_any_engine(settings: dict[str, Any]) -> None:
    made = network(**settings)
    members = [Member(made, Preprocess(size, (0.5,) * 3, (0.5,) * 3)) for size in (SIZE, 96)]
    for chosen in (members, members[:1]):
        plain = Predictor("x", chosen, ("a", "b", "c"), "multilabel", "cpu", "both")
        inputs = [images(2, m.preprocess.size) for m in chosen]
        expected = plain.forward(inputs)
        for name in ("onnx", "openvino"):
            other = Predictor("x", chosen, ("a", "b", "c"), "multilabel", "cpu", "both")
            other.use_engine(name)
            found = other.forward(inputs)
            for field in ("scores", "class_maps", "modality_maps", "member_scores"):
                a, b = getattr(found, field), getattr(expected, field)
                np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max(), err_msg=f"{name} {field}")


def test_results_do_not_share_memory(model: Any) -> None:
    for name, precision in [graph for graph in GRAPHS if graph[1] != "bf16" or cpu_has_bf16()]:
        engine = open_engine(name, precision, model.backbone, SIZE, CPU)
        first = engine.features(images(1))
        before = first.clone()
        engine.features(-images(1))
        assert torch.equal(first, before), name


# --- folding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lite0", "resnet18", "test_efficientnet", "mobilenetv3_small_050", "regnetx_002"])
def test_folding_leaves_no_normalisation_and_the_same_features_at_any_size(name: str) -> None:
    torch.manual_seed(0)
    backbone = create_model(name, num_classes=2, pretrained=False).backbone.eval()
    count = sum(isinstance(m, _BatchNorm) for m in backbone.modules())
    folded = fold(backbone, 64)
    assert count > 0 and sum(isinstance(m, _BatchNorm) for m in folded.modules()) == 0
    assert sum(isinstance(m, _BatchNorm) for m in backbone.modules()) == count  # the network itself stays as it is
    inner = fold(backbone, 64, levels=True)
    assert sum(isinstance(m, _BatchNorm) for m in inner.modules()) == 0
    for size in (64, 96):
        batch = images(2, size)
        with torch.inference_mode():
            for found in (folded(batch), inner(batch)):
                torch.testing.assert_close(found, backbone(batch), rtol=1e-3, atol=1e-4)
            assert len(inner.levels(batch)) == len(backbone.levels(batch)) > 2
            torch.testing.assert_close(inner.levels(batch), backbone.levels(batch), rtol=1e-3, atol=1e-4)


def test_one_thread_runs_the_kernels_of_several() -> None:
    """Torch's own kernel for 1x1 convolutions with one thread is slower."""
    backbone = create_model("lite0", num_classes=3, pretrained=False).eval().backbone
    folded, threads, batch = fold(backbone, SIZE), torch.get_num_threads(), images(2)
    try:
        torch.set_num_threads(1)
        with torch.inference_mode(), torch.profiler.profile() as recorded:
            features = folded(batch)
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(features, backbone(batch).detach(), rtol=1e-3, atol=1e-4)
    operations = {event.key for event in recorded.key_averages()}
    assert "aten::mkldnn_convolution" in operations and "aten::_slow_conv2d_forward" not in operations


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_depthwise_convolution_pads_no_copy_of_its_input(
    kernel: int, stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = nn.Sequential(Conv2dSame(6, 6, kernel, stride, groups=6, bias=False), nn.BatchNorm2d(6)).eval()
    folded = torch_backend.fold_graph(network)
    with torch.inference_mode():
        for height, width, copies in ((14, 20, 0), (15, 21, 0), (14, 21, int(stride == 2)), (kernel, kernel, 0)):
            batch = torch.randn(2, 6, height, width).contiguous(memory_format=torch.channels_last)
            expected, padded = network(batch), Mock(side_effect=pad_same)
            with monkeypatch.context() as patch:
                # not by its name: timm.layers has a function of that name, too
                patch.setattr(sys.modules[Conv2dSame.__module__], "pad_same", padded)
                torch.testing.assert_close(folded(batch), expected, rtol=1e-5, atol=1e-6)
            assert padded.call_count == copies, (height, width)


def test_what_cannot_be_traced_is_not_folded_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Forked(nn.Module):
        pretrained_cfg = {"mean": (0.0,) * 3, "std": (1.0,) * 3}  # noqa: RUF012  # as timm has it
        num_features = 3

        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward_features(self, inputs: Tensor) -> Tensor:
            found: Tensor = self.norm(inputs)
            return found if inputs.mean() > 0 else -found  # the code itself depends on the image

    backbone = Backbone("forked", Forked()).eval()
    with caplog.at_level(logging.DEBUG):
        assert fold(backbone, SIZE) is backbone
    assert "forked is not folded: symbolically traced variables" in caplog.text


def test_a_shared_convolution_is_not_folded() -> None:
    class Shared(nn.Module):
        pretrained_cfg = {"mean": (0.0,) * 3, "std": (1.0,) * 3}  # noqa: RUF012  # as timm has it
        num_features = 4

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)

        def forward_features(self, inputs: Tensor) -> Tensor:
            found: Tensor = self.norm(self.conv(inputs)) + self.conv(-inputs)
            return found

    backbone = Backbone("shared", Shared()).eval()
    with torch.no_grad():
        backbone.network.norm.running_mean.fill_(2.0)  # type: ignore[union-attr,operator]
        torch.testing.assert_close(fold(backbone, SIZE)(images()), backbone(images()))


def test_other_errors_while_folding_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("a bug")

    monkeypatch.setattr(torch_backend, "fuse_conv_bn_eval", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        fold(network().backbone, SIZE)


def test_a_loaded_model_holds_one_copy_of_its_backbone(tmp_path: Path) -> None:
    data = read_voc(write_shapes(tmp_path / "shapes", train=4, val=2, size=(48, 64)))
    run = create_run(tmp_path / "run", TrainConfig(backbone="test_resnet", weights="none", image_size=64), data)
    save_weights(create_model("test_resnet", 5, 4, pretrained=False), run.folder / WEIGHTS)

    def convolutions() -> set[int]:
        gc.collect()
        return {id(m) for m in gc.get_objects() if type(m) is nn.Conv2d}

    before = convolutions()
    predictor = wildcat.load(run.folder, "cpu")
    predictor.predict(np.zeros((64, 64, 3), np.uint8))
    alive = convolutions() - before
    assert alive == {id(m) for m in predictor.model.modules() if type(m) is nn.Conv2d}
    assert not [m for m in predictor.model.modules() if isinstance(m, _BatchNorm)], "and it is the folded one"


# --- the cache --------------------------------------------------------------------------------------------------------


def test_a_graph_is_cached_by_weights_size_and_structure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WILDCAT_CACHE", str(tmp_path))
    made: list[int] = []
    trace = graph_cache.trace
    monkeypatch.setattr(graph_cache, "trace", lambda *a: made.append(1) or trace(*a))
    first = network(0).backbone
    for _ in range(2):
        open_engine("onnx", "fp32", first, SIZE, CPU)
        open_engine("openvino", "fp32", first, SIZE, CPU)
    assert len(made) == 1
    open_engine("onnx", "fp32", network(1).backbone, SIZE, CPU)
    open_engine("onnx", "fp32", first, 96, CPU)
    open_engine("onnx", "fp32", network(0, output_stride=16).backbone, SIZE, CPU)
    assert len(made) == 4
    with torch.no_grad():
        next(first.parameters()).flatten()[0] += 0.1
    open_engine("onnx", "fp32", first, SIZE, CPU)
    assert len(made) == 5


@pytest.mark.parametrize(("name", "damage"), [("onnx", "cut"), ("openvino", "empty"), ("onnx", "of another network")])
def test_a_damaged_or_swapped_graph_is_exported_again(
    name: Any, damage: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WILDCAT_CACHE", str(tmp_path))
    backbone = network(0).backbone
    path = graph_cache.graph_folder(backbone, SIZE) / "fp32.onnx"
    graph_cache.fp32_graph(backbone, SIZE)
    if damage == "of another network":
        graph_cache.fp32_graph(network(1).backbone, SIZE)
        shutil.copy(graph_cache.graph_folder(network(1).backbone, SIZE) / "fp32.onnx", path)
    else:
        path.write_bytes(path.read_bytes()[:1000] if damage == "cut" else b"")
    engine = open_engine(name, "fp32", backbone, SIZE, CPU)
    torch.testing.assert_close(engine.features(images()), backbone(images()).detach(), rtol=1e-3, atol=1e-3)


def test_an_engine_opens_without_a_cache_that_can_be_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("WILDCAT_CACHE", str(tmp_path / "file" / "cache"))
    made: list[int] = []
    trace = graph_cache.trace
    monkeypatch.setattr(graph_cache, "trace", lambda *a: made.append(1) or trace(*a))
    open_engine("onnx", "fp32", network(0).backbone, SIZE, CPU)
    assert len(made) == 1 and "fp32.onnx cannot be written" in caplog.text


def test_a_swapped_int8_graph_is_refused(model: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WILDCAT_CACHE", str(tmp_path))
    for made in (model, network(1)):
        calibrate_int8(made.backbone, SIZE, [images(16)])
    target = graph_cache.graph_folder(network(1).backbone, SIZE) / "int8.onnx"
    shutil.copy(graph_cache.graph_folder(model.backbone, SIZE) / "int8.onnx", target)
    with pytest.raises(EngineError, match=r"onnx in int8 gives features that differ from torch's by \d+%"):
        open_engine("onnx", "int8", network(1).backbone, SIZE, CPU)
    target.write_bytes(b"\0" * 100)
    with pytest.raises(EngineError, match="openvino cannot run this network in int8"):
        open_engine("openvino", "int8", network(1).backbone, SIZE, CPU)


# --- misuse -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "precision", "device", "kind", "said"),
    [
        ("onyx", "fp32", "cpu", ConfigError, "there is no engine 'onyx'.\ndid you mean onnx?"),
        ("onnx", "bf16", "cpu", ConfigError, "onnx has no precision bf16.\nIt has: fp32, int8."),
        ("torch", "int8", "cpu", ConfigError, "torch has no precision int8.\nIt has: fp32, bf16."),
        ("openvino", "fp32", "cuda", EngineError, "engine openvino does not run on cuda"),
        ("onnx", "fp32", "mps", EngineError, "engine onnx does not run on mps"),
    ],
)
def test_misuse_is_one_sentence(
    name: Any, precision: Any, device: str, kind: type[Exception], said: str, model: Any
) -> None:
    with pytest.raises(kind) as caught:
        open_engine(name, precision, model.backbone, SIZE, torch.device(device))
    assert said in str(caught.value)


@pytest.mark.parametrize("name", ["torch", "openvino"])
def test_bf16_is_refused_where_it_is_emulated(name: Any, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wildcat.device.cpu_has_bf16", lambda: False)
    with pytest.raises(EngineError) as caught:
        open_engine(name, "bf16", model.backbone, SIZE, CPU)
    assert caught.value.message == ("this CPU has no bf16 instructions: bf16 would be several times slower than fp32.")
    assert caught.value.hint == "Leave --precision out, or give fp32."
    open_engine("torch", "fp32", model.backbone, SIZE, CPU)


def test_int8_needs_images_first() -> None:
    other = network(2).backbone
    with pytest.raises(EngineError, match=r"there is no int8 graph of these weights at 64 px.\n.*wildcat bench"):
        open_engine("openvino", "int8", other, SIZE, CPU)
    for batches in ([], [images(15)]):
        with pytest.raises(ConfigError, match=f"{15 * len(batches)} images are too few"):
            calibrate_int8(other, SIZE, batches)


@pytest.mark.parametrize(
    ("name", "packages", "extra"),
    [
        ("openvino", ("openvino",), "openvino"),
        ("openvino", ("openvino", "onnx", "onnxruntime"), "openvino"),  # one command for all of them
        ("onnx", ("onnx",), "export"),
    ],
)
def test_a_missing_package_is_named(
    name: Any, packages: tuple[str, ...], extra: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WILDCAT_CACHE", str(tmp_path))
    monkeypatch.setattr(runtimes.importlib.util, "find_spec", lambda wanted: None if wanted in packages else object())
    with pytest.raises(MissingExtra) as caught:
        open_engine(name, "fp32", network(0).backbone, SIZE, CPU)
    assert caught.value.hint == f"Type: pip install 'wildcat-vision[{extra}]'"


def test_signals_after_engines_are_gone() -> None:
    """OpenVINO leaves a freed signal stack behind if the first of two cores is destroyed first."""
    pytest.importorskip("openvino")
    script = (
        "import gc, signal, wildcat\n"
        "signal.signal(signal.SIGUSR1, lambda *_: None)\n"
        "first, second = (wildcat.load('imagenet-lite0', 'cpu', engine='openvino') for _ in range(2))\n"
        "for name in ('first', 'second'):\n"
        "    del globals()[name]\n"
        "    gc.collect()\n"
        "    signal.raise_signal(signal.SIGUSR1)\n"
        "print('alive')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr
