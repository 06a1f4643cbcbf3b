"""YOLO labels: a text file an image, as ultralytics reads them for detection and for segmentation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from wildcat.export.instances import Instance, InstanceParams
from wildcat.export.polygons import check_tolerance
from wildcat.export.writer import AnnotationWriter, ExportedImage, ImageMode


class YoloWriter(AnnotationWriter):
    """`images/`, `labels/` with a .txt for each image (empty where nothing was found), and `data.yaml`.

    A line is a region: the index of its class, and the centre, width and height of its box, or the x and y of its
    outline (whose holes come back filled); all as parts of the image's width and height.

    Args:
        segments: write outlines instead of boxes.
        scores: add the score to the end of each line, as ultralytics does with `save_conf`. Labels to train on have no
            such column: ultralytics refuses boxes with it and takes it for a coordinate of an outline.
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
        segments: bool = False,
        scores: bool = False,
        simplify: float = 1.0,
    ) -> None:
        super().__init__(folder, classes, params, images=images, model=model)
        self.segments, self.scores, self.simplify = segments, scores, check_tolerance(simplify)

    def _begin(self) -> None:
        (self.partial / "labels").mkdir()

    def _write(self, image: ExportedImage, instances: Sequence[Instance]) -> None:
        lines = "".join(f"{self._line(instance, image)}\n" for instance in instances)
        (self.partial / "labels" / f"{image.stem}.txt").write_text(lines, encoding="utf-8", newline="\n")

    def _line(self, instance: Instance, image: ExportedImage) -> str:
        x1, y1, x2, y2 = instance.box
        if self.segments:
            values = (instance.outline(self.simplify) / (image.width, image.height)).ravel().tolist()
        else:
            values = [
                (x1 + x2) / 2 / image.width,
                (y1 + y2) / 2 / image.height,
                (x2 - x1) / image.width,
                (y2 - y1) / image.height,
            ]
        numbers = [f"{v:.6f}" for v in [*values, *([instance.score] if self.scores else [])]]
        return " ".join([str(instance.class_index), *numbers])

    def _finish(self) -> None:
        # Without `path`, ultralytics looks beside the file itself. It wants both splits; divide the images for
        # training with a list of them for each.
        content = {"train": "images", "val": "images", "names": dict(enumerate(self.classes))}
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        (self.partial / "data.yaml").write_text(text, encoding="utf-8", newline="\n")
