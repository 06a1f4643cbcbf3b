"""Data sets: classes in other terms, and what cannot be learnt from labels, in every reader."""

from __future__ import annotations

import io
import json
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wildcat.data import open_dataset
from wildcat.data.dataset import (
    ABSENT,
    PRESENT,
    DataSet,
    Sample,
    check_learnable,
    count_table,
    cross_validation,
    describe_labels,
    hold_out,
    label_counts,
    one_label,
    rarest_classes,
    stratified_folds,
)
from wildcat.errors import ConfigError, DataError

Labels = list[list[str]]  # of each image


def draw(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)


def as_table(root: Path, labels: Labels) -> None:
    for i in range(len(labels)):
        draw(root / f"{i}.png")
    rows = "".join(f"{i}.png,{';'.join(names)}\n" for i, names in enumerate(labels))
    (root / "tags.csv").write_text(f"image,labels\n{rows}")


def as_columns(root: Path, labels: Labels) -> None:
    for i in range(len(labels)):
        draw(root / f"{i}.png")
    classes = sorted({name for names in labels for name in names})
    rows = "".join(f"{i}.png,{','.join(str(int(c in names)) for c in classes)}\n" for i, names in enumerate(labels))
    (root / "tags.csv").write_text(f"image,{','.join(classes)}\n{rows}")


def as_coco(root: Path, labels: Labels) -> None:
    classes = sorted({name for names in labels for name in names})
    for i in range(len(labels)):
        draw(root / "images" / f"{i}.png")
    pairs = [(i, classes.index(name)) for i, names in enumerate(labels) for name in names]
    content = {
        "categories": [{"id": i, "name": name} for i, name in enumerate(classes)],
        "images": [{"id": i, "file_name": f"{i}.png"} for i in range(len(labels))],
        "annotations": [
            {"id": n, "image_id": i, "category_id": c, "bbox": [1, 1, 4, 4]} for n, (i, c) in enumerate(pairs)
        ],
    }
    (root / "all.json").write_text(json.dumps(content))


def as_voc(root: Path, labels: Labels) -> None:
    for i, names in enumerate(labels):
        draw(root / "JPEGImages" / f"{i}.png")
        box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>4</xmax><ymax>4</ymax></bndbox>"
        objects = "".join(f"<object><name>{name}</name>{box}</object>" for name in names)
        (root / "Annotations").mkdir(exist_ok=True)
        (root / "Annotations" / f"{i}.xml").write_text(f"<annotation>{objects}</annotation>")
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (root / "ImageSets" / "Main" / "train.txt").write_text("".join(f"{i}\n" for i in range(len(labels))))


def as_shard(root: Path, labels: Labels) -> None:
    root.mkdir(parents=True, exist_ok=True)
    draw(root / "x" / "image.png")
    png = (root / "x" / "image.png").read_bytes()
    (root / "x" / "image.png").unlink()
    (root / "x").rmdir()
    with tarfile.open(root / "train-0.tar", "w") as shard:
        for i, names in enumerate(labels):
            for name, content in ((f"{i}.png", png), (f"{i}.json", json.dumps(names).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                shard.addfile(info, io.BytesIO(content))


def as_folders(root: Path, labels: Labels) -> None:
    for i, (name,) in enumerate(labels):
        draw(root / name / f"{i}.png")


WRITERS = (as_table, as_columns, as_coco, as_voc, as_shard, as_folders)


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("labels", [[["part"]] * 10, [["part", "scratch"]] * 10], ids=["one", "same"])
def test_nothing_to_learn_is_refused_in_every_format(
    tmp_path: Path, write: Callable[[Path, Labels], None], labels: Labels
) -> None:
    if write is as_folders and len(labels[0]) > 1:
        return
    root = tmp_path / "data"
    write(root, labels)
    data = open_dataset(root)
    samples = data.training_split("train", "val")[0]
    with pytest.raises(DataError, match=r"have the same label.*'part'.*nothing to learn") as caught:
        check_learnable(data, "train", samples)
    assert "Add images without it" in caught.value.hint


@pytest.mark.parametrize("write", [w for w in WRITERS if w is not as_folders])
def test_a_label_of_every_image_is_noted_in_every_format(tmp_path: Path, write: Callable[[Path, Labels], None]) -> None:
    root = tmp_path / "data"
    write(root, [["part", "dent"], ["part"]] * 10)
    data = open_dataset(root)
    notes = check_learnable(data, "train", data.training_split("train", "val")[0])
    assert len(notes) == 1 and notes[0].startswith("Label 'part' is in all")


def made(rows: list[list[int]], task: str = "multilabel") -> tuple[DataSet, list[Sample]]:
    samples = [Sample(str(i), Path(f"{i}.png"), np.array(row, np.int8)) for i, row in enumerate(rows)]
    classes = tuple("abc"[: len(rows[0])])
    return DataSet("made", "csv", Path(), classes, task, {"train": lambda: samples}), samples  # type: ignore[arg-type]


def test_what_can_be_learnt() -> None:
    assert check_learnable(made([[1], [-1]])[0], "train", made([[1], [-1]])[1]) == [], "one class and negatives"
    data, samples = made([[1, 0, -1], [-1, 1, -1]])
    assert check_learnable(data, "train", samples) == [
        "Label 'b' is in all 2 images of train: the model learns to predict it always.",
        "No image of train has 'c': the model cannot learn it.",
    ]
    for rows in ([[-1, -1], [-1, -1]], [[0, -1], [0, -1]]):
        with pytest.raises(DataError, match="none of the 2 images of train of made has a label"):
            check_learnable(*swap(made(rows)))
    with pytest.raises(DataError, match="same label"):
        check_learnable(*swap(made([[1, 0], [0, 1]])))


def swap(pair: tuple[DataSet, list[Sample]]) -> tuple[DataSet, str, list[Sample]]:
    return pair[0], "train", pair[1]


def test_labels_to_measure_on() -> None:
    assert describe_labels(*swap(made([[1, -1], [-1, 1]], "multiclass"))) == []
    assert describe_labels(*swap(made([[1, -1], [1, -1]], "multilabel"))) == []
    assert "are of class 'a'" in describe_labels(*swap(made([[1, -1], [1, -1]], "multiclass")))[0]
    assert "nothing to measure" in describe_labels(*swap(made([[-1, 0]])))[0]


def test_other_classes() -> None:
    data = made([[1, -1, 0], [-1, 1, 1]])[0]
    assert data.for_classes(("a", "b", "c")) is data
    other = data.for_classes(("c", "x", "a"))
    assert [s.labels.tolist() for s in other.split("train")] == [[0, 0, 1], [1, 0, -1]], "x is unknown, b is dropped"
    joined = data.for_classes(("z", "b"), {"a": "z", "c": "z"})
    assert [s.labels.tolist() for s in joined.split("train")] == [[1, -1], [1, 1]]
    single = made([[1, -1, -1], [-1, 1, -1], [-1, -1, 1]], "multiclass")[0].for_classes(("c", "x", "a"))
    assert [(s.name, s.labels.tolist()) for s in single.split("train")] == [("0", [-1, -1, 1]), ("2", [1, -1, -1])]


def test_masks_of_more_classes_than_a_mask_has_values() -> None:
    """Of 300 classes the last ones are in no mask; their labels are kept."""
    names = tuple(f"class {i}" for i in range(300))
    labels = np.where(np.eye(300, dtype=bool), PRESENT, ABSENT).astype(np.int8)
    samples = [Sample(str(i), Path(f"{i}.png"), row, mask=Path("mask.png")) for i, row in enumerate(labels)]
    data = DataSet("many", "coco", Path(), names, "multilabel", {"train": lambda: samples})
    turned = data.for_classes(names[::-1]).split("train")
    assert [int(np.flatnonzero(s.labels == PRESENT)[0]) for s in turned] == list(range(299, -1, -1))
    values = turned[0].mask_values
    assert values is not None
    assert values[[0, 1, 46, 47, 254, 255]].tolist() == [0, 255, 255, 254, 47, 255]


def test_training_images_do_not_choose_the_best_epoch() -> None:
    samples = made([[1, -1], [-1, 1], [1, 1]])[1]
    readers = {"train": lambda: samples[:2], "val": lambda: samples[2:], "trainval": lambda: samples}
    data = DataSet("made", "csv", Path(), ("a", "b"), "multilabel", readers)
    assert data.training_split("train", "val") == (tuple(samples[:2]), tuple(samples[2:]))
    with pytest.raises(ConfigError, match="trainval and --val-split val have 1 images in common, such as 2"):
        data.training_split("trainval", "val")


# --- folds ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folds", [2, 3, 5])
def test_folds_are_stratified(folds: int) -> None:
    strata = [3] * 17 + [0] * 11 + [7] * 5
    found = stratified_folds(strata, folds, seed=1)
    sizes = np.bincount(found, minlength=folds)
    assert len(sizes) == folds and np.ptp(sizes) <= 1
    for stratum in set(strata):
        assert np.ptp(np.bincount(found[np.asarray(strata) == stratum], minlength=folds)) <= 1
    assert np.array_equal(found, stratified_folds(strata, folds, seed=1))
    assert not np.array_equal(found, stratified_folds(strata, folds, seed=2))


def test_each_sample_is_tested_once_and_never_trained_on_in_that_fold() -> None:
    samples = [Sample(str(i), Path(str(i)), one_label(i % 3, 3)) for i in range(30)]
    data = DataSet("toy", "folder", Path(), ("a", "b", "c"), "multiclass", {"train": lambda: samples})
    folds = cross_validation(data, "train", 5)
    tested = []
    for fold in range(1, 6):
        train, test = ({s.name for s in folds.split(f"fold{fold}-{part}")} for part in ("train", "test"))
        assert not train & test and train | test == {s.name for s in samples}
        assert sorted(int(name) % 3 for name in test) == [0, 0, 1, 1, 2, 2]
        tested += test
    assert len(tested) == len(set(tested)) == 30
    assert data.splits == ("train",), "the data set itself is unchanged"


def test_labels_are_looked_at_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).integers(-1, 2, (50, 7)).astype(np.int8)
    samples = [Sample(str(i), Path(str(i)), row) for i, row in enumerate(rows)]
    at_once = label_counts(samples), rarest_classes(samples, list("gacebdf"))
    monkeypatch.setattr("wildcat.data.dataset.BLOCK_BYTES", 20)  # two samples
    np.testing.assert_array_equal(label_counts(samples), at_once[0])
    np.testing.assert_array_equal(at_once[0], [(rows == 1).sum(axis=0), (rows == -1).sum(axis=0)])
    assert rarest_classes(samples, list("gacebdf")) == at_once[1]


def test_many_images_of_many_classes_take_little_memory() -> None:
    classes, images = 3000, 30_000  # 90 MB as a matrix
    samples = [Sample(str(i), Path(str(i)), one_label(i % classes, classes)) for i in range(images)]
    tracemalloc.start()
    data = DataSet("many", "folder", Path(), tuple(map(str, range(classes))), "multiclass", {"train": lambda: samples})
    assert check_learnable(data, "train", samples) == []
    assert "10" in count_table(data.classes, {"train": samples})
    kept, held = hold_out(samples, 0.1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (len(kept), len(held)) == (images - images // 10, images // 10)
    assert peak < 0.5 * classes * images
