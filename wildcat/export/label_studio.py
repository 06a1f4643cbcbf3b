"""Label Studio: control tags of labelling interfaces, results for them, and tasks with pre-annotations."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar
from urllib.parse import quote
from xml.etree import ElementTree

from wildcat.data.images import shown
from wildcat.errors import DataError
from wildcat.export.coco import run_lengths
from wildcat.export.instances import Instance, find_instances
from wildcat.export.writer import BROWSER_FORMATS, AnnotationWriter, ExportedImage, JsonList
from wildcat.prediction import Prediction
from wildcat.viz.colors import class_palette

LOCAL_FILES = "/data/local-files/?d="  # URL prefix of files in LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT
REGION_TAGS = ("RectangleLabels", "PolygonLabels", "BrushLabels")
CONTROL_TAGS = ("Choices", "KeyPointLabels", *REGION_TAGS)
POINT_WIDTH = 1.0  # diameter of a key point in percent of the image's width
RUN_BITS = (4, 8, 12, 16)  # of the lengths of runs in brush masks


@dataclass(frozen=True)
class Control:
    """A control tag of a labelling interface, such as `<RectangleLabels name="box" toName="image">`.

    Attributes:
        tag: one of `CONTROL_TAGS`.
        name, to_name: its name, and that of the image tag.
        labels: class of the model -> label, for the classes that the tag has.
        key: name of the image in the data of a task: "image" of `<Image value="$image">`.
        single: whether an image can have only one of these choices.
        unmatched: labels that are no class of the model.
    """

    tag: str
    name: str
    to_name: str
    labels: Mapping[str, str]
    key: str = "image"
    single: bool = False
    unmatched: tuple[str, ...] = ()


def read_controls(text: str, classes: Sequence[str]) -> tuple[Control, ...]:
    """The control tags of a labelling interface (XML) that a model can fill.

    A label is a class if its value, its alias or one of its `predicted_values` has the class's name, exactly or apart
    from upper and lower case. Results name a label by its alias, as Label Studio does.

    Raises:
        DataError: not XML, no control tag of an image in `CONTROL_TAGS`, or none of their labels is a class.
    """
    if re.search(r"<!(?!--|\[CDATA\[)", text):  # an entity could expand without end
        raise DataError("the labelling interface has a declaration <!...>.", "Remove it: Label Studio needs none.")
    try:
        view = ElementTree.fromstring(text)  # noqa: S314  # nothing is left that could expand
    except (ElementTree.ParseError, ValueError, RecursionError) as error:
        raise DataError(
            f"the labelling interface is not valid XML ({error}).", "Correct it in Label Studio."
        ) from error
    keys = {image.get("name", ""): image.get("value", "") for image in view.iter("Image")}
    found = [
        _read_control(element, key.removeprefix("$"), classes)
        for element in view.iter()
        if element.tag in CONTROL_TAGS
        and element.get("perRegion") != "true"
        and (key := keys.get(element.get("toName", ""), ""))
    ]
    if not found:
        raise DataError(
            f"the labelling interface has none of {', '.join(CONTROL_TAGS)} for an image.",
            'Add one, such as <RectangleLabels name="box" toName="image">, to <Image name="image" value="$image"/>.',
        )
    if not any(control.labels for control in found):
        raise DataError(
            f"no label of the labelling interface ({_listed(unmatched_labels(found))}) is a class of the model "
            f"({_listed(classes)}).",
            'Rename the labels, or name the class: <Label value="Auto" predicted_values="car"/>.',
        )
    return tuple(found)


def _read_control(element: ElementTree.Element, key: str, classes: Sequence[str]) -> Control:
    offered: dict[str, list[str]] = {}  # label -> names of classes that it may stand for
    for label in element.iter("Choice" if element.tag == "Choices" else "Label"):
        value, alias = label.get("value", ""), label.get("alias", "")
        others = [name.strip() for name in label.get("predicted_values", "").split(",")]
        offered[alias or value] = [name for name in (value, alias, *others) if name]
    labels: dict[str, str] = {}
    folds: tuple[Callable[[str], str], ...] = (str, str.casefold)
    for fold in folds:
        known = {fold(name): name for name in classes}
        for text, names in offered.items():
            for name in names:
                if (found := known.get(fold(name))) is not None:
                    labels.setdefault(found, text)
    return Control(
        element.tag,
        element.get("name", ""),
        element.get("toName", ""),
        labels,
        key,
        element.get("choice", "single") != "multiple",
        tuple(text for text in offered if text not in labels.values()),
    )


def unmatched_labels(controls: Iterable[Control]) -> list[str]:
    """The labels of control tags that are no class of the model, in order."""
    return list(dict.fromkeys(label for control in controls for label in control.unmatched))


def _listed(names: Sequence[str], count: int = 5) -> str:
    text = ", ".join(shown(name[:100]) for name in names[:count])
    return f"{text} and {len(names) - count} more" if len(names) > count else text


def annotate(prediction: Prediction, controls: Sequence[Control], simplify: float = 1.0) -> list[dict[str, Any]]:
    """The results of a prediction for control tags: predicted classes as choices and points, instances as regions.

    Args:
        simplify: tolerance of polygons in pixels, see `simplify_outline`.
    """
    size, results = (prediction.height, prediction.width), []
    instances = find_instances(prediction) if any(control.tag in REGION_TAGS for control in controls) else []
    for control in controls:
        names = [name for name in prediction.labels if name in control.labels]
        scores = {name: prediction.probabilities[name] for name in names}
        if control.tag in REGION_TAGS:
            drawn = [instance for instance in instances if instance.name in control.labels]
            results += [region(control, number, one, size, simplify) for number, one in enumerate(drawn, 1)]
        elif control.tag == "KeyPointLabels":
            for number, name in enumerate(names, 1):
                x, y = prediction.points[name]
                point = {"x": _percent(x, size[1]), "y": _percent(y, size[0]), "width": POINT_WIDTH}
                results.append(_result(control, number, size, scores[name], [name], point))
        elif names:
            chosen = names[:1] if control.single else names
            results.append(_result(control, 1, size, min(scores[name] for name in chosen), chosen, {}))
    return results


def region(control: Control, number: int, instance: Instance, size: tuple[int, int], simplify: float) -> dict[str, Any]:
    """The result for an instance: a rectangle, a polygon (its holes filled) or a brush mask, as the tag has it.

    Args:
        number: of the instance in the image; the identifier of the region follows from it.
        size: (height, width) of the image.
    """
    height, width = size
    x1, y1, x2, y2 = instance.box
    match control.tag:
        case "RectangleLabels":
            value: dict[str, Any] = {
                "x": _percent(x1, width),
                "y": _percent(y1, height),
                "width": _percent(x2 - x1, width),
                "height": _percent(y2 - y1, height),
                "rotation": 0,
            }
        case "PolygonLabels":
            outline = instance.outline(simplify).tolist()
            value = {"points": [[_percent(x, width), _percent(y, height)] for x, y in outline], "closed": True}
        case _:
            value = {"format": "rle", "rle": encode_brush(instance, size)}
    return _result(control, number, size, instance.score, [instance.name], value)


def _percent(value: float, whole: int) -> float:
    return round(100 * value / whole, 6)


def _result(
    control: Control, number: int, size: tuple[int, int], score: float, names: Sequence[str], value: dict[str, Any]
) -> dict[str, Any]:
    return {
        "id": f"{control.name}-{number}",
        "from_name": control.name,
        "type": control.tag.lower(),
        "to_name": control.to_name,
        "original_width": size[1],
        "original_height": size[0],
        "image_rotation": 0,
        "score": round(score, 6),
        "value": {**value, control.tag.lower(): [control.labels[name] for name in names]},
    }


def task_score(results: Iterable[Mapping[str, Any]]) -> float | None:
    """The lowest score of results, so that sorting tasks by it lists uncertain images first; None without results."""
    return min((float(result["score"]) for result in results), default=None)


def encode_brush(instance: Instance, size: tuple[int, int]) -> list[int]:
    """The bytes of a brush mask: the image's RGBA values, 255 in the region and 0 elsewhere, packed in runs.

    The format of the npm package @thi.ng/rle-pack: 32 bits with the number of values, 5 with the bits of a value - 1,
    four times 4 with `RUN_BITS` - 1; then for each run a 1, 2 bits with the index in `RUN_BITS`, so many bits with its
    length - 1, and the value.

    Args:
        size: (height, width) of the image.
    """
    height, width = size
    x1, y1, x2, y2 = instance.box
    turned = replace(instance, box=(y1, x1, y2, x2), mask=instance.mask.T)  # for runs in row-major order
    bits = [f"{height * width * 4:032b}", f"{8 - 1:05b}", *(f"{bits - 1:04b}" for bits in RUN_BITS)]
    for i, pixels in enumerate(run_lengths(turned, (width, height)).tolist()):
        left = 4 * pixels
        while left:
            length = min(left, 1 << RUN_BITS[-1])
            index = next(index for index, most in enumerate(RUN_BITS) if length <= 1 << most)
            bits.append(f"1{index:02b}{length - 1:0{RUN_BITS[index]}b}{i % 2 * 255:08b}")
            left -= length
    text = "".join(bits)
    count = -(-len(text) // 8)
    return list(int(text.ljust(8 * count, "0"), 2).to_bytes(count, "big"))


class LabelStudioWriter(AnnotationWriter):
    """`tasks.json` to import, `config.xml` for Settings > Labeling Interface, and `images/`.

    Each instance is a rectangle (from_name "box") and a polygon (from_name "outline", holes filled) of "image", in
    percent of the image, with its score. The score of a task is its lowest, so that sorting by it lists uncertain
    images first. Start Label Studio with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and
    LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT=<this folder>, and add `images` as a local source storage; for images stored
    elsewhere, replace "/data/local-files/?d=" in tasks.json.
    """

    options: ClassVar[tuple[str, ...]] = ("simplify",)
    portable: ClassVar[frozenset[str]] = BROWSER_FORMATS

    def _begin(self) -> None:
        self.tasks = JsonList(self._open_text("tasks.json"))
        labels = {name: name for name in self.classes}
        self.controls = [
            Control(tag, name, "image", labels)
            for tag, name in (("RectangleLabels", "box"), ("PolygonLabels", "outline"))
        ]

    def _write(self, image: ExportedImage, instances: Sequence[Instance]) -> None:
        size = (image.height, image.width)
        regions = [
            region(control, number, instance, size, self.simplify)
            for number, instance in enumerate(instances, 1)
            for control in self.controls
        ]
        prediction: dict[str, Any] = {"model_version": self.model or "wildcat", "result": regions}
        if instances:
            prediction["score"] = task_score(regions)
        url = LOCAL_FILES + quote(f"images/{image.file}")
        self.tasks.add({"data": {"image": url, "source": image.source}, "predictions": [prediction]})

    def _finish(self) -> None:
        self.tasks.end("\n")
        view = ElementTree.Element("View")
        ElementTree.SubElement(view, "Image", name="image", value="$image")
        colors = class_palette(256)[1:]
        for control in self.controls:
            labels = ElementTree.SubElement(view, control.tag, name=control.name, toName=control.to_name)
            for index, value in enumerate(control.labels.values()):
                color = f"#{bytes(colors[index % len(colors)]).hex()}"
                ElementTree.SubElement(labels, "Label", value=value, background=color)
        ElementTree.indent(view)
        text = ElementTree.tostring(view, encoding="unicode")
        (self.partial / "config.xml").write_text(text + "\n", encoding="utf-8", newline="\n")
