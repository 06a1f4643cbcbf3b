"""COCO annotations: against a table worked by hand, the VOC reader on the same images, and damaged files."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.miniatures import write_coco
from wildcat.data.dataset import DataSet, Sample, label_matrix
from wildcat.data.readers.coco import read_coco, recognise_coco
from wildcat.data.readers.synthetic import SHAPE_CLASSES, write_shapes
from wildcat.data.readers.voc import read_voc
from wildcat.data.registry import open_dataset
from wildcat.errors import ConfigError, DataError

# Ids with gaps and out of order, names out of alphabetical order: classes are in the order of the JSON.
BY_HAND: dict[str, Any] = {
    "categories": [{"id": 7, "name": "dog"}, {"id": 2, "name": "cat"}, {"id": 90, "name": "bus"}],
    "images": [
        {"id": 30, "file_name": "c.jpg"},
        {"id": 10, "file_name": "a.jpg"},
        {"id": 20, "file_name": "b.jpg"},
    ],
    "annotations": [
        {"id": 1, "image_id": 10, "category_id": 2, "bbox": [1, 2, 3, 4], "iscrowd": 0, "segmentation": [[1, 2, 3]]},
        {
            "id": 2,
            "image_id": 30,
            "category_id": 90,
            "bbox": [0, 0, 9, 9],
            "iscrowd": 1,
            "segmentation": {"counts": []},
        },
        {"id": 3, "image_id": 10, "category_id": 7, "bbox": [5.5, 6, 2, 0], "iscrowd": 1},
        {"id": 4, "image_id": 10, "category_id": 7, "bbox": [8, 8, 1, 1.5], "iscrowd": 0},
    ],
}


def lay(root: Path, content: object = BY_HAND, table: str = "annotations.json", images: str = "images") -> Path:
    """Write a JSON and empty images a.jpg, b.jpg, c.jpg; return the JSON."""
    (root / images).mkdir(parents=True, exist_ok=True)
    for name in "abc":
        (root / images / f"{name}.jpg").touch()
    (root / table).parent.mkdir(parents=True, exist_ok=True)
    (root / table).write_text(json.dumps(content))
    return root / table


def by_name(data: DataSet, split: str) -> dict[str, Sample]:
    return {s.name: s for s in data.split(split)}


def test_labels_and_boxes_by_hand(tmp_path: Path) -> None:
    lay(tmp_path)
    data = read_coco(tmp_path)
    assert (data.format, data.task, data.classes) == ("coco", "multilabel", ("dog", "cat", "bus"))
    found = by_name(data, "all")
    assert list(found) == ["c.jpg", "a.jpg", "b.jpg"]
    #                                     dog cat bus
    assert found["a.jpg"].labels.tolist() == [1, 1, -1], "a crowd beside a single dog does not hide it"
    assert found["b.jpg"].labels.tolist() == [-1, -1, -1]
    assert found["c.jpg"].labels.tolist() == [-1, -1, 0], "a class of crowds only is ignored"
    a, b, c = (found[f"{name}.jpg"] for name in "abc")
    assert a.boxes is not None and a.box_classes is not None and a.box_difficult is not None
    assert a.boxes.tolist() == [[1, 2, 4, 6], [5.5, 6, 7.5, 6], [8, 8, 9, 9.5]]
    assert a.box_classes.tolist() == [1, 0, 0]
    assert a.box_difficult.tolist() == [False, True, False]
    assert b.boxes is not None and b.boxes.shape == (0, 4)
    assert c.box_difficult is not None and c.box_difficult.tolist() == [True]
    assert a.path == tmp_path / "images" / "a.jpg"
    assert a.mask is None


def test_same_images_as_voc_read_alike(tmp_path: Path) -> None:
    # Both writers draw the same images: two independent writers and readers must agree.
    coco = read_coco(write_coco(tmp_path / "coco", train=30, val=5, size=(48, 64), year=2014))
    voc = read_voc(write_shapes(tmp_path / "voc", train=30, val=5, size=(48, 64)))
    assert coco.classes == voc.classes == SHAPE_CLASSES
    assert coco.splits == ("train", "val")
    labels = label_matrix(coco.split("train"))
    assert {-1, 0, 1} == set(np.unique(labels)), "crowds must occur"
    for split in coco.splits:
        assert np.array_equal(label_matrix(coco.split(split)), label_matrix(voc.split(split)))
        for ours, theirs in zip(coco.split(split), voc.split(split), strict=True):
            assert int(Path(ours.name).stem) == int(theirs.name)
            assert ours.path.read_bytes() == theirs.path.read_bytes()
            assert described(ours) == described(theirs)


def described(sample: Sample) -> set[tuple[float, ...]]:
    assert sample.boxes is not None and sample.box_classes is not None and sample.box_difficult is not None
    rows = zip(sample.boxes.tolist(), sample.box_classes.tolist(), sample.box_difficult.tolist(), strict=True)
    return {(*box, index, difficult) for box, index, difficult in rows}


def test_years(tmp_path: Path) -> None:
    for year, train in ((2014, 3), (2017, 4)):
        shutil.copytree(
            write_coco(tmp_path / str(year), train=train, val=2, size=(32, 32), year=year),
            tmp_path / "coco",
            dirs_exist_ok=True,
        )
    with pytest.raises(DataError, match="MS COCO of 2014 and 2017") as caught:
        open_dataset(tmp_path / "coco")
    assert "--data-option year=2017" in caught.value.hint
    assert len(open_dataset(tmp_path / "coco", year=2014).split("train")) == 3
    data = open_dataset(tmp_path / "coco", year=2017)
    assert (data.name, len(data.split("train")), len(data.split("val"))) == ("COCO2017", 4, 2)
    with pytest.raises(DataError, match="MS COCO of 2014 and 2017, not of 2015"):
        read_coco(tmp_path / "coco", year=2015)
    with pytest.raises(ConfigError, match="year=2014"):
        read_coco(lay(tmp_path / "mine"), year=2014)


def test_images_in_a_folder_of_images(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "coco", train=2, val=1, size=(32, 32), year=2017)
    (root / "images").mkdir()
    for split in ("train2017", "val2017"):
        (root / split).rename(root / "images" / split)
    assert all(s.path.is_file() for s in open_dataset(root).split("train"))


def test_one_file_of_a_user(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "photos", train=20, val=10, size=(32, 40), year=None)
    for source in (root, root / "annotations.json"):
        data = open_dataset(source)
        assert (data.format, data.splits) == ("coco", ("train", "val", "all"))
        train, val = data.split("train"), data.split("val")
        assert sorted(s.name for s in (*train, *val)) == [s.name for s in data.split("all")]
        assert 3 <= len(val) <= 9
    lay(tmp_path / "beside", images=".")
    assert open_dataset(tmp_path / "beside").split("all")[0].path == tmp_path / "beside" / "c.jpg"
    table = lay(tmp_path / "above", table="annotations/mine.json")
    for source in (table, tmp_path / "above"):
        assert open_dataset(source).split("all")[0].path == tmp_path / "above" / "images" / "c.jpg"


def test_splits_of_a_user(tmp_path: Path) -> None:
    lay(tmp_path / "named", table="val.json")
    lay(tmp_path / "named", table="train.json")
    assert open_dataset(tmp_path / "named").splits == ("train", "val")
    lay(tmp_path / "own", table="annotations/train.json", images="images/train")
    lay(tmp_path / "own", table="annotations/valid.json", images="images/valid")
    data = open_dataset(tmp_path / "own")
    assert data.split("val")[0].path == tmp_path / "own" / "images" / "valid" / "c.jpg"
    assert [[s.name for s in part] for part in data.training_split("train", "val")] == [
        [f"images/{split}/{name}.jpg" for name in "cab"] for split in ("train", "valid")
    ], "splits may number their images alike"
    for part in ("train", "valid", "test"):
        lay(tmp_path / "exported" / part, table="_annotations.coco.json", images=".")
    data = open_dataset(tmp_path / "exported")
    assert data.splits == ("train", "val", "test")
    assert data.split("test")[1].path == tmp_path / "exported" / "test" / "a.jpg"
    lay(tmp_path / "many", table="one.json")
    lay(tmp_path / "many", table="two.json")
    with pytest.raises(DataError, match=r"2 COCO files: one\.json, two\.json"):
        open_dataset(tmp_path / "many")


def test_splits_list_their_categories_in_another_order(tmp_path: Path) -> None:
    lay(tmp_path, table="train.json")
    other = copy.deepcopy(BY_HAND)
    other["categories"].reverse()
    other["categories"].append({"id": 5, "name": "emu"})
    lay(tmp_path, other, table="val.json")
    data = open_dataset(tmp_path)
    assert data.classes == ("dog", "cat", "bus", "emu")
    assert np.array_equal(label_matrix(data.split("train")), label_matrix(data.split("val")))
    for one, two in zip(data.split("train"), data.split("val"), strict=True):
        assert described(one) == described(two)


def test_categories_that_group_others(tmp_path: Path) -> None:
    content = copy.deepcopy(BY_HAND)
    content["categories"] = [
        {"id": 0, "name": "animals", "supercategory": "none"},
        {"id": 1, "name": "_background_", "supercategory": ""},
        {"id": 7, "name": "dog", "supercategory": "animals"},
        {"id": 2, "name": "cat", "supercategory": "animals"},
        {"id": 90, "name": "bus", "supercategory": "bus"},
    ]
    data = read_coco(lay(tmp_path / "a", content))
    assert data.classes == ("dog", "cat", "bus"), "bus is used, in crowds"
    assert np.array_equal(label_matrix(data.split("all")), label_matrix(read_coco(lay(tmp_path / "b")).split("all")))
    assert any("left out: 'animals', '_background_'" in note for note in data.notes)
    content["annotations"].append({"id": 9, "image_id": 20, "category_id": 0, "bbox": [0, 0, 2, 2]})
    assert read_coco(lay(tmp_path / "c", content)).classes == ("animals", "dog", "cat", "bus"), "it has an annotation"


def test_categories_of_one_name_are_one_class(tmp_path: Path) -> None:
    content = copy.deepcopy(BY_HAND)
    content["categories"] = [
        {"id": 0, "name": "defect", "supercategory": "none"},
        *({"id": i, "name": name, "supercategory": "defect"} for i, name in ((7, "defect"), (2, "cat"), (90, "bus"))),
    ]
    data = read_coco(lay(tmp_path, content))
    assert data.classes == ("defect", "cat", "bus")
    assert by_name(data, "all")["a.jpg"].labels.tolist() == [1, 1, -1]
    assert any("called 'defect': they are one class" in note for note in data.notes)


def test_annotations_without_boxes(tmp_path: Path) -> None:
    content = copy.deepcopy(BY_HAND)
    for row in content["annotations"]:
        del row["bbox"]
    found = by_name(read_coco(lay(tmp_path, content)), "all")
    assert found["a.jpg"].boxes is None
    assert found["a.jpg"].labels.tolist() == [1, 1, -1]


def test_other_folders_are_not_recognised(tmp_path: Path) -> None:
    assert not recognise_coco(tmp_path)
    for index in range(9):
        (tmp_path / f"{index}.json").write_text('{"shapes": [], "imagePath": "0.jpg"}')
    assert not recognise_coco(tmp_path)
    (tmp_path / "x" / "a").mkdir(parents=True)
    (tmp_path / "x" / "config.json").write_text('{"categories": 3, "lr": 0.1}')
    (tmp_path / "x" / "empty.json").touch()
    assert not recognise_coco(tmp_path / "x")
    with pytest.raises(DataError, match="holds no COCO annotations") as caught:
        read_coco(tmp_path / "x")
    assert "beside images/" in caught.value.hint


def put(table: str, row: int, **values: object) -> Callable[[Path], object]:
    """Change values of a row; None removes a value."""

    def damage(path: Path) -> None:
        content = copy.deepcopy(BY_HAND)
        content[table][row] |= values
        content[table][row] = {key: value for key, value in content[table][row].items() if value is not None}
        path.write_text(json.dumps(content))

    return damage


def replaced(**tables: object) -> Callable[[Path], object]:
    return lambda path: path.write_text(json.dumps(BY_HAND | tables))


DAMAGE: list[tuple[Callable[[Path], object], str, str]] = [
    (lambda p: p.write_text(p.read_text()[: p.stat().st_size // 2]), "json .* is cut or no JSON: .*char", "Restore it"),
    (lambda p: p.write_bytes(b"\xff\x00"), "annotations.json .* is cut or no JSON", "Restore it"),
    (lambda p: p.write_text("[]"), "it holds no keys, not lists of images, annotations, categories", "instances"),
    (replaced(categories=None), "it holds categories, images, annotations", "instances"),
    (replaced(categories=[]), "has no category", "Export"),
    (replaced(images=[], annotations=[]), "or no image", "Export"),
    (put("annotations", 1, category_id=None), "annotation 2 of 4 has .*category_id None", "not of captions"),
    (put("annotations", 2, category_id=3), "annotation 3 of 4 has .*category_id 3, .*the 3 of categories", "remove"),
    (put("annotations", 0, image_id=99), "annotation 1 of 4 has image_id 99 .*of the 3 of images", "remove"),
    (put("annotations", 0, image_id=[1]), r"annotation 1 of 4 has image_id \[1\]", "remove"),
    (put("images", 0, id=10), "image with id 10 and file_name 'a.jpg' .*that of another", "each once"),
    (put("images", 0, file_name="a.jpg"), "image with id 10 and file_name 'a.jpg' .*that of another", "each once"),
    (put("categories", 0, id=2), "category with id 2 and name 'cat' .*that of another", "each once"),
    (put("images", 0, id=[1]), r"image with id \[1\]", "an id is a number or text"),
    (put("images", 0, file_name=None), "image with id 30 and file_name None lacks one", "Export"),
    (put("annotations", 3, bbox=[1, 2, 3]), r"annotation 4 of 4 has the box \[1, 2, 3\]", "[x, y, width, height]"),
    (put("annotations", 3, bbox=[1, 2, 3, "4x"]), "annotation 4 of 4 has the box .*'4x'", "[x, y, width, height]"),
    (put("annotations", 1, bbox=[1, 2, -3, 4]), "annotation 2 of 4 has the box .*-3", "[x, y, width, height]"),
    (put("annotations", 1, bbox=None), "annotation 2 of 4 has the box None", "leave bbox out of all"),
    (lambda p: (p.parent / "images" / "b.jpg").unlink(), "1 of 3 images .*images; .*'b.jpg'", "Restore the images"),
    (put("images", 0, file_name="../annotations.json"), "1 of 3 images .*'../annotations.json'", "remove them"),
]


@pytest.mark.parametrize(("damage", "message", "remedy"), DAMAGE)
def test_damage_is_named(tmp_path: Path, damage: Callable[[Path], object], message: str, remedy: str) -> None:
    table = lay(tmp_path)
    damage(table)
    with pytest.raises(DataError) as caught:
        read_coco(table).split("all")
    assert re.search(message, caught.value.message)
    assert str(tmp_path) in caught.value.message
    assert remedy in caught.value.hint
    assert "\n" not in caught.value.message


def test_a_missing_image_among_many_is_found_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is listed a few times, not once for each image."""
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 8, "height": 8} for i in range(60)]
    table = lay(tmp_path, {**BY_HAND, "images": images, "annotations": []})
    for i in range(1, 60):
        (tmp_path / "images" / f"{i}.jpg").touch()
    listed, list_folder = [], Path.iterdir

    def count(folder: Path) -> Iterator[Path]:
        listed.append(folder)
        return list_folder(folder)

    monkeypatch.setattr(Path, "iterdir", count)
    with pytest.raises(DataError, match=r"1 of 60 images .*'0\.jpg'"):
        read_coco(table).split("all")
    assert len(listed) < 10


def test_no_image_folder(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "coco", train=2, val=1, size=(32, 32), year=2014)
    shutil.rmtree(root / "train2014")
    data = open_dataset(root)
    assert len(data.split("val")) == 1, "one part can be used without the other"
    with pytest.raises(DataError, match=r"no folder .*train2014 or .*images/train2014"):
        data.split("train")


def test_polygons_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    load = json.load

    def watched(*args: Any, **kwargs: Any) -> Any:
        seen.append(load(*args, **kwargs))
        return seen[-1]

    monkeypatch.setattr("wildcat.data.readers.coco.json.load", watched)
    read_coco(lay(tmp_path)).split("all")
    assert len(seen) == 1, "the file is parsed once"
    assert not any("segmentation" in row for row in seen[0]["annotations"])


@pytest.mark.parametrize(
    ("table", "images"),
    [
        ("annotations/instances_default.json", "images/default"),  # CVAT, datumaro
        ("annotations/instances_default.json", "images"),
        ("annotations/instances_holiday.json", "images/holiday"),
        ("labels.json", "data"),  # FiftyOne
        ("result.json", "images"),  # Label Studio
        ("zip/annotations/instances_default.json", "zip/images/default"),
        ("_annotations.coco.json", "."),
    ],
)
def test_layouts_of_other_tools(tmp_path: Path, table: str, images: str) -> None:
    lay(tmp_path, BY_HAND, table, images)
    if "instances" in table:
        (tmp_path / table).with_name("captions_default.json").write_text('{"images": [], "annotations": []}')
    data = open_dataset(tmp_path)
    assert (data.format, data.splits) == ("coco", ("train", "val", "all"))
    assert {s.path for s in data.split("all")} == {tmp_path / images / f"{name}.jpg" for name in "abc"}


@pytest.mark.parametrize(
    ("table", "images"),
    [
        ("annotations/instances_{}.json", "images/{}"),
        ("annotations/instances_{}.json", "{}_images"),
        ("{}/labels.json", "{}/data"),
        ("{}/_annotations.coco.json", "{}"),
        ("{}/annotations/coco.json", "{}/images"),
        ("zip/annotations_{}.json", "zip/images/{}"),
        ("{}_annotations.json", "{}"),
    ],
)
def test_split_layouts_of_other_tools(tmp_path: Path, table: str, images: str) -> None:
    for split in ("training", "valid"):
        lay(tmp_path, BY_HAND, table.format(split), images.format(split))
    data = open_dataset(tmp_path)
    assert (data.format, data.splits) == ("coco", ("train", "val"))
    for split, folder in (("train", "training"), ("val", "valid")):
        assert {s.path for s in data.split(split)} == {
            tmp_path / images.format(folder) / f"{name}.jpg" for name in "abc"
        }


@pytest.mark.parametrize(
    "name", ["images\\{}.jpg", "/data/upload/3/{}.jpg", "../images/{}.jpg", "c:\\x\\{}.jpg", "images/{}.jpg"]
)
def test_file_names_of_other_machines(tmp_path: Path, name: str) -> None:
    content = copy.deepcopy(BY_HAND)
    for row in content["images"]:
        row["file_name"] = name.format(row["file_name"][0])
    lay(tmp_path, content, "result.json")
    found = open_dataset(tmp_path).split("all")
    assert {s.path.name: s.labels.tolist() for s in found if isinstance(s.path, Path)} == {
        "c.jpg": [-1, -1, 0],
        "a.jpg": [1, 1, -1],
        "b.jpg": [-1, -1, -1],
    }


def test_two_files_for_one_split(tmp_path: Path) -> None:
    lay(tmp_path, BY_HAND, "annotations/instances_train.json")
    lay(tmp_path, BY_HAND, "train/_annotations.coco.json")
    with pytest.raises(DataError, match="two COCO files of split train") as caught:
        open_dataset(tmp_path)
    assert "Name one of them" in caught.value.hint


def test_one_file_whose_images_lie_in_split_folders(tmp_path: Path) -> None:
    content = copy.deepcopy(BY_HAND)
    for row, split in zip(content["images"], ("train", "valid", "train"), strict=True):
        row["file_name"] = f"{split}/{row['file_name']}"
    for split in ("train", "valid"):
        lay(tmp_path, content, images=f"images/{split}")
    data = open_dataset(tmp_path)
    assert [s.name for s in data.split("train")] == ["train/c.jpg", "train/b.jpg"]
    assert [s.name for s in data.split("val")] == ["valid/a.jpg"]
    assert "folders of the images give the splits: train, val" in data.notes[0]
