"""MS COCO and any data set with COCO annotations: a JSON of images, annotations and categories beside the images."""

from __future__ import annotations

import json
import mmap
import os
import re
import reprlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from wildcat.data.dataset import ABSENT, IGNORED, PRESENT, DataSet, Reader, Sample, few, split_samples
from wildcat.data.labels import normal_name
from wildcat.data.layout import TRUTH_FOLDERS, image_folders, name_splits, path_splits, subfolders
from wildcat.data.readers.lists import find_named, names_in
from wildcat.data.readers.voc import MOST_PIXELS, box_arrays
from wildcat.errors import ConfigError, DataError

KEYS = ("images", "annotations", "categories")  # of a COCO JSON (cocodataset.org, "data format")

_MOST_TABLES = 4  # a folder with more JSON files has one per image, not one per split

Box = tuple[float, float, float, float]  # x1 y1 x2 y2


class _Layout(NamedTuple):
    """The JSON of a split, and the folders its images may be in."""

    path: Path
    folders: tuple[Path, ...]


class _Content(NamedTuple):
    """A JSON: class names, and for each image file its (box, class index, crowd); `boxes` if they have any.

    `joined` are names of several categories, `parents` those that only group others or mean no object: without an
    annotation they are no classes.
    """

    classes: tuple[str, ...]
    images: dict[str, list[tuple[Box, int, bool]]]
    boxes: bool
    joined: tuple[str, ...]
    parents: frozenset[str]

    def used(self) -> set[str]:
        """Classes with an annotation."""
        return {self.classes[index] for objects in self.images.values() for _, index, _ in objects}


def recognise_coco(path: Path) -> bool:
    """Whether `path` is a JSON with the keys of COCO, or a folder that `read_coco` finds some in."""
    if path.is_file():
        return path.suffix.lower() == ".json" and _has_keys(path)
    return path.is_dir() and bool(_official(path) or _own(path))


def read_coco(path: Path, *, year: int | None = None) -> DataSet:
    """The COCO annotations at `path` as a multi-label data set.

    Three layouts. *MS COCO*: `annotations/instances_{train,val}{2014,2017}.json`, with the images in `train2014/` and
    so on, or in `images/train2014/`; `year` chooses if both exist; splits are `train` and `val`. *Several files*:
    `train.json`, `val.json`, `test.json` (also in `annotations/`, or with more words, as `instances_train.json`), or a
    file in each split folder (`train/_annotations.coco.json`). *One file*, given itself or the only one of its folder:
    `train` and `val` are a fixed stratified 80/20, `all` is everything. The images are in a folder of the split's or
    file's name, in `images/` or `data/`, or beside the file.

    Classes are the categories in the order of the JSON (80 in MS COCO); splits may list them in another order.
    Categories of the same name are one class. A category that is a supercategory of others, or called background, is
    none if no annotation has it. Notes say so. A class is present in an image with an
    annotation of it that is no crowd, ignored with crowds only (`iscrowd` 1), else absent. Boxes x y w h become
    x y x+w y+h, those of crowds difficult; None if no annotation of a file has a box. Masks are None: polygons are
    dropped while parsing, so that reading takes about twice the size of the file in memory.

    Raises:
        ConfigError: a `year` for data that has none.
        DataError: no such layout, several years or files and no choice; a JSON that is cut or of another kind, an id or
            image that occurs twice, an annotation of an unknown category or image, an invalid box, a missing image,
            splits of MS COCO with different classes.
    """
    official = {} if path.is_file() else _official(path)
    if official:
        years = " and ".join(map(str, official))
        if year is None and len(official) == 1:
            year = next(iter(official))
        if year not in official:
            raise DataError(
                f"{path} holds MS COCO of {years}{f', not of {year}' if year else ''}.",
                f"Choose one: --data-option year={max(official)}, or year= in Python.",
            )
        name, splits = f"COCO{year}", official[year]
    elif year is not None:
        raise ConfigError(f"year={year}: {path} has no annotations/instances_*.json.", "Leave the year out.")
    else:
        name, splits = path.resolve().name if path.is_dir() else path.stem, _own(path)
    if not splits:
        raise DataError(
            f"{path} holds no COCO annotations.",
            "Give a JSON with images, annotations and categories, or the folder that has it beside images/.",
        )
    # Of MS COCO the smallest file gives the classes: val has half the size of train, which is read when it is used.
    first = min(splits.values(), key=lambda split: split.path.stat().st_size)
    contents = {split: _read(layout.path) for split, layout in splits.items() if not official or layout == first}
    notes: list[str] = []
    classes = _classes(list(contents.values()), notes)
    readers: dict[str, Reader] = {
        split: partial(_samples, layout, classes, contents.get(split), None if official or "" in splits else path)
        for split, layout in splits.items()
    }
    if "" in splits:
        readers = split_samples({"": readers[""]()}, classes, notes)
    return DataSet(name, "coco", path, classes, "multilabel", readers, tuple(notes))


def _classes(contents: Sequence[_Content], notes: list[str]) -> tuple[str, ...]:
    """The classes of all files of a data set, in the order in which they are listed."""
    names = list(dict.fromkeys(name for content in contents for name in content.classes))
    used = {name for content in contents for name in content.used()}
    parents = {name for content in contents for name in content.parents} - used
    if dropped := [name for name in names if name in parents]:
        notes.append(f"Categories that only group others and that no annotation has are left out: {few(dropped)}.")
    if joined := sorted({name for content in contents for name in content.joined}):
        notes.append(f"Several categories are called {few(joined)}: they are one class.")
    return tuple(name for name in names if name not in parents) or tuple(names)


def _official(root: Path) -> dict[int, dict[str, _Layout]]:
    """Year -> split -> file of MS COCO's own layout."""
    found: dict[int, dict[str, _Layout]] = {}
    for path in sorted((root / "annotations").glob("instances_*.json")):
        if match := re.fullmatch(r"instances_(train|val)(20\d\d)\.json", path.name):
            images = f"{match[1]}{match[2]}"
            layout = _Layout(path, (root / images, root / "images" / images))
            found.setdefault(int(match[2]), {})[match[1]] = layout
    return found


def _own(path: Path) -> dict[str, _Layout]:
    """Split -> file of other layouts; the split "" is a single file that names none."""
    if path.is_file():
        return {"": _Layout(path, image_folders(path, path.parent, ""))}
    base, tables = path, _tables(path)
    while not tables and len(inside := subfolders(base)) == 1:  # a wrapper
        base, tables = inside[0], _tables(inside[0])
    splits = path_splits([p.relative_to(base).as_posix() for p in tables], own_names=True)
    if not any(splits) and len(tables) > 1:
        raise DataError(
            f"{path} holds {len(tables)} COCO files: {', '.join(p.relative_to(base).as_posix() for p in tables)}.",
            f"Name one, for example {tables[0]}, or call them train.json and val.json.",
        )
    found: dict[str, Path] = {}
    for table, split in zip(tables, splits, strict=True):
        if split in found and split:
            raise DataError(
                f"{path} holds two COCO files of split {split}: {found[split].relative_to(base)} and "
                f"{table.relative_to(base)}.",
                "Name one of them as the data set, or give one the name of another split.",
            )
        if split or len(tables) == 1:
            found[split] = table
    order = [split for split in ("train", "val", "test", "") if split in found]
    return {split: _Layout(found[split], image_folders(found[split], base, split)) for split in order}


def _tables(base: Path) -> list[Path]:
    """The COCO files in a folder, its folder of annotations, and its split folders."""
    inside = subfolders(base)
    splits = name_splits(p.name for p in inside)
    folders = [base, *(p for p in inside if p.name in splits or p.name.lower() in TRUTH_FOLDERS)]
    folders += [q for p in folders[1:] if p.name in splits for q in subfolders(p) if q.name.lower() in TRUTH_FOLDERS]
    tables: list[Path] = []
    for folder in folders:
        found = sorted(p for p in folder.glob("*.json") if not p.name.startswith("."))
        instances = [p for p in found if p.name.startswith("instances")]  # beside captions and keypoints
        tables += instances or (found if len(found) <= _MOST_TABLES else [])
    return [p for p in tables if _has_keys(p)]


def _has_keys(path: Path) -> bool:
    """Whether a file, which may be cut, contains the keys of a COCO JSON; searches the text instead of parsing it."""
    if path.stat().st_size == 0:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        images, *others = (content.find(f'"{key}"'.encode()) >= 0 for key in KEYS)
    return images and any(others)


def _read(path: Path) -> _Content:
    """Parse and check a COCO JSON; polygons are dropped."""

    def without_polygon(item: dict[str, Any]) -> dict[str, Any]:
        item.pop("segmentation", None)
        return item

    try:
        with path.open(encoding="utf-8-sig") as file:
            content: Any = json.load(file, object_hook=without_polygon)
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
    images = _names(path, found["images"], "image", "file_name")
    categories = _names(path, found["categories"], "category", "name", repeated=True)
    if not categories or not images:
        raise DataError(f"{path} has no category or no image.", "Export the file again.")
    classes = list(dict.fromkeys(categories.values()))
    index = {key: classes.index(value) for key, value in categories.items()}
    groups = {normal_name(str(row.get("supercategory"))) for row in found["categories"]}
    parents = {name for name in classes if name in groups or name.lower().strip("_ ") in ("background", "ignore")}
    annotations = found["annotations"]
    boxed = not annotations or any(isinstance(row, dict) and row.get("bbox") for row in annotations)
    objects: dict[str, list[tuple[Box, int, bool]]] = {name: [] for name in images.values()}
    for number, row in enumerate(annotations, 1):
        where = f"{path}: annotation {number} of {len(annotations)}"
        image, category = (row.get("image_id"), row.get("category_id")) if isinstance(row, dict) else (None, None)
        if not (_is_id(image) and image in images and _is_id(category) and category in categories):
            raise DataError(
                f"{where} has image_id {reprlib.repr(image)} and category_id {reprlib.repr(category)}, not one of the "
                f"{len(images)} of images and one of the {len(categories)} of categories.",
                "Give the file of instances, not of captions; else export it again, or remove the annotation.",
            )
        box = row.get("bbox") if boxed else [0, 0, 0, 0]
        if not _is_box(box):
            raise DataError(
                f"{where} has the box {reprlib.repr(box)}.",
                "A box is [x, y, width, height] in pixels: correct it, or leave bbox out of all annotations.",
            )
        x, y, width, height = box
        objects[images[image]].append(((x, y, x + width, y + height), index[category], bool(row.get("iscrowd", 0))))
    joined = tuple(name for name in classes if list(categories.values()).count(name) > 1)
    return _Content(tuple(classes), objects, boxed, joined, frozenset(parents))


def _names(path: Path, rows: list[Any], entry: str, name: str, repeated: bool = False) -> dict[int | str, str]:
    """id -> name of the images or categories of a JSON; the ids must be unique, and unless `repeated` the names."""
    names: dict[int | str, str] = {}
    used: set[str] = set()
    for row in rows:
        key, value = (row.get("id"), row.get(name)) if isinstance(row, dict) else (None, None)
        if not (_is_id(key) and isinstance(value, str)) or key in names or (value in used and not repeated):
            raise DataError(
                f"{path}: the {entry} with id {reprlib.repr(key)} and {name} {reprlib.repr(value)} lacks one of the "
                "two or has that of another.",
                "Export the file again, with each once; an id is a number or text.",
            )
        names[key] = normal_name(value) if repeated else value
        used.add(value)
    return names


def _is_id(value: object) -> TypeGuard[int | str]:
    return isinstance(value, int | str)


def _is_box(box: Any) -> bool:
    """Whether `box` is a list [x, y, width, height] of numbers."""
    if not isinstance(box, list) or len(box) != 4:
        return False
    return all(isinstance(v, int | float) and abs(v) < MOST_PIXELS for v in box) and min(box[2:]) >= 0


def _samples(layout: _Layout, classes: tuple[str, ...], content: _Content | None, base: Path | None) -> list[Sample]:
    """The samples of a split; with `base` their names are paths in it, as splits may number their images alike."""
    content = content or _read(layout.path)
    if other := content.used() - set(classes):
        raise DataError(
            f"{layout.path} has annotations of {min(other)!r}, which the other split does not list.",
            "Export the splits together, so that they share one list.",
        )
    order = np.array([classes.index(name) if name in classes else -1 for name in content.classes])  # -1: unused
    root, names = _find_images(layout, list(content.images))
    samples = []
    for name, objects in zip(names, content.images.values(), strict=True):
        boxes, found, crowd = box_arrays(objects)
        found = order[found]
        labels = np.full(len(classes), ABSENT, np.int8)
        labels[found[crowd]] = IGNORED
        labels[found[~crowd]] = PRESENT
        unique = Path(os.path.relpath(root / name, base)).as_posix() if base else name
        samples.append(Sample(unique, root / name, labels, *((boxes, found, crowd) if content.boxes else ())))
    return samples


def _find_images(layout: _Layout, names: Sequence[str]) -> tuple[Path, list[str]]:
    """The folder that has all images of a split, and their paths in it."""
    folders = [folder for folder in layout.folders if folder.is_dir()]
    inside = ["/".join(part for part in re.split(r"[/\\]", name) if part != "..") for name in names]
    if found := find_named(inside, folders):
        return found
    if not folders:
        raise DataError(
            f"The images of {layout.path} are missing: there is no folder {' or '.join(map(str, layout.folders))}.",
            f"Put the {len(names)} images there.",
        )
    there = {folder: names_in(inside, folder) for folder in folders}
    best = max(there, key=lambda folder: len(there[folder]))
    missing = [name for name, path in zip(names, inside, strict=True) if path not in there[best]]
    raise DataError(
        f"{len(missing)} of {len(names)} images of {layout.path} are not in {best}; the first is {missing[0]!r}.",
        "Restore the images, or remove them from the JSON.",
    )
