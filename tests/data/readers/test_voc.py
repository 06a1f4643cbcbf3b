"""The VOC reader: against the files of the devkit itself, and against damage to them."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import trim_mean

from wildcat.data.dataset import label_matrix
from wildcat.data.images import read_image, read_mask
from wildcat.data.readers.synthetic import SHAPE_CLASSES, write_shapes
from wildcat.data.readers.voc import VOC_CLASSES, find_devkits, read_voc
from wildcat.data.registry import open_dataset
from wildcat.errors import DataError


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("voc") / "kit", train=6, val=4, size=(48, 64))


@pytest.fixture
def kit(pristine: Path, tmp_path: Path) -> Path:
    """A small devkit of shapes that a test may damage."""
    return Path(shutil.copytree(pristine, tmp_path / "kit"))


def test_mini_labels_equal_the_lists(real_data: Path) -> None:
    data = read_voc(real_data)
    assert data.classes == VOC_CLASSES == tuple(sorted(VOC_CLASSES))
    assert data.task == "multilabel"
    assert data.splits[:3] == ("train", "val", "trainval")
    main = real_data / "VOCdevkit" / "VOC2012" / "ImageSets" / "Main"
    for split, count in (("train", 900), ("val", 360), ("trainval", 1260)):
        samples = data.split(split)
        assert len(samples) == count
        assert [s.name for s in samples] == (main / f"{split}.txt").read_text().split()
        for index, name in enumerate(VOC_CLASSES):
            column = np.loadtxt(main / f"{name}_{split}.txt", usecols=1, dtype=int)
            assert np.array_equal(label_matrix(samples)[:, index], column)


def test_mini_annotation_by_hand(real_data: Path) -> None:
    # 2007_000032.xml: aeroplane 104 78 375 183, aeroplane 133 88 197 123, person 195 180 213 229, person 26 189 44 238
    sample = next(s for s in read_voc(real_data).split("trainval") if s.name == "2007_000032")
    assert sample.boxes is not None
    assert sample.boxes.tolist() == [
        [103, 77, 375, 183],
        [132, 87, 197, 123],
        [194, 179, 213, 229],
        [25, 188, 44, 238],
    ]
    assert sample.box_classes is not None
    assert sample.box_difficult is not None
    assert [VOC_CLASSES[i] for i in sample.box_classes] == ["aeroplane", "aeroplane", "person", "person"]
    assert not sample.box_difficult.any()
    assert [VOC_CLASSES[i] for i in np.flatnonzero(sample.labels == 1)] == ["aeroplane", "person"]
    assert sample.mask is not None
    mask = read_mask(sample.mask)
    assert mask.shape == (281, 500)
    assert set(np.unique(mask)) == {0, 1, 15, 255}  # aeroplane is class 1, person class 15
    assert read_image(sample.path).size == (500, 281)


def test_mini_boxes_bound_the_masks(real_data: Path) -> None:
    # An independent check of the off-by-one: between a segmented object and its box are the 255 border and the
    # annotators' care, on all four sides alike. With x1 = xmin the left gap would be a pixel narrower than the right.
    gaps = []
    for sample in read_voc(real_data).split("seg-val"):
        assert sample.boxes is not None and sample.box_classes is not None and sample.mask is not None
        if len(sample.boxes) == 1:
            ys, xs = np.nonzero(read_mask(sample.mask) == sample.box_classes[0] + 1)
            x1, y1, x2, y2 = sample.boxes[0]
            gaps.append([xs.min() - x1, ys.min() - y1, x2 - 1 - xs.max(), y2 - 1 - ys.max()])
    assert len(gaps) > 100
    left, top, right, bottom = trim_mean(gaps, 0.2, axis=0)
    assert abs(left - right) < 0.6
    assert abs(top - bottom) < 0.6


def test_mini_lists_agree_with_the_xml(real_data: Path, tmp_path: Path) -> None:
    source = real_data / "VOCdevkit" / "VOC2012"
    bare = tmp_path / "VOC2012"
    (bare / "ImageSets" / "Main").mkdir(parents=True)
    shutil.copy(source / "ImageSets" / "Main" / "val.txt", bare / "ImageSets" / "Main")
    for name in ("JPEGImages", "Annotations"):
        (bare / name).symlink_to(source / name)
    from_xml, from_lists = read_voc(bare).split("val"), read_voc(source).split("val")
    assert np.array_equal(label_matrix(from_xml), label_matrix(from_lists))
    assert (label_matrix(from_xml) == 0).sum() > 10, "difficult objects must be among them"
    assert from_xml[0].mask is None


def test_mini_is_read_fast(real_data: Path) -> None:
    start = time.process_time()
    read_voc(real_data).split("train")
    assert time.process_time() - start < 1


def test_every_folder_of_a_devkit_opens(kit: Path, tmp_path: Path) -> None:
    devkit = tmp_path / "data" / "VOCdevkit"
    shutil.copytree(kit, devkit / "VOC2007")
    for root in (devkit / "VOC2007", devkit, devkit.parent):
        assert find_devkits(root)
        assert read_voc(root).root == devkit / "VOC2007"
    shutil.copytree(kit, devkit / "VOC2012")
    with pytest.raises(DataError, match="2 devkits: VOC2007, VOC2012") as caught:
        read_voc(devkit)
    assert str(devkit / "VOC2012") in caught.value.hint
    assert read_voc(devkit, year=2007).name == "VOC2007"
    with pytest.raises(DataError, match="no VOC2010"):
        read_voc(devkit, year=2010)
    with pytest.raises(DataError, match="ImageSets/Main"):
        read_voc(tmp_path / "data" / "VOCdevkit" / "VOC2007" / "JPEGImages")


def test_classes_and_splits_of_another_devkit(kit: Path) -> None:
    main = kit / "ImageSets" / "Main"
    (main / "train_small.txt").write_text("000000\n000001\n")  # a split, although "small" is one too
    (main / "small.txt").write_text("000002\n")
    data = read_voc(kit)
    assert data.classes == SHAPE_CLASSES
    assert data.splits == ("train", "val", "trainval", "small", "train_small", "seg-train", "seg-trainval", "seg-val")
    assert [s.name for s in data.split("train_small")] == ["000000", "000001"]
    expected = label_matrix(data.split("train"))[:2]
    assert np.array_equal(label_matrix(data.split("train_small")), expected)
    for path in main.glob("*_*.txt"):
        path.unlink()
    assert read_voc(kit).classes == SHAPE_CLASSES, "from the XML, where there are no class lists"


def test_lists_that_are_empty_or_of_names_with_blanks_are_splits(kit: Path) -> None:
    main = kit / "ImageSets" / "Main"
    for path in main.glob("*_*.txt"):  # class lists
        path.unlink()
    (main / "val.txt").write_text("")
    for folder, suffix in (("JPEGImages", "jpg"), ("Annotations", "xml")):
        (kit / folder / f"000000.{suffix}").rename(kit / folder / f"my photo 1.{suffix}")
    (main / "train.txt").write_text("my photo 1\n000001\n")
    data = read_voc(kit)
    assert data.classes == SHAPE_CLASSES
    assert [s.name for s in data.split("train")] == ["my photo 1", "000001"]
    with pytest.raises(DataError, match=r"split 'val' .* holds no images"):
        data.split("val")


def test_difficult_in_xml_is_ignored(kit: Path) -> None:
    for path in (kit / "ImageSets" / "Main").glob("*_*.txt"):
        path.unlink()
    easy = "<object><name>disc</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>1</xmax>"
    easy += "<ymax>4</ymax></bndbox></object>"
    hard = easy.replace("<difficult>0", "<difficult>1").replace("disc", "ring")
    both = easy + easy.replace("<difficult>0", "<difficult>1")
    (kit / "Annotations" / "000000.xml").write_text(f"<annotation>{easy}{hard}</annotation>")
    (kit / "Annotations" / "000001.xml").write_text(f"<annotation>{both}</annotation>")
    (kit / "Annotations" / "000002.xml").write_text("<annotation/>")
    samples = read_voc(kit).split("train")
    #                                     cross disc ring square triangle
    assert samples[0].labels.tolist() == [-1, 1, 0, -1, -1]
    assert samples[1].labels.tolist() == [-1, 1, -1, -1, -1]
    assert samples[2].labels.tolist() == [-1, -1, -1, -1, -1]
    assert samples[0].boxes is not None and samples[0].boxes.tolist() == [[0, 1, 1, 4], [0, 1, 1, 4]]
    assert samples[2].boxes is not None and samples[2].boxes.shape == (0, 4)


BILLION_LAUGHS = '<!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;">]><annotation>&c;</annotation>'
BOX = "<bndbox><xmin>{}</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox>"
TRAIN, DISC = "ImageSets/Main/train.txt", "ImageSets/Main/disc_train.txt"


def rewrite(name: str, change: Callable[[str], str]) -> Callable[[Path], object]:
    return lambda kit: (kit / name).write_text(change((kit / name).read_text()))


def xml(text: str, encoding: str = "utf-8") -> Callable[[Path], object]:
    return lambda kit: (kit / "Annotations/000003.xml").write_text(text, encoding=encoding)


def an_object(name: str, box: str) -> Callable[[Path], object]:
    return xml(f"<annotation><object><name>{name}</name>{box}</object></annotation>")


def remove_lists_and_annotation(kit: Path) -> None:
    for path in (kit / "ImageSets" / "Main").glob("*_train.txt"):
        path.unlink()
    (kit / "Annotations" / "000003.xml").unlink()


DAMAGE: list[tuple[Callable[[Path], object], str, str]] = [
    (rewrite(TRAIN, lambda text: text + "000099\n"), "/train.txt, line 7: image '000099' .*JPEGImages", "Restore"),
    (rewrite(TRAIN, lambda text: text[:-3]), "/train.txt, line 6: image '0000'", "cut"),
    (rewrite(TRAIN, lambda text: text + "000001\n"), "/train.txt, line 7: '000001' .*line 2", "Remove one"),
    (rewrite(DISC, lambda text: text[:-4]), "disc_train.txt, line 6: '000005' .*1, 0 or -1", "cut"),
    (rewrite(DISC, lambda text: text[:-10]), "disc_train.txt and train.txt .*'000005' is in one only", "cut"),
    (
        lambda kit: shutil.copy(kit / "ImageSets/Main/disc_val.txt", kit / DISC),
        "disc_train.txt and train.txt list different images: '000000'",
        "restore it",
    ),
    (lambda kit: (kit / TRAIN).write_bytes(b"\xff\xfe0"), "/train.txt .*not UTF-8", "Restore"),
    (rewrite("Annotations/000003.xml", lambda text: text[:-40]), "000003.xml is not valid XML .*line", "cut"),
    (xml(BILLION_LAUGHS), "000003.xml .*DOCTYPE or ENTITY", "Do not trust"),
    (xml(BILLION_LAUGHS, "utf-16"), "000003.xml .*not UTF-8", "Do not trust"),
    (an_object("disk", BOX.format(1)), "000003.xml: 'disk' is none of the 5 classes", "did you mean disc?"),
    (an_object("", BOX.format(1)), "000003.xml: object 1 has the name ''", "restore"),
    (an_object("disc", ""), "000003.xml: object 1 .*the box ' *'", "restore"),
    (an_object("disc", BOX.format("x")), "000003.xml: object 1 .*the box 'x 1 5 5'", "restore"),
    (an_object("disc", BOX.format(9)), "000003.xml: object 1 .*'9 1 5 5'.*xmin ymin xmax ymax", "correct"),
    (remove_lists_and_annotation, "'000003': .*000003.xml and class lists of train.txt", "Add the class lists"),
]


@pytest.mark.parametrize(("damage", "message", "remedy"), DAMAGE)
def test_damage_is_named(kit: Path, damage: Callable[[Path], object], message: str, remedy: str) -> None:
    damage(kit)
    with pytest.raises(DataError) as caught:
        read_voc(kit).split("train")
    assert re.search(message, caught.value.message)
    assert remedy in caught.value.hint
    assert "\n" not in caught.value.message


def test_no_lists_at_all(kit: Path) -> None:
    for path in (kit / "ImageSets").glob("*/*.txt"):
        path.unlink()
    with pytest.raises(DataError, match="no list of images") as caught:
        read_voc(kit)
    assert "train.txt" in caught.value.hint


XML = """<annotation><filename>x.jpg</filename><object><name>{}</name><difficult>0</difficult>
<bndbox><xmin>1</xmin><xmax>4</xmax><ymin>2</ymin><ymax>6</ymax></bndbox></object></annotation>"""
LAYOUTS = [
    ("JPEGImages/{}.jpg", "Annotations/{}.xml"),
    ("images/{}.jpg", "annotations/{}.xml"),
    ("{}.jpg", "{}.xml"),
    ("data/{}.png", "labels/{}.xml"),
    ("archive/My photos/{}.jpg", "archive/my boxes/{}.xml"),
]


def lay_annotations(root: Path, image: str, xml: str, names: tuple[str, ...] = ("cat", "dog")) -> Path:
    """Six images with an object each in turn, and a seventh image without an annotation."""
    for i in range(7):
        (root / image.format(f"a.rf.{i}")).parent.mkdir(parents=True, exist_ok=True)
        (root / image.format(f"a.rf.{i}")).touch()
    for i in range(6):
        (root / xml.format(f"a.rf.{i}")).parent.mkdir(parents=True, exist_ok=True)
        (root / xml.format(f"a.rf.{i}")).write_text(XML.format(names[i % len(names)]))
    return root


@pytest.mark.parametrize(("image", "xml"), LAYOUTS)
def test_annotations_without_lists(tmp_path: Path, image: str, xml: str) -> None:
    data = open_dataset(lay_annotations(tmp_path, image, xml))
    assert (data.format, data.classes, data.splits) == ("voc", ("cat", "dog"), ("train", "val", "all"))
    assert label_matrix(data.split("all")).tolist() == [[1, -1], [-1, 1]] * 3
    sample = data.split("all")[0]
    assert sample.path == tmp_path / image.format("a.rf.0")
    assert sample.boxes is not None and sample.boxes.tolist() == [[0, 1, 4, 6]]
    assert any("1 images without an XML annotation are left out" in note for note in data.notes)


def test_annotations_beside_images_in_split_folders(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        lay_annotations(tmp_path, f"{split}/{{}}.jpg", f"{split}/{{}}.xml")
    data = open_dataset(tmp_path)
    assert (data.classes, data.splits) == (("cat", "dog"), ("train", "val"))
    assert [s.name for s in data.split("val")] == [f"valid/a.rf.{i}.jpg" for i in range(6)]
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "x.jpg").touch()
    with pytest.raises(DataError, match=r"splits \(train, val\) and 1 images outside of them, such as more/x.jpg"):
        open_dataset(tmp_path)


def test_annotations_that_fit_no_image(tmp_path: Path) -> None:
    lay_annotations(tmp_path, "images/b{}.jpg", "Annotations/{}.xml")
    with pytest.raises(DataError, match="no image has the name of one") as caught:
        open_dataset(tmp_path)
    assert "1.jpg for 1.xml" in caught.value.hint


def test_a_devkit_whose_only_list_is_no_split(kit: Path) -> None:
    # CVAT and datumaro write default.txt and <class>_default.txt.
    main = kit / "ImageSets" / "Main"
    for path in list(main.glob("*.txt")):
        if path.stem == "train" or path.stem.endswith("_train"):
            path.rename(path.with_name(path.name.replace("train", "default")))
        else:
            path.unlink()
    shutil.rmtree(kit / "ImageSets" / "Segmentation")
    data = open_dataset(kit)
    assert data.splits == ("train", "val", "all")
    assert len(data.split("all")) == 6


def test_own_classes_in_a_folder_with_the_name_of_a_devkit(kit: Path, tmp_path: Path) -> None:
    devkit = tmp_path / "VOC2007"
    shutil.copytree(kit, devkit)
    for path in (devkit / "ImageSets" / "Main").glob("*_*.txt"):
        path.unlink()
    for path in (devkit / "Annotations").glob("*.xml"):
        path.write_text(re.sub(r"<name>(\w+)</name>", "<name>my-\\1</name>", path.read_text()))
    data = open_dataset(devkit)
    assert data.classes and all(name.startswith("my-") for name in data.classes)
    assert len(data.split("train"))


def test_annotations_that_labelimg_has_marked_as_verified(tmp_path: Path) -> None:
    for i in range(4):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{i}.png")
        box = "<xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax>"
        objects = f"<object><name>{'ab'[i % 2]}</name><bndbox>{box}</bndbox></object>"
        (tmp_path / f"{i}.XML").write_text(f'<annotation verified="yes">{objects}</annotation>')
    assert open_dataset(tmp_path).classes == ("a", "b")
