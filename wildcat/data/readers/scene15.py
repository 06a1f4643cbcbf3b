"""15-Scene (Lazebnik, Schmid and Ponce, CVPR 2006): 4,485 grey photographs of 15 classes of scenes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from wildcat.data.dataset import DataSet, Reader, Sample, one_label
from wildcat.data.listing import list_images
from wildcat.data.readers.lists import read_class_list
from wildcat.errors import DataError

# The folder names of the official archive, sorted.
SCENE_CLASSES = (
    *("CALsuburb", "MITcoast", "MITforest", "MIThighway", "MITinsidecity", "MITmountain", "MITopencountry"),
    *("MITstreet", "MITtallbuilding", "PARoffice", "bedroom", "industrial", "kitchen", "livingroom", "store"),
)

TRAIN_PER_CLASS = 100  # the others are for the test (section 5 of the paper above)


def recognise_scenes(root: Path) -> bool:
    """Whether `root` holds the 15 class folders."""
    return root.is_dir() and all((root / name).is_dir() for name in SCENE_CLASSES)


def read_scenes(root: Path) -> DataSet:
    """15-Scene at `root` as a multi-class data set.

    Splits `train` and `test` are `split_brown_train.txt` and `split_brown_test.txt` (1,500 and 2,985 images) if both
    exist, else those of seed 0. `train-seedN` and `test-seedN`, for any N >= 0, follow the official protocol: 100
    random images per class to train, the others to test, the same for a seed on every machine. The protocol repeats
    the experiment ten times; only seed 0 is listed among the splits.

    Raises:
        DataError: a class folder is missing or too small, or, when a split is read, a list names a missing image.
    """
    files = {
        name: list_images(root / name, recursive=False) if (root / name).is_dir() else [] for name in SCENE_CLASSES
    }
    for name, paths in files.items():
        if len(paths) <= TRAIN_PER_CLASS:
            raise DataError(
                f"{root / name} holds {len(paths)} images; the 15-Scene protocol trains on {TRAIN_PER_CLASS} and "
                "tests on the others.",
                "Restore the official folders, or read it with --format folder.",
            )
    readers = _Readers()
    readers.root, readers.files = root, list(files.values())
    lists = {part: root / f"split_brown_{part}.txt" for part in ("train", "test")}
    notes: tuple[str, ...] = ()
    for part, path in lists.items():
        if all(path.is_file() for path in lists.values()):
            readers[part] = partial(read_class_list, root, path, SCENE_CLASSES)
        else:
            readers[part] = readers[f"{part}-seed0"]
            notes = ("split_brown_train.txt and split_brown_test.txt are missing: train and test are random (seed 0).",)
    for part in lists:  # seed 0 is listed among the splits
        readers[f"{part}-seed0"] = readers[f"{part}-seed0"]
    return DataSet("15-Scene", "scenes", root, SCENE_CLASSES, "multiclass", readers, notes)


class _Readers(dict[str, Reader]):
    """The named splits, and a random one for any seed."""

    root: Path
    files: list[list[Path]]

    def __missing__(self, split: str) -> Reader:
        match = re.fullmatch(r"(train|test)-seed(0|[1-9]\d*)", split)
        if match is None:
            raise KeyError(split)
        return partial(_random_split, self.root, self.files, int(match[2]), match[1])


def _random_split(root: Path, files: Sequence[Sequence[Path]], seed: int, part: str) -> list[Sample]:
    rng = np.random.default_rng(seed)
    samples: list[Sample] = []
    for index, paths in enumerate(files):
        order = rng.permutation(len(paths))
        chosen = sorted(order[:TRAIN_PER_CLASS] if part == "train" else order[TRAIN_PER_CLASS:])
        labels = one_label(index, len(SCENE_CLASSES))
        samples += [Sample(paths[i].relative_to(root).as_posix(), paths[i], labels) for i in chosen]
    return samples
