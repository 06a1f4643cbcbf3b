"""Training learns from tags, keeps the best epoch, stops with a sentence, and leaves the caller's things alone."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score
from torch import Tensor, nn

import wildcat.train.loop
from wildcat.config import TrainConfig, Tune
from wildcat.data.dataset import DataSet, Sample, label_counts, label_matrix
from wildcat.data.images import read_image
from wildcat.data.readers.synthetic import write_shapes
from wildcat.data.readers.voc import read_voc
from wildcat.device import choose_device
from wildcat.errors import ConfigError, ImageError, RunError, TrainingError
from wildcat.models.manifest import MANIFEST
from wildcat.models.run import STATE, WEIGHTS, Run, create_run, load_state, save_weights
from wildcat.nn.factory import create_model, model_from_config
from wildcat.nn.model import Wildcat
from wildcat.progress import SILENT, Progress, interruptible
from wildcat.train.batches import Batch, ImageBatches
from wildcat.train.checkpoint import Checkpoint
from wildcat.train.loop import Trainer, train
from wildcat.train.optim import class_frequencies, validation_metric
from wildcat.train.stages import Stage

SMALL = TrainConfig(
    backbone="test_resnet", weights="none", image_size=64, num_maps=2, epochs=3, batch_size=8, lr=0.02, workers=0
)


class Recorder(Progress):
    """Keeps what it hears, and the weights of every epoch."""

    def __init__(self, run: Run) -> None:
        self.run, self.records, self.weights, self.heard = run, [], [], []  # type: ignore[var-annotated]

    def start(self, task: str, total: int | None, done: int = 0) -> None:
        self.heard.append([task, total, done])

    def advance(self, count: int = 1, note: str = "") -> None:
        self.heard[-1][2] += count

    def epoch(self, record: dict[str, Any], network: Any = None) -> None:
        self.records.append(record)
        self.weights.append(load_state(self.run.folder / STATE)["model"])


def same_weights(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- learning -------------------------------------------------------------------------------------------------------


def test_a_head_on_imagenet_features_learns_shapes(tmp_path: Path) -> None:
    """Never told where anything is. Ranking at random would give each class's share of the images as its AP."""
    data = read_voc(write_shapes(tmp_path / "shapes", train=100, val=50, size=(64, 80)))
    config = TrainConfig(tune="head", image_size=96, epochs=15, flip="none", workers=0)
    run = create_run(tmp_path / "run", config, data)
    outcome = train(run, data)
    history = run.history()
    chance = float(np.mean((label_matrix(data.split("val")) == 1).mean(axis=0)))
    assert outcome.finished
    assert outcome.metric is not None
    assert outcome.metric == max(line["val"]["map"] for line in history) > chance + 0.2
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]


def test_the_first_loss_is_that_of_the_prior(tmp_path: Path, shapes: DataSet) -> None:
    """An uninformed network scores each class at its frequency, so that its loss is the entropy of the classes."""
    run = create_run(tmp_path / "run", replace(SMALL, epochs=1, lr=1e-12, crop_scale=1.0), shapes)
    train(run, shapes)
    p = class_frequencies(*torch.from_numpy(label_counts(shapes.split("train")))).double().numpy()
    labels = label_matrix(shapes.split("train"))
    expected = -(np.log(p) * (labels == 1) + np.log(1 - p) * (labels == -1)).sum() / len(labels)
    assert run.history()[0]["loss"] == pytest.approx(expected, rel=0.05)


def test_fine_tuning_lowers_the_loss(tmp_path: Path, shapes: DataSet) -> None:
    config = replace(SMALL, epochs=6, lr=0.02, crop_scale=1.0, flip="none")
    run = create_run(tmp_path / "run", config, shapes)
    recorder = Recorder(run)
    outcome = train(run, shapes, progress=recorder)
    losses = [line["loss"] for line in run.history()]
    assert outcome.epochs_done == 6
    assert losses[-1] < 0.9 * losses[0]
    assert recorder.heard == [["training", 6 * 22, 6 * 22]]
    assert recorder.records == run.history()


def test_a_seed_fixes_the_result(tmp_path: Path, shapes: DataSet, weights: str) -> None:
    """With the cache of features cold and warm as well: reading images draws no random number."""
    config = replace(SMALL, tune="head", weights=weights, epochs=1)
    results = []
    for name, seed in [("cold", 0), ("warm", 0), ("other", 1)]:
        torch.manual_seed(len(results))  # whatever the caller drew before
        run = create_run(tmp_path / name, replace(config, seed=seed), shapes)
        train(run, shapes)
        results.append(load_state(run.folder / STATE)["model"])
    assert same_weights(results[0], results[1])
    assert not same_weights(results[0], results[2])


def test_only_the_head_of_a_frozen_backbone_moves(tmp_path: Path, shapes: DataSet, weights: str) -> None:
    run = create_run(tmp_path / "run", replace(SMALL, tune="head", weights=weights, epochs=2), shapes)
    recorder = Recorder(run)
    train(run, shapes, progress=recorder)
    fresh = create_model("test_resnet", 5, 2, pretrained=weights).state_dict()
    for name, value in run.load_model().state_dict().items():
        assert torch.equal(value, fresh[name]) == name.startswith("backbone."), name
    assert recorder.heard == [["features", 2 * 22 + 10, 2 * 22 + 10], ["training", 2 * 22, 2 * 22]]


# --- the best epoch ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("metrics", "best"), [([0.2, 0.9, 0.5], 1), ([0.9, 0.2, 0.3], 0), ([0.1, 0.2, 0.3], 2)])
def test_val_chooses_the_epoch(
    tmp_path: Path, shapes: DataSet, monkeypatch: pytest.MonkeyPatch, metrics: list[float], best: int
) -> None:
    values = iter(metrics)
    monkeypatch.setattr(wildcat.train.loop, "validation_metric", lambda *_: next(values))
    run = create_run(tmp_path / "run", SMALL, shapes)
    recorder = Recorder(run)
    outcome = train(run, shapes, progress=recorder)
    assert (outcome.best_epoch, outcome.metric, outcome.metric_name) == (best, metrics[best], "map")
    kept = run.load_model().state_dict()
    assert [same_weights(kept, w) for w in recorder.weights] == [i == best for i in range(3)]
    so_far = [metric == max(metrics[: i + 1]) for i, metric in enumerate(metrics)]
    assert [line["best"] for line in run.history()] == so_far


def test_equal_metrics_are_decided_by_the_loss(
    tmp_path: Path, shapes: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wildcat.train.loop, "validation_metric", lambda *_: 1.0)
    run = create_run(tmp_path / "run", SMALL, shapes)
    best = train(run, shapes).best_epoch
    assert best == int(np.argmin([line["val"]["loss"] for line in run.history()]))


def test_the_kept_weights_give_the_metric_that_was_written(tmp_path: Path, shapes: DataSet) -> None:
    run = create_run(tmp_path / "run", SMALL, shapes)
    outcome = train(run, shapes)
    model, val = run.load_model(), shapes.split("val")
    with torch.no_grad():
        scores = model(torch.stack([run.preprocess(read_image(s.path)) for s in val]))
    labels = torch.from_numpy(label_matrix(val))
    written = run.history()[outcome.best_epoch]["val"]
    assert validation_metric(scores, labels, multiclass=False) == pytest.approx(written["map"], abs=1e-6)
    known = labels != 0
    loss = nn.functional.binary_cross_entropy_with_logits(scores[known], (labels[known] > 0).float(), reduction="sum")
    assert loss.item() / len(labels) == pytest.approx(written["loss"], rel=1e-4)


def test_without_val_the_last_epoch_is_kept(tmp_path: Path, shapes: DataSet) -> None:
    run = create_run(tmp_path / "run", replace(SMALL, val_split="none", epochs=2), shapes)
    recorder = Recorder(run)
    outcome = train(run, shapes, progress=recorder)
    assert (outcome.best_epoch, outcome.metric) == (1, None)
    assert all("val" not in line for line in run.history())
    assert [same_weights(run.load_model().state_dict(), w) for w in recorder.weights] == [False, True]


def test_data_without_val_holds_a_tenth_out(tmp_path: Path, shapes: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, set[str]] = {}
    create = wildcat.train.loop.create_batches

    def spy(config: TrainConfig, model: Wildcat, samples: Any, val_samples: Any, *rest: Any) -> Any:
        seen.update(train={s.name for s in samples}, val={s.name for s in val_samples})
        return create(config, model, samples, val_samples, *rest)

    monkeypatch.setattr(wildcat.train.loop, "create_batches", spy)
    data = replace(shapes, readers={"train": shapes.readers["train"]}, _cache={})
    run = create_run(tmp_path / "run", replace(SMALL, epochs=1), data)
    train(run, data)
    everything = {s.name for s in shapes.split("train")}
    assert seen["train"] | seen["val"] == everything
    assert not seen["train"] & seen["val"]
    assert 1 <= len(seen["val"]) <= 5
    assert "val" in run.history()[0]


def test_val_is_never_train(tmp_path: Path, shapes: DataSet) -> None:
    run = create_run(tmp_path / "run", SMALL, shapes)
    with pytest.raises(ConfigError, match="both 'train': training images would choose the best epoch"):
        train(replace(run, config=replace(SMALL, val_split="train")), shapes)


def test_classes_that_exclude_each_other_are_measured_by_accuracy(tmp_path: Path, shapes: DataSet) -> None:
    rng = np.random.default_rng(0)

    def first_class_only(sample: Sample) -> Sample:
        labels = np.full(5, -1, np.int8)
        labels[rng.integers(5)] = 1
        return replace(sample, labels=labels)

    splits = {name: [first_class_only(s) for s in shapes.split(name)] for name in ("train", "val")}
    data = replace(shapes, task="multiclass", readers={k: (lambda v=v: v) for k, v in splits.items()}, _cache={})
    run = create_run(tmp_path / "run", replace(SMALL, balance=True, epochs=2), data)
    outcome = train(run, data)
    with torch.no_grad():
        scores = run.load_model()(torch.stack([run.preprocess(read_image(s.path)) for s in splits["val"]]))
    truth = label_matrix(splits["val"]).argmax(axis=1)
    assert outcome.metric_name == "accuracy"
    assert outcome.metric == pytest.approx(accuracy_score(truth, scores.argmax(dim=1)))


# --- accumulation -----------------------------------------------------------------------------------------------------


def step_once(run: Run, data: DataSet, groups: list[slice], multiclass: bool) -> dict[str, Tensor]:
    """The weights after one step of plain SGD on the group of batches that `groups` cut out of eight images."""
    torch.manual_seed(0)
    model = create_model("test_vit", 5, 2, pretrained=False, image_size=64)  # no batch normalisation
    samples = data.split("train")[:8]
    labels = torch.from_numpy(label_matrix(samples)).clone()
    labels[0, :3] = labels[1, 1] = labels[6, 4] = 0
    if multiclass:
        labels = (2 * torch.eye(5, dtype=torch.int8) - 1)[torch.tensor([0, 1, 1, 1, 4, 4, 3, 2])]
    batches = ImageBatches(run.config, samples, (), run.preprocess, torch.device("cpu"))
    counts = torch.stack([(labels > 0).sum(dim=0), (labels < 0).sum(dim=0)])
    stage, checkpoint = Stage(run.config, 0, run.config.epochs), Checkpoint(run, model, "")
    trainer = Trainer(stage, multiclass, model, batches, counts, SILENT, checkpoint)
    trainer.set_learning_rate()
    images = torch.stack([run.preprocess(read_image(s.path)) for s in samples])
    loss, count = trainer.take_step([Batch(images[part], labels[part], len(labels[part])) for part in groups])
    assert count == 8
    return {**model.state_dict(), "loss": loss}


@pytest.mark.parametrize("multiclass", [False, True])
@pytest.mark.parametrize("balance", [False, True])
def test_accumulated_gradients_are_those_of_one_large_batch(
    tmp_path: Path, shapes: DataSet, multiclass: bool, balance: bool
) -> None:
    """With ignored labels and class weights too, which weigh batches differently."""
    config = replace(SMALL, backbone="test_vit", balance=balance, warmup=0.0, lr=1.0, backbone_lr_scale=1.0)
    run = create_run(tmp_path / "run", config, shapes)
    whole = step_once(run, shapes, [slice(0, 8)], multiclass)
    parts = step_once(run, shapes, [slice(0, 2), slice(2, 7), slice(7, 8)], multiclass)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-5, msg=name)


# --- failures ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def explode(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, float], None]:
    """Make the given step (from 1) leave the transfer layer with this value for all its weights."""

    def at(step: int, value: float) -> None:
        steps, take_step = iter(range(1, 100)), Trainer.take_step

        def exploding(self: Trainer, group: Any) -> tuple[Tensor, int]:
            done = take_step(self, group)
            if next(steps) == step:
                with torch.no_grad():
                    self.model.transfer.weight.fill_(value)
            return done

        monkeypatch.setattr(Trainer, "take_step", exploding)

    return at


def test_a_loss_that_is_not_finite_stops_with_the_best_weights_intact(
    tmp_path: Path, shapes: DataSet, explode: Callable[[int, float], None]
) -> None:
    explode(4, float("nan"))  # three steps an epoch: the fifth step, the second of epoch 2, sees it
    run = create_run(tmp_path / "run", replace(SMALL, lr=0.02, warmup=0.0, schedule="constant"), shapes)
    recorder = Recorder(run)
    with pytest.raises(TrainingError) as caught:
        train(run, shapes, progress=recorder)
    assert caught.value.message == "the loss is nan at epoch 2, step 2, learning rate 0.02 (--tune all)."
    assert "Try --lr 0.002" in caught.value.hint
    assert same_weights(run.load_model().state_dict(), recorder.weights[0])
    assert len(run.history()) == 1


def test_losses_may_be_read_a_step_later(
    tmp_path: Path, shapes: DataSet, explode: Callable[[int, float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: the same history and weights, and a loss that diverges is named with its own step."""
    config = replace(SMALL, val_split="none", save_minutes=1e-9)
    expected = create_run(tmp_path / "expected", config, shapes)
    train(expected, shapes)
    monkeypatch.setattr(Trainer, "delay", property(lambda self: 1, lambda self, value: None), raising=False)
    run = create_run(tmp_path / "run", config, shapes)
    train(run, shapes)
    assert same_weights(run.load_model().state_dict(), expected.load_model().state_dict())
    assert [line["loss"] for line in run.history()] == [line["loss"] for line in expected.history()]
    explode(4, float("nan"))
    with pytest.raises(TrainingError, match="the loss is nan at epoch 2, step 2, "):
        train(create_run(tmp_path / "diverging", config, shapes), shapes)


def test_epochs_that_follow_fast_are_saved_together(
    tmp_path: Path, shapes: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the end, and not before; the weights are those of the best epoch all the same."""
    expected = create_run(tmp_path / "expected", SMALL, shapes)
    train(expected, shapes)
    saved: list[int] = []
    save = Checkpoint.save
    monkeypatch.setattr(wildcat.train.loop, "SAVE_SECONDS", 1e6)
    monkeypatch.setattr(Checkpoint, "save", lambda self: (saved.append(self.position.epoch), save(self)))
    run = create_run(tmp_path / "run", SMALL, shapes)
    train(run, shapes)
    assert saved == [SMALL.epochs]
    assert same_weights(run.load_model().state_dict(), expected.load_model().state_dict())
    assert [line["best"] for line in run.history()] == [line["best"] for line in expected.history()]


def test_a_failure_between_two_saves_leaves_the_best_weights_and_the_history(
    tmp_path: Path, shapes: DataSet, explode: Callable[[int, float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wildcat.train.loop, "SAVE_SECONDS", 1e6)
    explode(4, float("nan"))
    run = create_run(tmp_path / "run", replace(SMALL, lr=0.02), shapes)
    with pytest.raises(TrainingError, match="at epoch 2, step 2"):
        train(run, shapes)
    assert len(run.history()) == 1 and not (run.folder / STATE).exists()
    assert run.load_model() is not None, "those of the first epoch"


@pytest.mark.parametrize("val_split", ["val", "none"])
def test_weights_that_break_in_the_last_step_of_an_epoch_are_not_kept(
    tmp_path: Path, shapes: DataSet, explode: Callable[[int, float], None], val_split: str
) -> None:
    explode(6, float("inf"))
    run = create_run(tmp_path / "run", replace(SMALL, val_split=val_split), shapes)
    with pytest.raises(TrainingError, match=r"the weights are not finite at epoch 2, step 3, learning rate"):
        train(run, shapes)
    assert all(v.isfinite().all() for n, v in run.load_model().state_dict().items() if not n.endswith("transfer.std"))
    assert len(run.history()) == 1


def test_scores_that_overflow_on_val_stop_it_too(
    tmp_path: Path, shapes: DataSet, explode: Callable[[int, float], None]
) -> None:
    explode(6, 3e38)  # finite itself; its products are not
    run = create_run(tmp_path / "run", SMALL, shapes)
    with pytest.raises(TrainingError, match=r"the scores on val are not finite at epoch 2"):
        train(run, shapes)
    assert len(run.history()) == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_named(tmp_path: Path, shapes: DataSet, workers: int) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    samples = [*shapes.split("train")[:7], replace(shapes.split("train")[7], path=broken)]
    data = replace(shapes, readers={"train": lambda: samples, "val": shapes.readers["val"]}, _cache={})
    run = create_run(tmp_path / "run", replace(SMALL, workers=workers), data)
    with pytest.raises(ImageError, match=r"broken.jpg is not an image"):
        train(run, data)


def test_devices() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda", "mps")
    for name in ("gpu", "cuda:99", ""):
        with pytest.raises(ConfigError, match=f"device={name}: this machine has no such device"):
            choose_device(name)


# --- what belongs to the caller -------------------------------------------------------------------------------------


def test_the_callers_things_are_left_as_found(tmp_path: Path, shapes: DataSet) -> None:
    run = create_run(tmp_path / "run", replace(SMALL, epochs=1), shapes)
    torch.manual_seed(11)
    np.random.seed(11)  # noqa: NPY002  # the legacy generator is the caller's
    random.seed(11)

    def things() -> list[Any]:
        return [
            torch.get_rng_state().tolist(),
            str(np.random.get_state()),  # noqa: NPY002
            random.getstate(),
            Path.cwd(),
            torch.get_num_threads(),
            torch.is_grad_enabled(),
            signal.getsignal(signal.SIGINT),
            signal.getsignal(signal.SIGTERM),
            os.environ.copy(),
        ]

    before = things()
    train(run, shapes)
    assert things() == before


def test_a_second_signal_interrupts_at_once() -> None:
    former = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interruptible() as event:
        signal.raise_signal(signal.SIGTERM)
        assert event.is_set()
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is former


def test_training_in_a_thread_needs_no_signals(tmp_path: Path, shapes: DataSet) -> None:
    run = create_run(tmp_path / "run", replace(SMALL, epochs=1), shapes)
    outcomes: list[Any] = []
    thread = threading.Thread(target=lambda: outcomes.append(train(run, shapes)))
    thread.start()
    thread.join()
    assert outcomes[0].finished
    assert (run.folder / WEIGHTS).is_file()


def test_a_state_of_other_data_is_refused(tmp_path: Path, shapes: DataSet) -> None:
    run = create_run(tmp_path / "run", replace(SMALL, epochs=1), shapes)
    train(run, shapes)
    fewer = shapes.split("train")[:-1]
    other = replace(shapes, readers={"train": lambda: fewer, "val": shapes.readers["val"]}, _cache={})
    with pytest.raises(RunError, match="the images or labels are not those"):
        train(run, other, resume=True)


def test_data_of_another_task_is_refused(tmp_path: Path, shapes: DataSet) -> None:
    run = create_run(tmp_path / "run", SMALL, shapes)
    with pytest.raises(RunError, match="shapes is multiclass, "):
        train(run, replace(shapes, task="multiclass"))


@pytest.mark.parametrize("tune", ["all", "head"])
def test_training_goes_on_from_the_network_of_another_run(tmp_path: Path, shapes: DataSet, tune: Tune) -> None:
    first = create_run(tmp_path / "first", SMALL, shapes)
    train(first, shapes)
    still = replace(SMALL, weights=str(first.folder), tune=tune, epochs=1, lr=1e-12, val_split="none")
    second = create_run(tmp_path / "second", still, shapes)
    train(second, shapes)
    learned, kept = first.load_model(), second.load_model()
    for name, parameter in learned.named_parameters():
        torch.testing.assert_close(kept.get_parameter(name), parameter, msg=name)
    torch.testing.assert_close(kept.transfer.std, learned.transfer.std)

    other = json.loads((first.folder / MANIFEST).read_text())
    other["classes"] = [*other["classes"][:-1], "another"]
    (first.folder / MANIFEST).write_text(json.dumps(other))
    with pytest.raises(RunError, match=r"first was trained on other classes"):
        train(create_run(tmp_path / "third", still, shapes), shapes)


def test_weights_of_another_size_or_head_name_the_settings(tmp_path: Path, shapes: DataSet) -> None:
    """A transformer has a position for each patch."""
    config = replace(SMALL, backbone="test_vit", image_size=160, epochs=1)
    first = create_run(tmp_path / "first", config, shapes)
    save_weights(model_from_config(config, len(shapes.classes)), first.folder / WEIGHTS)
    for change, theirs in (({"image_size": 96}, "image_size=160"), ({"num_maps": 3}, "num_maps=2")):
        other = replace(config, weights=str(first.folder), **change)
        with pytest.raises(
            ConfigError, match=f"first has {theirs}; its weights do not fit .*\nGive {theirs}"
        ) as caught:
            train(create_run(tmp_path / theirs, other, shapes), shapes)
        assert f"{next(iter(change))}={next(iter(change.values()))}." in caught.value.message
    (first.folder / WEIGHTS).write_bytes(b"")
    with pytest.raises(RunError, match="damaged or half-written"):
        train(create_run(tmp_path / "damaged", other, shapes), shapes)


# --- a background that is in every image ----------------------------------------------------------------------------


@pytest.mark.parametrize("tune", ["all", "head"])
def test_a_background_is_learned_along(tmp_path: Path, shapes: DataSet, weights: str, tune: Tune) -> None:
    settings = replace(
        SMALL, background=True, epochs=4, tune=tune, weights=weights, lr=0.01, balance=True, clip_norm=1.0
    )
    run = create_run(tmp_path / "run", settings, shapes)
    assert train(run, shapes).finished
    history = run.history()
    assert history[-1]["loss"] < history[0]["loss"]
    assert all(0 <= line["val"]["map"] <= 1 for line in history)
    assert run.load_model()(torch.zeros(2, 3, 64, 64)).shape == (2, 5)


def test_the_background_is_in_every_image(tmp_path: Path, shapes: DataSet, weights: str) -> None:
    """The loss that is written is that of the classes and of one more whose label is always on."""
    still = replace(
        SMALL, background=True, epochs=1, tune="head", weights=weights, lr=1e-12, flip="none", batch_size=22
    )
    run = create_run(tmp_path / "run", still, shapes)
    train(run, shapes)
    model, samples = run.load_model(), shapes.split("train")
    images = torch.stack([run.preprocess(read_image(s.path)) for s in samples])
    with torch.no_grad():
        scores = model.training_output(model.features(images)).scores
    labels = torch.cat([torch.from_numpy(label_matrix(samples)), torch.ones(22, 1, dtype=torch.int8)], dim=1)
    known, signs = labels != 0, labels.float()
    expected = (nn.functional.softplus(-signs * scores) * known).sum() / len(labels)
    assert run.history()[0]["loss"] == pytest.approx(float(expected), rel=2e-3)  # features are kept in half precision


def test_a_background_is_for_independent_classes(tmp_path: Path, shapes: DataSet) -> None:
    data = replace(shapes, task="multiclass", _cache={})
    with pytest.raises(ConfigError, match="background=True is for independent classes; those of shapes exclude"):
        create_run(tmp_path / "run", replace(SMALL, background=True), data)
    with pytest.raises(ConfigError, match="background=True goes with architecture=a"):
        create_run(tmp_path / "run", replace(SMALL, background=True, architecture="b"), shapes)
    assert not (tmp_path / "run").exists()
