"""YOLO labels: a text file a picture, as ultralytics reads them for detection and for segmentation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from wildcat.export.annotations.instances import Instance, InstanceParams
from wildcat.export.annotations.outlines import check_tolerance
from wildcat.export.annotations.writer import AnnotationWriter, Picture, Pictures


class YoloWriter(AnnotationWriter):
    """`images/`, `labels/` with a .txt for each picture (empty where nothing was found), and `data.yaml`.

    A line is a region: the index of its class, and the centre, width and height of its box, or the x and y of its
    outline (whose holes come back filled); all as parts of the picture's width and height.

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
        pictures: Pictures = "copy",
        model: str = "",
        segments: bool = False,
        scores: bool = False,
        simplify: float = 1.0,
    ) -> None:
        super().__init__(folder, classes, params, pictures=pictures, model=model)
        self.segments, self.scores, self.simplify = segments, scores, check_tolerance(simplify)

    def _begin(self) -> None:
        (self.partial / "labels").mkdir()

    def _write(self, picture: Picture, instances: Sequence[Instance]) -> None:
        lines = "".join(f"{self._line(instance, picture)}\n" for instance in instances)
        (self.partial / "labels" / f"{picture.stem}.txt").write_text(lines, encoding="utf-8", newline="\n")

    def _line(self, instance: Instance, picture: Picture) -> str:
        x1, y1, x2, y2 = instance.box
        if self.segments:
            values = (instance.outline(self.simplify) / (picture.width, picture.height)).ravel().tolist()
        else:
            values = [
                (x1 + x2) / 2 / picture.width,
                (y1 + y2) / 2 / picture.height,
                (x2 - x1) / picture.width,
                (y2 - y1) / picture.height,
            ]
        numbers = [f"{v:.6f}" for v in [*values, *([instance.score] if self.scores else [])]]
        return " ".join([str(instance.class_index), *numbers])

    def _finish(self) -> None:
        # Without `path`, ultralytics looks beside the file itself. It wants both splits; divide the pictures for
        # training with a list of them for each.
        content = {"train": "images", "val": "images", "names": dict(enumerate(self.classes))}
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        (self.partial / "data.yaml").write_text(text, encoding="utf-8", newline="\n")
