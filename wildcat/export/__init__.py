"""Predictions on disk, in the forms other programs read."""

from wildcat.export.annotations import ANNOTATION_FORMATS, AnnotationWriter, InstanceParams, find_instances
from wildcat.export.predictions import SAVE_KINDS, PredictionWriter

__all__ = [
    "ANNOTATION_FORMATS",
    "SAVE_KINDS",
    "AnnotationWriter",
    "InstanceParams",
    "PredictionWriter",
    "find_instances",
]
