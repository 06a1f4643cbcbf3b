"""wildcat refine: train a second stage on what a run finds in its training images: a segmenter, or a cascade."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from wildcat.cli.options import Data, DataCommand, describe, note_amp, open_data
from wildcat.fitting.config import RefineConfig


@dataclass(frozen=True, kw_only=True)
class Refine(DataCommand):
    """Train a segmenter on the masks of a run: sharper masks, points and boxes from image-level labels alone.

    With --method pronet-cascade: a second classifier on crops, for scores, points and boxes."""

    run: Positional[Annotated[str, arg(metavar="RUN")]]
    """A run folder, or hf://user/name: not an ensemble, a refined model or a cascade."""
    data: Data
    out: Path
    """New model folder; never overwritten."""
    split: str = "train"
    """Split to train on, by its labels alone; never a split to evaluate on."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    config: OmitArgPrefixes[RefineConfig] = field(default_factory=RefineConfig)


def run_refine(command: Refine) -> int:
    """wildcat refine"""
    from wildcat.device import choose_device
    from wildcat.files import refuse_existing
    from wildcat.fitting.refine import refine
    from wildcat.models.calibration import fitted_samples
    from wildcat.models.hub import model_folder
    from wildcat.models.run import open_run
    from wildcat.progress import ProgressBar

    command.config.validate()
    refuse_existing(command.out)
    run = open_run(model_folder(command.run))
    data = open_data(command, command.data, command.run)
    device = choose_device(command.device)
    describe(data, f"{len(fitted_samples(data, command.split))} images of {command.split} to train on", device.type)
    note_amp(run.config.amp, device)
    try:
        with ProgressBar() as progress:
            model = refine(
                run, data, command.out, command.config, command.split, device=command.device, progress=progress
            )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted; {command.out} is not written. The same command starts again, with the cached features."
        ) from None
    losses = ", ".join(f"{loss:.3f}" for loss in model.manifest["trained"]["losses"])
    segmenter = model.kind == "refined"
    stage, flags = ("a segmenter", ["--crf"]) if segmenter else ("a verifier of crops", [])
    print(f"{command.out}: {stage} on {run.config.backbone}; loss {losses}")
    evaluating = shlex.join(["wildcat", "evaluate", str(command.out), command.data, *flags])
    saving = "--crf --save masks" if segmenter else "--save overlays"
    predicting = f"wildcat predict {shlex.quote(str(command.out))} IMAGE {saving} --out DIR"
    print(f"Next: {evaluating}   or   {predicting}")
    return 0
