"""One data set in many layouts reads the same; our annotations train again in the layouts of other tools."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import TINY
from tests.export.test_annotations import CLASSES, nothing, prediction, write
from wildcat.cli import main
from wildcat.data.dataset import DataSet, check_learnable, count_table, label_matrix
from wildcat.data.layout import name_splits, path_splits, split_name
from wildcat.data.readers.synthetic import write_shapes
from wildcat.data.registry import open_dataset
from wildcat.errors import ConfigError, DataError

XML = """<annotation><object><name>{}</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>
</object></annotation>"""

# (split, class, file name): 18 images to train on, 6 for validation, in the order of their names
IMAGES = [("train" if i < 9 else "val", c, f"{c}_{i:02}.png") for c in ("box", "disc") for i in range(12)]


def save(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), (255 * (number // 12), 10 * number, 90)).save(path)


def save_all(root: Path, pattern: str, names: dict[str, str] | None = None) -> None:
    for number, (split, c, file) in enumerate(IMAGES):
        save(root / pattern.format(s=(names or {}).get(split, split), c=c, f=file), number)


def text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def class_folders(root: Path) -> None:
    save_all(root, "{s}/{c}/{f}")


def other_split_names(root: Path) -> None:
    save_all(root, "archive/{s}/{s}/{c}/{f}", {"train": "seg_train", "val": "seg_val"})


def splits_in_classes(root: Path) -> None:
    save_all(root, "{c}/{s}/{f}", {"train": "Training", "val": "valid"})


def one_table(root: Path) -> None:
    save_all(root, "photos/{f}")
    text(root / "labels.csv", "filename;label;split\n" + "".join(f"{f};{c};{s}\n" for s, c, f in IMAGES))


def one_hot_tables_in_splits(root: Path) -> None:
    save_all(root, "{s}/{f}")
    for split in ("train", "val"):
        rows = (f"{f}, {int(c == 'box')}, {int(c == 'disc')}\n" for s, c, f in IMAGES if s == split)
        text(root / split / "_classes.csv", "filename, box, disc\n" + "".join(rows))


def kaggle_tables(root: Path) -> None:
    save_all(root, "{s}/{f}")
    for split in ("train", "val"):
        rows = (f"{f[:-4]},{c}\n" for s, c, f in IMAGES if s == split)
        text(root / f"{split}.csv", "id,label\n" + "".join(rows))
    text(root / "sample_submission.csv", "id,label\nbox_00,box\n")


def voc_beside_images(root: Path) -> None:
    save_all(root, "{s}/{f}", {"val": "valid"})
    for s, c, f in IMAGES:
        text(root / s.replace("val", "valid") / f"{f[:-4]}.xml", XML.format(c))


def yolo(root: Path) -> None:
    save_all(root, "images/{s}/{f}")
    for s, c, f in IMAGES:
        text(root / "labels" / s / f"{f[:-4]}.txt", f"{int(c == 'disc')} .5 .5 .2 .2\n")
    text(root / "data.yaml", "train: images/train\nval: images/val\nnames: [box, disc]\n")


def coco_json(split: str, folder: str = "") -> str:
    rows = [(c, f) for s, c, f in IMAGES if s == split]
    images = [{"id": i, "file_name": f"{folder}{f}"} for i, (_, f) in enumerate(rows)]
    annotations = [
        {"id": i, "image_id": i, "category_id": 1 + (c == "disc"), "bbox": [1, 1, 5, 5]}
        for i, (c, _) in enumerate(rows)
    ]
    categories = [{"id": 1, "name": "box"}, {"id": 2, "name": "disc"}]
    return json.dumps({"images": images, "annotations": annotations, "categories": categories})


def coco_datumaro(root: Path) -> None:
    save_all(root, "images/{s}/{f}")
    for split in ("train", "val"):
        text(root / "annotations" / f"instances_{split}.json", coco_json(split))


def coco_fiftyone(root: Path) -> None:
    save_all(root, "{s}/data/{f}")
    for split in ("train", "val"):
        text(root / split / "labels.json", coco_json(split, "data\\"))


LAYOUTS: list[Callable[[Path], None]] = [
    *(class_folders, other_split_names, splits_in_classes, one_table, one_hot_tables_in_splits, kaggle_tables),
    *(voc_beside_images, yolo, coco_datumaro, coco_fiftyone),
]


@pytest.mark.parametrize("lay", LAYOUTS)
def test_ten_layouts_of_the_same_images_are_the_same_data_set(tmp_path: Path, lay: Callable[[Path], None]) -> None:
    lay(tmp_path)
    data = open_dataset(tmp_path)
    assert (data.classes, data.splits) == (("box", "disc"), ("train", "val"))
    for split in ("train", "val"):
        samples = data.split(split)
        expected = [(c, f) for s, c, f in IMAGES if s == split]
        assert [s.path.name for s in samples if isinstance(s.path, Path)] == [f for _, f in expected]
        assert label_matrix(samples).tolist() == [[1, -1] if c == "box" else [-1, 1] for c, _ in expected]
        numbers = [number for number, (s, _, _) in enumerate(IMAGES) if s == split]
        for number, sample in zip(numbers, samples, strict=True):
            assert np.asarray(Image.open(str(sample.path)))[0, 0, 1] == 10 * number % 256


@pytest.mark.parametrize("lay", LAYOUTS)
def test_ten_layouts_are_the_same_task_where_it_is_named(tmp_path: Path, lay: Callable[[Path], None]) -> None:
    """Annotations may give an image several labels; the note of `train` says how to make them a choice of one."""
    lay(tmp_path)
    data = open_dataset(tmp_path)
    (note,) = check_learnable(data, "train", data.split("train")) or [""]
    assert ("--data-option task=multiclass" in note) == (data.task == "multilabel")
    assert open_dataset(tmp_path, task="multiclass").task == "multiclass"
    assert open_dataset(tmp_path, task="multilabel").task == "multilabel"


def test_a_task_that_the_labels_contradict(tmp_path: Path) -> None:
    data = str(write_shapes(tmp_path / "shapes", train=6, val=2, size=(48, 64)))
    with pytest.raises(DataError, match=r"task=multiclass: .* has [02-9] labels, not one"):
        open_dataset(data, task="multiclass")
    with pytest.raises(ConfigError, match="task=multiclas: give multilabel or multiclass"):
        open_dataset(data, task="multiclas")


def test_classes_are_printed_and_two_layouts_train_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = []
    for lay in (other_split_names, one_table):
        lay(tmp_path / lay.__name__)
        out = tmp_path / f"run_{lay.__name__}"
        flags = [*TINY, "--epochs", "1"]
        assert main(["train", str(tmp_path / lay.__name__), "--out", str(out), *flags]) == 0
        printed = capsys.readouterr().out
        assert "  images per class                train          val\n" in printed
        assert "  disc                                9            3\n" in printed
        weights.append(next(out.rglob("*.safetensors")).read_bytes())
    assert weights[0] == weights[1]


def test_count_table_of_many_classes(tmp_path: Path) -> None:
    for i in range(12):
        save(tmp_path / f"class{i:02}" / "a.png", i)
    data = open_dataset(tmp_path)
    lines = count_table(data.classes, {"all": data.split("all"), "none": ()}).splitlines()
    assert lines[0].split() == ["images", "per", "class", "all"]
    assert lines[1].split() == ["class00", "1"] and lines[-1] == "  ... and 2 more classes"
    assert len(lines) == 12


def as_exported(folder: Path, kind: str) -> Path:
    """What our export wrote."""
    return folder


def as_cvat(folder: Path, kind: str) -> Path:
    """The layout of datumaro, which CVAT exports."""
    if kind.startswith("coco"):
        (folder / "annotations").mkdir()
        (folder / "annotations.json").rename(folder / "annotations" / "instances_default.json")
        (folder / "images").rename(folder / "default")
        (folder / "images").mkdir()
        (folder / "default").rename(folder / "images" / "default")
    elif kind.startswith("yolo"):  # YOLO 1.1
        (folder / "images").rename(folder / "obj_train_data")
        for path in (folder / "labels").iterdir():
            path.rename(folder / "obj_train_data" / path.name)
        (folder / "labels").rmdir()
        (folder / "data.yaml").unlink()
        (folder / "obj.names").write_text("\n".join(CLASSES))
        (folder / "train.txt").write_text("data/obj_train_data/p0.png\n")
    else:
        for path in (folder / "ImageSets" / "Main").iterdir():
            path.rename(path.with_name(path.name.replace("train.txt", "default.txt")))
        shutil.rmtree(folder / "ImageSets" / "Segmentation")
    return folder


def as_fiftyone(folder: Path, kind: str) -> Path:
    (folder / ("JPEGImages" if kind == "voc" else "images")).rename(folder / "data")
    if kind.startswith("coco"):
        (folder / "annotations.json").rename(folder / "labels.json")
    elif kind == "voc":
        (folder / "Annotations").rename(folder / "labels")
        for name in ("ImageSets", "SegmentationClass", "SegmentationObject"):
            shutil.rmtree(folder / name)
    return folder


def as_label_studio(folder: Path, kind: str) -> Path:
    if kind.startswith("coco"):
        content = json.loads((folder / "annotations.json").read_text())
        for row in content["images"]:
            row["file_name"] = f"images\\{row['file_name']}"
        (folder / "annotations.json").unlink()
        (folder / "result.json").write_text(json.dumps(content))
    elif kind.startswith("yolo"):
        (folder / "data.yaml").unlink()
        (folder / "classes.txt").write_text("\n".join(CLASSES))
        (folder / "notes.json").write_text("{}")
    else:
        (folder / "JPEGImages").rename(folder / "images")
        for name in ("ImageSets", "SegmentationClass", "SegmentationObject"):
            shutil.rmtree(folder / name)
    return folder


def labels_of(data: DataSet) -> dict[str, set[str]]:
    samples = data.split("all") if "all" in data.splits else data.split("train")
    rows = zip(samples, label_matrix(samples), strict=True)
    return {
        Path(str(s.path)).stem: {c for c, label in zip(data.classes, row, strict=True) if label == 1} for s, row in rows
    }


@pytest.mark.parametrize("kind", ["coco", "coco-polygons", "yolo", "yolo-segment", "voc"])
@pytest.mark.parametrize("lay", [as_exported, as_cvat, as_fiftyone, as_label_studio])
def test_annotations_laid_out_by_other_tools_train_again(
    tmp_path: Path, kind: str, lay: Callable[[Path, str], Path]
) -> None:
    written = write(tmp_path / "export", kind, [prediction(), nothing(), prediction()])
    data = open_dataset(lay(written, kind))
    present = {"zebra", "cat"}
    assert labels_of(data) == {"p0": present, "p1": set(), "p2": present}


def test_names_of_splits() -> None:
    assert [split_name(n)[0] for n in ("TrainImages", "testset", "VALID", "dev")] == ["train", "test", "val", "val"]
    assert [split_name(n)[0] for n in ("trainer", "test_val", "latest", "contest")] == [""] * 4
    assert name_splits(["train station", "test tube", "airport"]) == {}
    assert name_splits(["2012_train", "2012_test"]) == {"2012_train": "train", "2012_test": "test"}
    files = ["images/train/a.png", "images/val/test_1.png", "x/b.png"]
    assert path_splits(files) == ["train", "val", ""]
    assert path_splits(["annotations/instances_train.json"], own_names=True) == ["train"]


@pytest.mark.parametrize("lay", LAYOUTS)
def test_the_folder_that_one_is_in(
    tmp_path: Path, lay: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    lay(tmp_path)
    there = open_dataset(tmp_path)
    monkeypatch.chdir(tmp_path)
    here = open_dataset(".")
    assert (here.classes, here.splits, here.task) == (there.classes, there.splits, there.task)
    for split in there.splits:
        assert label_matrix(here.split(split)).tolist() == label_matrix(there.split(split)).tolist()
        assert [Path(str(s.path)).resolve() for s in here.split(split)] == [s.path for s in there.split(split)]


@pytest.mark.parametrize("lay", [class_folders, voc_beside_images, yolo])
def test_folders_that_are_links(tmp_path: Path, lay: Callable[[Path], None]) -> None:
    lay(tmp_path / "real")
    for folder in sorted(p for p in (tmp_path / "real").rglob("*") if p.is_dir()):
        linked = tmp_path / "linked" / folder.relative_to(tmp_path / "real")
        if any(p.is_file() for p in folder.iterdir()):
            linked.parent.mkdir(parents=True, exist_ok=True)
            linked.symlink_to(folder)
    for file in (tmp_path / "real").glob("*.*"):
        (tmp_path / "linked" / file.name).symlink_to(file)
    (tmp_path / "linked" / "itself").symlink_to("itself")
    real, linked_data = open_dataset(tmp_path / "real"), open_dataset(tmp_path / "linked")
    assert linked_data.classes == real.classes
    for split in real.splits:
        assert label_matrix(linked_data.split(split)).tolist() == label_matrix(real.split(split)).tolist()
