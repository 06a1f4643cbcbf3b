"""wildcat predict: predict classes, points, boxes and heatmaps of images."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from wildcat.cli.images import check_amounts, find_images, predict_each, refuse_reading
from wildcat.cli.options import Switch, load_model, require_maps
from wildcat.cli.predict_sharded import ShardedCommand, run_sharded
from wildcat.errors import ConfigError, install_extra, unknown_class

if TYPE_CHECKING:
    from wildcat.data.image_ref import ImageRef
    from wildcat.predictor import Predictor


@dataclass(frozen=True, kw_only=True)
class Predict(ShardedCommand):
    """Predict classes, points, boxes and heatmaps of images."""

    save: Annotated[str | None, arg(metavar="A,B")] = None
    """Images to write, separated by commas: overlays (the default), heatmaps, modalities, masks, arrays; polygons of
    georeferenced images (GeoJSON); none: no images, the default of a method without class maps."""
    every: Annotated[str | None, arg(metavar="SECONDS")] = None
    """Predict a frame of each video every 0.5s, 2s, ...; by default 1s. --save overlays writes an annotated video."""
    report: Switch = False
    """Also write report.html into --out: one page with representative images of each class."""
    classes: Annotated[str, arg(metavar="A,B")] = ""
    """Classes to draw, separated by commas, instead of the predicted ones."""


def run_predict(command: Predict) -> int:
    """wildcat predict"""
    if command.workers and command.engine != "ray":
        raise ConfigError(f"--workers {command.workers} is for --engine ray.", "Add --engine ray.")
    sharded = command.shard_rows is not None or command.engine == "ray"
    check_flags(command, sharded)
    return run_sharded(command) if sharded else run_into_folder(command)


def run_into_folder(command: Predict) -> int:
    """Print predictions, and write predictions.jsonl and images into --out."""
    from contextlib import ExitStack

    from tqdm import tqdm

    from wildcat.export.predictions import PredictionWriter, parse_save
    from wildcat.progress import interruptible

    save = parse_save("overlays" if command.save is None else command.save)
    files = {
        "--report": command.report,
        f"--save {command.save}": command.save not in (None, "", "none"),
        f"--classes {command.classes}": bool(command.classes),
        f"--top-k {command.top_k}": bool(command.top_k),
        "--crf": command.crf,
        "--propagate": command.propagate,
    }
    if command.out is None and (flag := next((flag for flag, given in files.items() if given), None)):
        raise ConfigError(f"{flag} is for files, and no folder for them is given.", "Add --out DIR.")
    check_amounts(command.batch_size, command.limit, command.top_k)
    images = find_predicted(command, save)
    predictor = load_model(command, command.run)
    save = possible_images(command, predictor, save)
    if "masks" in save and len(predictor.classes) > 254:
        raise ConfigError(
            f"{predictor.name} has {len(predictor.classes)} classes; a mask image numbers 254 at most.",
            "Leave masks out of --save; Prediction.mask gives them as arrays.",
        )
    drawn = named_classes(command.classes, predictor.classes)
    written = 0
    gallery = None
    if command.report:
        from wildcat.report import Gallery, model_info, write_report

        gallery = Gallery(predictor.classes, predictor.task)

    with ExitStack() as stack:
        writer = stack.enter_context(PredictionWriter(command.out, save, drawn, command.top_k)) if command.out else None
        print(
            f"{predictor.name}: {len(predictor.classes)} classes; {len(images)} images; device "
            f"{predictor.device.type}{f'; writing {command.out}' if command.out else ''}",
            flush=True,
        )
        modalities = command.report or bool({"modalities", "arrays"} & set(save))
        interrupted = stack.enter_context(interruptible())
        for prediction, name in predict_each(predictor, images, "predicting", modalities, command.batch_size):
            if writer:
                writer.add(prediction, name)
            if gallery:
                gallery.add(prediction)
            if not writer or len(images) <= 10:
                tqdm.write(prediction_line(prediction))
            written += 1
            if interrupted.is_set():
                rows = f" in {command.out / 'predictions.jsonl'}" if command.out else ""
                raise KeyboardInterrupt(f"interrupted after {written} of {len(images)} images{rows}.")
    if writer and writer.legend and save:
        names = ", ".join(f"{number} is {name}" for number, name in list(writer.legend.items())[:10])
        print(f"note: no font of this system for the names of some classes; on drawings {names}.", file=sys.stderr)
    if command.out and written:
        print(f"{written} predictions in {command.out / 'predictions.jsonl'}")
        if gallery:
            source = Path(command.paths[0]).name or command.paths[0]
            title = f"{Path(predictor.name).name} on {source}{' and others' if len(command.paths) > 1 else ''}"
            page = write_report(command.out / "report.html", gallery, title, info=model_info(command.run))
            left_out = f"; {page.left_out} more would make the page too large" if page.left_out else ""
            print(f"report: {page.path}, {page.bytes / 1e6:.1f} MB, {page.shown} examples{left_out}")
    return 0 if written else 1


def find_predicted(command: Predict, save: Sequence[str]) -> list[tuple[Path | ImageRef, str]]:
    """The images of the command with the paths that name their files, after checking that the flags fit them."""
    from wildcat.data.video import VideoFrame, parse_every
    from wildcat.export.geo import check_georeferenced, has_geo_keys

    every = parse_every("1s" if command.every is None else command.every)
    data = replace(command, classes="")  # which here are those to draw
    images = find_images(command.paths, command.split, command.limit, data, every, command.run)
    if command.every is not None and not any(isinstance(image, VideoFrame) for image, _ in images):
        raise ConfigError(f"--every {command.every} is for videos, and none is given.", "Leave it out.")
    if "polygons" in save:
        check_georeferenced(image for image, _ in images)
    elif "masks" in save and find_spec("rasterio") is None and any(has_geo_keys(image) for image, _ in images):
        remedy = f"{install_extra('geo')} for masks in their coordinates"
        print(f"note: some images are georeferenced, and rasterio is not installed: {remedy}.", file=sys.stderr)
    return images


def possible_images(command: Predict, predictor: Predictor, save: tuple[str, ...]) -> tuple[str, ...]:
    """The images to write; of a method without class maps none by default, and those that need maps are refused."""
    if predictor.has_maps:
        return save
    save = () if command.save is None else save
    if {*save} - {"arrays"} or command.report or command.crf or command.classes:
        require_maps(predictor)
    return save


def check_flags(command: Predict, sharded: bool) -> None:
    """Refuse flags that draw images with output in shards, and flags and sources of shards without."""
    if sharded:
        if command.every is not None:
            raise ConfigError(f"--every {command.every} is for videos, which shards do not hold.", "Leave it out.")
        refused = {
            "--report": command.report,
            "--crf": command.crf,
            "--propagate": command.propagate,
            "--classes": bool(command.classes),
            f"--save {command.save}": command.save not in (None, "", "none"),
        }
        reason, hint = "draws images; shards hold rows only.", "Leave it out, or leave --shard-rows out."
    else:
        refused = {
            "--resume": command.resume,
            f"--shard-format {command.shard_format}": command.shard_format != "jsonl",
            f"--image-column {command.image_column}": command.image_column is not None and command.split is None,
        }
        if command.split is None:
            refused |= {path: "://" in path or path.endswith((".tar", ".parquet")) for path in command.paths}
        reason, hint = "needs output in shards.", "Add --shard-rows 1000 --out DIR."
    if flag := next((flag for flag, given in refused.items() if given), None):
        raise ConfigError(f"{flag} {reason}", hint)
    if command.split is None:
        refuse_reading(replace(command, classes="", image_column=None))


def named_classes(text: str, classes: Sequence[str]) -> tuple[str, ...]:
    """The classes in a comma-separated list; the name of a class may contain commas.

    >>> named_classes("table, chair, stool", ["table", "chair, stool", "chair"])
    ('table', 'chair, stool')
    """
    words, found = text.split(",") if text.strip() else [], []
    while words:
        ends = [n for n in range(len(words), 0, -1) if ",".join(words[:n]).strip() in classes]
        if not ends:
            raise unknown_class(words[0].strip(), classes)
        found.append(",".join(words[: ends[0]]).strip())
        words = words[ends[0] :]
    return tuple(found)


def prediction_line(prediction: Any) -> str:
    """One line of text: the image, its most likely classes, and their points, if the model has maps."""
    from wildcat.data.images import shown

    names = list(prediction.labels) or [prediction.top]
    if prediction.task == "multiclass":
        names = sorted(prediction.classes, key=lambda c: -prediction.probabilities[c])[:3]
    texts = [f"{c} {prediction.probabilities[c]:.0%}" for c in names]
    if prediction.has_maps:
        places = [prediction.points[c] for c in names]
        texts = [f"{text} at ({x:.0f}, {y:.0f})" for text, (x, y) in zip(texts, places, strict=True)]
    none = "" if prediction.labels else "(below its threshold) "
    return f"{shown(prediction.path)}: {none}{', '.join(texts)}"
