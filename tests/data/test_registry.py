"""open_dataset: recognition of layouts, packaged names, options and errors."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from wildcat.data import FORMATS, open_dataset, write_shapes
from wildcat.data.labels import parse_names
from wildcat.data.readers.scene15 import SCENE_CLASSES
from wildcat.data.registry import describe_tree, list_datasets
from wildcat.errors import ConfigError, DataError


def fill(root: Path, *files: str) -> Path:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_each_layout_is_recognised(tmp_path: Path) -> None:
    voc = write_shapes(tmp_path / "v" / "VOCdevkit" / "VOC2012", train=2, val=1, size=(32, 32))
    assert open_dataset(voc.parent.parent).format == "voc"
    assert open_dataset(str(voc)).format == "voc"
    folder = fill(tmp_path / "f", "a/1.jpg", "b/1.jpg")
    assert open_dataset(folder).format == "folder"
    table = fill(tmp_path / "t", "1.jpg") / "tags.csv"
    table.write_text("image,labels\n1.jpg,x\n")
    assert open_dataset(table).format == "csv"
    assert open_dataset(table.parent).root == table
    scenes = fill(tmp_path / "s", *(f"{name}/{i}.jpg" for name in SCENE_CLASSES for i in range(101)))
    assert open_dataset(scenes).format == "scenes"
    assert open_dataset(scenes, format="folder").format == "folder"


def test_real_data(real_data: Path) -> None:
    assert open_dataset(real_data / "VOCdevkit").name == "VOC2012"
    assert open_dataset(real_data / "15-Scene").format == "scenes"


def test_packaged_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(fill(tmp_path, "shapes/a/1.jpg", "shapes/b/1.jpg"))
    monkeypatch.setenv("WILDCAT_CACHE", str(tmp_path / "cache"))
    write_shapes(tmp_path / "cache" / "shapes-v1", train=2, val=1, size=(32, 32))
    assert open_dataset("shapes").format == "shapes"
    assert open_dataset("./shapes").format == "folder"
    assert open_dataset(Path("shapes")).format == "folder"


@pytest.mark.skipif(importlib.util.find_spec("elpv_dataset") is None, reason="elpv-dataset is not installed")
def test_options_reach_the_reader() -> None:
    every = sum(len(open_dataset("solar").split(part)) for part in ("train", "test"))
    mono = sum(len(open_dataset("solar", cells="mono").split(part)) for part in ("train", "test"))
    assert (every, mono) == (2624, 588 + 117 + 56 + 313)


def test_unknown_options_and_formats(tmp_path: Path) -> None:
    root = fill(tmp_path, "a/1.jpg", "b/1.jpg")
    with pytest.raises(ConfigError, match="'folder' has no option --separator") as caught:
        open_dataset(root, separator="|")
    assert "It has --classes." in caught.value.hint
    with pytest.raises(ConfigError, match="'csv' has no option --data-option seperator=VALUE") as caught:
        open_dataset(root, format="csv", seperator="|")
    assert "did you mean separator?" in caught.value.hint
    with pytest.raises(ConfigError, match="'solar' has no option --data-option root=VALUE"):
        open_dataset("solar", root=root)
    with pytest.raises(ConfigError, match="--data-option threshold=high: give a number"):
        open_dataset("solar", threshold="high")
    with pytest.raises(ConfigError, match="unknown data format 'flder'") as caught:
        open_dataset(root, format="flder")
    assert caught.value.hint == "did you mean folder?"
    with pytest.raises(ConfigError, match="'shapes' is a packaged data set"):
        open_dataset(root, format="shapes")


def test_a_missing_path(tmp_path: Path) -> None:
    fill(tmp_path, "photos/cats/1.jpg")
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path / "photso" / "cats")
    assert caught.value.message == f"{tmp_path / 'photso' / 'cats'} does not exist."
    assert caught.value.hint == f"In {tmp_path}: did you mean photos?"
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path / "photos" / "xyz")
    assert f"{tmp_path / 'photos'} has nothing called 'xyz'" in caught.value.hint
    with pytest.raises(DataError, match="is empty"):
        open_dataset("")
    with pytest.raises(DataError, match="shpaes does not exist") as caught:
        open_dataset("shpaes")
    assert "did you mean shapes?" in caught.value.hint.lower()


def test_no_known_layout(tmp_path: Path) -> None:
    fill(tmp_path, *(f"IMG_{i}.jpg" for i in range(30)), "notes/a.txt", ".git/x.jpg")
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path)
    assert str(tmp_path) in caught.value.message
    assert "notes/" in caught.value.message
    assert "a.txt" in caught.value.message
    assert "(31 entries, 30 of them images)" in caught.value.message
    assert ".git" not in caught.value.message
    for name, entry in FORMATS.items():
        assert name in caught.value.hint
        assert entry.tree in caught.value.hint
    with pytest.raises(DataError, match="file of an unknown format"):
        open_dataset(tmp_path / "IMG_0.jpg")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match=r"\(nothing\)"):
        open_dataset(tmp_path / "nothing")


def test_tree_by_hand(tmp_path: Path) -> None:
    fill(tmp_path, "b/1.txt", "a/x/2.txt", "a/y.txt", "z.txt")
    assert describe_tree(tmp_path) == "\n".join(["  a/", "    x/", "    y.txt", "  b/", "    1.txt", "  z.txt"])


def test_a_forced_format_raises_its_own_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no VOC devkit"):
        open_dataset(fill(tmp_path, "a/1.jpg", "b/2.jpg"), format="voc")


def test_a_format_can_be_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = FORMATS["folder"]
    monkeypatch.setitem(FORMATS, "mine", type(entry)(lambda path: path.suffix == ".mine", entry.read, "mine", "x.mine"))
    root = fill(tmp_path / "x.mine", "a/1.jpg", "b/2.jpg")
    assert open_dataset(root, format="mine").classes == ("a", "b")


def test_list_datasets() -> None:
    rows = list_datasets()
    assert {"solar", "shapes", "VOC2007", "VOC2012", "15-Scene"} <= {row.name for row in rows}
    assert {row.format for row in rows} >= {"folder", "csv"}
    assert all(row.description and row.where for row in rows)


def test_names_are_composed_and_similar_ones_noted(tmp_path: Path) -> None:
    data = open_dataset(
        fill(tmp_path, *(f"{n}/{i}.jpg" for n in ("cafe\u0301", "Cat", "cat", "caf\u00e9") for i in "12"))
    )
    assert sorted(data.classes) == ["Cat", "caf\u00e9", "cat"]
    assert [s.labels.argmax() for s in data.split("all") if "caf" in s.name] == [data.classes.index("caf\u00e9")] * 4
    assert any("Unicode form alone" in note for note in data.notes)
    assert any("'Cat', 'cat' differ in case" in note for note in data.notes)


def test_classes_are_chosen_in_every_format(tmp_path: Path) -> None:
    root = fill(tmp_path / "a", *(f"{name}/{i}.jpg" for name in "xyz" for i in "123"))
    data = open_dataset(root, classes=["z", "x"])
    assert (data.classes, len(data.split("all"))) == (("z", "x"), 6), "in this order; images of y are left out"
    assert {s.name[0]: int(s.labels.argmax()) for s in data.split("all")} == {"x": 1, "z": 0}
    assert any("ignored" in note for note in data.notes)
    with pytest.raises(DataError, match=r"--classes.*no folder .w."):
        open_dataset(root, classes=["w", "x"])
    with pytest.raises(ConfigError, match=r"--classes gone.txt: there is no such file"):
        parse_names("gone.txt")
    voc = open_dataset(write_shapes(tmp_path / "voc", train=4, val=2, size=(32, 32)))
    chosen = open_dataset(voc.root, classes=["ring", "disc"])
    assert (chosen.format, chosen.splits, chosen.classes) == ("voc", voc.splits, ("ring", "disc"))
    positions = [voc.classes.index(name) for name in chosen.classes]
    for sample, whole in zip(chosen.split("val"), voc.split("val"), strict=True):
        assert sample.labels.tolist() == whole.labels[positions].tolist()
        assert sample.boxes is not None and whole.box_classes is not None
        assert len(sample.boxes) == np.isin(whole.box_classes, positions).sum()
        mask, true = sample.read_mask(), whole.read_mask()
        assert mask is not None and np.array_equal(mask == 1, true == positions[0] + 1)
        assert set(np.unique(mask)) <= {0, 1, 2, 255}
