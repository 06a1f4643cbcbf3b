"""ONNX export: onnxruntime gives the same results as torch, otherwise no file is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from wildcat.data.transforms import Preprocess
from wildcat.errors import ConfigError, EngineError, MissingExtra, RunError
from wildcat.export.onnx import export_onnx
from wildcat.models.calibration import Calibration
from wildcat.models.member import Member
from wildcat.nn.factory import create_model
from wildcat.predictor import Predictor
from wildcat.regions import MaskParams

CLASSES = ("cat", "dog", "müesli")
SIZE = 64


def predictor(
    flip: Any = "none", task: Any = "multilabel", interpolation: str = "bilinear", **settings: Any
) -> Predictor:
    torch.manual_seed(0)
    model = create_model("test_resnet", num_classes=3, pretrained=False, **settings)
    rng = np.random.default_rng(1)
    with torch.no_grad():  # no parameter keeps a value that would hide a mistake, such as zeros
        model.transfer.standardize(*(torch.from_numpy(rng.uniform(0.5, 2, (2, model.backbone.num_features))).float()))
        for parameter in model.pool.parameters():
            parameter.copy_(torch.from_numpy(rng.normal(size=parameter.shape)))
        for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.running_mean.copy_(torch.from_numpy(rng.normal(0, 0.1, norm.num_features)))  # type: ignore[union-attr]
            norm.running_var.copy_(torch.from_numpy(rng.uniform(0.5, 2, norm.num_features)))  # type: ignore[union-attr]
    preprocess = Preprocess(SIZE, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7), interpolation)
    return Predictor("runs/tiny", [Member(model, preprocess)], CLASSES, task, "cpu", flip)


SETTINGS: list[dict[str, Any]] = [
    {"pooling": name} for name in ("wildcat", "weldon", "topk", "max", "average", "lse", "csra", "attention")
]
SETTINGS += [{"architecture": "b"}, {"architecture": "c"}, {"pooling": "csra", "temperature": 2.0, "architecture": "c"}]
SETTINGS += [{"flip": "both"}, {"flip": "horizontal", "pooling": "attention"}, {"output_stride": 16}]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(str(v) for v in s.values()))
def test_onnxruntime_matches_the_predictor(settings: dict[str, Any], tmp_path: Path) -> None:
    p = predictor(**settings)
    session = onnxruntime.InferenceSession(export_onnx(p, tmp_path / "model.onnx"))
    rng = np.random.default_rng(7)
    for count in (1, 5):
        images = rng.normal(size=(count, 3, SIZE, SIZE)).astype(np.float32)
        scores, maps = session.run(["scores", "class_maps"], {"images": images})
        expected = p.forward([torch.from_numpy(images)], modalities=False)
        np.testing.assert_allclose(scores, expected.scores, rtol=1e-3, atol=1e-4 * np.abs(expected.scores).max())
        np.testing.assert_allclose(maps, expected.class_maps, rtol=1e-3, atol=1e-4 * np.abs(expected.class_maps).max())


def test_the_metadata_describes_the_model(tmp_path: Path) -> None:
    path = export_onnx(predictor(), tmp_path / "new" / "model.onnx")
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    about = {p.key: p.value for p in model.metadata_props}
    assert json.loads(about["classes"]) == list(CLASSES)
    assert (json.loads(about["mean"]), json.loads(about["std"])) == ([0.1, 0.2, 0.3], [0.5, 0.6, 0.7])
    assert (about["size"], about["interpolation"], about["task"]) == ("64", "bilinear", "multilabel")
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """A random image with soft and with hard edges."""
    rng = np.random.default_rng(seed)
    blocks = Image.fromarray(rng.integers(0, 256, (height // 9 + 1, width // 9 + 1, 3), dtype=np.uint8))
    soft = np.asarray(blocks.resize((width, height), Image.Resampling.BICUBIC)).copy()
    soft[: height // 2] = blocks.resize((width, height), Image.Resampling.NEAREST).crop((0, 0, width, height // 2))
    return soft


@pytest.mark.parametrize(
    ("task", "interpolation", "gate", "thresholds"),
    [
        ("multilabel", "bilinear", (0.2, 0.4, 0.6), [0.2, 0.4, 0.6]),
        ("multiclass", "bicubic", None, [1.0, 1.0, 1.0]),  # the likeliest class alone
    ],
)
def test_with_processing_an_image_gives_what_the_predictor_gives(
    task: Any, interpolation: str, gate: tuple[float, ...] | None, thresholds: list[float], tmp_path: Path
) -> None:
    p = predictor("horizontal", task, interpolation, output_stride=16)
    p.calibration = None if gate is None else Calibration(MaskParams(gate=gate), {}, None)
    path = export_onnx(p, tmp_path / "model.onnx", with_processing=True)
    about = {one.key: one.value for one in onnx.load(path).metadata_props}
    assert (json.loads(about["thresholds"]), json.loads(about["classes"])) == (thresholds, list(CLASSES))
    onnx.checker.check_model(path, full_check=True)
    session = onnxruntime.InferenceSession(path)
    assert [(one.name, one.type, one.shape) for one in session.get_inputs()] == [
        ("image", "tensor(uint8)", ["height", "width", 3])
    ]
    names = ["scores", "probabilities", "classes", "class_maps", "points"]
    assert [one.name for one in session.get_outputs()] == names
    for height, width in ((64, 64), (50, 210), (300, 331), (1, 1), (333, 100), (1000, 12)):
        image = picture(height, width)
        found = dict(zip(names, session.run(None, {"image": image}), strict=True))
        r = p.predict(image)
        # Tall images: Pillow 13 resizes their height first, others their width.
        close = 2e-3 if width >= height else 3e-2
        largest = np.abs(r.class_scores).max(), np.abs(r.class_maps).max()
        np.testing.assert_allclose(found["scores"], r.class_scores, atol=close * largest[0])
        np.testing.assert_allclose(found["probabilities"], r.class_probs, atol=close)
        np.testing.assert_allclose(found["class_maps"], r.class_maps, atol=close * largest[1])
        assert found["classes"].tolist() == list(CLASSES)
        h, w = r.class_maps.shape[-2:]
        for name, (x, y) in zip(CLASSES, found["points"].astype(float), strict=True):
            row, column = int(y * h / height), int(x * w / width)
            assert (x, y) == pytest.approx(((column + 0.5) * width / w, (row + 0.5) * height / h), rel=1e-5)
            peak = r.class_maps[CLASSES.index(name)].max()
            assert r.class_maps[CLASSES.index(name), row, column] >= peak - 2 * close * largest[1]
            if close < 1e-2:
                assert (x, y) == pytest.approx(r.points[name], rel=1e-5)


class Inconsistent(nn.Module):
    """A pooling that computes something else when it is traced."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, maps: Tensor) -> Tensor:
        scores: Tensor = self.pool(maps)
        return scores * 1.01 if torch.compiler.is_compiling() else scores


def test_a_graph_that_differs_is_not_written(tmp_path: Path) -> None:
    p = predictor()
    p.model.pool = Inconsistent(p.model.pool)  # type: ignore[assignment]
    with pytest.raises(EngineError, match=r"the ONNX graph's scores differ from torch's by 1.0e-02"):
        export_onnx(p, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def several(tmp_path: Path) -> None:
    p = predictor()
    export_onnx(
        Predictor("both", [*p.members, *predictor().members], CLASSES, "multilabel", "cpu"), tmp_path / "model.onnx"
    )


def tiled(tmp_path: Path) -> None:
    p = predictor()
    p.tile = 512
    export_onnx(p, tmp_path / "model.onnx", with_processing=True)


def beamed(tmp_path: Path) -> None:
    p = predictor()
    p.localize = "beam-search"
    export_onnx(p, tmp_path / "model.onnx", with_processing=True)


def existing(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_text("mine")
    export_onnx(predictor(), tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("attempt", "kind", "said"),
    [
        (several, ConfigError, r"both runs 2 networks or sizes.*\n.*both/members/1"),
        (tiled, ConfigError, r"with_processing=True excludes tile=512"),
        (beamed, ConfigError, r"with_processing=True excludes localize='beam-search'"),
        (existing, RunError, r"model.onnx exists and is never overwritten"),
        (lambda folder: export_onnx(predictor(), folder / "model"), ConfigError, r"Give a name such as .*model\.onnx"),
        (lambda _: export_onnx(predictor(), ""), ConfigError, r"Give a name such as model\.onnx"),
    ],
)
def test_invalid_exports_are_refused(
    attempt: Callable[[Path], object], kind: type[Exception], said: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=said):
        attempt(tmp_path)
    assert [f.read_text() for f in tmp_path.iterdir()] in ([], ["mine"])


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"onnx is needed here(.|\n)*wildcat-vision\[export\]"):
        export_onnx(predictor(), tmp_path / "model.onnx")
