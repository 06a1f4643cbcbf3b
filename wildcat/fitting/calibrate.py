"""Fit a model's thresholds and mask settings on training images: `wildcat calibrate`.

Per-class thresholds are fitted on labels; they decide which classes are predicted and drawn. Where a class ends and the
background begins cannot be learned from labels: it is fitted on the masks of the images, and stays at its default
without any.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wildcat.data.dataset import ABSENT, PRESENT, DataSet, Sample, label_matrix
from wildcat.errors import DataError
from wildcat.evaluation import (
    SCORES,
    THRESHOLDS,
    mask_confusion,
    match_classes,
    strength_histogram,
    true_mask,
)
from wildcat.methods import no_maps
from wildcat.metrics import confusions_by_threshold, mean_iou
from wildcat.models.calibration import fitted_samples
from wildcat.prediction import Prediction, default_mask_params
from wildcat.predictor import Predictor
from wildcat.progress import SILENT, Progress
from wildcat.regions.masks import BackgroundRule, MaskParams

GATES = np.arange(1, 100) / 100  # thresholds tried
PRIOR_IMAGES = 10  # weight of the pooled counts of all classes, in images, when the threshold of a class is chosen

# Masks used at most, evenly spaced: a constant is found with fewer, and their class maps are held in memory.
MOST_MASKS, MOST_MASKS_CRF = 1000, 200

FITTED_RULES: tuple[BackgroundRule, ...] = ("score", "constant")  # without a CRF "power" is equivalent to "constant"
CRF_THRESHOLDS = (0.1, 0.2, 0.3, 0.4)  # tried with a CRF for "constant" and "power"
CRF_SCORES = (-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0)  # tried with a CRF, which runs once for each candidate


def calibrate(
    predictor: Predictor,
    data: DataSet,
    split: str = "train",
    crf: bool = False,
    progress: Progress = SILENT,
) -> tuple[MaskParams, dict[str, Any]]:
    """Fit thresholds and mask settings on a split; `wildcat.models.calibration.write_calibration` stores them.

    Args:
        split: of the training data, never one to evaluate on. In a data set without `val`, the images of `train` that
            are held out for it are left out.
        crf: fit the background for masks that are sharpened by a CRF. The rules "score" and "constant" are tried, with
            a CRF also "power".
        progress: counts images, then masks.

    Returns:
        The settings, with one threshold per class in the order of the model; and the record: `data`, `split`, `images`,
        `masks` (number used), `crf`, and per class `prior` (its share of the images) and `f1`.

    Raises:
        ConfigError: the model's method has no class maps.
        DataError: the data set has none of the model's classes, or none of its images has a label.
        ImageError: an image cannot be read.
    """
    if not predictor.has_maps:
        raise no_maps(predictor.name)
    data = match_classes(predictor, data)
    samples = fitted_samples(data, split)
    masked = set(_masked(samples, crf))
    probs, with_masks = [], []
    progress.start("predicting", len(samples))
    for i, prediction in enumerate(predictor.stream([s.path for s in samples], modalities=False)):
        probs.append(prediction.class_probs)
        if i in masked:
            with_masks.append((prediction, samples[i]))
        progress.advance()
    labels = label_matrix(samples)
    if not (labels == PRESENT).any():
        raise DataError(f"no image of {split} of {data.name} has a label.", "Give a split with labelled images.")
    gates, f1 = fit_gates(np.stack(probs), labels)
    prior = (labels == PRESENT).mean(axis=0)
    params = replace(default_mask_params(data.task), gate=tuple(map(float, gates)))
    params, tried = fit_background(params, with_masks, crf, progress)
    record = {
        "data": data.name,
        "split": split,
        "images": len(samples),
        "masks": len(with_masks),
        "crf": crf,
        "flip": predictor.flip,
        "prior": {c: round(float(v), 4) for c, v in zip(data.classes, prior, strict=True)},
        "f1": {c: round(float(v), 4) for c, v in zip(data.classes, f1, strict=True)},
        "tried": tried,
    }
    return params, record


def fit_gates(probs: NDArray[np.float32], labels: NDArray[np.int8]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The threshold on the probability of each class with the highest F1 on the labels.

    Probabilities on training images are overconfident, and a rare class has few images. So the counts of all classes,
    scaled to `PRIOR_IMAGES` images, are added to those of each class, and of equally good thresholds the one nearest to
    0.5 is chosen.

    Args:
        probs: (N, C) predicted probabilities.
        labels: (N, C) of 1 present, 0 ignored, -1 absent.

    Returns:
        (C,) thresholds, among `GATES`; and (C,) F1 of each class at its threshold, without the prior (0 if absent).

    >>> gates, f1 = fit_gates(np.array([[0.9], [0.4], [0.35], [0.1]]), np.array([[1], [1], [-1], [-1]]))
    >>> gates.tolist(), f1.tolist()
    ([0.4], [1.0])
    """
    hits, drawn = np.zeros((2, len(GATES), probs.shape[1]))
    for t, gate in enumerate(GATES.astype(probs.dtype)):
        above = probs >= gate
        hits[t] = (above & (labels == PRESENT)).sum(axis=0)
        drawn[t] = hits[t] + (above & (labels == ABSENT)).sum(axis=0)
    present = (labels == PRESENT).sum(axis=0)
    weight = PRIOR_IMAGES / max(1, present.sum())
    joined = (
        2
        * (hits + weight * hits.sum(axis=1, keepdims=True))
        / (drawn + weight * drawn.sum(axis=1, keepdims=True) + present + weight * max(1, present.sum()))
    )
    best = np.abs(GATES - 0.5)[:, None] + 2 * (joined < joined.max(axis=0) - 1e-9)
    chosen = best.argmin(axis=0)
    columns = np.arange(probs.shape[1])
    return GATES[chosen], 2 * hits[chosen, columns] / np.maximum(1, drawn[chosen, columns] + present)


def fit_background(
    params: MaskParams,
    with_masks: Sequence[tuple[Prediction, Sample]],
    crf: bool,
    progress: Progress = SILENT,
) -> tuple[MaskParams, list[dict[str, Any]]]:
    """`params` with the background of the highest mean IoU on images with masks, and the IoU of each one tried.

    Without images `params` is returned unchanged. Of equally good backgrounds the nearest to the default is chosen.
    """
    if not with_masks:
        return params, []
    each = crf or with_masks[0][0].walls() is not None  # masks are computed for each candidate
    candidates = _candidates(params, each)
    classes = len(with_masks[0][0].classes) + 1
    confusions: Sequence[NDArray[np.int64]]
    if each:
        confusions = [np.zeros((classes, classes), dtype=np.int64) for _ in candidates]
        progress.start("fitting the background", len(with_masks))
        for prediction, sample in with_masks:
            truth = true_mask(prediction, sample)
            for k, candidate in enumerate(candidates):
                confusions[k] += mask_confusion(prediction, truth, crf, candidate)
            progress.advance()
    else:
        confusions = []
        progress.start("fitting the background", len(FITTED_RULES) * len(with_masks))
        for rule in FITTED_RULES:
            histograms = _histograms(replace(params, rule=rule), with_masks, progress)
            confusions = [*confusions, *confusions_by_threshold(reduce(np.add, histograms))]
    tried = [
        {"rule": p.rule, "threshold": round(p.threshold or 0.0, 4), "miou": round(mean_iou(confusion), 6)}
        for p, confusion in zip(candidates, confusions, strict=True)
    ]
    default = params.threshold or 0.0
    off = [(p.rule != params.rule, abs((p.threshold or 0.0) - default)) for p in candidates]
    best = min(range(len(tried)), key=lambda k: (-round(mean_iou(confusions[k]), 6), *off[k]))
    return candidates[best], tried


def _histograms(
    params: MaskParams,
    with_masks: Sequence[tuple[Prediction, Sample]],
    progress: Progress,
) -> Iterator[NDArray[np.int64]]:
    for prediction, sample in with_masks:
        yield strength_histogram(prediction, true_mask(prediction, sample), params)
        progress.advance()


def _candidates(params: MaskParams, crf: bool) -> list[MaskParams]:
    """The backgrounds to try, rule by rule; s = (1 - s)^a is solved by a = log(s) / log(1 - s)."""
    scores, constants = (CRF_SCORES, CRF_THRESHOLDS) if crf else (SCORES, THRESHOLDS)
    candidates = [replace(params, rule="score", score=t) for t in scores]
    candidates += [replace(params, rule="constant", constant=t) for t in constants]
    if crf:
        powers = [float(np.log(t) / np.log(1 - t)) for t in CRF_THRESHOLDS]
        candidates += [replace(params, rule="power", exponent=a) for a in powers]
    return candidates


def _masked(samples: Sequence[Sample], crf: bool) -> list[int]:
    """Indices of the images whose masks are used."""
    found = [i for i, sample in enumerate(samples) if sample.mask is not None]
    return found[:: -(-len(found) // (MOST_MASKS_CRF if crf else MOST_MASKS)) or 1]
