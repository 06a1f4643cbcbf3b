"""YOLO labels: one text file per image, as ultralytics reads them for detection and segmentation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import yaml

from wildcat.export.instances import Instance
from wildcat.export.writer import AnnotationWriter, ExportedImage


class YoloWriter(AnnotationWriter):
    """`images/`, `labels/` with a .txt per image (empty without instances), and `data.yaml`.

    Each line is an instance: the class index, and the centre, width and height of its box as fractions of the image's
    width and height. With `scores=True` each line ends with the score, as ultralytics writes it with `save_conf`;
    ultralytics cannot train on such labels.
    """

    options: ClassVar[tuple[str, ...]] = ("scores",)

    def _begin(self) -> None:
        (self.partial / "labels").mkdir()

    def _write(self, image: ExportedImage, instances: Sequence[Instance]) -> None:
        lines = []
        for instance in instances:
            values = [*self._shape(instance, image), *([instance.score] if self.scores else [])]
            lines.append(" ".join([str(instance.class_index), *(f"{v:.6f}" for v in values)]) + "\n")
        path = self.partial / "labels" / f"{image.stem}.txt"
        path.write_text("".join(lines), encoding="utf-8", newline="\n")

    def _shape(self, instance: Instance, image: ExportedImage) -> list[float]:
        x1, y1, x2, y2 = instance.box
        centre = [(x1 + x2) / 2 / image.width, (y1 + y2) / 2 / image.height]
        return [*centre, (x2 - x1) / image.width, (y2 - y1) / image.height]

    def _finish(self) -> None:
        # Without `path`, ultralytics resolves paths relative to data.yaml. It requires both splits.
        content = {"train": "images", "val": "images", "names": dict(enumerate(self.classes))}
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        (self.partial / "data.yaml").write_text(text, encoding="utf-8", newline="\n")


class YoloSegmentWriter(YoloWriter):
    """YOLO with the x and y of each outline point instead of boxes; a region's holes are filled."""

    options: ClassVar[tuple[str, ...]] = ("simplify", "scores")

    def _shape(self, instance: Instance, image: ExportedImage) -> list[float]:
        outline = instance.outline(self.simplify) / (image.width, image.height)
        return [float(v) for v in outline.ravel()]
