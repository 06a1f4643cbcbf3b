"""Miniatures: what their writers say must hold of the files; each reader's own tests read them too."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from wildcat.data.images import read_image
from wildcat.data.miniatures import CATEGORY_IDS, write_action, write_coco, write_indoor, write_scenes
from wildcat.data.readers.scene15 import SCENE_CLASSES
from wildcat.data.readers.synthetic import SHAPE_CLASSES, draw_scene
from wildcat.data.registry import open_dataset
from wildcat.errors import ConfigError, DataError


@pytest.fixture
def scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """15 classes of 5 images, 4 of them to train with: the protocol's 100 would take seconds to draw."""
    for module in ("miniatures", "readers.scene15"):
        monkeypatch.setattr(f"wildcat.data.{module}.TRAIN_PER_CLASS", 4)
    return write_scenes(tmp_path / "s", test=1)


def test_scenes(scenes: Path) -> None:
    data = open_dataset(scenes)
    assert (data.format, data.notes) == ("scenes", ())
    assert (len(data.split("train")), len(data.split("test"))) == (60, 15)
    assert [s.path.parent.name for s in data.split("test")] == list(SCENE_CLASSES)
    image = np.asarray(read_image(data.split("test")[0].path))
    assert image.shape == (32, 40, 3)
    assert (image[..., 0] == image[..., 1]).all() and (image[..., 1] == image[..., 2]).all(), "grey"


def test_any_seed_of_scenes(scenes: Path) -> None:
    data = open_dataset(scenes)
    assert data.splits == ("train", "test", "train-seed0", "test-seed0"), "the list stays short"
    everything = sorted(p.relative_to(scenes).as_posix() for p in scenes.glob("*/*.jpg"))
    seen = []
    for seed in (0, 1, 12, 34567):
        train, test = (data.split(f"{part}-seed{seed}") for part in ("train", "test"))
        assert sorted(s.name for s in (*train, *test)) == everything
        assert len(train) == 60
        seen.append(tuple(s.name for s in test))
    assert len(set(seen)) == len(seen), "seeds differ"
    again = open_dataset(scenes)
    assert tuple(s.name for s in again.split("test-seed34567")) == seen[-1]
    train, test = data.training_split("train-seed7", "test-seed7")
    assert not {s.name for s in train} & {s.name for s in test}
    for name in ("train-seed", "train-seed-1", "train-seed01", "val-seed1", "train-seed1.5"):
        with pytest.raises(DataError, match=f"no split '{name}'"):
            data.split(name)


@pytest.mark.parametrize(("others", "most"), [((), 1), ((3, 3), 3)])
def test_shapes_that_are_asked_for(others: tuple[int, ...], most: int) -> None:
    counts = set()
    for seed in range(10):
        _, mask, shapes = draw_scene(np.random.default_rng(seed), (64, 80), 3, others)
        _, regions = ndimage.label(mask == 4)
        assert regions == len(shapes) == sum(shape.name == SHAPE_CLASSES[3] for shape in shapes)
        assert set(np.unique(mask)) == {0, 4, 255}
        counts.add(regions)
    assert max(counts) == most


def test_coco_ids_are_awkward_on_purpose(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "c", train=3, val=2, size=(32, 40), year=2017)
    content = json.loads((root / "annotations" / "instances_val2017.json").read_text())
    assert [(row["id"], row["name"]) for row in content["categories"]] == list(
        zip(CATEGORY_IDS, SHAPE_CLASSES, strict=True)
    )
    assert list(CATEGORY_IDS) != sorted(CATEGORY_IDS)
    assert {row["image_id"] for row in content["annotations"]} == {3, 4}


Writer = Callable[..., Path]


@pytest.mark.parametrize("write", [write_coco, write_action, write_indoor])
def test_same_arguments_same_files(write: Writer, tmp_path: Path) -> None:
    first, second, other = (
        write(tmp_path / name, 2, 1, size=(32, 40), seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    files = sorted(p.relative_to(first) for p in first.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(second) for p in second.rglob("*") if p.is_file())
    assert all((first / p).read_bytes() == (second / p).read_bytes() for p in files)
    assert any((first / p).read_bytes() != (other / p).read_bytes() for p in files if p.suffix == ".jpg")


@pytest.mark.parametrize("write", [write_coco, write_action, write_indoor, write_scenes])
def test_mistakes(write: Writer, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sides of 32 pixels"):
        write(tmp_path / "s", size=(31, 64))
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match="holds something already"):
        write(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"], "nothing is left half done"


@pytest.mark.parametrize("write", [write_indoor, write_scenes])
def test_nothing_to_test_with(write: Writer, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="test=0"):
        write(tmp_path / "s", test=0)
