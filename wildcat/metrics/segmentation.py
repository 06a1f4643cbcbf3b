"""Mean IoU of masks, computed once from the confusion matrix of the whole data set.

Confusion matrices of images, batches and processes add up.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wildcat.errors import ShapeError
from wildcat.metrics.classification import class_indices, confusion_matrix


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


def mean_iou(confusion: ArrayLike, counted: ArrayLike | None = None) -> float:
    """Mean of `class_iou` over the classes that occur in target or prediction (VOC `VOCevalseg.m`); nan without one.

    Args:
        confusion: (C, C) of the whole data set; the mean of per-image or per-batch values differs from it.
        counted: (C,) bool, the classes to average over; None: all.

    >>> round(mean_iou([[3, 1, 0], [0, 4, 0], [0, 0, 0]]), 4)
    0.775
    """
    iou = class_iou(confusion)
    iou = iou if counted is None else iou[np.asarray(counted, dtype=bool)]
    known = iou[~np.isnan(iou)]
    return float(known.mean()) if len(known) else float("nan")


def strength_counts(
    strength: ArrayLike,
    labels: ArrayLike,
    target: ArrayLike,
    thresholds: Sequence[float],
    num_classes: int,
    ignore: int = 255,
) -> NDArray[np.int64]:
    """(T+1, C, C) pixel counts: row b holds the pixels whose strength exceeds b thresholds, by true class and label.

    Histograms of several images can be added; `confusions_by_threshold` turns them into confusions.

    Args:
        strength: (H, W) of the strongest class. labels: (H, W), that class; 0 is the background.
        target: (H, W) true classes, or `ignore`.
        thresholds: T of them, ascending.
        num_classes: C, background included.

    Raises:
        ConfigError: a true class outside the range.
    """
    target = np.asarray(target)
    above = np.searchsorted(np.asarray(thresholds, dtype=np.float32), np.asarray(strength, dtype=np.float32))
    counted = target != ignore
    class_indices("target", target[counted], num_classes)
    cells = (above * num_classes + target) * num_classes + np.asarray(labels, dtype=np.int64)
    shape = (len(thresholds) + 1, num_classes, num_classes)
    counts = np.bincount(cells[counted], minlength=int(np.prod(shape)))
    return counts.reshape(shape).astype(np.int64, copy=False)


def confusions_by_threshold(histogram: NDArray[np.int64]) -> NDArray[np.int64]:
    """(T+1, C, C) of `strength_counts` -> (T, C, C) confusion of the masks at each threshold."""
    total = histogram.sum(axis=0)
    above = total - histogram.cumsum(axis=0)[:-1]  # [t]: pixels with a strength above threshold t
    confusions: NDArray[np.int64] = above.copy()
    confusions[:, :, 0] = total.sum(axis=1) - above[:, :, 1:].sum(axis=2)  # other pixels are drawn as background
    return confusions
