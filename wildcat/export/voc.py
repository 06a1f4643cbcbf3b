"""Pascal VOC: a devkit folder of xml annotations, and indexed images of classes and of objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wildcat.errors import ConfigError
from wildcat.export.instances import Instance, InstanceParams
from wildcat.export.writer import AnnotationWriter, ExportedImage, ImageMode
from wildcat.regions.masks import HIGHEST_PNG_LABEL
from wildcat.viz.colors import class_palette

SPLIT = "train"
"""The one list of images; `wildcat train` holds a part of it out where there is no other."""

IGNORED_INDEX = 255

_FOLDERS = ("Annotations", "ImageSets/Main", "ImageSets/Segmentation", "SegmentationClass", "SegmentationObject")


class VocWriter(AnnotationWriter):
    """A devkit folder: `JPEGImages`, `Annotations`, `SegmentationClass`, `SegmentationObject`, `ImageSets`.

    Classes are numbered from 1 in alphabetical order, as the devkit's are, whatever the model's order: that is how
    readers know which index of a mask is which class; `labelmap.txt` says it as CVAT does. Boxes are whole pixels
    counted from 1, the last included. An object has its `score` beside the devkit's elements. Objects are numbered in
    the order of the xml; beyond 254 in an image they are 255, ignored, in `SegmentationObject` alone.

    Raises:
        ConfigError: more than 254 classes, or a name that cannot be the name of a class list.
    """

    image_folder: ClassVar[str] = "JPEGImages"

    def __init__(
        self,
        folder: Path,
        classes: Sequence[str],
        params: InstanceParams | None = None,
        *,
        images: ImageMode = "copy",
        model: str = "",
    ) -> None:
        if len(classes) > HIGHEST_PNG_LABEL:
            raise ConfigError(
                f"the model has {len(classes)} classes; an indexed image of VOC numbers {HIGHEST_PNG_LABEL} at most.",
                "Choose --format coco, which holds any number.",
            )
        wrong = [c for c in classes if not c.isprintable() or "/" in c or "\\" in c or c != c.strip() or not c]
        if wrong:
            raise ConfigError(
                f"class {wrong[0]!r} cannot name its list ImageSets/Main/<class>_{SPLIT}.txt.",
                "Choose --format coco, whose names are free.",
            )
        super().__init__(folder, classes, params, images=images, model=model)
        self.labels = {name: label for label, name in enumerate(sorted(classes), 1)}
        self.found: list[tuple[str, frozenset[str]]] = []

    def _begin(self) -> None:
        for name in _FOLDERS:
            (self.partial / name).mkdir(parents=True)

    def _write(self, image: ExportedImage, instances: Sequence[Instance]) -> None:
        objects = np.zeros((image.height, image.width), dtype=np.uint8)
        classes = np.zeros_like(objects)
        for number, instance in enumerate(instances, 1):
            instance.paint(objects, number if number <= HIGHEST_PNG_LABEL else IGNORED_INDEX)
            instance.paint(classes, self.labels[instance.name])
        _write_indexed(self.partial / "SegmentationClass" / f"{image.stem}.png", classes)
        _write_indexed(self.partial / "SegmentationObject" / f"{image.stem}.png", objects)
        tree = self._annotation(image, instances)
        ElementTree.indent(tree, "\t")
        path = self.partial / "Annotations" / f"{image.stem}.xml"
        path.write_text(ElementTree.tostring(tree, encoding="unicode") + "\n", encoding="utf-8", newline="\n")
        self.found.append((image.stem, frozenset(instance.name for instance in instances)))

    def _annotation(self, image: ExportedImage, instances: Sequence[Instance]) -> ElementTree.Element:
        root = ElementTree.Element("annotation")
        source = "".join(c if c.isprintable() else "?" for c in image.source)  # xml has no sign for the others
        _texts(root, {"folder": self.folder.name, "filename": image.file, "path": source})
        _texts(ElementTree.SubElement(root, "source"), {"database": "Unknown", "annotation": "wildcat"})
        size = {"width": image.width, "height": image.height, "depth": 3}
        _texts(ElementTree.SubElement(root, "size"), size)
        _texts(root, {"segmented": 1})
        for instance in instances:
            x1, y1, x2, y2 = instance.box
            item = ElementTree.SubElement(root, "object")
            _texts(item, {"name": instance.name, "pose": "Unspecified", "truncated": 0, "difficult": 0})
            _texts(item, {"score": f"{instance.score:.6g}"})
            corners = {"xmin": x1 + 1, "ymin": y1 + 1, "xmax": x2, "ymax": y2}
            _texts(ElementTree.SubElement(item, "bndbox"), corners)
        return root

    def _finish(self) -> None:
        ids = "".join(f"{stem}\n" for stem, _ in self.found)
        lists = {f"ImageSets/{kind}/{SPLIT}.txt": ids for kind in ("Main", "Segmentation")}
        for name in self.classes:
            rows = (f"{stem} {1 if name in present else -1:2d}\n" for stem, present in self.found)
            lists[f"ImageSets/Main/{name}_{SPLIT}.txt"] = "".join(rows)
        colours = class_palette(256)
        entries = [("background", 0), *self.labels.items()]
        rows = (f"{name}:{','.join(map(str, colours[label].tolist()))}::\n" for name, label in entries)
        lists["labelmap.txt"] = "".join(["# label:color_rgb:parts:actions\n", *rows])
        for path, text in lists.items():
            (self.partial / path).write_text(text, encoding="utf-8", newline="\n")


def _write_indexed(path: Path, values: NDArray[np.uint8]) -> None:
    image = Image.fromarray(values)
    image.putpalette(class_palette(256).tobytes())
    image.save(path)


def _texts(parent: ElementTree.Element, texts: Mapping[str, object]) -> None:
    for tag, text in texts.items():
        ElementTree.SubElement(parent, tag).text = str(text)
