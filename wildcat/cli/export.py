"""wildcat export: the model as ONNX, or its predictions as annotations that other programs read."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from wildcat.cli.images import check_amounts, find_images, predict_each
from wildcat.cli.options import DataCommand, Model, ModelCommand, ReaderCommand, Switch, load_model, require_maps
from wildcat.errors import ConfigError, DataError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class Export(ModelCommand, ReaderCommand):
    """Export the model as ONNX, or its predictions as COCO, YOLO, Pascal VOC or Label Studio annotations."""

    run: Model
    paths: Positional[Annotated[tuple[str, ...], arg(metavar="[PATH...]", help_behavior_hint="")]] = ()
    """Images, folders of images, or globs; with --split, one data set. None for onnx."""
    format: str
    """onnx: the network; annotations: coco (run lengths), coco-polygons, yolo (boxes), yolo-segment (outlines), voc,
    label-studio."""
    out: Path
    """New folder, or for onnx a new file; written atomically."""
    min_score: Annotated[float | None, arg(metavar="NUMBER")] = None
    """Minimum probability of exported classes; by default the model's own thresholds."""
    boxes: Literal["all", "largest"] = "all"
    """Export all regions of a class, or only the largest."""
    min_area: float = 0.001
    """Minimum area of a region as a fraction of the image; 0 keeps all regions."""
    simplify: Annotated[float | None, arg(metavar="NUMBER")] = None
    """Tolerance of outlines in pixels; by default 0 for coco-polygons, otherwise 1."""
    scores: Switch = False
    """End each line of YOLO labels with its score; such labels cannot be used for training. Other formats always store
    scores."""
    with_processing: Switch = False
    """onnx: the file takes an RGB image of any size and also computes probabilities and points."""
    images: Literal["copy", "link"] = "copy"
    """Copy the images into the folder, or link to them."""
    split: Annotated[str | None, arg(metavar="NAME")] = None
    """Export this split of a data set."""
    data_format: Annotated[str | None, arg(metavar="NAME")] = None
    """Layout of the data set, like --format of wildcat predict; by default recognised from its structure."""
    limit: int = 0
    """Maximum number of images; 0: all."""
    batch_size: int = 8
    """Images per forward pass."""


def run_export(command: Export) -> int:
    """wildcat export"""
    from wildcat.export import ANNOTATION_FORMATS

    formats = (*ANNOTATION_FORMATS, "onnx")
    if command.format not in formats:
        raise ConfigError(
            f"there is no export format {command.format!r}.",
            did_you_mean(command.format, formats) or f"Choose one of: {', '.join(formats)}.",
        )
    return export_network(command) if command.format == "onnx" else export_annotations(command)


def export_annotations(command: Export) -> int:
    """Predict each image and write its instances."""
    from wildcat.export import ANNOTATION_FORMATS, InstanceParams

    if command.with_processing:
        raise ConfigError(f"--with-processing cannot be used with --format {command.format}.", "It is for onnx.")
    extra: dict[str, Any] = {"simplify": command.simplify, "scores": command.scores or None}
    extra = {name: value for name, value in extra.items() if value is not None}
    for name in extra:
        if name not in ANNOTATION_FORMATS[command.format].options:
            takers = [key for key, writer in ANNOTATION_FORMATS.items() if name in writer.options]
            raise ConfigError(
                f"--{name} cannot be used with --format {command.format}.",
                f"Formats with --{name}: {', '.join(takers)}.",
            )
    params = InstanceParams(command.min_score, command.min_area, command.boxes)
    check_amounts(command.batch_size, command.limit)
    flags = {field.name: getattr(command, field.name) for field in fields(ReaderCommand)}
    data = DataCommand(format=command.data_format, **flags)
    images = find_images(command.paths, command.split, command.limit, data, run=command.run, format="--data-format")
    predictor = load_model(command, command.run)
    require_maps(predictor)
    written, regions = 0, 0
    with ANNOTATION_FORMATS[command.format](
        command.out, predictor.classes, params, images=command.images, model=predictor.name, **extra
    ) as writer:
        print(
            f"{predictor.name}: {len(predictor.classes)} classes; {len(images)} images; device "
            f"{predictor.device.type}; writing {command.out} as {command.format}",
            flush=True,
        )
        for prediction, name in predict_each(predictor, images, "exporting", False, command.batch_size):
            regions += len(writer.add(prediction, name))
            written += 1
        if not written:
            raise DataError(
                f"none of the {len(images)} images could be read; {command.out} was not written.",
                "See the reasons above.",
            )
    print(f"{regions} regions in {written} images: {command.out}")
    return 0


def export_network(command: Export) -> int:
    """Write the network as ONNX."""
    from wildcat.export.onnx import export_onnx

    if command.paths:
        raise ConfigError(f"--format onnx takes no images, and got {command.paths[0]}.", "Leave the images out.")
    if command.precision != "fp32" or command.engine != "torch":
        raise ConfigError(
            f"--engine {command.engine} --precision {command.precision} cannot be used with --format onnx.",
            "The file holds the network in fp32; use them with the commands that run it.",
        )
    predictor = load_model(command, command.run)
    size = predictor.preprocess.size
    print(f"{predictor.name}: {len(predictor.classes)} classes, {size} x {size} px", flush=True)
    path = export_onnx(predictor, command.out, command.with_processing)
    outputs = "scores and class maps" if predictor.has_maps else "scores"
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB; {outputs} match torch")
    return 0
