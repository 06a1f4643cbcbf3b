"""Mean IoU of masks, computed once from the confusion matrix of the whole data set.

Confusion matrices of images, batches and processes add up.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wildcat.errors import ShapeError
from wildcat.metrics.classification import confusion_matrix


def overlap_confusion(
    prediction: ArrayLike, target: ArrayLike, num_classes: int, ignore: int = 255
) -> NDArray[np.int64]:
    """(C, C) pixel counts: row = true class, column = predicted class. Sum them over the data set.

    Args:
        prediction: (H, W) integers in [0, num_classes).
        target: (H, W) integers in [0, num_classes), or `ignore`: those pixels do not count.
        num_classes: C, background included (21 for VOC).
        ignore: the target value to leave out (VOC's border: 255).

    Raises:
        ShapeError: the two masks differ in shape.
        ConfigError: a value outside the range.

    >>> overlap_confusion([[0, 1, 1]], [[0, 1, 255]], num_classes=2).tolist()
    [[1, 0], [0, 1]]
    """
    predicted, true = np.asarray(prediction), np.asarray(target)
    if predicted.shape != true.shape:
        raise ShapeError(
            f"prediction {predicted.shape} and target {true.shape} differ in shape.",
            "Resize the prediction to the target's (height, width), not the target.",
        )
    counted = true != ignore
    return confusion_matrix(true[counted], predicted[counted], num_classes)


def class_iou(confusion: ArrayLike) -> NDArray[np.float64]:
    """(C,) intersection over union of each class; nan for a class absent from both target and prediction.

    Raises:
        ShapeError: `confusion` is not square.

    >>> class_iou([[3, 1, 0], [0, 4, 0], [0, 0, 0]]).tolist()
    [0.75, 0.8, nan]
    """
    counts = np.asarray(confusion, dtype=np.float64)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1]:
        raise ShapeError(f"confusion has shape {counts.shape}, not (C, C).", "Build it with overlap_confusion.")
    intersection = np.diag(counts)
    union = counts.sum(axis=0) + counts.sum(axis=1) - intersection
    iou = np.full(len(counts), np.nan)
    np.divide(intersection, union, out=iou, where=union > 0)
    return iou


def mean_iou(confusion: ArrayLike) -> float:
    """Mean of `class_iou` over the classes that occur in target or prediction (VOC `VOCevalseg.m`); nan without one.

    `confusion` is the (C, C) matrix of the whole data set; the mean of per-image or per-batch values differs from it.

    >>> round(mean_iou([[3, 1, 0], [0, 4, 0], [0, 0, 0]]), 4)
    0.775
    """
    iou = class_iou(confusion)
    known = iou[~np.isnan(iou)]
    return float(known.mean()) if len(known) else float("nan")
