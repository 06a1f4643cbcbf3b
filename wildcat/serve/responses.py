"""Responses made of a prediction: the row of predictions.jsonl, drawings as PNG, annotations as a zip file."""

from __future__ import annotations

import base64
import io
import math
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from starlette.responses import JSONResponse

from wildcat.errors import ConfigError
from wildcat.export import ANNOTATION_FORMATS, InstanceParams
from wildcat.export.predictions import draw_heatmap, draw_modalities
from wildcat.prediction import OPACITY, Prediction, file_name
from wildcat.regions.masks import HIGHEST_PNG_LABEL, MaskParams
from wildcat.serve.limits import Limits, RequestError
from wildcat.serve.schemas import AnnotationQuery, MapQuery, PredictQuery
from wildcat.viz.colors import class_palette, unit_range
from wildcat.viz.overlay import side_by_side


def prediction_json(prediction: Prediction, query: PredictQuery, limits: Limits) -> bytes:
    """The row of predictions.jsonl as JSON, with `files` as data URLs; see `PredictionResponse`.

    Raises:
        RequestError: 422, `save` names more images than the service may draw.
        ConfigError: an unknown class, or a threshold outside the range of the model's rule.
    """
    drawn = tuple(dict.fromkeys(query.classes)) or prediction.labels or (prediction.top,)
    for name in drawn:
        prediction.index_of(name)  # raises for an unknown class before any drawing
    _check_drawings(prediction, query, len(drawn), limits)
    files: dict[str, Any] = {}
    row = {**prediction.to_dict(), "files": files}
    if "overlays" in query.save:
        files["overlays"] = {c: _data_url(prediction.plot(c)) for c in drawn}
    if "heatmaps" in query.save:
        files["heatmaps"] = {c: _data_url(draw_heatmap(prediction, c)) for c in drawn}
    if "modalities" in query.save:
        files["modalities"] = {c: [_data_url(m) for m in draw_modalities(prediction, c)] for c in drawn}
    if "masks" in query.save:
        mask, row["mask_values"] = draw_mask(prediction, query.crf, query.threshold)
        files["masks"] = _data_url(mask)
    if query.cells:
        row["cells"] = cells(prediction, query.cells)
    return bytes(JSONResponse(row).body)


def draw_map(prediction: Prediction, query: MapQuery) -> bytes:
    """One PNG of a prediction.

    Raises:
        ConfigError: an unknown class, or a threshold outside the range of the model's rule.
    """
    name = prediction.top if query.class_name is None else query.class_name
    match query.kind:
        case "image":
            return _png(prediction.load_image())
        case "mask":
            return _png(draw_mask(prediction, query.crf, query.threshold)[0])
        case "modalities":
            maps = draw_modalities(prediction, name)
            return _png(side_by_side(maps, [f"{name} {i + 1}" for i in range(len(maps))]))
        case "heatmap":
            return _png(draw_heatmap(prediction, name))
        case "overlay":
            return _png(prediction.plot(name))


def annotation_zip(prediction: Prediction, query: AnnotationQuery, model: str) -> tuple[bytes, str]:
    """A zip of the folder that `wildcat export annotations` writes for this image, and its file name.

    Raises:
        ConfigError: the format does not support these class names.
    """
    params = InstanceParams(min_score=query.min_score, crf=query.crf)
    with tempfile.TemporaryDirectory(prefix="wildcat-") as temporary:
        folder = Path(temporary) / "annotations"
        with ANNOTATION_FORMATS[query.format](folder, prediction.classes, params, model=model) as writer:
            writer.add(prediction, prediction.path or "image")
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(folder.rglob("*")):
                if path.is_file():
                    archive.write(path, path.relative_to(folder).as_posix())
    stem = file_name(Path(prediction.path).stem).encode("ascii", "replace").decode().replace("?", "_")
    return buffer.getvalue(), f"{stem}-{query.format}.zip"


def draw_mask(prediction: Prediction, crf: bool, threshold: float | None) -> tuple[Image.Image, dict[str, int]]:
    """The mask as an indexed image with the VOC palette, and the value of each class in it; 0 is background.

    The value of classes[i] is i + 1; a model with more than 254 classes numbers the classes in the mask from 1.
    `threshold` replaces the background threshold of the model only.
    """
    params = None if threshold is None else with_threshold(prediction.mask_params(), threshold)
    mask: NDArray[np.integer] = prediction.mask(crf, params)
    drawn = [int(i) for i in np.unique(mask) if i > 0]
    if len(prediction.classes) > HIGHEST_PNG_LABEL:
        drawn = drawn[:HIGHEST_PNG_LABEL]
        values = {index: number for number, index in enumerate(drawn, 1)}
        table = np.zeros(len(prediction.classes) + 1, dtype=np.uint8)
        table[drawn] = list(values.values())
        mask = table[mask]
    else:
        values = {index: index for index in drawn}
    image = Image.fromarray(mask.astype(np.uint8))
    image.putpalette(class_palette().tobytes())
    return image, {prediction.classes[index - 1]: value for index, value in values.items()}


def with_threshold(params: MaskParams, threshold: float) -> MaskParams:
    """The same gates and rule with another background threshold, in the unit of `MaskParams.threshold`.

    Raises:
        ConfigError: the rule divides each map by its maximum, and the threshold is not in (0, 1).
    """
    if params.rule == "score":
        return replace(params, score=threshold)
    if not 0 < threshold < 1:
        raise ConfigError(
            f"threshold={threshold:g}: this model divides each class map by its maximum.",
            "Give a number between 0 and 1.",
        )
    if params.rule == "power":  # the threshold s is where s = (1 - s)^exponent
        return replace(params, exponent=math.log(threshold) / math.log1p(-threshold))
    return replace(params, constant=threshold)


def cells(prediction: Prediction, count: int) -> dict[str, Any]:
    """The maps of the `count` most probable classes and of the predicted classes; see `schemas.Cells`."""
    order = np.argsort(-prediction.class_scores, kind="stable")
    params = prediction.mask_params()
    most_probable = (prediction.classes[i] for i in order[:count].tolist())
    column = {name: i for i, name in enumerate(prediction.classes)}
    return {
        "grid": list(prediction.class_maps.shape[1:]),
        "classes": {
            name: _class_cells(prediction, name, column[name])
            for name in dict.fromkeys([*most_probable, *prediction.labels])
        },
        "mask": {
            "classes": [name for name in prediction.classes if name in prediction.labels],
            "rule": params.rule,
            "threshold": params.threshold,
        },
    }


def _class_cells(prediction: Prediction, name: str, i: int) -> dict[str, Any]:
    class_map = prediction.class_maps[i]
    maps = class_map[None] if prediction.modality_maps is None else prediction.modality_maps[i]
    return {
        "low": float(class_map.min()),
        "high": float(class_map.max()),
        "map": _levels(class_map[None])[0],
        "modality_low": float(maps.min()),
        "modality_high": float(maps.max()),
        "modalities": _levels(maps),
        "opacity": round(prediction.opacity(name) / OPACITY, 4),
    }


def _levels(maps: NDArray[np.float32]) -> list[str]:
    """(M, h, w) -> base64 of the bytes of each map; 0 is the minimum of all maps, 255 the maximum."""
    levels = (unit_range(maps) * 255).round().astype(np.uint8)
    return [base64.b64encode(np.ascontiguousarray(m).tobytes()).decode() for m in levels]


def _check_drawings(prediction: Prediction, query: PredictQuery, classes: int, limits: Limits) -> None:
    maps = 0 if prediction.modality_maps is None else prediction.modality_maps.shape[1]
    counts: dict[str, int] = {"overlays": classes, "heatmaps": classes, "modalities": classes * maps, "masks": 1}
    images = sum(counts[name] for name in set(query.save))
    allowed = 2 * limits.max_pixels // (prediction.width * prediction.height)
    if images > allowed:
        raise RequestError(
            422,
            f"{images} drawings of {prediction.width} x {prediction.height} pixels are too many for one request.",
            f"Request at most {allowed}, send a smaller image, or use wildcat predict.",
        )


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def _data_url(image: Image.Image) -> str:
    return f"data:image/png;base64,{base64.b64encode(_png(image)).decode()}"
