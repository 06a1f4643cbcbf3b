"""CVAT: a model as a detection function of its auto-annotation SDK.

    cvat-cli task auto-annotate 7 --function-module wildcat.integrations.cvat -p model=str:runs/mine

The interface is described at https://docs.cvat.ai/docs/api_sdk/sdk/auto-annotation/.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from wildcat.errors import ConfigError, did_you_mean, import_extra
from wildcat.export.instances import Instance, InstanceParams, find_instances, predicted_classes
from wildcat.methods import no_maps
from wildcat.prediction import Prediction
from wildcat.predictor import Predictor, load

REGION_SHAPES = ("rectangle", "polygon", "mask")  # one for each connected region of a predicted class
SHAPES = (*REGION_SHAPES, "points", "tag")
SIMPLIFY = 1.0  # tolerance of polygons in pixels, see `simplify_outline`


def create(model: str, shapes: str = "rectangle", **options: Any) -> DetectionFunction:
    """The detection function that `cvat-cli` asks this module for.

    Args:
        model: a model folder, or a packaged model.
        shapes: what stands for a predicted class, separated by commas: a `rectangle`, `polygon` or `mask` for each of
            its connected regions, its `points`, and the `tag` of the image.
        options: of `wildcat.load`, typed as `-p tile=int:1024` or `-p crf=bool:true`.

    Raises:
        ConfigError: an unknown shape, or one that needs class maps for a model without them.
        RunError: no such model.
        MissingExtra: cvat-sdk is not installed.
    """
    kinds = tuple(dict.fromkeys(kind.strip() for kind in shapes.split(",")))
    for kind in kinds:
        if kind not in SHAPES:
            hint = did_you_mean(kind, SHAPES) or f"Choose from: {', '.join(SHAPES)}."
            raise ConfigError(f"shapes={shapes}: {kind!r} is no shape.", hint)
    import_extra("cvat_sdk.auto_annotation", "cvat-sdk", "cvat")
    predictor = load(model, **options)
    if kinds != ("tag",) and not predictor.has_maps:
        raise no_maps(model)
    return DetectionFunction(predictor, kinds)


class DetectionFunction:
    """A detection function of CVAT.

    Attributes:
        spec: the classes of the model as labels; their ids are their indices. With one kind of shape the labels have
            its type, and CVAT refuses a task whose labels take other shapes before an image is predicted.
    """

    def __init__(self, predictor: Predictor, shapes: Sequence[str]) -> None:
        self.predictor, self.shapes = predictor, shapes
        sdk = import_extra("cvat_sdk.auto_annotation", "cvat-sdk", "cvat")
        kind = shapes[0] if len(shapes) == 1 else "any"
        labels = [sdk.label_spec(name, i, type=kind) for i, name in enumerate(predictor.classes)]
        self.spec = sdk.DetectionFunctionSpec(labels=labels)

    def detect(self, context: Any, image: Image.Image) -> list[Any]:
        """The annotations of an image, as requests of the SDK.

        Args:
            context: its `conf_threshold` is the minimum probability of a class, instead of the thresholds of the model;
                with `conv_mask_to_poly`, masks become polygons.
        """
        prediction = self.predictor.predict(image, modalities=False)
        to_polygons = getattr(context, "conv_mask_to_poly", False)  # the oldest SDK does not have it
        shapes = ["polygon" if kind == "mask" and to_polygons else kind for kind in self.shapes]
        return list(annotate(prediction, shapes, context.conf_threshold))


def annotate(prediction: Prediction, shapes: Sequence[str], min_score: float | None = None) -> Iterator[Any]:
    """The annotations of a prediction, likeliest class first; those of a class have its index as label.

    Args:
        shapes: some of `SHAPES`.
        min_score: minimum probability of a class; None: the predicted classes.
    """
    from cvat_sdk.models import LabeledImageRequest  # noqa: PLC0415  # optional

    if not set(REGION_SHAPES).isdisjoint(shapes):
        for instance in find_instances(prediction, InstanceParams(min_score=min_score)):
            for kind in REGION_SHAPES:
                if kind in shapes:
                    points = _region_points(kind, instance, (prediction.height, prediction.width))
                    yield _shape(instance.class_index, kind, points, instance.score)
    for name in predicted_classes(prediction, min_score):
        index, score = prediction.index_of(name), prediction.probabilities[name]
        if "points" in shapes:
            yield _shape(index, "points", list(prediction.points[name]), score)
        if "tag" in shapes:
            yield LabeledImageRequest(label_id=index, frame=0)


def _region_points(kind: str, instance: Instance, size: tuple[int, int]) -> list[float]:
    """The numbers that describe a region in an image of (height, width)."""
    if kind == "rectangle":
        return [float(value) for value in instance.box]
    if kind == "polygon":
        return [float(value) for value in instance.outline(SIMPLIFY).ravel()]
    from cvat_sdk.masks import encode_mask  # noqa: PLC0415  # optional

    mask = np.zeros(size, np.uint8)
    instance.paint(mask, 1)
    return list(encode_mask(mask > 0, instance.box))


def _shape(index: int, kind: str, points: list[float], score: float) -> Any:
    from cvat_sdk.models import LabeledShapeRequest  # noqa: PLC0415  # optional

    scored = {"score": round(score, 4)} if "score" in LabeledShapeRequest.attribute_map else {}  # new in the SDK
    return LabeledShapeRequest(label_id=index, frame=0, type=kind, points=points, **scored)
