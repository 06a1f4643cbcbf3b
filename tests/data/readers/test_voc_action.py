"""VOC actions: labels of people combined into labels of images, by hand and on a small data set."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.data.miniatures import write_action
from wildcat.data.dataset import label_matrix
from wildcat.data.readers.synthetic import SHAPE_CLASSES, write_shapes
from wildcat.data.readers.voc import find_devkits, read_voc
from wildcat.data.readers.voc_action import ACTION_CLASSES, read_action
from wildcat.data.registry import open_dataset
from wildcat.errors import DataError

# (image, person) -> the actions that are 1 and those that are 0; all others are -1. As in the devkit, person 2 of
# the second image is the third object of its XML, because the second is a horse.
PEOPLE = {
    ("2010_1", 1): (("reading",), ()),
    ("2010_1", 2): (("reading", "walking"), ("running",)),
    ("2010_2", 1): ((), ("running",)),
    ("2010_2", 3): (("ridinghorse",), ()),
    ("2010_3", 1): ((), ()),
}
BOX = "<bndbox><xmin>{0}1</xmin><ymin>{0}2</ymin><xmax>{0}3</xmax><ymax>{0}4</ymax></bndbox>"
OBJECTS = {"2010_1": ("person", "person"), "2010_2": ("person", "horse", "person"), "2010_3": ("person",)}


@pytest.fixture
def devkit(tmp_path: Path) -> Path:
    """`VOCdevkit/VOC2012` with three images and the lists of `train`."""
    root = tmp_path / "VOCdevkit" / "VOC2012"
    lists = root / "ImageSets" / "Action"
    for folder in (lists, root / "JPEGImages", root / "Annotations"):
        folder.mkdir(parents=True)
    for image, names in OBJECTS.items():
        (root / "JPEGImages" / f"{image}.jpg").touch()
        items = "".join(f"<object><name>{n}</name>{BOX.format(i)}</object>" for i, n in enumerate(names, 1))
        (root / "Annotations" / f"{image}.xml").write_text(f"<annotation>{items}</annotation>")
    for action in (*ACTION_CLASSES, "other"):
        lines = [
            f"{image} {person} {1 if action in does else 0 if action in unsure else -1}\n"
            for (image, person), (does, unsure) in PEOPLE.items()
        ]
        (lists / f"{action}_train.txt").write_text("".join(lines))
    (lists / "train.txt").write_text("".join(f"{p} {n}\n" for p, n in PEOPLE))
    return root


def test_labels_by_hand(devkit: Path) -> None:
    data = read_action(devkit.parent)
    assert (data.name, data.format, data.task) == ("VOC2012-Action", "voc-action", "multilabel")
    assert data.classes == ACTION_CLASSES == tuple(sorted(ACTION_CLASSES))
    assert len(data.classes) == 10
    assert data.splits == ("train",)
    found = {s.name: s for s in data.split("train")}
    assert list(found) == ["2010_1", "2010_2", "2010_3"]
    present = {n: {c for c, v in zip(data.classes, s.labels, strict=True) if v == 1} for n, s in found.items()}
    ignored = {n: {c for c, v in zip(data.classes, s.labels, strict=True) if v == 0} for n, s in found.items()}
    assert present == {"2010_1": {"reading", "walking"}, "2010_2": {"ridinghorse"}, "2010_3": set()}
    assert ignored == {"2010_1": {"running"}, "2010_2": {"running"}, "2010_3": set()}
    assert all((s.labels == -1).sum() == 10 - len(present[n]) - len(ignored[n]) for n, s in found.items())


def test_boxes_are_those_of_people_who_do_the_action(devkit: Path) -> None:
    found = {s.name: s for s in read_action(devkit).split("train")}
    second = found["2010_2"]
    assert second.boxes is not None and second.box_classes is not None and second.box_difficult is not None
    rows = zip(second.box_classes, second.boxes.tolist(), second.box_difficult, strict=True)
    assert {(ACTION_CLASSES[c], *box, bool(d)) for c, box, d in rows} == {
        ("ridinghorse", 30, 31, 33, 34, False),  # object 3: 31 32 33 34 counted from 1
        ("running", 10, 11, 13, 14, True),
    }
    assert found["2010_1"].boxes is not None and len(found["2010_1"].boxes) == 4
    assert found["2010_3"].boxes is not None and found["2010_3"].boxes.shape == (0, 4)
    (devkit / "Annotations" / "2010_2.xml").unlink()
    assert {s.name: s for s in read_action(devkit).split("train")}["2010_2"].boxes is None


def test_a_devkit_with_both_lists_is_read_for_objects(devkit: Path, tmp_path: Path) -> None:
    assert open_dataset(tmp_path).format == "voc-action", "a devkit of actions alone"
    (devkit / "ImageSets" / "Main").mkdir()
    (devkit / "ImageSets" / "Main" / "train.txt").write_text("2010_2\n")
    assert open_dataset(tmp_path).format == "voc"
    data = open_dataset(tmp_path, format="voc-action", year=2012)
    assert data.classes == ACTION_CLASSES
    assert find_devkits(tmp_path, "Action") and not find_devkits(devkit / "JPEGImages", "Action")


def test_a_small_data_set_equals_voc(tmp_path: Path) -> None:
    # The same images as write_shapes: an image has the action of each of its easy shapes.
    data = open_dataset(write_action(tmp_path / "actions", train=12, val=4, size=(48, 64)))
    voc = read_voc(write_shapes(tmp_path / "voc", train=12, val=4, size=(48, 64)))
    assert (data.format, data.classes, data.splits) == ("voc-action", SHAPE_CLASSES, ("train", "val", "trainval"))
    assert [s.name for s in data.split("val")] == [s.name for s in voc.split("val")]
    expected = label_matrix(voc.split("trainval"))
    assert np.array_equal(label_matrix(data.split("trainval")) == 1, expected == 1)
    for ours, theirs in zip(data.split("trainval"), voc.split("trainval"), strict=True):
        assert ours.boxes is not None and theirs.boxes is not None and theirs.box_difficult is not None
        assert {tuple(b) for b in ours.boxes} == {tuple(b) for b in theirs.boxes[~theirs.box_difficult]}


LISTS = "ImageSets/Action"
HORSE = f"<object><name>horse</name>{BOX.format(2)}</object>"


def rewrite(name: str, change: Callable[[str], str]) -> Callable[[Path], object]:
    def damage(devkit: Path) -> None:
        path = devkit / (name if "/" in name else f"{LISTS}/{name}_train.txt")
        path.write_text(change(path.read_text()))

    return damage


DAMAGE: list[tuple[Callable[[Path], object], str, str]] = [
    (rewrite("running", lambda text: text[:-3]), "running_train.txt, line 5: '2010_3 1'", "cut"),
    (
        rewrite("running", lambda text: text + text.splitlines()[0].rsplit(None, 1)[0] + " 0\n"),
        "has two different labels",
        "one line per person",
    ),
    (
        rewrite("running", lambda text: "".join(text.splitlines(True)[:-1])),
        "Person 1 of image 2010_3 .*jumping_train.txt and running_train.txt",
        "restore",
    ),
    (
        rewrite("running", lambda text: text + "2010_3 2 -1\n"),
        "Person 2 of image 2010_3 .*jumping_train.txt and running_train.txt",
        "restore",
    ),
    (lambda d: (d / LISTS / "walking_train.txt").unlink(), "walking_train.txt", "Restore the list"),
    (
        rewrite("jumping", lambda text: text.replace("2010_1 1", "2010_1 0")),
        "jumping_train.txt, line 1: '2010_1 0 -1'",
        "cut",
    ),
    (
        rewrite("jumping", lambda text: text.replace("2010_1 2", "2010_1 1")),
        "jumping_train.txt, line 2: '2010_1 1 -1' appears already in line 1",
        "Remove one",
    ),
    (
        lambda d: (d / "JPEGImages" / "2010_2.jpg").unlink(),
        "jumping_train.txt, line 3: image '2010_2' is not in .*JPEGImages",
        "Restore the image",
    ),
    (
        rewrite("Annotations/2010_2.xml", lambda text: text.replace(HORSE, "")),
        "2010_2.xml has 2 objects; .*number 3",
        "cut",
    ),
]


@pytest.mark.parametrize(("damage", "message", "remedy"), DAMAGE)
def test_damage_is_named(devkit: Path, damage: Callable[[Path], object], message: str, remedy: str) -> None:
    damage(devkit)
    with pytest.raises(DataError) as caught:
        read_action(devkit).split("train")
    assert re.search(message, caught.value.message)
    assert remedy in caught.value.hint
    assert "\n" not in caught.value.message


def test_no_lists(devkit: Path) -> None:
    for path in (devkit / LISTS).glob("*_*.txt"):
        path.unlink()
    with pytest.raises(DataError, match="no list of an action"):
        read_action(devkit)
    with pytest.raises(DataError, match="no ImageSets/Action"):
        read_action(devkit / "JPEGImages")
