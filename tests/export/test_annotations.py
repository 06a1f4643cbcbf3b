"""Annotation formats: their own readers read back the prediction, and folders are written atomically."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from scipy import ndimage
from skimage.measure import approximate_polygon

from wildcat.data import open_dataset
from wildcat.data.images import read_image, read_mask
from wildcat.data.readers.coco import read_coco
from wildcat.data.readers.voc import read_voc
from wildcat.errors import ConfigError, DataError, RunError, ShapeError
from wildcat.export import (
    ANNOTATION_FORMATS,
    Instance,
    InstanceParams,
    find_instances,
    simplify_outline,
    trace_outline,
)
from wildcat.export import writer as writer_module
from wildcat.export.coco import compress_run_lengths, run_lengths
from wildcat.export.label_studio import CONTROL_TAGS, annotate, encode_brush, read_controls, task_score
from wildcat.export.polygons import outline_area
from wildcat.prediction import Prediction

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools, NumPy 2

CLASSES = ("zebra", "cat", "dog & <co>")
ALL_REGIONS = InstanceParams(min_area=0)
FORMATS = tuple(ANNOTATION_FORMATS)


def prediction(width: int = 90, height: int = 60, **changes: Any) -> Prediction:
    """Zebras upper left and lower right, a cat in the middle of the right edge; the dog is absent."""
    maps = np.full((3, 6, 9), -2, np.float32)
    maps[0, 0:2, 0:3], maps[0, 4:6, 6:9], maps[1, 2:4, 7:9], maps[2, 5, 0] = 5, 9, 7, 1
    values: dict[str, Any] = {
        "path": "a.png",
        "width": width,
        "height": height,
        "classes": CLASSES,
        "task": "multilabel",
        "class_scores": np.array([2, 3, -3], np.float32),
        "class_maps": maps,
        "modality_maps": None,
        "image": Image.new("RGB", (width, height), (0, 0, 80)),
    }
    return Prediction(**{**values, **changes})


def nothing(**changes: Any) -> Prediction:
    return prediction(class_scores=np.array([-2, -1, -3], np.float32), **changes)


def noisy(seed: int) -> Prediction:
    """Noise maps: the mask has many regions with holes."""
    rng = np.random.default_rng(seed)
    maps = rng.normal(0, 1, (3, 20, 30)).astype(np.float32)
    return prediction(50, 70, class_maps=maps, class_scores=np.array([1, 2, 3], np.float32))


def write(folder: Path, kind: str, predictions: Iterable[Prediction], **options: Any) -> Path:
    with ANNOTATION_FORMATS[kind](folder, CLASSES, **options) as writer:
        for i, p in enumerate(predictions):
            writer.add(p, f"p{i}.png")
    return folder


def filled(instance: Instance) -> NDArray[np.bool_]:
    """The cropped mask without its holes."""
    return np.asarray(ndimage.binary_fill_holes(instance.mask))


def on_image(instance: Instance, size: tuple[int, int], region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    x1, y1, x2, y2 = instance.box
    whole = np.zeros(size, bool)
    whole[y1:y2, x1:x2] = region
    return whole


def rasterised(points: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.bool_]:
    """A polygon filled by Pillow on a grid eight times finer, independent of pycocotools and our code."""
    height, width = size
    image = Image.new("1", (8 * width, 8 * height))
    ImageDraw.Draw(image).polygon([(8 * x - 0.5, 8 * y - 0.5) for x, y in points], fill=1)
    return np.asarray(image.resize((width, height), Image.Resampling.NEAREST))


def iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float((a & b).sum() / (a | b).sum())


# --- instances --------------------------------------------------------------------------------------------------------


def test_instances_are_connected_regions_with_the_probability_as_score() -> None:
    p = prediction()
    found = find_instances(p, ALL_REGIONS)
    assert [i.name for i in found] == ["cat", "zebra", "zebra"]  # the likeliest class first
    assert found[0].score == pytest.approx(1 / (1 + np.exp(-3))) and found[1].score == found[2].score
    assert found[1].area >= found[2].area
    mask = p.mask()
    for i in found:
        labels, _ = ndimage.label(mask == i.class_index + 1, np.ones((3, 3)))
        x1, y1, x2, y2 = i.box
        component = labels == labels[y1:y2, x1:x2][i.mask][0]
        np.testing.assert_array_equal(on_image(i, mask.shape, i.mask), component)
        rows, columns = np.nonzero(component)
        assert i.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


@pytest.mark.parametrize("seed", range(3))
def test_instances_cover_the_mask(seed: int) -> None:
    p = noisy(seed)
    again = np.zeros((p.height, p.width), np.uint8)
    for i in find_instances(p, ALL_REGIONS):
        assert not again[on_image(i, again.shape, i.mask)].any()  # none overlap
        i.paint(again, i.class_index + 1)
    np.testing.assert_array_equal(again, p.mask())


def test_min_score_compares_probabilities() -> None:
    cat = 1 / (1 + np.exp(-3))  # 0.953, zebra 0.881, dog 0.047
    assert {i.name for i in find_instances(prediction(), InstanceParams(min_score=cat - 0.01))} == {"cat"}
    assert find_instances(prediction(), InstanceParams(min_score=cat + 0.01)) == []
    low = {i.name for i in find_instances(prediction(), InstanceParams(min_score=0.01, min_area=0))}
    assert low == set(CLASSES)
    unsure = prediction(task="multiclass", class_scores=np.array([0.2, 0.1, 0], np.float32))
    assert {i.name for i in find_instances(unsure)} == {unsure.top}, "the likeliest of exclusive classes is a label"
    assert find_instances(unsure, InstanceParams(min_score=0.5)) == []  # its likeliest class has 0.37


def test_min_area_and_largest() -> None:
    everything = find_instances(noisy(0), ALL_REGIONS)
    large = find_instances(noisy(0), InstanceParams(min_area=0.01))
    assert {i.area for i in large} == {i.area for i in everything if i.area >= 0.01 * 50 * 70} and len(large) > 3
    largest = find_instances(noisy(0), InstanceParams(min_area=0, which="largest"))
    assert len(largest) == 3
    for i in largest:
        assert i.area == max(j.area for j in everything if j.name == i.name)


@pytest.mark.parametrize(
    ("setting", "message"),
    [({"min_score": 1.5}, "min_score=1.5"), ({"min_area": -0.1}, "min_area=-0.1"), ({"which": "al"}, "boxes='al'")],
)
def test_settings_out_of_range(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        InstanceParams(**setting)


# --- run lengths and outlines, against pycocotools and SciPy ----------------------------------------------------------

masks = st.integers(1, 14).flatmap(
    lambda w: st.lists(st.lists(st.booleans(), min_size=w, max_size=w), min_size=1, max_size=14)
)


@settings(max_examples=150, deadline=None)
@given(masks)
def test_run_lengths_and_outlines_match_pycocotools(rows: list[list[bool]]) -> None:
    mask = np.array(rows)
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    for k, (ys, xs) in enumerate(ndimage.find_objects(labels)[:count], 1):
        whole = labels == k
        i = Instance(0, "cat", 0.5, (xs.start, ys.start, xs.stop, ys.stop), whole[ys, xs])
        counts = run_lengths(i, mask.shape)  # type: ignore[arg-type]
        theirs = coco_mask.encode(np.asfortranarray(whole.astype(np.uint8)))
        assert compress_run_lengths(counts) == theirs["counts"].decode()
        assert counts.sum() == mask.size
        outline = i.outline()
        read = coco_mask.decode(coco_mask.frPyObjects([outline.ravel().tolist()], *mask.shape))[:, :, 0]
        np.testing.assert_array_equal(read, ndimage.binary_fill_holes(whole))
        assert outline_area(outline) == read.sum()


def test_long_run_lengths_match_pycocotools() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        big = np.zeros((1200, 900), bool)
        ys, xs = np.sort(rng.integers(0, 900, 2)), np.sort(rng.integers(0, 900, 2))
        big[ys[0] : ys[1] + 1, xs[0] : xs[1] + 1] = True
        big[ys[0] + rng.integers(0, 3), xs[0]] = False
        i = Instance(0, "cat", 0.5, (0, 0, 900, 1200), big)
        theirs = coco_mask.encode(np.asfortranarray(big.astype(np.uint8)))["counts"].decode()
        assert compress_run_lengths(run_lengths(i, (1200, 900))) == theirs


def test_an_outline_is_clockwise_and_contains_a_shared_corner_twice() -> None:
    diagonal = np.array([[True, False], [False, True]])
    assert trace_outline(diagonal).tolist() == [[0, 0], [1, 0], [1, 1], [2, 1], [2, 2], [1, 2], [1, 1], [0, 1]]
    with pytest.raises(ShapeError):
        trace_outline(np.zeros((3, 3), bool))


def test_simplified_outlines_stay_within_the_tolerance() -> None:
    rows, columns = np.mgrid[:200, :300]
    disc = ((rows - 100) / 90) ** 2 + ((columns - 150) / 140) ** 2 < 1
    outline = trace_outline(disc)
    few = simplify_outline(outline, 1.0)
    assert len(few) < len(outline) / 5
    assert iou(rasterised(few.astype(float), disc.shape), disc) > 0.99
    closed = np.concatenate([few, few[:1]]).astype(float)
    for point in outline:
        starts, along = closed[:-1], np.diff(closed, axis=0)
        t = (((point - starts) * along).sum(1) / (along**2).sum(1)).clip(0, 1)
        assert np.hypot(*(point - starts - t[:, None] * along).T).min() <= 1.0
    theirs = approximate_polygon(np.concatenate([outline, outline[:1]]).astype(float), 1.0)
    assert len(few) <= 1.2 * len(theirs)
    np.testing.assert_array_equal(simplify_outline(outline, 0), outline)
    dot = trace_outline(np.ones((1, 1), bool))
    np.testing.assert_array_equal(simplify_outline(dot, 5.0), dot)  # two points would be no polygon
    with pytest.raises(ConfigError, match="simplify=-1"):
        simplify_outline(dot, -1)


# --- COCO -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["coco", "coco-polygons"])
def test_pycocotools_reads_coco(tmp_path: Path, kind: str) -> None:
    shown = [prediction(), nothing(path="caf\udce9.png"), noisy(1), noisy(2)]
    folder = write(tmp_path / "out", kind, shown, params=ALL_REGIONS, model="runs/x")
    coco = COCO(str(folder / "annotations.json"))
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list(CLASSES)
    assert coco.dataset["images"][1]["source"] == "caf\udce9.png"
    assert "runs/x" in coco.dataset["info"]["description"]
    assert sorted(coco.getImgIds()) == [1, 2, 3, 4]
    for image_id, p in enumerate(shown, 1):
        (row,) = coco.loadImgs(image_id)
        assert (
            (row["width"], row["height"])
            == (p.width, p.height)
            == read_image(folder / "images" / row["file_name"]).size
        )
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=[image_id]))
        instances = find_instances(p, ALL_REGIONS)
        assert len(annotations) == len(instances)
        again = np.zeros((p.height, p.width), np.uint8)
        for a, i in zip(annotations, instances, strict=True):
            region = coco.annToMask(a).astype(bool)
            expected = on_image(i, region.shape, i.mask if kind == "coco" else filled(i))
            np.testing.assert_array_equal(region, expected)
            again[region & (again == 0)] = a["category_id"]
            assert CLASSES[a["category_id"] - 1] == i.name and a["score"] == pytest.approx(i.score, abs=1e-5)
            assert a["area"] == region.sum() and a["iscrowd"] == 0
            x, y, w, h = a["bbox"]
            assert (x, y, x + w, y + h) == i.box
            assert a["bbox"] == coco_mask.toBbox(coco.annToRLE(a)).tolist()
        if kind == "coco":
            np.testing.assert_array_equal(again, p.mask() if instances else 0)


def test_coco_is_a_training_set(tmp_path: Path) -> None:
    folder = write(tmp_path / "out", "coco", [prediction(), nothing(), prediction()])
    data = read_coco(folder)
    assert open_dataset(str(folder)).format == "coco"
    assert data.classes == CLASSES
    samples = data.split("all")
    assert [s.labels.tolist() for s in samples] == [[1, 1, -1], [-1, -1, -1], [1, 1, -1]]
    assert samples[0].boxes is not None and samples[0].box_classes is not None
    instances = find_instances(prediction())
    np.testing.assert_array_equal(samples[0].boxes, [i.box for i in instances])
    assert samples[0].box_classes.tolist() == [i.class_index for i in instances]


def test_coco_without_a_region(tmp_path: Path) -> None:
    coco = COCO(str(write(tmp_path / "out", "coco", [nothing()]) / "annotations.json"))
    assert coco.getAnnIds() == [] and len(coco.getImgIds()) == 1


# --- YOLO -------------------------------------------------------------------------------------------------------------


def yolo_rows(folder: Path, file: str) -> list[tuple[int, NDArray[np.float64]]]:
    """Read labels by the rules of the format: labels/ instead of images/, .txt instead of the suffix."""
    image = folder / "images" / file
    text = Path(str(image).replace("/images/", "/labels/")).with_suffix(".txt").read_text()
    rows = [line.split() for line in text.splitlines()]
    return [(int(row[0]), np.array(row[1:], float)) for row in rows]


def test_yolo_boxes(tmp_path: Path) -> None:
    folder = write(tmp_path / "out", "yolo", [prediction(), nothing()])
    settings = yaml.safe_load((folder / "data.yaml").read_text(encoding="utf-8"))
    assert settings["names"] == dict(enumerate(CLASSES))
    assert (folder / settings["train"]).is_dir() and (folder / settings["val"]).is_dir()
    rows, instances = yolo_rows(folder, "p0.png"), find_instances(prediction())
    assert [CLASSES[c] for c, _ in rows] == [i.name for i in instances]
    for (_, values), i in zip(rows, instances, strict=True):
        cx, cy, w, h = values * (90, 60, 90, 60)
        np.testing.assert_allclose((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), i.box, atol=1e-3)
    assert yolo_rows(folder, "p1.png") == []
    assert sorted(f.stem for f in (folder / "labels").iterdir()) == sorted(
        f.stem for f in (folder / "images").iterdir()
    )


@pytest.mark.parametrize("simplify", [0.0, 1.0])
def test_yolo_outlines(tmp_path: Path, simplify: float) -> None:
    p = prediction(900, 600)
    folder = write(tmp_path / "out", "yolo-segment", [p], simplify=simplify)
    rows, instances = yolo_rows(folder, "p0.png"), find_instances(p)
    assert len(rows) == len(instances) == 3
    for (index, values), i in zip(rows, instances, strict=True):
        assert CLASSES[index] == i.name and values.min() >= 0 and values.max() <= 1
        region = rasterised(values.reshape(-1, 2) * (900, 600), (600, 900))
        assert iou(region, on_image(i, region.shape, filled(i))) > (0.99 if simplify else 0.999)


@pytest.mark.parametrize("kind", ["yolo", "yolo-segment"])
def test_yolo_scores_are_optional(tmp_path: Path, kind: str) -> None:
    plain = yolo_rows(write(tmp_path / "plain", kind, [prediction()]), "p0.png")
    scored = yolo_rows(write(tmp_path / "scored", kind, [prediction()], scores=True), "p0.png")
    for (_, a), (_, b), i in zip(plain, scored, find_instances(prediction()), strict=True):
        np.testing.assert_array_equal(a, b[:-1])
        assert b[-1] == pytest.approx(i.score, abs=1e-6)


# --- VOC --------------------------------------------------------------------------------------------------------------


def test_voc_is_read_as_a_devkit(tmp_path: Path) -> None:
    shown = [prediction(), nothing(), noisy(1)]
    folder = write(tmp_path / "out", "voc", shown, params=ALL_REGIONS)
    data = read_voc(folder)
    assert data.classes == tuple(sorted(CLASSES)) and data.splits == ("train", "seg-train")
    for split in data.splits:
        for sample, p in zip(data.split(split), shown, strict=True):
            instances = find_instances(p, ALL_REGIONS)
            present = {i.name for i in instances}
            assert sample.labels.tolist() == [1 if c in present else -1 for c in data.classes]
            assert sample.boxes is not None and sample.box_classes is not None and sample.mask is not None
            np.testing.assert_array_equal(sample.boxes, np.reshape([i.box for i in instances], (-1, 4)))
            assert [data.classes[k] for k in sample.box_classes] == [i.name for i in instances]
            names = np.array(["", *data.classes])[read_mask(sample.mask)]
            expected = p.mask() if instances else np.zeros((p.height, p.width), int)
            np.testing.assert_array_equal(names, np.array(["", *CLASSES])[expected])


def test_voc_files_follow_the_devkit(tmp_path: Path) -> None:
    folder = write(tmp_path / "o\x07\udce9", "voc", [prediction(path="x\x07\udce9.png")])
    root = ElementTree.parse(folder / "Annotations" / "p0.xml").getroot()
    assert root.findtext("filename") == "p0.png" and (folder / "JPEGImages" / "p0.png").is_file()
    assert [root.findtext(f"size/{t}") for t in ("width", "height", "depth")] == ["90", "60", "3"]
    assert (root.findtext("path"), root.findtext("folder")) == ("x??.png", "o??")
    objects = read_mask(folder / "SegmentationObject" / "p0.png")
    with Image.open(folder / "SegmentationClass" / "p0.png") as image:
        assert image.mode == "P"
        colours, labels = np.array(image.getpalette()).reshape(-1, 3), np.asarray(image)
    assert colours[[0, 1, 2, 15]].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [192, 128, 128]]  # 15: VOC's person
    found = root.findall("object")
    for number, (item, i) in enumerate(zip(found, find_instances(prediction()), strict=True), 1):
        corners = [int(item.findtext(f"bndbox/{t}") or 0) for t in ("xmin", "ymin", "xmax", "ymax")]
        rows, columns = np.nonzero(objects == number)
        assert corners == [columns.min() + 1, rows.min() + 1, columns.max() + 1, rows.max() + 1]  # from 1, inclusive
        assert item.findtext("name") == i.name and float(item.findtext("score") or 0) == pytest.approx(
            i.score, abs=1e-5
        )
        assert set(labels[objects == number]) == {sorted(CLASSES).index(i.name) + 1}
    assert (folder / "ImageSets/Main/cat_train.txt").read_text() == "p0  1\n"
    assert (folder / "ImageSets/Main/dog & <co>_train.txt").read_text() == "p0 -1\n"
    assert "cat:128,0,0::" in (folder / "labelmap.txt").read_text().splitlines()


def test_voc_holds_254_classes_and_254_objects(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="255 classes") as caught:
        ANNOTATION_FORMATS["voc"](tmp_path / "out", [str(i) for i in range(255)])
    assert "coco" in caught.value.hint
    ANNOTATION_FORMATS["voc"](tmp_path / "out", [str(i) for i in range(254)])
    with pytest.raises(ConfigError, match="'a/b' cannot name"):
        ANNOTATION_FORMATS["voc"](tmp_path / "out", ["cat", "a/b"])
    with pytest.raises(ConfigError, match="'background' has the name of label 0"):
        ANNOTATION_FORMATS["voc"](tmp_path / "out", ["background", "cat"])
    with pytest.raises(ConfigError, match=r"cannot name the file .*: File name too long") as caught:
        ANNOTATION_FORMATS["voc"](tmp_path / "out", ["cat", "x" * 250]).__enter__()
    assert "coco" in caught.value.hint and not list(tmp_path.iterdir())
    maps = np.full((3, 40, 40), -1, np.float32)
    maps[0, ::2, ::2] = 1  # 400 single cells
    p = prediction(40, 40, class_maps=maps)
    folder = write(tmp_path / "out", "voc", [p], params=ALL_REGIONS)
    objects = np.asarray(Image.open(folder / "SegmentationObject" / "p0.png"))
    assert np.unique(objects).tolist() == list(range(256))
    assert len(ElementTree.parse(folder / "Annotations" / "p0.xml").findall("object")) == 400
    np.testing.assert_array_equal(read_mask(folder / "SegmentationClass" / "p0.png") == 3, objects > 0)  # zebra


# --- Label Studio -----------------------------------------------------------------------------------------------------


def test_label_studio_tasks_match_the_labelling_interface(tmp_path: Path) -> None:
    p = prediction(900, 600)
    folder = write(tmp_path / "out", "label-studio", [p, nothing()], model="runs/x")
    view = ElementTree.parse(folder / "config.xml").getroot()
    image = view.find("Image")
    assert image is not None
    tasks = json.loads((folder / "tasks.json").read_text(encoding="utf-8"))
    assert len(tasks) == 2 and tasks[1]["predictions"] == [{"model_version": "runs/x", "result": []}]
    (said,) = tasks[0]["predictions"]
    served = parse_qs(urlparse(tasks[0]["data"][(image.get("value") or "")[1:]]).query)["d"][0]
    assert (folder / served).is_file()
    instances = find_instances(p)
    assert said["score"] == pytest.approx(min(i.score for i in instances), abs=1e-5)
    regions = said["result"]
    assert len({r["id"] for r in regions}) == len(regions) == 2 * len(instances)
    for r in regions:
        control = next(c for c in view if c.get("name") == r["from_name"])
        assert control.tag.lower() == r["type"] and control.get("toName") == r["to_name"] == image.get("name")
        (name,) = r["value"][r["type"]]
        assert name in [label.get("value") for label in control]
        assert (r["original_width"], r["original_height"]) == (900, 600)
    for box, polygon, i in zip(regions[::2], regions[1::2], instances, strict=True):
        assert box["value"]["rectanglelabels"] == polygon["value"]["polygonlabels"] == [i.name]
        assert box["score"] == polygon["score"] == pytest.approx(i.score, abs=1e-5)
        x, y, w, h = (box["value"][k] for k in ("x", "y", "width", "height"))
        np.testing.assert_allclose(np.array([x, y, x + w, y + h]) / 100 * (900, 600, 900, 600), i.box, atol=1e-3)
        region = rasterised(np.array(polygon["value"]["points"]) / 100 * (900, 600), (600, 900))
        assert iou(region, on_image(i, region.shape, filled(i))) > 0.99


def decode_brush(packed: list[int]) -> NDArray[np.uint8]:
    """The values of @thi.ng/rle-pack, read bit by bit as its JavaScript does."""
    bits = iter("".join(f"{byte:08b}" for byte in packed))

    def read(count: int) -> int:
        return int("".join(next(bits) for _ in range(count)), 2)

    count, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < count:
        same, length = read(1), read(sizes[read(2)]) + 1
        values += [read(word)] * length if same else [read(word) for _ in range(length)]
    assert len(values) == count
    assert len(list(bits)) < 8
    return np.array(values, np.uint8)


@given(
    st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 40), st.sampled_from([0.05, 0.5, 1.0]), st.integers(1, 60)
)
def test_brush_masks_are_read_back(seed: int, height: int, width: int, share: float, zoom: int) -> None:
    rng = np.random.default_rng(seed)
    mask = np.kron(rng.random((height, width)) < share, np.ones((1, zoom), bool))
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return
    box = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
    instance = Instance(0, "zebra", 0.5, box, mask[box[1] : box[3], box[0] : box[2]])
    values = decode_brush(encode_brush(instance, (height, width * zoom))).reshape(height, width * zoom, 4)
    np.testing.assert_array_equal(values, np.repeat(mask[:, :, None] * 255, 4, axis=2))


def test_a_brush_mask_with_runs_above_the_longest() -> None:
    instance = Instance(0, "zebra", 0.5, (100, 50, 400, 350), np.ones((300, 300), bool))
    values = decode_brush(encode_brush(instance, (400, 450))).reshape(400, 450, 4)
    assert (values[50:350, 100:400] == 255).all() and values.sum() == 300 * 300 * 4 * 255


LABELS = (
    '<Label value="Zebra"/><Label value="Katze" alias="CAT"/><Label value="Hund" predicted_values="x, dog & <co>"/>'
)


def interface(tag: str, inside: str = LABELS, more: str = "") -> str:
    inside = inside.replace("& <co>", "&amp; &lt;co>")
    if tag == "Choices":
        inside = inside.replace("<Label", "<Choice")
    return f'<View><Image name="i" value="$photo"/><{tag} name="a" toName="i" {more}>{inside}</{tag}></View>'


@pytest.mark.parametrize("tag", CONTROL_TAGS)
def test_results_for_control_tags(tag: str) -> None:
    p = prediction(900, 600)
    (control,) = read_controls(interface(tag, more='choice="multiple"'), CLASSES)
    assert (control.name, control.to_name, control.key) == ("a", "i", "photo")
    assert control.labels == {"zebra": "Zebra", "cat": "CAT", "dog & <co>": "Hund"}
    assert control.unmatched == ()
    results = annotate(p, [control])
    named = {"zebra": "Zebra", "cat": "CAT"}
    assert len({result["id"] for result in results}) == len(results)
    for result in results:
        assert (result["from_name"], result["to_name"], result["type"]) == ("a", "i", tag.lower())
        assert (result["original_width"], result["original_height"], result["image_rotation"]) == (900, 600, 0)
    values = [result["value"] for result in results]
    if tag == "Choices":
        assert values == [{"choices": ["CAT", "Zebra"]}]
        assert results[0]["score"] == pytest.approx(p.probabilities["zebra"], abs=1e-5)
    elif tag == "KeyPointLabels":
        assert [value["keypointlabels"] for value in values] == [["CAT"], ["Zebra"]]
        for value, name in zip(values, ("cat", "zebra"), strict=True):
            assert (value["x"] * 9, value["y"] * 6) == pytest.approx(p.points[name], abs=1e-3)
    else:
        for result, i in zip(results, find_instances(p), strict=True):
            assert result["value"][tag.lower()] == [named[i.name]]
            assert result["score"] == pytest.approx(i.score, abs=1e-5)
            if tag == "BrushLabels":
                drawn = decode_brush(result["value"]["rle"]).reshape(600, 900, 4)[:, :, 3] > 0
                np.testing.assert_array_equal(drawn, on_image(i, drawn.shape, i.mask))
    assert task_score(results) == pytest.approx(p.probabilities["zebra"], abs=1e-5)
    assert annotate(nothing(), [control]) == [] and task_score([]) is None


def test_classes_that_the_interface_lacks_are_left_out() -> None:
    p = prediction(900, 600)
    for tag in CONTROL_TAGS:
        (control,) = read_controls(interface(tag, '<Label value="zebra"/><Label value="tree"/>'), CLASSES)
        assert control.labels == {"zebra": "zebra"} and control.unmatched == ("tree",)
        labels = [label for result in annotate(p, [control]) for label in result["value"][tag.lower()]]
        assert labels and set(labels) == {"zebra"}


def test_one_choice_is_the_likeliest() -> None:
    (control,) = read_controls(interface("Choices"), CLASSES)
    assert [result["value"] for result in annotate(prediction(), [control])] == [{"choices": ["CAT"]}]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (("Cat", "cat"), {"cat": "cat"}),  # exact first
        (("CAT",), {"cat": "CAT"}),
        (("Zebra", "ZEBRA"), {"zebra": "Zebra"}),  # the first
        (("cats",), {}),
    ],
)
def test_names_match_exactly_and_then_without_case(labels: tuple[str, ...], expected: dict[str, str]) -> None:
    text = interface("RectangleLabels", "".join(f'<Label value="{label}"/>' for label in labels))
    if expected:
        assert read_controls(text, CLASSES)[0].labels == expected
    else:
        with pytest.raises(DataError, match=r"\(cats\) is a class of the model \(zebra, cat, dog"):
            read_controls(text, CLASSES)


# --- the folder -------------------------------------------------------------------------------------------------------


def images_of(folder: Path) -> list[Path]:
    found = folder / "JPEGImages" if (folder / "JPEGImages").is_dir() else folder / "images"
    return sorted(found.iterdir())


@pytest.mark.parametrize("kind", FORMATS)
def test_images_with_equal_names_have_separate_files(tmp_path: Path, kind: str) -> None:
    names = [
        "a.jpg",
        "a.png",
        "x/a.jpg",
        "x_a.png",
        "A.jpg",
        "../a.jpg",
        "\u4e2d 1.png",
        "n" * 250 + ".jpg",
        "images/b.jpg",
    ]
    with ANNOTATION_FORMATS[kind](tmp_path / "out", CLASSES) as writer:
        for i, name in enumerate(names):
            writer.add(prediction(image=Image.new("RGB", (90, 60), (i, 0, 0))), name)
    files = images_of(tmp_path / "out")
    assert len({f.stem.casefold() for f in files}) == len(names)
    assert sorted(np.asarray(read_image(f))[0, 0, 0] for f in files) == list(range(len(names)))
    assert not any(c.isspace() or c == "/" for f in files for c in f.name)  # VOC's lists are split at spaces
    assert [f.name for f in tmp_path.iterdir()] == ["out"]


def test_images_are_copied_unchanged_or_converted_upright(tmp_path: Path) -> None:
    made = Image.effect_noise((90, 60), 50).convert("RGB")
    turned = Image.Exif()
    turned[0x0112] = 6
    made.save(tmp_path / "plain.jpg")
    made.save(tmp_path / "turned.jpg", exif=turned)
    made.convert("P").save(tmp_path / "moving.gif")
    made.save(tmp_path / "nameless", format="PNG")
    for how in ("copy", "link"):
        with ANNOTATION_FORMATS["coco"](tmp_path / how, CLASSES, images=how) as writer:
            for name in ("plain.jpg", "turned.jpg", "moving.gif", "nameless"):
                size = (60, 90) if name == "turned.jpg" else (90, 60)
                writer.add(prediction(*size, image=tmp_path / name, path=name), name)
        images = tmp_path / how / "images"
        assert {f.name for f in images.iterdir()} == {"plain.jpg", "turned.jpg", "moving.png", "nameless.png"}
        assert (images / "plain.jpg").read_bytes() == (tmp_path / "plain.jpg").read_bytes()
        assert (images / "plain.jpg").is_symlink() == (how == "link")
        with Image.open(images / "turned.jpg") as image:  # as readers that ignore EXIF see it
            assert image.size == (60, 90) and not image.getexif()
            seen = np.asarray(image).astype(int)
        assert np.abs(seen - np.asarray(read_image(tmp_path / "turned.jpg"))).mean() < 3
        np.testing.assert_array_equal(read_image(images / "moving.png"), read_image(tmp_path / "moving.gif"))


def test_label_studio_gets_no_image_that_browsers_do_not_show(tmp_path: Path) -> None:
    Image.effect_noise((90, 60), 50).convert("RGB").save(tmp_path / "scan.tif")
    p = prediction(90, 60, image=tmp_path / "scan.tif", path="scan.tif")
    for kind, suffix in (("label-studio", "png"), ("coco", "tif")):
        (image,) = (write(tmp_path / kind, kind, [p]) / "images").iterdir()
        assert image.suffix == f".{suffix}"
        np.testing.assert_array_equal(read_image(image), read_image(tmp_path / "scan.tif"))
    (tmp_path / "scan.tif").rename(tmp_path / "scan.png")  # its content decides, not its name
    p = prediction(90, 60, image=tmp_path / "scan.png", path="scan.png")
    for kind, suffix in (("label-studio", "png"), ("coco", "tif")):
        (image,) = (write(tmp_path / f"{kind}-2", kind, [p]) / "images").iterdir()
        assert image.suffix == f".{suffix}"
        with Image.open(image) as opened:
            assert opened.format == {"png": "PNG", "tif": "TIFF"}[suffix]


@pytest.mark.parametrize("kind", FORMATS)
def test_a_failure_leaves_no_files(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt), ANNOTATION_FORMATS[kind](tmp_path / "out", CLASSES) as writer:
        writer.add(prediction(), "a.png")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
    with pytest.raises(RunError, match="No space left"):
        write(tmp_path / "out", kind, [prediction()])
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    Image.new("RGB", (90, 60)).save(tmp_path / "a.png")
    monkeypatch.setattr(writer_module.shutil, "copyfile", full)
    with pytest.raises(RunError, match="out cannot be written: No space left"):
        write(tmp_path / "out", "voc", [prediction(image=tmp_path / "a.png")])
    assert [f.name for f in tmp_path.iterdir()] == ["a.png"]


def test_folders_are_not_overwritten_and_appear_atomically(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with ANNOTATION_FORMATS["yolo"](tmp_path / "out", CLASSES) as writer:  # an empty folder is fine
        writer.add(prediction(), "a.png")
        assert [f for f in (tmp_path / "out").iterdir() if not f.name.startswith(".")] == []
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == ["data.yaml", "images", "labels"]
    before = {f: f.read_bytes() for f in (tmp_path / "out").rglob("*") if f.is_file()}
    with pytest.raises(RunError, match="never overwritten") as caught:
        ANNOTATION_FORMATS["coco"](tmp_path / "out", CLASSES)
    assert "out-2" in caught.value.hint
    assert {f: f.read_bytes() for f in (tmp_path / "out").rglob("*") if f.is_file()} == before


def test_a_folder_that_cannot_be_replaced_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {f.name for f in write(tmp_path / "expected", "coco", [prediction()]).iterdir()}
    for name in ("here", "empty", "link"):
        (tmp_path / name).symlink_to("empty") if name == "link" else (tmp_path / name).mkdir()
    (tmp_path / "dangling").symlink_to("new")
    (tmp_path / "here" / ".new.12345678.part").mkdir()  # of a command that was killed a moment ago
    monkeypatch.chdir(tmp_path / "here")
    for out in (Path(), tmp_path / "link", tmp_path / "dangling"):
        assert {f.name for f in write(out, "coco", [prediction()]).iterdir()} - {".new.12345678.part"} == expected
    assert Path.cwd() == tmp_path / "here" and (tmp_path / "link").is_symlink()


def test_two_commands_do_not_mix_their_files(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(RunError, match="never overwritten"), ANNOTATION_FORMATS["coco"](tmp_path / "out", CLASSES) as w:
        w.add(prediction(), "a.png")
        write(tmp_path / "out", "voc", [prediction()])
    assert not list((tmp_path / "out").glob(".*")) and (tmp_path / "out" / "Annotations").is_dir()


def test_the_same_predictions_give_the_same_bytes(tmp_path: Path) -> None:
    for kind in FORMATS:
        a, b = (write(tmp_path / kind / n, kind, [prediction(), noisy(0)]) for n in ("a/out", "b/out"))
        for file in a.rglob("*"):
            if file.is_file():
                assert file.read_bytes() == (b / file.relative_to(a)).read_bytes(), file


def test_misuse_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="images='move'"):
        ANNOTATION_FORMATS["coco"](tmp_path / "out", CLASSES, images="move")
    with pytest.raises(ConfigError, match="simplify=-1"):
        ANNOTATION_FORMATS["label-studio"](tmp_path / "out", CLASSES, simplify=-1)
    with pytest.raises(ConfigError, match="other classes"), ANNOTATION_FORMATS["coco"](tmp_path / "out", ["x"]) as w:
        w.add(prediction(), "a.png")
    assert list(tmp_path.iterdir()) == []
