"""Class maps in; points, boxes and masks out."""

from wildcat.regions.boxes import Box, connected_components, map_to_boxes
from wildcat.regions.crf import MILD_CRF, CrfParams, dense_crf, exact_dense_crf
from wildcat.regions.masks import (
    MaskParams,
    class_probabilities_with_background,
    gate_classes,
    maps_to_mask,
    normalize_maps,
    strongest_class,
    upsample_maps,
    write_mask,
)
from wildcat.regions.points import peak_points

__all__ = [
    "MILD_CRF",
    "Box",
    "CrfParams",
    "MaskParams",
    "class_probabilities_with_background",
    "connected_components",
    "dense_crf",
    "exact_dense_crf",
    "gate_classes",
    "map_to_boxes",
    "maps_to_mask",
    "normalize_maps",
    "peak_points",
    "strongest_class",
    "upsample_maps",
    "write_mask",
]
