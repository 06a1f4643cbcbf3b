"""Training: from images and their image-level labels to a network that also localizes.

Nothing here is about localization. The labels say which classes an image holds, never where; the pooling of
`wildcat.nn.pooling` sends the gradient to the regions that decided, which is enough for the maps to find the objects.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from timm.utils import ModelEmaV3  # type: ignore[attr-defined]  # timm does not list what it exports
from torch import Tensor, nn

from wildcat.config import TrainConfig
from wildcat.data.dataset import PRESENT, DataSet, label_counts
from wildcat.data.loader import batch_indices
from wildcat.device import bf16_is_native, choose_device
from wildcat.errors import ConfigError, DataError, RunError, TrainingError
from wildcat.models.run import STATE, Run, locked
from wildcat.nn.factory import model_from_config
from wildcat.nn.model import Wildcat
from wildcat.progress import SILENT, Progress, interruptible
from wildcat.train import distributed
from wildcat.train.batches import Batch, Batches, create_batches, parallel_network, set_training_mode
from wildcat.train.checkpoint import Checkpoint, fingerprint
from wildcat.train.map_seeds import start_at_clusters
from wildcat.train.optim import (
    balancing_weights,
    class_frequencies,
    create_optimizer,
    learning_rate_factor,
    map_information,
    metric_name,
    multiclass_loss,
    multilabel_loss,
    validation_metric,
    with_background,
)
from wildcat.train.stages import Stage, load_parent, parent_run, stages

SAVE_SECONDS = 5.0  # epochs shorter than this are saved together: a head on cached features takes a moment per epoch


@dataclass(frozen=True)
class Outcome:
    """How training ended. `metric` is the value of `metric_name` on val at `best_epoch`, None without val."""

    finished: bool
    epochs_done: int
    best_epoch: int
    metric_name: str
    metric: float | None


def train(run: Run, data: DataSet, resume: bool = False, progress: Progress = SILENT) -> Outcome:
    """Train the run's network, or resume its training, and leave the best weights in the run folder.

    The best epoch is the one with the highest val mAP (multi-label, all-point AP) or accuracy (multi-class), the lower
    val loss if these are equal, the last epoch without val. Ctrl-C (and SIGTERM) end training after the current step,
    with everything saved; before the first step, while features are computed, they interrupt at once. On the CPU a
    resumed run ends with the same bits as an uninterrupted one.

    Inside `wildcat.train.distributed.process_group` each process of `torchrun` takes its share of every batch, and the
    first one writes the run folder. A run may be resumed with another number of processes.

    Raises:
        TrainingError: the loss or the weights are not finite.
        ImageError: an image cannot be read.
        RunError: the state to resume from is damaged, or belongs to other images or labels; another process trains in
            the run folder.
        DataError: the processes read different images.
        ConfigError: more processes than images in a batch, or than GPUs.
    """
    config = run.config
    device = choose_device(config.device)
    distributed.check_device(device)
    if config.batch_size < distributed.world_size():
        raise ConfigError(
            f"batch_size={config.batch_size} and {distributed.world_size()} processes: each needs an image per batch.",
            f"Give batch_size={distributed.world_size()} or more, or start fewer processes.",
        )
    if set(data.classes) != set(run.classes):
        raise RunError(f"{data.name} has other classes than {run.folder}.", "Give the data the run was created with.")
    data = data.for_classes(run.classes)  # they may be in another order
    samples, val_samples = data.training_split(config.train_split, config.val_split)
    data_fingerprint = fingerprint(samples, val_samples)
    if len(set(distributed.gather((data.task, data_fingerprint)))) > 1:
        raise DataError("the processes read different images or labels.", "Give every machine the same data.")
    if data.task != run.task:
        raise RunError(f"{data.name} is {data.task}, {run.folder} is {run.task}.", "Give the data as it was read.")
    multiclass = data.task == "multiclass"
    # A state holds everything: the weights that the training started from may be gone.
    resume = distributed.broadcast_from_first(lambda: resume and (run.folder / STATE).is_file())
    with torch.random.fork_rng(), contextlib.ExitStack() as stack:
        torch.manual_seed(config.seed)
        with distributed.shared_errors():
            if distributed.rank() == 0:
                stack.enter_context(locked(run.folder))
            parent = None if resume else parent_run(run)
            model = model_from_config(config, len(run.classes), weights="none" if parent or resume else None)
            if parent is not None:
                load_parent(model, parent, config)
        model = model.to(device).to(memory_format=torch.channels_last)
        counts = torch.from_numpy(label_counts(samples))
        checkpoint = Checkpoint(run, model, data_fingerprint)
        if resume:
            checkpoint.restore()
        from_scratch = parent is None and not resume
        plan = stages(config, run.has_parent)
        total = plan[-1].stop_epoch * len(samples)
        for stage in plan:
            if checkpoint.position.epoch >= stage.stop_epoch:
                continue
            batches = create_batches(stage.config, model, samples, val_samples, run.preprocess, progress)
            if from_scratch and stage.first_epoch == 0:
                fit_to_data(model, batches, config, class_frequencies(*counts), multiclass)
            trainer = Trainer(stage, multiclass, model, batches, counts, progress, checkpoint)
            progress.start("training", total, trainer.images_done())
            with interruptible() as interrupted:
                stage_finished = trainer.run_epochs(interrupted)
                if not stage_finished or any(distributed.any_process(interrupted.is_set())):
                    break
    position = checkpoint.position
    metric = None if position.best_epoch < 0 or not position.best_key else position.best_key[0]
    finished = position.epoch >= plan[-1].stop_epoch
    return Outcome(finished, position.epoch, position.best_epoch, metric_name(multiclass), metric)


def fit_to_data(model: Wildcat, batches: Batches, config: TrainConfig, frequencies: Tensor, multiclass: bool) -> None:
    """Give the layers after the backbone, and its batch normalisation, the values from which training starts."""
    with distributed.shared_errors():
        batches.estimate_batchnorm(model)
        if config.standardize:
            model.standardize(*batches.channel_statistics(model))
        model.fit(partial(batches.labelled_features, model), config.seed)
        model.initialise(frequencies, multiclass)
        if config.class_pool != "mean" and config.num_maps > 1:
            start_at_clusters(model, partial(batches.labelled_features, model), config.seed)


class Trainer:
    """The training loop of one stage."""

    def __init__(
        self,
        stage: Stage,
        multiclass: bool,
        model: Wildcat,
        batches: Batches,
        counts: Tensor,  # (2, C), see `label_counts`
        progress: Progress,
        checkpoint: Checkpoint,
    ) -> None:
        self.config, self.first_epoch, self.stop_epoch = stage
        self.num_classes, self.multiclass = model.num_classes, multiclass
        self.model, self.batches, self.progress, self.checkpoint = model, batches, progress, checkpoint
        self.device = next(model.parameters()).device
        self.optimizer = create_optimizer(model, self.config)
        self.trained_parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        fine_tunes = self.config.tune != "head"
        self.network = parallel_network(model, batches, self.config)  # in DDP where there are several processes
        self.autocast = self.config.amp and fine_tunes and bf16_is_native(self.device)  # a head alone gains nothing
        self.ema: ModelEmaV3 | None = None
        if self.config.ema and fine_tunes:
            # buffers are copied, not averaged: Transfer.std is inf for constant channels
            self.ema = ModelEmaV3(model, self.config.ema, use_warmup=True, exclude_buffers=True)
        self.pending: deque[tuple[Tensor, int]] = deque()  # losses of steps that are not read yet
        self.delay = int(self.device.type == "cuda")  # a GPU computes the next step while a loss is read
        self.loss_function = multiclass_loss if multiclass else multilabel_loss
        self.class_weights: Tensor | None = None
        if self.config.balance:
            weights = balancing_weights(counts[0], counts[1], multiclass)
            if self.config.background:
                weights = torch.cat([weights, weights.new_ones(1)])
            self.class_weights = weights.to(self.device)
        num_batches = len(batch_indices(range(batches.images), self.config.batch_size))
        self.steps_per_epoch = math.ceil(num_batches / self.config.accumulate)
        average = None if self.ema is None else self.ema.module
        checkpoint.start_stage(self.optimizer, average, self.first_epoch, self.config.seed)

    def run_epochs(self, interrupted: threading.Event) -> bool:
        """Train to the last epoch of the stage; False if interrupted."""
        position = self.checkpoint.position
        try:
            while position.epoch < self.stop_epoch:
                if not self.train_epoch(interrupted):
                    return False
                self.end_epoch()  # measures on val, keeps the best weights, and moves on to the next epoch
        except BaseException:
            with contextlib.suppress(RunError):  # the error in hand is the one to report
                self.checkpoint.write_best()
            raise
        return True

    @property
    def step(self) -> int:
        """Optimiser steps done in this stage."""
        position = self.checkpoint.position
        return (position.epoch - self.first_epoch) * self.steps_per_epoch + position.step

    def images_done(self) -> int:
        """Images trained on in all stages."""
        position = self.checkpoint.position
        in_epoch = position.step * self.config.accumulate * self.config.batch_size
        return position.epoch * self.batches.images + min(in_epoch, self.batches.images)

    def train_epoch(self, interrupted: threading.Event) -> bool:
        """Take the remaining steps of an epoch; False, with everything saved, if interrupted between two of them."""
        config, position = self.config, self.checkpoint.position
        set_training_mode(self.model, config)
        batches = self.batches.epoch(position.epoch, position.step * config.accumulate)
        while position.step < self.steps_per_epoch:
            save_due = distributed.rank() == 0 and self.seconds_since_save() >= 60 * config.save_minutes
            stop, save_due = distributed.any_process(interrupted.is_set(), save_due)
            if stop or save_due:
                self.read_losses()
                self.checkpoint.save()
            if stop:
                return False
            started = time.perf_counter()
            lr = self.set_learning_rate()
            with distributed.shared_errors():
                step_batches = list(itertools.islice(batches, config.accumulate))
            loss, images = self.take_step(step_batches)
            position.step += 1
            self.pending.append((loss, images))
            self.read_losses(self.delay)
            position.seconds += time.perf_counter() - started
            mean_loss = position.loss_sum / max(1, position.loss_count)
            note = f"epoch {position.epoch + 1}/{self.stop_epoch} loss {mean_loss:.4f} lr {lr:.2g}"
            self.progress.advance(images, note)
        self.read_losses()
        return True

    def read_losses(self, delay: int = 0) -> None:
        """Add the pending losses, but for the newest `delay`, to the epoch's mean; reading waits for the device."""
        position = self.checkpoint.position
        while len(self.pending) > delay:
            loss, images = self.pending.popleft()
            value = distributed.sum_over_processes(float(loss))
            if not np.isfinite(value):
                raise self.not_finite(f"the loss is {value}")
            position.loss_sum += value * images
            position.loss_count += images

    def take_step(self, step_batches: list[Batch]) -> tuple[Tensor, int]:
        """One optimiser step on one or several batches (gradient accumulation).

        Each process computes the gradient of its share; the shares of all processes and batches add up to the gradient
        of one large batch.

        Returns:
            This process's share of the mean loss, and the number of images of all processes.
        """
        images = sum(batch.size for batch in step_batches)
        self.optimizer.zero_grad(set_to_none=True)
        step_loss = torch.zeros((), device=self.device)
        for number, (inputs, labels, _) in enumerate(step_batches, start=1):
            targets = with_background(labels) if self.config.background else labels
            with distributed.accumulating(self.network, more=number < len(step_batches)):
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
                    # the whole model on images, or its last layers on cached features: see Batches.output
                    output = self.network(inputs.to(self.device, non_blocking=True))
                losses = self.loss_function(output.scores.float(), targets.to(self.device), self.class_weights)
                loss = losses.sum() / images
                if self.config.map_information:
                    information = map_information(output.maps.float(), output.class_maps.float())
                    present = labels.to(self.device) == PRESENT
                    loss = loss - self.config.map_information * (information * present).sum() / images
                # data parallelism averages the gradients over the processes; the sum is wanted
                (loss * distributed.world_size()).backward()  # type: ignore[no-untyped-call]  # untyped in torch
            step_loss += loss.detach()
        if self.config.clip_norm and self.config.tune != "head":
            nn.utils.clip_grad_norm_(self.trained_parameters, self.config.clip_norm)
        self.optimizer.step()
        self.model.shrink(self.optimizer.param_groups[0]["lr"])  # of the transfer layer
        if self.ema is not None:
            self.ema.update(self.model, self.step + 1)
        return step_loss, images

    def set_learning_rate(self) -> float:
        """Set the learning rate of every parameter group for the next step; returns that of the head."""
        factor = learning_rate_factor(self.step, self.steps_per_epoch, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        return self.config.peak_lr * factor

    def end_epoch(self) -> None:
        """Measure on val, keep the weights if they are the best so far, and save unless that was done a moment ago."""
        position = self.checkpoint.position
        if not all(bool(p.isfinite().all()) for p in self.model.parameters() if p.requires_grad):
            raise self.not_finite("the weights are not finite")
        record: dict[str, Any] = {
            "epoch": position.epoch + 1,
            "tune": self.config.tune,
            "loss": position.loss_sum / max(1, position.loss_count),
            "lr": self.optimizer.param_groups[0]["lr"],
            "seconds": round(position.seconds, 3),
            "images_per_second": round(position.loss_count / max(position.seconds, 1e-9), 2),
        }
        key: list[float] = []  # compared between epochs
        with self.averaged_weights():
            if len(self.batches.val_labels):
                val = self.validate()
                record["val"] = val
                key = [val[metric_name(self.multiclass)], -val["loss"]]
            record = self.checkpoint.end_epoch(record, key)
        (due,) = distributed.any_process(distributed.rank() == 0 and self.seconds_since_save() >= SAVE_SECONDS)
        if due or position.epoch >= self.stop_epoch:
            self.checkpoint.save()
        self.progress.epoch(record, self.model)

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """The network has the moving average of its weights, if there is one, until the block ends."""
        if self.ema is None:
            yield
            return
        own = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.ema.module.state_dict())
        try:
            yield
        finally:
            self.model.load_state_dict(own)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Loss and metric on val; each process scores its share."""
        self.model.eval()
        distributed.broadcast_buffers(self.model)
        scores = [torch.zeros(0, self.num_classes)]
        with distributed.shared_errors():
            for inputs in self.batches.val():
                output = self.batches.output(self.model, inputs.to(self.device))
                scores.append(output.scores[:, : self.num_classes].float().cpu())  # without the background's column
        labels = self.batches.val_labels
        all_scores = distributed.gather_rows(torch.cat(scores), len(labels))
        if not bool(all_scores.isfinite().all()):
            raise self.not_finite("the scores on val are not finite")
        weights = None if self.class_weights is None else self.class_weights[: self.num_classes].cpu()
        loss = float(self.loss_function(all_scores, labels, weights).mean())
        return {"loss": loss, metric_name(self.multiclass): validation_metric(all_scores, labels, self.multiclass)}

    def seconds_since_save(self) -> float:
        return time.monotonic() - self.checkpoint.saved

    def not_finite(self, what: str) -> TrainingError:
        """The error of a training that diverged."""
        position = self.checkpoint.position
        step = position.step - len(self.pending)
        lr = self.optimizer.param_groups[0]["lr"]
        remedy = f"Try --lr {self.config.peak_lr / 10:g}"
        if self.config.tune != "head":
            remedy += f", --backbone-lr-scale {self.config.backbone_lr_scale / 10:g}"
        remedy += " or a longer --warmup"
        remedy += ", or leave --amp out" if self.autocast else ""
        history, folder = self.checkpoint.history, self.checkpoint.run.folder
        if history and history[position.best_epoch]["tune"] == self.config.tune:
            remedy += f", with another --out: {folder} has the weights of the best epoch so far"
        elif history:
            remedy += (
                f", with --weights {folder} and another --out: {folder} has the head of stage one, usable as it is"
            )
        return TrainingError(
            f"{what} at epoch {position.epoch + 1}, step {step}, learning rate {lr:g} (--tune {self.config.tune}).",
            f"{remedy}.",
        )
