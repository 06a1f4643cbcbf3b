"""What the names of folders and files mean: splits, wrappers, folders of all images, our own output.

One set of rules for all readers. The split of a file is named by a folder on its path (`train/cat/1.jpg`,
`images/train/1.jpg`, `cat/train/1.jpg`) or, for a table or JSON, by its own name. Folders that only wrap others do not
count.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from wildcat.data.formats import skipped_note
from wildcat.data.listing import list_images
from wildcat.data.remote import is_folder, is_hidden, walk_files
from wildcat.errors import DataError

_SPLITS = {
    **{"train": "train", "training": "train"},
    **{"val": "val", "valid": "val", "validation": "val", "dev": "val"},
    **{"test": "test", "testing": "test"},
}
# Words beside a split that say nothing: train_images, test set, annotations_val.
_FILLERS = frozenset(
    {
        *("set", "sets", "split", "subset", "data", "dataset", "datasets", "images", "image"),
        *("imgs", "img", "photos", "pictures", "pics", "folder", "files", "samples", "obj"),
        *("new", "labels", "label", "annotations", "annotation", "instances", "classes", "coco", "list"),
    }
)
_GLUED = re.compile(rf"({'|'.join(sorted(_SPLITS, key=len, reverse=True))})({'|'.join(_FILLERS)})")

# Folders that hold all images, or what belongs to them, whatever their class.
IMAGE_FOLDERS = frozenset(
    {
        *("images", "image", "imgs", "img", "jpegimages", "data", "photos", "pictures", "pics"),
        *("default", "obj_train_data", "upload", "media"),
    }
)
TRUTH_FOLDERS = frozenset(
    {
        *("labels", "label", "annotations", "annotation", "xml", "xmls", "masks", "mask", "segmentationclass"),
        *("segmentationobject", "gt", "groundtruth", "ground_truth", "segmentation", "segmentations", "bboxes"),
    }
)
_UNLABELLED = frozenset({"pred", "predict", "prediction", "predictions", "unlabeled", "unlabelled", "inference"})
# A folder with one of these was written by a command, or is a data set of its own.
_WRITTEN = {"model.json": "a model", "predictions.jsonl": "predictions"}
_DATA_SETS = dict.fromkeys(
    ("tasks.json", "data.yaml", "annotations.json", "ImageSets"), "an annotated data set of its own"
)


def split_name(text: str) -> tuple[str, str]:
    """The split that a name means, or "", and the words of the name that say more.

    >>> split_name("Training_Set"), split_name("seg_test"), split_name("val2017"), split_name("cat")
    (('train', ''), ('test', 'seg'), ('val', ''), ('', 'cat'))
    """
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text).lower()
    words = [w for word in re.split(r"[\W\d_]+", spaced) for w in (_glued_words(word)) if w and w not in _FILLERS]
    found = [_SPLITS[word] for word in words if word in _SPLITS]
    rest = " ".join(word for word in words if word not in _SPLITS)
    return (found[0], rest) if len(found) == 1 else ("", " ".join(words))


def _glued_words(word: str) -> Sequence[str]:
    """The words of `trainset` or `testimages`."""
    match = _GLUED.fullmatch(word)
    return match.groups() if match else (word,)


def name_splits(names: Iterable[str]) -> dict[str, str]:
    """Name -> split, for those of sibling names that mean splits.

    A name that says more counts only if that of another split says the same: `seg_train` beside `seg_test`, but not
    `train station` beside `airport`.

    >>> name_splits(["seg_train", "seg_test", "notes"]), name_splits(["train station", "airport"])
    ({'seg_train': 'train', 'seg_test': 'test'}, {})
    """
    parsed = {name: split_name(name) for name in names}
    splits: dict[str, set[str]] = defaultdict(set)
    for split, rest in parsed.values():
        if split:
            splits[rest].add(split)
    return {name: split for name, (split, rest) in parsed.items() if split and (not rest or len(splits[rest]) > 1)}


def path_splits(files: Sequence[str], own_names: bool = False) -> list[str]:
    """The split of each file, or "", by the folders of its relative path and, with `own_names`, by its own name."""
    paths = [PurePosixPath(file) for file in files]
    stems = name_splits({p.stem for p in paths}) if own_names else {}
    folders: dict[int, set[str]] = defaultdict(set)  # depth -> names
    for parts in {p.parts[:-1] for p in paths}:
        for depth, part in enumerate(parts):
            folders[depth].add(part)
    named = {depth: name_splits(names) for depth, names in folders.items()}
    return [
        next((named[d][part] for d, part in enumerate(p.parts[:-1]) if part in named[d]), "") or stems.get(p.stem, "")
        for p in paths
    ]


def is_unlabelled(name: str) -> bool:
    """Whether a folder's name says that its images have no labels, as `seg_pred`."""
    return not _UNLABELLED.isdisjoint(split_name(name)[1].split())


def subfolders(folder: Path) -> list[Path]:
    """The visible folders in `folder`, without those of the operating system, sorted by name."""
    with os.scandir(folder) as entries:  # `Path.is_dir` would ask the disk about every image
        return sorted(folder / e.name for e in entries if not is_hidden(e.name) and is_folder(e))


def output_type(folder: Path) -> str:
    """What a folder inside a data set is, if it is no part of it: a model, predictions, an export; else ""."""
    return next((what for name, what in {**_WRITTEN, **_DATA_SETS}.items() if (folder / name).exists()), "")


def check_not_written(root: Path) -> None:
    """Refuse a folder that a command has written as a data set."""
    for name, what in _WRITTEN.items():
        if (root / name).is_file():
            raise DataError(
                f"{root} holds {what} ({name}), not a data set.", "Give the folder or table of the labelled images."
            )


def find_images(root: Path, annotations: str = "") -> tuple[list[str], list[str]]:
    """The images below `root` as relative paths with /, without those in output folders, and notes.

    The notes name the output folders, and count the other files by type, except those with the suffix `annotations`.
    """
    skipped: Counter[str] = Counter()
    images = _relative(root, list_images(root, skipped=skipped))
    skipped.pop(annotations, None)
    ignored: dict[str, str] = {}
    for folder in sorted({parent for image in images for parent in _folders_of(image)}, key=lambda f: f.count("/")):
        if not _is_below(folder, ignored) and (what := output_type(root / folder)):
            ignored[folder] = what
    if ignored and all(_is_below(image, ignored) for image in images):  # a data set in a wrapper or in split folders
        ignored = {folder: what for folder, what in ignored.items() if what in _WRITTEN.values()}
    notes = [f"{root / folder} is {what} and is ignored." for folder, what in ignored.items()]
    if note := skipped_note(root, skipped):
        notes.append(note)
    return [image for image in images if not _is_below(image, ignored)], notes


def _is_below(path: str, folders: Iterable[str]) -> bool:
    return any(path.startswith(f"{folder}/") for folder in folders)


def _relative(root: Path, paths: Iterable[Path]) -> list[str]:
    """Paths below `root` relative to it, with /; `Path.relative_to` takes minutes for a million."""
    start = len(str(root / "x")) - 1  # with the separator; 0 for the folder "."
    return [str(path)[start:].replace(os.sep, "/") for path in paths]


def _folders_of(image: str) -> Iterator[str]:
    """The first three folders on a path: an output folder lies no deeper."""
    parts = image.split("/")[:-1][:3]
    return ("/".join(parts[: i + 1]) for i in range(len(parts)))


def image_folders(table: Path, base: Path, split: str) -> tuple[Path, ...]:
    """Where the images that a table or JSON lists may be: a folder of its split or name, `images/`, beside it.

    Args:
        base: the data set's folder, around `table`.
    """
    parents = [p for p in (table.parent, *table.parent.parents) if base in (p, *p.parents)]
    if base == table.parent and base.name.lower() in TRUTH_FOLDERS:
        parents.append(base.parent)
    general = [q for p in parents for q in (*(i for i in subfolders(p) if i.name.lower() in IMAGE_FOLDERS), p)]
    special: list[Path] = []
    for folder in general:
        inside = subfolders(folder)
        splits = name_splits(p.name for p in inside)
        special += [p for p in inside if p.name == table.stem or table.stem.endswith(f"_{p.name}")]
        own = [p for p in inside if split and splits.get(p.name) == split]
        special += [q for p in own for q in (p, *subfolders(p))]
    return tuple(dict.fromkeys([*special, *general, *(p / "images" for p in parents)]))


class Pair(NamedTuple):
    """An image and its annotation, None if it has none."""

    name: str  # relative path of the image
    split: str  # "" if the layout has none
    annotation: Path | None


def pair_annotations(root: Path, suffix: str) -> tuple[list[Pair], list[str]]:
    """The images below `root`, each with the annotation file of its name, wherever the two lie; and notes.

    They lie beside each other, or in folders for all images and for all annotations, inside or around split folders:
    `images/train/1.jpg` and `labels/train/1.txt`, `train/1.jpg` and `train/1.xml`.

    Raises:
        DataError: images inside and outside of split folders.
    """
    images, notes = find_images(root, suffix)
    images = [i for i in images if TRUTH_FOLDERS.isdisjoint(map(str.lower, i.split("/")[:-1]))] or images
    texts = _relative(root, sorted(Path(f) for f in walk_files(str(root)) if f.lower().endswith(suffix)))
    splits = path_splits([*images, *texts])
    exact: dict[tuple[str, ...], str] = {}
    alone: dict[tuple[str, str], list[str]] = defaultdict(list)
    for text, split in zip(texts, splits[len(images) :], strict=True):
        exact[_key(text, split)] = text
        alone[split, PurePosixPath(text).stem].append(text)
    pairs = []
    sharing = Counter((split, PurePosixPath(image).stem) for image, split in zip(images, splits, strict=False))
    for image, split in zip(images, splits, strict=False):
        name = split, PurePosixPath(image).stem
        same = alone[name] if sharing[name] == 1 else []  # it may be of another image of this name
        found = exact.get(_key(image, split), same[0] if len(same) == 1 else None)
        pairs.append(Pair(image, split, root / found if found else None))
    if any(pair.split for pair in pairs) and (outside := [pair.name for pair in pairs if not pair.split]):
        raise DataError(
            f"{root} has splits ({', '.join(sorted({p.split for p in pairs if p.split}))}) and {len(outside)} images "
            f"outside of them, such as {outside[0]}.",
            "Move these images into a split folder, or the split folders elsewhere.",
        )
    return pairs, notes


def _key(file: str, split: str) -> tuple[str, ...]:
    """The split, the folders that are neither a split nor for all images or annotations, and the stem."""
    *folders, _ = file.split("/")
    general = IMAGE_FOLDERS | TRUTH_FOLDERS
    return (split, *(f for f in folders if f.lower() not in general and not split_name(f)[0]), PurePosixPath(file).stem)


def probe(root: Path, suffix: str, depth: int = 3, folders: int = 50, entries: int = 2000) -> Iterator[Path]:
    """Files with a suffix in the first folders of a tree, level by level; bounded, so as to recognise a layout fast."""
    level = [root]
    for _ in range(depth + 1):
        following = []
        for folder in level[:folders]:
            with os.scandir(folder) as found:
                names = sorted((e for _, e in zip(range(entries), found, strict=False)), key=lambda e: e.name)
            for entry in names:
                if is_hidden(entry.name):
                    continue
                if is_folder(entry):
                    if not any((Path(entry.path) / name).is_file() for name in _WRITTEN):
                        following.append(Path(entry.path))
                elif entry.name.lower().endswith(suffix):
                    yield Path(entry.path)
        level = following
