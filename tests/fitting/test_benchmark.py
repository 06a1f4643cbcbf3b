"""wildcat bench: alternatives are timed in turn, ratios are right, and the flags it prints are those of the fastest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import wildcat
from wildcat.cli import main
from wildcat.data import DataSet
from wildcat.device import cpu_has_bf16
from wildcat.engines.graph_cache import graph_folder
from wildcat.fitting.benchmark import fastest, speedups, time_in_turn
from wildcat.models.calibration import Calibration
from wildcat.models.folder import write_refined
from wildcat.models.run import Run, open_run
from wildcat.nn.segmenter import Segmenter
from wildcat.regions import MaskParams

pytestmark = pytest.mark.usefixtures("cache")


def test_alternatives_take_turns_and_each_goes_first() -> None:
    seconds, order, now = {"a": 4.0, "b": 2.0, "c": 1.0}, [], [0.0]

    def runs(name: str) -> Any:
        def step() -> None:
            order.append(name)
            now[0] += seconds[name]

        return step

    times = time_in_turn({n: runs(n) for n in seconds}, rounds=3, warmup=1, clock=lambda: now[0])
    assert "".join(order) == "abcbcacababc"
    assert times == {"a": [4.0] * 3, "b": [2.0] * 3, "c": [1.0] * 3}
    assert speedups(times, "a", images=2)["c"] == {"seconds": 0.5, "speedup": 4.0, "quartiles": [4.0, 4.0]}


def test_ratios_are_computed_per_round() -> None:
    times = {"a": [1.0, 10.0, 2.0, 3.0, 8.0], "b": [0.5, 2.0, 2.0, 1.0, 2.0]}  # ratios 2, 5, 1, 3, 4
    assert speedups(times, "a")["b"] == {"seconds": 2.0, "speedup": 3.0, "quartiles": [2.0, 4.0]}


@pytest.mark.skipif(not cpu_has_bf16(), reason="no bf16 instructions")
def test_the_command_times_and_compares(tiny: Path, shapes: DataSet, capsys: pytest.CaptureFixture[str]) -> None:
    line = f"bench {tiny} {shapes.root} --split train --rounds 2 --batch-size 4 --device cpu".split()
    assert main([*line, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    rows = result["engines"]
    assert list(rows) == [
        *("torch fp32", "torch bf16", "onnx fp32", "onnx int8", "openvino fp32", "openvino bf16", "openvino int8"),
    ]
    assert result["left_out"] == {}
    assert rows["torch fp32"]["speedup"] == 1 and rows["torch fp32"]["score_error"] == 0
    for exact in ("onnx fp32", "openvino fp32"):
        assert rows[exact]["score_error"] < 1e-3 and rows[exact]["same_class"] == rows[exact]["same_point"] == 1
    assert 1e-3 < rows["openvino int8"]["score_error"] < 0.5
    assert {"torch", "onnxruntime", "openvino"} <= set(result["versions"]) and result["machine"]["cores"] > 0
    # The graph that was calibrated here is the one that other commands load.
    engine = wildcat.load(tiny, "cpu", engine="openvino", precision="int8").members[0].engine
    assert engine is not None and (engine.name, engine.precision) == ("openvino", "int8")


def test_without_images_engines_are_only_timed(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--rounds", "1", "--batch-size", "1", "--device", "cpu", "--sizes", "96", "--output-stride", "16"]
    assert main(["bench", str(tiny), *flags]) == 0
    table = capsys.readouterr().out
    assert "test_resnet 96 px" in table and "score error" not in table
    assert "Fastest in fp32: add --engine " in table
    assert "left out: onnx int8: there is no int8 graph of these weights at 96 px." in table
    backbones = {s: wildcat.load(tiny, "cpu", output_stride=s).model.backbone for s in (16, 32)}
    made = {s: (graph_folder(backbone, 96) / "fp32.onnx").is_file() for s, backbone in backbones.items()}
    assert made == {16: True, 32: False}


def test_a_cache_that_cannot_be_written_leaves_out_int8_alone(
    tiny: Path, shapes: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("WILDCAT_CACHE", str(tmp_path / "file" / "cache"))
    flags = ["--split", "train", "--rounds", "1", "--batch-size", "4", "--device", "cpu", "--json"]
    assert main(["bench", str(tiny), str(shapes.root), *flags]) == 0
    result = json.loads(capsys.readouterr().out)
    assert {"onnx fp32", "openvino fp32"} <= set(result["engines"])
    assert {"onnx int8", "openvino int8"} <= set(result["left_out"])
    assert "int8.npy cannot be written" in result["left_out"]["onnx int8"]


def row(speedup: float, error: float) -> dict[str, float]:
    return {"speedup": speedup, "score_error": error, "same_class": 1.0, "same_point": 1.0}


def test_the_fastest_with_the_same_scores() -> None:
    rows = {
        "torch fp32": row(1, 0),
        "onnx fp32": row(1.5, 1e-5),
        "openvino bf16": row(3, 0.03),
        "onnx int8": row(4, 0.2),
    }
    assert fastest({"engines": rows}) == "openvino bf16"
    timed = {label: {"speedup": values["speedup"]} for label, values in rows.items()}
    assert fastest({"engines": timed}) == "onnx fp32", "without a comparison, only what is exact"


def test_a_refined_model_runs_on_torch_alone(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opened = open_run(tiny)
    segmenter = Segmenter([level.shape[1] for level in levels_of(opened)], 5)
    calibration = Calibration(MaskParams(), {"data": "shapes", "split": "train", "images": 1, "masks": 0})
    write_refined(tmp_path / "refined", opened, segmenter, {}, calibration)
    assert main(["bench", str(tmp_path / "refined"), "--rounds", "1", "--device", "cpu", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert list(result["engines"]) == ["torch fp32"]
    assert result["left_out"]["onnx fp32"] == "a refined model runs on torch in fp32 only."


def levels_of(run: Run) -> tuple[torch.Tensor, ...]:
    with torch.inference_mode():
        return run.load_model().backbone.levels(torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--rounds", "0"), 2, "--rounds 0, --batch-size 8: both must be at least 1."),
        (("{shapes}", "--split", "val"), 2, "10 images are too few to calibrate int8 with."),
    ],
)
def test_misuse_is_one_sentence(
    tiny: Path, shapes: DataSet, arguments: tuple[str, ...], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [a.format(shapes=shapes.root) for a in arguments]
    assert main(["bench", str(tiny), *words, "--device", "cpu"]) == code
    err = capsys.readouterr().err
    assert said in err and "Traceback" not in err
