"""Classification metrics: average precision in three variants, ROC AUC, accuracy.

Every function takes the arrays of a whole data set; results do not depend on the order of the rows. Equal scores form
one group: precision and recall are taken at the end of each group, as in scikit-learn (in the VOC devkits, ties follow
the order of the sort).
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wildcat.errors import ConfigError, ShapeError, did_you_mean

ApVariant = Literal["voc07", "voc10", "plain"]
VARIANTS: tuple[str, ...] = get_args(ApVariant)

# The devkit's `0:0.1:1` as MATLAB computes it, from both ends: the fourth level is 3 * 0.1 = 0.30000000000000004, so a
# recall of exactly 3/10 is below it, whereas 6/10 and 7/10 reach their levels.
VOC07_LEVELS: NDArray[np.float64] = np.concatenate([0.1 * np.arange(6), 1 - 0.1 * np.arange(4, -1, -1)])


class PrecisionRecall(NamedTuple):
    """One point per distinct score, in descending order of the score.

    Attributes:
        precision: (K,) in [0, 1], over the rows that score at least the threshold.
        recall: (K,) in [0, 1], non-decreasing.
        thresholds: (K,) the distinct scores, descending.
    """

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    thresholds: NDArray[np.float64]


def average_precision(scores: ArrayLike, labels: ArrayLike, variant: ApVariant = "voc10") -> float:
    """Average precision of one class.

    Args:
        scores: (N,), higher means more likely present; any scale, infinities allowed.
        labels: (N,) 1 present, 0 ignored (VOC "difficult": the row is left out), -1 absent.
        variant: "voc07", the mean of the best precision at recall >= 0, 0.1, ..., 1 (VOC2007 `VOCevalcls.m`);
            "voc10", the area under the monotone envelope of the curve (VOC2010 and later `VOCevalcls.m`, `VOCap.m`);
            "plain", the mean of the precision at each positive (scikit-learn's `average_precision_score`).
            They differ by up to two points, so report the variant with the value.

    Returns:
        A value in [0, 1], or nan if no row is labelled present.

    Raises:
        ShapeError: the two are not vectors of the same length.
        ConfigError: a NaN score, a label outside {-1, 0, 1}, or an unknown variant.

    >>> round(average_precision([0.9, 0.8, 0.7, 0.6], [1, -1, 0, 1]), 4)  # the third row is ignored
    0.8333
    """
    return curve_area(precision_recall_curve(scores, labels), variant)


def mean_average_precision(
    scores: ArrayLike, labels: ArrayLike, variant: ApVariant = "voc10"
) -> tuple[float, NDArray[np.float64]]:
    """The mean over the classes with a positive, and the (C,) average precision per class (nan without a positive).

    `scores` and `labels` are (N, C); see `average_precision` for labels, variants and errors.

    >>> mean, per_class = mean_average_precision([[0.9, 0.1], [0.2, 0.3]], [[1, -1], [-1, -1]])
    >>> mean, per_class.tolist()
    (1.0, [1.0, nan])
    """
    score_matrix, label_matrix = np.asarray(scores), np.asarray(labels)
    if score_matrix.ndim != 2 or score_matrix.shape != label_matrix.shape:
        raise ShapeError(
            f"scores {score_matrix.shape} and labels {label_matrix.shape} are not (N, C) arrays of the same shape.",
            "Give one row per image and one column per class; for a single class use average_precision.",
        )
    per_class = np.array(
        [average_precision(s, y, variant) for s, y in zip(score_matrix.T, label_matrix.T, strict=True)],
        dtype=np.float64,
    )
    known = per_class[~np.isnan(per_class)]
    return (float(known.mean()) if len(known) else float("nan")), per_class


def precision_recall_curve(scores: ArrayLike, labels: ArrayLike) -> PrecisionRecall:
    """Precision and recall at every distinct score, without ignored rows (label 0); recall is nan without positives.

    Arguments and errors are those of `average_precision`.

    >>> curve = precision_recall_curve([0.9, 0.8, 0.8, 0.1], [1, 1, -1, -1])
    >>> curve.recall.tolist(), curve.thresholds.tolist()
    ([0.5, 1.0, 1.0], [0.9, 0.8, 0.1])
    """
    score, label = _scores_and_labels(scores, labels)
    hits = label[label != 0] == 1
    return curve_of_hits(score[label != 0], hits, int(hits.sum()))


def curve_of_hits(scores: NDArray[np.float64], hits: NDArray[np.bool_], num_positives: int) -> PrecisionRecall:
    """The curve of (N,) detections of which `hits` are correct, out of `num_positives` objects.

    `num_positives` may exceed the hits (pointing): missed objects stay in the denominator of the recall.
    """
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last_of_group = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)[: len(ranked)])
    true_positives = np.cumsum(hits[order])[last_of_group]
    recall = true_positives / num_positives if num_positives else np.full(len(last_of_group), np.nan)
    return PrecisionRecall(true_positives / (last_of_group + 1), recall, ranked[last_of_group])


def curve_area(curve: PrecisionRecall, variant: ApVariant = "voc10") -> float:
    """Average precision of a curve; nan without positives.

    Raises:
        ConfigError: an unknown variant.
    """
    if variant not in VARIANTS:
        raise ConfigError(
            f"variant={variant!r} is unknown; give one of {', '.join(VARIANTS)}.",
            did_you_mean(str(variant), VARIANTS)
            or "voc07 for VOC 2007; voc10 for VOC 2010 and later, COCO or your own data.",
        )
    precision, recall, _ = curve
    if len(recall) == 0 or np.isnan(recall[-1]):
        return float("nan")
    if variant == "plain":
        return float(np.diff(recall, prepend=0.0) @ precision)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]  # the best precision at this recall or higher
    if variant == "voc10":
        return float(np.diff(recall, prepend=0.0) @ envelope)
    first_reaching = np.searchsorted(recall, VOC07_LEVELS, side="left")
    return float(np.append(envelope, 0.0)[first_reaching].mean())  # unreached levels count 0


def roc_auc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Area under the ROC curve: the probability that a present row scores above an absent one; ties count one half.

    Arguments and errors are those of `average_precision`; nan without a present or an absent row.

    >>> roc_auc([0.9, 0.4, 0.4, 0.1], [1, 1, -1, -1])
    0.875
    """
    score, label = _scores_and_labels(scores, labels)
    positive = label[label != 0] == 1
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    if not num_positive or not num_negative:
        return float("nan")
    _, group, sizes = np.unique(score[label != 0], return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(sizes) - (sizes - 1) / 2  # of each group of ties, counted from 1
    wins = mean_rank[group][positive].sum() - num_positive * (num_positive + 1) / 2  # Mann-Whitney U
    return float(wins / (num_positive * num_negative))


def multiclass_accuracy(scores: ArrayLike, targets: ArrayLike) -> float:
    """Fraction of rows whose target has the highest score; ties go to the lowest class index. nan without rows.

    Args:
        scores: (N, C).
        targets: (N,) class indices in [0, C).

    Raises:
        ShapeError: the shapes do not match.
        ConfigError: a NaN score, or a target outside [0, C).

    >>> round(multiclass_accuracy([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3]], [0, 1, 1]), 4)
    0.6667
    """
    confusion = _confusion_of_scores(scores, targets)
    return float(np.trace(confusion) / confusion.sum()) if confusion.sum() else float("nan")


def class_mean_accuracy(scores: ArrayLike, targets: ArrayLike) -> float:
    """Mean of the per-class accuracy over the classes that occur in the targets; see `multiclass_accuracy`.

    >>> class_mean_accuracy([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3]], [0, 1, 1])
    0.75
    """
    confusion = _confusion_of_scores(scores, targets)
    rows = confusion.sum(axis=1)
    return float(np.mean(np.diag(confusion)[rows > 0] / rows[rows > 0])) if rows.any() else float("nan")


def confusion_matrix(targets: ArrayLike, predictions: ArrayLike, num_classes: int) -> NDArray[np.int64]:
    """(C, C) counts: row = true class, column = predicted class. Matrices of subsets add up.

    Args:
        targets, predictions: integers in [0, num_classes), of the same shape (any number of dimensions).
        num_classes: C.

    Raises:
        ShapeError: the shapes differ.
        ConfigError: a value that is not an integer in [0, num_classes).

    >>> confusion_matrix([0, 1, 1], [0, 1, 0], 2).tolist()
    [[1, 0], [1, 1]]
    """
    target, prediction = np.asarray(targets), np.asarray(predictions)
    if target.shape != prediction.shape:
        raise ShapeError(
            f"targets {target.shape} and predictions {prediction.shape} differ in shape.",
            "Give one prediction per target.",
        )
    row = class_indices("targets", target, num_classes)
    column = class_indices("predictions", prediction, num_classes)
    counts = np.bincount(row * num_classes + column, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes).astype(np.int64, copy=False)


def class_indices(name: str, values: NDArray[np.generic], num_classes: int) -> NDArray[np.int64]:
    """`values` flattened to int64, checked to be integers in [0, num_classes); empty arrays may have any type.

    Raises:
        ConfigError: another value or type; the message names the argument `name`.
    """
    if values.size and values.dtype.kind not in "iu":
        raise ConfigError(
            f"{name} are {values.dtype}, not class indices.",
            f"Give integers in [0, {num_classes}), for example argmax(axis=1).",
        )
    flat = values.astype(np.int64).ravel()
    if flat.size and (flat.min() < 0 or flat.max() >= num_classes):
        bad = flat.min() if flat.min() < 0 else flat.max()
        raise ConfigError(
            f"{name} contain {bad}, outside [0, {num_classes}).", "Raise num_classes, or leave those rows out."
        )
    return flat


def check_no_nan(name: str, values: NDArray[np.floating[Any]]) -> None:
    """Refuse NaN, whose place in a ranking is undefined.

    Raises:
        ConfigError: a NaN; the message names the argument `name`.
    """
    count = int(np.isnan(values).sum())
    if count:
        raise ConfigError(
            f"{count} of {values.size} values in {name} are NaN.",
            "Check the model: its outputs became NaN, often because of the learning rate.",
        )


def _confusion_of_scores(scores: ArrayLike, targets: ArrayLike) -> NDArray[np.int64]:
    score, target = np.asarray(scores, dtype=np.float64), np.asarray(targets)
    if score.ndim != 2 or score.shape[1] == 0 or target.shape != score.shape[:1]:
        raise ShapeError(
            f"scores {score.shape} and targets {target.shape} are not (N, C) and (N,).",
            "Give one row of class scores and one class index per image.",
        )
    check_no_nan("scores", score)
    return confusion_matrix(target, score.argmax(axis=1), score.shape[1])


def _scores_and_labels(scores: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int8]]:
    score, label = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    if score.ndim != 1 or score.shape != label.shape:
        raise ShapeError(
            f"scores {score.shape} and labels {label.shape} are not vectors of the same length.",
            "Give one score and one label per image; for (N, C) arrays use mean_average_precision.",
        )
    check_no_nan("scores", score)
    if label.dtype == np.bool_ or not np.isin(label, (-1, 0, 1)).all():
        given = "booleans" if label.dtype == np.bool_ else str(label[~np.isin(label, (-1, 0, 1))][0])
        raise ConfigError(
            f"labels contain {given}; allowed are 1 (present), 0 (ignored) and -1 (absent).",
            "From true / false labels: numpy.where(labels, 1, -1).",
        )
    return score, label.astype(np.int8)
