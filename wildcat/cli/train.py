"""wildcat train: labelled images in, a run folder out."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import OmitArgPrefixes, Positional, UseAppendAction, arg

from wildcat.cli.options import (
    DataCommand,
    Switch,
    check_readable,
    describe,
    describe_classes,
    flag,
    note_amp,
    open_data,
    reader_options,
    resume_hint,
)
from wildcat.config import TrainConfig
from wildcat.errors import RunError
from wildcat.methods import METHODS

if TYPE_CHECKING:
    from wildcat.data import DataSet, Sample
    from wildcat.models.run import Run


@dataclass(frozen=True, kw_only=True)
class Train(DataCommand):
    """Train a model on images with image-level labels."""

    data: Positional[Annotated[str, arg(metavar="DATA")]]
    """A folder, a .csv, or the name of a packaged data set (solar, shapes)."""
    out: Path
    """Run folder to create; it is never overwritten."""
    recipe: Annotated[str | None, arg(metavar="NAME")] = None
    """Settings to start from: a packaged recipe or a .yaml file; flags override them."""
    method: Annotated[
        str | None,
        arg(
            metavar="NAME",
            help=f"Published method to take, over that of the recipe; flags override it: {', '.join(METHODS)}.",
        ),
    ] = None
    log: Annotated[tuple[str, ...], UseAppendAction, arg(metavar="csv|tensorboard|mlflow|wandb")] = ()
    """Also log every epoch there, with heatmaps of a few images (except csv); may be repeated. csv writes metrics.csv
    into --out."""
    log_images: int = 4
    """Number of images, the first ones of --val-split, whose heatmaps are logged."""
    resume: Switch = False
    """Resume the run in --out with its own settings; start it if there is none."""
    config: OmitArgPrefixes[TrainConfig] = field(default_factory=TrainConfig)


def run_train(command: Train) -> int:
    """wildcat train; the processes of torchrun share every batch, and the first one prints."""
    from wildcat.nn.backbones import check_backbone_name
    from wildcat.train.distributed import process_group
    from wildcat.train.loggers import check_logs

    check_logs(command.log, command.log_images)
    check_backbone_name(command.config.backbone)
    with process_group():
        return train_command(with_local_weights(command))


def with_local_weights(command: Train) -> Train:
    """The command with the folder of a model of the hub, if --weights names one."""
    from wildcat.models.hub import is_hub, model_folder
    from wildcat.train.distributed import broadcast_from_first

    weights = command.config.weights
    if not is_hub(weights):
        return command
    folder = broadcast_from_first(lambda: model_folder(weights))
    return dataclasses.replace(command, config=dataclasses.replace(command.config, weights=str(folder)))


def train_command(command: Train) -> int:
    """The command in one process."""
    from wildcat.device import choose_device
    from wildcat.models.run import check_resumable, create_run, discard_unused
    from wildcat.progress import ProgressBar, stop_code
    from wildcat.train.distributed import broadcast_from_first, launch_name, rank, shared_errors, world_size
    from wildcat.train.loggers import logging_to
    from wildcat.train.loop import train

    config, source = command.config, command.data
    run = broadcast_from_first(lambda: run_to_resume(command))
    if run is not None:
        command = as_recorded(command, run)
    with shared_errors():
        data = open_data(command, command.data)
        samples, val_samples = data.training_split(config.train_split, config.val_split)
        data = with_label_notes(data, config, samples, val_samples)
        device = choose_device(config.device)
    check_readable([s.path for s in (*samples, *val_samples)], config.intensity_range)
    if run is not None and broadcast_from_first(lambda: discard_unused(command.out)):
        run = None  # it saved nothing: start it again, with other settings if they are given
    resume, settings = run is not None, config
    if run is not None:
        check_resumable(run, config, source, data.classes, data.task)
        settings, run = run.config, dataclasses.replace(run, config=config)
    else:
        run = broadcast_from_first(
            lambda: create_run(command.out, config, data, source, reader_options(command), launch_name())
        )
    data = data.for_classes(run.classes)  # the order of the labels of images whose heatmaps are logged
    samples, val_samples = data.training_split(config.train_split, config.val_split)
    processes = f", {world_size()} processes" if world_size() > 1 else ""
    images = f"{len(samples)} images to train on, {len(val_samples)} to choose the best epoch"
    describe(data, images, f"{device.type}{processes}")
    describe_classes(data, {config.train_split: samples, config.val_split: val_samples})
    note_amp(config.amp, device)
    print(f"{'Continuing' if resume else 'Writing'} {command.out}", flush=True)
    note_device(device.type, config.device == "auto" and config.tune == "all" and not resume)
    hint = partial(resume_text, command, settings)
    try:
        with (
            resume_hint(hint),
            ProgressBar() as bar,
            logging_to(command.log, run, (val_samples or samples)[: command.log_images], bar) as progress,
        ):
            outcome = train(run, data, resume=resume, progress=progress)
    except BaseException:  # before the first save: the same --out can be used again
        if rank() == 0:
            with contextlib.suppress(OSError, RunError):  # the error in hand is the one to report
                discard_unused(command.out)
        raise
    if not outcome.finished:
        print(f"Stopped after {outcome.epochs_done} epochs; everything is saved. {hint()}", file=sys.stderr)
        return stop_code()
    if outcome.metric is not None:
        print(f"Best epoch {outcome.best_epoch + 1}: {outcome.metric_name} {outcome.metric:.4f} on {config.val_split}")
    evaluating = shlex.join(["wildcat", "evaluate", str(command.out), source])
    predicting = shlex.join(["wildcat", "predict", str(command.out), "IMAGE", "--out", "DIR"])
    print(f"Next: {evaluating}   or   {predicting}")
    return 0


def note_device(device_type: str, may_tune_head: bool) -> None:
    """Advise against what takes long without a GPU: all layers, and several processes on the cores of one machine."""
    from wildcat.train.distributed import local_size, rank, world_size

    if device_type != "cpu" or rank() != 0:
        return
    if may_tune_head:
        print("No GPU: --tune head or last is much faster, on features computed once.", file=sys.stderr)
    if world_size() == local_size() > 1:
        print(
            f"{world_size()} processes on one machine without a GPU are slower than one: start it without torchrun.",
            file=sys.stderr,
        )


def as_recorded(command: Train, run: Run) -> Train:
    """The command with the format and reader options that a run was started with, unless it gives others."""
    from wildcat.models.manifest import recorded_data

    recorded = recorded_data(run.folder)
    options = command.data_option if reader_options(command) else recorded.options
    return dataclasses.replace(command, data_option=options, format=command.format or recorded.format)


def with_label_notes(
    data: DataSet, config: TrainConfig, samples: Sequence[Sample], val_samples: Sequence[Sample]
) -> DataSet:
    """The data with notes on classes that it cannot teach; refused if it can teach none."""
    from wildcat.data.dataset import check_learnable, describe_labels

    notes = check_learnable(data, config.train_split, samples)
    notes += describe_labels(data, config.val_split, val_samples) if val_samples else []
    return dataclasses.replace(data, notes=(*data.notes, *notes))


def run_to_resume(command: Train) -> Run | None:
    """The run in --out if --resume is given, or if this launch of torchrun created it and has restarted its processes.

    Raises:
        RunError: --out exists and --resume is not given, or the run is damaged.
    """
    from wildcat.models.manifest import MANIFEST
    from wildcat.models.run import open_run, refuse_taken, tidy_run
    from wildcat.train.distributed import launch_name

    if command.resume:
        tidy_run(command.out)
    if (command.out / MANIFEST).is_file():
        run = open_run(command.out)
        if command.resume or (launch_name() and run.manifest.get("launch") == launch_name()):
            return run
    refuse_taken(command.out)
    return None


def resume_text(command: Train, recorded: TrainConfig) -> str:
    """How to continue the run with its settings, as many processes, and the device and workers of `command`.

    Args:
        recorded: the settings in the run folder.
    """
    from wildcat.models.manifest import MANIFEST
    from wildcat.models.run import RESUMABLE, is_unused, resume_words
    from wildcat.train.distributed import local_size, world_size

    if not (command.out / MANIFEST).is_file():
        return f"{command.out} no longer exists: start the training again."
    if is_unused(command.out):
        return f"Nothing was saved yet: start the training again; {command.out} is free."
    if world_size() > local_size():  # how machines find each other is not known here
        return "Resume by the same torchrun commands with --resume."
    words = resume_words(command.out, command.data)
    for name in RESUMABLE:
        if (value := getattr(command.config, name)) != getattr(recorded, name):
            words += [flag(name), str(value)]
    if world_size() > 1:
        words = ["torchrun", "--nproc-per-node", str(world_size()), "-m", *words]
    return f"Resume with:\n  {shlex.join(words)}"
