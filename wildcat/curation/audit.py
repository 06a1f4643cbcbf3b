"""Run the checks of an audit on a data set, and arrange what they find as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wildcat.config import TrainConfig
from wildcat.curation.copies import SIMILARITY, Duplicate, near_duplicates, read_images
from wildcat.curation.labels import Judgement, judge_labels, require_cleanlab
from wildcat.data.dataset import IGNORED, PRESENT, DataSet, Sample, check_learnable, label_matrix
from wildcat.data.transforms import parse_range
from wildcat.errors import ConfigError, ImageError
from wildcat.fitting.levels import outputs_from_features
from wildcat.prediction import score_probabilities
from wildcat.predictor import Predictor
from wildcat.progress import SILENT, Progress
from wildcat.reproduce.heads import compute_features, cross_validate

FOLDS = 5


@dataclass(frozen=True)
class Audit:
    """What is wrong with a data set.

    Attributes:
        data: the data set, with one split `audited`: the images of all audited splits that can be read.
        samples: all N images, also the unreadable ones.
        splits: of each image.
        unreadable: index -> why it cannot be read.
        duplicates: pairs of images that show the same, those of two splits first, then the most similar.
        readable: indices of the images that can be read; R of them.
        probabilities: (R, C) of heads that were not trained on the image.
        judgement: what these say about the labels of the readable images.
        heads: a trained head for each fold, and the positions in `readable` of its images.
    """

    data: DataSet
    samples: tuple[Sample, ...]
    splits: tuple[str, ...]
    unreadable: Mapping[int, ImageError]
    duplicates: Sequence[Duplicate]
    readable: tuple[int, ...]
    probabilities: NDArray[np.float32]
    judgement: Judgement
    heads: Sequence[tuple[Predictor, Sequence[int]]]

    def suspects(self) -> list[dict[str, Any]]:
        """All readable images, those whose labels are most likely wrong first.

        Each with `image`, `file`, `split`, `suspect` (whether confident learning finds a wrong label), `quality` of its
        worst label in [0, 1], `labels`, and the classes to `remove` and to `add` with their probabilities: those with a
        suspect label, or the one with the worst.
        """
        return [self._suspect(i) for i in self.judgement.ranking()]

    def doubtful(self, i: int) -> tuple[list[int], list[int]]:
        """Classes to remove from, and to add to, the labels of the i-th readable image.

        Both are empty only where all labels are ignored.
        """
        labels = self.samples[self.readable[i]].labels
        if (labels == IGNORED).all():
            return [], []
        classes = np.flatnonzero(self.judgement.suspect[i]).tolist()
        if not classes:
            classes = [int(self.judgement.quality[i].argmin())]
            if self.data.task == "multiclass":
                classes.append(int(np.where(labels == PRESENT, -1, self.probabilities[i]).argmax()))
        return [c for c in classes if labels[c] == PRESENT], [c for c in classes if labels[c] != PRESENT]

    def _suspect(self, i: int) -> dict[str, Any]:
        sample, names = self.samples[self.readable[i]], self.data.classes
        remove, add = (
            {names[c]: round(float(self.probabilities[i, c]), 4) for c in found} for found in self.doubtful(i)
        )
        return {
            **self._named(self.readable[i]),
            "suspect": bool(self.judgement.suspect[i].any()),
            "quality": round(float(self.judgement.image_quality[i]), 4),
            "labels": [names[c] for c in np.flatnonzero(sample.labels == PRESENT)],
            "remove": remove,
            "add": add,
        }

    def copies(self) -> list[dict[str, Any]]:
        """The pairs in `duplicates`: `image`, `copy_of`, their splits and files, `similarity`, and `same_labels`."""
        rows = []
        for image, original, similarity in self.duplicates:
            other = self._named(original)
            rows.append(
                {
                    **self._named(image),
                    "copy_of": other["image"],
                    "copy_of_file": other["file"],
                    "copy_of_split": other["split"],
                    "similarity": round(similarity, 3),
                    "same_labels": bool(np.array_equal(self.samples[image].labels, self.samples[original].labels)),
                }
            )
        return rows

    def errors(self) -> list[dict[str, Any]]:
        """The unreadable images: `image`, `file`, `split` and `error`."""
        return [{**self._named(i), "error": error.one_line} for i, error in self.unreadable.items()]

    def balance(self) -> list[dict[str, Any]]:
        """For each `class` the number of images of each split that have it, and `suspect` labels of it."""
        present = label_matrix(self.samples) == PRESENT
        splits = np.asarray(self.splits)
        suspect = self.judgement.suspect.sum(axis=0)
        return [
            {
                "class": name,
                **{s: int(present[splits == s, c].sum()) for s in self.split_names},
                "suspect": int(suspect[c]),
            }
            for c, name in enumerate(self.data.classes)
        ]

    @property
    def split_names(self) -> tuple[str, ...]:
        """The audited splits."""
        return tuple(dict.fromkeys(self.splits))

    def to_dict(self) -> dict[str, Any]:
        """All findings as plain values."""
        data = self.data
        return {
            "data": data.name,
            "format": data.format,
            "task": data.task,
            "images": {split: self.splits.count(split) for split in self.split_names},
            "unreadable": self.errors(),
            "duplicates": self.copies(),
            "suspects": self.suspects(),
            "classes": self.balance(),
        }

    def _named(self, index: int) -> dict[str, Any]:
        sample = self.samples[index]
        return {"image": sample.name, "file": str(sample.path), "split": self.splits[index]}


def audit_data(
    data: DataSet,
    config: TrainConfig,
    splits: Sequence[str] = (),
    folds: int = FOLDS,
    similarity: float = SIMILARITY,
    progress: Progress = SILENT,
) -> Audit:
    """Check the labels and images of a data set.

    Args:
        config: of the heads whose predictions judge the labels, with `tune="head"`.
        splits: to audit; empty: all. An image in several of them belongs to the first.
        folds: parts of the images; the labels of each are judged by a head trained on the others.
        similarity: see `near_duplicates`.

    Raises:
        MissingExtra: cleanlab is not installed.
        ConfigError: a setting out of range.
        DataError: no such split, or nothing to learn from the labels.
    """
    require_cleanlab()
    if not 0 < similarity <= 1:
        raise ConfigError(f"similarity={similarity}: give a number above 0 and up to 1.", f"{SIMILARITY} is usual.")
    samples, split_of = audited_images(data, splits)
    differences, unreadable = read_images(samples, parse_range(config.intensity_range), progress)
    readable = tuple(i for i in range(len(samples)) if i not in unreadable)
    good = tuple(samples[i] for i in readable)
    if not 2 <= folds <= len(good):
        images = f"{len(good)} of {len(samples)} images can be read"
        raise ConfigError(f"folds={folds}: {images}; give 2 to that number.", f"{FOLDS} is usual.")
    check_learnable(data, "these splits", good)
    whole = replace(data, readers={"audited": partial(tuple, good)}, _cache={})
    place = {sample.name: i for i, sample in enumerate(good)}
    scores = np.zeros((len(good), len(data.classes)), np.float32)
    heads = []
    compute_features(good, config, progress)
    progress.start("judging labels", len(good))
    for head, held_out in cross_validate(whole, "audited", config, folds):
        places = [place[sample.name] for sample in held_out]
        outputs = outputs_from_features(head, held_out, config.amp, config.flip)
        scores[places] = np.concatenate([output.scores for output in outputs])
        heads.append((head, places))
        progress.advance(len(places), f"fold {len(heads)}")
    probabilities = score_probabilities(scores, data.task)
    judgement = judge_labels(label_matrix(good), probabilities, data.task)
    duplicates = near_duplicates(differences, split_of, similarity)
    duplicates.sort(key=lambda pair: split_of[pair.image] == split_of[pair.original])
    return Audit(whole, samples, split_of, unreadable, duplicates, readable, probabilities, judgement, heads)


def audited_images(data: DataSet, splits: Sequence[str] = ()) -> tuple[tuple[Sample, ...], tuple[str, ...]]:
    """Each image of these splits (empty: of all) once, and the first split that has it."""
    found: dict[str, tuple[Sample, str]] = {}
    for split in splits or data.splits:
        for sample in data.split(split):
            found.setdefault(sample.name, (sample, split))
    samples, names = zip(*found.values(), strict=True)
    return samples, names
