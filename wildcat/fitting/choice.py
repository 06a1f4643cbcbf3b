"""Choose on training images whether masks are propagated up to boundaries and sharpened by a dense CRF.

Both help where objects have edges, as in photographs, and can hurt elsewhere. On images with true masks the measure is
the mean IoU, with the background that suits each option. Without masks it is the consistency with the image-level
labels, `label_f1`: the classes that a mask shows, by more than a speck, against the labels of the image. To be an
observation at all, classes that the model finds improbable may be drawn as well: specks of wrong classes should vanish,
and small objects of right ones should stay. It says nothing about borders, so it finds less than true masks do, and
mainly what a step destroys.

Plain masks are the first choice. A step is taken only if it gains more than `NOISE` standard errors over the choice so
far, on the same images: of the mean difference for the F1, of a paired bootstrap over images for the mean IoU, which is
no mean over images. With fewer than `FEWEST` images nothing is chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from wildcat.data.dataset import IGNORED, PRESENT, Sample
from wildcat.evaluation import mask_confusion, measured_classes, true_mask
from wildcat.prediction import Prediction
from wildcat.progress import SILENT, Progress
from wildcat.regions.crf import CrfParams
from wildcat.regions.masks import MaskParams

NOISE = 2.0  # standard errors that a gain must exceed
FEWEST, MOST = 10, 60  # images to compare masks on; a CRF runs on each several times
RESAMPLES = 1000  # of the bootstrap
SPECK = 0.005  # share of the image below which a class does not count as shown, as for boxes
LOW_GATE = 0.05  # probability from which classes are drawn for the consistency with labels

Value = TypeVar("Value")
Pairs = Sequence[tuple[Prediction, Sample]]
Compare = Callable[[NDArray[Any], NDArray[Any]], tuple[float, float]]


class MaskSteps(NamedTuple):
    """How masks are drawn: spread up to boundaries or not, and sharpened by a CRF, by its settings, or not."""

    propagate: bool = False
    crf: bool | CrfParams = False


PLAIN = MaskSteps()


def possible_steps(
    propagate: bool | None, crf: bool | None, bounded: bool, crf_params: CrfParams | None = None
) -> list[MaskSteps]:
    """What to choose from, the cheapest first; `propagate` and `crf` decide, None leaves the choice.

    Args:
        bounded: whether the model has boundaries to propagate to.
        crf_params: settings of the CRF.

    >>> [(bool(p), bool(c)) for p, c in possible_steps(None, None, bounded=True)]
    [(False, False), (True, False), (False, True), (True, True)]
    """
    walks = ([False, True] if bounded else [False]) if propagate is None else [propagate]
    sharpened = [crf_params or True if on else False for on in ([False, True] if crf is None else [crf])]
    return [MaskSteps(walk, sharpen) for sharpen in sharpened for walk in walks]


def thinned(values: Sequence[Value], most: int) -> Sequence[Value]:
    """At most `most` of the values, evenly spaced."""
    return values[:: -(-len(values) // most) or 1]


def image_overlaps(
    pairs: Pairs, params: MaskParams, steps: MaskSteps, progress: Progress = SILENT
) -> NDArray[np.int64]:
    """(N, 3, C+1) pixels of each image by class: of both masks, of the predicted one, of the true one.

    Classes outside `measured_classes` have none, so that a mean IoU is not over them.
    """
    found = []
    for prediction, sample in pairs:
        confusion = mask_confusion(prediction, true_mask(prediction, sample), steps.crf, params, steps.propagate)
        found.append(np.stack([np.diag(confusion), confusion.sum(axis=0), confusion.sum(axis=1)]))
        progress.advance()
    pixels = np.stack(found)
    return pixels * measured_classes([sample for _, sample in pairs], pixels[:, 2].sum(axis=0))


def overlap_miou(overlaps: NDArray[Any]) -> NDArray[np.float64]:
    """(..., 3, C+1) sums of `image_overlaps` -> (...) mean IoU over the classes that occur."""
    both, predicted, true = np.moveaxis(overlaps.astype(np.float64), -2, 0)
    union = predicted + true - both
    iou = np.divide(both, union, out=np.zeros_like(both), where=union > 0)
    return np.asarray(iou.sum(axis=-1) / np.maximum(1, (union > 0).sum(axis=-1)))


def miou_gain(before: NDArray[Any], after: NDArray[Any]) -> tuple[float, float]:
    """The gain in mean IoU of the whole data set, and its standard error by a paired bootstrap over images."""
    images = len(before)
    draws = np.random.default_rng(0).multinomial(images, np.full(images, 1 / images), size=RESAMPLES)
    gains = [overlap_miou(np.tensordot(draw, after, 1)) - overlap_miou(np.tensordot(draw, before, 1)) for draw in draws]
    return float(overlap_miou(after.sum(axis=0)) - overlap_miou(before.sum(axis=0))), float(np.std(gains))


def label_f1(mask: NDArray[np.integer[Any]], labels: NDArray[np.int8]) -> float:
    """F1 of the classes that a mask shows against the labels of its image; 1 if there is neither.

    Args:
        mask: (H, W), 0 background, i + 1 = class i. labels: (C,) of 1 present, 0 ignored, -1 absent.

    >>> label_f1(np.array([[1, 2, 0, 0]]), np.array([1, -1, 1], np.int8))
    0.5
    """
    areas = np.bincount(mask.ravel(), minlength=len(labels) + 1)[1:]
    shown, present = (areas >= SPECK * mask.size) & (labels != IGNORED), labels == PRESENT
    total = int(shown.sum() + present.sum())
    return float(2 * (shown & present).sum() / total) if total else 1.0


def consistency(pairs: Pairs, params: MaskParams, steps: MaskSteps, progress: Progress = SILENT) -> NDArray[np.float64]:
    """(N,) `label_f1` of each image, with a low gate; a multi-class model draws its likeliest class alone."""
    gate = params.gate
    low = replace(params, gate=tuple(min(g, LOW_GATE) for g in gate) if isinstance(gate, tuple) else LOW_GATE)
    found = []
    for prediction, sample in pairs:
        used = low if prediction.task == "multilabel" else params
        found.append(label_f1(prediction.mask(steps.crf, used, propagate=steps.propagate), sample.labels))
        progress.advance()
    return np.asarray(found)


def mean_gain(before: NDArray[Any], after: NDArray[Any]) -> tuple[float, float]:
    """The mean gain over images, and its standard error."""
    gains = after - before
    return float(gains.mean()), float(gains.std(ddof=1) / np.sqrt(len(gains))) if len(gains) > 1 else np.inf


def choose(measured: Mapping[MaskSteps, NDArray[Any]], compare: Compare) -> tuple[MaskSteps, list[dict[str, Any]]]:
    """The first steps, or later ones that gain more than noise over the choice so far.

    Args:
        measured: of each of the steps to choose from, a value or several of each image, the cheapest first.
        compare: the gain of one over another, and its standard error.

    Returns:
        The chosen steps, and for each of the others `propagate`, `crf`, `gain` over the choice so far, and `error`,
        None if one image gives none.
    """
    chosen, *others = measured
    tried = []
    for steps in others:
        gain, error = compare(measured[chosen], measured[steps])
        known_error = round(error, 6) if np.isfinite(error) else None
        tried.append(
            {"propagate": steps.propagate, "crf": bool(steps.crf), "gain": round(gain, 6), "error": known_error}
        )
        if len(measured[steps]) >= FEWEST and gain > NOISE * error:
            chosen = steps
    return chosen, tried
