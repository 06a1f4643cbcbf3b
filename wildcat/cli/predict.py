"""wildcat predict: classes, points, boxes and heatmaps for images."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wildcat.cli.images import check_amounts, find_images, refuse_vanished
from wildcat.cli.options import load_model
from wildcat.cli.predict_sharded import PartsCommand, refuse_parts_flags, run_parts_command
from wildcat.errors import ConfigError, WildcatError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class Predict(PartsCommand):
    """Classes, points, boxes and heatmaps for images."""

    save: str | None = None
    """Images to write, separated by commas: overlays (the default), heatmaps, modalities, masks, arrays; none for no
    images."""
    crf: bool = False
    """Sharpen masks with a dense CRF."""
    report: bool = False
    """Also write report.html into --out: one page with the most telling images of each class."""
    classes: str = ""
    """Classes to draw, separated by commas, instead of the predicted ones."""


def run_predict(command: Predict) -> int:
    """wildcat predict"""
    from contextlib import ExitStack

    from wildcat.export.predictions import PredictionWriter, parse_save
    from wildcat.progress import progress_bar

    if command.in_parts:
        refuse_drawing(command)
        return run_parts_command(command)
    refuse_parts_flags(command)
    save = parse_save("overlays" if command.save is None else command.save)
    if command.report and command.out is None:
        raise ConfigError("--report writes a page beside the predictions.", "Add --out DIR.")
    check_amounts(command.batch_size, command.limit)
    images = find_images(command.paths, command.split, command.limit, command)
    predictor = load_model(command, command.run)
    if "masks" in save and len(predictor.classes) > 254:
        raise ConfigError(
            f"{predictor.name} has {len(predictor.classes)} classes; a mask image numbers 254 at most.",
            "Leave masks out of --save; Prediction.mask gives them as arrays.",
        )
    drawn = named_classes(command.classes, predictor.classes)
    names = {str(image): name for image, name in images}
    skipped: list[str] = []
    written = 0
    gallery = None
    if command.report:
        from wildcat.report import Gallery, model_info, write_report

        gallery = Gallery(predictor.classes, predictor.task, crf=command.crf)

    def skip(image: object, error: WildcatError) -> None:
        refuse_vanished(image)
        skipped.append(str(image))
        bar.write(f"skipped {error.message}", file=sys.stderr)
        bar.update(1)

    with ExitStack() as stack:
        writer = stack.enter_context(PredictionWriter(command.out, save, drawn, command.crf)) if command.out else None
        print(
            f"{predictor.name}: {len(predictor.classes)} classes; {len(images)} images; device "
            f"{predictor.device.type}{f'; writing {command.out}' if command.out else ''}",
            flush=True,
        )
        bar = stack.enter_context(progress_bar(len(images), "predicting"))
        stream = predictor.stream(
            [path for path, _ in images],
            modalities=command.report or bool({"modalities", "arrays"} & set(save)),
            batch_size=command.batch_size,
            on_error=skip,
        )
        for prediction in stream:
            if writer:
                writer.add(prediction, names[prediction.path])
            if gallery:
                gallery.add(prediction)
            if not writer or len(images) <= 10:
                bar.write(prediction_line(prediction), file=sys.stdout)
            written += 1
            bar.update(1)
    if skipped:
        print(f"{len(skipped)} of {len(images)} images could not be read and were skipped.", file=sys.stderr)
    if command.out:
        print(f"{written} predictions in {command.out / 'predictions.jsonl'}")
        if gallery and written:
            seen = Path(command.paths[0]).name or command.paths[0]
            title = f"{Path(predictor.name).name} on {seen}{' and others' if len(command.paths) > 1 else ''}"
            page = write_report(command.out / "report.html", gallery, title, info=model_info(command.run))
            print(f"report: {page.path}, {page.bytes / 1e6:.1f} MB, {page.shown} examples")
    return 0 if written else 1


def refuse_drawing(command: Predict) -> None:
    """Refuse images beside parts.

    Raises:
        ConfigError: names the flag.
    """
    drawn = {
        "--report": command.report,
        "--crf": command.crf,
        "--classes": bool(command.classes),
        f"--save {command.save}": command.save not in (None, "", "none"),
    }
    if flag := next((flag for flag, given in drawn.items() if given), None):
        raise ConfigError(f"{flag} draws images; parts hold rows.", "Leave it out, or leave --part-rows out.")


def named_classes(text: str, classes: Sequence[str]) -> tuple[str, ...]:
    """The classes a comma-separated list names; a name may itself hold commas.

    Raises:
        ConfigError: an unknown class.

    >>> named_classes("table, chair, stool", ["table", "chair, stool", "chair"])
    ('table', 'chair, stool')
    """
    parts, found = text.split(",") if text.strip() else [], []
    while parts:
        ends = [n for n in range(len(parts), 0, -1) if ",".join(parts[:n]).strip() in classes]
        if not ends:
            name = parts[0].strip()
            few = ", ".join(classes[:20]) + (", ..." if len(classes) > 20 else "")
            raise ConfigError(f"this model has no class {name!r}.", did_you_mean(name, classes) or f"It has: {few}.")
        found.append(",".join(parts[: ends[0]]).strip())
        parts = parts[ends[0] :]
    return tuple(found)


def prediction_line(prediction: Any) -> str:
    """One line for a person: the image, its likeliest classes, and where they are."""
    names = list(prediction.labels) or [prediction.top]
    if prediction.task == "multiclass":
        names = sorted(prediction.classes, key=lambda c: -prediction.probabilities[c])[:3]
    found = [
        f"{c} {prediction.probabilities[c]:.0%} at ({prediction.points[c][0]:.0f}, {prediction.points[c][1]:.0f})"
        for c in names
    ]
    none = "" if prediction.labels else "(below 50%) "
    return f"{prediction.path}: {none}{', '.join(found)}"
