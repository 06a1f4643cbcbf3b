"""wildcat bench: alternatives are timed in turn, ratios are right, and what is picked is what --engine auto takes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import wildcat
from wildcat.cli import main
from wildcat.config import TrainConfig
from wildcat.data import open_dataset, write_shapes
from wildcat.engines import read_pick
from wildcat.engines.graph_cache import graph_folder
from wildcat.errors import ConfigError
from wildcat.fitting.benchmark import pick
from wildcat.fitting.timing import speedups, time_in_turn
from wildcat.models.run import create_run, save_weights
from wildcat.nn.model import model_from_config
from wildcat.predictor import Predictor


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("WILDCAT_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("data") / "shapes", train=20, val=4, size=(64, 96))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, shapes: Path) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    config = TrainConfig(backbone="test_resnet", weights="none", image_size=64)
    torch.manual_seed(0)
    save_weights(
        model_from_config(config, 5), create_run(folder, config, open_dataset(str(shapes))).folder / "model.safetensors"
    )
    return folder


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


def test_ratios_are_taken_round_by_round() -> None:
    times = {"a": [1.0, 10.0, 2.0, 3.0, 8.0], "b": [0.5, 2.0, 2.0, 1.0, 2.0]}  # ratios 2, 5, 1, 3, 4
    assert speedups(times, "a")["b"] == {"seconds": 2.0, "speedup": 3.0, "quartiles": [2.0, 4.0]}


def test_the_command_times_compares_and_picks(
    run: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["bench", str(run), str(shapes), "--split", "train", "--rounds", "2", "--batch-size", "4", "--device", "cpu"]
    assert main([*line, "--pick", "--tolerance", "0.5", "--json"]) == 0
    said = capsys.readouterr()
    result = json.loads(said.out)
    assert "preparing openvino int8" in said.err
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
    member = wildcat.load(run, "cpu").members[0]
    assert " ".join(read_pick(member.model.backbone, 64, "cpu")) == result["picked"]
    photo = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)).save(photo)
    assert (
        main(["predict", str(run), str(photo), "--engine", "auto", "--device", "cpu", "--out", str(tmp_path / "a")])
        == 0
    )
    row = json.loads((tmp_path / "a" / "predictions.jsonl").read_text())
    name, precision = result["picked"].split()
    expected = wildcat.load(run, "cpu", engine=name, precision=precision).predict(photo)
    assert row["scores"] == pytest.approx(dict(expected.scores), abs=1e-4)


def test_without_images_only_times_are_taken(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--rounds", "1", "--batch-size", "1", "--device", "cpu", "--sizes", "96", "--output-stride", "16"]
    assert main(["bench", str(run), *flags]) == 0
    table = capsys.readouterr().out
    assert "test_resnet 96 px" in table and "score error" not in table
    assert "left out: onnx int8: there is no int8 graph of these weights at 96 px." in table
    backbones = {s: wildcat.load(run, "cpu", output_stride=s).model.backbone for s in (16, 32)}
    made = {s: (graph_folder(backbone, 96) / "fp32.onnx").is_file() for s, backbone in backbones.items()}
    assert made == {16: True, 32: False}


def row(speedup: float, error: float) -> dict[str, float]:
    return {"speedup": speedup, "score_error": error, "same_class": 1.0, "same_point": 1.0}


@pytest.mark.parametrize(("tolerance", "picked"), [(0.001, "onnx fp32"), (0.05, "openvino bf16"), (1, "onnx int8")])
def test_the_fastest_within_tolerance_is_picked(run: Path, tolerance: float, picked: str) -> None:
    predictor: Predictor = wildcat.load(run, "cpu")
    rows = {
        "torch fp32": row(1, 0),
        "onnx fp32": row(1.5, 1e-5),
        "openvino bf16": row(3, 0.03),
        "onnx int8": row(4, 0.2),
    }
    result = {"engines": rows, "settings": {}, "versions": {}}
    assert pick(predictor, result, tolerance) == picked
    assert " ".join(read_pick(predictor.model.backbone, 64, "cpu")) == picked


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--pick",), 2, "--pick judges engines by what they say of images."),
        (("--rounds", "0"), 2, "rounds=0, batch_size=8: both must be at least 1."),
        (("{shapes}", "--split", "val"), 2, "4 images are too few to measure ranges on."),
        (("{shapes}", "--split", "train", "--pick", "--tolerance", "-1"), 2, "tolerance=-1.0"),
    ],
)
def test_misuse_is_answered_in_a_sentence(
    run: Path, shapes: Path, arguments: tuple[str, ...], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [a.format(shapes=shapes) for a in arguments]
    assert main(["bench", str(run), *words, "--device", "cpu"]) == code
    err = capsys.readouterr().err
    assert said in err and "Traceback" not in err


def test_nothing_within_tolerance_is_said() -> None:
    with pytest.raises(ConfigError, match="engines are picked by what they say"):
        pick(None, {"engines": {"torch fp32": {"speedup": 1.0}}}, 0.1)  # type: ignore[arg-type]
