"""wildcat train: tagged pictures in, a run folder out."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from wildcat.cli.options import DataCommand, check_readable, describe, gone_on_with, open_data
from wildcat.config import METHODS, TrainConfig
from wildcat.errors import ConfigError, MissingExtra, RunError


@dataclass(frozen=True, kw_only=True)
class Train(DataCommand):
    """Train a model on tagged pictures."""

    data: Positional[Annotated[str, arg(metavar="DATA")]]
    """A folder, a .csv, or the name of a packaged data set (solar, shapes)."""
    out: Path
    """Run folder to make; it is never overwritten."""
    recipe: str | None = None
    """Settings to start from: a packaged recipe or a .yaml file; flags override them."""
    method: Annotated[
        str | None,
        arg(
            metavar="NAME",
            help=f"Published head to take, over that of the recipe; flags override it: {', '.join(METHODS)}.",
        ),
    ] = None
    resume: bool = False
    """Continue the run in --out with its own settings; begin it if there is none."""
    config: OmitArgPrefixes[TrainConfig] = field(default_factory=TrainConfig)


def run_train(command: Train) -> int:
    """wildcat train"""
    from wildcat.nn.backbones import check_backbone_name
    from wildcat.progress import TerminalListener
    from wildcat.train.loop import choose_device, train
    from wildcat.train.runs import (
        MANIFEST,
        check_resumable,
        create_run,
        discard_unused,
        open_run,
        refuse_taken,
        tidy_run,
    )

    config = command.config
    check_backbone_name(config.backbone)
    source = command.data
    if command.resume:
        tidy_run(command.out)
    run = open_run(command.out) if command.resume and (command.out / MANIFEST).is_file() else None
    if run is not None:
        begun = run.manifest["data"]
        options = command.data_option or tuple(begun.get("options", ()))
        command = dataclasses.replace(command, data_option=options, format=command.format or begun.get("format"))
    else:
        refuse_taken(command.out)
    data = open_data(command, command.data)
    samples, val_samples = data.training_split(config.train_split, config.val_split)
    check_readable([s.path for s in (*samples, *val_samples)])
    device = choose_device(config.device)
    resume = run is not None
    if run is not None:
        check_resumable(run, config, source, data.classes)
    else:
        run = create_run(command.out, config, data, source, command.data_option)
    describe(data, f"{len(samples)} pictures to train on, {len(val_samples)} to choose the best epoch", device.type)
    print(f"{'Continuing' if resume else 'Writing'} {command.out}", flush=True)
    if config.device == "auto" and device.type == "cpu" and config.tune == "all" and not resume:
        print("No GPU: --tune head trains in a fraction of the time, on features computed once.", file=sys.stderr)
    go_on = f"Go on with:\n  {shlex.join(['wildcat', 'train', source, '--out', str(command.out), '--resume'])}"

    def go_on_later() -> str:
        return go_on if (command.out / MANIFEST).is_file() else f"{command.out} is not there any more: begin it again."

    try:
        with gone_on_with(go_on_later), TerminalListener() as listener:
            outcome = train(run, data, resume=resume, listener=listener)
    except KeyboardInterrupt:  # before the first step, or a second Ctrl-C
        print(f"Interrupted; what was saved is intact. {go_on}", file=sys.stderr)
        return 1
    except (ConfigError, MissingExtra, RunError):  # the settings cannot work: let the same --out be given again
        if not resume:
            discard_unused(run)
        raise
    if not outcome.finished:
        print(f"Stopped after {outcome.epochs_done} epochs; everything is saved. {go_on}", file=sys.stderr)
        return 1
    if outcome.metric is not None:
        print(f"Best epoch {outcome.best_epoch + 1}: {outcome.metric_name} {outcome.metric:.4f} on {config.val_split}")
    evaluating = shlex.join(["wildcat", "evaluate", str(command.out), source])
    predicting = shlex.join(["wildcat", "predict", str(command.out), "PICTURE", "--out", "DIR"])
    print(f"Next: {evaluating}   or   {predicting}")
    return 0
