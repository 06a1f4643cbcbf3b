"""Arrays in, numbers out: ranking, pointing and overlap measures, in NumPy."""

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
from wildcat.metrics.segmentation import (
    box_iou,
    class_iou,
    max_box_accuracy,
    max_box_accuracy_v2,
    mean_iou,
    overlap_confusion,
    pixel_average_precision,
    pixel_histogram,
)

__all__ = [
    "ApVariant",
    "PrecisionRecall",
    "average_precision",
    "box_iou",
    "class_iou",
    "class_mean_accuracy",
    "confusion_matrix",
    "max_box_accuracy",
    "max_box_accuracy_v2",
    "mean_average_precision",
    "mean_iou",
    "multiclass_accuracy",
    "overlap_confusion",
    "pixel_average_precision",
    "pixel_histogram",
    "point_hits",
    "pointing_average_precision",
    "pointing_game",
    "precision_recall_curve",
    "roc_auc",
]
