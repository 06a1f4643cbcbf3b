"""Which labels are probably wrong, from predictions of networks that were not trained on them.

Confident learning (Northcutt et al., JAIR 2021), in the implementation of cleanlab: each head is trained on the other
folds (`wildcat.reproduce.heads.cross_validate`), so that it has not seen the labels that it is compared with.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wildcat.data.dataset import ABSENT, IGNORED, PRESENT, Task
from wildcat.errors import import_extra


@dataclass(frozen=True)
class Judgement:
    """What the predictions say about the label of each class in each image.

    Attributes:
        quality: (N, C) probability that a label is right, see `label_quality`; 1 for an ignored label.
        suspect: (N, C) the labels that confident learning finds wrong. In multi-class data the label of the image, and
            the class that is predicted instead.
    """

    quality: NDArray[np.float64]
    suspect: NDArray[np.bool_]

    @property
    def image_quality(self) -> NDArray[np.float64]:
        """(N,) the quality of the worst label of each image."""
        return np.asarray(self.quality.min(axis=1))

    def ranking(self) -> list[int]:
        """The images, those with a suspect label first, then by quality, the lowest first."""
        return [int(i) for i in np.lexsort((self.image_quality, ~self.suspect.any(axis=1)))]


def require_cleanlab() -> Any:
    """The function `find_label_issues` of cleanlab.

    Raises:
        MissingExtra: cleanlab is not installed.
    """
    return import_extra("cleanlab.filter", "cleanlab", "audit").find_label_issues


def judge_labels(labels: NDArray[np.int8], probs: NDArray[np.float32], task: Task) -> Judgement:
    """Compare (N, C) labels (1 present, 0 ignored, -1 absent) with (N, C) probabilities of the classes.

    Multi-label data: each class by itself, present against absent, without its ignored labels.

    Raises:
        MissingExtra: cleanlab is not installed.
    """
    quality, suspect = label_quality(labels, probs, task), np.zeros(labels.shape, bool)
    if task == "multiclass":
        given = (labels == PRESENT).argmax(axis=1)
        wrong = confident_learning(given, probs)
        suspect[wrong, given[wrong]] = suspect[wrong, probs[wrong].argmax(axis=1)] = True
        return Judgement(quality, suspect)
    for c in range(labels.shape[1]):
        rows = np.flatnonzero(labels[:, c] != IGNORED)
        given = (labels[rows, c] == PRESENT).astype(np.int64)
        if len(np.unique(given)) == 2:
            suspect[rows, c] = confident_learning(given, np.stack([1 - probs[rows, c], probs[rows, c]], axis=1))
    return Judgement(quality, suspect)


def label_quality(labels: NDArray[np.int8], probs: NDArray[np.float32], task: Task) -> NDArray[np.float64]:
    """(N, C) probability that each label is right; 1 for ignored labels, and for absent ones in multi-class data.

    Multi-class: the probability of the given class. Multi-label: with P present and A absent labels, a model takes
    P / A as the odds of a class in any image. If as many labels are missing as are wrongly given, then, by Bayes' rule,
    the odds that a label is wrong are proportional to p / (1 - p) for an absent one, and to P / A * (1 - p) / p for a
    present one.
    """
    p = np.clip(probs.astype(np.float64), 1e-9, 1 - 1e-9)
    present = labels == PRESENT
    if task == "multiclass":
        return np.where(present, p, 1.0)
    ratio = present.sum() / max(1, (labels == ABSENT).sum())
    wrong = np.where(present, ratio * (1 - p) / p, p / (1 - p))
    return np.where(labels == IGNORED, 1.0, 1 / (1 + wrong))


def confident_learning(given: NDArray[np.int64], probs: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(N,) given classes and (N, K) probabilities of the classes -> (N,) whether the given class is wrong."""
    find_label_issues = require_cleanlab()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "May not flag all label issues")  # of classes with few images
        return np.asarray(find_label_issues(given, probs.astype(np.float64), n_jobs=1))
