"""From a prediction to what is sent: the row of predictions.jsonl, images as PNG, annotations as a zip file."""

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
from wildcat.prediction import OPACITY, Prediction, file_name
from wildcat.regions.masks import HIGHEST_PNG_LABEL, MaskParams, gate_classes
from wildcat.serve.limits import Limits, Refused
from wildcat.serve.schemas import AnnotationQuery, MapQuery, PredictQuery
from wildcat.viz.colors import apply_colormap, class_palette, unit_range
from wildcat.viz.overlay import overlay_heatmap, side_by_side


def prediction_row(prediction: Prediction, query: PredictQuery, limits: Limits) -> dict[str, Any]:
    """The row of predictions.jsonl, its `files` in data URLs; see `PredictionAnswer`.

    Raises:
        Refused: 422, more images are asked for than may be drawn.
        ConfigError: an unknown class, or a threshold the model's rule does not take.
    """
    drawn = tuple(dict.fromkeys(query.classes)) or prediction.labels or (prediction.top,)
    for name in drawn:
        prediction.index_of(name)  # an unknown class is named before any work is done
    _check_work(prediction, query, len(drawn), limits)
    files: dict[str, Any] = {}
    row = {**prediction.to_dict(), "files": files}
    if "overlays" in query.save:
        files["overlays"] = {c: _data_url(prediction.plot(c)) for c in drawn}
    if "heatmaps" in query.save:
        files["heatmaps"] = {c: _data_url(heat(prediction, c)) for c in drawn}
    if "modalities" in query.save:
        files["modalities"] = {c: [_data_url(m) for m in modality_overlays(prediction, c)] for c in drawn}
    if "masks" in query.save:
        mask, row["mask_values"] = indexed_mask(prediction, query.crf, query.threshold)
        files["masks"] = _data_url(mask)
    if query.cells:
        row["cells"] = cells(prediction, query.cells)
    return row


def prediction_json(prediction: Prediction, query: PredictQuery, limits: Limits) -> bytes:
    """`prediction_row` as it is sent."""
    return bytes(JSONResponse(prediction_row(prediction, query, limits)).body)


def drawing(prediction: Prediction, query: MapQuery) -> bytes:
    """One PNG of a prediction.

    Raises:
        ConfigError: an unknown class, or a threshold the model's rule does not take.
    """
    name = prediction.top if query.class_name is None else query.class_name
    if query.kind == "image":
        return _png(prediction.load_image())
    if query.kind == "mask":
        return _png(indexed_mask(prediction, query.crf, query.threshold)[0])
    if query.kind == "modalities":
        drawn = modality_overlays(prediction, name)
        return _png(side_by_side(drawn, [f"{name} {i + 1}" for i in range(len(drawn))]))
    return _png(prediction.plot(name) if query.kind == "overlay" else heat(prediction, name))


def annotation_zip(prediction: Prediction, query: AnnotationQuery, model: str) -> tuple[bytes, str]:
    """The folder `wildcat export annotations` would write for this image, in a zip file, and what that is called.

    Raises:
        ConfigError: the format cannot hold the classes.
    """
    params = InstanceParams(min_score=query.min_score, crf=query.crf)
    with tempfile.TemporaryDirectory(prefix="wildcat-") as place:
        folder = Path(place) / "annotations"
        with ANNOTATION_FORMATS[query.format](folder, prediction.classes, params, model=model) as writer:
            writer.add(prediction, prediction.path or "image")
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(folder.rglob("*")):
                if path.is_file():
                    archive.write(path, path.relative_to(folder).as_posix())
        return buffer.getvalue(), zip_name(prediction, query.format)


def heat(prediction: Prediction, name: str) -> Image.Image:
    """The heatmap of a class alone, from its own lowest to its highest value."""
    return Image.fromarray(apply_colormap(unit_range(prediction.heatmap(name, prediction.drawn_size))))


def modality_overlays(prediction: Prediction, name: str) -> list[Image.Image]:
    """The image under each of the M maps of a class, all on one scale."""
    maps, image = prediction.modalities(name, prediction.drawn_size), prediction.load_drawn()
    limits = (float(maps.min()), float(maps.max()))
    return [overlay_heatmap(image, m, prediction.opacity(name), limits=limits) for m in maps]


def indexed_mask(prediction: Prediction, crf: bool, threshold: float | None) -> tuple[Image.Image, dict[str, int]]:
    """The mask in the palette of VOC, 0 the background, and the value of each class that is in it.

    That of classes[i] is i + 1; a model with more classes than a PNG has values numbers the drawn ones from 1. Without
    a threshold it is `Prediction.mask()`; with one, the gates and the rule are still the model's.
    """
    params = None if threshold is None else params_at(prediction.mask_params(), threshold)
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


def params_at(params: MaskParams, threshold: float) -> MaskParams:
    """The same gates and rule at another threshold, in the unit of `MaskParams.threshold`.

    Raises:
        ConfigError: the rule measures each map by its maximum, and the threshold is no part of it.
    """
    if params.rule == "score":
        return replace(params, score=threshold)
    if not 0 < threshold < 1:
        raise ConfigError(
            f"threshold={threshold:g}: this model measures each class map by its maximum.",
            "Give a part of it, between 0 and 1.",
        )
    if params.rule == "power":  # the threshold s is where s = (1 - s)^exponent
        return replace(params, exponent=math.log(threshold) / math.log1p(-threshold))
    return replace(params, constant=threshold)


def cells(prediction: Prediction, count: int) -> dict[str, Any]:
    """The maps of the `count` likeliest classes and of all that are predicted or in the mask; see `Cells`."""
    order = np.argsort(-prediction.class_scores, kind="stable")
    params = prediction.mask_params()
    masked = [prediction.classes[i] for i in gate_classes(prediction.class_probs, params.gate).tolist()]
    likeliest = (prediction.classes[i] for i in order[:count].tolist())
    column = {name: i for i, name in enumerate(prediction.classes)}
    return {
        "grid": list(prediction.class_maps.shape[1:]),
        "classes": {
            name: _class_cells(prediction, name, column[name])
            for name in dict.fromkeys([*likeliest, *prediction.labels, *masked])
        },
        "mask": {"classes": masked, "rule": params.rule, "threshold": params.threshold},
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
    """(M, h, w) -> base64 of each, 0 the lowest value of all, 255 the highest."""
    levels = (unit_range(maps) * 255).round().astype(np.uint8)
    return [base64.b64encode(np.ascontiguousarray(m).tobytes()).decode() for m in levels]


def _check_work(prediction: Prediction, query: PredictQuery, classes: int, limits: Limits) -> None:
    maps = 0 if prediction.modality_maps is None else prediction.modality_maps.shape[1]
    each: dict[str, int] = {"overlays": classes, "heatmaps": classes, "modalities": classes * maps, "masks": 1}
    images = sum(each[kind] for kind in set(query.save))
    affordable = 2 * limits.max_pixels // (prediction.width * prediction.height)
    if images > affordable:
        raise Refused(
            422,
            f"{images} images of {prediction.width} x {prediction.height} pixels are more than is drawn at once.",
            f"Ask for at most {affordable}, send a smaller image, or use wildcat predict.",
        )


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def _data_url(image: Image.Image) -> str:
    return f"data:image/png;base64,{base64.b64encode(_png(image)).decode()}"


def sent_name(name: str | None) -> str:
    """The last part of a file name as a client sends it, at most 200 characters: a label, never a path.

    >>> sent_name("C:\\\\images/../dog.jpg"), sent_name(None)
    ('dog.jpg', 'image')
    """
    last = (name or "").replace("\\", "/").rsplit("/", 1)[-1].replace("\0", "")
    return last.encode("utf-8", "backslashreplace").decode()[-200:] or "image"


def zip_name(prediction: Prediction, kind: str) -> str:
    """What the zip file is called: ASCII letters, digits, dots and dashes."""
    stem = file_name(Path(prediction.path).stem).encode("ascii", "replace").decode().replace("?", "_")
    return f"{stem}-{kind}.zip"
