"""One folder per class: the layout of most collections of tagged images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wildcat.data.dataset import ABSENT, PRESENT, DataSet, Sample, stratified_indices
from wildcat.data.images import holds_images, list_images
from wildcat.errors import DataError

SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Folder names that mean a split where they hold class folders -> the split's name."""

VAL_FRACTION = 0.2
"""The part of the images that is `val` where a folder or table names no splits; fixed, stratified by class."""


def one_label(index: int, num_classes: int) -> NDArray[np.int8]:
    """(C,) labels of a multi-class sample: 1 at `index`, -1 elsewhere."""
    labels = np.full(num_classes, ABSENT, np.int8)
    labels[index] = PRESENT
    return labels


def default_splits(samples: Sequence[Sample], strata: Sequence[int]) -> dict[str, Callable[[], Sequence[Sample]]]:
    """`train` and `val`, a fixed stratified 80/20 of the samples, and `all`.

    The same at every call for the same samples; a stratum of one sample goes to `train`.
    """
    held = stratified_indices(strata, VAL_FRACTION, seed=0)
    train = [sample for index, sample in enumerate(samples) if index not in held]
    val = [sample for index, sample in enumerate(samples) if index in held]
    return {"train": partial(tuple, train), "val": partial(tuple, val), "all": partial(tuple, samples)}


def subfolders(folder: Path) -> list[Path]:
    """The visible folders in `folder`, sorted by name."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def split_folders(root: Path) -> dict[str, Path]:
    """Split name -> folder, where `root` is laid out as `root/{train,val,test}/class/*.jpg`; else empty.

    A folder with the name of a split is one if it holds a folder that holds images. Where images lie directly in
    it, it is a class that happens to be called so.
    """
    named = [p for p in subfolders(root) if p.name.lower() in SPLIT_FOLDERS]
    return {SPLIT_FOLDERS[p.name.lower()]: p for p in named if any(map(holds_images, subfolders(p)))}


def recognise_folder(root: Path) -> bool:
    """Whether `root` has a folder that holds images."""
    return root.is_dir() and any(map(holds_images, subfolders(root)))


def read_folder(root: Path) -> DataSet:
    """A multi-class data set with one folder per class: `root/class/*.jpg`, or `root/{train,val,test}/class/*.jpg`.

    Images at any depth below a class folder belong to it; hidden files and files of other kinds are passed over.
    Classes are sorted by name. Without split folders, `train` and `val` are a fixed stratified 80/20 and `all` is
    everything. `valid` and `validation` are other names of `val`. `split_folders` says when a folder is a split.

    Raises:
        DataError: an empty class folder, fewer than two classes, split folders beside class folders, two folders for
            one split, or a class that is in val or test and not in train.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder.", "Give a folder that holds one folder per class.")
    splits = split_folders(root)
    return _read_split_folders(root, splits) if splits else _read_class_folders(root)


def _read_class_folders(root: Path) -> DataSet:
    files = {folder.name: list_images(folder) for folder in subfolders(root)}
    _refuse_empty(root, files)
    classes = _at_least_two(root, files)
    samples = _samples(root, files, classes)
    strata = [index for index, name in enumerate(classes) for _ in files[name]]
    notes = [
        f"Class {name!r} has a single image, which is in train and not in val."
        for name in classes
        if len(files[name]) == 1
    ]
    loose = len(list_images(root, recursive=False))
    if loose:
        notes.append(f"{loose} images lie beside the class folders of {root} and are left out.")
    return DataSet(
        root.resolve().name, "folder", root, classes, "multiclass", default_splits(samples, strata), tuple(notes)
    )


def _read_split_folders(root: Path, splits: Mapping[str, Path]) -> DataSet:
    named = [p for p in subfolders(root) if p.name.lower() in SPLIT_FOLDERS]
    notes = []
    for folder in named:
        split = SPLIT_FOLDERS[folder.name.lower()]
        if split not in splits:
            notes.append(
                f"{folder.name}/ holds no class folders and is left out (images without labels can be predicted)."
            )
        elif splits[split] != folder:
            raise DataError(
                f"{root} has two folders for one split: {splits[split].name} and {folder.name}.", "Keep one."
            )
    beside = [p.name for p in subfolders(root) if p not in named and holds_images(p)]
    if beside:
        raise DataError(
            f"{root} holds splits ({', '.join(p.name for p in splits.values())}) and, beside them, folders of "
            f"images ({', '.join(beside[:3])}{', ...' if len(beside) > 3 else ''}).",
            "Move the class folders into the splits, or the others out of the way.",
        )
    files = {split: {p.name: list_images(p) for p in subfolders(folder)} for split, folder in splits.items()}
    main = "train" if "train" in files else next(iter(files))
    _refuse_empty(splits[main], files[main])
    classes = _at_least_two(splits[main], files[main])
    readers: dict[str, Callable[[], Sequence[Sample]]] = {}
    for split in dict.fromkeys(SPLIT_FOLDERS.values()):
        if split in files:
            _refuse_unknown(splits[split], files[split], splits[main], classes)
            empty = [name for name, paths in files[split].items() if not paths]
            notes += [f"{splits[split].name}/{name} is empty." for name in empty]
            readers[split] = partial(_samples, root, files[split], classes)
    return DataSet(root.resolve().name, "folder", root, classes, "multiclass", readers, tuple(notes))


def _samples(root: Path, files: Mapping[str, Sequence[Path]], classes: Sequence[str]) -> list[Sample]:
    return [
        Sample(path.relative_to(root).as_posix(), path, one_label(index, len(classes)))
        for index, name in enumerate(classes)
        for path in files.get(name, ())
    ]


def _refuse_empty(root: Path, files: Mapping[str, Sequence[Path]]) -> None:
    empty = [name for name, paths in files.items() if not paths]
    if empty:
        raise DataError(
            f"Class folder {root / empty[0]} holds no images"
            + (f" (nor do {len(empty) - 1} others: {', '.join(empty[1:4])})." if len(empty) > 1 else "."),
            "Fill it, or remove it if it is no class.",
        )


def _at_least_two(root: Path, files: Mapping[str, Sequence[Path]]) -> tuple[str, ...]:
    if len(files) < 2:
        raise DataError(
            f"{root} has a single class folder, {next(iter(files))}." if files else f"{root} has no class folder.",
            "At least two are needed: add a folder of images without the thing, for example.",
        )
    return tuple(sorted(files))


def _refuse_unknown(folder: Path, files: Mapping[str, Sequence[Path]], main: Path, classes: Sequence[str]) -> None:
    unknown = [name for name in files if name not in classes]
    if unknown:
        raise DataError(
            f"Class {unknown[0]!r} is in {folder} and not in {main}, so it cannot be learnt.",
            f"Add {main / unknown[0]}, or take {folder / unknown[0]} away; the classes are {', '.join(classes[:8])}.",
        )
