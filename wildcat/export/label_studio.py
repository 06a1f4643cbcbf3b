"""Label Studio: tasks with pre-annotations, and the labelling interface for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar
from urllib.parse import quote
from xml.etree import ElementTree

from wildcat.export.instances import Instance
from wildcat.export.writer import AnnotationWriter, ExportedImage, JsonList
from wildcat.viz.colors import class_palette

LOCAL_FILES = "/data/local-files/?d="  # URL prefix of files in LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT


class LabelStudioWriter(AnnotationWriter):
    """`tasks.json` to import, `config.xml` for Settings > Labeling Interface, and `images/`.

    Each instance is a rectangle (from_name "box") and a polygon (from_name "outline", holes filled) of "image", in
    percent of the image, with its score. The score of a task is its lowest, so that sorting by it lists uncertain
    images first. Start Label Studio with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and
    LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT=<this folder>, and add `images` as a local source storage; for images stored
    elsewhere, replace "/data/local-files/?d=" in tasks.json.
    """

    options: ClassVar[tuple[str, ...]] = ("simplify",)

    def _begin(self) -> None:
        self.tasks = JsonList(self._open_text("tasks.json"))

    def _write(self, image: ExportedImage, instances: Sequence[Instance]) -> None:
        regions = [region for number, i in enumerate(instances, 1) for region in self._regions(number, i, image)]
        prediction: dict[str, Any] = {"model_version": self.model or "wildcat", "result": regions}
        if instances:
            prediction["score"] = min(round(instance.score, 6) for instance in instances)
        url = LOCAL_FILES + quote(f"images/{image.file}")
        self.tasks.add({"data": {"image": url, "source": image.source}, "predictions": [prediction]})

    def _regions(self, number: int, instance: Instance, image: ExportedImage) -> list[dict[str, Any]]:
        """The rectangle and the polygon of an instance, in percent of the image."""
        x1, y1, x2, y2 = instance.box
        scale_x, scale_y = 100 / image.width, 100 / image.height
        shared = {
            "to_name": "image",
            "original_width": image.width,
            "original_height": image.height,
            "image_rotation": 0,
            "score": round(instance.score, 6),
        }
        box = {
            "x": round(x1 * scale_x, 6),
            "y": round(y1 * scale_y, 6),
            "width": round((x2 - x1) * scale_x, 6),
            "height": round((y2 - y1) * scale_y, 6),
            "rotation": 0,
            "rectanglelabels": [instance.name],
        }
        points = [[round(x * scale_x, 6), round(y * scale_y, 6)] for x, y in instance.outline(self.simplify).tolist()]
        polygon = {"points": points, "closed": True, "polygonlabels": [instance.name]}
        return [
            {"id": f"box-{number}", "from_name": "box", "type": "rectanglelabels", **shared, "value": box},
            {"id": f"outline-{number}", "from_name": "outline", "type": "polygonlabels", **shared, "value": polygon},
        ]

    def _finish(self) -> None:
        self.tasks.end("\n")
        view = ElementTree.Element("View")
        ElementTree.SubElement(view, "Image", name="image", value="$image")
        colors = class_palette(256)[1:]
        for tag, name in (("RectangleLabels", "box"), ("PolygonLabels", "outline")):
            labels = ElementTree.SubElement(view, tag, name=name, toName="image")
            for index, value in enumerate(self.classes):
                color = f"#{bytes(colors[index % len(colors)]).hex()}"
                ElementTree.SubElement(labels, "Label", value=value, background=color)
        ElementTree.indent(view)
        text = ElementTree.tostring(view, encoding="unicode")
        (self.partial / "config.xml").write_text(text + "\n", encoding="utf-8", newline="\n")
