"""YOLO labels: layouts, class names, splits and mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from wildcat.data.dataset import DataSet, label_matrix
from wildcat.data.registry import open_dataset
from wildcat.errors import DataError

YAML = "train: ../train/images\nval: ../valid/images\nnc: 2\nnames: [cat, dog]\n"
LINES = ["0 0.5 0.5 0.3 0.3\n", "1 .1 .1 .2 .1 .2 .2\n", "", "0 .5 .5 .1 .1\n1 .5 .5 .1 .1 0.9\n"]
LABELS = [[1, -1], [-1, 1], [-1, -1], [1, 1], [-1, -1]]


def lay(root: Path, image: str, text: str, names: dict[str, str]) -> Path:
    """Five images, the last without a label file: a cat, a dog (outline), nothing, both with a score, nothing."""
    for i in range(5):
        for pattern, content in ((image, ""), (text, LINES[i] if i < 4 else None)):
            path = root / pattern.format(f"a.{i}")
            path.parent.mkdir(parents=True, exist_ok=True)
            if content is not None:
                path.write_text(content)
    for name, content in names.items():
        (root / name).write_text(content)
    return root


def check(data: DataSet, split: str) -> None:
    assert (data.format, data.task, data.classes) == ("yolo", "multilabel", ("cat", "dog"))
    assert label_matrix(data.split(split)).tolist() == LABELS
    assert all(isinstance(s.path, Path) and s.path.is_file() for s in data.split(split))


@pytest.mark.parametrize(
    ("image", "text", "names"),
    [
        ("images/{}.jpg", "labels/{}.txt", {"data.yaml": "names: {0: cat, 1: dog}"}),
        ("images/{}.jpg", "labels/{}.txt", {"classes.txt": "cat\ndog\n", "notes.json": "{}"}),
        ("{}.jpg", "{}.txt", {"classes.txt": "cat\ndog"}),
        ("data/{}.jpg", "data/{}.txt", {"obj.names": "cat\ndog", "images.txt": "data/a.0.jpg"}),
        ("zip/images/{}.jpg", "zip/labels/{}.txt", {"zip/data.yaml": YAML}),
    ],
)
def test_layouts_without_splits(tmp_path: Path, image: str, text: str, names: dict[str, str]) -> None:
    data = open_dataset(lay(tmp_path, image, text, names))
    assert data.splits == ("train", "val", "all")
    check(data, "all")
    assert any("1 images without a label file" in note for note in data.notes)


@pytest.mark.parametrize(
    "pattern", ["{split}/{kind}/{{}}", "{kind}/{split}/{{}}", "my_{split}/{kind}/{{}}", "{kind}/{split}2017/{{}}"]
)
def test_split_folders(tmp_path: Path, pattern: str) -> None:
    for split in ("train", "valid"):
        image, text = (pattern.format(split=split, kind=kind) for kind in ("images", "labels"))
        lay(tmp_path, f"{image}.jpg", f"{text}.txt", {"data.yaml": YAML})
    data = open_dataset(tmp_path)
    assert data.splits == ("train", "val")
    check(data, "train")
    check(data, "val")


def test_an_image_has_no_labels_of_another_of_its_name(tmp_path: Path) -> None:
    for folder in ("v1", "v2"):
        (tmp_path / "images" / "train" / folder).mkdir(parents=True)
        (tmp_path / "images" / "train" / folder / "1.jpg").touch()
    (tmp_path / "labels" / "train" / "v1").mkdir(parents=True)
    (tmp_path / "labels" / "train" / "v1" / "1.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (tmp_path / "data.yaml").write_text(YAML)
    samples = open_dataset(tmp_path).split("train")
    assert {s.name: s.labels.tolist() for s in samples} == {
        "images/train/v1/1.jpg": [1, -1],
        "images/train/v2/1.jpg": [-1, -1],
    }


def test_splits_that_only_the_yaml_names(tmp_path: Path) -> None:
    for part in ("a", "b"):
        lay(tmp_path, f"images/{part}/{{}}.jpg", f"labels/{part}/{{}}.txt", {})
    (tmp_path / "data.yaml").write_text("path: .\ntrain: images/a\nval: images/b\nnames: [cat, dog]")
    data = open_dataset(tmp_path)
    assert data.splits == ("train", "val")
    check(data, "train")
    assert all(s.name.startswith("images/b/") for s in data.split("val"))


def test_without_names_classes_are_called_by_their_numbers(tmp_path: Path) -> None:
    lay(tmp_path, "images/{}.jpg", "labels/{}.txt", {})
    (tmp_path / "labels" / "a.1.txt").write_text("7 .5 .5 .1 .1")
    data = open_dataset(tmp_path)
    assert data.classes == ("0", "1", "7"), "class numbers that do not occur are no classes"
    assert any("called by their numbers" in note for note in data.notes)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("labels/a.1.txt", "9 .5 .5 .1 .1", r"a.1.txt: class 9 has no name; the classes are {0: 'cat', 1: 'dog'}"),
        ("labels/a.1.txt", "0 .5 .5 .1 .1\ncat .5 .5", r"a.1.txt, line 2: 'cat .5 .5' is not a class number and a box"),
        ("data.yaml", "names: 2", r"data.yaml: names is '2'"),
        ("data.yaml", "names: [cat", r"data.yaml is not valid YAML"),
    ],
)
def test_mistakes(tmp_path: Path, name: str, content: str, said: str) -> None:
    lay(tmp_path, "images/{}.jpg", "labels/{}.txt", {"data.yaml": YAML})
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=said) as caught:
        open_dataset(tmp_path)
    assert caught.value.hint


def test_label_files_of_other_images(tmp_path: Path) -> None:
    lay(tmp_path, "images/x{}.jpg", "labels/{}.txt", {"data.yaml": YAML})
    with pytest.raises(DataError, match="none of its 5 images has a label file"):
        open_dataset(tmp_path)


def test_many_images_without_objects_come_first(tmp_path: Path) -> None:
    lay(tmp_path, "images/{}.jpg", "labels/{}.txt", {"classes.txt": "cat\ndog\n"})
    for i in range(30):
        (tmp_path / "images" / f"0{i}.jpg").touch()
        (tmp_path / "labels" / f"0{i}.txt").touch()
    data = open_dataset(tmp_path)
    assert (data.format, len(data.split("all"))) == ("yolo", 35)
