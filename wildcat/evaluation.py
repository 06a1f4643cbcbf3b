"""Evaluate a model on labelled images: classification, pointwise localization, segmentation."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wildcat.data.dataset import PRESENT, DataSet, Sample, Task, describe_labels, few, label_counts, label_matrix
from wildcat.data.labels import name_key
from wildcat.errors import DataError
from wildcat.methods import no_maps
from wildcat.metrics import (
    ApVariant,
    LocalizationCounts,
    class_iou,
    class_mean_accuracy,
    confusions_by_threshold,
    localization_counts,
    mean_average_precision,
    mean_iou,
    multiclass_accuracy,
    overlap_confusion,
    point_hits,
    roc_auc,
    strength_counts,
)
from wildcat.metrics.classification import check_no_nan, curve_area, curve_of_hits
from wildcat.metrics.wsol import NO_COUNTS
from wildcat.models.calibration import Calibration, measured_again
from wildcat.nn.heads.background import softmax_logits
from wildcat.prediction import Prediction
from wildcat.predictor import Predictor
from wildcat.progress import SILENT, Progress
from wildcat.regions.crf import CrfParams
from wildcat.regions.masks import HIGHEST_PNG_LABEL, BackgroundRule, MaskParams, strongest_class
from wildcat.train.distributed import gather, share_of, world_size

POINT_TOLERANCE = 18  # pixels that a point may lie outside a box (Oquab et al., CVPR 2015; paper, section 4.3)
GAME_TOLERANCE = 15  # the same in the pointing game (Zhang et al., ECCV 2016)
MEASURES = ("classification", "pointing", "localization", "segmentation")  # each where the data has its ground truth

# Background thresholds among which the best one is searched: SCORES against raw maps (rule "score"), THRESHOLDS against
# maps divided by their maximum (the other rules).
SCORES = tuple(i / 4 for i in range(-24, 25))
THRESHOLDS = (0.01, *(i / 20 for i in range(1, 20)))

NO_BOXES = np.zeros((0, 4), dtype=np.float32)


@dataclass
class Tally:
    """Predictions of some images of a split, reduced to what the metrics need; tallies of several processes merge.

    Metrics are computed on the tally of the whole split and never averaged over parts of it, so they do not depend on
    the number of processes or on the batch size.

    Attributes:
        scores: index in the split -> (C,) scores.
        points: index -> (C, 2) points (x, y); empty if pointing is not measured.
        confusion: (C+1, C+1) pixels of all masks, rows true, columns predicted; None if segmentation is not measured.
        strengths: histogram for masks at other thresholds, see `strength_histogram`; None if it is not available.
        params: settings of the predicted masks; in a multi-class model its thresholds vary by image.
        crf, propagated: whether they were sharpened by a CRF, and spread up to boundaries.
        calibration: the model's calibration, or None.
        localization: counts of heatmaps against true boxes and masks; None if localization is not measured.
        task: of the model; None if it is not known, it is then the data's.
        has_maps: whether the model has class maps.
    """

    scores: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    points: dict[int, NDArray[np.float64]] = field(default_factory=dict)
    confusion: NDArray[np.int64] | None = None
    strengths: NDArray[np.int64] | None = None
    params: MaskParams | None = None
    crf: bool = False
    propagated: bool = False
    calibration: Calibration | None = None
    localization: LocalizationCounts | None = None
    task: Task | None = None
    has_maps: bool = True

    def score_matrix(self) -> NDArray[np.float32]:
        """(N, C) scores in the order of the split."""
        return np.stack([self.scores[i] for i in range(len(self.scores))])

    def merge(self, other: Tally) -> Tally:
        """The union of both.

        Raises:
            DataError: both contain the same image.
        """
        if twice := self.scores.keys() & other.scores.keys():
            raise DataError(f"image {min(twice)} of the split was predicted by two processes.")
        return Tally(
            self.scores | other.scores,
            self.points | other.points,
            _sum(self.confusion, other.confusion),
            _sum(self.strengths, other.strengths),
            self.params or other.params,
            self.crf or other.crf,
            self.propagated or other.propagated,
            self.calibration or other.calibration,
            self.localization.merge(other.localization or NO_COUNTS) if self.localization else other.localization,
            self.task or other.task,
            self.has_maps and other.has_maps,
        )


def evaluate(
    predictor: Predictor,
    data: DataSet,
    split: str,
    variant: ApVariant = "voc10",
    crf: bool | None = None,
    progress: Progress = SILENT,
    predictions: Iterable[Prediction] | None = None,
    measures: Collection[str] = MEASURES,
) -> dict[str, Any]:
    """Compute the metrics of a model on a split.

    Args:
        crf: sharpen masks with a dense CRF first; None: as the predictor does.
        variant: of average precision: "voc07", "voc10" or "plain", see `wildcat.metrics.average_precision`.
        progress: counts images.
        predictions: of the images of the split in their order, if they exist already.
        measures: some of `MEASURES`; segmentation takes longest.

    Returns:
        `{"data", "split", "images", "classification": {...}, "pointing": {...}, "localization": {...},
        "segmentation": {...}}`, plain values ready for JSON. Classes are the model's; `notes` has those of
        `match_classes`, and says why a metric means little.

    Raises:
        DataError: the data set has none of the model's classes.
        ImageError: an image cannot be read.
    """
    matched = match_classes(predictor, data)
    tally = measure(predictor, matched, split, crf, progress, predictions, measures)
    return summarize(tally, matched, split, variant, measures, matched.notes[len(data.notes) :])


def measure(
    predictor: Predictor,
    data: DataSet,
    split: str,
    crf: bool | None = None,
    progress: Progress = SILENT,
    predictions: Iterable[Prediction] | None = None,
    measures: Collection[str] = MEASURES,
) -> Tally:
    """Predict the images of a split and collect what `summarize` needs; see `evaluate` for the arguments.

    The data has the model's classes, see `match_classes`. Under torchrun each process predicts its share of the images,
    and all return the merged tally.
    """
    samples = data.split(split)
    with_masks = predictor.has_maps and all(s.mask is not None for s in samples)
    with_boxes = predictor.has_maps and all(s.boxes is not None for s in samples)
    shared = predictions is None
    indices = share_of(len(samples)) if shared else range(len(samples))
    if predictions is None:
        predictions = predictor.stream([samples[i].path for i in indices], modalities=False)
    with_points = with_boxes and "pointing" in measures
    tally = Tally(task=predictor.task, has_maps=predictor.has_maps)
    needs_truth = with_masks and ("localization" in measures or "segmentation" in measures)
    if "localization" in measures and (with_masks or with_boxes):
        tally.localization = NO_COUNTS
    if "segmentation" in measures and with_masks:
        tally.confusion = np.zeros((len(data.classes) + 1,) * 2, dtype=np.int64)
    progress.start("evaluating", len(samples))
    for i, prediction in zip(indices, predictions, strict=True):
        tally.scores[i] = prediction.class_scores
        if with_points:
            tally.points[i] = np.asarray(list(prediction.points.values()))
        truth = true_mask(prediction, samples[i]) if needs_truth else None
        if tally.localization is not None:
            size = (prediction.height, prediction.width)
            easy = easy_boxes(samples[i]) if with_boxes else {}
            boxes = [easy.get(c, NO_BOXES) for c in range(len(data.classes))] if with_boxes else None
            tally.localization = tally.localization.merge(localization_counts(prediction.maps, size, boxes, truth))
        if tally.confusion is not None and truth is not None:
            tally.confusion += mask_confusion(prediction, truth, crf)
            tally.params, tally.calibration = prediction.mask_params(), prediction.calibration
            tally.crf, tally.propagated = prediction.crf_settings(crf) is not None, prediction.walls() is not None
            # a CRF, superpixels or a random walk would have to run once for every threshold
            once = tally.crf or tally.propagated or tally.params.superpixels
            if not once and tally.params.rule != "trained":
                tally.strengths = _sum(tally.strengths, strength_histogram(prediction, truth))
        progress.advance(world_size() if shared else 1)
    # Every rank gathers, also one without images: a rank that skipped it would leave the others waiting.
    return reduce(Tally.merge, gather(tally)) if shared else tally


def summarize(
    tally: Tally,
    data: DataSet,
    split: str,
    variant: ApVariant,
    measures: Collection[str] = MEASURES,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Compute the metrics from the tally of a whole split; returns what `evaluate` returns, its `notes` after these."""
    samples = data.split(split)
    scores = tally.score_matrix()
    ranked = ranked_scores(scores, tally.task, data)
    result: dict[str, Any] = {"data": data.name, "split": split, "images": len(samples)}
    notes = [*notes, *describe_labels(data, split, samples)]
    if not tally.has_maps:
        notes.append(no_maps("The model").message)
    if tally.confusion is not None and (unmasked := _without_mask_value(data, samples)):
        notes.append(f"A mask holds {HIGHEST_PNG_LABEL} classes: the pixels of {few(unmasked)} are ignored.")
    if notes:
        result["notes"] = notes
    if "classification" in measures:
        result["classification"] = classification_report(scores, ranked, samples, data, variant)
    if "pointing" in measures and tally.points:
        points = np.stack([tally.points[i] for i in range(len(samples))])
        result["pointing"] = pointing_report(points, ranked, samples, data.classes, variant)
    if tally.localization is not None:
        result["localization"] = tally.localization.metrics()
    if tally.confusion is not None:
        result["segmentation"] = segmentation_report(tally, data, split)
    return result


def match_classes(predictor: Predictor, data: DataSet) -> DataSet:
    """The data set in terms of the model's classes, with notes on classes that only one of the two has.

    Metrics are then over the classes that occur. Labels that the model does not know are left out, in multi-class data
    with their images. Names that differ in case or blanks alone are the same class, with a note.

    Raises:
        DataError: no class in common.
    """
    by_key = {name_key(name): name for name in predictor.classes}
    known, given = set(predictor.classes), set(data.classes)
    spelled = {c: by_key.get(name_key(c), c) for c in data.classes if c not in known}
    names = {c: name for c, name in spelled.items() if name not in given}
    here = {names.get(c, c) for c in data.classes}
    common = [c for c in predictor.classes if c in here]
    if not common:
        raise DataError(
            f"{predictor.name} and {data.name} have no class in common: the model has {few(predictor.classes)}, the "
            f"data has {few(data.classes)}.",
            "Evaluate on data with the classes the model was trained on.",
        )
    notes = [f"{data.name} writes the model's class {new!r} as {old!r}." for old, new in names.items() if new != old]
    if lacking := [c for c in predictor.classes if c not in here]:
        notes.append(f"{data.name} lacks {few(lacking)}: the metrics are over the other {len(common)} classes.")
    if unknown := [c for c in data.classes if names.get(c, c) not in known]:
        images = " and their images" if data.task == "multiclass" else ""
        notes.append(f"The model does not know {few(unknown)}: these labels{images} are left out.")
    return replace(data.for_classes(predictor.classes, names), notes=(*data.notes, *notes))


def ranking_task(model_task: Task | None, data: DataSet) -> Task:
    """Multi-class if the classes exclude each other in the model or in the data: scores compare only within an image.

    Args:
        model_task: None if it is not known.
    """
    return "multiclass" if "multiclass" in (model_task, data.task) else "multilabel"


def ranked_scores(scores: NDArray[np.float32], model_task: Task | None, data: DataSet) -> NDArray[np.floating[Any]]:
    """(N, C) scores that compare between images: the log-odds of classes that exclude each other, see `ranking_task`.

    Log-odds rank as probabilities do, also where those are rounded to 1.
    """
    if ranking_task(model_task, data) == "multilabel" or len(data.classes) == 1:
        return scores
    log_odds: NDArray[np.float64] = softmax_logits(torch.from_numpy(scores).double()).numpy()
    return log_odds


def classification_report(
    scores: NDArray[np.float32],
    ranked: NDArray[np.floating[Any]],
    samples: Sequence[Sample],
    data: DataSet,
    variant: ApVariant,
) -> dict[str, Any]:
    """AP per class and its mean; for multi-class data also accuracy, its mean over classes, and ROC AUC.

    Args:
        scores: (N, C). ranked: the same, comparable between images: the log-odds of classes that exclude each other.
    """
    labels = label_matrix(samples)
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
    ranked: NDArray[np.floating[Any]],
    samples: Sequence[Sample],
    classes: Sequence[str],
    variant: ApVariant,
) -> dict[str, Any]:
    """Pointwise localization AP per class and its mean (Oquab et al., CVPR 2015), and the pointing game's accuracy.

    Args:
        points: (N, C, 2) of (x, y) in original pixels. ranked: (N, C), as in `classification_report`.

    An image whose objects of a class are all difficult is ignored for that class; if it has others too, a point on a
    difficult one is a miss.
    """
    check_no_nan("scores", ranked)
    # Most images show few of many classes: one pass over the boxes, instead of one for each class.
    shown: list[dict[int, NDArray[np.float32]]] = [{} for _ in classes]
    for i, sample in enumerate(samples):
        for c, boxes in easy_boxes(sample).items():
            shown[c][i] = boxes
    average_precisions, hits, pairs = [], 0, 0
    for c, boxes_of in enumerate(shown):
        known = np.ones(len(samples), dtype=bool)
        known[[i for i, boxes in boxes_of.items() if not len(boxes)]] = False
        present = [i for i, boxes in boxes_of.items() if len(boxes)]
        found, boxes_of_present = points[present, c], [boxes_of[i] for i in present]
        inside = np.zeros(len(samples), dtype=bool)
        inside[present] = point_hits(found, boxes_of_present, POINT_TOLERANCE)
        curve = curve_of_hits(ranked[known, c].astype(np.float64), inside[known], len(present))
        average_precisions.append(curve_area(curve, variant))
        hits += int(point_hits(found, boxes_of_present, GAME_TOLERANCE).sum())
        pairs += len(present)
    values = np.asarray(average_precisions)
    return {
        "map": None if np.isnan(values).all() else float(np.nanmean(values)),
        "ap": _named(classes, values),
        "tolerance": POINT_TOLERANCE,
        "variant": variant,
        "pointing_game": hits / pairs if pairs else None,
        "pointing_game_tolerance": GAME_TOLERANCE,
    }


def true_mask(prediction: Prediction, sample: Sample) -> NDArray[np.uint8]:
    """(H, W) ground truth of an image: 0 background, i + 1 = class i, 255 ignored.

    Raises:
        DataError: the image has no mask, or one of another size.
    """
    truth = sample.read_mask()
    if truth is None:
        raise DataError(f"{sample.name} has no mask.", "Evaluate segmentation on data with masks.")
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
    crf: bool | CrfParams | None = None,
    params: MaskParams | None = None,
    propagate: bool | None = None,
) -> NDArray[np.int64]:
    """(C+1, C+1) confusion of the pixels of an image, rows true, columns predicted.

    Args:
        truth: see `true_mask`. crf, params, propagate: see `Prediction.mask`.

    Raises:
        ConfigError: the true mask has labels beyond the classes.
    """
    return overlap_confusion(prediction.mask(crf, params, propagate=propagate), truth, len(prediction.classes) + 1)


def strength_histogram(
    prediction: Prediction, truth: NDArray[np.uint8], params: MaskParams | None = None
) -> NDArray[np.int64]:
    """(T+1, C+1, C+1) pixels of an image by strength, true and strongest class, see `wildcat.metrics.strength_counts`.

    It describes the masks at all T thresholds of `thresholds_of` at once; the strength is that of
    `wildcat.regions.strongest_class`. `truth` is that of `true_mask`.
    """
    params, size = prediction.mask_params(params), (prediction.height, prediction.width)
    strength, labels = strongest_class(prediction.class_maps, prediction.class_probs, size, params.gate, params.rule)
    return strength_counts(strength, labels, truth, thresholds_of(params.rule), len(prediction.classes) + 1)


def thresholds_of(rule: BackgroundRule) -> tuple[float, ...]:
    """The background thresholds to try, in the unit of the rule's strength."""
    return SCORES if rule == "score" else THRESHOLDS


def measured_classes(samples: Sequence[Sample], true_pixels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(C+1,) bool, the classes that a mean IoU is over: the background, and those that somebody looked for.

    These have a label that is not ignored, or pixels in a true mask.

    Args:
        true_pixels: (C+1,) in the true masks of the samples, background first.
    """
    return np.append(True, label_counts(samples).any(axis=0)) | (true_pixels > 0)


def segmentation_report(tally: Tally, data: DataSet, split: str) -> dict[str, Any]:
    """IoU per class and its mean including the background, on the confusion of all pixels (VOC devkit; 255 ignored).

    Both are over the `measured_classes`; pixels drawn as another class are still errors of their true class.

    `rule` and `threshold` are the background settings of the masks, see `MaskParams`. `calibration` describes the
    images that they were fitted on, and `measured` how many of those are in this split; None without calibration.
    `hindsight` is the best background threshold by the same rule on these very masks: an upper bound that cannot be
    deployed.
    """
    if tally.confusion is None or tally.params is None:
        raise DataError("the split has no masks.", "Evaluate segmentation on data with masks.")
    params, counted = tally.params, measured_classes(data.split(split), tally.confusion.sum(axis=1))
    iou = np.where(counted, class_iou(tally.confusion), np.nan)
    result: dict[str, Any] = {
        "miou": _number(mean_iou(tally.confusion, counted)),
        "iou": _named(("background", *data.classes), iou),
        "rule": params.rule,
        "threshold": None if params.threshold is None else round(params.threshold, 4),
        "crf": tally.crf,
        "propagated": tally.propagated,
        "calibration": None,
    }
    if tally.calibration is not None:
        record = tally.calibration.record
        result["calibration"] = {key: record[key] for key in ("data", "split", "images", "masks")}
        result["calibration"]["measured"] = measured_again(record, data, split)
    if tally.strengths is not None:
        means = [mean_iou(confusion, counted) for confusion in confusions_by_threshold(tally.strengths)]
        best = int(np.argmax(means)) if not np.isnan(means).any() else 0
        result["hindsight"] = {"threshold": thresholds_of(params.rule)[best], "miou": _number(means[best])}
    return result


def _without_mask_value(data: DataSet, samples: Sequence[Sample]) -> list[str]:
    """The present classes for whose pixels a true mask has no value, see `DataSet.for_classes`."""
    images = label_counts(samples)[0, HIGHEST_PNG_LABEL:]
    return [name for name, count in zip(data.classes[HIGHEST_PNG_LABEL:], images, strict=True) if count]


def _sum(a: NDArray[np.int64] | None, b: NDArray[np.int64] | None) -> NDArray[np.int64] | None:
    return a if b is None else b if a is None else a + b


def easy_boxes(sample: Sample) -> dict[int, NDArray[np.float32]]:
    """Present class -> its boxes that are not difficult, (0, 4) if all are difficult; a DataError without boxes."""
    if sample.boxes is None or sample.box_classes is None:
        raise DataError(f"{sample.name} has no boxes.", "Evaluate pointing on data with boxes.")
    easy = np.ones(len(sample.boxes), dtype=bool) if sample.box_difficult is None else ~sample.box_difficult
    return {int(c): sample.boxes[easy & (sample.box_classes == c)] for c in np.unique(sample.box_classes)}


def _named(classes: Sequence[str], values: NDArray[np.float64]) -> dict[str, float | None]:
    return {c: _number(v) for c, v in zip(classes, values, strict=True)}


def _number(value: float) -> float | None:
    """A float for JSON: None instead of NaN."""
    return None if np.isnan(value) else float(value)
