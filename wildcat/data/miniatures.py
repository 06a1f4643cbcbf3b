"""Miniatures of the public data sets: images of shapes in their layouts, to try and to test whatever reads them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from wildcat.data.readers.mit67 import LISTS
from wildcat.data.readers.scene15 import SCENE_CLASSES, TRAIN_PER_CLASS
from wildcat.data.readers.synthetic import SHAPE_CLASSES, Shape, check_drawable, draw_scene, new_folder, voc_annotation
from wildcat.errors import ConfigError

CATEGORY_IDS = (18, 1, 44, 3, 90)
"""The ids of `SHAPE_CLASSES` in `write_coco`: with gaps and out of order, as ids may be."""


def write_coco(
    folder: str | Path,
    train: int = 40,
    val: int = 20,
    size: tuple[int, int] = (128, 160),
    seed: int = 0,
    year: int | None = 2014,
) -> Path:
    """Write the images of `write_shapes` into `folder` in the layout of MS COCO, and return the folder.

    `annotations/instances_{train,val}<year>.json` beside `train<year>/` and `val<year>/`; with `year=None` one
    `annotations.json` beside `images/`, as users have it. What is difficult there is a crowd here. Arguments and errors
    are those of `write_shapes`.
    """
    check_drawable(train, val, size)
    parts = {"train": range(train), "val": range(train, train + val)}
    with new_folder(folder) as draft:
        if year is None:
            _write_instances(draft / "annotations.json", draft / "images", range(train + val), size, seed)
        else:
            (draft / "annotations").mkdir()
            for split, indices in parts.items():
                table = draft / "annotations" / f"instances_{split}{year}.json"
                _write_instances(table, draft / f"{split}{year}", indices, size, seed)
    return Path(folder)


def write_action(
    folder: str | Path, train: int = 40, val: int = 20, size: tuple[int, int] = (128, 160), seed: int = 0
) -> Path:
    """Write the images of `write_shapes` into `folder` as the action task of a VOC devkit, and return the folder.

    Each shape stands for a person whose action is to be that shape; difficult ones are `other`, who do nothing. Lists
    are `train`, `val` and `trainval`. Arguments and errors are those of `write_shapes`.
    """
    check_drawable(train, val, size)
    splits = {"train": range(train), "val": range(train, train + val), "trainval": range(train + val)}
    with new_folder(folder) as draft:
        lists = draft / "ImageSets" / "Action"
        for made in (lists, draft / "JPEGImages", draft / "Annotations"):
            made.mkdir(parents=True)
        people: dict[int, list[Shape]] = {}
        for index in splits["trainval"]:
            people[index] = _draw(draft / "JPEGImages" / f"{index:06d}.jpg", [seed, index], size, index)
            persons = [replace(shape, name="person") for shape in people[index]]
            (draft / "Annotations" / f"{index:06d}.xml").write_text(voc_annotation(index, size, persons))
        for split, indices in splits.items():
            (lists / f"{split}.txt").write_text("".join(f"{index:06d}\n" for index in indices))
            for action in (*SHAPE_CLASSES, "other"):
                lines = [
                    f"{index:06d} {number} {1 if action == ('other' if shape.difficult else shape.name) else -1:2d}\n"
                    for index in indices
                    for number, shape in enumerate(people[index], 1)
                ]
                (lists / f"{action}_{split}.txt").write_text("".join(lines))
    return Path(folder)


def write_indoor(
    folder: str | Path, train: int = 8, test: int = 2, size: tuple[int, int] = (64, 80), seed: int = 0
) -> Path:
    """Write `train` and `test` images of each shape, one shape an image, into `folder` in the layout of MIT67.

    Images that are in neither list lie beside them, as there: one a class.

    Raises:
        ConfigError: `train` or `test` below 1, or a side below 32 pixels.
        DataError: `folder` holds something already, or cannot be written.
    """
    check_drawable(train, test, size)
    if test < 1:
        raise ConfigError(f"test={test}: MIT67 has images to test with.", "Give 1 or more.")
    with new_folder(folder) as draft:
        lists: dict[str, list[str]] = {split: [] for split in LISTS}
        for kind, name in enumerate(SHAPE_CLASSES):
            (draft / "Images" / name).mkdir(parents=True)
            for index in range(train + test + 1):
                image = f"{name}/{name}_{index:03d}.jpg"
                _draw(draft / "Images" / image, [seed, kind, index], size, kind, ())
                if index < train + test:
                    lists["train" if index < train else "test"].append(image)
        for split, file in LISTS.items():
            (draft / file).write_text("\n".join(lists[split]) + "\n")
    return Path(folder)


def write_scenes(
    folder: str | Path, test: int = 2, size: tuple[int, int] = (32, 40), seed: int = 0, lists: bool = True
) -> Path:
    """Write 100 + `test` grey images of each of the 15 classes into `folder` in the layout of 15-Scene.

    A class is one of the five shapes, drawn up to once, twice or three times. With `lists`, the first 100 of each class
    are `split_brown_train.txt` and the others `split_brown_test.txt`.

    Raises:
        ConfigError: `test` below 1, or a side below 32 pixels.
        DataError: `folder` holds something already, or cannot be written.
    """
    check_drawable(TRAIN_PER_CLASS, test, size)
    if test < 1:
        raise ConfigError(f"test={test}: 15-Scene has images to test with.", "Give 1 or more.")
    with new_folder(folder) as draft:
        images: dict[str, list[str]] = {"train": [], "test": []}
        for kind, name in enumerate(SCENE_CLASSES):
            (draft / name).mkdir()
            shape, others = kind % len(SHAPE_CLASSES), kind // len(SHAPE_CLASSES)
            for index in range(TRAIN_PER_CLASS + test):
                image = f"{name}/image_{index + 1:04d}.jpg"
                _draw(draft / image, [seed, kind, index], size, shape, [shape] * others, "L")
                images["train" if index < TRAIN_PER_CLASS else "test"].append(image)
        for split, names in images.items() if lists else ():
            (draft / f"split_brown_{split}.txt").write_text("\n".join(names) + "\n")
    return Path(folder)


def _draw(
    path: Path,
    seed: Sequence[int],
    size: tuple[int, int],
    first: int,
    others: Sequence[int] | None = None,
    mode: str = "RGB",
) -> list[Shape]:
    image, _, shapes = draw_scene(np.random.default_rng(seed), size, first % len(SHAPE_CLASSES), others)
    Image.fromarray(image).convert(mode).save(path, quality=95)
    return shapes


def _write_instances(table: Path, images: Path, indices: Sequence[int], size: tuple[int, int], seed: int) -> None:
    images.mkdir()
    entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in indices:
        name = f"{index:012d}.jpg"
        entries.append({"id": index, "file_name": name, "width": size[1], "height": size[0]})
        for shape in _draw(images / name, [seed, index], size, index):
            x1, y1, x2, y2 = shape.box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index,
                    "category_id": CATEGORY_IDS[SHAPE_CLASSES.index(shape.name)],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": int(shape.difficult),
                    "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]],
                }
            )
    annotations.reverse()  # their order means nothing, and readers must not lean on it
    categories = [{"id": i, "name": name} for i, name in zip(CATEGORY_IDS, SHAPE_CLASSES, strict=True)]
    content = {"images": entries, "annotations": annotations, "categories": categories}
    table.write_text(json.dumps(content), encoding="utf-8")
