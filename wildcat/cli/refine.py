"""wildcat refine: a segmenter trained on the masks that a run makes of its own images."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from wildcat.cli.options import DataCommand, describe, open_data
from wildcat.config import RefineConfig

if TYPE_CHECKING:
    from wildcat.models.refined import Refined


@dataclass(frozen=True, kw_only=True)
class Refine(DataCommand):
    """Train a segmenter on masks made from tags: sharper masks, points and boxes from the same images."""

    run: Positional[Annotated[str, arg(metavar="RUN")]]
    """A run folder."""
    data: Positional[Annotated[str, arg(metavar="DATA")]]
    """A folder, a .csv, or the name of a packaged data set: what the run was trained on."""
    out: Path
    """Folder to make; a model like a run folder, never overwritten."""
    split: str = "train"
    """Part of the data to learn from, by its tags alone; never the part you measure on."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    config: OmitArgPrefixes[RefineConfig] = field(default_factory=RefineConfig)


def run_refine(command: Refine) -> int:
    """wildcat refine"""
    from wildcat.cli.allocator import share_one_arena
    from wildcat.device import choose_device
    from wildcat.files import refuse_existing
    from wildcat.fitting.refine import refine
    from wildcat.models.calibration import fitted_samples
    from wildcat.models.run import open_run
    from wildcat.progress import ProgressBar

    share_one_arena()
    refuse_existing(command.out)
    run = open_run(Path(command.run).expanduser())
    data = open_data(command, command.data)
    device = choose_device(command.device)
    describe(data, f"{len(fitted_samples(data, command.split))} images of {command.split} to learn from", device.type)
    print(f"Writing {command.out}", flush=True)
    try:
        with ProgressBar() as progress:
            made = refine(
                run, data, command.out, command.config, command.split, device=command.device, progress=progress
            )
    except KeyboardInterrupt:
        print("Interrupted; nothing was written but the cached features, which the next try takes.", file=sys.stderr)
        return 1
    print(refined_lines(made, command.out, command.data))
    return 0


def refined_lines(made: Refined, folder: Path, source: str) -> str:
    """What was made, for a person."""
    losses = ", ".join(f"{loss:.3f}" for loss in made.manifest["trained"]["losses"])
    evaluating = shlex.join(["wildcat", "evaluate", str(folder), source, "--crf"])
    predicting = shlex.join(["wildcat", "predict", str(folder), "IMAGE", "--crf", "--save", "masks", "--out", "DIR"])
    return (
        f"{folder}: a segmenter on {made.base.config.backbone}; loss {losses}\nNext: {evaluating}   or   {predicting}"
    )
