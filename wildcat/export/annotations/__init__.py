"""Annotations out of predictions, in the formats of the tools that train on them, correct them and measure them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from wildcat.export.annotations.coco import CocoWriter
from wildcat.export.annotations.instances import Instance, InstanceParams, find_instances
from wildcat.export.annotations.label_studio import LabelStudioWriter
from wildcat.export.annotations.outlines import simplify_outline, trace_outline
from wildcat.export.annotations.voc import VocWriter
from wildcat.export.annotations.writer import AnnotationWriter
from wildcat.export.annotations.yolo import YoloWriter

ANNOTATION_FORMATS: dict[str, Callable[..., AnnotationWriter]] = {
    "coco": CocoWriter,
    "coco-polygons": partial(CocoWriter, polygons=True),
    "yolo": YoloWriter,
    "yolo-segment": partial(YoloWriter, segments=True),
    "voc": VocWriter,
    "label-studio": LabelStudioWriter,
}
"""Name -> writer, which takes (folder, classes, params, pictures=, model=); see each class for more."""

__all__ = [
    "ANNOTATION_FORMATS",
    "AnnotationWriter",
    "CocoWriter",
    "Instance",
    "InstanceParams",
    "LabelStudioWriter",
    "VocWriter",
    "YoloWriter",
    "find_instances",
    "simplify_outline",
    "trace_outline",
]
