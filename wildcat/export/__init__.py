"""Write predictions as files and annotations that other programs read."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from wildcat.export.coco import CocoWriter
from wildcat.export.instances import Instance, InstanceParams, find_instances
from wildcat.export.label_studio import LabelStudioWriter
from wildcat.export.polygons import simplify_outline, trace_outline
from wildcat.export.predictions import SAVE_KINDS, PredictionWriter
from wildcat.export.voc import VocWriter
from wildcat.export.writer import AnnotationWriter
from wildcat.export.yolo import YoloWriter

ANNOTATION_FORMATS: dict[str, Callable[..., AnnotationWriter]] = {
    "coco": CocoWriter,
    "coco-polygons": partial(CocoWriter, polygons=True),
    "yolo": YoloWriter,
    "yolo-segment": partial(YoloWriter, segments=True),
    "voc": VocWriter,
    "label-studio": LabelStudioWriter,
}
"""Name -> writer, which takes (folder, classes, params, images=, model=); see each class for more."""

__all__ = [
    "ANNOTATION_FORMATS",
    "SAVE_KINDS",
    "AnnotationWriter",
    "CocoWriter",
    "Instance",
    "InstanceParams",
    "LabelStudioWriter",
    "PredictionWriter",
    "VocWriter",
    "YoloWriter",
    "find_instances",
    "simplify_outline",
    "trace_outline",
]
