"""Pascal VOC: a devkit folder with XML annotations and indexed masks of classes and objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wildcat.errors import ConfigError
from wildcat.export.instances import Instance
from wildcat.export.writer import AnnotationWriter, ExportedImage
from wildcat.regions.masks import HIGHEST_PNG_LABEL
from wildcat.viz.colors import class_palette

SPLIT = "train"  # the only split; `wildcat train` holds out a part of it for validation
BACKGROUND, IGNORED_INDEX = "background", 255  # of the masks: the name of label 0, and the label of ignored pixels


class VocWriter(AnnotationWriter):
    """A devkit folder: `JPEGImages`, `Annotations`, `SegmentationClass`, `SegmentationObject`, `ImageSets`.

    Classes are numbered from 1 in alphabetical order like the devkit's, independent of the model's order, because
    readers derive the class of a mask index from it; `labelmap.txt` lists them for CVAT. Boxes are whole pixels counted
    from 1, inclusive. In addition to the devkit's elements an object has a `score`. Objects are numbered in the order
    of the XML file; from the 255th on they are ignored (255) in `SegmentationObject`.

    Raises:
        ConfigError: more than 254 classes, one called background, or one whose name cannot be a file name.
    """

    image_folder: ClassVar[str] = "JPEGImages"

    def __init__(self, folder: Path, classes: Sequence[str], *args: Any, **kwargs: Any) -> None:
        if len(classes) > HIGHEST_PNG_LABEL:
            raise ConfigError(
                f"the model has {len(classes)} classes; an indexed mask of VOC holds {HIGHEST_PNG_LABEL} at most.",
                "Choose --format coco, which holds any number.",
            )
        wrong = [c for c in classes if not c.isprintable() or "/" in c or "\\" in c or c != c.strip() or not c]
        if wrong:
            raise _refused(wrong[0])
        if BACKGROUND in classes:
            raise ConfigError(
                f"class {BACKGROUND!r} has the name of label 0 in the masks of VOC.",
                "Choose --format coco, which allows any name.",
            )
        super().__init__(folder, classes, *args, **kwargs)
        self.labels = {name: label for label, name in enumerate(sorted(classes), 1)}
        self.present: list[tuple[str, frozenset[str]]] = []  # stem and classes of each image

    def _begin(self) -> None:
        for name in ("Annotations", "ImageSets/Main", "ImageSets/Segmentation"):
            (self.partial / name).mkdir(parents=True)
        for name in ("SegmentationClass", "SegmentationObject"):
            (self.partial / name).mkdir()
        for name in self.classes:
            try:  # systems differ in which names they allow, and in whether "Cat" and "cat" are the same
                self._class_list(name).touch(exist_ok=False)
            except OSError as error:
                raise _refused(name, f": {error.strerror or error}") from error

    def _class_list(self, name: str) -> Path:
        return self.partial / "ImageSets" / "Main" / f"{name}_{SPLIT}.txt"

    def _write(self, image: ExportedImage, instances: Sequence[Instance]) -> None:
        objects = np.zeros((image.height, image.width), dtype=np.uint8)
        classes = np.zeros_like(objects)
        for number, instance in enumerate(instances, 1):
            instance.paint(objects, number if number <= HIGHEST_PNG_LABEL else IGNORED_INDEX)
            instance.paint(classes, self.labels[instance.name])
        _save_indexed(self.partial / "SegmentationClass" / f"{image.stem}.png", classes)
        _save_indexed(self.partial / "SegmentationObject" / f"{image.stem}.png", objects)
        tree = self._annotation(image, instances)
        ElementTree.indent(tree, "\t")
        path = self.partial / "Annotations" / f"{image.stem}.xml"
        path.write_text(ElementTree.tostring(tree, encoding="unicode") + "\n", encoding="utf-8", newline="\n")
        self.present.append((image.stem, frozenset(instance.name for instance in instances)))

    def _annotation(self, image: ExportedImage, instances: Sequence[Instance]) -> ElementTree.Element:
        root = ElementTree.Element("annotation")
        _add_texts(root, {"folder": self.folder.resolve().name, "filename": image.file, "path": image.source})
        _add_texts(ElementTree.SubElement(root, "source"), {"database": "Unknown", "annotation": "wildcat"})
        _add_texts(ElementTree.SubElement(root, "size"), {"width": image.width, "height": image.height, "depth": 3})
        _add_texts(root, {"segmented": 1})
        for instance in instances:
            x1, y1, x2, y2 = instance.box
            item = ElementTree.SubElement(root, "object")
            _add_texts(item, {"name": instance.name, "pose": "Unspecified", "truncated": 0, "difficult": 0})
            _add_texts(item, {"score": f"{instance.score:.6g}"})
            corners = {"xmin": x1 + 1, "ymin": y1 + 1, "xmax": x2, "ymax": y2}
            _add_texts(ElementTree.SubElement(item, "bndbox"), corners)
        return root

    def _finish(self) -> None:
        ids = "".join(f"{stem}\n" for stem, _ in self.present)
        lists = {f"ImageSets/{name}/{SPLIT}.txt": ids for name in ("Main", "Segmentation")}
        for name in self.classes:
            rows = (f"{stem} {1 if name in present else -1:2d}\n" for stem, present in self.present)
            self._class_list(name).write_text("".join(rows), encoding="utf-8", newline="\n")
        colors = class_palette(256).tolist()
        labels = {BACKGROUND: 0, **self.labels}
        rows = (f"{name}:{','.join(map(str, colors[label]))}::\n" for name, label in labels.items())
        lists["labelmap.txt"] = "".join(["# label:color_rgb:parts:actions\n", *rows])
        for path, text in lists.items():
            (self.partial / path).write_text(text, encoding="utf-8", newline="\n")


def _refused(name: str, reason: str = "") -> ConfigError:
    return ConfigError(
        f"class {name!r} cannot name the file ImageSets/Main/<class>_{SPLIT}.txt{reason}.",
        "Choose --format coco, which allows any name.",
    )


def _save_indexed(path: Path, values: NDArray[np.uint8]) -> None:
    image = Image.fromarray(values)
    image.putpalette(class_palette(256).tobytes())
    image.save(path)


def _add_texts(parent: ElementTree.Element, texts: Mapping[str, object]) -> None:
    for tag, text in texts.items():  # XML cannot hold control characters, and UTF-8 no lone surrogates
        ElementTree.SubElement(parent, tag).text = "".join(c if c.isprintable() else "?" for c in str(text))
