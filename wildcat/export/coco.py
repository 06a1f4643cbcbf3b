"""COCO instances: one JSON file that pycocotools, detectron2, CVAT, FiftyOne and `wildcat train` read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from wildcat._version import __version__
from wildcat.export.instances import Instance
from wildcat.export.polygons import outline_area
from wildcat.export.writer import AnnotationWriter, ExportedImage, JsonList


class CocoWriter(AnnotationWriter):
    """`annotations.json` with run-length encoded masks, and `images/`.

    Ids start at 1; categories are the model's classes in their order. In addition to the format's keys, an annotation
    has a `score`, and an image a `source`, the path it was read from. Boxes are x y width height.
    """

    def _begin(self) -> None:
        file = self._open_text("annotations.json")
        info = {"description": f"Predictions of {self.model or 'a model'}", "version": f"wildcat {__version__}"}
        categories = [{"id": i, "name": name, "supercategory": ""} for i, name in enumerate(self.classes, 1)]
        head = {"info": info, "licenses": [], "categories": categories}
        file.write(json.dumps(head, ensure_ascii=False)[:-1] + ',\n"annotations": ')
        self.annotations = JsonList(file)
        self.image_rows: list[dict[str, Any]] = []  # they follow the annotations in the file

    def _write(self, image: ExportedImage, instances: Sequence[Instance]) -> None:
        image_id = len(self.image_rows) + 1
        size = {"width": image.width, "height": image.height}
        self.image_rows.append({"id": image_id, "file_name": image.file, **size, "source": image.source})
        for instance in instances:
            x1, y1, x2, y2 = instance.box
            self.annotations.add(
                {
                    "id": self.annotations.count + 1,
                    "image_id": image_id,
                    "category_id": instance.class_index + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "iscrowd": 0,
                    "score": float(f"{instance.score:.6g}"),
                    **self._segmentation(instance, image),
                }
            )

    def _segmentation(self, instance: Instance, image: ExportedImage) -> dict[str, Any]:
        counts = compress_run_lengths(run_lengths(instance, (image.height, image.width)))
        return {"area": instance.area, "segmentation": {"size": [image.height, image.width], "counts": counts}}

    def _finish(self) -> None:
        self.annotations.end(',\n"images": ')
        images = JsonList(self.annotations.file)
        for row in self.image_rows:
            images.add(row)
        images.end("}\n")


class CocoPolygonWriter(CocoWriter):
    """COCO with polygons instead of run lengths. COCO polygons have no holes: a region's holes are filled."""

    options: ClassVar[tuple[str, ...]] = ("simplify",)
    default_simplify: ClassVar[float] = 0.0

    def _segmentation(self, instance: Instance, image: ExportedImage) -> dict[str, Any]:
        outline = instance.outline(self.simplify)
        return {"area": outline_area(outline), "segmentation": [outline.ravel().tolist()]}


def run_lengths(instance: Instance, size: tuple[int, int]) -> NDArray[np.int64]:
    """Run lengths of a region in an image of (height, width) in column-major order, background first (may be 0)."""
    height, width = size
    x1, y1, x2, y2 = instance.box
    columns = np.zeros((x2 - x1, height), dtype=np.int8)  # all other columns are background
    columns[:, y1:y2] = instance.mask.T
    flat = columns.ravel()
    changes = np.flatnonzero(np.diff(flat, prepend=np.int8(0), append=np.int8(0))) + x1 * height
    # A region that ends with the image ends the last run: no run of length 0 follows.
    ends = np.append(changes, height * width) if changes[-1] < height * width else changes
    return np.diff(ends, prepend=0)


def compress_run_lengths(counts: NDArray[np.int64]) -> str:
    """Encode run lengths as the string of COCO's `counts`, like `rleToString` in maskApi.c.

    From the fourth on, a count is stored as the difference to the count two before it. A number is written as groups of
    five bits, lowest first, each as the character 48 + bits, plus 32 if more groups follow; the highest bit of the last
    group is the sign.

    >>> compress_run_lengths(np.array([2, 3, 1, 40]))
    '231U1'
    """
    rest = counts.astype(np.int64)
    rest[3:] -= counts[1:-2]
    characters, used = [], []
    active = np.ones(len(rest), dtype=bool)
    while active.any():
        bits = rest & 31
        rest >>= 5
        more = np.where(bits & 16, rest != -1, rest != 0)
        characters.append((48 + bits + 32 * more).astype(np.uint8))
        used.append(active)
        active = active & more
    return bytes(np.stack(characters, axis=1)[np.stack(used, axis=1)]).decode("ascii")
