"""YOLO labels: a text file per image with a line per object; read as image-level labels."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

from wildcat.data.dataset import ABSENT, PRESENT, DataSet, Sample, split_samples
from wildcat.data.layout import Pair, pair_annotations, probe
from wildcat.errors import DataError

NAME_LISTS = ("classes.txt", "obj.names", "labels.txt", "_darknet.labels")  # class names, one per line
_OTHER_TEXTS = frozenset(
    {*NAME_LISTS, "notes.txt", "train.txt", "val.txt", "test.txt", "readme.txt", "requirements.txt"}
)


class _Settings(NamedTuple):
    """Class names by number, and the folder of each split that a data.yaml names."""

    names: dict[int, str]
    folders: dict[str, Path]


def recognise_yolo(root: Path) -> bool:
    """Whether `root` is a folder in which most text files consist of lines of YOLO."""
    if not root.is_dir():
        return False
    texts = (path for path in probe(root, ".txt") if path.name.lower() not in _OTHER_TEXTS)
    filled = list(itertools.islice(filter(None, map(_first_lines, itertools.islice(texts, 2000))), 20))
    return 2 * sum(all(_is_object(line.split()) for line in lines) for lines in filled) > len(filled)


def _first_lines(path: Path) -> list[str]:
    """The lines in the first 4 KiB of a text, without one that may be cut and without blank ones."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        text = file.read(4096)
    lines = text.splitlines()[:-1] if len(text) == 4096 else text.splitlines()
    return [line for line in lines if line.strip()]


def read_yolo(root: Path) -> DataSet:
    """The labels of YOLO at `root` as a multi-label data set: the classes that occur in each image, without boxes.

    The text file of an image has its name, beside it or in `labels/` instead of `images/`; an image without one or with
    an empty one has no object. Class names are those of data.yaml, classes.txt or obj.names; without, the numbers.
    Splits are the folders that data.yaml names or that have the name of a split, or else `train` and `val` are a fixed
    stratified 80/20.

    Raises:
        DataError: no label file, a line of another form, a class number without a name, a data.yaml that is cut.
    """
    settings = _read_settings(root)
    pairs, notes = pair_annotations(root, ".txt")
    labelled = [pair for pair in pairs if pair.annotation]
    if not labelled:
        raise DataError(
            f"{root} looks like a data set of YOLO, and none of its {len(pairs)} images has a label file.",
            "The labels of images/1.jpg are in labels/1.txt: put them there.",
        )
    numbers = {pair.name: _read_numbers(pair.annotation) for pair in labelled if pair.annotation}
    used = {number for found in numbers.values() for number in found}
    names = settings.names
    if not names:
        names = {number: str(number) for number in sorted(used)}
        notes.append("No data.yaml or classes.txt names the classes: they are called by their numbers.")
    if missing := sorted(used - names.keys()):
        wrong = next(pair.annotation for pair in labelled if missing[0] in numbers[pair.name])
        raise DataError(
            f"{wrong}: class {missing[0]} has no name; the classes are {dict(list(names.items())[:8])}.",
            "Add its name to data.yaml or classes.txt.",
        )
    if bare := len(pairs) - len(labelled):
        notes.append(f"{bare} images without a label file are read as images without objects.")
    index = {number: i for i, number in enumerate(names)}
    samples: dict[str, list[Sample]] = {}
    for pair in pairs:
        labels = np.full(len(names), ABSENT, np.int8)
        labels[[index[number] for number in numbers.get(pair.name, ())]] = PRESENT
        samples.setdefault(_split(root, pair, settings), []).append(Sample(pair.name, root / pair.name, labels))
    readers = split_samples(samples, tuple(names.values()), notes)
    return DataSet(root.resolve().name, "yolo", root, tuple(names.values()), "multilabel", readers, tuple(notes))


def _split(root: Path, pair: Pair, settings: _Settings) -> str:
    """The split of an image: by its path, or else by the folders of data.yaml."""
    if pair.split:
        return pair.split
    parents = (root / pair.name).resolve().parents
    return next((split for split, folder in settings.folders.items() if folder in parents), "")


def _read_settings(root: Path) -> _Settings:
    """The settings in a YAML file or a list of names in `root` or a folder in it."""
    for path in (p for suffix in (".yaml", ".yml") for p in probe(root, suffix, depth=1)):
        data = path.read_bytes()
        try:
            content = yaml.safe_load(data) if b"names" in data else None
        except yaml.YAMLError as error:
            raise DataError(f"{path} is not valid YAML ({str(error).splitlines()[0]}).", "Correct it.") from error
        if not isinstance(content, dict) or "names" not in content:
            continue
        names = content["names"]
        names = dict(enumerate(names)) if isinstance(names, list) else names
        if not (isinstance(names, dict) and names and all(isinstance(key, int) for key in names)):
            raise DataError(
                f"{path}: names is {str(names)[:100]!r}.", "Write names: [cat, dog] or names: {0: cat, 1: dog}."
            )
        folders: dict[str, Path] = {}
        for split in ("train", "val", "test"):
            entry = content.get(split)
            if isinstance(entry, str) and (found := (path.parent / entry).resolve()).is_dir():
                folders[split] = found
        if len(set(folders.values())) < 2:  # train and val are often one folder
            folders = {}
        return _Settings({key: str(name) for key, name in names.items()}, folders)
    for path in probe(root, "", depth=1):
        if path.name.lower() in NAME_LISTS:
            lines = [line.strip() for line in path.read_text("utf-8-sig", errors="replace").splitlines()]
            return _Settings(dict(enumerate(line for line in lines if line)), {})
    return _Settings({}, {})


def _read_numbers(path: Path) -> list[int]:
    """The class numbers of a label file, each once."""
    numbers = []
    for number, line in enumerate(path.read_text("utf-8-sig", errors="replace").splitlines(), 1):
        row = line.split()
        if row and not _is_object(row):
            raise DataError(
                f"{path}, line {number}: {line[:60]!r} is not a class number and a box or polygon.",
                "A line of YOLO is: class x y width height, in fractions of the image.",
            )
        numbers += [int(float(row[0]))] if row else []
    return sorted(set(numbers))


def _is_object(row: Sequence[str]) -> bool:
    """Whether a line has a class number and at least the four numbers of a box."""
    try:
        values = [float(cell) for cell in row]
    except ValueError:
        return False
    return len(values) >= 5 and values[0] >= 0 and values[0] == int(values[0])
