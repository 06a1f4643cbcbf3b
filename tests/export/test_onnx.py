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
from torch import Tensor, nn

from wildcat.data.transforms import Preprocess
from wildcat.errors import ConfigError, EngineError, MissingExtra, RunError
from wildcat.export.onnx import export_onnx
from wildcat.models.member import Member
from wildcat.nn.factory import create_model
from wildcat.predictor import Predictor

CLASSES = ("cat", "dog", "müesli")
SIZE = 64


def predictor(flip: Any = "none", **settings: Any) -> Predictor:
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
    preprocess = Preprocess(SIZE, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7), "bilinear")
    return Predictor("runs/tiny", [Member(model, preprocess)], CLASSES, "multilabel", "cpu", flip)


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
    export_onnx(Predictor("both", [*p.members, *p.members], CLASSES, "multilabel", "cpu"), tmp_path / "model.onnx")


def existing(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_text("mine")
    export_onnx(predictor(), tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("attempt", "kind", "said"),
    [
        (several, ConfigError, r"both runs 2 networks or sizes.*\n.*both/members/1"),
        (existing, RunError, r"model.onnx exists and is never overwritten"),
        (lambda folder: export_onnx(predictor(), folder / "model"), ConfigError, r"Give a name such as .*model\.onnx"),
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
