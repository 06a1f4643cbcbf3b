"""The common form of all data sets: samples, splits and label conventions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from wildcat.data.image_ref import ImageRef
from wildcat.errors import ConfigError, DataError, did_you_mean

Task = Literal["multilabel", "multiclass"]

# Values of a label, as in the VOC devkit: IGNORED is "difficult".
PRESENT, IGNORED, ABSENT = 1, 0, -1

# Names of folders, files and table cells that mean a split -> the split.
SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}

HELD_OUT_FRACTION = 0.1  # of train: `val` of a data set that has a train split and no val
VAL_FRACTION = 0.2  # of all images: `val` of a data set without splits

Reader = Callable[[], Sequence["Sample"]]


@dataclass(frozen=True)
class Sample:
    """One image and its labels.

    Attributes:
        name: unique in the data set and stable across machines (no absolute path).
        path: the image file, or a reference to an image inside another file.
        labels: (C,) int8 of 1 present, 0 ignored, -1 absent. A multi-class sample has exactly one 1.
        boxes: (n, 4) float32 x1 y1 x2 y2 in original pixels (x2, y2 exclusive), or None if unknown.
        box_classes: (n,) int64 class indices.
        box_difficult: (n,) bool, "difficult" objects of VOC or crowds of COCO.
        mask: file of an indexed mask (0 background, i + 1 = classes[i], 255 ignored), or None if unknown.
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
    """A data set on disk; a split is read when it is first used.

    Attributes:
        name: for tables and reports, for example "VOC2012".
        format: the format that read it, for example "voc".
        root: the folder or file it was read from.
        classes: class names, in the order of `Sample.labels`.
        task: "multilabel" (any number of classes per image) or "multiclass" (exactly one).
        readers: split name -> function that returns its samples.
        notes: sentences to show the user once (skipped rows, labels that occur once, ...).
    """

    name: str
    format: str
    root: Path
    classes: tuple[str, ...]
    task: Task
    readers: Mapping[str, Reader]
    notes: tuple[str, ...] = ()
    _cache: dict[str, tuple[Sample, ...]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits on disk, in their customary order."""
        return tuple(self.readers)

    def split(self, name: str) -> tuple[Sample, ...]:
        """All samples of split `name`; without a `val` on disk, `val` is what `training_split` holds out.

        Raises:
            DataError: no such split, or it is empty.
        """
        if name == "val" and "val" not in self.readers and "train" in self.readers:
            return hold_out(self.split("train"), HELD_OUT_FRACTION)[1]
        if name not in self._cache:
            try:
                read = self.readers[name]
            except KeyError:
                raise DataError(
                    f"{self.name} has no split {name!r}; it has {', '.join(self.splits)}.",
                    did_you_mean(name, self.splits) or f"Choose one of: {', '.join(self.splits)}.",
                ) from None
            self._cache[name] = tuple(read())
            if not self._cache[name]:
                raise DataError(f"split {name!r} of {self.root} holds no images.", "Check the list or folder.")
        return self._cache[name]

    def training_split(self, train: str, val: str) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
        """(train samples, val samples), without a common sample; no val samples for `val="none"`.

        If the data set has no split `val`, a fixed stratified tenth of `train` is held out.
        """
        if val == "none":
            return self.split(train), ()
        if val == train:
            raise ConfigError(
                f"--train-split and --val-split are both {train!r}: training images would choose the best epoch.",
                "Name two splits, or --val-split none to keep the last epoch.",
            )
        if val != "val" or "val" in self.readers:
            return self.split(train), self.split(val)
        return hold_out(self.split(train), HELD_OUT_FRACTION)


def label_matrix(samples: Sequence[Sample]) -> NDArray[np.int8]:
    """(N, C) labels of the samples: 1 present, 0 ignored, -1 absent."""
    return np.stack([s.labels for s in samples])


def one_label(index: int, num_classes: int) -> NDArray[np.int8]:
    """(C,) labels of a multi-class sample: 1 at `index`, -1 elsewhere."""
    labels = np.full(num_classes, ABSENT, np.int8)
    labels[index] = PRESENT
    return labels


def stratified_indices(strata: Sequence[int], fraction: float, seed: int) -> frozenset[int]:
    """Indices of about `fraction` of the items, drawn per stratum; none from a stratum of one item.

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


def hold_out(samples: Sequence[Sample], fraction: float) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """The samples without, and with only, a fixed `fraction`, stratified by the rarest class present in each sample."""
    present = label_matrix(samples) == PRESENT
    rarity = np.where(present, present.sum(axis=0), np.iinfo(np.int64).max)
    rarest = np.where(present.any(axis=1), rarity.argmin(axis=1), -1)
    held = stratified_indices(rarest.tolist(), fraction, seed=0)
    return (
        tuple(sample for i, sample in enumerate(samples) if i not in held),
        tuple(sample for i, sample in enumerate(samples) if i in held),
    )


def default_splits(samples: Sequence[Sample]) -> dict[str, Reader]:
    """`train` and `val`, a fixed 80/20, and `all`."""
    train, val = hold_out(samples, VAL_FRACTION)
    return {"train": lambda: train, "val": lambda: val, "all": lambda: samples}


def grouped_splits(samples: Mapping[str, Sequence[Sample]]) -> dict[str, Reader]:
    """Splits of samples that are read already: train, val, test, then others in their order."""
    order = [name for name in ("train", "val", "test") if name in samples]
    return {name: partial(tuple, samples[name]) for name in dict.fromkeys([*order, *samples])}


def split_samples(samples: Mapping[str, Sequence[Sample]], notes: list[str]) -> dict[str, Reader]:
    """`grouped_splits`, or `default_splits` of samples without splits (under ""), with a note."""
    if "" not in samples:
        return grouped_splits(samples)
    notes.append("No splits were found: train and val are a fixed random 80/20.")
    return default_splits(samples[""])
