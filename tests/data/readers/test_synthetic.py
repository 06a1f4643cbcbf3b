"""Synthetic scenes: labels, boxes and masks agree with the pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from wildcat.data.cache import cache_folder
from wildcat.data.dataset import DataSet
from wildcat.data.images import read_image, read_mask
from wildcat.data.readers.synthetic import SHAPE_CLASSES, read_shapes, write_shapes
from wildcat.data.readers.voc import read_voc
from wildcat.errors import ConfigError, RunError


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return read_voc(write_shapes(tmp_path_factory.mktemp("shapes") / "s", train=50, val=10, size=(80, 112)))


def test_boxes_bound_the_connected_pixels_of_the_mask(shapes: DataSet) -> None:
    for sample in shapes.split("trainval"):
        assert sample.mask is not None and sample.boxes is not None and sample.box_classes is not None
        mask = read_mask(sample.mask)
        assert mask.shape == (80, 112)
        found = set()
        for index in range(len(SHAPE_CLASSES)):
            regions, _ = ndimage.label(mask == index + 1, structure=np.ones((3, 3)))
            found |= {(index, c.start, r.start, c.stop, r.stop) for r, c in ndimage.find_objects(regions)}
        assert found == {(int(c), *map(int, box)) for c, box in zip(sample.box_classes, sample.boxes, strict=True)}


def test_labels_follow_from_the_objects(shapes: DataSet) -> None:
    values = set()
    for sample in shapes.split("trainval"):
        assert sample.box_classes is not None and sample.box_difficult is not None
        for index in range(len(SHAPE_CLASSES)):
            difficult = sample.box_difficult[sample.box_classes == index]
            expected = -1 if len(difficult) == 0 else 1 if not difficult.all() else 0
            assert sample.labels[index] == expected
            values.add(expected)
    assert values == {1, 0, -1}, "present, difficult and absent must all occur"


def test_colour_is_independent_of_the_class(shapes: DataSet) -> None:
    colours: dict[int, list[np.ndarray]] = {index: [] for index in range(len(SHAPE_CLASSES))}
    for sample in shapes.split("train"):
        assert sample.mask is not None
        image, mask = np.asarray(read_image(sample.path)).astype(float), read_mask(sample.mask)
        for index, values in colours.items():
            if (mask == index + 1).any():
                colour = image[mask == index + 1].mean(axis=0)
                values.append(colour)
    for values in colours.values():
        assert len(values) >= 10
        assert np.std(values, axis=0).min() > 30


def test_a_ring_has_a_hole_and_a_disc_has_none(shapes: DataSet) -> None:
    for name, hole in (("ring", True), ("disc", False)):
        index = SHAPE_CLASSES.index(name)
        for sample in shapes.split("train"):
            assert sample.mask is not None
            mask = read_mask(sample.mask) == index + 1
            assert (ndimage.binary_fill_holes(mask) != mask).any() == (hole and mask.any())


def test_border_of_the_mask(shapes: DataSet) -> None:
    for sample in shapes.split("val"):
        assert sample.mask is not None
        mask = read_mask(sample.mask)
        shape = (mask > 0) & (mask < 255)
        assert np.array_equal(ndimage.binary_dilation(shape, np.ones((3, 3))) & ~shape, mask == 255)


def test_same_arguments_same_files(tmp_path: Path) -> None:
    first, second = (write_shapes(tmp_path / name, train=3, val=2, size=(40, 48), seed=7) for name in "ab")
    files = sorted(p.relative_to(first) for p in first.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(second) for p in second.rglob("*") if p.is_file())
    assert all((first / p).read_bytes() == (second / p).read_bytes() for p in files)
    more = write_shapes(tmp_path / "c", train=9, val=2, size=(40, 48), seed=7)
    other = write_shapes(tmp_path / "d", train=3, val=2, size=(40, 48), seed=8)
    image = Path("JPEGImages/000002.jpg")
    assert (more / image).read_bytes() == (first / image).read_bytes()
    assert (other / image).read_bytes() != (first / image).read_bytes()


def test_the_packaged_set_is_generated_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WILDCAT_CACHE", str(tmp_path / "cache"))
    assert cache_folder() == tmp_path / "cache"
    calls = []

    def small(folder: Path, **_: int) -> Path:
        calls.append(folder)
        return write_shapes(folder, train=2, val=1, size=(32, 32))

    monkeypatch.setattr("wildcat.data.readers.synthetic.write_shapes", small)
    for _ in range(2):
        data = read_shapes()
        assert (data.name, data.format, data.classes) == ("shapes", "shapes", SHAPE_CLASSES)
        assert len(data.split("train")) == 2
    assert len(calls) == 1


def test_default_cache_is_in_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WILDCAT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert cache_folder() == Path.home() / ".cache" / "wildcat"


def test_a_failure_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", no_space)
        with pytest.raises(RunError, match="No space left on device"):
            write_shapes(tmp_path / "s", train=1, val=0)
    assert list(tmp_path.iterdir()) == []


def test_mistakes(tmp_path: Path) -> None:
    for arguments in ({"train": 0}, {"val": -1}, {"size": (31, 64)}):
        with pytest.raises(ConfigError, match=str(next(iter(arguments)))):
            write_shapes(tmp_path / "s", **arguments)  # type: ignore[arg-type]
    (tmp_path / "notes.txt").touch()
    with pytest.raises(RunError, match="exists and is never overwritten"):
        write_shapes(tmp_path)
