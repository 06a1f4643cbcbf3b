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
from wildcat.metrics.segmentation import (
    class_iou,
    confusions_by_threshold,
    mean_iou,
    overlap_confusion,
    strength_counts,
)
from wildcat.metrics.significance import corrected_t_test, holm
from wildcat.metrics.wsol import (
    LocalizationCounts,
    box_hits,
    box_iou,
    localization_counts,
    max_box_accuracy,
    normalized_heatmap,
    pixel_average_precision,
    pixel_histogram,
)

__all__ = [
    "ApVariant",
    "LocalizationCounts",
    "PrecisionRecall",
    "average_precision",
    "box_hits",
    "box_iou",
    "class_iou",
    "class_mean_accuracy",
    "cluster_purity",
    "confusion_matrix",
    "confusions_by_threshold",
    "corrected_t_test",
    "holm",
    "localization_counts",
    "map_shares",
    "maps_differ",
    "mask_coverage",
    "max_box_accuracy",
    "mean_average_precision",
    "mean_iou",
    "multiclass_accuracy",
    "normalized_heatmap",
    "overlap_confusion",
    "pixel_average_precision",
    "pixel_histogram",
    "point_hits",
    "pointing_average_precision",
    "pointing_game",
    "precision_recall_curve",
    "roc_auc",
    "strength_counts",
    "top_region_iou",
]
