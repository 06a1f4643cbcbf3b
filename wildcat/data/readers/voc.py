"""Pascal VOC devkits: labels, boxes, difficult flags and masks, and any folder with the same layout."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np

from wildcat.data.dataset import ABSENT, IGNORED, PRESENT, DataSet, Reader, Sample, default_splits, split_samples
from wildcat.data.layout import name_splits, pair_annotations, probe
from wildcat.data.listing import list_images
from wildcat.data.readers.lists import missing_image, read_lines
from wildcat.errors import DataError, did_you_mean

# The 20 classes in the order of the devkit (`VOCinit.m`), which is alphabetical.
VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)

MOST_PIXELS = 1e9  # a box with a coordinate beyond is refused


class Object(NamedTuple):
    """An object of an annotation; the box x1 y1 x2 y2 counts from 0 and has an exclusive end."""

    name: str
    box: tuple[float, float, float, float]
    difficult: bool


def find_devkits(root: Path, lists: str = "Main") -> list[Path]:
    """The folders with `JPEGImages` and `ImageSets/<lists>`: `root`, its `VOC20xx`, or those of `root/VOCdevkit`."""
    for folders in ([root], sorted(root.glob("VOC20*")), sorted(root.glob("VOCdevkit/VOC20*"))):
        found = [p for p in folders if (p / "ImageSets" / lists).is_dir() and (p / "JPEGImages").is_dir()]
        if found:
            return found
    return []


def recognise_voc(root: Path) -> bool:
    """Whether `root` holds a devkit, or XML annotations of VOC without lists of images."""
    if find_devkits(root) or not root.is_dir() or find_devkits(root, "Action"):
        return bool(find_devkits(root))
    return any(map(_is_annotation, itertools.islice(probe(root, ".xml"), 20)))


def _is_annotation(path: Path) -> bool:
    """Whether an XML is an annotation of VOC: objects, if any, have boxes (those of LabelMe have polygons)."""
    data = path.read_bytes()
    return re.search(rb"<annotation[\s>]", data) is not None and (b"<bndbox>" in data or b"<object>" not in data)


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
    chosen = [p for p in found if year is None or p.name == f"VOC{year}"]
    if len(chosen) != 1:
        raise DataError(
            f"{root} holds {len(found)} devkits: {names}{f', and no VOC{year}' if year else ''}.",
            f"Name one of them, for example {found[-1]}.",
        )
    return chosen[0]


def sort_splits(names: set[str]) -> list[str]:
    """train, val, trainval, test, then others by name."""
    first = [name for name in ("train", "val", "trainval", "test") if name in names]
    return [*first, *sorted(names.difference(first))]


def images_by_id(devkit: Path) -> dict[str, Path]:
    """Image id -> file."""
    return {p.stem: p for p in list_images(devkit / "JPEGImages", recursive=False)}


def read_voc(root: Path, *, year: int | None = None) -> DataSet:
    """The devkit at `root` as a multi-label data set.

    `root` is `VOC2012/` itself, the `VOCdevkit/` that holds it, or the parent of that; `year` chooses among several.
    The splits are the lists of `ImageSets/Main` that are not class lists, and `seg-<list>` for each list of
    `ImageSets/Segmentation`.

    Labels are those of `ImageSets/Main/<class>_<split>.txt` (1 present, 0 difficult, -1 absent). If such a list is
    missing they follow from the XML by the devkit's rule: present with an object that is not difficult, ignored with
    difficult ones only. The XML's pixel coordinates count from 1 and include the last pixel; boxes here count from 0
    with exclusive x2, y2: (xmin, ymin, xmax, ymax) becomes (xmin - 1, ymin - 1, xmax, ymax). A sample has boxes if
    its XML exists and a mask if `SegmentationClass/<id>.png` does.

    Without a devkit, the XML files below `root` are read, beside the images or in a folder of their own
    (`Annotations/`): splits are those that folders are named after (`train/1.jpg` and `train/1.xml`), or else `train`
    and `val` are a fixed stratified 80/20. Images without an XML are left out. A devkit whose only list has the name
    of no split (`default.txt`) is split in the same way.

    Classes are those with class lists, sorted, or, without any class list, the names in the XML files; in a `VOC20xx`
    folder the 20 of VOC, if these are among them.

    Raises:
        DataError: no devkit at `root`, several and no `year`; and, when a split is read, a list or annotation that is
            cut, or names a missing image, an unknown class, or other images than the split's list.
    """
    if year is None and not find_devkits(root) and recognise_voc(root):
        return _read_annotations(root)
    devkit = choose_devkit(root, year)
    main = devkit / "ImageSets" / "Main"
    stems = {p.stem for p in main.glob("*.txt") if not p.name.startswith(".")}
    named = {stem for stem in stems if stem.rpartition("_")[0] and stem.rpartition("_")[2] in stems}
    class_lists = {stem for stem in named if _has_labels(main / f"{stem}.txt")}
    found = {stem.rpartition("_")[0] for stem in class_lists}
    found = found or {o.name for p in devkit.glob("Annotations/*.xml") for o in read_objects(p)}
    official = re.fullmatch(r"VOC20\d\d", devkit.name) and found <= set(VOC_CLASSES)
    classes = VOC_CLASSES if official else tuple(sorted(found))
    if not classes:
        raise DataError(
            f"{devkit} names no classes: it has no ImageSets/Main/<class>_<split>.txt and no object in Annotations.",
            "Add class lists or annotations.",
        )
    lists = {name: main / f"{name}.txt" for name in sort_splits(stems - class_lists)}
    lists |= {f"seg-{path.stem}": path for path in sorted(devkit.glob("ImageSets/Segmentation/*.txt"))}
    if not lists:
        raise DataError(f"{main} holds no list of images.", "Put train.txt and val.txt there, one id per line.")
    readers: dict[str, Reader] = {n: partial(_read_split, devkit, path, classes) for n, path in lists.items()}
    whole = [name for name in readers if not name.startswith("seg-")]
    if len(whole) == 1 and not name_splits(whole) and whole != ["trainval"]:
        readers = default_splits(readers[whole[0]](), classes)
    return DataSet(devkit.name, "voc", devkit, classes, "multilabel", readers)


def _read_annotations(root: Path) -> DataSet:
    """The images below `root` that have an XML annotation."""
    pairs, notes = pair_annotations(root, ".xml")
    objects = {pair.name: read_objects(pair.annotation) for pair in pairs if pair.annotation}
    if not objects:
        raise DataError(
            f"{root} holds XML annotations of VOC, and no image has the name of one ({len(pairs)} images).",
            "Put the images beside the XML files or into a folder images/, 1.jpg for 1.xml.",
        )
    if missing := [pair.name for pair in pairs if pair.name not in objects]:
        notes.append(f"{len(missing)} images without an XML annotation are left out, such as {missing[0]}.")
    names = tuple(sorted({o.name for row in objects.values() for o in row}))
    if not names:
        raise DataError(f"{root}: none of the {len(objects)} XML files has an object.", "Annotate some of the images.")
    index = {name: i for i, name in enumerate(names)}
    samples: dict[str, list[Sample]] = {}
    for pair in pairs:
        if (row := objects.get(pair.name)) is not None:
            labels = np.array([label_of(name, row) for name in names], np.int8)
            truth = box_arrays([(o.box, index[o.name], o.difficult) for o in row])
            samples.setdefault(pair.split, []).append(Sample(pair.name, root / pair.name, labels, *truth))
    readers = split_samples(samples, names, notes)
    return DataSet(root.resolve().name, "voc", root, names, "multilabel", readers, tuple(notes))


def _has_labels(path: Path) -> bool:
    """Whether a list has more than ids: a split may be called `train_small` beside a split `small`."""
    with path.open(encoding="utf-8", errors="replace") as file:
        return len(file.readline().split()) != 1


def _read_split(devkit: Path, path: Path, classes: tuple[str, ...]) -> list[Sample]:
    ids = read_lines(path)
    images = images_by_id(devkit)
    for name, number in ids.items():
        if name not in images:
            raise missing_image(path, number, name, devkit / "JPEGImages")
    class_lists = {c: p for c in classes if (p := path.with_name(f"{c}_{path.name}")).exists()}
    listed = {name: _read_labels(p, ids, path) for name, p in class_lists.items()}
    samples = []
    for name in ids:
        xml, mask = devkit / "Annotations" / f"{name}.xml", devkit / "SegmentationClass" / f"{name}.png"
        objects = read_objects(xml) if xml.is_file() else None
        if objects is None and len(listed) < len(classes):
            raise DataError(
                f"{devkit} has no labels for image {name!r}: it lacks Annotations/{name}.xml and class lists of "
                f"{path.name}.",
                "Add the class lists or the annotations, or choose another split.",
            )
        for other in {o.name for o in objects or ()}.difference(classes):
            raise DataError(
                f"{xml}: {other!r} is none of the {len(classes)} classes.",
                did_you_mean(other, classes) or f"The classes are: {', '.join(classes)}.",
            )
        labels = [listed[c][name] if c in listed else label_of(c, objects or ()) for c in classes]
        truth: tuple[Any, ...] = (None, None, None)
        if objects is not None:
            truth = box_arrays([(o.box, classes.index(o.name), o.difficult) for o in objects])
        truth = (*truth, mask if mask.is_file() else None)
        samples.append(Sample(name, images[name], np.array(labels, np.int8), *truth))
    return samples


def label_of(name: str, objects: Sequence[Object]) -> int:
    """The label of a class by the devkit's rule."""
    difficult = [o.difficult for o in objects if o.name == name]
    return ABSENT if not difficult else IGNORED if all(difficult) else PRESENT


def box_arrays(rows: Sequence[tuple[Sequence[float], int, bool]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes (n, 4), classes (n,) and difficult flags (n,) of a sample."""
    boxes = np.array([row[0] for row in rows], np.float32).reshape(-1, 4)
    return boxes, np.array([row[1] for row in rows], np.int64), np.array([row[2] for row in rows], np.bool_)


def _read_labels(path: Path, ids: dict[str, int], split: Path) -> dict[str, int]:
    """Image id -> label of one class list, which must hold the images of the split."""
    labels: dict[str, int] = {}
    for line, number in read_lines(path).items():
        name, *label = line.split()
        if label not in (["1"], ["0"], ["-1"]):
            raise DataError(
                f"{path}, line {number}: {line!r} is not an id and a label 1, 0 or -1.",
                "The list may be cut: restore it, or remove it to take the labels from the XML.",
            )
        labels[name] = int(label[0])
    if other := sorted(labels.keys() ^ ids.keys()):
        raise DataError(
            f"{path} and {split.name} list different images: {other[0]!r} is in one only, as are {len(other) - 1} "
            "others.",
            "The list may be cut: restore it, or remove it to take the labels from the XML.",
        )
    return labels


def read_objects(path: Path) -> list[Object]:
    """The objects of an XML file, in its order.

    Raises:
        DataError: a DOCTYPE or ENTITY (refused before the parser could expand it), another encoding than UTF-8, XML
            that is cut, an object without a name or with an invalid box.
    """
    data = path.read_bytes()
    # A NUL byte means UTF-16, in which the two words would not be found.
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data or b"\0" in data:
        raise DataError(
            f"{path} declares a DOCTYPE or ENTITY or is not UTF-8, which VOC annotations never do.",
            "Do not trust this file: restore it from its source.",
        )
    try:
        root = ElementTree.fromstring(data)  # noqa: S314 - nothing is left that could expand
    except (ElementTree.ParseError, LookupError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid XML ({error}).", "The file may be cut: restore it.") from error
    objects = []
    for number, item in enumerate(root.iterfind("object"), 1):
        name, difficult, *corners = (
            (item.findtext(tag) or "").strip()
            for tag in ("name", "difficult", "bndbox/xmin", "bndbox/ymin", "bndbox/xmax", "bndbox/ymax")
        )
        try:
            x1, y1, x2, y2 = map(float, corners)
            valid = name and -MOST_PIXELS < x1 <= x2 < MOST_PIXELS and -MOST_PIXELS < y1 <= y2 < MOST_PIXELS
        except ValueError:
            valid = False
        if not valid:
            raise DataError(
                f"{path}: object {number} has the name {name!r} and the box {' '.join(corners)[:100]!r}; it needs a "
                "name and xmin ymin xmax ymax, in this order.",
                "The file may be cut: restore or correct it.",
            )
        objects.append(Object(name, (x1 - 1, y1 - 1, x2, y2), difficult == "1"))
    return objects
