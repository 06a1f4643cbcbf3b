"""MIT67: the authors' lists, and damage to them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from wildcat.data.dataset import label_matrix
from wildcat.data.readers.mit67 import read_indoor
from wildcat.data.registry import open_dataset
from wildcat.errors import DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("bakery/x.jpg", "bakery/y.jpg", "bar/x.jpg", "bar/z.jpg", "bar/unused.jpg"):
        (tmp_path / "Images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "Images" / name).touch()
    (tmp_path / "TrainImages.txt").write_text("bar/z.jpg\nbakery/x.jpg\r\n")
    (tmp_path / "TestImages.txt").write_text("bakery/y.jpg\nbar/x.jpg")
    return tmp_path


def test_lists_by_hand(root: Path) -> None:
    data = open_dataset(root)
    assert (data.name, data.format, data.task, data.classes) == ("MIT67", "indoor", "multiclass", ("bakery", "bar"))
    assert data.splits == ("train", "test")
    assert [s.name for s in data.split("train")] == ["bar/z.jpg", "bakery/x.jpg"]
    assert label_matrix(data.split("train")).tolist() == [[-1, 1], [1, -1]]
    assert [s.path for s in data.split("test")] == [root / "Images/bakery/y.jpg", root / "Images/bar/x.jpg"]
    assert "2 classes, 2 images to train and 2 to test (67, 5360 and 1340" in data.notes[0]


def test_the_whole_is_read_without_a_note(tmp_path: Path) -> None:
    (tmp_path / "hundred").mkdir()
    (tmp_path / "Images").mkdir()
    for number in range(100):
        (tmp_path / "hundred" / f"{number}.jpg").touch()
    rooms = [f"room{index:02d}" for index in range(67)]
    for room in rooms:
        (tmp_path / "Images" / room).symlink_to(tmp_path / "hundred")
    for name, numbers in (("TrainImages.txt", range(80)), ("TestImages.txt", range(80, 100))):
        (tmp_path / name).write_text("\n".join(f"{room}/{number}.jpg" for room in rooms for number in numbers))
    data = open_dataset(tmp_path)
    assert data.notes == ()
    train, test = label_matrix(data.split("train")), label_matrix(data.split("test"))
    assert (train == 1).sum(axis=0).tolist() == [80] * 67
    assert (test == 1).sum(axis=0).tolist() == [20] * 67


DAMAGE: list[tuple[str, Callable[[Path], object], str, str]] = [
    ("image absent", lambda r: (r / "Images/bar/z.jpg").unlink(), r"TrainImages.txt, line 1.*'bar/z.jpg'", "Restore"),
    ("list cut", lambda r: (r / "TestImages.txt").write_text("bakery/y"), r"TestImages.txt, line 1.*'bakery/y'", "cut"),
    (
        "image twice",
        lambda r: (r / "TrainImages.txt").write_text("bar/z.jpg\nbakery/x.jpg\nbar/z.jpg\n"),
        r"TrainImages.txt, line 3: 'bar/z.jpg' appears already in line 1",
        "Remove one",
    ),
    (
        "image in both",
        lambda r: (r / "TestImages.txt").write_text("bar/z.jpg\n"),
        r"'bar/z.jpg' is in TrainImages.txt and in TestImages.txt",
        "must not be trained on",
    ),
    ("class untrained", lambda r: (r / "TrainImages.txt").write_text("bar/z.jpg\n"), r"Class 'bakery'", "Restore"),
    (
        "list gone",
        lambda r: (r / "TestImages.txt").unlink(),
        r"lacks one of .*TestImages.txt",
        "beside both lists",
    ),
    ("images gone", lambda r: shutil.rmtree(r / "Images"), r"lacks one of Images, ", "indoorCVPR_09.tar"),
    (
        "outside",
        lambda r: (r / "TestImages.txt").write_text("../TrainImages.txt\n"),
        r"TestImages.txt, line 1: image .* is not in",
        "Restore",
    ),
]


@pytest.mark.parametrize(("damage", "said", "remedy"), [d[1:] for d in DAMAGE], ids=[d[0] for d in DAMAGE])
def test_damage_is_named(root: Path, damage: Callable[[Path], object], said: str, remedy: str) -> None:
    damage(root)
    with pytest.raises(DataError, match=said) as caught:
        read_indoor(root)
    assert remedy in caught.value.hint
    assert "\n" not in caught.value.message
