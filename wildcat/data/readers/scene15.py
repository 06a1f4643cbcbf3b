"""15-Scene (Lazebnik, Schmid and Ponce, CVPR 2006): 4,485 grey photographs of 15 kinds of places."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from wildcat.data.dataset import DataSet, Sample
from wildcat.data.images import list_images
from wildcat.data.readers.folder import one_label
from wildcat.data.readers.voc import read_lines
from wildcat.errors import DataError

SCENE_CLASSES = (
    *("CALsuburb", "MITcoast", "MITforest", "MIThighway", "MITinsidecity", "MITmountain", "MITopencountry"),
    *("MITstreet", "MITtallbuilding", "PARoffice", "bedroom", "industrial", "kitchen", "livingroom", "store"),
)
"""The folder names of the official archive, sorted."""

TRAIN_PER_CLASS = 100
"""Images a class to train with; the rest is for the test (the protocol of the paper above, section 5)."""

_SEEDED = re.compile(r"(train|test)-seed(0|[1-9]\d*)")


def recognise_scenes(root: Path) -> bool:
    """Whether `root` holds the 15 class folders."""
    return root.is_dir() and all((root / name).is_dir() for name in SCENE_CLASSES)


def read_scenes(root: Path) -> DataSet:
    """15-Scene at `root` as a multi-class data set.

    Splits `train` and `test` are the given ones (`split_brown_train.txt`, `split_brown_test.txt`: 1,500 and 2,985)
    where both files exist, else those of seed 0. `train-seedN` and `test-seedN`, for any integer N from 0 on, follow
    the official protocol: 100 random images a class to train, the rest to test; the same for a seed on every machine.
    The protocol repeats the experiment ten times; of the seeds only the first is listed among the splits.

    Raises:
        DataError: a class folder is missing or too small, or, when a split is read, a list names an absent image.
    """
    missing = [name for name in SCENE_CLASSES if not (root / name).is_dir()]
    if missing:
        raise DataError(
            f"{root} lacks the class folder{'s' * (len(missing) > 1)} {', '.join(missing)} of 15-Scene.",
            "Restore the official folders, or read it with format 'folder'.",
        )
    files = [list_images(root / name, recursive=False) for name in SCENE_CLASSES]
    for name, paths in zip(SCENE_CLASSES, files, strict=True):
        if len(paths) <= TRAIN_PER_CLASS:
            raise DataError(
                f"{root / name} holds {len(paths)} images; the 15-Scene protocol takes {TRAIN_PER_CLASS} to train "
                "and the rest to test.",
                "Restore the data set, or read it with format 'folder'.",
            )
    lists = {part: root / f"split_brown_{part}.txt" for part in ("train", "test")}
    given = all(path.is_file() for path in lists.values())
    readers: dict[str, Callable[[], Sequence[Sample]]] = {
        part: partial(read_scene_list, root, path, SCENE_CLASSES)
        if given
        else partial(_random_split, root, files, 0, part)
        for part, path in lists.items()
    }
    notes = (
        ()
        if given
        else ("split_brown_train.txt and split_brown_test.txt are absent: train and test are random (seed 0).",)
    )
    return DataSet("15-Scene", "scenes", root, SCENE_CLASSES, "multiclass", _Readers(readers, root, files), notes)


@dataclass(frozen=True)
class _Readers(Mapping[str, Callable[[], Sequence[Sample]]]):
    """The named splits, and a random one for every seed that is asked for; iteration goes over the named and seed 0."""

    named: Mapping[str, Callable[[], Sequence[Sample]]]
    root: Path
    files: Sequence[Sequence[Path]]

    def __getitem__(self, split: str) -> Callable[[], Sequence[Sample]]:
        if split in self.named:
            return self.named[split]
        match = _SEEDED.fullmatch(split)
        if match is None:
            raise KeyError(split)
        return partial(_random_split, self.root, self.files, int(match[2]), match[1])

    def __iter__(self) -> Iterator[str]:
        return iter((*self.named, "train-seed0", "test-seed0"))

    def __len__(self) -> int:
        return len(self.named) + 2


def _random_split(root: Path, files: Sequence[Sequence[Path]], seed: int, part: str) -> list[Sample]:
    rng = np.random.default_rng(seed)
    samples: list[Sample] = []
    for index, paths in enumerate(files):
        order = rng.permutation(len(paths))
        chosen = order[:TRAIN_PER_CLASS] if part == "train" else order[TRAIN_PER_CLASS:]
        samples += [_sample(root, paths[i], index) for i in sorted(chosen)]
    return samples


def read_scene_list(folder: Path, path: Path, classes: Sequence[str]) -> list[Sample]:
    """The samples of a list of lines `<class>/<image>`, in its order; images are relative to `folder`.

    Raises:
        DataError: the list is no text, or names an image twice, an absent one or an unknown class.
    """
    seen: dict[str, int] = {}
    samples = []
    for number, line in read_lines(path):
        name, _, _ = line.partition("/")
        if name not in classes or not (folder / line).is_file():
            raise DataError(
                f"{path}, line {number}: there is no image {line!r} in {folder}.",
                "Restore the image, or the list if it was cut.",
            )
        if line in seen:
            raise DataError(
                f"{path}, line {number}: image {line!r} is there already, in line {seen[line]}.",
                "Remove one of the two lines.",
            )
        seen[line] = number
        samples.append(Sample(line, folder / line, one_label(list(classes).index(name), len(classes))))
    return samples


def _sample(root: Path, path: Path, index: int) -> Sample:
    return Sample(path.relative_to(root).as_posix(), path, one_label(index, len(SCENE_CLASSES)))
