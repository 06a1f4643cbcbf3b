"""Label Studio: tasks with pre-annotations, and the labelling interface that shows them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

from wildcat.export.instances import Instance, InstanceParams
from wildcat.export.polygons import check_tolerance
from wildcat.export.writer import AnnotationWriter, ExportedImage, ImageMode, JsonRows, open_text
from wildcat.viz.colors import class_palette

TASKS, CONFIG = "tasks.json", "config.xml"

IMAGE, BOX, OUTLINE = "image", "box", "outline"
"""Names of the interface's elements: `to_name` of every region, and `from_name` of rectangles and polygons."""

LOCAL_FILES = "/data/local-files/?d="
"""How Label Studio names a file below LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT."""


class LabelStudioWriter(AnnotationWriter):
    """`tasks.json` to import, `config.xml` to paste into Settings, Labeling Interface, and `images/`.

    Each region is a rectangle (from_name "box") and a polygon (from_name "outline", its holes filled) of "image", in
    percent of the image, with its score; a task's prediction has the lowest of them, so that sorting by it brings
    the doubtful images first. Start Label Studio with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and
    LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT=<this folder>, and add `images` as a local source storage; for images
    elsewhere, replace "/data/local-files/?d=" in tasks.json.

    Args:
        simplify: pixels by which an outline may move to have fewer points, for hands to drag; 0 keeps it exact.
    """

    def __init__(
        self,
        folder: Path,
        classes: Sequence[str],
        params: InstanceParams | None = None,
        *,
        images: ImageMode = "copy",
        model: str = "",
        simplify: float = 1.0,
    ) -> None:
        super().__init__(folder, classes, params, images=images, model=model)
        self.simplify = check_tolerance(simplify)

    def _begin(self) -> None:
        self.tasks = JsonRows(self.open_files.enter_context(open_text(self.partial / TASKS)))

    def _write(self, image: ExportedImage, instances: Sequence[Instance]) -> None:
        regions = [region for number, i in enumerate(instances, 1) for region in self._regions(number, i, image)]
        prediction: dict[str, Any] = {"model_version": self.model or "wildcat", "result": regions}
        if instances:
            prediction["score"] = min(_rounded(instance.score) for instance in instances)
        url = LOCAL_FILES + quote(f"images/{image.file}")
        self.tasks.add({"data": {"image": url, "source": image.source}, "predictions": [prediction]})

    def _regions(self, number: int, instance: Instance, image: ExportedImage) -> list[dict[str, Any]]:
        x1, y1, x2, y2 = instance.box
        to_percent = (100 / image.width, 100 / image.height)
        shared = {
            "to_name": IMAGE,
            "original_width": image.width,
            "original_height": image.height,
            "image_rotation": 0,
            "score": _rounded(instance.score),
        }
        box = {
            "x": _rounded(x1 * to_percent[0]),
            "y": _rounded(y1 * to_percent[1]),
            "width": _rounded((x2 - x1) * to_percent[0]),
            "height": _rounded((y2 - y1) * to_percent[1]),
            "rotation": 0,
            "rectanglelabels": [instance.name],
        }
        points = [[_rounded(x), _rounded(y)] for x, y in (instance.outline(self.simplify) * to_percent).tolist()]
        polygon = {"points": points, "closed": True, "polygonlabels": [instance.name]}
        return [
            {"id": f"{BOX}-{number}", "from_name": BOX, "type": "rectanglelabels", **shared, "value": box},
            {"id": f"{OUTLINE}-{number}", "from_name": OUTLINE, "type": "polygonlabels", **shared, "value": polygon},
        ]

    def _finish(self) -> None:
        self.tasks.end()
        self.tasks.file.write("\n")
        view = ElementTree.Element("View")
        ElementTree.SubElement(view, "Image", name=IMAGE, value="$image")
        colours = class_palette(256)[1:]
        for kind, name in (("RectangleLabels", BOX), ("PolygonLabels", OUTLINE)):
            labels = ElementTree.SubElement(view, kind, name=name, toName=IMAGE)
            for index, value in enumerate(self.classes):
                colour = f"#{bytes(colours[index % len(colours)]).hex()}"
                ElementTree.SubElement(labels, "Label", value=value, background=colour)
        ElementTree.indent(view)
        text = ElementTree.tostring(view, encoding="unicode")
        (self.partial / CONFIG).write_text(text + "\n", encoding="utf-8", newline="\n")


def _rounded(value: float) -> float:
    return round(value, 6)
