"""The common form of all data sets: samples, splits and label conventions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from wildcat.data.image_ref import ImageRef
from wildcat.data.images import read_mask
from wildcat.data.layout import path_splits
from wildcat.errors import ConfigError, DataError, did_you_mean

Task = Literal["multilabel", "multiclass"]

# Values of a label, as in the VOC devkit: IGNORED is "difficult".
PRESENT, IGNORED, ABSENT = 1, 0, -1

HELD_OUT_FRACTION = 0.1  # of train: `val` of a data set that has a train split and no val
VAL_FRACTION = 0.2  # of all images: `val` of a data set without splits
BLOCK_BYTES = 1 << 20  # of labels that are looked at together

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
        mask_values: (256,) uint8, the value that each value of `mask` stands for; None: itself.
    """

    name: str
    path: Path | ImageRef
    labels: NDArray[np.int8]
    boxes: NDArray[np.float32] | None = None
    box_classes: NDArray[np.int64] | None = None
    box_difficult: NDArray[np.bool_] | None = None
    mask: Path | None = None
    mask_values: NDArray[np.uint8] | None = None

    def read_mask(self) -> NDArray[np.uint8] | None:
        """(H, W) of the mask, None without one; raises as `wildcat.data.images.read_mask`."""
        mask = None if self.mask is None else read_mask(self.mask)
        return mask if mask is None or self.mask_values is None else self.mask_values[mask]


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
            return hold_out(self.split("train"), HELD_OUT_FRACTION, self.classes)[1]
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
                hint = "Check the list or folder"
                if name == "val":
                    hint += ", or train with --val-split none: on all images, to the last epoch"
                raise DataError(f"split {name!r} of {self.root} holds no images.", f"{hint}.")
        return self._cache[name]

    def training_split(self, train: str, val: str) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
        """(train samples, val samples), without a common sample; no val samples for `val="none"`.

        If the data set has no split `val`, a fixed stratified tenth of `train` is held out.

        Raises:
            ConfigError: the splits have samples in common.
        """
        if val == "none":
            return self.split(train), ()
        if val == train:
            raise ConfigError(
                f"--train-split and --val-split are both {train!r}: training images would choose the best epoch.",
                "Name two splits, or --val-split none to keep the last epoch.",
            )
        if val == "val" and "val" not in self.readers:
            return hold_out(self.split(train), HELD_OUT_FRACTION, self.classes)
        samples, val_samples = self.split(train), self.split(val)
        if shared := shared_images(samples, val_samples):
            raise ConfigError(
                f"--train-split {train} and --val-split {val} have {len(shared)} images in common, such as "
                f"{shared[0]}: training images would choose the best epoch.",
                "Name two splits without common images, or --val-split none to keep the last epoch.",
            )
        return samples, val_samples

    def for_classes(self, classes: Sequence[str], names: Mapping[str, str] | None = None) -> DataSet:
        """This data set with its labels, boxes and masks in terms of other classes.

        Labels of other classes are dropped, in multi-class data with their images. Classes that this data set lacks are
        absent from every image if it is multi-class, else ignored, as nobody looked for them.

        Args:
            names: name of a class here -> its name in `classes`; others have the same name. Several may become one.
        """
        target = tuple(classes)
        position = {name: i for i, name in enumerate(target)}
        index = [position.get((names or {}).get(c, c), -1) for c in self.classes]
        if index == list(range(len(target))) and len(index) == len(self.classes):
            return replace(self, classes=target) if target != self.classes else self
        readers = {split: partial(self._translated, split, index, len(target)) for split in self.readers}
        return replace(self, classes=target, readers=readers, _cache={})

    def _translated(self, split: str, index: Sequence[int], count: int) -> list[Sample]:
        """The samples of a split with class `i` renumbered to `index[i]`; -1: dropped."""
        position = np.asarray(index)
        values = np.arange(256, dtype=np.uint8)
        known = position[:254] + 1  # a mask has no values for more classes
        values[1 : len(known) + 1] = np.minimum(known, 255)
        samples = []
        for sample in self.split(split):
            if self.task == "multiclass":
                new = int(position[sample.labels == PRESENT][0])
                if new < 0:
                    continue
                labels = one_label(new, count)
            else:
                labels = np.full(count, IGNORED, np.int8)
                labels[position[position >= 0]] = ABSENT
                for value in (IGNORED, PRESENT):
                    chosen = position[sample.labels == value]
                    labels[chosen[chosen >= 0]] = value
            truth: dict[str, Any] = {}
            if sample.box_classes is not None and sample.boxes is not None:
                box_classes = position[sample.box_classes]
                kept = box_classes >= 0
                truth = {"boxes": sample.boxes[kept], "box_classes": box_classes[kept]}
                if sample.box_difficult is not None:
                    truth["box_difficult"] = sample.box_difficult[kept]
            if sample.mask is not None:
                truth["mask_values"] = values if sample.mask_values is None else values[sample.mask_values]
            samples.append(replace(sample, labels=labels, **truth))
        return samples


def shared_images(samples: Sequence[Sample], others: Sequence[Sample]) -> list[str]:
    """Names of the samples whose image is one of `others` too."""
    files = {sample.path for sample in others}
    return [sample.name for sample in samples if sample.path in files]


def check_learnable(data: DataSet, split: str, samples: Sequence[Sample]) -> list[str]:
    """Notes on classes that these training images cannot teach.

    Raises:
        DataError: no class is present in some images and absent from others, so there is nothing to learn.
    """
    images_with, images_without = label_counts(samples)
    here, absent = images_with > 0, images_without > 0
    present = [name for name, found in zip(data.classes, here, strict=True) if found]
    where = f"{len(samples)} images of {split}" if len(samples) > 1 else f"image of {split}"
    if not present:
        raise DataError(
            f"none of the {where} of {data.name} has a label: there is nothing to learn.",
            "Check that the labels are in the file or the folders that you named.",
        )
    everywhere = [name for name, both in zip(data.classes, here & ~absent, strict=True) if both]
    if not (here & absent).any():
        raise DataError(
            f"all {where} of {data.name} have the same label{'s' * (len(present) > 1)} ({few(present)}): there is "
            "nothing to learn.",
            "Add images without it: an empty label or a 0 in a table, or a folder of other images.",
        )
    notes = []
    if (
        data.task == "multilabel"
        and len(data.classes) > 1
        and len(samples) > 1
        and (images_with + images_without == len(samples)).all()  # none is ignored
        and all(((labels == PRESENT).sum(axis=1) == 1).all() for labels in label_blocks(samples))
    ):
        notes.append(
            f"Every one of the {where} has exactly one label. If classes exclude each other, give --data-option "
            "task=multiclass: the model then learns to choose one."
        )
    notes += [f"Label {name!r} is in all {where}: the model learns to predict it always." for name in everywhere]
    if missing := [name for name in data.classes if name not in present]:
        notes.append(f"No image of {split} has {few(missing)}: the model cannot learn it.")
    return notes


def describe_labels(data: DataSet, split: str, samples: Sequence[Sample]) -> list[str]:
    """A note if the labels of a split to measure on do not vary, so that its metrics say nothing."""
    present = label_counts(samples)[0] > 0
    names = [name for name, found in zip(data.classes, present, strict=True) if found]
    if len(names) == 1 and data.task == "multiclass":
        return [f"All {len(samples)} images of {split} are of class {names[0]!r}: their accuracy says little."]
    return [] if names else [f"No image of {split} has a label: there is nothing to measure."]


def few(names: Sequence[str]) -> str:
    """The first five names, quoted, and how many more there are, for a message."""
    return ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def label_matrix(samples: Sequence[Sample]) -> NDArray[np.int8]:
    """(N, C) labels of the samples: 1 present, 0 ignored, -1 absent."""
    return np.stack([s.labels for s in samples])


def label_blocks(samples: Sequence[Sample]) -> Iterator[NDArray[np.int8]]:
    """The `label_matrix` of n samples at a time: of a million images with ten thousand classes it would fill 10 GB."""
    rows = max(1, BLOCK_BYTES // len(samples[0].labels))
    for start in range(0, len(samples), rows):
        yield label_matrix(samples[start : start + rows])


def label_counts(samples: Sequence[Sample]) -> NDArray[np.int64]:
    """(2, C), the number of samples in which each class is present, and in which it is absent."""
    counts = np.zeros((2, len(samples[0].labels)), np.int64)
    for block in label_blocks(samples):
        counts += [(block == value).sum(axis=0) for value in (PRESENT, ABSENT)]
    return counts


def count_table(classes: Sequence[str], splits: Mapping[str, Sequence[Sample]], most: int = 10) -> str:
    """A table of the number of images per class and split, for the first `most` classes."""
    counts = [label_counts(samples)[0] for samples in splits.values() if samples]
    names = [split for split, samples in splits.items() if samples]
    lines = [f"  {'images per class':24}{''.join(f'{name[:12]:>13}' for name in names)}"]
    for index, name in enumerate(classes[:most]):
        lines.append(f"  {name[:24]:24}{''.join(f'{count[index]:>13}' for count in counts)}")
    return "\n".join([*lines, *([f"  ... and {len(classes) - most} more classes"] if len(classes) > most else [])])


@cache
def one_label(index: int, num_classes: int) -> NDArray[np.int8]:
    """(C,) labels of a multi-class sample: 1 at `index`, -1 elsewhere; one array for all samples of a class."""
    labels = np.full(num_classes, ABSENT, np.int8)
    labels[index] = PRESENT
    labels.setflags(write=False)
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


def hold_out(
    samples: Sequence[Sample], fraction: float, classes: Sequence[str] = ()
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """The samples without, and with only, a fixed `fraction`, stratified by the rarest class present in each sample.

    Depends on the names of `classes`, not on their order.
    """
    held = stratified_indices(rarest_classes(samples, classes), fraction, seed=0)
    return (
        tuple(sample for i, sample in enumerate(samples) if i not in held),
        tuple(sample for i, sample in enumerate(samples) if i in held),
    )


def rarest_classes(samples: Sequence[Sample], classes: Sequence[str] = ()) -> list[int]:
    """The rarest class present in each sample, as its position among the sorted names; -1 of a sample without any."""
    counts, found = label_counts(samples)[0], []
    order = np.argsort(np.asarray(classes)) if classes else np.arange(len(counts))
    for labels in label_blocks(samples):
        present = labels[:, order] == PRESENT
        rarest = np.where(present, counts[order], len(samples) + 1).argmin(axis=1)
        found += np.where(present.any(axis=1), rarest, -1).tolist()
    return found


def stratified_folds(strata: Sequence[int], folds: int, seed: int) -> NDArray[np.int64]:
    """(N,) the fold of each item, from 0: every stratum, in random order, is dealt over the folds in turn.

    The sizes of the folds differ by at most one, and so do the numbers of items of a stratum in them. Deterministic for
    a seed and the order of `strata`.
    """
    rng = np.random.default_rng(seed)
    keys = np.asarray(strata)
    order = np.concatenate([rng.permutation(np.flatnonzero(keys == key)) for key in np.unique(keys)])
    found = np.empty(len(keys), np.int64)
    found[order] = np.arange(len(keys)) % folds
    return found


def cross_validation(data: DataSet, split: str, folds: int, seed: int = 0) -> DataSet:
    """The data set with the splits `fold1-train`, `fold1-test`, `fold2-train`, ... made of one of its splits.

    The test splits divide the samples of `split` among them, stratified as in `hold_out`; each training split holds
    the samples of the other folds.
    """
    samples = data.split(split)
    fold_of = stratified_folds(rarest_classes(samples, data.classes), folds, seed)
    parts = {}
    for fold in range(folds):
        for part, chosen in (("train", fold_of != fold), ("test", fold_of == fold)):
            parts[f"fold{fold + 1}-{part}"] = [sample for sample, use in zip(samples, chosen, strict=True) if use]
    return replace(data, readers=grouped_splits(parts), _cache={})


def default_splits(samples: Sequence[Sample], classes: Sequence[str] = ()) -> dict[str, Reader]:
    """`train` and `val`, a fixed 80/20 as in `hold_out`, and `all`."""
    train, val = hold_out(samples, VAL_FRACTION, classes)
    return {"train": lambda: train, "val": lambda: val, "all": lambda: samples}


def grouped_splits(samples: Mapping[str, Sequence[Sample]]) -> dict[str, Reader]:
    """Splits of samples that are read already: train, val, test, then others in their order."""
    order = [name for name in ("train", "val", "test") if name in samples]
    return {name: partial(tuple, samples[name]) for name in dict.fromkeys([*order, *samples])}


def split_samples(
    samples: Mapping[str, Sequence[Sample]], classes: Sequence[str], notes: list[str]
) -> dict[str, Reader]:
    """`grouped_splits`; those without a split (under "") by the split folders in their names, or `default_splits`."""
    if "" not in samples:
        return grouped_splits(samples)
    found = path_splits([sample.name for sample in samples[""]])
    if all(found) and len(set(found)) > 1:
        notes.append(f"The folders of the images give the splits: {', '.join(sorted(set(found)))}.")
        return grouped_splits(
            {split: [s for s, own in zip(samples[""], found, strict=True) if own == split] for split in set(found)}
        )
    return default_splits(samples[""], classes)
