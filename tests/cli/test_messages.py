"""Messages name flags as they are typed, and settings of files and of Python as they are written there."""

from __future__ import annotations

import ast
import errno
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import wildcat.train.loop
from tests.cli.conftest import command
from tests.conftest import TINY
from wildcat.cli import COMMANDS
from wildcat.cli.options import flag, flag_names
from wildcat.cli.train import note_device
from wildcat.config import TrainConfig
from wildcat.data import open_dataset
from wildcat.errors import ConfigError, EngineError, RunError, known_error
from wildcat.models.run import open_run
from wildcat.progress import Progress
from wildcat.settings import from_dict
from wildcat.train import distributed
from wildcat.train.loop import Trainer

REPOSITORY = Path(__file__).resolve().parents[2]
OTHERS = {"--nproc-per-node", "--max-restarts", "--rdzv-id", "--logdir", "--function-module", "--help", "--version"}
"""Flags of torchrun, tensorboard and cvat-cli, and those that the parser adds."""


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """All strings of a file, docstrings (the help) among them, f-strings with {} for their values."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
        elif isinstance(node, ast.JoinedStr):
            yield node.lineno, "".join(v.value if isinstance(v, ast.Constant) else "{}" for v in node.values)


def test_every_flag_in_a_message_exists() -> None:
    names = {name for kind, _ in COMMANDS.values() for name in flag_names(kind)}
    flags = {flag(name) for name in names} | {flag(f"no_{name}") for name in names} | OTHERS
    assert {"--lr", "--image-size", "--shard-rows", "--no-standardize"} <= flags
    unknown = [
        f"{path.relative_to(REPOSITORY)}:{line}: {found}"
        for path in sorted((REPOSITORY / "wildcat").rglob("*.py"))
        for line, text in texts(path)
        for found in re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z](?![\w-])", text)
        if found not in flags
    ]
    assert unknown == []


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--lr", "0"], "wildcat: --lr 0.0: give a positive number.\n"),
        (["--image-size", "16"], "wildcat: --image-size 16: backbones need at least 32 pixels.\n"),
        (["--crop-scale", "2"], "wildcat: --crop-scale 2.0: give a part of the image's area"),
        (["--tune", "head", "--weights", "none"], "wildcat: --tune head with --weights none would train on"),
        (["--tune", "head", "--weights", "none"], "  Give --weights imagenet, or --tune all.\n"),
        (["--background", "--architecture", "b"], "wildcat: --background goes with --architecture a and"),
        (["--background", "--architecture", "b"], "  Leave out --background, or give --architecture a"),
    ],
)
def test_a_wrong_setting_is_named_as_it_is_typed(
    flags: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("train", "shapes", "--out", tmp_path / "lr=0", *flags) == 2
    assert says in capsys.readouterr().err


def test_other_commands_name_their_flags(tiny: Path, shapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for line, says in {
        ("predict", tiny, shapes, "--batch-size", 0): "--batch-size 0: give at least 1",
        ("predict", tiny, shapes, "--limit", -3): "--limit -3: give at least 1, or 0 for all images",
        ("predict", tiny, shapes, "--tile", 5): "--tile 5: give a side of at least",
        ("predict", tiny, shapes, "--device", "tpu"): "--device tpu: this machine has no such device.",
        ("evaluate", tiny, shapes, "--sizes", "20"): "--sizes 20: give at least 32 pixels.",
        ("evaluate", tiny, shapes, "--sizes", "64,200000"): "--sizes 200000: give at most 16,384 pixels.",
        ("refine", tiny, shapes, "--out", "new", "--epochs", 0): "--epochs 0: give at least 1.",
        ("serve", tiny, "--port", 70000): "--port 70000: give a number from 1 to 65535",
    }.items():
        assert command(*line) == 2
        assert f"wildcat: {says}" in capsys.readouterr().err


@pytest.mark.parametrize("values", [{"lr": 0.0}, {"batch_size": 0}, {"schedule": "cosin"}])
def test_a_wrong_setting_of_a_file_is_named_as_it_is_written(
    values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ((name, value),) = values.items()
    file = tmp_path / "mine.yaml"
    file.write_text(f"{name}: {value}\n")
    assert command("train", "shapes", "--out", tmp_path / "run", "--recipe", file) == 2
    assert f"wildcat: {file}: {name}: {value!r}" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=f"f.yaml: {name}: {value!r}"):
        from_dict(values, "f.yaml")
    with pytest.raises(ConfigError, match=f"^{name}={value!r}: give"):
        TrainConfig(**values).validate()


def test_the_memory_hint_names_flags_of_the_command(
    tiny: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_memory(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("wildcat.predictor.Predictor.forward", no_memory)
    monkeypatch.setattr("wildcat.train.loop.Trainer.take_step", no_memory)
    assert command("evaluate", tiny, shapes, "--device", "cpu") == 1
    assert "--" not in capsys.readouterr().err.partition("Close other programs")[2]
    assert command("predict", tiny, shapes / "JPEGImages", "--device", "cpu") == 1
    assert "reduce --batch-size." in capsys.readouterr().err, "--workers is for --engine ray alone"
    assert command("train", shapes, "--out", tmp_path / "run", *TINY) == 1
    assert "reduce --batch-size or --workers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("DataLoader worker (pid 7) is killed by signal: Killed. ", "not enough memory"),
        ("DataLoader worker (pid(s) 7) exited unexpectedly", "not enough memory"),
        ("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that", "not enough memory"),
        ("DataLoader worker (pid 7) is killed by signal: Terminated. ", "has ended by the signal Terminated."),
        ("DataLoader worker (pid 7) is killed by signal: Segmentation fault. ", "signal Segmentation fault."),
    ],
)
def test_a_worker_that_was_killed(text: str, says: str) -> None:
    error = known_error(RuntimeError(text))
    assert error is not None and says in error.message
    assert known_error(RuntimeError("shapes differ")) is None
    assert known_error(EngineError("other")) is not None


def test_what_may_not_be_opened_is_named() -> None:
    error = known_error(PermissionError(errno.EACCES, "Permission denied", "images/cats"))
    assert error is not None and error.message == "images/cats cannot be opened: Permission denied."
    assert known_error(PermissionError("of another kind")) is None


# --- after a failed start ---------------------------------------------------------------------------------------------


def test_after_a_failed_start_the_same_folder_takes_other_settings(
    tiny: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No hint to resume, and nothing that blocks --out: out of memory, an interruption, a diverging loss."""
    out = tmp_path / "a run"

    def failing(error: BaseException) -> Any:
        def fail(*_: object, **__: object) -> None:
            raise error

        return fail

    for error, code in ((MemoryError(), 1), (KeyboardInterrupt(), 130)):
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "take_step", failing(error))
            assert command("train", shapes, "--out", out, "--epochs", 1, *TINY) == code
        told = capsys.readouterr().err
        assert "--resume" not in told and not out.exists()
    assert command("train", shapes, "--out", out, "--epochs", 1, *TINY, "--lr", "1e30") == 1
    told = capsys.readouterr().err
    assert "Try --lr" in told and "best epoch" not in told and not out.exists()
    for line in (["predict", "--out", out], ["predict", "--out", out, "--shard-rows", 5]):
        with monkeypatch.context() as patch:
            patch.setattr("wildcat.predictor.Predictor.forward", failing(MemoryError()))
            assert command(line[0], tiny, shapes / "JPEGImages", *line[1:], "--device", "cpu") == 1
        assert "--resume" not in capsys.readouterr().err and not any(out.glob("*"))


def test_after_a_failed_start_a_symbolic_link_can_be_given_again(
    tiny: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "disk").mkdir()
    out = tmp_path / "link"
    out.symlink_to(tmp_path / "disk")
    assert command("train", shapes, "--out", out, "--epochs", 1, *TINY, "--lr", "1e30") == 1
    assert "Try --lr" in capsys.readouterr().err and out.is_symlink() and not list(out.iterdir())
    monkeypatch.setattr("wildcat.predictor.Predictor.forward", lambda *_: (_ for _ in ()).throw(MemoryError()))
    line = ("predict", tiny, shapes / "JPEGImages", "--out", out, "--shard-rows", 5, "--device", "cpu")
    assert command(*line) == 1
    assert "give the same command again" in capsys.readouterr().err and out.is_symlink() and not list(out.iterdir())


def test_a_run_that_saved_nothing_is_started_again_with_other_settings(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after SIGKILL in the first step: --resume keeps its settings, and flags change them."""
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("wildcat.models.run.is_unused", lambda _: False)
        patch.setattr("wildcat.train.loop.train", lambda *_, **__: (_ for _ in ()).throw(SystemExit(9)))
        assert command("train", shapes, "--out", out, "--epochs", 1, "--num-maps", 2, *TINY) == 9
    assert sorted(path.name for path in out.iterdir()) == ["config.yaml", "model.json"]
    assert command("train", shapes, "--out", out, "--resume", "--batch-size", 4) == 0
    assert f"Writing {out}" in capsys.readouterr().out
    text = (out / "config.yaml").read_text()
    assert "batch_size: 4\n" in text and "num_maps: 2\n" in text and "epochs: 1\n" in text


@pytest.mark.skipif(sys.platform == "win32", reason="files are not locked there")
def test_a_run_is_left_alone_while_another_process_trains_in_it(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Even before it has saved anything."""
    out, train = tmp_path / "run", wildcat.train.loop.train
    line = ("train", shapes, "--out", out, "--epochs", 1, *TINY)
    codes = []

    class Rival(Progress):
        def start(self, task: str, total: int | None, done: int = 0) -> None:
            if not codes:
                codes.append(command(*line, "--resume"))
                with pytest.raises(RunError, match="another process trains in"):
                    train(open_run(out), open_dataset(shapes))

    monkeypatch.setattr(
        "wildcat.train.loop.train", lambda run, data, resume, progress: train(run, data, resume, Rival())
    )
    assert command(*line) == 0
    assert codes == [1] and f"another process trains in {out}." in capsys.readouterr().err


def test_the_hint_resumes_the_very_same_run(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a run"
    take_step, steps = Trainer.take_step, []

    def stopping(trainer: Trainer, group: Any) -> Any:
        steps.append(trainer.config)
        if len(steps) in (4, 5):  # in the second epoch, and in the first step after it is resumed
            raise MemoryError
        return take_step(trainer, group)

    monkeypatch.setattr(Trainer, "take_step", stopping)
    monkeypatch.setattr("wildcat.train.loop.SAVE_SECONDS", 0.0)
    lines = [["train", str(shapes), "--out", str(out), "--epochs", "2", "--alpha", "0.3", *TINY]]
    for more in ([], ["--save-minutes", "5.0"]):
        assert command(*lines[-1], *more) == 1
        told = capsys.readouterr().err
        assert "reduce --workers." in told  # a run keeps its batch size
        words = shlex.split(told.strip().splitlines()[-1])
        assert words == ["wildcat", "train", str(shapes), "--out", str(out), "--resume", *more]
        lines.append(words[1:])
    assert command(*lines[-1]) == 0
    assert {config.alpha for config in steps} == {0.3}
    assert [config.save_minutes for config in steps] == [10.0] * 4 + [5.0] * 4


@pytest.mark.parametrize(
    ("processes", "local", "device_type", "advised"),
    [(2, 2, "cpu", True), (1, 1, "cpu", False), (2, 1, "cpu", False), (2, 2, "cuda", False)],
)
def test_several_processes_on_one_machine_without_a_gpu_are_advised_against(
    processes: int,
    local: int,
    device_type: str,
    advised: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: processes)
    monkeypatch.setattr(distributed, "local_size", lambda: local)
    note_device(device_type, may_tune_head=False)
    assert ("2 processes on one machine without a GPU are slower than one" in capsys.readouterr().err) == advised
