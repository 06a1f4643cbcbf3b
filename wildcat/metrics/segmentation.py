"""How well masks and boxes cover the objects: mIoU on the data-set confusion matrix, box IoU, and the measures of
Choe et al., CVPR 2020 (*Evaluating Weakly Supervised Object Localization Methods Right*): MaxBoxAcc, MaxBoxAccV2, PxAP.

Counts come first and add up over images, batches and processes; a number is computed once, from the sum.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wildcat.errors import ConfigError, ShapeError
from wildcat.metrics.classification import check_no_nan, confusion_matrix


def overlap_confusion(
    prediction: ArrayLike, target: ArrayLike, num_classes: int, ignore: int = 255
) -> NDArray[np.int64]:
    """(C, C) pixel counts: row = the true class, column = the predicted class. Add them up over the data set.

    Args:
        prediction: (H, W) integers in [0, num_classes).
        target: (H, W) integers in [0, num_classes), or `ignore`: those pixels do not count, whatever was predicted.
        num_classes: C, the background included (21 for VOC).
        ignore: the target value to leave out (VOC's white border: 255).

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
            "Resize the prediction to the target's (height, width), never the target.",
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

    `confusion` is the (C, C) matrix of the whole data set: the mean of per-image or per-batch values is another number.

    >>> round(mean_iou([[3, 1, 0], [0, 4, 0], [0, 0, 0]]), 4)
    0.775
    """
    iou = class_iou(confusion)
    known = iou[~np.isnan(iou)]
    return float(known.mean()) if len(known) else float("nan")


def box_iou(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """(n, m) intersection over union of boxes (n, 4) and (m, 4), x1 y1 x2 y2 with exclusive edges; 0 for empty boxes.

    Raises:
        ShapeError: not rows of four.

    >>> box_iou([[0, 0, 2, 2]], [[1, 0, 3, 2], [5, 5, 6, 6]]).round(4).tolist()
    [[0.3333, 0.0]]
    """
    left, right = _boxes("a", a)[:, None], _boxes("b", b)[None]
    sides = np.minimum(left[..., 2:], right[..., 2:]) - np.maximum(left[..., :2], right[..., :2])
    intersection = sides.clip(min=0).prod(axis=-1)
    union = _area(left) + _area(right) - intersection
    iou: NDArray[np.float64] = np.zeros_like(intersection)
    np.divide(intersection, union, out=iou, where=union > 0)
    return iou


def max_box_accuracy(best_iou: ArrayLike, iou_threshold: float = 0.5) -> tuple[float, int]:
    """MaxBoxAcc: (share of images localized at the best map threshold, the index of that threshold).

    The map threshold is one for the whole data set; a tie goes to the first.

    Args:
        best_iou: (N, T) for each image and each of T map thresholds, the best IoU of a predicted with a true box (0
            where no box was predicted). In the paper's first version only the largest component gives a box.
        iou_threshold: an image is localized when its IoU is at least this.

    Raises:
        ShapeError: `best_iou` is not (N, T) with at least one image and one threshold.
        ConfigError: a NaN.

    >>> max_box_accuracy([[0.2, 0.6], [0.7, 0.5], [0.1, 0.0]])[1]
    1
    """
    iou = np.asarray(best_iou, dtype=np.float64)
    if iou.ndim != 2 or iou.size == 0:
        raise ShapeError(f"best_iou has shape {iou.shape}, not (images, map thresholds).", "Give one row per image.")
    check_no_nan("best_iou", iou)
    accuracy = (iou >= iou_threshold).mean(axis=0)
    best = int(accuracy.argmax())
    return float(accuracy[best]), best


def max_box_accuracy_v2(best_iou: ArrayLike, iou_thresholds: Sequence[float] = (0.3, 0.5, 0.7)) -> float:
    """MaxBoxAccV2: the mean of `max_box_accuracy` over IoU thresholds, each with its own best map threshold.

    In the paper's second version the boxes of all components of a map compete; `best_iou` is (N, T) as above.

    >>> round(max_box_accuracy_v2([[0.2, 0.6], [0.75, 0.5], [0.1, 0.0]]), 4)
    0.5556
    """
    if not iou_thresholds:
        raise ConfigError("iou_thresholds is empty.", "Give at least one, for example (0.3, 0.5, 0.7).")
    return float(np.mean([max_box_accuracy(best_iou, t)[0] for t in iou_thresholds]))


def pixel_histogram(
    heatmap: ArrayLike, mask: ArrayLike, ignore: int = 255, num_thresholds: int = 1000
) -> NDArray[np.int64]:
    """(2, num_thresholds + 1) counts of background (row 0) and object (row 1) pixels by heat. Add them up over images.

    Args:
        heatmap: (H, W) in [0, 1], normalised per image by its minimum and maximum as in the paper.
        mask: (H, W) of 1 or True on the object, 0 elsewhere, `ignore` where the pixel does not count.
        ignore: see `mask`.
        num_thresholds: bins over [0, 1); the last column holds heat of exactly 1.

    Raises:
        ShapeError: the two differ in shape.
        ConfigError: heat outside [0, 1] or NaN, or another value in the mask.
    """
    heat, true = np.asarray(heatmap, dtype=np.float64), np.asarray(mask)
    if heat.shape != true.shape:
        raise ShapeError(
            f"heatmap {heat.shape} and mask {true.shape} differ in shape.", "Resize the heatmap to the mask."
        )
    check_no_nan("heatmap", heat)
    if heat.size and (heat.min() < 0 or heat.max() > 1):
        raise ConfigError(
            f"heatmap runs from {heat.min():g} to {heat.max():g}, outside [0, 1].",
            "Normalise each map: (map - map.min()) / (map.max() - map.min()).",
        )
    counted = true != ignore
    if not np.isin(true[counted], (0, 1)).all():
        raise ConfigError(
            "mask holds values other than 0, 1 and ignore.", "Give one class's mask: mask == class index."
        )
    edges = np.append(np.arange(num_thresholds + 1) / num_thresholds, np.inf)
    on_object = true[counted] == 1
    return np.stack([np.histogram(heat[counted][on_object == side], edges)[0] for side in (False, True)]).astype(
        np.int64
    )


def pixel_average_precision(histogram: ArrayLike) -> float:
    """PxAP: area under the precision-recall curve of all images' pixels; nan without object pixels.

    `histogram` is the sum of the images' `pixel_histogram`. The area is the step sum of precision times the gain in
    recall, from the highest threshold down (`wsolevaluation`, `MaskEvaluator.compute`, there in percent).

    Raises:
        ShapeError: `histogram` is not (2, bins).

    >>> pixel_average_precision(pixel_histogram([[0.9, 0.8, 0.1]], [[1, 0, 1]]))
    0.8333333333333333
    """
    counts = np.asarray(histogram, dtype=np.int64)
    if counts.ndim != 2 or counts.shape[0] != 2:
        raise ShapeError(f"histogram has shape {counts.shape}, not (2, bins).", "Build it with pixel_histogram.")
    false_positives, true_positives = counts[:, ::-1].cumsum(axis=1)
    answered = true_positives + false_positives
    if not counts[1].sum():
        return float("nan")
    precision = np.divide(true_positives, answered, out=np.zeros(len(answered)), where=answered > 0)
    return float(np.diff(true_positives / true_positives[-1], prepend=0.0) @ precision)


def _boxes(name: str, values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        return np.zeros((0, 4))
    if array.ndim != 2 or array.shape[1] != 4:
        raise ShapeError(f"{name} has shape {array.shape}, not (n, 4).", "Give rows of x1 y1 x2 y2.")
    return array


def _area(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    area: NDArray[np.float64] = (boxes[..., 2:] - boxes[..., :2]).clip(min=0).prod(axis=-1)
    return area
