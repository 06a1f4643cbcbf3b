"""Pascal VOC action classification: photographs of people tagged with what they do, taken without their boxes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wildcat.data.dataset import ABSENT, PRESENT, DataSet, Sample
from wildcat.data.readers.voc import (
    Devkit,
    choose_devkit,
    find_devkits,
    parse_annotation,
    read_box,
    read_lines,
    split_order,
)
from wildcat.errors import DataError

ACTION_CLASSES = (
    *("jumping", "phoning", "playinginstrument", "reading", "ridingbike"),
    *("ridinghorse", "running", "takingphoto", "usingcomputer", "walking"),
)
"""The ten actions of VOC 2012 (`VOCinit.m`), sorted."""

OTHER = "other"
"""The devkit's eleventh name, for people who do none of the ten; it is no class (`VOCinit.m`)."""

People = Mapping[tuple[str, int], int]
"""(image id, number of the object in its XML, from 1) -> 1 does it, -1 does not, 0 cannot be told."""


def recognise_action(root: Path) -> bool:
    """Whether a devkit at `root` has `ImageSets/Action`.

    One that has `ImageSets/Main` too, as that of VOC 2012, is taken for `voc` unless the format is named.
    """
    return bool(find_devkits(root, "Action"))


def read_action(root: Path, *, year: int | None = None) -> DataSet:
    """The action task of the devkit at `root` as a multi-label data set of whole photographs.

    The devkit labels people: each line of `ImageSets/Action/<action>_<split>.txt` is an image id, the number of a
    person among the objects of its XML, and 1 or -1. Here an image has an action where any listed person does it,
    lacks it where every listed person does not, and is ignored for it where the best that a person has is 0. People
    the lists leave out, and the name "other", play no part.

    That the paper trains on train, measures on val and never uses the person boxes is our reading of it, not certain;
    the labels of test are not public. The challenge itself scores people in given boxes: its numbers are others.

    A sample's boxes are those of the people who do an action, one per person and action (to measure points with, never
    to train on); None where the image has no XML. There are no masks.

    Classes are the ten of VOC 2012 in a folder `VOC2012`, elsewhere the actions that have lists, sorted. `year` chooses
    among several devkits.

    Raises:
        DataError: no devkit with such lists, several and no `year`; and, when a split is read, a list that is missing
            or cut, lists of different people, an absent image, a person that the XML does not have.
    """
    devkit = choose_devkit(root, year, "Action")
    folder = devkit / "ImageSets" / "Action"
    found = [p.stem.rpartition("_") for p in folder.glob("*_*.txt") if not p.name.startswith(".")]
    actions = sorted({action for action, _, _ in found} - {OTHER})
    if not actions:
        raise DataError(f"{folder} holds no list of an action.", "Restore <action>_train.txt and <action>_val.txt.")
    kit = Devkit(devkit, ACTION_CLASSES if devkit.name == "VOC2012" else tuple(actions))
    splits = sorted({split for _, _, split in found}, key=split_order)
    readers: dict[str, Callable[[], Sequence[Sample]]] = {
        split: partial(_read_split, kit, folder, split) for split in splits
    }
    return DataSet(f"{devkit.name}-Action", "voc-action", devkit, kit.classes, "multilabel", readers)


def _read_split(kit: Devkit, folder: Path, split: str) -> list[Sample]:
    first, *others = paths = [folder / f"{name}_{split}.txt" for name in kit.classes]
    columns = [_read_people(path, kit) for path in paths]
    for path, column in zip(others, columns[1:], strict=True):
        _refuse_other_people(first, columns[0], path, column)
    images: dict[str, list[int]] = {}
    for image, number in columns[0]:
        images.setdefault(image, []).append(number)
    samples = []
    for image, numbers in images.items():
        does = np.array([[column[image, number] for column in columns] for number in numbers], np.int8)
        boxes, classes, unsure = _boxes(kit, image, numbers, does)
        # Of present, ignored and absent the highest is what the image as a whole is.
        samples.append(Sample(image, kit.images[image], does.max(axis=0), boxes, classes, unsure))
    return samples


def _boxes(
    kit: Devkit, image: str, numbers: Sequence[int], does: NDArray[np.int8]
) -> tuple[NDArray[np.float32] | None, NDArray[np.int64] | None, NDArray[np.bool_] | None]:
    """Boxes (n, 4), classes (n,) and whether the action cannot be told (n,), one per person and action not absent."""
    if image not in kit.annotations:
        return None, None, None
    path = kit.root / "Annotations" / f"{image}.xml"
    objects = parse_annotation(path).findall("object")
    if max(numbers) > len(objects):
        raise DataError(
            f"{path} has {len(objects)} objects; the action lists name number {max(numbers)}.",
            "The file may be cut: restore it.",
        )
    people, classes = np.nonzero(does != ABSENT)
    boxes = [read_box(objects[numbers[int(person)] - 1], path) for person in people]
    return np.array(boxes, np.float32).reshape(-1, 4), classes, does[people, classes] != PRESENT


def _read_people(path: Path, kit: Devkit) -> People:
    if not path.is_file():
        raise DataError(
            f"{path} does not exist; the other actions have lists of this split.", "Restore the list, or its devkit."
        )
    people: dict[tuple[str, int], int] = {}
    for number, line in read_lines(path):
        match line.split():
            case [image, person, ("1" | "0" | "-1") as label] if person.isdecimal() and int(person) > 0:
                key = image, int(person)
            case _:
                raise DataError(
                    f"{path}, line {number}: {line!r} is not an id, the number of an object and a label 1, 0 or -1.",
                    "The list may be cut: restore it.",
                )
        if image not in kit.images:
            raise DataError(
                f"{path}, line {number}: image {image!r} is not in {kit.root / 'JPEGImages'}.",
                "Restore the image, or the list if it was cut.",
            )
        if key in people:
            raise DataError(
                f"{path}, line {number}: {image} {person} is there already.", "Remove one of the two lines."
            )
        people[key] = int(label)
    return people


def _refuse_other_people(first: Path, expected: People, path: Path, found: People) -> None:
    odd = next(iter(sorted(expected.keys() ^ found.keys())), None)
    if odd is not None:
        here, there = (path, first) if odd in found else (first, path)
        raise DataError(
            f"Person {odd[1]} of image {odd[0]} is in {here.name} and not in {there.name} of {path.parent}.",
            "The lists of a split name the same people: restore the one that was cut.",
        )
