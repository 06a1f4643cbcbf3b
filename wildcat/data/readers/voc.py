"""Pascal VOC devkits: labels, boxes, difficult flags and masks, and any folder with the same layout."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from wildcat.data.dataset import ABSENT, IGNORED, PRESENT, DataSet, Reader, Sample
from wildcat.data.images import IMAGE_SUFFIXES
from wildcat.data.readers.lists import add_once, read_lines
from wildcat.errors import DataError, did_you_mean

# The 20 classes in the order of the devkit (`VOCinit.m`), which is alphabetical.
VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)

MOST_PIXELS = 1e9  # a box with a coordinate beyond is refused

_YEAR = re.compile(r"VOC20\d\d")
_ORDER = ("train", "val", "trainval", "test")
_RESTORE_LIST = "The list may be cut: restore it, or remove it to take the labels from the XML."


@dataclass(frozen=True)
class _Objects:
    """The objects of one annotation file: class indices (n,), boxes (n, 4), difficult flags (n,)."""

    classes: NDArray[np.int64]
    boxes: NDArray[np.float32]
    difficult: NDArray[np.bool_]


@dataclass(frozen=True)
class Devkit:
    """One devkit folder (`VOC2012/`) and its files, listed once."""

    root: Path
    classes: tuple[str, ...]

    @cached_property
    def images(self) -> dict[str, Path]:
        """Image id -> file; `.jpg` wins if an id has several files."""
        files = [p for p in (self.root / "JPEGImages").iterdir() if p.suffix.lower() in IMAGE_SUFFIXES]
        return {p.stem: p for p in sorted(files, key=lambda p: (p.suffix == ".jpg", p.name))}

    @cached_property
    def annotations(self) -> dict[str, Path]:
        """Image id -> XML file."""
        return {p.stem: p for p in (self.root / "Annotations").glob("*.xml")}

    @cached_property
    def masks(self) -> dict[str, Path]:
        """Image id -> mask of classes."""
        return {p.stem: p for p in (self.root / "SegmentationClass").glob("*.png")}


def find_devkits(root: Path, lists: str = "Main") -> list[Path]:
    """The devkit folders at `root`: itself, its `VOC20xx` folders, or those of `root/VOCdevkit`.

    A devkit folder has `JPEGImages` and `ImageSets/<lists>`.
    """

    def is_devkit(folder: Path) -> bool:
        return (folder / "ImageSets" / lists).is_dir() and (folder / "JPEGImages").is_dir()

    if is_devkit(root):
        return [root]
    for folder in (root, root / "VOCdevkit"):
        if found := [p for p in sorted(folder.glob("VOC20*")) if is_devkit(p)]:
            return found
    return []


def choose_devkit(root: Path, year: int | None, lists: str = "Main") -> Path:
    """The devkit folder at `root` that has `ImageSets/<lists>`; `year` chooses among several.

    Raises:
        DataError: there is none, or there are several and no `year`.
    """
    found = find_devkits(root, lists)
    if not found:
        raise DataError(
            f"{root} is no VOC devkit: it has no ImageSets/{lists} and JPEGImages.",
            "Give the folder VOC2012, the VOCdevkit around it, or the parent of that.",
        )
    names = ", ".join(p.name for p in found)
    if year is not None:
        of_year = [p for p in found if p.name == f"VOC{year}"]
        if not of_year:
            raise DataError(f"{root} has no VOC{year}; it has {names}.", f"Choose one of: {names}.")
        return of_year[0]
    if len(found) > 1:
        raise DataError(f"{root} holds {len(found)} devkits: {names}.", f"Name one of them, for example {found[-1]}.")
    return found[0]


def split_order(name: str) -> tuple[int, str]:
    """Sort key of splits: train, val, trainval, test, then others by name."""
    return _ORDER.index(name) if name in _ORDER else len(_ORDER), name


def recognise_voc(root: Path) -> bool:
    """Whether `root` is a devkit folder, a `VOCdevkit` that holds some, or the parent of one."""
    return bool(find_devkits(root))


def read_voc(root: Path, *, year: int | None = None, classes: Sequence[str] | None = None) -> DataSet:
    """The devkit at `root` as a multi-label data set.

    `root` is `VOC2012/` itself, the `VOCdevkit/` that holds it, or the parent of that; `year` chooses among several.
    The splits are the lists of `ImageSets/Main` that are not class lists, and `seg-<list>` for each list of
    `ImageSets/Segmentation`.

    Labels are those of `ImageSets/Main/<class>_<split>.txt` (1 present, 0 difficult, -1 absent). If such a list is
    missing they follow from the XML by the devkit's rule: present with an object that is not difficult, ignored with
    difficult ones only. The XML's pixel coordinates count from 1 and include the last pixel; boxes here count from 0
    with exclusive x2, y2: (xmin, ymin, xmax, ymax) becomes (xmin - 1, ymin - 1, xmax, ymax). A sample has boxes if
    its XML exists and a mask if `SegmentationClass/<id>.png` does.

    `classes` default to the 20 of VOC in a `VOC20xx` folder, elsewhere to those with class lists, sorted, or, without
    any class list, to the names in the XML files.

    Raises:
        DataError: no devkit at `root`, several and no `year`; and, when a split is read, a list or annotation that is
            cut, or names a missing image, an unknown class, or other images than the split's list.
    """
    devkit = choose_devkit(root, year)
    main = devkit / "ImageSets" / "Main"
    class_lists = _class_lists(main)
    if classes is None:
        classes = VOC_CLASSES if _YEAR.fullmatch(devkit.name) else _classes_found(devkit, class_lists)
    kit = Devkit(devkit, tuple(classes))
    in_class_lists = {stem for stems in class_lists.values() for stem in stems}
    splits = [p for p in main.glob("*.txt") if p.stem not in in_class_lists and not p.name.startswith(".")]
    readers: dict[str, Reader] = {
        path.stem: partial(_read_split, kit, path) for path in sorted(splits, key=lambda p: split_order(p.stem))
    }
    for path in sorted((devkit / "ImageSets" / "Segmentation").glob("*.txt")):
        readers[f"seg-{path.stem}"] = partial(_read_split, kit, path)
    if not readers:
        raise DataError(f"{main} holds no list of images.", "Put train.txt and val.txt there, one id per line.")
    return DataSet(devkit.name, "voc", devkit, kit.classes, "multilabel", readers)


def _class_lists(main: Path) -> dict[str, set[str]]:
    """Class -> the stems of its lists: files `<class>_<split>.txt` beside a `<split>.txt`, with two columns.

    The columns distinguish a split called `train_small` from the lists of a class called "train".
    """
    stems = {p.stem for p in main.glob("*.txt")}
    found: dict[str, set[str]] = {}
    for stem in stems:
        name, _, split = stem.rpartition("_")
        if name and split in stems:
            with (main / f"{stem}.txt").open(encoding="utf-8", errors="replace") as file:
                if len(file.readline().split()) != 1:
                    found.setdefault(name, set()).add(stem)
    return found


def _classes_found(devkit: Path, class_lists: dict[str, set[str]]) -> tuple[str, ...]:
    if class_lists:
        return tuple(sorted(class_lists))
    files = sorted((devkit / "Annotations").glob("*.xml"))
    names = {_text(item, "name", path) for path in files for item in parse_annotation(path).iterfind("object")}
    if not names:
        raise DataError(
            f"{devkit} names no classes: it has no ImageSets/Main/<class>_<split>.txt and no object in Annotations.",
            "Add class lists or annotations.",
        )
    return tuple(sorted(names))


def _read_split(kit: Devkit, path: Path) -> list[Sample]:
    ids = _read_ids(path, kit)
    objects = [_read_annotation(kit, name) if name in kit.annotations else None for name in ids]
    labels = np.empty((len(ids), len(kit.classes)), np.int8)
    for index, name in enumerate(kit.classes):
        class_list = path.with_name(f"{name}_{path.name}")
        if class_list.exists():
            labels[:, index] = _read_labels(class_list, ids, path)
        else:
            labels[:, index] = _labels_from_objects(kit, index, ids, objects, class_list)
    return [
        Sample(
            name,
            kit.images[name],
            row,
            boxes=found.boxes if found else None,
            box_classes=found.classes if found else None,
            box_difficult=found.difficult if found else None,
            mask=kit.masks.get(name),
        )
        for name, row, found in zip(ids, labels, objects, strict=True)
    ]


def _read_ids(path: Path, kit: Devkit) -> list[str]:
    """The ids of a list of images, one per line."""
    lines: dict[str, int] = {}
    for number, name in read_lines(path):
        if name not in kit.images:
            near = did_you_mean(name, [other for other in kit.images if other[:4] == name[:4]]).capitalize()
            raise DataError(
                f"{path}, line {number}: image {name!r} is not in {kit.root / 'JPEGImages'}.",
                f"{near} Restore the image, or the list if it was cut, or remove the line.".strip(),
            )
        add_once(lines, name, path, number)
    return list(lines)


def _read_labels(path: Path, ids: Sequence[str], split: Path) -> list[int]:
    """The labels 1, 0, -1 of one class list, in the order of `ids`."""
    wanted = set(ids)
    found: dict[str, int] = {}
    for number, line in read_lines(path):
        name, *label = line.split()
        if label not in (["1"], ["0"], ["-1"]):
            raise DataError(f"{path}, line {number}: {line!r} is not an id and a label 1, 0 or -1.", _RESTORE_LIST)
        if name not in wanted:
            raise DataError(
                f"{path}, line {number}: image {name!r} is not in {split.name}, so this list is of other images.",
                "Restore the list that belongs to it, or remove it to take the labels from the XML.",
            )
        found[name] = int(label[0])
    if len(found) < len(ids):
        position, missing = next((i, name) for i, name in enumerate(ids, 1) if name not in found)
        raise DataError(
            f"{path} labels {len(found)} of the {len(ids)} images of {split.name}; the first one missing is "
            f"{missing!r} (image {position} of the list).",
            _RESTORE_LIST,
        )
    return [found[name] for name in ids]


def _labels_from_objects(
    kit: Devkit, index: int, ids: Sequence[str], objects: Sequence[_Objects | None], class_list: Path
) -> list[int]:
    labels = []
    for name, found in zip(ids, objects, strict=True):
        if found is None:
            raise DataError(
                f"{kit.root} has no labels for image {name!r}: neither {class_list.name} nor Annotations/{name}.xml.",
                "Add the class lists or the annotations, or choose another split.",
            )
        difficult = found.difficult[found.classes == index]
        labels.append(ABSENT if not len(difficult) else IGNORED if difficult.all() else PRESENT)
    return labels


def parse_annotation(path: Path) -> ElementTree.Element:
    """The root of an XML file; refuses document types and entities before the parser could expand them.

    Raises:
        DataError: a DOCTYPE or ENTITY, another encoding than UTF-8, or XML that is cut.
    """
    data = path.read_bytes()
    # A NUL byte means UTF-16, in which the two words would not be found.
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data or b"\0" in data:
        raise DataError(
            f"{path} declares a DOCTYPE or ENTITY or is not UTF-8, which VOC annotations never do.",
            "Do not trust this file: restore it from its source.",
        )
    try:
        return ElementTree.fromstring(data)  # noqa: S314 - nothing is left that could expand
    except ElementTree.ParseError as error:
        raise DataError(
            f"{path}, line {error.position[0]}: not valid XML ({error}).", "The file may be cut: restore it."
        ) from error
    except (LookupError, ValueError, RecursionError) as error:
        raise DataError(f"{path} has an unsupported encoding ({error}).", "Save it as UTF-8.") from error


def _read_annotation(kit: Devkit, name: str) -> _Objects:
    path = kit.annotations[name]
    classes: list[int] = []
    boxes: list[list[float]] = []
    difficult: list[bool] = []
    for item in parse_annotation(path).iterfind("object"):
        label = _text(item, "name", path)
        if label not in kit.classes:
            raise DataError(
                f"{path}: {label!r} is none of the {len(kit.classes)} classes.",
                did_you_mean(label, kit.classes) or f"The classes are: {', '.join(kit.classes)}.",
            )
        classes.append(kit.classes.index(label))
        boxes.append(read_box(item, path))
        difficult.append((item.findtext("difficult") or "0").strip() == "1")
    return _Objects(
        np.array(classes, np.int64), np.array(boxes, np.float32).reshape(-1, 4), np.array(difficult, np.bool_)
    )


def read_box(item: ElementTree.Element, path: Path) -> list[float]:
    """x1 y1 x2 y2 of an object, counted from 0 with an exclusive end; errors name `path`.

    Raises:
        DataError: a corner is missing or no number, or the box is reversed.
    """
    corners = [_text(item, f"bndbox/{tag}", path) for tag in ("xmin", "ymin", "xmax", "ymax")]
    text = " ".join(corners)[:100]
    try:
        x1, y1, x2, y2 = map(float, corners)
    except ValueError as error:
        raise DataError(f"{path}: a box holds {text!r}, not numbers.", "Restore the file.") from error
    if not (-MOST_PIXELS < x1 <= x2 < MOST_PIXELS and -MOST_PIXELS < y1 <= y2 < MOST_PIXELS):
        raise DataError(
            f"{path}: a box has corners {text}, with its end before its start or beyond any image.",
            "The order is xmin ymin xmax ymax: correct the file.",
        )
    return [x1 - 1, y1 - 1, x2, y2]


def _text(item: ElementTree.Element, tag: str, path: Path) -> str:
    text = (item.findtext(tag) or "").strip()
    if not text:
        raise DataError(f"{path}: an object has no <{tag}>.", "The file may be cut: restore it.")
    return text
