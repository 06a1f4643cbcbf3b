"""COCO instances: one json that pycocotools, detectron2, CVAT, FiftyOne and `wildcat train` read."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wildcat._version import __version__
from wildcat.export.instances import Instance, InstanceParams
from wildcat.export.polygons import check_tolerance, outline_area
from wildcat.export.writer import AnnotationWriter, ExportedImage, ImageMode, JsonRows, open_text

ANNOTATIONS = "annotations.json"


class CocoWriter(AnnotationWriter):
    """`annotations.json` and `images/`.

    Ids count from 1; categories are the model's classes in its order. Beside the keys of the format, an annotation has
    its `score` and an image its `source`, the path it was read from. Boxes are x y width height.

    Args:
        polygons: write outlines instead of run lengths. A polygon of COCO has no holes: those of a region come back
            filled, and its `area` counts them.
        simplify: pixels by which an outline may move to have fewer points; 0 keeps it exact.
    """

    def __init__(
        self,
        folder: Path,
        classes: Sequence[str],
        params: InstanceParams | None = None,
        *,
        images: ImageMode = "copy",
        model: str = "",
        polygons: bool = False,
        simplify: float = 0.0,
    ) -> None:
        super().__init__(folder, classes, params, images=images, model=model)
        self.polygons, self.simplify = polygons, check_tolerance(simplify)

    def _begin(self) -> None:
        file = self.open_files.enter_context(open_text(self.partial / ANNOTATIONS))
        # The images follow the annotations in the file; until then they wait in one without a name.
        unnamed = partial(tempfile.TemporaryFile, "w+", encoding="utf-8", errors="backslashreplace", dir=self.partial)
        spool = self.open_files.enter_context(unnamed())
        info = {"description": f"Predictions of {self.model or 'a model'}", "version": f"wildcat {__version__}"}
        categories = [{"id": i, "name": name, "supercategory": ""} for i, name in enumerate(self.classes, 1)]
        head = {"info": info, "licenses": [], "categories": categories}
        file.write(json.dumps(head, ensure_ascii=False)[:-1] + ',\n"annotations": ')
        self.annotations, self.image_rows = JsonRows(file), JsonRows(spool)

    def _write(self, image: ExportedImage, instances: Sequence[Instance]) -> None:
        image_id = self.image_rows.count + 1
        size = {"width": image.width, "height": image.height}
        self.image_rows.add({"id": image_id, "file_name": image.file, **size, "source": image.source})
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
                    **self._shape(instance, image),
                }
            )

    def _shape(self, instance: Instance, image: ExportedImage) -> dict[str, Any]:
        if not self.polygons:
            counts = run_lengths(instance, (image.height, image.width))
            shape = {"size": [image.height, image.width], "counts": compress_run_lengths(counts)}
            return {"area": instance.area, "segmentation": shape}
        outline = instance.outline(self.simplify)
        return {"area": outline_area(outline), "segmentation": [outline.ravel().tolist()]}

    def _finish(self) -> None:
        self.annotations.end()
        self.image_rows.end()
        file, spool = self.annotations.file, self.image_rows.file
        file.write(',\n"images": ')
        spool.seek(0)
        shutil.copyfileobj(spool, file)
        file.write("}\n")


def run_lengths(instance: Instance, size: tuple[int, int]) -> NDArray[np.int64]:
    """Lengths of the runs of a region in an image of (height, width), down its columns, outside first (may be 0)."""
    height, width = size
    x1, y1, x2, y2 = instance.box
    columns = np.zeros((x2 - x1, height), dtype=np.int8)  # the rest of the image is outside
    columns[:, y1:y2] = instance.mask.T
    flat = columns.ravel()
    changes = np.flatnonzero(np.diff(flat, prepend=np.int8(0), append=np.int8(0))) + x1 * height
    # A region that ends with the image ends the last run: no run of length 0 follows.
    ends = np.append(changes, height * width) if changes[-1] < height * width else changes
    return np.diff(ends, prepend=0)


def compress_run_lengths(counts: NDArray[np.int64]) -> str:
    """Run lengths as the string of COCO's `counts`, as `rleToString` of its maskApi.c writes it.

    From the fourth on, each is the difference to the one two before it. A number is written five bits a character,
    the lowest first, as the character 48 + bits, with 32 added where more follow; the sign is that of the last bit.

    >>> compress_run_lengths(np.array([2, 3, 1, 40]))
    '231U1'
    """
    rest = counts.astype(np.int64)
    rest[3:] -= counts[1:-2]
    characters, used = [], []
    live = np.ones(len(rest), dtype=bool)
    while live.any():
        bits = rest & 31
        rest >>= 5
        more = np.where(bits & 16, rest != -1, rest != 0)
        characters.append((48 + bits + 32 * more).astype(np.uint8))
        used.append(live)
        live = live & more
    return bytes(np.stack(characters, axis=1)[np.stack(used, axis=1)]).decode("ascii")
