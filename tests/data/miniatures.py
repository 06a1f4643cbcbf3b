"""Small data sets of shapes in the layouts of MS COCO and VOC action, for the tests of their readers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from wildcat.data.readers.synthetic import SHAPE_CLASSES, draw_scene, voc_annotation
from wildcat.data.readers.voc import Object

# Category ids of `SHAPE_CLASSES` in `write_coco`: with gaps and out of order, as in MS COCO.
CATEGORY_IDS = (18, 1, 44, 3, 90)


def write_coco(
    folder: Path, train: int, val: int, size: tuple[int, int], seed: int = 0, year: int | None = 2014
) -> Path:
    """Write the images of `write_shapes` into `folder` in the layout of MS COCO, and return the folder.

    `annotations/instances_{train,val}<year>.json` beside `train<year>/` and `val<year>/`; with `year=None` one
    `annotations.json` beside `images/`. Difficult shapes are crowds.
    """
    folder.mkdir(parents=True)
    if year is None:
        _write_instances(folder / "annotations.json", folder / "images", range(train + val), size, seed)
        return folder
    (folder / "annotations").mkdir()
    for split, indices in (("train", range(train)), ("val", range(train, train + val))):
        table = folder / "annotations" / f"instances_{split}{year}.json"
        _write_instances(table, folder / f"{split}{year}", indices, size, seed)
    return folder


def write_action(folder: Path, train: int, val: int, size: tuple[int, int], seed: int = 0) -> Path:
    """Write the images of `write_shapes` into `folder` as the action task of a VOC devkit, and return the folder.

    Each shape is a person, and its class the action; difficult ones are `other`. Lists are `train`, `val`, `trainval`.
    """
    splits = {"train": range(train), "val": range(train, train + val), "trainval": range(train + val)}
    lists = folder / "ImageSets" / "Action"
    for made in (lists, folder / "JPEGImages", folder / "Annotations"):
        made.mkdir(parents=True)
    people: dict[int, list[Object]] = {}
    for index in splits["trainval"]:
        people[index] = _draw(folder / "JPEGImages" / f"{index:06d}.jpg", [seed, index], size, index)
        persons = [shape._replace(name="person") for shape in people[index]]
        (folder / "Annotations" / f"{index:06d}.xml").write_text(voc_annotation(index, size, persons))
    for split, indices in splits.items():
        (lists / f"{split}.txt").write_text("".join(f"{index:06d}\n" for index in indices))
        for action in (*SHAPE_CLASSES, "other"):
            lines = [
                f"{index:06d} {number} {1 if action == ('other' if shape.difficult else shape.name) else -1:2d}\n"
                for index in indices
                for number, shape in enumerate(people[index], 1)
            ]
            (lists / f"{action}_{split}.txt").write_text("".join(lines))
    return folder


def _draw(path: Path, seed: list[int], size: tuple[int, int], first: int) -> list[Object]:
    image, _, shapes = draw_scene(np.random.default_rng(seed), size, first % len(SHAPE_CLASSES))
    Image.fromarray(image).save(path, quality=95)
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
