"""wildcat compare: cross-validate methods on your own labelled images."""

from __future__ import annotations

import json
import shlex
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import OmitArgPrefixes, arg

from wildcat.cli.options import Data, DataCommand, Switch, check_readable, data_flags, describe, note_amp, open_data
from wildcat.config import TrainConfig
from wildcat.files import next_free
from wildcat.settings import load_recipe

if TYPE_CHECKING:
    from wildcat.reproduce.comparison import Comparison

HEADINGS = {
    "map": "mAP %",
    "accuracy": "accuracy %",
    "class_mean_accuracy": "class mean %",
    "point_ap": "point AP %",
    "miou": "mean IoU %",
}


@dataclass(frozen=True, kw_only=True)
class Compare(DataCommand):
    """Find the method that suits your images: cross-validate several on cached features, in minutes, and say which
    differences are noise."""

    data: Data
    methods: Annotated[str, arg(metavar="NAME,NAME,...")] = "gap-a,deepmil,weldon,wildcat,csra,rrsvm"
    """Published methods to compare, see wildcat methods."""
    folds: int = 5
    """Number of parts of the training images; each is measured once, after training on the others."""
    out: Annotated[Path | None, arg(metavar="PATH")] = None
    """New folder for comparison.json and the finished folds, or that of an earlier comparison, whose folds are not run
    again."""
    json: Switch = False
    """Print one JSON object instead of a table."""
    config: OmitArgPrefixes[TrainConfig] = field(default_factory=lambda: load_recipe("reproduce"))


def run_compare(command: Compare) -> int:
    """wildcat compare"""
    from wildcat.device import choose_device
    from wildcat.nn.backbones import check_backbone_name
    from wildcat.progress import ProgressBar
    from wildcat.reproduce.comparison import Comparison, check_comparison, compare, joined
    from wildcat.reproduce.runner import check_out

    config = command.config
    config.validate()
    if command.out:
        check_out(command.out)
    check_backbone_name(config.backbone)
    methods = tuple(name.strip() for name in command.methods.split(",") if name.strip())
    plan = Comparison(methods, config, command.folds)
    data = open_data(command, command.data)
    notes = check_comparison(plan, data)
    if config.train_split == "train" and (kept := [name for name in ("val", "test") if name in data.splits]):
        are, them = ("is", "it") if len(kept) == 1 else ("are", "them")
        every = "; --train-split all compares on all images" if "all" in data.splits else ""
        notes.append(f"{joined(kept)} {are} left untouched: evaluate the model that you train on {them}{every}.")
    samples = data.split(config.train_split)
    device = choose_device(config.device)
    images = f"{len(samples)} images of {config.train_split} in {plan.folds} folds"
    describe(replace(data, notes=(*data.notes, *notes)), images, device.type, quiet=command.json)
    note_amp(config.amp, device)
    check_readable([sample.path for sample in samples], config.intensity_range)
    with ExitStack() as stack:
        out = command.out or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        progress = stack.enter_context(ProgressBar())
        try:
            summary = compare(plan, data, out, progress)
        except KeyboardInterrupt:
            hint = "Give the same command again: it continues where it was." if command.out else ""
            raise KeyboardInterrupt(f"interrupted. {hint}".rstrip()) from None
    summary["command"] = next_command(command, plan, summary["recommended"])
    print(json.dumps(summary, ensure_ascii=False) if command.json else comparison_text(summary))
    return 0


def next_command(command: Compare, plan: Comparison, method: str) -> str:
    """The command that trains a method on the images of the comparison, in the same way."""
    from wildcat.reproduce.comparison import training_words

    folder = Path("runs") / method
    words = training_words(plan, command.data, method, next_free(folder) if folder.exists() else folder)
    return shlex.join([*words, *data_flags(command)])


def comparison_text(summary: Mapping[str, Any]) -> str:
    """Format a comparison as a table, followed by the recommendation and the next command."""
    from wildcat.reproduce.tables import percent

    metrics = summary["metrics"]
    headings = [HEADINGS[metrics[0]], "difference", "p", *(HEADINGS[metric] for metric in metrics[1:]), "minutes"]
    lines = [f"{'method':18}{''.join(f'{heading:>14}' for heading in headings)}"]
    for name, row in summary["methods"].items():
        first, *others = [percent(row["metrics"].get(metric)) or "no maps" for metric in metrics]
        difference = "best" if row["difference"] is None else f"{100 * row['difference']:+.1f}"
        p = "" if row["p"] is None else "< 0.001" if row["p"] < 0.001 else f"{row['p']:.3f}"
        cells = [first, difference, p, *others, f"{row['seconds'] / 60:.1f}"]
        lines.append(f"{name:18}{''.join(f'{cell:>14}' for cell in cells)}")
    variant = f"{summary['ap_variant']} AP; " if {"map", "point_ap"} & set(metrics) else ""
    lines += [
        f"mean ± standard deviation over {summary['folds']} folds; {variant}p: corrected resampled t-test, Holm; "
        f"features: {summary['features_seconds'] / 60:.1f} minutes",
        "",
        " ".join(summary["recommendation"]),
        f"Next: {summary['command']}",
    ]
    return "\n".join(lines)
