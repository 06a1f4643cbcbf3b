"""One folder per class: `root/class/*.jpg`, or `root/{train,val,test}/class/*.jpg`."""

from __future__ import annotations

from pathlib import Path

from wildcat.data.dataset import SPLIT_NAMES, DataSet, Sample, default_splits, grouped_splits, one_label
from wildcat.data.images import holds_images, list_images
from wildcat.errors import DataError


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
    folders = split_folders(root)
    notes: list[str] = []
    if folders:
        _check_other_folders(root, folders, notes)
    elif loose := len(list_images(root, recursive=False)):
        notes.append(f"{loose} images beside the class folders of {root} are ignored.")
    folders = folders or {"all": root}
    files = {split: {p.name: list_images(p) for p in subfolders(folder)} for split, folder in folders.items()}
    main = "train" if "train" in files else next(iter(files))
    classes = tuple(sorted(files[main]))
    for name in classes:
        if not files[main][name]:
            raise DataError(
                f"Class folder {folders[main] / name} holds no images.", "Fill it, or remove it if it is no class."
            )
        if main == "all" and len(files[main][name]) == 1:
            notes.append(f"Class {name!r} has a single image, which is in train and not in val.")
    if len(classes) < 2:
        raise DataError(
            f"{folders[main]} has {f'a single class folder, {classes[0]}' if classes else 'no class folder'}.",
            "At least two are needed: add a folder of images without the object, for example.",
        )
    samples: dict[str, list[Sample]] = {}
    for split, found in files.items():
        if other := sorted(found.keys() - set(classes)):
            raise DataError(
                f"Class {other[0]!r} is in {folders[split]} and not in {folders[main]}, so it cannot be learnt.",
                f"Add {folders[main] / other[0]}, or remove {folders[split] / other[0]}; the classes are "
                f"{', '.join(classes[:8])}.",
            )
        notes += [f"{folders[split].name}/{name} is empty." for name, paths in found.items() if not paths]
        samples[split] = [
            Sample(path.relative_to(root).as_posix(), path, one_label(index, len(classes)))
            for index, name in enumerate(classes)
            for path in found.get(name, ())
        ]
    readers = default_splits(samples["all"]) if "all" in samples else grouped_splits(samples)
    return DataSet(root.resolve().name, "folder", root, classes, "multiclass", readers, tuple(notes))


def _check_other_folders(root: Path, splits: dict[str, Path], notes: list[str]) -> None:
    """Refuse class folders and second splits beside the split folders; note splits without labels."""
    for folder in subfolders(root):
        split = SPLIT_NAMES.get(folder.name.lower(), "")
        if not split and holds_images(folder):
            raise DataError(
                f"{root} holds splits ({', '.join(p.name for p in splits.values())}) and, beside them, a folder of "
                f"images ({folder.name}).",
                "Move the class folders into the splits, or the others elsewhere.",
            )
        if split and split not in splits:
            notes.append(f"{folder.name}/ holds no class folders and is ignored (images without labels).")
        elif split and splits[split] != folder:
            raise DataError(
                f"{root} has two folders for one split: {splits[split].name} and {folder.name}.", "Keep one."
            )
