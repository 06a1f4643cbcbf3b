"""15-Scene: the given split and the random ones of the official protocol."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest

from wildcat.data.dataset import label_matrix
from wildcat.data.readers.scene15 import SCENE_CLASSES, read_scenes, recognise_scenes
from wildcat.errors import DataError


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    for name in SCENE_CLASSES:
        (tmp_path / name).mkdir()
        for index in range(103):
            (tmp_path / name / f"image_{index:04d}.jpg").touch()
    return tmp_path


def test_given_split(real_data: Path) -> None:
    root = real_data / "15-Scene"
    data = read_scenes(root)
    assert data.classes == tuple(sorted(p.name for p in root.iterdir() if p.is_dir()))
    assert data.task == "multiclass"
    train, test = data.split("train"), data.split("test")
    assert (len(train), len(test)) == (1500, 2985)
    assert (label_matrix(train) == 1).sum(axis=0).tolist() == [100] * 15
    assert [s.name for s in test] == (root / "split_brown_test.txt").read_text().split()
    assert all(s.path.is_file() and data.classes[s.labels.argmax()] == s.path.parent.name for s in train)


def test_random_splits_follow_the_protocol(real_data: Path) -> None:
    root = real_data / "15-Scene"
    everything = sorted(p.relative_to(root).as_posix() for p in root.glob("*/*.jpg"))
    data, again = read_scenes(root), read_scenes(root)
    seen = set()
    for seed in (0, 3, 9):
        train = [s.name for s in data.split(f"train-seed{seed}")]
        test = [s.name for s in data.split(f"test-seed{seed}")]
        assert sorted(train + test) == everything
        assert set(Counter(n.split("/")[0] for n in train).values()) == {100}
        assert train == [s.name for s in again.split(f"train-seed{seed}")]
        seen.add(tuple(train))
    assert len(seen) == 3, "seeds must differ"


def test_without_lists_the_split_is_random(scenes: Path) -> None:
    assert recognise_scenes(scenes)
    data = read_scenes(scenes)
    assert "split_brown_train.txt" in data.notes[0]
    assert [s.name for s in data.split("test")] == [s.name for s in data.split("test-seed0")]
    assert len(data.split("test")) == 3 * 15


def test_any_seed_gives_a_split(scenes: Path) -> None:
    data = read_scenes(scenes)
    assert data.splits == ("train", "test", "train-seed0", "test-seed0"), "the list stays short"
    everything = sorted(p.relative_to(scenes).as_posix() for p in scenes.glob("*/*.jpg"))
    tests = []
    for seed in (0, 1, 12, 34567):
        train, test = (data.split(f"{part}-seed{seed}") for part in ("train", "test"))
        assert sorted(s.name for s in (*train, *test)) == everything
        assert len(train) == 100 * 15
        tests.append(tuple(s.name for s in test))
    assert len(set(tests)) == len(tests), "seeds differ"
    assert tuple(s.name for s in read_scenes(scenes).split("test-seed34567")) == tests[-1]
    train, test = data.training_split("train-seed7", "test-seed7")
    assert not {s.name for s in train} & {s.name for s in test}
    for name in ("train-seed", "train-seed-1", "train-seed01", "val-seed1", "train-seed1.5"):
        with pytest.raises(DataError, match=f"no split '{name}'"):
            data.split(name)


def test_damage_is_named(scenes: Path) -> None:
    (scenes / "split_brown_train.txt").write_text("bedroom/image_0001.jpg\nbedroom/image_0\n")
    (scenes / "split_brown_test.txt").write_text("store/image_0001.jpg\n")
    with pytest.raises(DataError, match=r"split_brown_train.txt, line 2.*'bedroom/image_0'") as caught:
        read_scenes(scenes).split("train")
    assert "Restore" in caught.value.hint
    for index in range(100, 103):
        (scenes / "store" / f"image_{index:04d}.jpg").unlink()
    with pytest.raises(DataError, match=r"store holds 100 images") as caught:
        read_scenes(scenes)
    assert "--format folder" in caught.value.hint
    shutil.rmtree(scenes / "store")
    assert not recognise_scenes(scenes)
    with pytest.raises(DataError, match="store holds 0 images"):
        read_scenes(scenes)
