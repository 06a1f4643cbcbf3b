"""One folder per class: `root/class/*.jpg`, or `root/{train,val,test}/class/*.jpg`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from wildcat.data.dataset import SPLIT_NAMES, DataSet, Reader, Sample, default_splits, one_label
from wildcat.data.images import holds_images, list_images
from wildcat.errors import DataError

Files = Mapping[str, Sequence[Path]]  # class -> its images


def subfolders(folder: Path) -> list[Path]:
    """The visible folders in `folder`, sorted by name."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def split_folders(root: Path) -> dict[str, Path]:
    """Split name -> folder, where `root` holds folders named as splits that hold class folders; else empty.

    A folder named as a split that holds images directly is a class of that name.
    """
    named = [p for p in subfolders(root) if p.name.lower() in SPLIT_NAMES]
    return {SPLIT_NAMES[p.name.lower()]: p for p in named if any(map(holds_images, subfolders(p)))}


def recognise_folder(root: Path) -> bool:
    """Whether `root` has a folder that holds images."""
    return root.is_dir() and any(map(holds_images, subfolders(root)))


def read_folder(root: Path) -> DataSet:
    """A multi-class data set with one folder per class: `root/class/*.jpg`, or `root/{train,val,test}/class/*.jpg`.

    Images at any depth below a class folder belong to it; hidden and other files are ignored. Classes are sorted by
    name. Without split folders, `train` and `val` are a fixed stratified 80/20 and `all` is everything. `valid` and
    `validation` are other names of `val`.

    Raises:
        DataError: an empty class folder, fewer than two classes, split folders beside class folders, two folders for
            one split, or a class in val or test that train lacks.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder.", "Give a folder that holds one folder per class.")
    splits = split_folders(root)
    return _read_split_folders(root, splits) if splits else _read_class_folders(root)


def _read_class_folders(root: Path) -> DataSet:
    files = {folder.name: list_images(folder) for folder in subfolders(root)}
    classes = _classes(root, files)
    notes = [
        f"Class {name!r} has a single image, which is in train and not in val."
        for name in classes
        if len(files[name]) == 1
    ]
    if loose := len(list_images(root, recursive=False)):
        notes.append(f"{loose} images beside the class folders of {root} are ignored.")
    readers = default_splits(_samples(root, files, classes))
    return DataSet(root.resolve().name, "folder", root, classes, "multiclass", readers, tuple(notes))


def _read_split_folders(root: Path, splits: Mapping[str, Path]) -> DataSet:
    notes, others = [], []
    for folder in subfolders(root):
        split = SPLIT_NAMES.get(folder.name.lower())
        if split is None:
            others += [folder.name] if holds_images(folder) else []
        elif split not in splits:
            notes.append(f"{folder.name}/ holds no class folders and is ignored (images without labels).")
        elif splits[split] != folder:
            raise DataError(
                f"{root} has two folders for one split: {splits[split].name} and {folder.name}.", "Keep one."
            )
    if others:
        raise DataError(
            f"{root} holds splits ({', '.join(p.name for p in splits.values())}) and, beside them, folders of "
            f"images ({', '.join(others[:3])}{', ...' if len(others) > 3 else ''}).",
            "Move the class folders into the splits, or the others elsewhere.",
        )
    files = {split: {p.name: list_images(p) for p in subfolders(folder)} for split, folder in splits.items()}
    main = "train" if "train" in files else next(iter(files))
    classes = _classes(splits[main], files[main])
    readers: dict[str, Reader] = {}
    for split in (name for name in ("train", "val", "test") if name in files):
        for name, paths in files[split].items():
            if name not in classes:
                raise DataError(
                    f"Class {name!r} is in {splits[split]} and not in {splits[main]}, so it cannot be learnt.",
                    f"Add {splits[main] / name}, or remove {splits[split] / name}; the classes are "
                    f"{', '.join(classes[:8])}.",
                )
            if not paths:
                notes.append(f"{splits[split].name}/{name} is empty.")
        readers[split] = partial(_samples, root, files[split], classes)
    return DataSet(root.resolve().name, "folder", root, classes, "multiclass", readers, tuple(notes))


def _samples(root: Path, files: Files, classes: Sequence[str]) -> list[Sample]:
    return [
        Sample(path.relative_to(root).as_posix(), path, one_label(index, len(classes)))
        for index, name in enumerate(classes)
        for path in files.get(name, ())
    ]


def _classes(root: Path, files: Files) -> tuple[str, ...]:
    """The classes, sorted: at least two, each with an image."""
    if empty := [name for name, paths in files.items() if not paths]:
        raise DataError(
            f"Class folder {root / empty[0]} holds no images"
            + (f" (nor do {len(empty) - 1} others: {', '.join(empty[1:4])})." if len(empty) > 1 else "."),
            "Fill it, or remove it if it is no class.",
        )
    if len(files) < 2:
        raise DataError(
            f"{root} has a single class folder, {next(iter(files))}." if files else f"{root} has no class folder.",
            "At least two are needed: add a folder of images without the object, for example.",
        )
    return tuple(sorted(files))
