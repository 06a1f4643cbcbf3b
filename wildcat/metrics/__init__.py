"""Metrics of classification, localization and segmentation, as functions of NumPy arrays."""

from wildcat.metrics.classification import (
    ApVariant,
    PrecisionRecall,
    average_precision,
    class_mean_accuracy,
    confusion_matrix,
    mean_average_precision,
    multiclass_accuracy,
    precision_recall_curve,
    roc_auc,
)
from wildcat.metrics.localization import point_hits, pointing_average_precision, pointing_game
from wildcat.metrics.modalities import cluster_purity, map_shares, maps_differ, mask_coverage, top_region_iou
from wildcat.metrics.segmentation import class_iou, mean_iou, overlap_confusion

__all__ = [
    "ApVariant",
    "PrecisionRecall",
    "average_precision",
    "class_iou",
    "class_mean_accuracy",
    "cluster_purity",
    "confusion_matrix",
    "map_shares",
    "maps_differ",
    "mask_coverage",
    "mean_average_precision",
    "mean_iou",
    "multiclass_accuracy",
    "overlap_confusion",
    "point_hits",
    "pointing_average_precision",
    "pointing_game",
    "precision_recall_curve",
    "roc_auc",
    "top_region_iou",
]
