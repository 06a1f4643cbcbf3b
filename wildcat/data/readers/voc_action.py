"""Pascal VOC action classification: photographs of people labelled with their actions, without person boxes."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from wildcat.data.dataset import ABSENT, PRESENT, DataSet, Reader, Sample
from wildcat.data.readers.lists import missing_image, read_lines
from wildcat.data.readers.voc import box_arrays, choose_devkit, images_by_id, read_objects, sort_splits
from wildcat.errors import DataError

# The ten actions of VOC 2012 (`VOCinit.m`), sorted.
ACTION_CLASSES = (
    *("jumping", "phoning", "playinginstrument", "reading", "ridingbike"),
    *("ridinghorse", "running", "takingphoto", "usingcomputer", "walking"),
)

OTHER = "other"  # the devkit's name for people who do none of the ten; it is no class (`VOCinit.m`)


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
    actions = tuple(sorted({action for action, _, _ in found} - {OTHER}))
    if not actions:
        raise DataError(f"{folder} holds no list of an action.", "Restore <action>_train.txt and <action>_val.txt.")
    classes = ACTION_CLASSES if devkit.name == "VOC2012" else actions
    splits = sort_splits({split for _, _, split in found})
    readers: dict[str, Reader] = {
        split: partial(_read_split, devkit, [folder / f"{name}_{split}.txt" for name in classes]) for split in splits
    }
    return DataSet(f"{devkit.name}-Action", "voc-action", devkit, classes, "multilabel", readers)


def _read_split(devkit: Path, lists: list[Path]) -> list[Sample]:
    """The samples of a split, given the list of each class."""
    images = images_by_id(devkit)
    columns = [_read_people(path, images, devkit / "JPEGImages") for path in lists]
    for path, column in zip(lists, columns, strict=True):
        for image, person in sorted(columns[0].keys() ^ column.keys()):
            raise DataError(
                f"Person {person} of image {image} is in one of {lists[0].name} and {path.name} of {path.parent} only.",
                "The lists of a split name the same people: restore the one that was cut.",
            )
    people: dict[str, list[int]] = {}  # image -> numbers of its people
    for image, person in columns[0]:
        people.setdefault(image, []).append(person)
    samples = []
    for image, persons in people.items():
        labels = np.array([[column[image, person] for column in columns] for person in persons], np.int8)
        path = devkit / "Annotations" / f"{image}.xml"
        truth: tuple[Any, ...] = ()
        if path.is_file():
            objects = read_objects(path)
            if max(persons) > len(objects):
                raise DataError(
                    f"{path} has {len(objects)} objects; the action lists name number {max(persons)}.",
                    "The file may be cut: restore it.",
                )
            truth = box_arrays(
                [
                    (objects[persons[i] - 1].box, index, labels[i, index] != PRESENT)
                    for i, index in np.argwhere(labels != ABSENT)
                ]
            )
        samples.append(Sample(image, images[image], labels.max(axis=0), *truth))
    return samples


def _read_people(path: Path, images: dict[str, Path], folder: Path) -> dict[tuple[str, int], int]:
    """(image, number of the object in its XML, from 1) -> 1 does the action, -1 does not, 0 uncertain."""
    people: dict[tuple[str, int], int] = {}
    for line, number in read_lines(path).items():
        match = re.fullmatch(r"(\S+)\s+([1-9]\d{0,8})\s+(1|0|-1)", line)
        if match is None:
            raise DataError(
                f"{path}, line {number}: {line!r} is not an id, the number of an object and a label 1, 0 or -1.",
                "The list may be cut: restore it.",
            )
        image, person, label = match.groups()
        if image not in images:
            raise missing_image(path, number, image, folder)
        if people.setdefault((image, int(person)), int(label)) != int(label):
            raise DataError(
                f"{path}, line {number}: person {person} of image {image} has two different labels.",
                "Keep one line per person.",
            )
    return people
