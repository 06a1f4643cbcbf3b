"""How a model draws masks, fitted on training images: from their tags, and from their masks where there are any.

Which classes are drawn comes from the tags. Where a class ends and the background begins cannot be told from tags:
without masks the background stays at its default.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
    class_order,
    confusions_by_threshold,
    mask_confusion,
    strength_histogram,
    true_mask,
)
from wildcat.metrics import mean_iou
from wildcat.models.calibration import fitted_samples
from wildcat.prediction import Prediction, default_mask_params
from wildcat.predictor import Predictor
from wildcat.regions.masks import BackgroundRule, MaskParams

GATES = np.arange(1, 100) / 100
"""Probabilities tried as gates."""

PRIOR_IMAGES = 10
"""How many images with a class the counts of all classes together weigh, when its gate is chosen."""

MOST_MASKS, MOST_MASKS_CRF = 1000, 200
"""Masks used at most, evenly spread: a constant is found with fewer, and their class maps are held in memory."""

FITTED_RULES: tuple[BackgroundRule, ...] = ("score", "constant")
"""Rules that differ without a CRF; each is fitted, in the order of `_candidates`."""

CRF_THRESHOLDS = (0.1, 0.2, 0.3, 0.4)
"""Thresholds tried under a CRF for "constant" and "power"."""

CRF_SCORES = (-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0)
"""Scores tried under a CRF, which runs once for each of them and of `CRF_THRESHOLDS`."""


def calibrate(
    predictor: Predictor,
    data: DataSet,
    split: str = "train",
    crf: bool = False,
    progress: Callable[[int], object] = lambda steps: None,
) -> tuple[MaskParams, dict[str, Any]]:
    """Fit how masks are drawn on the images of a split, to be stored by `wildcat.models.calibration`.

    Args:
        split: one the model was trained on, never one it is measured on. Of a data set without `val`, the part of
            `train` that stands in for it is left out.
        crf: fit the background for masks that are then sharpened by a CRF. Rules "score" and "constant" are tried, and
            with a CRF also "power", which without one is "constant" again.
        progress: called with the number of steps done since the last call, of `count_steps`.

    Returns:
        The settings, one gate a class in the order of the model; and what to record: `data`, `split`, `images`,
        `masks` (how many were used), `crf`, and of each class `prior` (its share of the images) and `f1`.

    Raises:
        DataError: the data set's classes are not the model's, or none of its images has a known tag.
        ImageError: an image cannot be read.
    """
    order = class_order(predictor, data)
    samples = fitted_samples(data, split)
    masked = set(_masked(samples, crf))
    scored, kept = [], []
    for i, prediction in enumerate(predictor.stream([s.path for s in samples], modalities=False)):
        scored.append(prediction.class_probs[order])
        if i in masked:
            kept.append((prediction, samples[i]))
        progress(1)
    labels = label_matrix(samples)
    if not (labels == PRESENT).any():
        raise DataError(f"no image of {split} of {data.name} has a tag.", "Name a split with tagged images.")
    gates, f1 = fit_gates(np.stack(scored), labels)
    prior = (labels == PRESENT).mean(axis=0)
    by_model = [0.5] * len(predictor.classes)
    for c, index in enumerate(order):
        by_model[index] = float(gates[c])
    params = replace(default_mask_params(data.task), gate=tuple(by_model))
    params, tried = fit_background(params, kept, order, crf, progress)
    record = {
        "data": data.name,
        "split": split,
        "images": len(samples),
        "masks": len(kept),
        "crf": crf,
        "flip": predictor.flip,
        "prior": {c: round(float(v), 4) for c, v in zip(data.classes, prior, strict=True)},
        "f1": {c: round(float(v), 4) for c, v in zip(data.classes, f1, strict=True)},
        "tried": tried,
    }
    return params, record


def count_steps(data: DataSet, split: str, crf: bool) -> int:
    """How many steps of `progress` a calibration takes."""
    samples = fitted_samples(data, split)
    rounds = len(_candidates(MaskParams(), crf)) if crf else len(FITTED_RULES)
    return len(samples) + len(_masked(samples, crf)) * rounds


def fit_gates(probs: NDArray[np.float32], labels: NDArray[np.int8]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The probability above which each class is taken to be there, by F1 on tags.

    Probabilities of images the network learned from are surer than those of others, and a rare class has few of
    them. So the counts of all classes together, scaled to `PRIOR_IMAGES` images with a class, join those of each;
    and of gates that are equally good the one nearest to 0.5 is taken.

    Args:
        probs: (N, C) predicted probabilities.
        labels: (N, C) of 1 present, 0 ignored, -1 absent.

    Returns:
        (C,) gates, among `GATES`; and (C,) F1 of each class at its gate, without the prior (0 for an absent class).

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
    kept: Sequence[tuple[Prediction, Sample]],
    order: Sequence[int],
    crf: bool,
    progress: Callable[[int], object],
) -> tuple[MaskParams, list[dict[str, Any]]]:
    """`params` with the background of the highest mean IoU on images with masks, and the IoU of each one tried.

    Without images `params` come back as they are. Of equally good ones the one nearest to the default is taken.
    """
    if not kept:
        return params, []
    candidates = _candidates(params, crf)
    classes = len(order) + 1
    confusions: Sequence[NDArray[np.int64]]
    if crf:
        confusions = [np.zeros((classes, classes), dtype=np.int64) for _ in candidates]
        for prediction, sample in kept:
            truth = true_mask(prediction, sample)
            for k, candidate in enumerate(candidates):
                confusions[k] += mask_confusion(prediction, truth, order, True, candidate)
                progress(1)
    else:
        confusions = []
        for rule in FITTED_RULES:
            histograms = _histograms(replace(params, rule=rule), kept, order, progress)
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
    kept: Sequence[tuple[Prediction, Sample]],
    order: Sequence[int],
    progress: Callable[[int], object],
) -> Iterator[NDArray[np.int64]]:
    for prediction, sample in kept:
        yield strength_histogram(prediction, true_mask(prediction, sample), order, params)
        progress(1)


def _candidates(params: MaskParams, crf: bool) -> list[MaskParams]:
    """The backgrounds that are tried, rule by rule; s = (1 - s)^a has a = log(s) / log(1 - s)."""
    scores, constants = (CRF_SCORES, CRF_THRESHOLDS) if crf else (SCORES, THRESHOLDS)
    made = [replace(params, rule="score", score=t) for t in scores]
    made += [replace(params, rule="constant", constant=t) for t in constants]
    if crf:
        powers = [float(np.log(t) / np.log(1 - t)) for t in CRF_THRESHOLDS]
        made += [replace(params, rule="power", exponent=a) for a in powers]
    return made


def _masked(samples: Sequence[Sample], crf: bool) -> list[int]:
    """Positions of the images with masks that are used."""
    found = [i for i, sample in enumerate(samples) if sample.mask is not None]
    return found[:: -(-len(found) // (MOST_MASKS_CRF if crf else MOST_MASKS)) or 1]
