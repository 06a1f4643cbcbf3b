"""Processes that train together learn what one learns, go on after each other, and stop together."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from signal import SIGKILL, SIGTERM
from subprocess import PIPE
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import wildcat.progress
import wildcat.train.batches
import wildcat.train.checkpoint
import wildcat.train.loop
from tests.train.processes import free_port, run_processes
from tests.train.test_resume import with_dropout
from wildcat.cli import main
from wildcat.config import TrainConfig
from wildcat.data import open_dataset, write_webdataset
from wildcat.data.dataset import DataSet, Sample
from wildcat.data.image_ref import ImageRef, decode_image
from wildcat.data.images import Decoded, read_image
from wildcat.data.readers.voc import read_voc
from wildcat.errors import ConfigError, DataError, ImageError, RunError, TrainingError
from wildcat.models.run import STATE, Run, create_run, load_state, open_run
from wildcat.nn.factory import model_from_config
from wildcat.progress import SILENT, Progress
from wildcat.train.distributed import rank
from wildcat.train.loop import Outcome, train
from wildcat.train.optim import validation_metric

SMALL = TrainConfig(
    backbone="test_resnet",
    weights="none",
    image_size=64,
    num_maps=2,
    epochs=1,
    batch_size=5,  # of 22 images the last batch has 2: of four processes two have none of them
    lr=0.05,
    backbone_lr_scale=0.3,
    balance=True,
    workers=0,
    device="cpu",
)


def difficult(sample: Sample, index: int) -> Sample:
    """Some labels are ignored: two in the first images, none in the last, so that shares weigh differently."""
    labels = sample.labels.copy()
    labels[[0, 3] if index % 3 == 0 else []] = 0
    return replace(sample, labels=labels)


def one_class(sample: Sample, index: int) -> Sample:
    labels = np.full(5, -1, np.int8)
    labels[(0, 1, 1, 1, 2, 2, 3, 4)[index % 8]] = 1
    return replace(sample, labels=labels)


def changed(data: DataSet, task: str) -> DataSet:
    change = one_class if task == "multiclass" else difficult
    made = {name: [change(s, i) for i, s in enumerate(data.split(name))] for name in ("train", "val")}
    return replace(data, task=task, readers={k: (lambda v=v: v) for k, v in made.items()}, _cache={})  # type: ignore[arg-type]


def train_in(folder: Path, root: Path, task: str, progress: Progress | None = None, resume: bool = False) -> Outcome:
    """One process of a training in a run folder that is there."""
    torch.set_num_threads(1)
    return train(open_run(folder), changed(read_voc(root), task), resume, progress or SILENT)


def trained(
    size: int, run: Run, data: DataSet, task: str = "multilabel", progress: Progress | None = None, resume: bool = False
) -> list[Any]:
    """What the processes of a training end with."""
    results = run.folder.with_name(f"{run.folder.name}-{size}-{resume}")
    return run_processes(size, results, train_in, run.folder, data.root, task, progress, resume)


def new_run(folder: Path, config: TrainConfig, data: DataSet, task: str = "multilabel") -> Run:
    return create_run(folder, config, changed(data, task))


def state_of(run: Run) -> dict[str, Tensor]:
    """The last weights and averages, and the momentum."""
    state = load_state(run.folder / STATE)
    momentum = {f"momentum {i}": entry["momentum_buffer"] for i, entry in state["optimizer"]["state"].items()}
    return {**state["model"], **momentum}


def history_of(run: Run) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if "second" not in k} for line in run.history()]


def assert_close(one: Run, other: Run) -> None:
    """The same numbers, up to the order in which they are added up."""
    mine, theirs = state_of(one), state_of(other)
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        torch.testing.assert_close(
            theirs[name], value, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )
    for line, other_line in zip(history_of(one), history_of(other), strict=True):
        assert other_line["loss"] == pytest.approx(line["loss"], rel=1e-4)
        assert other_line["val"] == pytest.approx(line["val"], rel=1e-3)
        assert other_line["best"] == line["best"]


def assert_same(one: Run, other: Run) -> None:
    """The same bits."""
    mine, theirs = state_of(one), state_of(other)
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []
    assert history_of(one) == history_of(other)


# --- the same result --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "task", "sizes"),
    [
        pytest.param({"backbone": "test_vit", "accumulate": 2}, "multilabel", (2, 4), id="accumulated"),
        pytest.param({"backbone": "test_vit", "background": True}, "multilabel", (3,), id="background"),
        pytest.param({"backbone": "test_convnext"}, "multiclass", (4,), id="unused layers"),
        pytest.param({"tune": "head", "accumulate": 2, "lr": 1.0, "epochs": 2}, "multilabel", (2, 4), id="head"),
    ],
)
def test_any_number_of_processes_learns_the_same(
    tmp_path: Path, shapes: DataSet, weights: str, settings: dict[str, Any], task: str, sizes: tuple[int, ...]
) -> None:
    """With ignored labels, class weights, uneven shares, and shares of nothing in the last batch."""
    config = replace(SMALL, weights=weights if settings.get("tune") == "head" else "none", **settings)
    alone = new_run(tmp_path / "alone", config, shapes, task)
    outcome = train_in(alone.folder, shapes.root, task)
    moved = state_of(alone)["transfer.weight"] - start_of(config)["transfer.weight"]
    assert moved.abs().max() > 0.01, "the comparison could not fail if nothing was learned"
    for size in sizes:
        run = new_run(tmp_path / f"run{size}", config, shapes, task)
        assert trained(size, run, shapes, task) == [nearly(outcome)] * size
        assert_close(run, alone)


def nearly(outcome: Outcome) -> Outcome:
    return replace(outcome, metric=pytest.approx(outcome.metric, rel=1e-3))


def start_of(config: TrainConfig) -> dict[str, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        return model_from_config(config, 5).state_dict()


def test_on_a_cpu_each_process_normalises_its_share(tmp_path: Path, shapes: DataSet) -> None:
    """The result differs from that of one process; the first process's averages are both measured and saved."""
    alone = new_run(tmp_path / "alone", SMALL, shapes)
    train_in(alone.folder, shapes.root, "multilabel")
    run = new_run(tmp_path / "run", alone.config, shapes)
    (outcome, other) = trained(2, run, shapes)
    assert outcome == other
    name = "backbone.network.bn1.running_var"
    assert not torch.allclose(state_of(run)[name], state_of(alone)[name], rtol=1e-4)
    val = changed(shapes, "multilabel").split("val")
    with torch.no_grad():
        scores = run.load_model()(torch.stack([run.preprocess(read_image(s.path)) for s in val]))
    labels = torch.from_numpy(np.stack([s.labels for s in val]))
    assert validation_metric(scores, labels, multiclass=False) == pytest.approx(outcome.metric, abs=1e-5)


def images_read(folder: Path, source: Path) -> Counter[str]:
    """What a process reads in a training, and how often."""
    read: Counter[str] = Counter()

    def counted(image: Path | ImageRef, *options: Any) -> Decoded:
        read[str(image)] += 1
        return decode_image(image, *options)

    wildcat.data.loader.decode_image = counted  # this process is the test's own
    train(open_run(folder), open_dataset(source))
    return read


def test_every_image_of_an_epoch_is_read_once_from_shards_too(tmp_path: Path, shapes: DataSet) -> None:
    write_webdataset(shapes, tmp_path / "shards", images=7)
    data = open_dataset(tmp_path / "shards")
    config = replace(SMALL, backbone="test_vit", epochs=2, standardize=False, val_split="none")
    run = create_run(tmp_path / "run", config, data)
    counts = run_processes(3, tmp_path / "processes", images_read, run.folder, tmp_path / "shards")
    assert [sum(count.values()) for count in counts] == [18, 18, 8], "of batches of 5, 5, 5, 5 and 2, twice"
    assert sum(counts, Counter()) == {str(s.path): 2 for s in data.split("train")}


# --- stopping and going on --------------------------------------------------------------------------------------------


@dataclass
class Strike(Progress):
    """A signal to one process, after so many of its steps."""

    signal: int
    step: int
    rank: int = 1
    training: bool = False

    def start(self, task: str, total: int | None, done: int = 0) -> None:
        self.training = task == "training"

    def advance(self, count: int = 1, note: str = "") -> None:
        self.step -= self.training
        if self.step == 0 and rank() == self.rank:
            os.kill(os.getpid(), self.signal)


def train_with_dropout(*arguments: Any) -> Outcome:
    wildcat.train.loop.model_from_config = with_dropout  # this process is the test's own
    return train_in(*arguments)


def test_the_same_number_of_processes_goes_on_with_the_same_bits(tmp_path: Path, shapes: DataSet) -> None:
    """Each draws its own random numbers, and draws on where it stopped."""
    through, run = (new_run(tmp_path / name, SMALL, shapes) for name in ("through", "run"))
    root = shapes.root
    run_processes(2, tmp_path / "0", train_with_dropout, through.folder, root, "multilabel")
    stopped = run_processes(2, tmp_path / "1", train_with_dropout, run.folder, root, "multilabel", Strike(SIGTERM, 2))
    assert [outcome.finished for outcome in stopped] == [False, False]
    state = load_state(run.folder / STATE)
    assert state["position"]["step"] == 2
    assert not torch.equal(state["generators"]["cpu"], state["other_generators"][0]["cpu"])
    run_processes(2, tmp_path / "2", train_with_dropout, run.folder, root, "multilabel", None, True)
    assert_same(run, through)


def test_another_number_of_processes_goes_on_with_the_same_numbers(
    tmp_path: Path, shapes: DataSet, weights: str
) -> None:
    config = replace(SMALL, tune="head", weights=weights, lr=1.0, epochs=2)
    alone, run = (new_run(tmp_path / name, config, shapes) for name in ("alone", "run"))
    train_in(alone.folder, shapes.root, "multilabel")
    trained(2, run, shapes, progress=Strike(SIGTERM, 2, rank=0))
    assert not train_in(run.folder, shapes.root, "multilabel", Strike(SIGTERM, 4, rank=0), resume=True).finished
    assert [outcome.finished for outcome in trained(3, run, shapes, progress=None, resume=True)] == [True] * 3
    assert_close(run, alone)


def test_features_are_computed_in_shares_and_none_twice(
    tmp_path: Path, shapes: DataSet, weights: str, cache: Path
) -> None:
    run = new_run(tmp_path / "run", replace(SMALL, tune="head", weights=weights), shapes)
    trained(3, run, shapes)
    records: dict[Path, list[int]] = {}
    seen: dict[Path, list[str]] = {}
    for path in sorted(cache.rglob("*.json")):
        keys = json.loads(path.read_text())["images"]
        records.setdefault(path.parent, []).append(len(keys))
        seen.setdefault(path.parent, []).extend(keys)
    assert sorted(map(sorted, records.values())) == [[3, 3, 4], [7, 7, 8]], (
        "10 plain ones of val; 22, each with its mirror image"
    )
    assert all(len(keys) == len(set(keys)) for keys in seen.values())


# --- failing together -------------------------------------------------------------------------------------------------


def train_on_a_full_disk(*arguments: Any) -> Outcome:
    def full(*_: object) -> None:
        raise RunError("the disk is full.")

    wildcat.train.checkpoint.save_state = full
    return train_in(*arguments)


def train_on_other_data(folder: Path, root: Path, task: str) -> Outcome:
    return train_in(folder, root, task if rank() == 0 else "multiclass")


def train_with_a_broken_image(folder: Path, root: Path, task: str) -> Outcome:
    data = changed(read_voc(root), task)
    samples = list(data.split("train"))
    samples[3] = replace(samples[3], path=root / "README")  # read by one of them, whichever
    return train(open_run(folder), replace(data, readers={**data.readers, "train": lambda: samples}, _cache={}))


@pytest.mark.parametrize(
    ("work", "settings", "kind", "says"),
    [
        (train_with_a_broken_image, {}, ImageError, "README does not exist"),
        (train_with_a_broken_image, {"tune": "head"}, ImageError, "README cannot be read"),
        (train_on_a_full_disk, {}, RunError, "the disk is full"),
        (train_on_other_data, {}, DataError, "the processes read different images or labels"),
        (train_in, {"lr": 1e38}, TrainingError, "the loss is nan at epoch 1, step 2"),
        (train_in, {"batch_size": 2}, ConfigError, "batch_size=2 and 3 processes: each needs an image"),
    ],
)
def test_all_processes_end_with_one_sentence(
    tmp_path: Path,
    shapes: DataSet,
    weights: str,
    work: Callable[..., Any],
    settings: dict[str, Any],
    kind: type[Exception],
    says: str,
) -> None:
    config = replace(SMALL, weights=weights if "tune" in settings else "none", **settings)
    run = new_run(tmp_path / "run", config, shapes)
    errors = run_processes(3, tmp_path / "processes", work, run.folder, shapes.root, "multilabel")
    assert [type(error) for error in errors] == [kind] * 3, errors
    assert {str(error) for error in errors} == {str(errors[0])}
    assert says in errors[0].message


def test_who_is_left_alone_says_so(tmp_path: Path, shapes: DataSet) -> None:
    run = new_run(tmp_path / "run", SMALL, shapes)
    left, killed = trained(2, run, shapes, progress=Strike(SIGKILL, 2))
    assert killed == -SIGKILL
    assert isinstance(left, TrainingError), left
    assert left.message == "another process has died, and this one cannot continue without it."


# --- the command line -------------------------------------------------------------------------------------------------


def spoken(arguments: list[str], launch: str, strike: Strike | None) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command in this process."""
    os.environ["TORCHELASTIC_RUN_ID"] = launch
    if strike is not None:
        wildcat.progress.ProgressBar = lambda: contextlib.nullcontext(strike)  # type: ignore[assignment, misc]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    return code, out.getvalue(), err.getvalue()


def test_one_process_speaks_and_a_restart_goes_on(tmp_path: Path, shapes: DataSet) -> None:
    """Which is told from another start by torchrun, that must ask for it."""
    flags = "--backbone test_resnet --weights none --image-size 64 --batch-size 5 --epochs 1 --workers 0 --device cpu"
    command = ["train", str(shapes.root), "--out", str(tmp_path / "run"), *flags.split(), "--save-minutes", "1e-9"]
    left, killed = run_processes(2, tmp_path / "0", spoken, command, "one", Strike(SIGKILL, 3), joined=False)
    assert killed == -SIGKILL
    assert left[0] == 1
    assert left[1].startswith("shapes (voc, multilabel): 5 classes, 22 images to train on, 10 to choose the best")
    assert "device cpu, 2 processes\n" in left[1] and "\nWriting" in left[1]
    assert left[2].count("wildcat: another process has died") == 1
    assert load_state(tmp_path / "run" / STATE)["position"]["step"] == 2, "saved before the third step"

    refused, silent = run_processes(2, tmp_path / "1", spoken, command, "two", None, joined=False)
    assert (refused[0], silent) == (1, (1, "", ""))
    assert f"{tmp_path}/run exists and is never overwritten." in refused[2]

    speaks, silent = run_processes(2, tmp_path / "2", spoken, command, "one", None, joined=False)
    assert (speaks[0], silent) == (0, (0, "", ""))
    assert "\nContinuing " in speaks[1]
    assert speaks[1].count("Best epoch") == 1


STRUCK = """
import os
from signal import SIGKILL

from wildcat.cli import main
from wildcat.train.loop import Trainer

take_step = Trainer.take_step


def struck(self, group):
    first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if first and os.environ["RANK"] == "1" and self.checkpoint.position.step == 3:
        os.kill(os.getpid(), SIGKILL)
    return take_step(self, group)


Trainer.take_step = struck
raise SystemExit(main())
"""
"""The command wildcat, one process of which is killed at its fourth step, once."""


@pytest.mark.parametrize("machines", [1, 2])
def test_torchrun_starts_again_what_was_killed_and_no_bit_changes(
    tmp_path: Path, shapes: DataSet, machines: int
) -> None:
    if machines > 1 and "WILDCAT_SOAK_KILLS" not in os.environ:
        pytest.skip("a minute of starting and meeting again; part of make soak")
    flags = "--backbone test_resnet --weights none --image-size 64 --batch-size 5 --epochs 1 --workers 0 --device cpu"
    through, run = tmp_path / "through", tmp_path / "run"
    command = ["train", str(shapes.root), *flags.split(), "--save-minutes", "1e-9", "--out"]
    run_processes(2, tmp_path / "0", spoken, [*command, str(through)], "", None, joined=False)

    (tmp_path / "struck.py").write_text(STRUCK)
    meeting = ["--standalone", "--nproc-per-node", "2"]
    if machines > 1:  # this machine twice
        place = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{free_port()}", "--rdzv-id", "job"]
        meeting = ["--nnodes", "2", "--nproc-per-node", "1", *place]
    start = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        *meeting,
        "--max-restarts",
        "1",
        str(tmp_path / "struck.py"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    environment |= {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"} if machines > 1 else {}
    started = [
        subprocess.Popen([*start, *command, str(run)], stdout=PIPE, stderr=PIPE, text=True, env=environment)
        for _ in range(machines)
    ]
    said = [process.communicate(timeout=200) for process in started]
    assert [process.returncode for process in started] == [0] * machines, said
    out, err = ("".join(texts) for texts in zip(*said, strict=True))
    assert out.count(f"Writing {run}") == out.count(f"Continuing {run}") == 1
    assert "Traceback" not in err
    assert_same(open_run(run), open_run(through))
