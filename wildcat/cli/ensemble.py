"""wildcat ensemble: combine several runs into one model."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from wildcat.cli.options import DataCommand, describe, open_data


@dataclass(frozen=True, kw_only=True)
class Ensemble(DataCommand):
    """Combine several runs, such as one per input size, into one model.

    A cascade among them keeps its second stage.
    """

    runs: Positional[Annotated[tuple[str, ...], arg(metavar="RUN...", help_behavior_hint="(required)")]]
    """Run folders or cascades, or hf://user/name, trained on the same data; at least two."""
    out: Path
    """New model folder; never overwritten."""
    data: Annotated[str | None, arg(metavar="DATA")] = None
    """Data to train a linear combination on: the training data of the runs."""
    split: str = "train"
    """Split to train the combination on; never a split to evaluate on."""
    combine: Literal["linear", "average"] = "linear"
    """linear: a classifier on all scores of all runs (Object Bank, as in the paper); average: their mean."""
    strength: float = 0.1
    """Regularisation of the linear combination towards the average, at least 0."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""


def run_ensemble(command: Ensemble) -> int:
    """wildcat ensemble"""
    from wildcat.device import choose_device
    from wildcat.fitting.ensemble import create_ensemble, training_samples
    from wildcat.models.folder import check_members, open_model
    from wildcat.models.hub import model_folder
    from wildcat.models.run import refuse_taken
    from wildcat.progress import ProgressBar

    refuse_taken(command.out)
    device = choose_device(command.device)
    members = [open_model(model_folder(folder)) for folder in command.runs]
    check_members(members)  # before the data is read
    data = (
        open_data(command, command.data, command.runs[0])
        if command.data is not None and command.combine == "linear"
        else None
    )
    if data is not None:
        count = len(training_samples(members, data, command.split))
        describe(data, f"{count} images of {command.split} to train the combination on", device.type)
    with ProgressBar() as progress:
        model = create_ensemble(
            command.out, members, command.combine, data, command.split, command.strength, command.device, progress
        )
    networks = ", ".join(f"{run.config.backbone} {run.preprocess.size}" for run in model.runs)
    print(f"{command.out}: {len(members)} networks ({networks}), scores combined: {model.manifest['combine']}")
    evaluating = shlex.join(["wildcat", "evaluate", str(command.out), command.data or "DATA"])
    print(f"Next: {evaluating}")
    return 0
