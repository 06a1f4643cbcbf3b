"""One folder per class: classes, splits and errors."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wildcat.data.dataset import Sample, default_splits, one_label, stratified_indices
from wildcat.data.readers.folder import read_folder, recognise_folder
from wildcat.data.registry import open_dataset
from wildcat.errors import DataError
from wildcat.export.predictions import ROWS
from wildcat.models.manifest import MANIFEST


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
    assert data.notes == (
        f"{root}: skipped 3 entries that are no images: 1 hidden folder, 1 hidden file, 1 .txt.",
        "Class 'ant' has a single image, which is in train and not in val.",
    )


def test_split_folders(tmp_path: Path) -> None:
    root = fill(tmp_path, "Train/a/1.jpg", "Train/b/2.jpg", "valid/a/3.jpg", "test/b/4.jpg", "docs/readme.txt")
    (root / "valid" / "b").mkdir()
    data = read_folder(root)
    assert data.splits == ("train", "val", "test")
    assert names(data.split("train")) == ["Train/a/1.jpg", "Train/b/2.jpg"]
    assert names(data.split("val")) == ["valid/a/3.jpg"]
    assert data.split("test")[0].labels.tolist() == [-1, 1]
    assert data.notes == (
        f"{root}: skipped 1 entry that is no image: 1 .txt.",
        f"{root / 'test'} has no images of the classes a.",
        f"{root / 'valid'} has no images of the classes b.",
    )


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
    assert "read as a class called 'train'" in data.notes[0]


SPLIT_NAMES = [
    ("Training", "Testing"),
    ("training_set/training_set", "test_set/test_set"),
    ("seg_train/seg_train", "seg_test/seg_test"),
    ("train_images", "test-images"),
    ("trainset", "TestSet"),
    ("train2017", "test2017"),
    ("archive/Data/train", "archive/Data/test"),
    ("images/train", "images/test"),
    ("train/images", "test/images"),
    ("a/{}/train", "a/{}/test"),
    ("{}/Train", "{}/Test"),
]


@pytest.mark.parametrize(("train", "test"), SPLIT_NAMES)
def test_split_folders_under_other_names(tmp_path: Path, train: str, test: str) -> None:
    def inside(split: str, name: str, file: str) -> str:
        return f"{split.format(name)}/{file}" if "{}" in split else f"{split}/{name}/{file}"

    trained = [inside(train, c, f"{i}.jpg") for c in ("cat", "dog") for i in range(3)]
    tested = [inside(test, c, "9.jpg") for c in ("cat", "dog")]
    data = read_folder(fill(tmp_path, *trained, *tested, "README.md", "__MACOSX/train/cat/1.jpg"))
    assert (data.classes, data.splits) == (("cat", "dog"), ("train", "test"))
    assert sorted(names(data.split("train"))) == sorted(trained)
    assert [s.labels.tolist() for s in data.split("test")] == [[1, -1], [-1, 1]]
    assert sorted(names(data.split("test"))) == sorted(tested)


def test_a_wrapper_folder_is_not_a_class(tmp_path: Path) -> None:
    data = read_folder(fill(tmp_path, "archive/pets/cat/1.jpg", "archive/pets/dog/a/1.jpg", "licence.txt"))
    assert data.classes == ("cat", "dog")
    assert any(str(tmp_path / "archive" / "pets") in note for note in data.notes)


def test_copies_of_the_data_set_inside_it_are_ignored(tmp_path: Path) -> None:
    files = ["cat/1.jpg", "dog/1.jpg"]
    data = read_folder(fill(tmp_path / "a", *files, *(f"pets/{f}" for f in files)))
    assert data.classes == ("cat", "dog") and len(data.split("all")) == 2 and "pets/ repeats" in data.notes[0]
    files = [f"{split}/{f}" for split in ("train", "test") for f in files]
    data = read_folder(fill(tmp_path / "b", *files, *(f"pets/{f}" for f in files), "seg_pred/7.jpg"))
    assert data.splits == ("train", "test")
    assert sorted(data.notes) == [
        "pets/ repeats the splits and is ignored.",
        "seg_pred/ is ignored (images without labels).",
    ]


def test_our_own_output_is_ignored_with_a_note(tmp_path: Path) -> None:
    written = [f"run/{MANIFEST}", "run/x.png", f"cat/out/{ROWS}", "cat/out/overlays/1.png"]
    exported = ["export/annotations.json", "export/images/1.jpg"]
    data = read_folder(fill(tmp_path, "cat/1.jpg", "dog/1.jpg", *written, *exported))
    assert data.classes == ("cat", "dog") and len(data.split("all")) == 2
    ignored = " ".join(data.notes)
    assert f"{tmp_path / 'run'} is a model and is ignored" in ignored
    assert f"{tmp_path / 'cat/out'} is predictions and is ignored" in ignored
    assert f"{tmp_path / 'export'} is an annotated data set" in ignored


def test_a_folder_that_a_command_wrote_is_no_data_set(tmp_path: Path) -> None:
    for name in (MANIFEST, ROWS):
        root = fill(tmp_path / name[:3], name, "overlays/1.png", "heatmaps/1.png")
        with pytest.raises(DataError, match="not a data set"):
            open_dataset(root)


def test_class_names_that_differ_in_case_or_unicode_form(tmp_path: Path) -> None:
    data = read_folder(
        fill(tmp_path, "train/Cat/1.jpg", "train/\u00e9l/1.jpg", "test/cat/1.jpg", "test/e\u0301l/2.jpg")
    )
    assert data.classes == ("Cat", "\u00e9l")
    assert [s.labels.tolist() for s in data.split("test")] == [[1, -1], [-1, 1]]
    assert "Folder 'cat' is read as class 'Cat'." in data.notes


def test_classes_can_be_named(tmp_path: Path) -> None:
    root = fill(tmp_path, "control/1.jpg", "test/1.jpg", "images/1.jpg")
    data = read_folder(root, classes=["test", "control"])
    assert data.classes == ("test", "control")
    assert "images are not in --classes" in data.notes[0]
    with pytest.raises(DataError, match="no folder 'tets'") as caught:
        read_folder(root, classes=["tets", "control"])
    assert "did you mean test?" in caught.value.hint


def test_a_flat_test_folder_is_ignored(tmp_path: Path) -> None:
    data = read_folder(fill(tmp_path, "train/a/1.jpg", "train/b/2.jpg", "test/3.jpg"))
    assert data.splits == ("train",)
    assert "test/ holds no class folders" in data.notes[0]


@pytest.mark.parametrize(
    ("files", "empty", "said", "remedy"),
    [
        (["cat/1.jpg", "dog/1.jpg"], ["cow", "emu"], ["cow", "holds no images"], "Put images of the class there, or"),
        (["train/cat/1.jpg", "train/dog/1.jpg"], ["train/cow"], ["train/cow", "holds no images"], "--classes cat,dog"),
        ([], [], ["no class folder"], "a folder of its name"),
        (["train/a/1.jpg", "train/b/1.jpg", "cat/1.jpg"], [], ["splits (train)", "(cat)"], "move it into the splits"),
        (
            ["val/a/1.jpg", "valid/a/1.jpg", "train/a/1.jpg", "train/b/1.jpg"],
            [],
            ["two folders for one"],
            "merge the two",
        ),
        (["train/a/1.jpg", "train/b/1.jpg", "val/c/1.jpg"], [], ["'c'", "val", "not in"], "Put images of it into"),
        (["Training/1.jpg", "Testing/1.jpg"], [], ["Training (1 images)", "splits", "labels"], "--classes Testing,Tr"),
        (["cat/1.jpg", "dog/1.jpg", "test/1.jpg"], [], ["test", "named like a split"], "--classes cat,dog;"),
        (["images/1.jpg", "masks/1.png"], [], ["'images'", "not a class"], "a folder of its name"),
        (["train/images/1.jpg", "train/labels/1.png"], [], ["'images'", "not a class"], "a folder of its name"),
        (["images/1.jpg", "labels/1.txt"], [], ["'images'", "not a class"], "a folder of its name"),
        (["cat/1.jpg", "dog/1.jpg", "cow/1.heic"], [], ["cow", "1 HEIC"], "Put images of the class"),
        (["trainA/x/1.jpg", "testA/x/1.jpg", "trainB/x/1.jpg", "testB/x/1.jpg"], [], ["two folders for one"], "merge"),
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
