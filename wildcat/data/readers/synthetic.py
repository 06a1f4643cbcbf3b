"""Synthetic scenes of shapes with labels, boxes and masks, in the layout of a VOC devkit, for tests and examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wildcat.data.cache import cache_folder
from wildcat.data.dataset import DataSet
from wildcat.data.readers.voc import Object, label_of, read_voc
from wildcat.errors import ConfigError, RunError
from wildcat.files import making, writing

SHAPE_CLASSES = ("cross", "disc", "ring", "square", "triangle")
MIN_RADIUS, DIFFICULT_RADIUS, MAX_RADIUS = 0.06, 0.08, 0.28  # of the shorter side; below the second: difficult

_Array = NDArray[np.float64]


def read_shapes() -> DataSet:
    """The packaged data set `shapes`: 400 images to train and 100 to validate, 128 x 160 pixels, 5 classes.

    Generated into `cache_folder()` at the first call (a few seconds), read from there afterwards.

    Raises:
        RunError: the cache folder cannot be written.
    """
    root = cache_folder() / "shapes-v1"
    if not root.exists():
        try:
            write_shapes(root, train=400, val=100)
        except RunError:
            if not root.exists():  # another process was faster
                raise
    return replace(read_voc(root), name="shapes", format="shapes")


def write_shapes(
    folder: str | Path, train: int = 40, val: int = 20, size: tuple[int, int] = (128, 160), seed: int = 0
) -> Path:
    """Write images of shapes into `folder` as a VOC devkit (`read_voc` reads it), and return the folder.

    Each image has one to four shapes of `SHAPE_CLASSES` that do not overlap, of random colour, size and angle, on
    a textured, noisy background; the colour is independent of the class. Each has an image, an annotation with boxes,
    and a mask with a border of 255; lists are `train`, `val` and `trainval`. `size` is (height, width).

    The same arguments give the same files (with the same Pillow), and more images begin with the same ones. The
    folder is written atomically.

    Raises:
        ConfigError: no training image, a negative count, or a side below 32 pixels.
        RunError: `folder` exists and is not empty, or cannot be written.
    """
    if train < 1 or val < 0 or min(size) < 32:
        raise ConfigError(
            f"train={train}, val={val}, size={size}: shapes need train >= 1, val >= 0 and sides of 32 pixels or more.",
            "The defaults are train=40, val=20, size=(128, 160).",
        )
    with making(Path(folder)) as draft, writing(Path(folder)):
        _write_devkit(draft, {"train": range(train), "val": range(train, train + val)}, size, seed)
    return Path(folder)


def _write_devkit(root: Path, splits: Mapping[str, Sequence[int]], size: tuple[int, int], seed: int) -> None:
    for name in ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets/Main", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True)
    found: dict[int, list[Object]] = {}
    for index in sorted(index for indices in splits.values() for index in indices):
        image, mask, found[index] = draw_scene(np.random.default_rng([seed, index]), size, index % len(SHAPE_CLASSES))
        Image.fromarray(image).save(root / "JPEGImages" / f"{index:06d}.jpg", quality=95)
        Image.fromarray(mask).save(root / "SegmentationClass" / f"{index:06d}.png")
        (root / "Annotations" / f"{index:06d}.xml").write_text(voc_annotation(index, size, found[index]))
    lists = {name: list(indices) for name, indices in splits.items() if len(indices)}
    lists["trainval"] = sorted(found)
    for split, indices in lists.items():
        ids = "".join(f"{index:06d}\n" for index in indices)
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text(ids)
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text(ids)
        for name in SHAPE_CLASSES:
            lines = [f"{index:06d} {label_of(name, found[index]):2d}\n" for index in indices]
            (root / "ImageSets" / "Main" / f"{name}_{split}.txt").write_text("".join(lines))


def draw_scene(
    rng: np.random.Generator, size: tuple[int, int], first: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], list[Object]]:
    """An image (H, W, 3), its mask (H, W) and its shapes: class `first`, then up to three of random classes."""
    from scipy import ndimage  # noqa: PLC0415  # slow to import, and only this data set needs it

    height, width = size
    rows, columns = np.mgrid[0.5:height, 0.5:width]  # pixel centres
    image = _background(rng, rows, columns)
    mask = np.zeros(size, np.uint8)
    shapes: list[Object] = []
    classes = [first, *rng.integers(len(SHAPE_CLASSES), size=rng.integers(4))]
    for index in classes:
        radius = rng.uniform(MIN_RADIUS, MAX_RADIUS) * min(size)
        for _ in range(20):
            y, x = rng.uniform(radius, height - radius), rng.uniform(radius, width - radius)
            near = (abs(rows - y) < radius + 2) & (abs(columns - x) < radius + 2)
            if not mask[near].any():
                break
        else:
            continue  # no room; the first shape always has some
        inside = _inside(SHAPE_CLASSES[index], (columns - x) / radius, (rows - y) / radius, rng.uniform(0, 2 * np.pi))
        colour = rng.uniform(0, 255, 3)
        while np.linalg.norm(colour - image[near].mean(axis=0)) < 100:
            colour = rng.uniform(0, 255, 3)
        image[inside] = colour
        mask[ndimage.binary_dilation(inside, np.ones((3, 3)))] = 255  # the pixels within one step
        mask[inside] = index + 1
        ys, xs = np.nonzero(inside)
        box = (int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1)
        shapes.append(Object(SHAPE_CLASSES[index], box, radius < DIFFICULT_RADIUS * min(size)))
    image += rng.normal(0, 8, image.shape)
    return image.round().clip(0, 255).astype(np.uint8), mask, shapes


def _background(rng: np.random.Generator, rows: _Array, columns: _Array) -> _Array:
    """(H, W, 3) of a random colour, with four waves of random direction, length and colour added."""
    image = np.tile(rng.uniform(50, 205, 3), (*rows.shape, 1))
    for _ in range(4):
        angle, length, phase = rng.uniform(0, 2 * np.pi), rng.uniform(6, 60), rng.uniform(0, 2 * np.pi)
        wave = np.sin(2 * np.pi * (np.cos(angle) * columns + np.sin(angle) * rows) / length + phase)
        image += wave[..., None] * rng.uniform(-15, 15, 3)
    return image


def _inside(name: str, x: _Array, y: _Array, angle: float) -> NDArray[np.bool_]:
    """Which points are in the shape of circumradius 1 at the origin, rotated by `angle` (radians)."""
    u, v = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    wide, narrow = np.maximum(abs(u), abs(v)), np.minimum(abs(u), abs(v))
    inside: dict[str, NDArray[np.bool_]] = {
        "cross": (wide < 0.95) & (narrow < 0.3),
        "disc": u**2 + v**2 < 1,
        "ring": (u**2 + v**2 < 1) & (u**2 + v**2 > 0.3),
        "square": wide < np.sqrt(0.5),
        "triangle": np.maximum(v, np.sqrt(0.75) * abs(u) - v / 2) < 0.5,
    }
    return inside[name]


def voc_annotation(index: int, size: tuple[int, int], shapes: Sequence[Object]) -> str:
    """VOC XML, in which coordinates count from 1 and include the last pixel."""
    objects = "".join(
        f"\t<object>\n\t\t<name>{shape.name}</name>\n\t\t<difficult>{int(shape.difficult)}</difficult>\n"
        f"\t\t<bndbox><xmin>{shape.box[0] + 1}</xmin><ymin>{shape.box[1] + 1}</ymin>"
        f"<xmax>{shape.box[2]}</xmax><ymax>{shape.box[3]}</ymax></bndbox>\n\t</object>\n"
        for shape in shapes
    )
    return (
        f"<annotation>\n\t<filename>{index:06d}.jpg</filename>\n"
        f"\t<size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>\n"
        f"\t<segmented>1</segmented>\n{objects}</annotation>\n"
    )
