"""Batches: the same images, order and crops for any number of workers, which stay alive between epochs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.scale.conftest import png, shard
from wildcat.data import loader, open_dataset
from wildcat.data.dataset import Sample
from wildcat.data.image_ref import decode_image
from wildcat.data.images import Decoded, MaxDownscale
from wildcat.data.loader import (
    Augment,
    BatchLoader,
    ImageDataset,
    batch_indices,
    epoch_order,
    load_batches,
    suggested_workers,
)
from wildcat.data.transforms import Preprocess
from wildcat.errors import DataError, ImageError, WildcatError

PREPROCESS = Preprocess(16, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    made = []
    for i in range(7):
        path = folder / f"{i}.png"
        Image.fromarray(rng.integers(0, 256, (20 + i, 30 - i, 3), dtype=np.uint8)).save(path)
        made.append(Sample(f"{i}", path, np.array([1 if i == c else -1 for c in range(7)], np.int8)))
    return made


@pytest.mark.parametrize("augment", [None, Augment(seed=3, crop_scale=0.3, flip="both")])
def test_batches_do_not_depend_on_the_number_of_workers(samples: list[Sample], augment: Augment | None) -> None:
    images = ImageDataset(samples, PREPROCESS, augment)
    batches = batch_indices(epoch_order(len(samples), 0, 2), 3)
    alone, pair = (list(load_batches(images, batches, epoch=2, workers=w)) for w in (0, 2))
    assert len(alone) == len(pair) == len(batches)
    for (inputs, labels), (other_images, other_labels) in zip(alone, pair, strict=True):
        assert torch.equal(inputs, other_images)
        assert torch.equal(labels, other_labels)
    assert [int(i) for _, labels in alone for i in labels.argmax(1)] == epoch_order(len(samples), 0, 2)


def test_an_image_is_the_same_in_any_batch(samples: list[Sample]) -> None:
    """Its crop depends on (seed, epoch, index) alone, so that a training resumed within an epoch repeats it."""
    images = ImageDataset(samples, PREPROCESS, Augment(seed=3))
    large = {
        int(y.argmax()): x
        for xs, ys in load_batches(images, [[0, 1, 2, 3], [4, 5, 6]], 1)
        for x, y in zip(xs, ys, strict=True)
    }
    for index in (5, 2):
        ((inputs, labels),) = load_batches(images, [[index]], 1)
        assert int(labels.argmax()) == index
        assert torch.equal(inputs[0], large[index])


def test_crops_change_with_seed_and_epoch_only(samples: list[Sample]) -> None:
    def first(seed: int, epoch: int) -> torch.Tensor:
        return next(iter(load_batches(ImageDataset(samples, PREPROCESS, Augment(seed)), [[0]], epoch)))[0]

    assert torch.equal(first(0, 0), first(0, 0))
    assert not torch.equal(first(0, 0), first(1, 0))
    assert not torch.equal(first(0, 0), first(0, 1))


def test_reading_draws_nothing_from_the_global_generator(samples: list[Sample]) -> None:
    """Otherwise dropout would differ between an uninterrupted and a resumed training."""
    before = torch.get_rng_state()
    for workers in (0, 1):
        list(load_batches(ImageDataset(samples, PREPROCESS, Augment(0)), [[0, 1], [2]], workers=workers))
    assert torch.equal(torch.get_rng_state(), before)


@given(count=st.integers(0, 50), seed=st.integers(0, 2**32), epoch=st.integers(0, 100))
def test_an_epoch_takes_each_image_once(count: int, seed: int, epoch: int) -> None:
    order = epoch_order(count, seed, epoch)
    assert sorted(order) == list(range(count))
    assert order == epoch_order(count, seed, epoch)


def test_orders_differ_between_seeds_and_epochs() -> None:
    orders = {tuple(epoch_order(20, seed, epoch)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


@given(count=st.integers(0, 60), size=st.integers(1, 9))
def test_batches_hold_every_index_in_order(count: int, size: int) -> None:
    batches = batch_indices(range(count), size)
    assert [i for batch in batches for i in batch] == list(range(count))
    assert all(len(batch) == size for batch in batches[:-2])
    if count > 1 and size > 1:
        assert min(len(batch) for batch in batches) > 1, "batch normalisation cannot take a batch of one"
        assert max(len(batch) for batch in batches) <= size + 1


@pytest.mark.parametrize("workers", [0, 2])
def test_the_error_of_an_unreadable_image_keeps_its_message(
    samples: list[Sample], tmp_path: Path, workers: int
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"<html>not found</html>")
    bad = Sample("broken", broken, samples[0].labels)
    batches = load_batches(ImageDataset([*samples, bad], PREPROCESS), [[0, 1], [2, 7], [3]], workers=workers)
    assert len(next(batches)[0]) == 2
    with pytest.raises(ImageError) as caught:
        list(batches)
    assert caught.value.message.startswith(f"{broken} is not an image")
    assert "Convert it to JPEG or PNG" in caught.value.hint


def test_the_error_of_a_missing_image_keeps_its_message(samples: list[Sample], tmp_path: Path) -> None:
    gone = Sample("gone", tmp_path / "gone.jpg", samples[0].labels)
    with pytest.raises(ImageError, match=r"gone\.jpg does not exist"):
        list(load_batches(ImageDataset([gone], PREPROCESS), [[0]], workers=1))


def test_the_error_of_a_missing_shard_keeps_its_message(tmp_path: Path) -> None:
    members = {"0.png": png(0), "0.cls": b"a", "1.png": png(1), "1.cls": b"b"}
    path = shard(tmp_path / "train-0.tar", members)
    samples = open_dataset(tmp_path).split("train")
    path.unlink()
    with pytest.raises(DataError) as caught:
        list(load_batches(ImageDataset(samples, PREPROCESS), [[0, 1]], workers=1))
    assert "Traceback" not in caught.value.message and caught.value.hint


class _LabelledWithPid(ImageDataset):
    """Its labels are the pid of the process that read the image."""

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor] | WildcatError:
        item = super().__getitem__(key)
        return item if isinstance(item, WildcatError) else (item[0], torch.tensor(os.getpid()))


UNCAUGHT = """
import sys
from pathlib import Path
import numpy as np
from wildcat.data import Sample
from wildcat.data.loader import ImageDataset, load_batches
from wildcat.data.transforms import Preprocess
sample = Sample("bad", Path(sys.argv[1]), np.array([1], np.int8))
batches = load_batches(ImageDataset([sample], Preprocess(32, (0.5,) * 3, (0.5,) * 3)), [[0], [0]], workers=1)
next(batches)
"""


def test_a_program_that_fails_ends_with_its_workers(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    done = subprocess.run(
        [sys.executable, "-c", UNCAUGHT, tmp_path / "bad.png"], check=False, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1 and "ImageError" in done.stderr


def test_workers_stay_alive_between_epochs(samples: list[Sample]) -> None:
    batch_loader = BatchLoader(_LabelledWithPid(samples, PREPROCESS), workers=2)
    batches = batch_indices(range(7), 2)
    first, second = ({int(p) for _, pids in batch_loader.batches(batches, epoch) for p in pids} for epoch in (0, 1))
    assert first == second
    assert len(first) == 2
    assert os.getpid() not in first


@pytest.mark.parametrize("workers", [0, 2])
def test_each_epoch_has_its_own_batches_and_crops(samples: list[Sample], workers: int) -> None:
    images = ImageDataset(samples, PREPROCESS, Augment(seed=3))
    batch_loader = BatchLoader(images, workers)
    next(batch_loader.batches([[0], [1], [2], [3], [4]], 9))  # abandoned
    for epoch in (0, 1):
        batches = batch_indices(epoch_order(7, 0, epoch), 3)
        loaded = list(batch_loader.batches(batches, epoch))
        assert [int(i) for _, labels in loaded for i in labels.argmax(1)] == epoch_order(7, 0, epoch)
        for (inputs, _), (expected, _) in zip(loaded, load_batches(images, batches, epoch), strict=True):
            assert torch.equal(inputs, expected)


def test_an_unreadable_image_leaves_the_loader_usable(samples: list[Sample], tmp_path: Path) -> None:
    gone = Sample("gone", tmp_path / "gone.jpg", samples[0].labels)
    batch_loader = BatchLoader(ImageDataset([*samples, gone], PREPROCESS), workers=2)
    with pytest.raises(ImageError, match=r"gone\.jpg does not exist"):
        list(batch_loader.batches([[0], [7], [1], [2]]))
    assert len(list(batch_loader.batches([[0], [1], [2]]))) == 3


def test_no_batches(samples: list[Sample]) -> None:
    assert list(load_batches(ImageDataset(samples, PREPROCESS), [], workers=2)) == []


def test_suggested_workers_leave_cores_to_a_busy_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, beside_cpu, beside_gpu in [(1, 1, 1), (2, 1, 2), (6, 3, 6), (64, 4, 8)]:
        monkeypatch.setattr("os.sched_getaffinity", lambda pid, n=cores: set(range(n)), raising=False)
        assert (suggested_workers("cpu"), suggested_workers("cuda")) == (beside_cpu, beside_gpu)


@pytest.mark.parametrize(("crop_scale", "scale"), [(None, 4), (0.5, 2), (0.01, 1)])
def test_large_jpegs_are_downscaled_as_far_as_the_crop_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crop_scale: float | None, scale: int
) -> None:
    """The tensor nearly equals that of the full image; for small crops every pixel is decoded."""
    path = tmp_path / "large.jpg"
    colours = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(colours).resize((192, 144), Image.Resampling.BICUBIC).save(path, quality=95)
    augment = None if crop_scale is None else Augment(0, crop_scale, "none")
    sizes = []

    def recording(path: Path, max_downscale: MaxDownscale, _intensity: object) -> Decoded:
        image, size = decode_image(path, max_downscale)
        sizes.append((image.size, size))
        return image, size

    samples = [Sample("large", path, np.array([1], np.int8))]
    images = ImageDataset(samples, PREPROCESS, augment)
    for epoch in range(12):
        monkeypatch.setattr(loader, "decode_image", recording)
        one = images[epoch, 0]
        monkeypatch.setattr(loader, "decode_image", lambda path, *_: decode_image(path))
        other = images[epoch, 0]
        assert not isinstance(one, ImageError) and not isinstance(other, ImageError)
        levels = (one[0] - other[0]).abs() * 0.25 * 255
        assert levels.mean() < 6, "crops of the copy begin at the nearest of its pixels, up to 11 levels apart"
    assert set(sizes) == {((192 // scale, 144 // scale), (192, 144))}
