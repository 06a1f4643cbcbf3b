"""One folder per class: classes, splits and errors."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wildcat.data.dataset import Sample, default_splits, one_label, stratified_indices
from wildcat.data.readers.folder import read_folder, recognise_folder
from wildcat.errors import DataError


def fill(root: Path, *files: str) -> Path:
    """Create empty files under `root`: readers use names, not content."""
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def names(samples: tuple[Sample, ...]) -> list[str]:
    return [s.name for s in samples]


def test_class_folders(tmp_path: Path) -> None:
    files = [f"{c}/{i}.jpg" for c, n in (("dog", 10), ("cat", 20), ("ant", 1)) for i in range(n)]
    root = fill(tmp_path, *files, "cat/deep/x.PNG", "dog/notes.txt", ".git/y.jpg", "cat/.thumb.jpg")
    data = read_folder(root)
    assert data.classes == ("ant", "cat", "dog")
    assert data.task == "multiclass"
    assert data.splits == ("train", "val", "all")
    assert sorted(names(data.split("all"))) == sorted([*files, "cat/deep/x.PNG"])
    for sample in data.split("all"):
        assert sample.labels.tolist() == [1 if sample.name.startswith(c) else -1 for c in data.classes]
        assert sample.path == root / sample.name
    val = Counter(n.split("/")[0] for n in names(data.split("val")))
    assert val == {"cat": 4, "dog": 2}  # a fifth of 21 and of 10; a single image stays in train
    assert sorted(names(data.split("train")) + names(data.split("val"))) == sorted(names(data.split("all")))
    assert names(read_folder(root).split("val")) == names(data.split("val"))
    assert data.notes == ("Class 'ant' has a single image, which is in train and not in val.",)


def test_split_folders(tmp_path: Path) -> None:
    root = fill(tmp_path, "Train/a/1.jpg", "Train/b/2.jpg", "valid/a/3.jpg", "test/b/4.jpg", "docs/readme.txt")
    (root / "valid" / "b").mkdir()
    data = read_folder(root)
    assert data.splits == ("train", "val", "test")
    assert names(data.split("train")) == ["Train/a/1.jpg", "Train/b/2.jpg"]
    assert names(data.split("val")) == ["valid/a/3.jpg"]
    assert data.split("test")[0].labels.tolist() == [-1, 1]
    assert data.notes == ("valid/b is empty.",)


def test_without_val_some_of_train_is_held_out(tmp_path: Path) -> None:
    data = read_folder(fill(tmp_path, *(f"train/{c}/{i}.jpg" for c in "ab" for i in range(20))))
    assert data.splits == ("train",)
    train, val = data.training_split("train", "val")
    assert len(val) == 4
    assert not set(names(train)) & set(names(val))


def test_a_class_called_train(tmp_path: Path) -> None:
    data = read_folder(fill(tmp_path, "train/1.jpg", "train/2.jpg", "plane/1.jpg", "plane/2.jpg"))
    assert data.classes == ("plane", "train")
    assert data.splits == ("train", "val", "all")


def test_a_flat_test_folder_is_ignored(tmp_path: Path) -> None:
    data = read_folder(fill(tmp_path, "train/a/1.jpg", "train/b/2.jpg", "test/3.jpg"))
    assert data.splits == ("train",)
    assert "test/ holds no class folders" in data.notes[0]


@pytest.mark.parametrize(
    ("files", "empty", "said", "remedy"),
    [
        (["cat/1.jpg", "dog/1.jpg"], ["cow", "emu"], ["cow", "holds no images"], "Fill it, or remove it"),
        (["train/cat/1.jpg", "train/dog/1.jpg"], ["train/cow"], ["train/cow", "holds no images"], "Fill it"),
        (["cat/1.jpg"], [], ["a single class folder, cat"], "At least two"),
        (["train/cat/1.jpg"], [], ["a single class folder, cat"], "At least two"),
        ([], [], ["no class folder"], "At least two"),
        (["train/a/1.jpg", "train/b/1.jpg", "cat/1.jpg"], [], ["splits (train)", "(cat)"], "Move the class folders"),
        (["val/a/1.jpg", "valid/a/1.jpg", "train/a/1.jpg", "train/b/1.jpg"], [], ["two folders for one"], "Keep one"),
        (["train/a/1.jpg", "train/b/1.jpg", "val/c/1.jpg"], [], ["'c'", "val", "not in"], "Add"),
    ],
)
def test_mistakes(tmp_path: Path, files: list[str], empty: list[str], said: list[str], remedy: str) -> None:
    root = fill(tmp_path, *files)
    for name in empty:
        (root / name).mkdir()
    with pytest.raises(DataError) as caught:
        read_folder(root)
    assert str(root) in caught.value.message
    for part in said:
        assert part in caught.value.message
    assert remedy in caught.value.hint


def test_recognise(tmp_path: Path) -> None:
    assert not recognise_folder(fill(tmp_path, "a.jpg", "notes/b.txt"))
    assert recognise_folder(fill(tmp_path, "cat/deep/c.jpg"))
    assert not recognise_folder(tmp_path / "a.jpg")


@given(
    strata=st.lists(st.integers(0, 5), min_size=1, max_size=60),
    fraction=st.floats(0.01, 0.5),
    seed=st.integers(0, 2**31),
)
def test_stratified_indices(strata: list[int], fraction: float, seed: int) -> None:
    chosen = stratified_indices(strata, fraction, seed)
    assert chosen == stratified_indices(list(strata), fraction, seed)
    assert chosen <= set(range(len(strata)))
    for key, count in Counter(strata).items():
        taken = sum(strata[i] == key for i in chosen)
        assert taken < count
        assert abs(taken - fraction * count) <= 1
        assert taken >= (count > 1)


@given(strata=st.lists(st.integers(0, 3), min_size=1, max_size=40))
def test_default_splits_are_a_partition(strata: list[int]) -> None:
    samples = [Sample(str(i), Path(str(i)), one_label(stratum, 4)) for i, stratum in enumerate(strata)]
    readers = default_splits(samples)
    parts = [s.name for split in ("train", "val") for s in readers[split]()]
    assert sorted(parts, key=int) == [s.name for s in readers["all"]()]
