"""Write predictions as files, and as annotations that other programs read."""

from wildcat.export.coco import CocoPolygonWriter, CocoWriter
from wildcat.export.instances import Instance, InstanceParams, find_instances
from wildcat.export.label_studio import LabelStudioWriter
from wildcat.export.polygons import simplify_outline, trace_outline
from wildcat.export.voc import VocWriter
from wildcat.export.writer import AnnotationWriter
from wildcat.export.yolo import YoloSegmentWriter, YoloWriter

ANNOTATION_FORMATS: dict[str, type[AnnotationWriter]] = {
    "coco": CocoWriter,
    "coco-polygons": CocoPolygonWriter,
    "yolo": YoloWriter,
    "yolo-segment": YoloSegmentWriter,
    "voc": VocWriter,
    "label-studio": LabelStudioWriter,
}

__all__ = ["ANNOTATION_FORMATS", "Instance", "InstanceParams", "find_instances", "simplify_outline", "trace_outline"]
