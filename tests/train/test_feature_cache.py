"""Cached features are the backbone's own; a cache that is stale, damaged or unfinished is never believed."""

from __future__ import annotations

import errno
import io
import os
import shutil
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import wildcat.train.feature_cache
from wildcat.config import Flip
from wildcat.data.dataset import DataSet, Sample
from wildcat.data.images import read_image
from wildcat.data.transforms import Preprocess
from wildcat.errors import ConfigError, ImageError, RunError
from wildcat.nn.backbones import Backbone, create_backbone
from wildcat.progress import Progress
from wildcat.train.batches import channel_statistics
from wildcat.train.feature_cache import Features, cached_features

PREPROCESS = Preprocess(64, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class Counter(Progress):
    """Counts what is finished; calls a function at each step."""

    def __init__(self, call: Callable[[], None] = lambda: None) -> None:
        self.total, self.call = 0, call

    def advance(self, count: int = 1, note: str = "") -> None:
        self.total += count
        self.call()


@pytest.fixture(scope="module")
def backbone(weights: str) -> Backbone:
    return create_backbone("test_resnet", weights).eval()


@pytest.fixture
def samples(shapes: DataSet, tmp_path: Path) -> list[Sample]:
    """Copies of five images, to be spoilt."""
    copies = []
    for sample in shapes.split("train")[:5]:
        shutil.copy(sample.path, tmp_path)
        copies.append(replace(sample, path=tmp_path / sample.path.name))
    return copies


@pytest.fixture
def computed(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Features, int]]:
    """`cached_features`, and how many images went through the backbone for it (in any view)."""

    def compute(samples: list[Sample], folder: Path, flip: Flip = "none", **options: object) -> tuple[Features, int]:
        passed = []
        forward, folded = Backbone.forward, wildcat.train.feature_cache.fold

        def uncounted(network: Backbone, size: int) -> Backbone:
            before = len(passed)
            made = folded(network, size)
            del passed[before:]  # the image on which folding is checked
            return made

        def counting(self: Backbone, images: torch.Tensor) -> torch.Tensor:
            passed.append(len(images))
            return forward(self, images)

        with monkeypatch.context() as patch:
            patch.setattr(Backbone, "forward", counting)
            patch.setattr(wildcat.train.feature_cache, "fold", uncounted)
            features = cached_features(backbone, samples, PREPROCESS, flip, folder, **options)  # type: ignore[arg-type]
        return features, sum(passed) - 1  # one for the probe of the map's size

    return compute


def direct(backbone: Backbone, sample: Sample, axes: tuple[int, ...]) -> np.ndarray:
    """What the backbone makes of one image on its own, mirrored by NumPy, in half precision."""
    image = PREPROCESS(read_image(sample.path)).numpy()
    mirrored = np.ascontiguousarray(np.flip(image, axes) if axes else image)
    with torch.no_grad():
        images = torch.from_numpy(mirrored)[None].contiguous(memory_format=torch.channels_last)
        features: np.ndarray = backbone(images)[0].numpy()
    return features.astype(np.float16).astype(np.float32)


@pytest.mark.parametrize(
    ("flip", "views"), [("none", [()]), ("horizontal", [(), (2,)]), ("both", [(), (2,), (1,), (1, 2)])]
)
def test_features_are_the_backbones_in_half_precision(
    computed: Callable[..., tuple[Features, int]],
    backbone: Backbone,
    samples: list[Sample],
    cache: Path,
    flip: Flip,
    views: list[tuple[int, ...]],
) -> None:
    features, passes = computed(samples, cache, flip, batch_size=2)
    assert (len(features), features.views, passes) == (5, len(views), 5 * len(views))
    expected = np.stack([[direct(backbone, sample, axes) for axes in views] for sample in samples])
    for v in range(len(views)):
        got = features.batch([3, 0, 4], [v] * 3)
        assert got.dtype == torch.float32
        np.testing.assert_allclose(got, expected[[3, 0, 4], v], rtol=2e-3, atol=1e-4)  # half precision rounds
    np.testing.assert_allclose(features.batch([2, 1]), expected[[2, 1], 0], rtol=2e-3, atol=1e-4)
    mean, std = channel_statistics(features.batch(range(5), [v] * 5) for v in range(len(views)))
    np.testing.assert_allclose(mean, expected.mean(axis=(0, 1, 3, 4)), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(std, expected.std(axis=(0, 1, 3, 4)), rtol=1e-3, atol=1e-5)


def test_the_spread_of_a_channel_far_from_zero_is_exact() -> None:
    values = np.random.default_rng(0).normal([0, 3000], [1, 0.1], (40, 9, 9, 2)).transpose(0, 3, 1, 2)
    values = values.astype(np.float32)
    mean, std = channel_statistics(torch.from_numpy(values).split(7))
    np.testing.assert_allclose(mean, values.mean(axis=(0, 2, 3), dtype=np.float64), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(std, values.std(axis=(0, 2, 3), dtype=np.float64), rtol=1e-4)


def test_batches_side_by_side_share_the_cores_and_keep_their_order(
    backbone: Backbone, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[tuple[str, int]] = set()
    forward = Backbone.forward

    def watched(self: Backbone, images: torch.Tensor) -> torch.Tensor:
        seen.add((threading.current_thread().name.partition("_")[0], torch.get_num_threads()))
        return forward(self, images)

    monkeypatch.setattr(Backbone, "forward", watched)
    before, found = torch.get_num_threads(), {}
    try:
        for threads in (1, 5):
            torch.set_num_threads(threads)
            folder = tmp_path / str(threads)
            found[threads] = cached_features(backbone, samples * 2, PREPROCESS, "horizontal", folder, batch_size=1)
            assert torch.get_num_threads() == threads
            if threads == 1:
                assert seen == {("MainThread", 1)}
    finally:
        torch.set_num_threads(before)
    assert ("wildcat-batch", 1) in seen, "four at a time, of the five"
    for view in (0, 1):
        one, several = (features.batch(range(5), [view] * 5) for features in found.values())
        torch.testing.assert_close(one, several, rtol=2e-3, atol=1e-4)


def test_a_bad_image_among_batches_side_by_side_is_named(
    backbone: Backbone, samples: list[Sample], cache: Path
) -> None:
    samples[3].path.write_bytes(b"no image")
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with pytest.raises(ImageError, match=samples[3].path.name):
            cached_features(backbone, samples, PREPROCESS, "none", cache, batch_size=1)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert not list(cache.rglob("shard-*")), "nothing is left of the shard"


def test_what_is_there_is_not_computed_again(
    computed: Callable[..., tuple[Features, int]], samples: list[Sample], cache: Path
) -> None:
    first, _ = computed(samples[:3], cache, batch_size=2)
    again, passes = computed(samples[:3], cache)
    assert passes == 0
    assert torch.equal(first.batch([0, 1, 2]), again.batch([0, 1, 2]))
    mirrored, passes = computed([samples[4], samples[2], samples[0]], cache, "horizontal")
    assert passes == 2 * 3
    plain, passes = computed([samples[4], samples[2]], cache)
    assert passes == 0, "features of mirrored views begin with the plain one"
    assert torch.equal(plain.batch([0, 1]), mirrored.batch([0, 1]))
    done = Counter()
    computed(samples, cache, "horizontal", progress=done)
    assert done.total == 10


def test_an_image_listed_twice(
    computed: Callable[..., tuple[Features, int]], samples: list[Sample], cache: Path
) -> None:
    features, passes = computed([samples[0], samples[1], samples[0]], cache)
    assert passes == 2
    assert torch.equal(features.batch([0]), features.batch([2]))


def test_a_touched_image_is_computed_again(
    computed: Callable[..., tuple[Features, int]], samples: list[Sample], cache: Path
) -> None:
    before, _ = computed(samples, cache)
    os.utime(samples[1].path, (1, 1))
    assert computed(samples, cache)[1] == 1, "another time, even of the same size"
    shutil.copy(samples[0].path, samples[3].path)
    after, passes = computed(samples, cache)
    assert passes == 1
    torch.testing.assert_close(after.batch([3]), before.batch([0]), rtol=2e-3, atol=1e-4)  # in another batch
    torch.testing.assert_close(after.batch([1]), before.batch([1]), rtol=2e-3, atol=1e-4)
    assert torch.equal(after.batch([0, 2, 4]), before.batch([0, 2, 4])), "these come from the cache"


@pytest.mark.parametrize("fault", ["cut", "gone", "record", "record kind", "shape"])
def test_a_damaged_cache_is_computed_again(
    computed: Callable[..., tuple[Features, int]], samples: list[Sample], cache: Path, fault: str
) -> None:
    before = computed(samples, cache)[0].batch(range(5)).clone()
    (data,), (record,) = cache.rglob("*.f16"), cache.rglob("*.json")
    if fault == "cut":
        data.write_bytes(data.read_bytes()[:-2])
    elif fault == "gone":
        data.unlink()
    elif fault == "record":
        record.write_text(record.read_text()[:-20])
    elif fault == "record kind":
        record.write_text("[]")
    else:
        record.write_text(record.read_text().replace('"shape": [\n    5', '"shape": [\n    6'))
    after, passes = computed(samples, cache)
    assert passes == 5
    assert torch.equal(after.batch(range(5)), before)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a list of the open files, and names of any bytes")
def test_shards_keep_no_file_open(
    computed: Callable[..., tuple[Features, int]],
    samples: list[Sample],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "not unicode \udcff"
    monkeypatch.setattr(wildcat.train.feature_cache, "SHARD", 1)
    for passes in (5, 0):
        before = len(list(Path("/proc/self/fd").iterdir()))
        features, passed = computed(samples, folder)
        assert len(list(Path("/proc/self/fd").iterdir())) - before <= len(features.locks) < 5
        assert passed == passes and len(list(folder.rglob("*.f16"))) == 5


def test_a_shortage_of_files_is_not_taken_for_damage(
    computed: Callable[..., tuple[Features, int]],
    samples: list[Sample],
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    computed(samples, cache)

    def refuse(*_: object, **__: object) -> str:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        computed(samples, cache)


def test_other_weights_and_other_preprocessing_are_other_features(
    computed: Callable[..., tuple[Features, int]], backbone: Backbone, samples: list[Sample], cache: Path
) -> None:
    computed(samples, cache)
    for other, preprocess in [
        (create_backbone("test_resnet", "none").eval(), PREPROCESS),
        (backbone, replace(PREPROCESS, mean=(0.4, 0.5, 0.5))),
        (backbone, replace(PREPROCESS, size=96)),
        (backbone, replace(PREPROCESS, interpolation="bilinear")),
    ]:
        shards = len(list(cache.rglob("*.f16")))
        cached_features(other, samples, preprocess, "none", cache)
        assert len(list(cache.rglob("*.f16"))) == shards + 1


@pytest.mark.parametrize("when", ["computing", "recording"])
def test_an_interruption_leaves_nothing_unfinished(
    computed: Callable[..., tuple[Features, int]],
    samples: list[Sample],
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    when: str,
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if when == "recording":
            patch.setattr(wildcat.train.feature_cache, "write_json", interrupt)
        calls = iter(range(10))
        computed(
            samples,
            cache,
            "horizontal",
            batch_size=2,
            progress=Counter(lambda: interrupt() if when == "computing" and next(calls) == 2 else None),
        )
    assert [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"] == []
    assert computed(samples, cache, "horizontal")[1] == 10


def test_finished_shards_survive_an_interruption(
    computed: Callable[..., tuple[Features, int]],
    samples: list[Sample],
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wildcat.train.feature_cache, "SHARD", 2)
    samples[3].path.write_bytes(b"no image")
    with pytest.raises(ImageError, match="is not an image"):
        computed(samples, cache)
    features, passes = computed([samples[i] for i in (0, 1, 2, 4)], cache)
    assert passes == 2
    assert len(features) == 4


def test_a_disk_that_is_full_in_the_middle(
    computed: Callable[..., tuple[Features, int]], samples: list[Sample], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a thread could not write is told, and no part of it stays."""
    opened = os.fdopen

    class Full(io.BufferedWriter):
        def write(self, content: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(RunError, match=r"shard-.* cannot be written: No space left"):
        patch.setattr(os, "fdopen", lambda handle, mode: Full(opened(handle, mode).detach()))  # type: ignore[union-attr]
        computed(samples, cache, batch_size=2)
    assert [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"] == []
    assert computed(samples, cache)[1] == 5


def test_the_cache_is_bounded_and_nothing_in_use_is_removed(
    backbone: Backbone, samples: list[Sample], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_size(size: int) -> Features:
        return cached_features(backbone, samples, replace(PREPROCESS, size=size), "none", cache)

    monkeypatch.setenv("WILDCAT_CACHE_GB", "0")
    first, second = of_size(64), of_size(96)
    expected = first.batch(range(5)).clone()
    assert len(list(cache.rglob("*.f16"))) == 2, "both are in use"
    assert torch.equal(of_size(64).batch(range(5)), expected)
    del second
    third = of_size(128)
    assert sorted(features.shape[1] for features in (first, third)) == [2, 4]
    assert len(list(cache.rglob("*.f16"))) == 2, "that of 96 pixels made room"
    monkeypatch.setenv("WILDCAT_CACHE_GB", "many")
    with pytest.raises(ConfigError, match="WILDCAT_CACHE_GB=many"):
        of_size(64)


def test_amp_computes_in_float32_where_bf16_is_emulated(
    computed: Callable[..., tuple[Features, int]],
    samples: list[Sample],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("wildcat.device.cpu_has_bf16", lambda: False)
    expected, _ = computed(samples, tmp_path / "cache")
    features, count = computed(samples, tmp_path / "cache", amp=True)
    assert count == 0, "the same features"
    assert torch.equal(features.batch([0, 1]), expected.batch([0, 1]))
    monkeypatch.setattr("wildcat.device.cpu_has_bf16", lambda: True)
    features, count = computed(samples, tmp_path / "cache", amp=True)
    assert count == len(samples)
    assert not torch.equal(features.batch([0, 1]), expected.batch([0, 1]))


def test_a_missing_image_is_named(
    computed: Callable[..., tuple[Features, int]], samples: list[Sample], cache: Path
) -> None:
    samples[2].path.unlink()
    with pytest.raises(ImageError, match=rf"{samples[2].path.name} cannot be read: No such file"):
        computed(samples, cache)


def test_features_beyond_half_precision_are_refused(
    samples: list[Sample], cache: Path, monkeypatch: pytest.MonkeyPatch, backbone: Backbone
) -> None:
    monkeypatch.setattr(Backbone, "forward", lambda self, images: torch.full((len(images), 96, 2, 2), 1e5))
    with pytest.raises(RunError, match="outside the range of half precision"):
        cached_features(backbone, samples, PREPROCESS, "none", cache)
    assert list(cache.rglob("*.part")) == []


def test_a_cache_that_cannot_be_written(backbone: Backbone, samples: list[Sample], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file.* cannot be written"):
        cached_features(backbone, samples, PREPROCESS, "none", tmp_path / "file" / "features")


def test_what_killed_trainings_left_goes_and_what_others_are_writing_stays(
    computed: Callable[..., tuple[Features, int]], samples: list[Sample], tmp_path: Path
) -> None:
    computed(samples, tmp_path / "cache")
    (folder,) = (path for path in (tmp_path / "cache").iterdir() if path.is_dir())
    sound = set(folder.iterdir())
    left = [folder / name for name in ("shard-a.part", "shard-b.f16", ".shard-c.json.abcdefgh.part")]
    for path in left:
        path.touch()
    assert computed(samples, tmp_path / "cache")[1] == 0
    assert set(folder.iterdir()) == sound | set(left)
    for path in (*left, *sound):
        os.utime(path, (1, 1))
    assert computed(samples, tmp_path / "cache")[1] == 0
    assert set(folder.iterdir()) == sound
