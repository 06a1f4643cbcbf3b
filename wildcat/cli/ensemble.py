"""wildcat ensemble: several runs as one model."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from wildcat.cli.options import DataCommand, describe, open_data


@dataclass(frozen=True, kw_only=True)
class Ensemble(DataCommand):
    """Combine several runs, such as one per input size, into one model."""

    runs: Positional[Annotated[tuple[str, ...], arg(metavar="RUN...")]]
    """Run folders trained on the same data; at least two."""
    out: Path
    """Folder to make; a model like a run folder, never overwritten."""
    data: str | None = None
    """What a linear combination is trained on: the data the runs were trained on."""
    split: str = "train"
    """Part of the data to train the combination on; never the part you measure on."""
    combine: Literal["linear", "average"] = "linear"
    """linear: a classifier over all scores of all runs (Object Bank, as in the paper); average: their mean."""
    strength: float = 0.1
    """How strongly the linear combination is pulled towards the average, at least 0."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""


def run_ensemble(command: Ensemble) -> int:
    """wildcat ensemble"""
    from wildcat.device import choose_device
    from wildcat.fitting.ensemble import create_ensemble, describe_ensemble
    from wildcat.models.run import open_run, refuse_taken
    from wildcat.progress import progress_bar

    refuse_taken(command.out)
    device = choose_device(command.device)
    runs = [open_run(Path(folder).expanduser()) for folder in command.runs]
    data = open_data(command, command.data) if command.data is not None and command.combine == "linear" else None
    total = 0
    if data is not None:
        total = len(data.split(command.split))
        describe(data, f"{total} images of {command.split} to train the combination on", device.type)
    with progress_bar(total, "scoring") as bar:
        made = create_ensemble(
            command.out, runs, command.combine, data, command.split, command.strength, command.device, bar.update
        )
    said = describe_ensemble(made)
    print(f"{command.out}: {len(runs)} networks ({', '.join(said['members'])}), scores combined: {said['combine']}")
    evaluating = shlex.join(["wildcat", "evaluate", str(command.out), command.data or "DATA"])
    print(f"Next: {evaluating}")
    return 0
