"""Parameters and responses of the routes, as /openapi.json describes them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Save = Literal["overlays", "heatmaps", "modalities", "masks"]
Drawing = Literal["overlay", "heatmap", "modalities", "mask", "image"]
Format = Literal["coco", "coco-polygons", "yolo", "yolo-segment", "voc", "label-studio"]

Crf = Annotated[bool, Field(description="Refine masks with a dense CRF, which aligns them with edges; takes seconds.")]
Threshold = Annotated[
    float | None,
    Field(
        allow_inf_nan=False,
        description="Background threshold of masks instead of the model's own; a higher one gives smaller masks. A raw "
        "score if `cells` names the rule `score`, otherwise a share of each class map's maximum.",
    ),
]


class PredictQuery(BaseModel):
    """Parameters of /predict."""

    model_config = ConfigDict(extra="forbid")

    save: list[Save] = Field(
        [], max_length=8, description="Images to return in `files`, as PNG in data URLs.", examples=[["overlays"]]
    )
    classes: list[str] = Field(
        [], max_length=64, description="Classes to draw instead of the predicted ones.", examples=[["dog"]]
    )
    cells: int = Field(0, ge=0, description="Return the raw maps of this many of the most probable classes.")
    crf: Crf = False
    threshold: Threshold = None


class MapQuery(BaseModel):
    """Parameters of /map."""

    model_config = ConfigDict(extra="forbid")

    kind: Drawing = Field(
        "overlay",
        description="overlay: the heatmap and the point over the image. heatmap: the heatmap alone. modalities: the "
        "M maps behind the class, side by side. mask: indexed, 0 is background. image: the decoded image.",
    )
    class_name: str | None = Field(None, alias="class", description="Default: the most probable.", examples=["dog"])
    crf: Crf = False
    threshold: Threshold = None


class AnnotationQuery(BaseModel):
    """Parameters of /annotations."""

    model_config = ConfigDict(extra="forbid")

    format: Format = Field("coco", description="See `wildcat export annotations`.")
    min_score: float | None = Field(
        None, ge=0, le=1, description="Lowest probability of the classes to annotate; default: the predicted classes."
    )
    crf: Crf = False


class ClassCells(BaseModel):
    """The maps of one class as bytes: value v means low + v / 255 * (high - low)."""

    low: float
    high: float
    map: str = Field(description="base64 of h * w bytes, row by row.")
    modality_low: float
    modality_high: float
    modalities: list[str] = Field(description="The M modality maps; of an ensemble, the class map of each member.")
    opacity: float = Field(description="Suggested opacity of the heatmap, 1 for a predicted class.")


class MaskRule(BaseModel):
    """How the model computes its mask: the class with the highest map value, where that is above the threshold."""

    classes: list[str] = Field(description="The predicted classes, in the order of the model.")
    rule: Literal["score", "constant", "power"] = Field(
        description="score: compare raw maps; otherwise divide each map by its maximum first."
    )
    threshold: float


class Cells(BaseModel):
    """Raw class maps in the resolution of the network; the grid covers the whole image."""

    grid: tuple[int, int] = Field(description="(h, w)")
    classes: dict[str, ClassCells] = Field(description="The most probable first, then the other predicted ones.")
    mask: MaskRule


class PredictionResponse(BaseModel):
    """A row of predictions.jsonl. Points (x, y) and boxes (x1, y1, x2, y2, score) are in pixels of the image."""

    image: str = Field(description="The file name of the upload.")
    width: int
    height: int
    scores: dict[str, float] = Field(description="Raw scores (logits).")
    probabilities: dict[str, float]
    labels: list[str] = Field(description="The predicted classes, the most probable first.")
    points: dict[str, tuple[float, float]]
    boxes: dict[str, list[list[float]]] = Field(description="Of the predicted classes.")
    files: dict[str, Any] = Field(description="The images that `save` names, as data URLs.")
    mask_values: dict[str, int] | None = Field(None, description="With `save=masks`: the mask value of each class.")
    cells: Cells | None = Field(None, description="Only with `cells`.")


class MemberResponse(BaseModel):
    """One network of the model."""

    backbone: str
    num_maps: int = Field(description="M, the number of maps per class.")
    input_size: int = Field(description="Side in pixels of the square input.")


class ModelResponse(BaseModel):
    """The model of this service, and the limits of the service."""

    name: str
    task: Literal["multilabel", "multiclass"]
    classes: list[str]
    members: list[MemberResponse]
    flip: str
    device: str
    versions: dict[str, str]
    limits: dict[str, float]
    annotation_formats: list[str]


class HealthResponse(BaseModel):
    """State of the workers and of the queue."""

    status: Literal["ok", "degraded", "down"] = Field(
        description="ok: all workers are alive; degraded: some are not; down: none is (status code 503)."
    )
    workers: int
    workers_alive: int
    restarts: int = Field(description="How often workers were restarted because they crashed or hung.")
    requests: int = Field(description="Requests that run or wait.")
    queue: int = Field(description="Most requests that may run or wait.")


class ErrorResponse(BaseModel):
    """Why a request failed, and what to do."""

    detail: str
    hint: str


EXAMPLE = {
    "image": "dog.jpg",
    "width": 500,
    "height": 375,
    "scores": {"cat": -2.31, "dog": 3.17},
    "probabilities": {"cat": 0.09028, "dog": 0.9597},
    "labels": ["dog"],
    "points": {"cat": [156.25, 23.44], "dog": [281.25, 164.06]},
    "boxes": {"dog": [[151.2, 60.5, 402.7, 301.0, 6.84]]},
    "files": {},
}

# The body of a request, for OpenAPI.
UPLOAD = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["image"],
                "properties": {
                    "image": {"type": "string", "format": "binary", "description": "JPEG, PNG, WebP, GIF, BMP, TIFF."}
                },
            }
        }
    },
}

ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorResponse, "description": "The form is malformed."},
    408: {"model": ErrorResponse, "description": "The body did not arrive within the timeout."},
    413: {"model": ErrorResponse, "description": "Too many bytes or pixels."},
    415: {"model": ErrorResponse, "description": "Not a multipart form, or not an image in an accepted format."},
    422: {"model": ErrorResponse, "description": "No image, a broken image, or an invalid parameter."},
    503: {"model": ErrorResponse, "description": "Queue full, timeout, or a worker crashed: retry after Retry-After."},
}
