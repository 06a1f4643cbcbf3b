"""Responses made of a prediction, and the parameters of their routes.

JSON like a row of predictions.jsonl, drawings as PNG, and annotations as a zip file.
"""

from __future__ import annotations

import base64
import io
import json
import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from wildcat.export import ANNOTATION_FORMATS, InstanceParams
from wildcat.export.predictions import draw_heatmap, draw_modalities
from wildcat.files import file_name, writing
from wildcat.prediction import OPACITY, Prediction
from wildcat.regions.masks import HIGHEST_PNG_LABEL
from wildcat.serve.uploads import RequestError
from wildcat.viz.colors import class_palette, unit_range
from wildcat.viz.overlay import side_by_side

Crf = Annotated[
    bool | None,
    Field(
        description="Refine masks with a dense CRF, which aligns them with edges; takes seconds. Default: `crf` of "
        "/model."
    ),
]
Propagate = Annotated[
    bool | None,
    Field(
        description="Spread masks up to the trained boundaries, if `boundaries` of /model is true; default: its "
        "`propagate`."
    ),
]
Threshold = Annotated[
    float | None,
    Field(
        allow_inf_nan=False,
        description="Background threshold of masks instead of the model's own; a higher one gives smaller masks. A raw "
        "score if `cells` names the rule `score`, otherwise a share of each class map's maximum.",
    ),
]


class Query(BaseModel):
    """Parameters of a route; others are refused."""

    model_config = ConfigDict(extra="forbid")


class PredictQuery(Query):
    """Parameters of /predict."""

    save: list[Literal["overlays", "heatmaps", "modalities", "masks"]] = Field(
        [], max_length=8, description="Images to return in `files`, as PNG in data URLs.", examples=[["overlays"]]
    )
    classes: list[str] = Field(
        [], max_length=64, description="Classes to draw instead of the predicted ones.", examples=[["dog"]]
    )
    cells: int = Field(0, ge=0, description="Return the raw maps of this many of the most probable classes.")
    crf: Crf = None
    propagate: Propagate = None
    threshold: Threshold = None


class MapQuery(Query):
    """Parameters of /map."""

    kind: Literal["overlay", "heatmap", "modalities", "mask", "image"] = Field(
        "overlay",
        description="overlay: the heatmap and the point over the image. heatmap: the heatmap alone. modalities: the "
        "M maps behind the class, side by side, or one if they are alike. mask: indexed, 0 is background. image: the "
        "decoded image.",
    )
    class_name: str | None = Field(None, alias="class", description="Default: the most probable.", examples=["dog"])
    crf: Crf = None
    propagate: Propagate = None
    threshold: Threshold = None


class AnnotationQuery(Query):
    """Parameters of /annotations."""

    format: Literal["coco", "coco-polygons", "yolo", "yolo-segment", "voc", "label-studio"] = Field(
        "coco", description="See `wildcat export --format`."
    )
    min_score: float | None = Field(
        None, ge=0, le=1, description="Lowest probability of the classes to annotate; default: the predicted classes."
    )
    crf: Crf = None
    propagate: Propagate = None
    threshold: Threshold = None


def prediction_json(prediction: Prediction, query: PredictQuery, max_pixels: int) -> bytes:
    """The row of predictions.jsonl as JSON, with `files` as data URLs.

    Raises:
        RequestError: 422, `save` names drawings with more than twice `max_pixels` in total.
        ConfigError: an unknown class, a threshold outside the range of the model's rule, or no boundaries to propagate
            to.
    """
    prediction.walls(query.propagate)
    drawn = tuple(dict.fromkeys(query.classes)) or prediction.labels or (prediction.top,)
    for name in drawn:
        prediction.index_of(name)  # raises for an unknown class before any drawing
    maps = {name: drawn_maps(prediction, name) for name in drawn} if "modalities" in query.save else {}
    counts = {"overlays": len(drawn), "heatmaps": len(drawn), "modalities": sum(maps.values())}
    check_drawings(prediction, sum(counts.get(kind, 0) for kind in set(query.save)), max_pixels)
    files: dict[str, Any] = {}
    row = {**prediction.to_dict(), "files": files}
    if "overlays" in query.save:
        files["overlays"] = {c: _data_url(prediction.plot(c)) for c in drawn}
        if prediction.legend:
            row["legend"] = prediction.legend
    if "heatmaps" in query.save:
        files["heatmaps"] = {c: _data_url(draw_heatmap(prediction, c)) for c in drawn}
    if "modalities" in query.save:
        files["modalities"] = {c: [_data_url(m) for m in draw_modalities(prediction, c)[0]] for c in drawn}
    if "masks" in query.save:
        mask, row["mask_values"] = draw_mask(prediction, query.crf, query.threshold, query.propagate)
        files["masks"] = _data_url(mask)
    if query.cells:
        row["cells"] = cells(prediction, query.cells)
    return json.dumps(row, allow_nan=False).encode()


def drawn_maps(prediction: Prediction, name: str) -> int:
    """How many of the M maps of a class `draw_modalities` draws: maps that are alike once."""
    if prediction.modality_maps is None:
        return 0
    return prediction.modality_maps.shape[1] if prediction.map_shares(name) else 1


def check_drawings(prediction: Prediction, count: int, max_pixels: int) -> None:
    """Refuse more than twice `max_pixels` in all drawings of an image.

    Raises:
        RequestError: 422.
    """
    height, width = prediction.drawn_size
    allowed = 2 * max_pixels // (height * width)
    if count > allowed:
        raise RequestError(
            422,
            f"{count} drawings of {width} x {height} pixels are too many for one request.",
            f"Request at most {allowed}, send a smaller image, or use wildcat predict.",
        )


def draw_map(prediction: Prediction, query: MapQuery, max_pixels: int) -> bytes:
    """One PNG of a prediction.

    Raises:
        RequestError: 422, the maps of the class have more than twice `max_pixels` in total.
        ConfigError: an unknown class, a threshold outside the range of the model's rule, or no boundaries to propagate
            to.
    """
    prediction.walls(query.propagate)
    name = prediction.top if query.class_name is None else query.class_name
    match query.kind:
        case "image":
            return _png(prediction.load_image())
        case "mask":
            return _png(draw_mask(prediction, query.crf, query.threshold, query.propagate)[0])
        case "modalities":
            check_drawings(prediction, drawn_maps(prediction, name), max_pixels)
            return _png(side_by_side(*draw_modalities(prediction, name)))
        case "heatmap":
            return _png(draw_heatmap(prediction, name))
        case "overlay":
            return _png(prediction.plot(name))


def annotation_zip(prediction: Prediction, query: AnnotationQuery, model: str) -> tuple[bytes, str]:
    """A zip of the folder that `wildcat export --format` writes for this image, and its file name.

    Raises:
        ConfigError: the format does not support these class names, a threshold outside the range of the model's rule,
            or no boundaries to propagate to.
    """
    params = InstanceParams(query.min_score, crf=query.crf, propagate=query.propagate, threshold=query.threshold)
    with tempfile.TemporaryDirectory(prefix="wildcat-") as temporary:
        folder = Path(temporary) / "annotations"
        with ANNOTATION_FORMATS[query.format](folder, prediction.classes, params, model=model) as writer:
            writer.add(prediction, prediction.path)
        with writing(folder):
            content = Path(shutil.make_archive(str(folder), "zip", folder)).read_bytes()
    stem = file_name(Path(prediction.path).stem).encode("ascii", "replace").decode().replace("?", "_")
    return content, f"{stem}-{query.format}.zip"


def draw_mask(
    prediction: Prediction, crf: bool | None, threshold: float | None, propagate: bool | None
) -> tuple[Image.Image, dict[str, int]]:
    """The mask as an indexed image with the VOC palette, and the value of each class in it; 0 is background.

    The value of classes[i] is i + 1; a model with more than 254 classes numbers the classes in the mask from 1.
    `threshold` replaces the background threshold of the model only.
    """
    params = None if threshold is None else prediction.mask_params().with_threshold(threshold)
    mask: NDArray[np.integer] = prediction.mask(crf, params, propagate=propagate)
    labels = np.unique(mask[mask > 0]).tolist()
    values = {label: label for label in labels}
    if len(prediction.classes) > HIGHEST_PNG_LABEL:
        values = {label: number for number, label in enumerate(labels[:HIGHEST_PNG_LABEL], 1)}
    table = np.zeros(len(prediction.classes) + 1, dtype=np.uint8)
    table[list(values)] = list(values.values())
    image = Image.fromarray(table[mask])
    image.putpalette(class_palette().tobytes())
    return image, {prediction.classes[label - 1]: value for label, value in values.items()}


def cells(prediction: Prediction, count: int) -> dict[str, Any]:
    """The class maps in the resolution of the network, and how the model computes its mask from them.

    `classes` has the `count` most probable classes, then the other predicted ones. Their maps are bytes in base64, row
    by row: value v means low + v / 255 * (high - low). `opacity` is that of the heatmap, 1 for a predicted class.
    `shares` of the modality maps: see `Prediction.map_shares`; null if they are alike.
    """
    params, order = prediction.mask_params(), np.argsort(-prediction.class_scores, kind="stable")
    names = dict.fromkeys([*(prediction.classes[i] for i in order[:count].tolist()), *prediction.labels])
    classes = {}
    for name in names:
        class_map = prediction.class_maps[prediction.index_of(name)]
        maps, shares = class_map[None], None
        if prediction.modality_maps is not None:
            maps = prediction.modality_maps[prediction.index_of(name)]
            shares = prediction.map_shares(name)
        classes[name] = {
            "low": float(class_map.min()),
            "high": float(class_map.max()),
            "map": _levels(class_map[None])[0],
            "modality_low": float(maps.min()),
            "modality_high": float(maps.max()),
            "modalities": _levels(maps),
            "shares": shares,
            "opacity": round(prediction.opacity(name) / OPACITY, 4),
        }
    return {
        "grid": list(prediction.class_maps.shape[1:]),
        "classes": classes,
        "mask": {
            "classes": [name for name in prediction.classes if name in prediction.labels],
            "rule": params.rule,
            "threshold": params.threshold,
            "superpixels": params.superpixels,
        },
    }


def _levels(maps: NDArray[np.float32]) -> list[str]:
    """(M, h, w) -> base64 of the bytes of each map; 0 is the minimum of all maps, 255 the maximum."""
    levels = (unit_range(maps) * 255).round().astype(np.uint8)
    return [base64.b64encode(m.tobytes()).decode() for m in levels]


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def _data_url(image: Image.Image) -> str:
    return f"data:image/png;base64,{base64.b64encode(_png(image)).decode()}"
