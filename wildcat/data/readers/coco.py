"""MS COCO and any data set with COCO annotations: a json of images, annotations and categories beside the images."""

from __future__ import annotations

import json
import mmap
import re
import reprlib
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wildcat.data.dataset import ABSENT, IGNORED, PRESENT, DataSet, Sample
from wildcat.data.readers.folder import SPLIT_FOLDERS, default_splits
from wildcat.data.remote import path_type
from wildcat.errors import ConfigError, DataError

KEYS = ("images", "annotations", "categories")
"""What a COCO json holds at its top level (cocodataset.org, "data format")."""

_OFFICIAL = re.compile(r"instances_(train|val)(20\d\d)\.json")
_EXPORTED = "_annotations.coco.json"
_MOST_PIXELS = 1e9
_MOST_TABLES = 4  # a folder with more json files has one an image, not one a split


@dataclass(frozen=True)
class _Objects:
    """What a json says, as arrays: image i has the objects `order[starts[i]:starts[i + 1]]` of those beside them."""

    categories: tuple[str, ...]
    names: tuple[str, ...]
    classes: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    boxes: NDArray[np.float32] | None
    order: NDArray[np.int64]
    starts: NDArray[np.int64]


@dataclass(frozen=True)
class _Instances:
    """The annotations of one split: a json, and the folders its images may lie in."""

    path: Path
    folders: tuple[Path, ...]

    @cached_property
    def objects(self) -> _Objects:
        """Read when first asked for; the arrays are kept, the json is not."""
        return _group(self.path, _read_json(self.path))


def recognise_coco(path: Path) -> bool:
    """Whether `path` is a json with the keys of COCO, or a folder that `read_coco` finds some in."""
    if path.is_file():
        return path.suffix.lower() == ".json" and _has_keys(path)
    return bool(_official(path) or _own(path))


def read_coco(path: Path, *, year: int | None = None) -> DataSet:
    """The COCO annotations at `path` as a multi-label data set.

    Three layouts. *MS COCO*: `annotations/instances_{train,val}{2014,2017}.json`, with the images in `train2014/` and
    so on, or in `images/train2014/`; `year` chooses where both are there; splits are `train` and `val`. *Several
    files*: `train.json`, `val.json`, `test.json` (also in `annotations/`) with the images in `images/` or in a folder
    of the split's name, or `{train,valid,test}/_annotations.coco.json` with the images beside it. *One file*, named
    itself or the only one of its folder: images in `images/` or beside it; `train` and `val` are a fixed stratified
    80/20, `all` is everything.

    Classes are the categories in the order of the json (80 in MS COCO). A class is present in an image with an
    annotation of it that is no crowd, ignored with crowds only (`iscrowd` 1), else absent. Boxes x y w h become
    x y x+w y+h, those of crowds marked difficult; None where no annotation of a file has a box. Masks are None:
    polygons are dropped as they are read, so that reading takes about twice the size of the file in memory.

    Raises:
        ConfigError: a `year` for data that has none.
        DataError: no such layout, several years or files and no choice; a json that is cut or of another kind, an id or
            name that is there twice, a category or image that an annotation names and the json lacks, a box that is
            none, an absent image, splits with different classes.
    """
    official = {} if path.is_file() else _official(path)
    if official:
        chosen = _choose_year(path, official, year)
        name, parts = f"COCO{chosen}", official[chosen]
    else:
        if year is not None:
            raise ConfigError(f"year={year}: {path} has no annotations/instances_*.json.", "Leave the year out.")
        name, parts = path.resolve().name if path.is_dir() else path.stem, _own(path)
    if not parts:
        raise DataError(
            f"{path} holds no COCO annotations.",
            "Give a json with images, annotations and categories, or the folder that has it beside images/.",
        )
    # The file that is read to know the classes is the smallest: val of MS COCO has half the size of train.
    first = min(parts.values(), key=lambda part: part.path.stat().st_size)
    classes = first.objects.categories
    readers: dict[str, Callable[[], Sequence[Sample]]] = {
        split: partial(_samples, part, classes, first.path) for split, part in parts.items()
    }
    if "" in parts:
        samples = readers.pop("")()
        readers = default_splits(samples, _rarest([s.labels for s in samples]))
    return DataSet(name, "coco", path, classes, "multilabel", readers)


def _official(root: Path) -> dict[int, dict[str, _Instances]]:
    """Year -> split -> file of MS COCO's own layout."""
    found: dict[int, dict[str, _Instances]] = {}
    for path in sorted((root / "annotations").glob("instances_*.json")):
        if match := _OFFICIAL.fullmatch(path.name):
            images = f"{match[1]}{match[2]}"
            part = _Instances(path, (root / images, root / "images" / images))
            found.setdefault(int(match[2]), {})[match[1]] = part
    return found


def _choose_year(root: Path, official: Mapping[int, object], year: int | None) -> int:
    years = " and ".join(map(str, official))
    if year is None and len(official) > 1:
        raise DataError(
            f"{root} holds MS COCO of {years}.", f"Choose one: --data-option year={max(official)}, or year= in Python."
        )
    chosen = next(iter(official)) if year is None else year
    if chosen not in official:
        raise DataError(f"{root} has no MS COCO of {year}; it has {years}.", f"Choose year={max(official)}.")
    return chosen


def _own(path: Path) -> dict[str, _Instances]:
    """Split -> file of other layouts; the split "" is a single file that names none."""
    if path.is_file():
        return {"": _Instances(path, (path.parent / "images", path.parent, path.parent.parent / "images"))}
    exported = [p for p in path.glob(f"*/{_EXPORTED}") if p.parent.name.lower() in SPLIT_FOLDERS]
    if exported:
        found = {SPLIT_FOLDERS[p.parent.name.lower()]: _Instances(p, (p.parent,)) for p in exported}
        return {split: found[split] for split in dict.fromkeys(SPLIT_FOLDERS.values()) if split in found}
    tables = [p for folder in (path, path / "annotations") for p in sorted(folder.glob("*.json"))]
    if not 0 < len(tables) <= _MOST_TABLES:
        return {}
    tables = [p for p in tables if _has_keys(p)]
    named = {SPLIT_FOLDERS[p.stem.lower()]: p for p in tables if p.stem.lower() in SPLIT_FOLDERS}
    if named:
        images = (path / "images", path)
        return {
            split: _Instances(named[split], tuple(f for p in images for f in (p / named[split].stem, p)))
            for split in dict.fromkeys(SPLIT_FOLDERS.values())
            if split in named
        }
    if len(tables) > 1:
        raise DataError(
            f"{path} holds {len(tables)} COCO files: {', '.join(p.name for p in tables)}.",
            f"Name one, for example {tables[0]}, or call them train.json and val.json.",
        )
    return {"": _Instances(tables[0], (path / "images", path, tables[0].parent))} if tables else {}


def _has_keys(path: Path) -> bool:
    """Whether a file, which may be cut, has the words of a COCO json; it is searched, not parsed."""
    if path.stat().st_size == 0:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        images, *others = (content.find(f'"{key}"'.encode()) >= 0 for key in KEYS)
    return images and any(others)


def _read_json(path: Path) -> dict[str, Any]:
    """The lists of a COCO json, without what is not used of each annotation."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            content: Any = json.load(file, object_hook=_without_polygons)
    except (ValueError, RecursionError) as error:  # bytes that are no text, and numbers of 5,000 digits, as well
        raise DataError(
            f"{path} ({path.stat().st_size} bytes) is cut or no JSON: {str(error)[:200]}.",
            "Restore it: unpack or export it again.",
        ) from error
    found = content if isinstance(content, dict) else {}
    if not all(isinstance(found.get(key), list) for key in KEYS):
        raise DataError(
            f"{path} is no COCO instances file: it holds {', '.join(list(found)[:6]) or 'no keys'}, not lists of "
            f"{', '.join(KEYS)}.",
            "Give the file of instances (instances_train2014.json), not of captions or predictions.",
        )
    return found


def _without_polygons(item: dict[str, Any]) -> dict[str, Any]:
    """Called for each object as it is parsed, so that polygons live no longer than that."""
    item.pop("segmentation", None)
    return item


def _group(path: Path, content: dict[str, Any]) -> _Objects:
    """The arrays of a json, whose annotations are sorted by image once, with every id looked up."""
    images, annotations, rows = (content[key] for key in KEYS)
    if not rows or not all(isinstance(row, dict) and "id" in row and isinstance(row.get("name"), str) for row in rows):
        raise DataError(f"{path}: a category lacks its id or name, or there is none.", "Export the file again.")
    _refuse_twice(path, "category id", [row["id"] for row in rows])
    _refuse_twice(path, "category name", [row["name"] for row in rows])
    if not all(isinstance(row, dict) and "id" in row and isinstance(row.get("file_name"), str) for row in images):
        raise DataError(f"{path}: an image lacks its id or file_name.", "Export the file again.")
    _refuse_twice(path, "image id", [row["id"] for row in images])
    _refuse_twice(path, "file_name", [row["file_name"] for row in images])
    image_index = {row["id"]: i for i, row in enumerate(images)}
    index = {row["id"]: i for i, row in enumerate(rows)}
    owners = np.empty(len(annotations), np.int64)
    classes = np.empty(len(annotations), np.int64)
    for i, row in enumerate(annotations):
        if not isinstance(row, dict) or not {"image_id", "category_id"} <= row.keys():
            raise DataError(
                f"{path}: annotation {i + 1} of {len(annotations)} lacks image_id or category_id.",
                "Give the file of instances, not of captions.",
            )
        for key, known, into in (("image_id", image_index, owners), ("category_id", index, classes)):
            if not isinstance(row[key], Hashable) or row[key] not in known:
                raise DataError(
                    f"{path}: annotation {i + 1} of {len(annotations)} names {key} {reprlib.repr(row[key])}, which is "
                    f"none of the {len(known)} of {'images' if key == 'image_id' else 'categories'}.",
                    "Export the file again, or take the annotation out.",
                )
            into[i] = known[row[key]]
    crowd = np.array([bool(row.get("iscrowd", 0)) for row in annotations], np.bool_)
    order = np.argsort(owners, kind="stable")
    starts = np.searchsorted(owners[order], np.arange(len(images) + 1))
    names = tuple(row["file_name"] for row in images)
    categories = tuple(row["name"] for row in rows)
    return _Objects(categories, names, classes, crowd, _boxes(path, annotations), order, starts)


def _boxes(path: Path, annotations: Sequence[dict[str, Any]]) -> NDArray[np.float32] | None:
    """(n, 4) x1 y1 x2 y2, or None where no annotation has a box."""
    given = [row.get("bbox") or None for row in annotations]
    if annotations and not any(given):
        return None
    try:
        boxes = np.array(given, np.float64).reshape(len(given), 4)
    except (TypeError, ValueError, OverflowError):
        boxes = np.full((len(given), 4), np.nan)
        for i, box in enumerate(given):
            if (
                isinstance(box, list)
                and len(box) == 4
                and all(isinstance(v, int | float) and abs(v) < _MOST_PIXELS for v in box)
            ):
                boxes[i] = box
    wrong = np.flatnonzero(~(np.abs(boxes) < _MOST_PIXELS).all(axis=1) | (boxes[:, 2:] < 0).any(axis=1))
    if len(wrong):
        i = int(wrong[0])
        raise DataError(
            f"{path}: annotation {i + 1} of {len(given)} has the box {reprlib.repr(given[i])}; {len(wrong)} are so.",
            "A box is [x, y, width, height] in pixels: mend it, or leave bbox out of all annotations.",
        )
    boxes[:, 2:] += boxes[:, :2]
    return boxes.astype(np.float32)


def _samples(part: _Instances, classes: tuple[str, ...], of: Path) -> list[Sample]:
    objects = part.objects
    if objects.categories != classes:
        raise DataError(
            f"{part.path} and {of} list different categories, or in another order "
            f"({len(objects.categories)} and {len(classes)}).",
            "Export the splits together, so that they share one list.",
        )
    paths = _find_images(part, objects.names)
    samples = []
    for i, name in enumerate(objects.names):
        mine = objects.order[objects.starts[i] : objects.starts[i + 1]]
        found, crowd = objects.classes[mine], objects.crowd[mine]
        labels = np.full(len(classes), ABSENT, np.int8)
        labels[found[crowd]] = IGNORED
        labels[found[~crowd]] = PRESENT
        if objects.boxes is None:
            samples.append(Sample(name, paths[i], labels))
        else:
            samples.append(Sample(name, paths[i], labels, objects.boxes[mine], found, crowd))
    return samples


def _find_images(part: _Instances, names: Sequence[str]) -> list[Path]:
    """The file of each image, all in the first of the folders that exists and has the first image."""
    folders = [folder for folder in part.folders if folder.is_dir()]
    if not folders:
        raise DataError(
            f"The images of {part.path} are missing: there is no folder {' or '.join(map(str, part.folders))}.",
            f"Put them there; {len(names)} are needed.",
        )
    folder = next((f for f in folders if names and path_type(str(f / names[0])) == "file"), folders[0])
    listed: dict[str, set[str]] = {}

    def is_listed(name: str) -> bool:
        above, _, leaf = name.rpartition("/")
        if above not in listed:  # one listing a folder: asking for 82,000 files takes minutes on a network disk
            inside = not Path(above).is_absolute() and ".." not in Path(above).parts
            inside = inside and path_type(str(folder / above)) == "folder"
            listed[above] = {p.name for p in (folder / above).iterdir()} if inside else set()
        return leaf in listed[above]

    absent = [name for name in names if not is_listed(name)]
    if absent:
        raise DataError(
            f"{len(absent)} of {len(names)} images of {part.path} are not in {folder}; the first is {absent[0]!r}.",
            "Restore the images, or take them out of the json.",
        )
    return [folder / name for name in names]


def _refuse_twice(path: Path, what: str, values: Sequence[object]) -> None:
    try:
        value, count = next(iter(Counter(values).most_common(1)), ("", 0))
    except TypeError as error:
        raise DataError(f"{path}: a {what} is no number or text ({error}).", "Export the file again.") from error
    if count > 1:
        raise DataError(
            f"{path} has the {what} {reprlib.repr(value)} {count} times.", "Export the file again, with each once."
        )


def _rarest(labels: Sequence[NDArray[np.int8]]) -> list[int]:
    """For each image, the class it has that fewest images have; -1 without any."""
    present = np.stack(labels) == PRESENT if labels else np.zeros((0, 1), np.bool_)
    rarity = np.where(present, present.sum(axis=0), np.iinfo(np.int64).max)
    return [int(i) for i in np.where(present.any(axis=1), rarity.argmin(axis=1), -1)]
