"""A training that was interrupted, anywhere, ends with the same bits as one that was not."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import wildcat.train.checkpoint
import wildcat.train.loop
from wildcat.cli import parse
from wildcat.config import TrainConfig
from wildcat.data.dataset import DataSet
from wildcat.errors import RunError
from wildcat.models.run import METRICS, STATE, WEIGHTS, Run, create_run, load_state, open_run
from wildcat.nn.factory import model_from_config
from wildcat.nn.model import Wildcat
from wildcat.progress import Progress
from wildcat.train.loop import Outcome, train
from wildcat.train.stages import stages

SMALL = TrainConfig(
    backbone="test_resnet",
    image_size=64,
    num_maps=2,
    head_epochs=1,
    epochs=2,
    batch_size=4,
    lr=0.05,
    backbone_lr_scale=0.3,
    ema=0.9,
    clip_norm=1.0,
    workers=0,
)
STEPS = 6  # an epoch: 22 images in batches of 4, 4, 4, 4, 4, 2


@dataclass
class Interrupter(Progress):
    """Sends Ctrl-C to this process after the given step or epoch, both counted from 1 in one training."""

    step: int = 0
    epochs: int = 0
    training: bool = False

    def start(self, task: str, total: int | None, done: int = 0) -> None:
        self.training = task == "training"

    def advance(self, count: int = 1, note: str = "") -> None:
        if self.training:
            self.step -= 1
            if self.step == 0:
                signal.raise_signal(signal.SIGINT)

    def epoch(self, record: dict[str, Any], network: Any = None) -> None:
        self.epochs -= 1
        if self.epochs == 0:
            signal.raise_signal(signal.SIGINT)


def with_dropout(config: TrainConfig, num_classes: int, weights: str | None = None) -> Wildcat:
    """A network that draws random numbers in every step, besides averaging over batches (batch normalisation)."""
    model = model_from_config(config, num_classes, weights)
    model.backbone.register_forward_hook(lambda m, _, out: nn.functional.dropout(out, 0.3, m.training))
    return model


@pytest.fixture
def dropout(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(wildcat.train.loop, "model_from_config", with_dropout)
    yield


def result(run: Run) -> tuple[dict[str, Tensor], bytes, list[dict[str, Any]]]:
    """The last weights with the optimiser's momentum, the bytes of the best weights, and the history without times."""
    state = load_state(run.folder / STATE)
    last = dict(state["model"])
    for index, entry in state["optimizer"]["state"].items():
        last[f"momentum {index}"] = entry["momentum_buffer"]
    last |= {f"average {name}": value for name, value in (state["average"] or {}).items()}
    last["random numbers"] = state["generators"]["cpu"]
    history = [{k: v for k, v in line.items() if "second" not in k} for line in run.history()]
    return last, (run.folder / WEIGHTS).read_bytes(), history


def assert_same(one: Run, other: Run) -> None:
    (last, best, history), (other_last, other_best, other_history) = result(one), result(other)
    assert last.keys() == other_last.keys()
    assert [name for name in last if not torch.equal(last[name], other_last[name])] == []
    assert best == other_best
    assert history == other_history
    assert [line["epoch"] for line in history] == list(
        range(1, stages(one.config, one.has_parent)[-1].stop_epoch + 1)
    ), "no line twice"


def interrupted(run: Run, data: DataSet, *stops: Interrupter) -> Outcome:
    """Train with the given interruptions, opening the run anew after each."""
    for i, stop in enumerate(stops):
        outcome = train(open_run(run.folder), data, resume=i > 0, progress=stop)
        assert not outcome.finished
    return train(open_run(run.folder), data, resume=True)


@pytest.mark.usefixtures("dropout")
@pytest.mark.parametrize(("tune", "accumulate"), [("all", 1), ("all", 2), ("last", 1), ("head", 1), ("head", 2)])
def test_interruptions_do_not_change_a_bit(
    tmp_path: Path, shapes: DataSet, weights: str, tune: str, accumulate: int
) -> None:
    config = replace(SMALL, tune=tune, accumulate=accumulate, weights=weights)  # type: ignore[arg-type]
    through = create_run(tmp_path / "through", config, shapes)
    assert train(through, shapes).finished
    stops = {
        "in an epoch": [Interrupter(step=2)],
        "between epochs": [Interrupter(epochs=1)],
        "again and again": [Interrupter(step=1), Interrupter(step=1), Interrupter(step=STEPS // accumulate)],
        "in the second stage": [Interrupter(step=STEPS // accumulate + 2)],
    }
    for name, interruptions in stops.items():
        run = create_run(tmp_path / name, config, shapes)
        assert interrupted(run, shapes, *interruptions).finished
        assert_same(run, through)


def test_the_head_is_trained_first_and_stays_usable(tmp_path: Path, shapes: DataSet, weights: str) -> None:
    """Fine-tuning starts from the head's weights, and a run that is stopped between the two has them."""
    run = create_run(tmp_path / "run", replace(SMALL, weights=weights, tune="last", val_split="none"), shapes)
    assert train(run, shapes, progress=Interrupter(epochs=1)).epochs_done == 1
    head = run.load_model()
    frozen = create_run(tmp_path / "head", replace(SMALL, weights=weights, tune="head", epochs=1), shapes)
    train(frozen, shapes)
    assert torch.equal(head.transfer.weight, frozen.load_model().transfer.weight)
    train(run, shapes, resume=True)
    assert [line["tune"] for line in run.history()] == ["head", "last", "last"]
    before, after = head.backbone.state_dict(), run.load_model().backbone.state_dict()
    changed = {name.split(".")[1] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"layer4"}, "the stages before the last one are frozen, its running statistics too"
    assert all(torch.equal(before[name], after[name]) for name in before if "running" in name)


def test_random_weights_and_runs_have_one_stage() -> None:
    assert [stage.config.tune for stage in stages(TrainConfig(), has_parent=False)] == ["head", "all"]
    assert [stage.config.tune for stage in stages(TrainConfig(tune="last"), has_parent=False)] == ["head", "last"]
    for settings in ({"weights": "none"}, {"weights": "a run"}, {"head_epochs": 0}, {"tune": "head"}):
        (stage,) = stages(replace(TrainConfig(), **settings), has_parent=settings.get("weights") == "a run")
        assert stage.config.tune == settings.get("tune", "all") and stage.stop_epoch == 20


def test_folders_named_as_the_words_for_weights_are_not_taken_for_runs(
    tmp_path: Path, shapes: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("imagenet", "none"):
        (tmp_path / name).mkdir()
    run = create_run(tmp_path / "run", replace(SMALL, weights="none", epochs=1), shapes)
    assert not run.has_parent and train(run, shapes).finished
    config = parse(["train", "shapes", "--out", "other", "--weights", "imagenet"]).config
    assert (config.weights, config.parent) == ("imagenet", None)
    (tmp_path / "imagenet" / "config.yaml").write_text("backbone: lite1\n")
    assert parse(["train", "shapes", "--out", "other", "--weights", "imagenet"]).config == config


def test_every_step_counts(tmp_path: Path, shapes: DataSet, weights: str) -> None:
    """The comparison above could not fail if the weights did not move."""
    config = replace(SMALL, tune="head", weights=weights)
    run = create_run(tmp_path / "run", config, shapes)
    train(run, shapes, progress=Interrupter(step=STEPS + 1))
    position = load_state(run.folder / STATE)["position"]
    assert (position["epoch"], position["step"]) == (1, 1)
    before = load_state(run.folder / STATE)["model"]["transfer.weight"]
    train(run, shapes, resume=True, progress=Interrupter(step=1))
    assert not torch.equal(load_state(run.folder / STATE)["model"]["transfer.weight"], before)


@pytest.mark.usefixtures("dropout")
def test_a_crash_goes_back_to_the_end_of_the_last_epoch(
    tmp_path: Path, shapes: DataSet, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even between the history, which knows an epoch, and the state, which does not."""
    config = replace(SMALL, tune="head", weights=weights, epochs=3)
    through = create_run(tmp_path / "through", config, shapes)
    train(through, shapes)
    run = create_run(tmp_path / "run", config, shapes)
    saved = iter(range(3))

    def crash(self: Any) -> None:
        if next(saved) == 1:
            raise MemoryError
        save(self)

    save = wildcat.train.checkpoint.Checkpoint.save
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(wildcat.train.checkpoint.Checkpoint, "save", crash)
        train(run, shapes)
    assert [line["epoch"] for line in run.history()] == [1, 2]
    assert load_state(run.folder / STATE)["position"]["epoch"] == 1
    train(run, shapes, resume=True)
    assert_same(run, through)


def test_ctrl_c_while_features_are_computed_interrupts_at_once(
    tmp_path: Path, shapes: DataSet, weights: str, cache: Path
) -> None:
    """There is no step in hand to finish yet, and no weights to save."""

    class Impatient(Progress):
        signals = 1

        def advance(self, count: int = 1, note: str = "") -> None:
            if count and self.signals:
                self.signals -= 1
                signal.raise_signal(signal.SIGINT)

    run = create_run(tmp_path / "run", replace(SMALL, tune="head", weights=weights), shapes)
    files = {path.name for path in run.folder.iterdir()}
    with pytest.raises(KeyboardInterrupt):
        train(run, shapes, progress=Impatient())
    assert {path.name for path in run.folder.iterdir()} == files
    assert [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"] == []
    assert train(run, shapes, resume=True).finished


def test_a_finished_run_stays_finished(tmp_path: Path, shapes: DataSet, weights: str) -> None:
    run = create_run(tmp_path / "run", replace(SMALL, tune="head", weights=weights), shapes)
    first = train(run, shapes)
    files = {path.name: path.read_bytes() for path in run.folder.iterdir()}
    assert train(run, shapes, resume=True) == first
    assert {path.name: path.read_bytes() for path in run.folder.iterdir()} == files


def test_resuming_before_anything_was_saved_starts(tmp_path: Path, shapes: DataSet, weights: str) -> None:
    run = create_run(tmp_path / "run", replace(SMALL, tune="head", weights=weights), shapes)
    assert train(run, shapes, resume=True).finished


@pytest.mark.parametrize(("kind", "steps"), [("run", 1), ("file", STEPS + 2)])
def test_a_saved_state_needs_no_initial_weights(
    tmp_path: Path, shapes: DataSet, weights: str, kind: str, steps: int
) -> None:
    start = Path(shutil.copy(weights, tmp_path / "start.safetensors"))
    if kind == "run":
        start = tmp_path / "parent"
        train(create_run(start, replace(SMALL, weights="none", epochs=1), shapes), shapes)
    config = replace(SMALL, weights=str(start))
    through, run = (create_run(tmp_path / name, config, shapes) for name in ("through", "run"))
    assert train(through, shapes).finished
    assert not train(run, shapes, progress=Interrupter(step=steps)).finished
    start.rename(tmp_path / "elsewhere")
    assert train(open_run(run.folder), shapes, resume=True).finished
    assert_same(run, through)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("cut", "state.pt is damaged or half-written"),
        ("empty", r"state.pt is damaged \(KeyError: 'data'\)"),
        ("other network", "does not fit the network of its own config.yaml"),
        ("history", "metrics.jsonl is damaged"),
    ],
)
def test_damage_is_named(tmp_path: Path, shapes: DataSet, weights: str, damage: str, says: str) -> None:
    run = create_run(tmp_path / "run", replace(SMALL, tune="head", weights=weights), shapes)
    train(run, shapes)
    path = run.folder / STATE
    state = load_state(path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-1000])
    elif damage == "empty":
        torch.save({}, path)
    elif damage == "other network":
        del state["model"]["transfer.weight"]
        torch.save(state, path)
    else:
        (run.folder / METRICS).write_text('{"epoch": 1')
    with pytest.raises(RunError, match=says):
        train(run, shapes, resume=True)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_group_of_processes(
    tmp_path: Path, shapes: DataSet, weights: str, stop: signal.Signals
) -> None:
    """As a terminal sends SIGINT, and `timeout`, Slurm and containers SIGTERM, twice: reading processes get it too."""
    config = replace(SMALL, weights=weights, workers=1, head_epochs=0, epochs=2)
    through = create_run(tmp_path / "through", config, shapes)
    train(through, shapes)
    run = create_run(tmp_path / "run", config, shapes)
    code = f"""
import sys, torch
from pathlib import Path
from wildcat.data.readers.voc import read_voc
from wildcat.progress import Progress
from wildcat.train.loop import train
from wildcat.models.run import open_run

class Announce(Progress):
    def advance(self, count=1, note=""):
        print("step", flush=True)

torch.set_num_threads({torch.get_num_threads()})
outcome = train(open_run(Path({str(run.folder)!r})), read_voc(Path({str(shapes.root)!r})), progress=Announce())
sys.exit(0 if outcome.finished else 7)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "step\n"
        os.killpg(process.pid, stop)
        os.killpg(process.pid, stop)
        steps = 1 + len(process.stdout.readlines())
        errors = process.stderr.read()
        assert process.wait(timeout=300) == 7, errors
    assert "Traceback" not in errors
    position = load_state(run.folder / STATE)["position"]
    assert position["epoch"] * STEPS + position["step"] == steps < 2 * STEPS
    train(run, shapes, resume=True)
    assert_same(run, through)
