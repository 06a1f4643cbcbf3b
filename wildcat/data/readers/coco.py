"""MS COCO and any data set with COCO annotations: a JSON of images, annotations and categories beside the images."""

from __future__ import annotations

import json
import mmap
import re
import reprlib
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wildcat.data.dataset import ABSENT, IGNORED, PRESENT, SPLIT_NAMES, DataSet, Reader, Sample, default_splits
from wildcat.data.remote import path_type
from wildcat.errors import ConfigError, DataError

KEYS = ("images", "annotations", "categories")  # of a COCO JSON (cocodataset.org, "data format")

_OFFICIAL = re.compile(r"instances_(train|val)(20\d\d)\.json")
_EXPORTED = "_annotations.coco.json"
_SPLITS = tuple(dict.fromkeys(SPLIT_NAMES.values()))
_MOST_PIXELS = 1e9
_MOST_TABLES = 4  # a folder with more JSON files has one per image, not one per split


@dataclass(frozen=True)
class _Objects:
    """The content of a JSON as arrays: image i has the annotations `order[starts[i]:starts[i + 1]]`."""

    categories: tuple[str, ...]
    names: tuple[str, ...]  # of the image files
    classes: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    boxes: NDArray[np.float32] | None
    order: NDArray[np.int64]
    starts: NDArray[np.int64]


@dataclass(frozen=True)
class _Annotations:
    """The annotations of one split: a JSON, and the folders its images may be in."""

    path: Path
    folders: tuple[Path, ...]

    @cached_property
    def objects(self) -> _Objects:
        """Read at first use; the arrays stay in memory, the JSON does not."""
        return _group(self.path, _read_json(self.path))


def recognise_coco(path: Path) -> bool:
    """Whether `path` is a JSON with the keys of COCO, or a folder that `read_coco` finds some in."""
    if path.is_file():
        return path.suffix.lower() == ".json" and _has_keys(path)
    return bool(_official(path) or _own(path))


def read_coco(path: Path, *, year: int | None = None) -> DataSet:
    """The COCO annotations at `path` as a multi-label data set.

    Three layouts. *MS COCO*: `annotations/instances_{train,val}{2014,2017}.json`, with the images in `train2014/` and
    so on, or in `images/train2014/`; `year` chooses if both exist; splits are `train` and `val`. *Several files*:
    `train.json`, `val.json`, `test.json` (also in `annotations/`) with the images in `images/` or in a folder of the
    split's name, or `{train,valid,test}/_annotations.coco.json` with the images beside it. *One file*, given itself
    or the only one of its folder: images in `images/` or beside it; `train` and `val` are a fixed stratified 80/20,
    `all` is everything.

    Classes are the categories in the order of the JSON (80 in MS COCO). A class is present in an image with an
    annotation of it that is no crowd, ignored with crowds only (`iscrowd` 1), else absent. Boxes x y w h become
    x y x+w y+h, those of crowds difficult; None if no annotation of a file has a box. Masks are None: polygons are
    dropped while parsing, so that reading takes about twice the size of the file in memory.

    Raises:
        ConfigError: a `year` for data that has none.
        DataError: no such layout, several years or files and no choice; a JSON that is cut or of another kind, an id or
            name that occurs twice, an annotation of an unknown category or image, an invalid box, a missing image,
            splits with different classes.
    """
    official = {} if path.is_file() else _official(path)
    if official:
        chosen = _choose_year(path, official, year)
        name, splits = f"COCO{chosen}", official[chosen]
    else:
        if year is not None:
            raise ConfigError(f"year={year}: {path} has no annotations/instances_*.json.", "Leave the year out.")
        name, splits = path.resolve().name if path.is_dir() else path.stem, _own(path)
    if not splits:
        raise DataError(
            f"{path} holds no COCO annotations.",
            "Give a JSON with images, annotations and categories, or the folder that has it beside images/.",
        )
    # The smallest file gives the classes: val of MS COCO has half the size of train.
    first = min(splits.values(), key=lambda split: split.path.stat().st_size)
    classes = first.objects.categories
    readers: dict[str, Reader] = {
        split: partial(_samples, annotations, classes, first.path) for split, annotations in splits.items()
    }
    if "" in splits:
        readers = default_splits(readers[""]())
    return DataSet(name, "coco", path, classes, "multilabel", readers)


def _official(root: Path) -> dict[int, dict[str, _Annotations]]:
    """Year -> split -> file of MS COCO's own layout."""
    found: dict[int, dict[str, _Annotations]] = {}
    for path in sorted((root / "annotations").glob("instances_*.json")):
        if match := _OFFICIAL.fullmatch(path.name):
            images = f"{match[1]}{match[2]}"
            annotations = _Annotations(path, (root / images, root / "images" / images))
            found.setdefault(int(match[2]), {})[match[1]] = annotations
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


def _own(path: Path) -> dict[str, _Annotations]:
    """Split -> file of other layouts; the split "" is a single file that names none."""
    if path.is_file():
        return {"": _Annotations(path, (path.parent / "images", path.parent, path.parent.parent / "images"))}
    exported = {SPLIT_NAMES.get(p.parent.name.lower()): p for p in path.glob(f"*/{_EXPORTED}")}
    if any(exported):
        return {s: _Annotations(exported[s], (exported[s].parent,)) for s in _SPLITS if s in exported}
    tables = [p for folder in (path, path / "annotations") for p in sorted(folder.glob("*.json"))]
    tables = [p for p in tables if _has_keys(p)] if len(tables) <= _MOST_TABLES else []
    named = {SPLIT_NAMES[p.stem.lower()]: p for p in tables if p.stem.lower() in SPLIT_NAMES}
    if named:
        images = {s: tuple(f for p in (path / "images", path) for f in (p / named[s].stem, p)) for s in named}
        return {s: _Annotations(named[s], images[s]) for s in _SPLITS if s in named}
    if len(tables) > 1:
        raise DataError(
            f"{path} holds {len(tables)} COCO files: {', '.join(p.name for p in tables)}.",
            f"Name one, for example {tables[0]}, or call them train.json and val.json.",
        )
    return {"": _Annotations(tables[0], (path / "images", path, tables[0].parent))} if tables else {}


def _has_keys(path: Path) -> bool:
    """Whether a file, which may be cut, contains the keys of a COCO JSON; searches the text instead of parsing it."""
    if path.stat().st_size == 0:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        images, *others = (content.find(f'"{key}"'.encode()) >= 0 for key in KEYS)
    return images and any(others)


def _read_json(path: Path) -> dict[str, Any]:
    """The lists of a COCO JSON, without polygons."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            content: Any = json.load(file, object_hook=_without_polygons)
    except (ValueError, RecursionError) as error:  # ValueError: also no UTF-8, or numbers of 5,000 digits
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
    item.pop("segmentation", None)
    return item


def _group(path: Path, content: dict[str, Any]) -> _Objects:
    """The arrays of a JSON, with the annotations sorted by image and every id looked up."""
    annotations = content["annotations"]
    image_index = _index(path, content["images"], "image", "file_name")
    class_index = _index(path, content["categories"], "category", "name")
    if not class_index:
        raise DataError(f"{path} has no category.", "Export the file again.")
    images, classes = np.empty((2, len(annotations)), np.int64)
    for i, row in enumerate(annotations):
        if not isinstance(row, dict) or not {"image_id", "category_id"} <= row.keys():
            raise DataError(
                f"{path}: annotation {i + 1} of {len(annotations)} lacks image_id or category_id.",
                "Give the file of instances, not of captions.",
            )
        for key, known, into in (("image_id", image_index, images), ("category_id", class_index, classes)):
            if not isinstance(row[key], Hashable) or row[key] not in known:
                raise DataError(
                    f"{path}: annotation {i + 1} of {len(annotations)} names {key} {reprlib.repr(row[key])}, which is "
                    f"none of the {len(known)} of {'images' if key == 'image_id' else 'categories'}.",
                    "Export the file again, or remove the annotation.",
                )
            into[i] = known[row[key]]
    order = np.argsort(images, kind="stable")
    return _Objects(
        categories=tuple(row["name"] for row in content["categories"]),
        names=tuple(row["file_name"] for row in content["images"]),
        classes=classes,
        crowd=np.array([bool(row.get("iscrowd", 0)) for row in annotations], np.bool_),
        boxes=_boxes(path, annotations),
        order=order,
        starts=np.searchsorted(images[order], np.arange(len(image_index) + 1)),
    )


def _index(path: Path, rows: list[Any], entry: str, name: str) -> dict[Any, int]:
    """id -> position of the images or categories of a JSON, whose ids and names must be unique."""
    if not all(isinstance(row, dict) and "id" in row and isinstance(row.get(name), str) for row in rows):
        raise DataError(f"{path}: {entry} entries lack an id or {name}.", "Export the file again.")
    for key in ("id", name):
        try:
            value, count = next(iter(Counter(row[key] for row in rows).most_common(1)), ("", 0))
        except TypeError as error:
            raise DataError(
                f"{path}: the {entry} {key} must be a number or text ({error}).", "Export the file again."
            ) from error
        if count > 1:
            raise DataError(
                f"{path} has the {entry} {key} {reprlib.repr(value)} {count} times.", "Export the file with each once."
            )
    return {row["id"]: position for position, row in enumerate(rows)}


def _boxes(path: Path, annotations: Sequence[dict[str, Any]]) -> NDArray[np.float32] | None:
    """(n, 4) x1 y1 x2 y2, or None if no annotation has a box."""
    given = [row.get("bbox") or None for row in annotations]
    if annotations and not any(given):
        return None
    try:
        boxes = np.array(given, np.float64).reshape(len(given), 4)
    except (TypeError, ValueError, OverflowError):  # some are no boxes: find them one by one
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
            f"{path}: annotation {i + 1} of {len(given)} has the box {reprlib.repr(given[i])}; {len(wrong)} are wrong.",
            "A box is [x, y, width, height] in pixels: correct it, or leave bbox out of all annotations.",
        )
    boxes[:, 2:] += boxes[:, :2]
    return boxes.astype(np.float32)


def _samples(split: _Annotations, classes: tuple[str, ...], first: Path) -> list[Sample]:
    objects = split.objects
    if objects.categories != classes:
        raise DataError(
            f"{split.path} and {first} list different categories, or in another order "
            f"({len(objects.categories)} and {len(classes)}).",
            "Export the splits together, so that they share one list.",
        )
    samples = []
    for i, (name, path) in enumerate(zip(objects.names, _find_images(split, objects.names), strict=True)):
        own = objects.order[objects.starts[i] : objects.starts[i + 1]]
        found, crowd = objects.classes[own], objects.crowd[own]
        labels = np.full(len(classes), ABSENT, np.int8)
        labels[found[crowd]] = IGNORED
        labels[found[~crowd]] = PRESENT
        truth = () if objects.boxes is None else (objects.boxes[own], found, crowd)
        samples.append(Sample(name, path, labels, *truth))
    return samples


def _find_images(split: _Annotations, names: Sequence[str]) -> list[Path]:
    """The file of each image, all in the first of the folders that exists and has the first image."""
    folders = [folder for folder in split.folders if folder.is_dir()]
    if not folders:
        raise DataError(
            f"The images of {split.path} are missing: there is no folder {' or '.join(map(str, split.folders))}.",
            f"Put the {len(names)} images there.",
        )
    root = next((f for f in folders if names and path_type(str(f / names[0])) == "file"), folders[0])
    listed: dict[str, set[str]] = {}  # one listing per folder: 82,000 queries take minutes on a network disk

    def exists(name: str) -> bool:
        parent, _, file = name.rpartition("/")
        if parent not in listed:
            inside = not Path(parent).is_absolute() and ".." not in Path(parent).parts
            inside = inside and path_type(str(root / parent)) == "folder"
            listed[parent] = {p.name for p in (root / parent).iterdir()} if inside else set()
        return file in listed[parent]

    missing = [name for name in names if not exists(name)]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(names)} images of {split.path} are not in {root}; the first is {missing[0]!r}.",
            "Restore the images, or remove them from the JSON.",
        )
    return [root / name for name in names]
