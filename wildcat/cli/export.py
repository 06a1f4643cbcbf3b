"""wildcat export: a model as ONNX, or what it says of images as annotations other tools read."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from wildcat.cli.images import check_amounts, find_images, refuse_vanished
from wildcat.cli.options import DataCommand, ModelCommand, Options, load_model
from wildcat.errors import ConfigError, DataError, WildcatError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class Export(ModelCommand):
    """Write a model as ONNX, or what it finds in images as annotations: COCO, YOLO, Pascal VOC, Label Studio."""

    run: Positional[Annotated[str, arg(metavar="RUN")]]
    """A run folder, or a packaged model such as imagenet-lite0."""
    paths: Positional[Annotated[tuple[str, ...], arg(metavar="PATH...")]] = ()
    """Images, folders of images, or globs; with --split, one data set. None for onnx."""
    format: str
    """onnx: the network; annotations of images: coco (run lengths), coco-polygons, yolo (boxes), yolo-segment
    (outlines), voc, label-studio."""
    out: Path
    """Folder to make, for onnx a file; it appears when all is written."""
    min_score: float | None = None
    """Write the classes whose probability is at least this; by default those the model predicts."""
    boxes: Literal["all", "largest"] = "all"
    """Every region of a class, or its largest one."""
    min_area: float = 0.001
    """Leave out regions that cover less than this share of the image; 0 keeps every speck."""
    crf: bool = False
    """Sharpen masks with a dense CRF."""
    simplify: float | None = None
    """Pixels by which an outline may move to have fewer points; by default 0 for coco-polygons, otherwise 1."""
    scores: bool = False
    """End each line of YOLO labels with its score: to rank them, not to train on. Other formats always have scores."""
    images: Literal["copy", "link"] = "copy"
    """Copy the images into the folder, or link to them."""
    split: str | None = None
    """Export this split of a data set."""
    data_format: str | None = None
    """Layout of the data set, as --format of wildcat predict; recognised from its structure otherwise."""
    data_option: Options = ()
    """A setting of the data set's reader; may be repeated."""
    limit: int = 0
    """Stop after so many images; 0: all."""
    batch_size: int = 8
    """Images that go through the network together."""


def run_export(command: Export) -> int:
    """wildcat export"""
    if command.format not in FORMATS:
        raise ConfigError(
            f"there is no export format {command.format!r}.",
            did_you_mean(command.format, FORMATS) or f"Choose one of: {', '.join(FORMATS)}.",
        )
    return FORMATS[command.format](command)


def export_annotations(command: Export) -> int:
    """Predict each image and write its regions."""
    from contextlib import ExitStack

    from wildcat.export import ANNOTATION_FORMATS, InstanceParams
    from wildcat.progress import progress_bar

    extra = format_options(command)
    params = InstanceParams(command.min_score, command.min_area, command.boxes, command.crf)
    check_amounts(command.batch_size, command.limit)
    data = DataCommand(format=command.data_format, data_option=command.data_option)
    images = find_images(command.paths, command.split, command.limit, data)
    predictor = load_model(command, command.run)
    names = {str(image): name for image, name in images}
    written, regions, skipped = 0, 0, 0

    def skip(image: object, error: WildcatError) -> None:
        nonlocal skipped
        refuse_vanished(image)
        skipped += 1
        bar.write(f"skipped {error.message}", file=sys.stderr)
        bar.update(1)

    with ExitStack() as stack:
        writer = stack.enter_context(
            ANNOTATION_FORMATS[command.format](
                command.out, predictor.classes, params, images=command.images, model=predictor.name, **extra
            )
        )
        print(
            f"{predictor.name}: {len(predictor.classes)} classes; {len(images)} images; device "
            f"{predictor.device.type}; writing {command.out} as {command.format}",
            flush=True,
        )
        bar = stack.enter_context(progress_bar(len(images), "exporting"))
        paths = [path for path, _ in images]
        for prediction in predictor.stream(paths, modalities=False, batch_size=command.batch_size, on_error=skip):
            regions += len(writer.add(prediction, names[prediction.path]))
            written += 1
            bar.update(1)
        if not written:
            raise DataError(
                f"none of the {len(images)} images could be read; {command.out} was not written.",
                "See the reasons above.",
            )
    if skipped:
        print(f"{skipped} of {len(images)} images could not be read and were skipped.", file=sys.stderr)
    print(f"{regions} regions in {written} images: {command.out}")
    return 0


def export_network(command: Export) -> int:
    """Write the network itself."""
    from wildcat.export.onnx import export_onnx

    if command.paths:
        raise ConfigError(
            f"--format onnx writes the network, and has no use for {command.paths[0]}.", "Leave the images out."
        )
    if command.precision != "fp32" or command.engine != "torch":
        raise ConfigError(
            f"--engine {command.engine} --precision {command.precision} do not go with --format onnx.",
            "The file holds the network in fp32; give them to the commands that run it.",
        )
    predictor = load_model(command, command.run)
    size = predictor.preprocess.size
    print(f"{predictor.name}: {len(predictor.classes)} classes, {size} x {size} px; writing {command.out}", flush=True)
    path = export_onnx(predictor, command.out)
    print(f"scores and class_maps as torch gives them: {path}, {path.stat().st_size / 1e6:.1f} MB")
    return 0


def format_options(command: Export) -> dict[str, Any]:
    """The options of one format alone that were given.

    Raises:
        ConfigError: the format has no such option.
    """
    given: dict[str, Any] = {}
    for name, value, formats in (
        ("simplify", command.simplify, ("coco-polygons", "yolo-segment", "label-studio")),
        ("scores", command.scores or None, ("yolo", "yolo-segment")),
    ):
        if value is not None:
            if command.format not in formats:
                raise ConfigError(f"--{name} does not go with --format {command.format}.", f"{_listed(formats)} it.")
            given[name] = value
    return given


def _listed(formats: tuple[str, ...]) -> str:
    return f"{', '.join(formats[:-1])} and {formats[-1]} take"


FORMATS: dict[str, Callable[[Export], int]] = {
    **dict.fromkeys(("coco", "coco-polygons", "yolo", "yolo-segment", "voc", "label-studio"), export_annotations),
    "onnx": export_network,
}
"""Name -> what writes it."""
