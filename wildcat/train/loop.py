"""Training: images and their tags in, a network that also knows where things are out.

Nothing here is about localization. The network is told which classes an image holds, never where; the pooling of
`wildcat.nn.pooling` sends the gradient to the regions that decided, and that is enough for the maps to find the things.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wildcat.data.dataset import PRESENT, DataSet, Sample, label_matrix
from wildcat.data.loader import suggested_workers
from wildcat.device import choose_device
from wildcat.errors import ConfigError, DataError, RunError, TrainingError
from wildcat.metrics import mean_average_precision, multiclass_accuracy
from wildcat.models.run import (
    METRICS,
    STATE,
    WEIGHTS,
    Run,
    adopt_state,
    copied_weights,
    load_state,
    load_weights,
    open_run,
    save_state,
    write_history,
    write_weights,
)
from wildcat.nn.model import Wildcat, model_from_config
from wildcat.progress import Progress, interruptible
from wildcat.train.batches import Feed, create_feed
from wildcat.train.batchnorm import synchronise_norms
from wildcat.train.distributed import (
    accumulating,
    anyone,
    check_device,
    from_first,
    gather,
    in_parallel,
    join_rows,
    local_size,
    rank,
    share_buffers,
    together,
    total,
    world_size,
)
from wildcat.train.feature_cache import feature_workers
from wildcat.train.optim import (
    adopt_optimizer_state,
    balancing_weights,
    class_frequencies,
    create_optimizer,
    learning_rate_factor,
    loss_mass,
    multiclass_loss,
    multilabel_loss,
)

SAVE_SECONDS = 5.0
"""Ends of epochs that follow each other faster are saved together: a head on cached features takes a moment each."""


@dataclass
class Position:
    """Where training stands. All of it is saved, so that a resumed run takes the very steps it would have taken."""

    epoch: int = 0
    step: int = 0  # optimiser steps done in this epoch
    loss_sum: float = 0.0
    loss_count: int = 0
    seconds: float = 0.0
    best_epoch: int = -1
    best_key: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    """How training ended. `metric` is the value of `metric_name` on val at `best_epoch`, None without val."""

    finished: bool
    epochs_done: int
    best_epoch: int
    metric_name: str
    metric: float | None


def train(run: Run, data: DataSet, resume: bool = False, progress: Progress | None = None) -> Outcome:
    """Train the run's network, or go on with it, and leave the best weights in the run folder.

    The best epoch is the one with the highest val mAP (multi-label, all-point AP) or accuracy (multi-class), the lower
    val loss where these are equal, the last epoch where there is no val. Ctrl-C (and SIGTERM) end training after the
    step in hand, with everything saved; before the first step, while features are computed, they interrupt at once.
    On the CPU a resumed run ends with the same bits as an uninterrupted one.

    Inside `wildcat.train.distributed.process_group` the processes that `torchrun` started learn together what one would
    learn: each takes its share of every batch, and the first one writes the run folder. Any other number of processes
    may go on with a run. Errors are raised, and interruptions heard, in all of them.

    Raises:
        TrainingError: the loss or the weights are not finite.
        ImageError: an image cannot be read.
        RunError: the state to go on from is damaged, or belongs to other images or labels.
        DataError: the processes do not see the same images.
        ConfigError: more processes than images in a batch, or than GPUs.
    """
    config, progress = run.config, progress or Progress()
    device = choose_device(config.device)
    check_device(device)
    if config.batch_size < world_size():
        raise ConfigError(
            f"batch_size={config.batch_size} and {world_size()} processes: each needs an image of every batch.",
            f"Give --batch-size {world_size()} or more, or start fewer processes.",
        )
    samples, val_samples = data.training_split(config.train_split, config.val_split)
    data_fingerprint = fingerprint(samples, val_samples)
    if len(set(gather(data_fingerprint))) > 1:
        raise DataError("the processes see different images or labels.", "Give every machine the same data.")
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        with together():
            begun = run_of_weights(run)
            model = model_from_config(config, len(run.classes), weights="none" if begun else None)
            if begun is not None:
                load_weights(model, begun.folder / WEIGHTS)
        model = model.to(device).to(memory_format=torch.channels_last)
        suggested = feature_workers if config.tune == "head" else suggested_workers
        workers = suggested(device.type, local_size()) if config.workers < 0 else config.workers
        feed = create_feed(config, model, samples, val_samples, run.preprocess, workers, progress)
        labels = torch.from_numpy(label_matrix(samples))
        if begun is None:
            with together():
                prepare(model, feed, labels, multiclass=data.task == "multiclass")
        if rank():
            torch.manual_seed((config.seed + rank()) % 2**63)  # processes begin alike and draw dropout apart
        trainer = Trainer(
            run,
            data.task == "multiclass",
            model,
            feed,
            class_frequencies(labels),
            device,
            progress,
            data_fingerprint,
        )
        if resume:
            trainer.restore()
        with interruptible() as interrupted:
            return trainer.run_epochs(interrupted)


def run_of_weights(run: Run) -> Run | None:
    """The run whose weights `run` starts from, where `weights` names one: training goes on from its network as it is.

    Raises:
        RunError: the other run has other classes.
    """
    folder = Path(run.config.weights)
    if not folder.is_dir():
        return None
    begun = open_run(folder)
    if begun.classes != run.classes:
        raise RunError(
            f"{folder} was trained on other classes than the data has.",
            "Start from a run with the same classes, or from imagenet.",
        )
    return begun


def prepare(model: Wildcat, feed: Feed, labels: Tensor, multiclass: bool) -> None:
    """Start from what is known before any step: the spread of the features and the frequency of the classes."""
    statistics = feed.channel_statistics(model)
    if statistics is not None:
        model.standardize.measure(*statistics)
    torch.nn.init.normal_(model.transfer.weight, std=0.01)
    model.start_at_prior(class_frequencies(labels), multiclass)


class Trainer:
    """One network on its way through the epochs."""

    def __init__(
        self,
        run: Run,
        multiclass: bool,
        model: Wildcat,
        feed: Feed,
        frequencies: Tensor,
        device: torch.device,
        progress: Progress,
        data_fingerprint: str,
    ) -> None:
        self.run, self.config, self.multiclass = run, run.config, multiclass
        self.model, self.feed, self.device, self.progress = model, feed, device, progress
        shared_norms = world_size() > 1 and self.config.sync_bn and self.config.tune == "all"
        scorer = Scorer(model, feed, shared_norms and synchronise_norms(model, device))
        self.optimizer = create_optimizer(model, self.config)
        self.autocast = self.config.amp and self.config.tune == "all"  # a head alone gains nothing by it
        self.scorer = in_parallel(scorer, feed.nothing.to(device))
        self.loss = multiclass_loss if multiclass else multilabel_loss
        weights = balancing_weights(frequencies, multiclass) if self.config.balance else None
        if weights is not None and self.config.background:
            weights = torch.cat([weights, weights.new_ones(1)])
        self.class_weights = None if weights is None else weights.to(device)
        # The multi-label loss is a mean over classes: without their number each class would learn the slower the more
        # there are. With it one learning rate fits any number of classes, and cross-entropy as well.
        self.gradient_scale = 1.0 if multiclass else float(len(run.classes) + self.config.background)
        self.steps_per_epoch = feed.steps_per_epoch(self.config.accumulate)
        self.metric_name = "accuracy" if multiclass else "map"
        self.fingerprint = data_fingerprint
        self.position = Position()
        self.rate = 0.0
        self.saved = time.monotonic()
        self.history: list[dict[str, Any]] = []
        self.unwritten: dict[str, Tensor] | None = None  # weights of the best epoch, until the run folder has them

    def run_epochs(self, interrupted: threading.Event) -> Outcome:
        """Train to the last epoch, or until interrupted."""
        config, position = self.config, self.position
        per_epoch = self.feed.images
        done = position.epoch * per_epoch + position.step * config.accumulate * config.batch_size
        self.progress.start("training", config.epochs * per_epoch, min(done, config.epochs * per_epoch))
        try:
            while position.epoch < config.epochs:
                if not self.train_epoch(interrupted):
                    self.save()
                    break
                self.end_epoch()
        except BaseException:
            with contextlib.suppress(RunError):  # what is raised already says more
                self.write_best()
            raise
        metric = None if position.best_epoch < 0 or not position.best_key else position.best_key[0]
        return Outcome(position.epoch >= config.epochs, position.epoch, position.best_epoch, self.metric_name, metric)

    def train_epoch(self, interrupted: threading.Event) -> bool:
        """The steps of an epoch that are left to do; False when interrupted between two of them."""
        config, position = self.config, self.position
        self.model.train()
        self.feed.freeze(self.model)
        batches = self.feed.train_batches(position.epoch, position.step * config.accumulate)
        while position.step < self.steps_per_epoch:
            save_now = rank() == 0 and time.monotonic() - self.saved >= 60 * config.save_minutes
            stop, save_now = anyone(interrupted.is_set(), save_now)
            if stop:
                return False
            if save_now:
                self.save()
            begun = time.perf_counter()
            rate = self.set_learning_rate()
            with together():
                group = [batch for _, batch in zip(range(config.accumulate), batches, strict=False)]
            loss, count = self.take_step(group)
            position.step += 1
            position.loss_sum += loss * count
            position.loss_count += count
            position.seconds += time.perf_counter() - begun
            note = f"epoch {position.epoch + 1}/{config.epochs} loss {position.loss_sum / position.loss_count:.4f}"
            self.progress.advance(count, f"{note} lr {rate:.2g}")
        return True

    def take_step(self, group: list[tuple[Tensor, Tensor]]) -> tuple[float, int]:
        """One step of the optimiser on the mean loss of a group of batches; (mean loss, images).

        Of each batch there are this process's inputs and the labels of all. Processes and batches count by the labels
        that are known in them (`loss_mass`), so that all of them together are one large batch.
        """
        count = sum(len(labels) for _, labels in group)
        if self.config.background:
            group = [(inputs, with_background(labels)) for inputs, labels in group]
        weights = None if self.class_weights is None else self.class_weights.cpu()
        mass = sum(float(loss_mass(labels, self.multiclass, weights)) for _, labels in group)
        self.optimizer.zero_grad(set_to_none=True)
        value = torch.zeros((), device=self.device)
        for left, (inputs, labels) in zip(reversed(range(len(group))), group, strict=True):
            own = labels[rank() :: world_size()]
            with accumulating(self.scorer, more=left > 0):
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
                    scores = self.scorer(inputs.to(self.device, non_blocking=True))
                share = float(loss_mass(own, self.multiclass, weights)) / max(mass, 1e-12)
                loss = self.loss(scores.float(), own.to(self.device), self.class_weights) * share
                value += loss.detach()
                scale = self.gradient_scale * world_size()  # gradients of processes are averaged, wanted is their sum
                (loss * scale).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        mean_loss = total(float(value))
        if not np.isfinite(mean_loss):
            raise self.not_finite(f"the loss is {mean_loss}")
        self.optimizer.step()
        return mean_loss, count

    def not_finite(self, what: str) -> TrainingError:
        """The sentence for a training that has left the numbers; `what` begins it."""
        epoch, step = self.position.epoch + 1, min(self.position.step + 1, self.steps_per_epoch)
        return TrainingError(
            f"{what} at epoch {epoch}, step {step}, learning rate {self.rate:g}.",
            f"Try --lr {self.config.peak_lr / 10:g}, a longer --warmup, or train without --amp; "
            "the weights of the best epoch so far are intact in the run folder.",
        )

    def set_learning_rate(self) -> float:
        """Set the rate of every group for the coming step; what `--lr` has become by now."""
        step = self.position.epoch * self.steps_per_epoch + self.position.step
        factor = learning_rate_factor(step, self.steps_per_epoch, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        self.rate = self.config.peak_lr * factor
        return self.rate

    def end_epoch(self) -> None:
        """Measure on val, keep the weights if they are the best yet, and save unless that was done a moment ago."""
        position = self.position
        if not all(bool(p.isfinite().all()) for p in self.model.parameters() if p.requires_grad):
            raise self.not_finite("the weights are not finite any more")
        record: dict[str, Any] = {
            "epoch": position.epoch + 1,
            "loss": position.loss_sum / max(1, position.loss_count),
            "lr": self.rate,
            "seconds": round(position.seconds, 3),
            "images_per_second": round(position.loss_count / max(position.seconds, 1e-9), 2),
        }
        key: list[float] = []
        if len(self.feed.val_labels):
            val = self.validate()
            record["val"] = val
            key = [val[self.metric_name], -val["loss"]]
        best = not key or key > position.best_key
        if best:
            position.best_key, position.best_epoch = key, position.epoch
            if rank() == 0:
                self.unwritten = copied_weights(self.model)
        self.history.append(record | {"best": best})
        position.epoch, position.step = position.epoch + 1, 0
        position.loss_sum, position.loss_count, position.seconds = 0.0, 0, 0.0
        (due,) = anyone(rank() == 0 and time.monotonic() - self.saved >= SAVE_SECONDS)
        if due or position.epoch >= self.config.epochs:
            self.save()
        self.progress.epoch(self.history[-1])

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Loss and metric on val, of which each process scores its share."""
        self.model.eval()
        share_buffers(self.model)
        classes = len(self.run.classes)
        scores = [torch.zeros(0, classes)]
        with together():
            for inputs in self.feed.val_batches():
                scores.append(self.feed.scores(self.model, inputs.to(self.device))[:, :classes].float().cpu())
        labels = self.feed.val_labels
        all_scores = join_rows(torch.cat(scores), len(labels))
        if not bool(all_scores.isfinite().all()):
            raise self.not_finite("the scores on val are not finite")
        weights = None if self.class_weights is None else self.class_weights[:classes].cpu()
        loss = float(self.loss(all_scores, labels, weights))
        return {"loss": loss, self.metric_name: validation_metric(all_scores, labels, self.multiclass)}

    def save(self) -> None:
        """Write everything needed to go on from here, with this number of processes or another."""
        generators = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            generators["cuda"] = torch.cuda.get_rng_state(self.device)
        first, *others = gather(generators)
        with together():
            self.write_best()
            if rank() == 0:
                state = {
                    "model": self.model.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "generators": first,
                    "other_generators": others,
                    "position": vars(self.position),
                    "data": self.fingerprint,
                }
                save_state(self.run.folder / STATE, state)
        self.saved = time.monotonic()

    def write_best(self) -> None:
        """Write the weights of the best epoch, and the history, where they are not in the run folder yet."""
        if rank() == 0 and self.history:
            if self.unwritten is not None:
                write_weights(self.unwritten, self.run.folder / WEIGHTS)
                self.unwritten = None
            write_history(self.run.folder / METRICS, self.history)

    def restore(self) -> None:
        """Take up the state the run folder holds; a run that never saved one starts at its beginning.

        Raises:
            RunError: the state is damaged, of another network, or of other images or labels.
        """
        path = self.run.folder / STATE
        state = from_first(lambda: load_state(path) if path.is_file() else None)
        if state is None:
            return
        missing = {"model", "optimizer", "generators", "position", "data"} - state.keys()
        if missing:
            raise RunError(f"{path} is damaged: it has no {', '.join(sorted(missing))}.", "Give another --out.")
        if state["data"] != self.fingerprint:
            raise RunError(
                f"the images or labels are not those {self.run.folder} was begun with.",
                "Bring the data back as it was, or give another --out.",
            )
        try:
            adopt_state(self.model, state["model"], path)
            adopt_optimizer_state(self.optimizer, state["optimizer"])
            generators = [state["generators"], *state.get("other_generators", ())]
            if rank() < len(generators):
                torch.set_rng_state(generators[rank()]["cpu"])
                if self.device.type == "cuda" and "cuda" in generators[rank()]:
                    torch.cuda.set_rng_state(generators[rank()]["cuda"], self.device)
            self.position = read_position(state["position"])
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise RunError(f"{path} is damaged ({type(error).__name__}).", "Give another --out.") from error
        self.history = [line for line in from_first(self.run.history) if line["epoch"] <= self.position.epoch]


class Scorer(nn.Module):
    """What the feed's inputs go through, as one module that processes can train in parallel."""

    def __init__(self, model: Wildcat, feed: Feed, takes_none: bool) -> None:
        super().__init__()
        self.model, self.feed, self.takes_none = model, feed, takes_none

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, ...) inputs -> (B, C) scores; of no inputs zeros stand in, so that there are gradients to exchange.

        Batch normalisation that all processes share would count the zeros: it takes a batch of none instead.
        """
        if len(inputs) or self.takes_none:
            return self.feed.scores(self.model, inputs)
        return self.feed.scores(self.model, inputs.new_zeros(1, *inputs.shape[1:]))[:0]


def read_position(values: dict[str, Any]) -> Position:
    """A position as it was saved.

    Raises:
        TypeError, ValueError: it was not saved by this program.
    """
    position = Position(**values)
    kinds = {name: type(value) for name, value in vars(Position()).items()}
    if {name: type(value) for name, value in values.items()} != kinds or min(position.epoch, position.step) < 0:
        raise ValueError("no position")
    return position


def with_background(labels: Tensor) -> Tensor:
    """(B, C) labels -> (B, C + 1): the background, last, is in every image."""
    return torch.cat([labels, torch.full_like(labels[:, :1], PRESENT)], dim=1)


def fingerprint(samples: Sequence[Sample], val_samples: Sequence[Sample]) -> str:
    """A digest of which images are learned from, in which order, and of their labels; folders may move."""
    digest = hashlib.sha256()
    for part in (samples, val_samples):
        digest.update(f"{len(part)}\0".encode())
        for sample in part:
            digest.update(sample.name.encode() + b"\0" + sample.labels.tobytes())
    return digest.hexdigest()


def validation_metric(scores: Tensor, labels: Tensor, multiclass: bool) -> float:
    """Accuracy of (N, C) scores where classes exclude each other, otherwise mean all-point AP (0 where undefined)."""
    if multiclass:
        return multiclass_accuracy(scores.numpy(), (labels == PRESENT).int().argmax(dim=1).numpy())
    value = mean_average_precision(scores.numpy(), labels.numpy(), "voc10")[0]
    return float(np.nan_to_num(value))
