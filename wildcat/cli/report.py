"""wildcat report: one HTML file that shows what a model does well and badly."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from wildcat.cli.options import DataCommand, ModelCommand, describe, evaluation_split, load_model, open_data


@dataclass(frozen=True, kw_only=True)
class Report(ModelCommand, DataCommand):
    """Write one HTML file with figures, curves and the most telling images of labelled data."""

    run: Positional[Annotated[str, arg(metavar="RUN")]]
    """A run folder, or a packaged model such as imagenet-lite0."""
    data: Positional[Annotated[str, arg(metavar="DATA")]]
    """A folder, a .csv, or the name of a packaged data set."""
    split: str | None = None
    """Part of the data to report on; val where the data has one, otherwise test."""
    out: Path | None = None
    """The .html file to write; without it, report-RUN-DATA-SPLIT.html here."""
    ap: Literal["voc07", "voc10", "plain"] = "voc10"
    """Variant of average precision."""
    crf: bool = False
    """Sharpen masks with a dense CRF."""
    examples: int = 8
    """Images of each kind (hits, misses, false alarms) and class, at most."""
    max_mb: float = 20.0
    """Largest size of the file in megabytes; images that do not fit are left out and counted."""


def run_report(command: Report) -> int:
    """wildcat report"""
    from wildcat.evaluation import class_order
    from wildcat.prediction import file_name
    from wildcat.progress import ProgressBar
    from wildcat.report import check_limits, check_target, report_split, story_of_run

    check_limits(command.examples, command.max_mb)
    if command.out is not None:
        check_target(command.out)
    data = open_data(command, command.data)
    split = evaluation_split(command.split, data)
    parts = (Path(command.run).name, data.name, split)
    path = command.out or Path(f"report-{'-'.join(map(file_name, parts))}.html")
    check_target(path)
    predictor = load_model(command, command.run)
    class_order(predictor, data)
    samples = data.split(split)
    describe(data, f"{len(samples)} images of {split}", f"{predictor.device.type}; writing {path}")
    views = [f"mirrored, {command.flip}"] if command.flip != "none" else []
    views += [f"at {command.sizes} px"] if command.sizes else []
    story = story_of_run(command.run, split, data, ", ".join(views))
    with ProgressBar() as progress:
        written = report_split(
            path,
            predictor,
            data,
            split,
            variant=command.ap,
            crf=command.crf,
            examples=command.examples,
            max_mb=command.max_mb,
            story=story,
            progress=progress,
        )
    cut = f"; {written.left_out} more did not fit --max-mb {command.max_mb:g}" if written.left_out else ""
    print(f"{written.path}: {written.bytes / 1e6:.1f} MB, {written.shown} views of images{cut}")
    return 0
