"""Fit a model's thresholds and mask settings on training images: `wildcat calibrate`.

Per-class thresholds are fitted on labels; they decide which classes are predicted and drawn. Where a class ends and the
background begins cannot be learned from labels: it is fitted on the masks of the images, and stays at its default
without any. Whether masks are propagated and sharpened by a CRF is chosen by `wildcat.fitting.choice`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from wildcat.data.dataset import ABSENT, PRESENT, DataSet, label_matrix
from wildcat.errors import DataError
from wildcat.evaluation import (
    SCORES,
    THRESHOLDS,
    mask_confusion,
    match_classes,
    measured_classes,
    strength_histogram,
    true_mask,
)
from wildcat.fitting.choice import (
    MOST,
    PLAIN,
    MaskSteps,
    Pairs,
    choose,
    consistency,
    image_overlaps,
    mean_gain,
    miou_gain,
    possible_steps,
    thinned,
)
from wildcat.methods import no_maps
from wildcat.metrics import confusions_by_threshold, mean_iou
from wildcat.models.calibration import fitted_samples
from wildcat.prediction import default_mask_params
from wildcat.predictor import Predictor
from wildcat.progress import SILENT, Progress
from wildcat.regions.crf import CrfParams
from wildcat.regions.masks import BackgroundRule, MaskParams

GATES = np.arange(1, 100) / 100  # thresholds tried
PRIOR_IMAGES = 10  # weight of the pooled counts of all classes, in images, when the threshold of a class is chosen

# Masks used at most, evenly spaced: a constant is found with fewer, and their class maps are held in memory. A CRF or a
# random walk runs once for each candidate.
MOST_MASKS, MOST_MASKS_SLOW = 1000, 200

FITTED_RULES: tuple[BackgroundRule, ...] = ("score", "constant")  # without a CRF "power" is equivalent to "constant"
CRF_THRESHOLDS = (0.1, 0.2, 0.3, 0.4)  # tried with a CRF for "constant" and "power"
CRF_SCORES = (-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0)  # tried with a CRF, which runs once for each candidate


def calibrate(
    predictor: Predictor,
    data: DataSet,
    split: str = "train",
    crf: bool | None = None,
    progress: Progress = SILENT,
    propagate: bool | None = None,
    crf_params: CrfParams | None = None,
    superpixels: bool = False,
) -> tuple[MaskParams, dict[str, Any]]:
    """Fit thresholds and mask settings on a split; `wildcat.models.calibration.write_calibration` stores them.

    Args:
        split: of the training data, never one to evaluate on. In a data set without `val`, the images of `train` that
            are held out for it are left out.
        crf, propagate: fit the background for masks that are sharpened by a CRF, or spread up to boundaries, or not;
            None each: choose, see `wildcat.fitting.choice`.
        progress: counts images, then masks.
        crf_params: settings of the CRF; None: the defaults.
        superpixels: of the mask settings.

    Returns:
        The settings, with one threshold per class in the order of the model; and the record: `data`, `split`, `images`,
        `masks` (number used), `propagate`, `crf`, `choice`, and per class `prior` (its share of the images) and `f1`.

    Raises:
        ConfigError: the model's method has no class maps, or `propagate` for a model without boundaries.
        DataError: the data set has none of the model's classes, or none of its images has a label.
        ImageError: an image cannot be read.
    """
    if not predictor.has_maps:
        raise no_maps(predictor.name)
    data = match_classes(predictor, data)
    samples = fitted_samples(data, split)
    labels = label_matrix(samples)
    if not (labels == PRESENT).any():
        raise DataError(f"no image of {split} of {data.name} has a label.", "Give a split with labelled images.")
    masked = [i for i, sample in enumerate(samples) if sample.mask is not None]
    kept = set(thinned(masked, MOST_MASKS_SLOW if crf or propagate or superpixels else MOST_MASKS))
    if not masked and (crf is None or propagate is None):
        kept = set(thinned(range(len(samples)), MOST))
    probs, pairs = [], []
    progress.start("predicting", len(samples))
    for i, prediction in enumerate(predictor.stream([s.path for s in samples], modalities=False)):
        probs.append(prediction.class_probs)
        if i in kept:
            pairs.append((prediction, samples[i]))
        progress.advance()
    gates, f1 = fit_gates(np.stack(probs), labels)
    prior = (labels == PRESENT).mean(axis=0)
    default = replace(default_mask_params(predictor.task), gate=tuple(map(float, gates)), superpixels=superpixels)
    bounded = any(prediction.boundaries is not None for prediction, _ in pairs)
    options = possible_steps(propagate, crf, bounded, crf_params)
    steps, params, fitted = choose_masks(options, default, pairs, bool(masked), progress)
    record = {
        "data": data.name,
        "split": split,
        "images": len(samples),
        "masks": len(pairs) if masked else 0,
        "propagate": steps.propagate,
        "crf": bool(steps.crf),
        "flip": predictor.flip,
        "prior": {c: float(v) for c, v in zip(data.classes, prior, strict=True)},
        "f1": {c: round(float(v), 4) for c, v in zip(data.classes, f1, strict=True)},
        **fitted,
    }
    return params, record


def choose_masks(
    options: Sequence[MaskSteps], params: MaskParams, pairs: Pairs, masked: bool, progress: Progress
) -> tuple[MaskSteps, MaskParams, dict[str, Any]]:
    """The best of the ways to draw masks, its background, and `tried` and `choice` of the record.

    Args:
        options: the cheapest first; a single one is not compared.
        params: the gates, and the default background, which stays without masks.
        pairs: predictions and their samples, all with masks if `masked`.
    """
    fits: dict[MaskSteps, tuple[MaskParams, list[dict[str, Any]]]] = dict.fromkeys(options, (params, []))
    choosing = len(options) > 1
    if masked:
        rules = FITTED_RULES if choosing else get_args(BackgroundRule)
        for steps in options:
            most = MOST_MASKS if from_histograms(steps, params) else MOST if choosing else MOST_MASKS_SLOW
            fits[steps] = fit_background(params, thinned(pairs, most), steps, rules, progress)
    choice = None
    if choosing:
        compared = thinned(pairs, MOST)
        progress.start("comparing masks", len(options) * len(compared))
        measure, compare = (image_overlaps, miou_gain) if masked else (consistency, mean_gain)
        measured = {steps: measure(compared, fits[steps][0], steps, progress) for steps in options}
        chosen, tried = choose(measured, compare)
        choice = {"measure": "mean IoU" if masked else "F1 of labels", "images": len(compared), "tried": tried}
    else:
        (chosen,) = options
    return chosen, fits[chosen][0], {"tried": fits[chosen][1], "choice": choice}


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
    all_hits, all_drawn = (counts + weight * counts.sum(axis=1, keepdims=True) for counts in (hits, drawn))
    joined = 2 * all_hits / (all_drawn + present + weight * max(1, present.sum()))
    best = np.abs(GATES - 0.5)[:, None] + 2 * (joined < joined.max(axis=0) - 1e-9)
    chosen = best.argmin(axis=0)
    columns = np.arange(probs.shape[1])
    return GATES[chosen], 2 * hits[chosen, columns] / np.maximum(1, drawn[chosen, columns] + present)


def fit_background(
    params: MaskParams,
    with_masks: Pairs,
    steps: MaskSteps = PLAIN,
    rules: Collection[BackgroundRule] = get_args(BackgroundRule),
    progress: Progress = SILENT,
) -> tuple[MaskParams, list[dict[str, Any]]]:
    """`params` with the background of the highest mean IoU on images with masks, and the IoU of each one tried.

    Without a pixel of known class `params` is returned unchanged. Of equally good backgrounds the nearest to the
    default is chosen.

    Args:
        steps: how masks are drawn; unless `from_histograms`, they are drawn for each background.
        rules: those to try.
    """
    if not with_masks:
        return params, []
    candidates = [p for p in _candidates(params, steps) if p.rule in rules]
    classes = len(with_masks[0][0].classes) + 1
    confusions: Sequence[NDArray[np.int64]]
    if not from_histograms(steps, params):
        confusions = [np.zeros((classes, classes), dtype=np.int64) for _ in candidates]
        progress.start("fitting the background", len(with_masks))
        for prediction, sample in with_masks:
            truth = true_mask(prediction, sample)
            for k, candidate in enumerate(candidates):
                confusions[k] += mask_confusion(prediction, truth, steps.crf, candidate, steps.propagate)
            progress.advance()
    else:
        confusions = []
        progress.start("fitting the background", len(FITTED_RULES) * len(with_masks))
        for rule in FITTED_RULES:
            histograms = _histograms(replace(params, rule=rule), with_masks, progress)
            confusions = [*confusions, *confusions_by_threshold(reduce(np.add, histograms))]
    true_pixels = confusions[0].sum(axis=1)
    if not true_pixels.any():
        return params, []
    counted = measured_classes([sample for _, sample in with_masks], true_pixels)
    tried: list[dict[str, Any]] = [
        {"rule": p.rule, "threshold": round(p.threshold or 0.0, 4), "miou": round(mean_iou(confusion, counted), 6)}
        for p, confusion in zip(candidates, confusions, strict=True)
    ]
    default = params.threshold or 0.0
    off = [(p.rule != params.rule, abs((p.threshold or 0.0) - default)) for p in candidates]
    best = min(range(len(tried)), key=lambda k: (-tried[k]["miou"], *off[k]))
    return candidates[best], tried


def from_histograms(steps: MaskSteps, params: MaskParams) -> bool:
    """Whether a histogram of an image gives the masks of all its backgrounds, so that none is drawn."""
    return steps == PLAIN and not params.superpixels


def _histograms(params: MaskParams, with_masks: Pairs, progress: Progress) -> Iterator[NDArray[np.int64]]:
    for prediction, sample in with_masks:
        yield strength_histogram(prediction, true_mask(prediction, sample), params)
        progress.advance()


def _candidates(params: MaskParams, steps: MaskSteps) -> list[MaskParams]:
    """The backgrounds to try, rule by rule; s = (1 - s)^a is solved by a = log(s) / log(1 - s)."""
    slow = not from_histograms(steps, params)
    scores, constants = (CRF_SCORES, CRF_THRESHOLDS) if slow else (SCORES, THRESHOLDS)
    candidates = [replace(params, rule="score", score=t) for t in scores]
    candidates += [replace(params, rule="constant", constant=t) for t in constants]
    if slow:
        powers = [float(np.log(t) / np.log(1 - t)) for t in CRF_THRESHOLDS]
        candidates += [replace(params, rule="power", exponent=a) for a in powers]
    return candidates
