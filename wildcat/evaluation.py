"""How good a model is on labelled pictures: classification, pointwise localization, segmentation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wildcat.data.images import read_mask
from wildcat.data.sample import PRESENT, DataSet, Sample, label_matrix
from wildcat.errors import DataError
from wildcat.metrics import (
    ApVariant,
    class_iou,
    class_mean_accuracy,
    mean_average_precision,
    mean_iou,
    multiclass_accuracy,
    overlap_confusion,
    pointing_average_precision,
    pointing_game,
    roc_auc,
)
from wildcat.predictor import Predictor
from wildcat.regions.masks import MaskParams
from wildcat.results import Prediction, score_probabilities

POINT_TOLERANCE = 18
"""Pixels a point may lie outside a box (Oquab et al., CVPR 2015; paper, section 4.3)."""


def evaluate(
    predictor: Predictor,
    data: DataSet,
    split: str,
    variant: ApVariant = "voc10",
    crf: bool = False,
    progress: Callable[[int], object] = lambda pictures: None,
    predictions: Iterable[Prediction] | None = None,
) -> dict[str, Any]:
    """Measure a model on a split of a data set; what the data has no ground truth for is left out.

    Args:
        crf: sharpen masks with a dense CRF before they are measured.
        variant: of average precision: "voc07", "voc10" or "plain", see `wildcat.metrics.average_precision`.
        progress: called with the number of pictures done since the last call.
        predictions: those of the split's pictures in their order, where they have been made already.

    Returns:
        `{"data", "split", "pictures", "classification": {...}, "pointing": {...}, "segmentation": {...}}`, plain values
        ready for JSON.

    Raises:
        DataError: the data set's classes are not the model's.
        ImageError: a picture cannot be read.
    """
    samples = data.split(split)
    order = class_order(predictor, data)
    scores, points = [], []
    with_masks = all(s.mask is not None for s in samples)
    confusion = np.zeros((len(data.classes) + 1,) * 2, dtype=np.int64)
    if predictions is None:
        predictions = predictor.stream([s.path for s in samples], modalities=False)
    for sample, prediction in zip(samples, predictions, strict=True):
        scores.append(prediction.class_scores)
        points.append(list(prediction.points.values()))
        if with_masks and sample.mask is not None:
            confusion += mask_confusion(prediction, sample.mask, order, crf)
        progress(1)
    score_matrix = np.stack(scores)[:, order]
    result: dict[str, Any] = {"data": data.name, "split": split, "pictures": len(samples)}
    result["classification"] = classification_report(score_matrix, samples, data, variant)
    if all(s.boxes is not None for s in samples):
        result["pointing"] = pointing_report(np.asarray(points)[:, order], score_matrix, samples, data.classes, variant)
    if with_masks:
        result["segmentation"] = segmentation_report(confusion, data.classes, crf)
    return result


def class_order(predictor: Predictor, data: DataSet) -> list[int]:
    """Index of each of the data set's classes among the model's.

    Raises:
        DataError: the two name different classes.
    """
    if set(predictor.classes) != set(data.classes):
        only_model = sorted(set(predictor.classes) - set(data.classes))[:5]
        only_data = sorted(set(data.classes) - set(predictor.classes))[:5]
        parts = [f"only the model has {', '.join(only_model)}"] if only_model else []
        parts += [f"only the data has {', '.join(only_data)}"] if only_data else []
        raise DataError(
            f"{predictor.name} and {data.name} have different classes: {'; '.join(parts)}.",
            "Evaluate on data with the classes the model was trained on.",
        )
    return [predictor.classes.index(c) for c in data.classes]


def classification_report(
    scores: NDArray[np.float32], samples: Sequence[Sample], data: DataSet, variant: ApVariant
) -> dict[str, Any]:
    """AP per class and its mean; for multi-class data also accuracy, its mean over classes, and ROC AUC.

    Where classes exclude each other, pictures are ranked by probability: scores are comparable within a picture only.
    """
    labels = label_matrix(samples)
    ranked = score_probabilities(scores, data.task) if data.task == "multiclass" else scores
    mean, per_class = mean_average_precision(ranked, labels, variant)
    report: dict[str, Any] = {"map": _number(mean), "ap": _named(data.classes, per_class), "variant": variant}
    if data.task == "multiclass":
        targets = (labels == PRESENT).argmax(axis=1)
        report["accuracy"] = float(multiclass_accuracy(scores, targets))
        report["class_mean_accuracy"] = _number(class_mean_accuracy(scores, targets))
        areas = [roc_auc(ranked[:, c], labels[:, c]) for c in range(len(data.classes))]
        report["roc_auc"] = _number(float(np.nanmean(areas))) if not np.all(np.isnan(areas)) else None
    return report


def pointing_report(
    points: NDArray[np.float64],
    scores: NDArray[np.float32],
    samples: Sequence[Sample],
    classes: Sequence[str],
    variant: ApVariant,
) -> dict[str, Any]:
    """Pointwise localization AP per class and its mean (Oquab et al., CVPR 2015), and the pointing game's accuracy.

    Args:
        points: (N, C, 2) of (x, y) in original pixels. scores: (N, C).

    A picture whose only objects of a class are difficult counts neither way for that class; where it has others too,
    a point on a difficult one is a miss.
    """
    average_precisions, hits, pairs = [], 0.0, 0
    for c in range(len(classes)):
        boxes, ignored = zip(*(_boxes_of(s, c) for s in samples), strict=True)
        average_precisions.append(
            pointing_average_precision(
                points[:, c], scores[:, c], boxes, POINT_TOLERANCE, variant, ignored=np.asarray(ignored)
            )
        )
        present = [i for i, b in enumerate(boxes) if len(b)]
        if present:
            hits += pointing_game(points[present, c], [boxes[i] for i in present]) * len(present)
            pairs += len(present)
    values = np.asarray(average_precisions)
    return {
        "map": None if np.isnan(values).all() else float(np.nanmean(values)),
        "ap": _named(classes, values),
        "tolerance": POINT_TOLERANCE,
        "variant": variant,
        "pointing_game": hits / pairs if pairs else None,
    }


def mask_confusion(prediction: Prediction, truth: Path, order: Sequence[int], crf: bool) -> NDArray[np.int64]:
    """(C+1, C+1) pixels of a picture, rows true, columns predicted, in the data set's order of classes.

    Raises:
        DataError: the true mask has another size than the picture, or labels beyond the classes.
    """
    target = read_mask(truth)
    if target.shape != (prediction.height, prediction.width):
        raise DataError(
            f"{truth} is {target.shape[1]} x {target.shape[0]}, its picture {prediction.width} x {prediction.height}.",
            "A mask has the size of its picture.",
        )
    to_data = np.zeros(len(order) + 1, dtype=np.int64)
    to_data[np.asarray(order) + 1] = np.arange(1, len(order) + 1)
    return overlap_confusion(to_data[prediction.mask(crf)], target, len(order) + 1)


def segmentation_report(confusion: NDArray[np.int64], classes: Sequence[str], crf: bool) -> dict[str, Any]:
    """IoU per class and its mean with the background, on the confusion of all pixels (VOC devkit; 255 ignored).

    `threshold` is the constant score of the background against maps divided by their maximum.
    """
    return {
        "miou": _number(mean_iou(confusion)),
        "iou": _named(("background", *classes), class_iou(confusion)),
        "threshold": MaskParams().constant,
        "crf": crf,
    }


def _boxes_of(sample: Sample, c: int) -> tuple[NDArray[np.float32], bool]:
    """Boxes of a class that are not difficult, and whether all it has are difficult."""
    if sample.boxes is None or sample.box_classes is None:
        raise DataError(f"{sample.name} has no boxes.", "Evaluate pointing on data with boxes.")
    mine = sample.box_classes == c
    easy = mine if sample.box_difficult is None else mine & ~sample.box_difficult
    return sample.boxes[easy], bool(mine.any() and not easy.any())


def _named(classes: Sequence[str], values: NDArray[np.float64]) -> dict[str, float | None]:
    return {c: _number(v) for c, v in zip(classes, values, strict=True)}


def _number(value: float) -> float | None:
    """A float for JSON, which has no NaN: None where the value is undefined."""
    return None if np.isnan(value) else float(value)
