"""wildcat report: one HTML file with the metrics, hits and misses of a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from wildcat.cli.options import MetricsCommand, describe, evaluation_split, load_model, open_data, require_maps


@dataclass(frozen=True, kw_only=True)
class Report(MetricsCommand):
    """Evaluate a model on labelled data and write one HTML file with metrics, curves, hits and misses."""

    out: Annotated[Path | None, arg(metavar="PATH")] = None
    """HTML file to write; by default report-RUN-DATA-SPLIT.html in the working directory."""
    examples: int = 8
    """Maximum number of images per kind (hits, misses, false positives) and class."""
    max_mb: float = 20.0
    """Maximum size of the file in megabytes; examples that do not fit are left out and counted."""


def run_report(command: Report) -> int:
    """wildcat report"""
    from wildcat.evaluation import match_classes
    from wildcat.files import file_name
    from wildcat.progress import ProgressBar
    from wildcat.report import check_target, model_info, report_split

    data = open_data(command, command.data, command.run)
    split = evaluation_split(command.split, data)
    names = (Path(command.run).name, data.name, split)
    path = command.out or Path(f"report-{'-'.join(map(file_name, names))}.html")
    check_target(path)
    predictor = load_model(command, command.run)
    require_maps(predictor)
    data = match_classes(predictor, data)
    describe(data, f"{len(data.split(split))} images of {split}", f"{predictor.device.type}; writing {path}")
    views = [f"flipped, {command.flip}"] if command.flip != "none" else []
    views += [f"at {command.sizes} px"] if command.sizes else []
    with ProgressBar() as progress:
        report = report_split(
            path,
            predictor,
            data,
            split,
            variant=command.ap,
            examples=command.examples,
            max_mb=command.max_mb,
            info=model_info(command.run, split, data, ", ".join(views)),
            progress=progress,
        )
    left_out = f"; {report.left_out} more exceed --max-mb {command.max_mb:g}" if report.left_out else ""
    print(f"{report.path}: {report.bytes / 1e6:.1f} MB, {report.shown} examples{left_out}")
    return 0
