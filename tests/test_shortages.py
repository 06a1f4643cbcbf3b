"""Full disks, read-only folders, vanishing sources, too little memory: one-sentence errors, and no lost data."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import wildcat.train.loop
from tests.conftest import TINY
from wildcat.cli import main
from wildcat.data import DataSet, loader
from wildcat.errors import out_of_memory
from wildcat.models.run import STATE, WEIGHTS, load_state
from wildcat.predictor import Predictor
from wildcat.train.checkpoint import Checkpoint
from wildcat.train.loop import Trainer

SMALLER, UNWRITABLE, VANISHED, MEMORY = "File too large", "cannot be written", "does not exist", "not enough memory"


pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def here(shapes: DataSet, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with `data`, its images in `data/JPEGImages`, and two runs on it, `a` and `b`."""
    for source, name in ((shapes.root, "data"), (tiny, "a"), (tiny, "b")):
        shutil.copytree(source, tmp_path / "here" / name)
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


COMMANDS: dict[str, tuple[str, int]] = {
    "evaluate": ("evaluate a data --curves curves.csv", 100),
    "predict": ("predict a data/JPEGImages --out new --save none", 4000),
    "shards": ("predict a data/JPEGImages --out new --shard-rows 5", 1500),
    "calibrate": ("calibrate a data", 500),
    "report": ("report a data --out new.html", 20_000),
    "refine": ("refine a data --out new --rounds 1 --epochs 1", 20_000),
    "ensemble": ("ensemble a b --data data --out new", 20_000),
    "export": ("export a data/JPEGImages --format coco --out new", 300),
}
"""Commands, and a size in bytes that at least one of their files exceeds."""


@contextlib.contextmanager
def small_files(size: int) -> Iterator[None]:
    """Limit files to `size` bytes: as on a full disk, a write fails in the middle."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def failed(line: str | list[str], capsys: pytest.CaptureFixture[str], says: str) -> str:
    """Run a command that must fail with one sentence; what it prints after that sentence."""
    capsys.readouterr()
    assert main([*(line.split() if isinstance(line, str) else line)]) == 1
    told = capsys.readouterr().err
    (sentence,) = [text for text in told.splitlines() if text.startswith("wildcat: ")]
    assert says in sentence and sentence.endswith(".") and "Traceback" not in told
    return told[told.index(sentence) + len(sentence) :]


# --- a full disk ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_loses_no_existing_file(here: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    line, size = COMMANDS[name]
    before = files(here)
    with small_files(size):
        hint = failed([*line.split(), "--device", "cpu"], capsys, SMALLER)
    assert "Check the free space" in hint
    after = files(here)
    if name == "predict":  # what it has written is whole
        rows = after.pop("new/predictions.jsonl").splitlines()
        assert 3 < len(rows) < 32 and all(json.loads(row)["scores"] for row in rows)
    elif name == "shards":  # the first one is too large
        assert "give the same command again" in hint
    assert after == before
    shutil.rmtree(here / "new", ignore_errors=True)
    assert main([*line.split(), "--device", "cpu"]) == 0


def after_first_epoch(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], object]) -> None:
    """Call `happens` when a training saves its first epoch."""
    save, saved = Checkpoint.save, []

    def saving(checkpoint: Checkpoint) -> None:
        save(checkpoint)
        saved.append(checkpoint)
        if len(saved) == 1:
            happens()

    monkeypatch.setattr(Checkpoint, "save", saving)
    monkeypatch.setattr(wildcat.train.loop, "SAVE_SECONDS", 0.0)


def train_line(*more: str) -> list[str]:
    return ["train", "data", "--out", "new", "--epochs", "2", *TINY, *more]


def resumed(here: Path, hint: str) -> None:
    """The command in the hint resumes after the first epoch and ends with the weights of an undisturbed training."""
    assert load_state(here / "new" / STATE)["position"]["epoch"] == 1
    command = hint.strip().splitlines()[-1].split()
    assert command == ["wildcat", "train", "data", "--out", "new", "--resume"]
    assert main(command[1:]) == 0
    assert (here / "new" / WEIGHTS).read_bytes() == (here / "a" / WEIGHTS).read_bytes()
    assert not list((here / "new").glob(".*"))


def test_a_disk_that_fills_up_while_training(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with small_files(resource.RLIM_INFINITY), monkeypatch.context() as patch:
        limits = (60_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
        after_first_epoch(patch, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits))
        hint = failed(train_line(), capsys, SMALLER)
    resumed(here, hint)


def test_a_folder_that_may_not_be_written(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """/sys belongs to the kernel, and even root cannot create folders there."""
    if not Path("/sys/kernel").is_dir():
        pytest.skip("needs Linux")
    before = files(here)
    for name in ("predict", "shards", "report", "refine", "ensemble", "export"):
        line = [word.replace("new", "/sys/new") for word in COMMANDS[name][0].split()]
        failed([*line, "--device", "cpu"], capsys, UNWRITABLE)
    failed(["train", "data", "--out", "/sys/new", *TINY], capsys, UNWRITABLE)
    assert files(here) == before


# --- what vanishes ----------------------------------------------------------------------------------------------------


def test_images_that_vanish_while_training(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images, away = here / "data" / "JPEGImages", here / "away"
    with monkeypatch.context() as patch:
        after_first_epoch(patch, lambda: images.rename(away))
        hint = failed(train_line(), capsys, VANISHED)
    away.rename(images)
    resumed(here, hint)


def test_a_run_folder_that_vanishes_while_training(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        after_first_epoch(patch, lambda: shutil.rmtree(here / "new"))
        hint = failed(train_line(), capsys, UNWRITABLE)
    assert "new no longer exists" in hint
    assert main(train_line()) == 0


def after_first_batch(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], object]) -> None:
    """Call `happens` after the first forward pass."""
    run, done = Predictor.forward, []

    def running(predictor: Predictor, *arguments: Any, **options: Any) -> Any:
        outputs = run(predictor, *arguments, **options)
        done.append(1)
        if len(done) == 1:
            happens()
        return outputs

    monkeypatch.setattr(Predictor, "forward", running)


@pytest.mark.parametrize("name", ["evaluate", "predict", "shards", "calibrate", "report", "ensemble", "export"])
def test_images_that_vanish_while_they_are_read(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    images, line = here / "data" / "JPEGImages", COMMANDS[name][0].split()
    line += ["--batch-size", "1"] if name in ("predict", "shards", "export") else []
    monkeypatch.setattr("wildcat.predictor.BATCH_SIZE", 1)
    for method in (Predictor.stream, Predictor.outputs):
        monkeypatch.setattr(method, "__kwdefaults__", {**(method.__kwdefaults__ or {}), "batch_size": 1})
    before = files(here)
    with monkeypatch.context() as patch:
        after_first_batch(patch, lambda: images.rename(here / "away"))
        says = {"predict": "has vanished", "shards": "has vanished", "export": "exist"}.get(name, VANISHED)
        hint = failed([*line, "--device", "cpu"], capsys, says)
    (here / "away").rename(images)
    if name == "shards":
        assert "--resume" in hint and main([*line, "--device", "cpu", "--resume"]) == 0
        return
    assert {k: v for k, v in files(here).items() if k != "new/predictions.jsonl"} == before
    shutil.rmtree(here / "new", ignore_errors=True)
    assert main([*line, "--device", "cpu"]) == 0


# --- memory -----------------------------------------------------------------------------------------------------------


def torch_shortage() -> RuntimeError:
    """The error of torch for a pebibyte."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50, dtype=torch.uint8)
    return caught.value


@pytest.mark.parametrize("name", ["evaluate", "predict", "shards", "calibrate", "report", "ensemble", "export"])
def test_memory_that_runs_out(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    before = files(here)
    for error in (MemoryError(), torch_shortage(), torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to")):

        def run(*_: Any, error: Exception = error, **__: Any) -> Any:
            raise error

        monkeypatch.setattr(Predictor, "forward", run)
        hint = failed([*COMMANDS[name][0].split(), "--device", "cpu"], capsys, MEMORY)
        assert ("--batch-size" in hint) == (name in ("predict", "shards", "export")) and "--resume" not in hint
        shutil.rmtree(here / "new", ignore_errors=True)
        assert files(here) == before


def test_memory_that_runs_out_while_training(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_step(*_: object) -> None:
        raise torch_shortage()

    with monkeypatch.context() as patch:
        after_first_epoch(patch, lambda: patch.setattr(Trainer, "take_step", no_step))
        hint = failed(train_line(), capsys, MEMORY)
    resumed(here, hint)


def test_a_reading_process_that_the_system_kills(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parent = os.getpid()

    def deadly(*_: object) -> None:
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(loader.ImageDataset, "__getitem__", deadly)
    line = [word if word != "0" else "1" for word in train_line()]
    hint = failed(line, capsys, MEMORY)
    assert "reduce --batch-size or --workers" in hint


def test_other_errors_are_no_shortage() -> None:
    assert out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
    assert out_of_memory(OSError(2, "No such file")) is None
