"""SIGTERM and Ctrl-C stop every command in order, with exit code 143 or 130, and lose nothing that was finished."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import wildcat.train.loop
from tests.cli.conftest import command
from tests.conftest import TINY
from wildcat.predictor import Predictor
from wildcat.progress import ProgressBar
from wildcat.train.loop import Trainer


def signalling(method: Callable[..., Any], number: int, call: int) -> Callable[..., Any]:
    """The method, which sends this process a signal in one of its calls."""
    calls = []

    def send(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            signal.raise_signal(number)
        return method(*arguments, **options)

    return send


@pytest.fixture(params=[signal.SIGTERM, signal.SIGINT])
def stop(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def test_training_stops_after_the_step_and_says_how_to_resume(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stop: int
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "take_step", signalling(Trainer.take_step, stop, 3))
        assert command("train", shapes, "--out", out, "--epochs", 2, *TINY) == 128 + stop
    told = capsys.readouterr().err
    assert "Stopped after 1 epochs; everything is saved. Resume with:\n  wildcat train" in told
    assert command("train", shapes, "--out", out, "--resume") == 0
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 2


def test_training_that_is_stopped_while_it_computes_features_is_given_again(
    shapes: Path, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ProgressBar, "start", signalling(ProgressBar.start, signal.SIGTERM, 1))
    line = ("train", shapes, "--out", tmp_path / "run", *TINY, "--tune", "head", "--weights", weights, "--epochs", 1)
    assert command(*line) == 143
    told = capsys.readouterr().err
    assert "Nothing was saved yet" in told and "--resume" not in told
    assert command(*line) == 0


def test_workers_that_die_of_the_same_signal_are_no_shortage_of_memory(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before they ignore it; torch raises this at the end of such a worker."""

    def die(*_: object) -> None:
        signal.raise_signal(signal.SIGTERM)
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated. ")

    monkeypatch.setattr(Trainer, "take_step", die)
    assert command("train", shapes, "--out", tmp_path / "run", *TINY) == 143
    told = capsys.readouterr().err
    assert "wildcat: interrupted." in told and "memory" not in told and "Traceback" not in told


@pytest.mark.parametrize("line", ["predict", "predict --out new", "predict --out new --shard-rows 5"])
def test_predicting(
    line: str,
    tiny: Path,
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stop: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    name, *flags = line.split()
    words = [name, tiny, shapes / "JPEGImages", *flags, "--device", "cpu", "--batch-size", "2"]
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "forward", signalling(Predictor.forward, stop, 5))
        assert command(*words) == 128 + stop
    told = capsys.readouterr().err
    assert "wildcat: interrupted" in told and "Traceback" not in told
    if "--shard-rows" in flags:
        assert "--resume; shards that are written stay." in told
        assert command(*words, "--resume") == 0
        assert sum(len(path.read_text().splitlines()) for path in Path("new").glob("shard-*")) == 32
    elif flags:
        rows = [json.loads(row) for row in Path("new/predictions.jsonl").read_text().splitlines()]
        assert f"after {len(rows)} of 32 images in new/predictions.jsonl" in told
        assert all((Path("new") / file).is_file() for row in rows for file in row["files"]["overlays"].values())


def test_other_commands_write_nothing(
    tiny: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for line in (["evaluate", tiny, shapes], ["calibrate", tiny, shapes], ["refine", tiny, shapes, "--out", "new"]):
        monkeypatch.setattr(ProgressBar, "advance", signalling(ProgressBar.advance, signal.SIGTERM, 1))
        assert command(*line, "--device", "cpu") == 143
        assert "wildcat: interrupted" in capsys.readouterr().err
        monkeypatch.undo()
        monkeypatch.chdir(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("tune", ["head", "all"])
def test_an_interrupted_cell_of_an_experiment_is_not_recorded(
    tune: str, shapes: Path, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    out = tmp_path / "new"
    line = ["reproduce", "figure5", "--data", shapes, "--out", out, "--seeds", 1, "--tune", tune, "--weights", weights]
    line += ["--backbone", "test_resnet", "--image-size", 64, "--epochs", 2, "--batch-size", 8, "--device", "cpu"]
    monkeypatch.setattr(wildcat.train.loop, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(Trainer, "take_step", signalling(Trainer.take_step, signal.SIGTERM, 3))
    assert command(*line, "--workers", 0) == 143
    assert "Give the same command again" in capsys.readouterr().err
    assert not list(out.glob("cells/*.json"))
