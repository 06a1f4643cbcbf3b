"""How good a model is on labelled images: classification, pointwise localization, segmentation."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wildcat.data.dataset import PRESENT, DataSet, Sample, label_matrix
from wildcat.data.images import read_mask
from wildcat.errors import ConfigError, DataError
from wildcat.files import write_bytes
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
    precision_recall_curve,
    roc_auc,
)
from wildcat.metrics.classification import class_indices
from wildcat.models.calibration import Calibration, measured_again
from wildcat.prediction import Prediction, score_probabilities
from wildcat.predictor import Predictor
from wildcat.regions.masks import BackgroundRule, MaskParams, strongest_class
from wildcat.train.distributed import gather, share_of
from wildcat.viz.curves import SUFFIXES as CURVE_SUFFIXES
from wildcat.viz.curves import draw_precision_recall

POINT_TOLERANCE = 18
"""Pixels a point may lie outside a box (Oquab et al., CVPR 2015; paper, section 4.3)."""


MEASURES = ("classification", "pointing", "segmentation")
"""What can be measured; each where the data has the ground truth for it."""

IGNORED_PIXEL = 255
"""Of true masks (VOC's white border)."""

THRESHOLDS = (0.01, *(i / 20 for i in range(1, 20)))
"""Constant scores of the background, against maps divided by their maximum, among which the best one is found; the
lowest draws all positive evidence."""

SCORES = tuple(i / 4 for i in range(-24, 25))
"""Scores of the background against raw maps among which the best one is found."""


@dataclass
class Tally:
    """What was predicted for the images of a split so far; those of several processes merge into one.

    Figures are made of the whole tally, never averaged over parts of it: they do not depend on how many processes
    predicted, on who predicted what, or on the size of batches.

    Attributes:
        scores: position in the split -> (C,) scores.
        points: position -> (C, 2) points (x, y).
        confusion: (C+1, C+1) pixels of all masks so far, rows true, columns predicted; None where they do not count.
        strengths: what masks at other thresholds would be, see `strength_histogram`; None where that is not known.
        params: how the masks were drawn; its gate means nothing where classes exclude each other.
        calibration: what that was fitted on; None where it was not.
    """

    scores: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    points: dict[int, NDArray[np.float64]] = field(default_factory=dict)
    confusion: NDArray[np.int64] | None = None
    strengths: NDArray[np.int64] | None = None
    params: MaskParams | None = None
    calibration: Calibration | None = None

    def score_matrix(self, order: Sequence[int]) -> NDArray[np.float32]:
        """(N, C) scores in the order of the split and of the data set's classes."""
        return np.stack([self.scores[i] for i in range(len(self.scores))])[:, order]

    def merge(self, other: Tally) -> Tally:
        """Both together.

        Raises:
            DataError: an image was predicted twice.
        """
        if twice := self.scores.keys() & other.scores.keys():
            raise DataError(f"image {min(twice)} of the split was predicted by two processes.")
        return Tally(
            self.scores | other.scores,
            self.points | other.points,
            _sum(self.confusion, other.confusion),
            _sum(self.strengths, other.strengths),
            self.params or other.params,
            self.calibration or other.calibration,
        )


def evaluate(
    predictor: Predictor,
    data: DataSet,
    split: str,
    variant: ApVariant = "voc10",
    crf: bool = False,
    progress: Callable[[int], object] = lambda images: None,
    predictions: Iterable[Prediction] | None = None,
    measures: Collection[str] = MEASURES,
) -> dict[str, Any]:
    """Measure a model on a split of a data set; what the data has no ground truth for is left out.

    Under `torchrun` every process predicts its share of the images, and all return the same figures, those of one
    process alone.

    Args:
        crf: sharpen masks with a dense CRF before they are measured.
        variant: of average precision: "voc07", "voc10" or "plain", see `wildcat.metrics.average_precision`.
        progress: called with the number of images done since the last call.
        predictions: those of the split's images in their order, where they have been made already.
        measures: some of `MEASURES`; masks at full resolution are what takes time.

    Returns:
        `{"data", "split", "images", "classification": {...}, "pointing": {...}, "segmentation": {...}}`, plain values
        ready for JSON.

    Raises:
        DataError: the data set's classes are not the model's.
        ImageError: an image cannot be read.
    """
    order = class_order(predictor, data)
    tally = measure(predictor, data, split, crf, progress, predictions, measures)
    return report(tally, data, split, order, variant, crf, measures)


def measure(
    predictor: Predictor,
    data: DataSet,
    split: str,
    crf: bool = False,
    progress: Callable[[int], object] = lambda images: None,
    predictions: Iterable[Prediction] | None = None,
    measures: Collection[str] = MEASURES,
) -> Tally:
    """What the model says of each image of a split, of which `report` makes the figures; see `evaluate`."""
    samples = data.split(split)
    order = class_order(predictor, data)
    with_masks = "segmentation" in measures and all(s.mask is not None for s in samples)
    mine = range(len(samples)) if predictions is not None else share_of(len(samples))
    if predictions is None:
        predictions = predictor.stream([samples[i].path for i in mine], modalities=False)
    tally = Tally()
    if with_masks:
        tally.confusion = np.zeros((len(data.classes) + 1,) * 2, dtype=np.int64)
    for i, prediction in zip(mine, predictions, strict=True):
        tally.scores[i] = prediction.class_scores
        tally.points[i] = np.asarray(list(prediction.points.values()))
        if tally.confusion is not None:
            truth = true_mask(prediction, samples[i])
            tally.confusion += mask_confusion(prediction, truth, order, crf)
            tally.params, tally.calibration = prediction.mask_params(), prediction.calibration
            if not crf and tally.params.rule != "trained":  # a CRF would have to run once for every threshold
                tally.strengths = _sum(tally.strengths, strength_histogram(prediction, truth, order))
        progress(1)
    return reduce(Tally.merge, gather(tally)) if len(mine) < len(samples) else tally


def report(
    tally: Tally,
    data: DataSet,
    split: str,
    order: Sequence[int],
    variant: ApVariant,
    crf: bool = False,
    measures: Collection[str] = MEASURES,
) -> dict[str, Any]:
    """The figures of a whole tally, as `evaluate` returns them; `order` is that of `class_order`."""
    samples = data.split(split)
    scores = tally.score_matrix(order)
    points = np.stack([tally.points[i] for i in range(len(samples))])[:, order]
    result: dict[str, Any] = {"data": data.name, "split": split, "images": len(samples)}
    if "classification" in measures:
        result["classification"] = classification_report(scores, samples, data, variant)
    if "pointing" in measures and all(s.boxes is not None for s in samples):
        result["pointing"] = pointing_report(points, scores, samples, data.classes, variant)
    if tally.confusion is not None:
        result["segmentation"] = segmentation_report(tally, data, split, crf)
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


def check_curves(path: Path) -> None:
    """Refuse a file of curves of another kind before the images are measured.

    Raises:
        ConfigError: not .csv, .png, .svg or .pdf.
    """
    if path.suffix not in (".csv", *CURVE_SUFFIXES):
        raise ConfigError(f"{path}: curves are written as .csv, or drawn as {', '.join(CURVE_SUFFIXES)}.")


def save_curves(path: Path, tally: Tally, data: DataSet, split: str, order: Sequence[int]) -> None:
    """Write the precision-recall curve of each class: a table (.csv) or a drawing (.png, .svg, .pdf).

    Raises:
        ConfigError: another kind of file.
        MissingExtra: matplotlib is needed to draw and is not installed.
        RunError: the file cannot be written.
    """
    labels = label_matrix(data.split(split))
    scores = tally.score_matrix(order)
    ranked = score_probabilities(scores, data.task) if data.task == "multiclass" else scores
    named = {c: precision_recall_curve(ranked[:, i], labels[:, i]) for i, c in enumerate(data.classes)}
    curves = {c: (curve.recall, curve.precision, curve.thresholds) for c, curve in named.items()}
    if path.suffix == ".csv":
        rows = [
            f"{json.dumps(c, ensure_ascii=False)},{r:.6f},{p:.6f},{t:.6g}"
            for c, curve in curves.items()
            for r, p, t in zip(*curve, strict=True)
        ]
        write_bytes(path, "\n".join(["class,recall,precision,threshold", *rows, ""]).encode())
        return
    title = f"{data.name} {split}, {len(labels)} images"
    write_bytes(path, draw_precision_recall({c: curve[:2] for c, curve in curves.items()}, title, path.suffix))


def classification_report(
    scores: NDArray[np.float32], samples: Sequence[Sample], data: DataSet, variant: ApVariant
) -> dict[str, Any]:
    """AP per class and its mean; for multi-class data also accuracy, its mean over classes, and ROC AUC.

    Where classes exclude each other, images are ranked by probability: scores are comparable within an image only.
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

    An image whose only objects of a class are difficult counts neither way for that class; where it has others too,
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


def true_mask(prediction: Prediction, sample: Sample) -> NDArray[np.uint8]:
    """(H, W) labels of an image: 0 background, i + 1 = class i of the data set, 255 ignored.

    Raises:
        DataError: it has no mask, or one of another size.
    """
    if sample.mask is None:
        raise DataError(f"{sample.name} has no mask.", "Evaluate segmentation on data with masks.")
    truth = read_mask(sample.mask)
    if truth.shape != (prediction.height, prediction.width):
        raise DataError(
            f"{sample.mask} is {truth.shape[1]} x {truth.shape[0]}, its image {prediction.width} x "
            f"{prediction.height}.",
            "A mask has the size of its image.",
        )
    return truth


def mask_confusion(
    prediction: Prediction,
    truth: NDArray[np.uint8],
    order: Sequence[int],
    crf: bool = False,
    params: MaskParams | None = None,
) -> NDArray[np.int64]:
    """(C+1, C+1) pixels of an image, rows true, columns predicted, in the data set's order of classes.

    Args:
        truth: see `true_mask`. order: see `class_order`. params: see `Prediction.mask`.

    Raises:
        ConfigError: the true mask has labels beyond the classes.
    """
    return overlap_confusion(_to_data(order)[prediction.mask(crf, params)], truth, len(order) + 1)


def strength_histogram(
    prediction: Prediction, truth: NDArray[np.uint8], order: Sequence[int], params: MaskParams | None = None
) -> NDArray[np.int64]:
    """(T+1, C+1, C+1) pixels of an image by strength, true class, and the class that is drawn if any is.

    All masks at the T `thresholds_of` the rule in one: [b] holds the pixels whose strength, see
    `wildcat.regions.strongest_class`, is above b of them. Histograms of images add up; `confusions_by_threshold`
    makes the confusion at each threshold.
    """
    params, size = prediction.mask_params(params), (prediction.height, prediction.width)
    thresholds = thresholds_of(params.rule)
    strength, labels = strongest_class(prediction.class_maps, prediction.class_probs, size, params.gate, params.rule)
    above = np.searchsorted(np.asarray(thresholds, dtype=np.float32), strength.astype(np.float32))
    counted, classes = truth != IGNORED_PIXEL, len(order) + 1
    class_indices("truth", truth[counted], classes)
    cells = (above * classes + truth) * classes + _to_data(order)[labels.astype(np.int64)]
    shape = (len(thresholds) + 1, classes, classes)
    counts = np.bincount(cells[counted], minlength=int(np.prod(shape)))
    return counts.reshape(shape).astype(np.int64, copy=False)


def thresholds_of(rule: BackgroundRule) -> tuple[float, ...]:
    """The backgrounds among which the best one is found, in the unit of the rule's strength."""
    return SCORES if rule == "score" else THRESHOLDS


def confusions_by_threshold(histogram: NDArray[np.int64]) -> NDArray[np.int64]:
    """(T+1, C+1, C+1) of `strength_histogram` -> (T, C+1, C+1): the confusion of the masks at each threshold."""
    total = histogram.sum(axis=0)
    above = total - histogram.cumsum(axis=0)[:-1]  # [t]: pixels of a strength above threshold t
    confusions: NDArray[np.int64] = above.copy()
    confusions[:, :, 0] = total.sum(axis=1) - above[:, :, 1:].sum(axis=2)  # the rest of each true class is background
    return confusions


def segmentation_report(tally: Tally, data: DataSet, split: str, crf: bool) -> dict[str, Any]:
    """IoU per class and its mean with the background, on the confusion of all pixels (VOC devkit; 255 ignored).

    `rule` and `threshold` are what the masks were made with, see `MaskParams`: the score of the background against raw
    maps ("score"), against maps divided by their maximum ("constant"), or what "power" amounts to. `calibration` says
    what it and the gates were fitted on, and in `measured` how many of those images were measured here; None where
    nothing was fitted. `hindsight` is the best background by the same rule on the very masks it is measured on, with
    the same gates: no deployed model can know it.
    """
    if tally.confusion is None or tally.params is None:
        raise DataError("no masks were compared.", "Evaluate segmentation on data with masks.")
    params = tally.params
    result: dict[str, Any] = {
        "miou": _number(mean_iou(tally.confusion)),
        "iou": _named(("background", *data.classes), class_iou(tally.confusion)),
        "rule": params.rule,
        "threshold": None if params.threshold is None else round(params.threshold, 4),
        "crf": crf,
        "calibration": None,
    }
    if tally.calibration is not None:
        record = tally.calibration.record
        result["calibration"] = {key: record[key] for key in ("data", "split", "images", "masks")}
        result["calibration"]["measured"] = measured_again(record, data, split)
    if tally.strengths is not None:
        means = [mean_iou(confusion) for confusion in confusions_by_threshold(tally.strengths)]
        best = int(np.argmax(means)) if not np.isnan(means).any() else 0
        result["hindsight"] = {"threshold": thresholds_of(params.rule)[best], "miou": _number(means[best])}
    return result


def _to_data(order: Sequence[int]) -> NDArray[np.int64]:
    """(C+1,): the data set's label of each label of the model."""
    to_data = np.zeros(len(order) + 1, dtype=np.int64)
    to_data[np.asarray(order) + 1] = np.arange(1, len(order) + 1)
    return to_data


def _sum(a: NDArray[np.int64] | None, b: NDArray[np.int64] | None) -> NDArray[np.int64] | None:
    return a if b is None else b if a is None else a + b


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
