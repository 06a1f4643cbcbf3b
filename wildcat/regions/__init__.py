"""From class maps to points, boxes and masks."""

from wildcat.regions.boxes import Box, map_to_boxes
from wildcat.regions.crf import MILD_CRF, CrfParams, dense_crf
from wildcat.regions.masks import (
    MaskParams,
    class_probabilities_with_background,
    maps_to_mask,
    strongest_class,
    upsample_maps,
    write_mask,
)
from wildcat.regions.pamr import pamr
from wildcat.regions.points import peak_points
from wildcat.regions.propagation import random_walk

__all__ = [
    "MILD_CRF",
    "Box",
    "CrfParams",
    "MaskParams",
    "class_probabilities_with_background",
    "dense_crf",
    "map_to_boxes",
    "maps_to_mask",
    "pamr",
    "peak_points",
    "random_walk",
    "strongest_class",
    "upsample_maps",
    "write_mask",
]
