"""The contract between a data set on disk and everything else: samples, splits, label conventions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from wildcat.data.image_ref import ImageRef
from wildcat.errors import ConfigError, DataError, did_you_mean

Task = Literal["multilabel", "multiclass"]

PRESENT, IGNORED, ABSENT = 1, 0, -1
"""Values of a label: present, ignored (VOC "difficult"), absent (devkit `ImageSets/Main/*_train.txt`)."""

HELD_OUT_FRACTION = 0.1
"""The part of `train` that stands in for `val` where a data set has none."""


@dataclass(frozen=True)
class Sample:
    """One image and what is known about it.

    Attributes:
        name: unique within its data set, stable across machines (no absolute path).
        path: the image's file, or the image where it lies in another file.
        labels: (C,) int8 of 1 present, 0 ignored, -1 absent. A multi-class sample has exactly one 1.
        boxes: (n, 4) float32 x1 y1 x2 y2 in original pixels (x2, y2 exclusive edges), or None where unknown.
        box_classes: (n,) int64 index into the data set's classes.
        box_difficult: (n,) bool, VOC "difficult" objects.
        mask: an indexed image of (i + 1 = classes[i], 0 background, 255 ignored), or None where unknown.
    """

    name: str
    path: Path | ImageRef
    labels: NDArray[np.int8]
    boxes: NDArray[np.float32] | None = None
    box_classes: NDArray[np.int64] | None = None
    box_difficult: NDArray[np.bool_] | None = None
    mask: Path | None = None


@dataclass(frozen=True)
class DataSet:
    """A data set as found on disk. Splits are read when asked for.

    Attributes:
        name: what to call it in tables, for example "VOC2012".
        format: the reader that recognised it, for example "voc".
        root: the folder or file it was read from.
        classes: class names; their order is the order of `Sample.labels`.
        task: "multilabel" (any number of classes per image) or "multiclass" (exactly one).
        readers: split name -> a function that returns the samples of that split.
        notes: sentences worth showing the user once (rows skipped, labels that occur once, ...).
    """

    name: str
    format: str
    root: Path
    classes: tuple[str, ...]
    task: Task
    readers: Mapping[str, Callable[[], Sequence[Sample]]]
    notes: tuple[str, ...] = ()
    _cache: dict[str, tuple[Sample, ...]] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that exist on disk, in their customary order."""
        return tuple(self.readers)

    def split(self, name: str) -> tuple[Sample, ...]:
        """All samples of split `name`.

        Where there is a `train` but no `val`, `val` is the part of `train` that `training_split` holds out.

        Raises:
            DataError: no such split, or it is empty.
        """
        if name == "val" and "val" not in self.readers and "train" in self.readers:
            return self._held_out("train")[1]
        if name not in self.readers:
            raise DataError(
                f"{self.name} has no split {name!r}; it has {', '.join(self.splits)}.",
                did_you_mean(name, self.splits) or f"Choose one of: {', '.join(self.splits)}.",
            )
        if name not in self._cache:
            samples = tuple(self.readers[name]())
            if not samples:
                raise DataError(f"split {name!r} of {self.root} holds no images.", "Check the list or folder.")
            self._cache[name] = samples
        return self._cache[name]

    def training_split(self, train: str, val: str) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
        """(train samples, val samples), without a common sample.

        `val="none"` gives no val samples. Where the data set has no split `val`, a fixed stratified tenth of
        `train` is held out, the same at every call.
        """
        if val == "none":
            return self.split(train), ()
        if val == train:
            raise ConfigError(
                f"--train-split and --val-split are both {train!r}: training images would choose the best epoch.",
                "Name two splits, or --val-split none to keep the last epoch.",
            )
        if val in self.readers:
            return self.split(train), self.split(val)
        if val != "val":
            self.split(val)  # raises with the names of the splits that exist
        return self._held_out(train)

    def _held_out(self, train: str) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
        samples = self.split(train)
        held = stratified_indices([_stratum(s) for s in samples], HELD_OUT_FRACTION, seed=0)
        return (
            tuple(s for i, s in enumerate(samples) if i not in held),
            tuple(s for i, s in enumerate(samples) if i in held),
        )


def _stratum(sample: Sample) -> int:
    present = np.flatnonzero(sample.labels == PRESENT)
    return int(present[0]) if len(present) else -1


def stratified_indices(strata: Sequence[int], fraction: float, seed: int) -> frozenset[int]:
    """Indices of about `fraction` of the items, drawn per stratum; a stratum of one item gives none.

    Deterministic for a seed and the order of `strata`.
    """
    rng = np.random.default_rng(seed)
    keys = np.asarray(strata)
    chosen: list[int] = []
    for key in np.unique(keys):
        members = np.flatnonzero(keys == key)
        count = min(len(members) - 1, max(1, round(fraction * len(members))))
        chosen.extend(int(i) for i in rng.permutation(members)[:count])
    return frozenset(chosen)


def label_matrix(samples: Sequence[Sample]) -> NDArray[np.int8]:
    """(N, C) labels of the samples: 1 present, 0 ignored, -1 absent."""
    return np.stack([s.labels for s in samples])
