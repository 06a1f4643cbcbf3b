"""What is asked and answered, as the service's OpenAPI page describes it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Kind = Literal["overlays", "heatmaps", "modalities", "masks"]
Drawing = Literal["overlay", "heatmap", "modalities", "mask", "image"]
Format = Literal["coco", "coco-polygons", "yolo", "yolo-segment", "voc", "label-studio"]

Crf = Annotated[bool, Field(description="Sharpen masks to the edges of the image with a dense CRF; takes seconds.")]
Threshold = Annotated[
    float | None,
    Field(
        allow_inf_nan=False,
        description="Where a mask ends, instead of where the model's own rule ends it; higher draws less. In the unit "
        "of that rule, which `cells` names: a raw score for `score`, a part of each class map's maximum for others.",
    ),
]


class PredictQuery(BaseModel):
    """Parameters of /predict."""

    model_config = ConfigDict(extra="forbid")

    save: list[Kind] = Field(
        [], max_length=8, description="Images to send along in `files`, as PNG in data URLs.", examples=[["overlays"]]
    )
    classes: list[str] = Field(
        [], max_length=64, description="Classes to draw instead of the predicted ones.", examples=[["dog"]]
    )
    cells: int = Field(
        0, ge=0, description="Send the maps of so many of the likeliest classes too, on the network's own grid."
    )
    crf: Crf = False
    threshold: Threshold = None


class MapQuery(BaseModel):
    """Parameters of /map."""

    model_config = ConfigDict(extra="forbid")

    kind: Drawing = Field(
        "overlay",
        description="overlay: the image under the heatmap, with the point. heatmap: the heatmap alone. modalities: "
        "the M maps behind the class, side by side. mask: indexed, 0 is background. image: as it was read.",
    )
    class_name: str | None = Field(None, alias="class", description="Without it, the likeliest.", examples=["dog"])
    crf: Crf = False
    threshold: Threshold = None


class AnnotationQuery(BaseModel):
    """Parameters of /annotations."""

    model_config = ConfigDict(extra="forbid")

    format: Format = Field("coco", description="As `wildcat export annotations` writes it.")
    min_score: float | None = Field(
        None, ge=0, le=1, description="Write the classes of at least this probability; by default the predicted ones."
    )
    crf: Crf = False


class ClassCells(BaseModel):
    """The maps of one class; cell v of 0 to 255 stands for low + v / 255 * (high - low)."""

    low: float
    high: float
    map: str = Field(description="base64 of h * w bytes, row by row.")
    modality_low: float
    modality_high: float
    modalities: list[str] = Field(description="M of the same; of a model of several networks, one map each.")
    opacity: float = Field(description="How strongly heat is best drawn, 1 where the class is predicted.")


class MaskRule(BaseModel):
    """How the model draws its mask: the strongest of the classes, wherever it is above the threshold."""

    classes: list[str] = Field(description="Likely enough to be drawn, in the order of the model's.")
    rule: Literal["score", "constant", "power"] = Field(
        description="score: maps are compared as they are; otherwise each is divided by its maximum first."
    )
    threshold: float


class Cells(BaseModel):
    """Class maps as the network made them; the grid covers the whole image."""

    grid: tuple[int, int] = Field(description="h, w")
    classes: dict[str, ClassCells] = Field(description="The likeliest first, then others that are in the mask.")
    mask: MaskRule


class PredictionAnswer(BaseModel):
    """A row of predictions.jsonl. Points (x, y) and boxes x1 y1 x2 y2 score are in pixels of the image."""

    image: str = Field(description="The file name that was sent.")
    width: int
    height: int
    scores: dict[str, float] = Field(description="Raw.")
    probabilities: dict[str, float]
    labels: list[str] = Field(description="The predicted classes, likeliest first.")
    points: dict[str, tuple[float, float]]
    boxes: dict[str, list[list[float]]] = Field(description="Of the predicted classes.")
    files: dict[str, Any] = Field(description="What `save` asked for, as data URLs where the file has paths.")
    mask_values: dict[str, int] | None = Field(None, description="With `save=masks`: the value of each drawn class.")
    cells: Cells | None = Field(None, description="Only with `cells`.")


class MemberAnswer(BaseModel):
    """One network."""

    backbone: str
    num_maps: int = Field(description="M, the maps behind each class.")
    input_size: int = Field(description="Side in pixels of the square an image is warped to.")


class ModelAnswer(BaseModel):
    """The model that is served."""

    name: str
    task: Literal["multilabel", "multiclass"]
    classes: list[str]
    members: list[MemberAnswer]
    flip: str
    device: str
    versions: dict[str, str]
    limits: dict[str, float]
    annotation_formats: list[str]


class HealthAnswer(BaseModel):
    """Whether the service can answer, and how busy it is."""

    status: Literal["ok", "down"]
    requests: int = Field(description="Answered now or waiting.")
    places: int = Field(description="As many may be.")


class RefusalAnswer(BaseModel):
    """Why a request was refused."""

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
"""The body of a request, for OpenAPI."""

REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": RefusalAnswer, "description": "The form is broken."},
    408: {"model": RefusalAnswer, "description": "The body did not arrive in time."},
    413: {"model": RefusalAnswer, "description": "Too many bytes or pixels."},
    415: {"model": RefusalAnswer, "description": "Not multipart, or no image of a known kind."},
    422: {"model": RefusalAnswer, "description": "No image, a broken one, or a parameter that does not fit."},
    503: {"model": RefusalAnswer, "description": "Too busy, or the answer took too long: try again (Retry-After)."},
}
