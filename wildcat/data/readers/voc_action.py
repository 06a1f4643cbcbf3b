"""Pascal VOC action classification: photographs of people labelled with their actions, without person boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wildcat.data.dataset import ABSENT, PRESENT, DataSet, Reader, Sample
from wildcat.data.readers.lists import read_lines
from wildcat.data.readers.voc import Devkit, choose_devkit, find_devkits, parse_annotation, read_box, split_order
from wildcat.errors import DataError

# The ten actions of VOC 2012 (`VOCinit.m`), sorted.
ACTION_CLASSES = (
    *("jumping", "phoning", "playinginstrument", "reading", "ridingbike"),
    *("ridinghorse", "running", "takingphoto", "usingcomputer", "walking"),
)

OTHER = "other"  # the devkit's name for people who do none of the ten; it is no class (`VOCinit.m`)

# (image id, number of the object in its XML, from 1) -> 1 does it, -1 does not, 0 uncertain.
People = Mapping[tuple[str, int], int]


def recognise_action(root: Path) -> bool:
    """Whether a devkit at `root` has `ImageSets/Action`; with `ImageSets/Main` too, `voc` recognises it first."""
    return bool(find_devkits(root, "Action"))


def read_action(root: Path, *, year: int | None = None) -> DataSet:
    """The action task of the devkit at `root` as a multi-label data set of whole photographs.

    The devkit labels people: each line of `ImageSets/Action/<action>_<split>.txt` is an image id, the number of a
    person among the objects of its XML, and 1, 0 or -1. An image has the highest label of its people. People who are
    not in the lists, and the name "other", are ignored.

    That the paper trains on train, measures on val and never uses the person boxes is our reading of it; the labels
    of test are not public. The challenge itself scores people in given boxes: its results are not comparable.

    A sample's boxes are those of the people who do an action, one per person and action (for pointing, never to train
    on); None if the image has no XML. There are no masks.

    Classes are the ten of VOC 2012 in a folder `VOC2012`, elsewhere the actions that have lists, sorted. `year` chooses
    among several devkits.

    Raises:
        DataError: no devkit with such lists, several and no `year`; and, when a split is read, a list that is missing
            or cut, lists of different people, a missing image, a person that the XML does not have.
    """
    devkit = choose_devkit(root, year, "Action")
    folder = devkit / "ImageSets" / "Action"
    found = [p.stem.rpartition("_") for p in folder.glob("*_*.txt") if not p.name.startswith(".")]
    actions = sorted({action for action, _, _ in found} - {OTHER})
    if not actions:
        raise DataError(f"{folder} holds no list of an action.", "Restore <action>_train.txt and <action>_val.txt.")
    kit = Devkit(devkit, ACTION_CLASSES if devkit.name == "VOC2012" else tuple(actions))
    splits = sorted({split for _, _, split in found}, key=split_order)
    readers: dict[str, Reader] = {split: partial(_read_split, kit, folder, split) for split in splits}
    return DataSet(f"{devkit.name}-Action", "voc-action", devkit, kit.classes, "multilabel", readers)


def _read_split(kit: Devkit, folder: Path, split: str) -> list[Sample]:
    paths = [folder / f"{name}_{split}.txt" for name in kit.classes]
    columns = [_read_people(path, kit) for path in paths]
    for path, column in zip(paths, columns, strict=True):
        _check_same_people(paths[0], columns[0], path, column)
    people: dict[str, list[int]] = {}  # image -> numbers of its people
    for image, number in columns[0]:
        people.setdefault(image, []).append(number)
    samples = []
    for image, numbers in people.items():
        labels = np.array([[column[image, number] for column in columns] for number in numbers], np.int8)
        samples.append(Sample(image, kit.images[image], labels.max(axis=0), *_boxes(kit, image, numbers, labels)))
    return samples


def _boxes(
    kit: Devkit, image: str, numbers: Sequence[int], labels: NDArray[np.int8]
) -> tuple[NDArray[np.float32] | None, NDArray[np.int64] | None, NDArray[np.bool_] | None]:
    """Boxes (n, 4), classes (n,) and uncertain (n,), one per person and action that is not absent."""
    if image not in kit.annotations:
        return None, None, None
    path = kit.annotations[image]
    objects = parse_annotation(path).findall("object")
    if max(numbers) > len(objects):
        raise DataError(
            f"{path} has {len(objects)} objects; the action lists name number {max(numbers)}.",
            "The file may be cut: restore it.",
        )
    people, classes = np.nonzero(labels != ABSENT)
    boxes = [read_box(objects[numbers[int(person)] - 1], path) for person in people]
    return np.array(boxes, np.float32).reshape(-1, 4), classes, labels[people, classes] != PRESENT


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
            raise DataError(f"{path}, line {number}: {image} {person} appears already.", "Remove one of the two lines.")
        people[key] = int(label)
    return people


def _check_same_people(first: Path, expected: People, path: Path, found: People) -> None:
    for image, person in sorted(expected.keys() ^ found.keys()):
        here, there = (path, first) if (image, person) in found else (first, path)
        raise DataError(
            f"Person {person} of image {image} is in {here.name} and not in {there.name} of {path.parent}.",
            "The lists of a split name the same people: restore the one that was cut.",
        )
