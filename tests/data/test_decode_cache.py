"""Decoded images are those of the files, from any process; what is stale, damaged or unfinished is decoded again."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import wildcat.data.decode_cache
from wildcat.data.dataset import Sample
from wildcat.data.decode_cache import ROW, DecodeCache
from wildcat.data.images import Reduced, Spare, as_stored, read_reduced
from wildcat.data.loader import Augment, ImageDataset, load_batches
from wildcat.data.transforms import Preprocess
from wildcat.errors import DataError, ImageError

SIZE = (60, 40)
BYTES = 3 * 60 * 40
ROOMY = 10**6
ORDER = [[2, 0], [1, 3]]


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Three JPEGs and a PNG of noise."""
    rng = np.random.default_rng(0)
    made = [tmp_path / name for name in ("a.jpg", "b.jpg", "c.jpg", "d.png")]
    for path in made:
        Image.fromarray(rng.integers(0, 256, (*SIZE[::-1], 3), dtype=np.uint8)).save(path)
    return made


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the images that are decoded, as they are."""
    names: list[str] = []

    def noting(path: Path, spare: Spare) -> Reduced:
        names.append(path.name)
        return read_reduced(path, spare)

    monkeypatch.setattr(wildcat.data.decode_cache, "read_ref_reduced", noting)
    return names


def opened(folder: Path, paths: Sequence[Path], limit: int = ROOMY, spare: Spare = as_stored) -> DecodeCache:
    return DecodeCache(folder / "kept", [(path, spare) for path in paths], limit)


def same(kept: DecodeCache, path: Path, spare: Spare = as_stored) -> bool:
    (image, size), (expected, own) = kept(path, spare), read_reduced(path, spare)
    return size == own and np.array_equal(np.asarray(image), np.asarray(expected))


@pytest.mark.parametrize("spare", [1.0, 2.0])
def test_each_is_decoded_once(tmp_path: Path, paths: list[Path], decoded: list[str], spare: float) -> None:
    for kept in (opened(tmp_path, paths, spare=lambda _: spare), opened(tmp_path, paths, spare=lambda _: spare)):
        for _ in range(2):
            assert all(same(kept, path, lambda _: spare) for path in paths)
    assert decoded == ["a.jpg", "b.jpg", "c.jpg", "d.png"]
    assert len(list((tmp_path / "kept").iterdir())) == 1


def test_an_upright_image_is_kept_upright(tmp_path: Path, decoded: list[str]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.effect_noise((64, 48), 80).save(tmp_path / "turned.jpg", exif=exif)
    for spare in (1.0, 2.0):
        kept = opened(tmp_path, [tmp_path / "turned.jpg"], spare=lambda _, spare=spare: spare)
        for _ in range(2):
            assert same(kept, tmp_path / "turned.jpg", lambda _, spare=spare: spare)
            assert kept(tmp_path / "turned.jpg", as_stored)[1] == (48, 64)
    assert decoded == ["turned.jpg"] * 2


def test_training_does_not_see_whether_images_are_kept(tmp_path: Path, paths: list[Path]) -> None:
    """Not in one process and not in several, not in the first epoch and not later."""
    samples = [Sample(path.name, path, np.array([1], np.int8)) for path in paths]
    plain = ImageDataset(samples, Preprocess(8, (0.5,) * 3, (0.5,) * 3), Augment(0))
    reader = DecodeCache(tmp_path / "kept", [(path, plain.spare) for path in paths], ROOMY)
    kept = ImageDataset(samples, plain.preprocess, plain.augment, reader)
    for epoch, workers in enumerate((0, 2, 0)):
        for (images, _), (expected, _) in zip(
            load_batches(kept, [[2, 0], [1, 3]], epoch, workers),
            load_batches(plain, [[2, 0], [1, 3]], epoch),
            strict=True,
        ):
            assert images.equal(expected)


def test_another_process_takes_what_is_there(tmp_path: Path, paths: list[Path], decoded: list[str]) -> None:
    kept = opened(tmp_path, paths)
    kept(paths[0], as_stored)
    copy = pickle.loads(pickle.dumps(kept))
    copy(paths[1], as_stored)
    assert all(same(one, path) for one in (kept, copy) for path in paths[:2])
    assert decoded == ["a.jpg", "b.jpg"]
    kept.path.unlink()  # a third one needed the room
    assert all(same(one, paths[0]) for one in (kept, copy, pickle.loads(pickle.dumps(kept))))
    assert decoded == ["a.jpg", "b.jpg", "a.jpg"]


def test_no_more_than_the_limit_is_kept(tmp_path: Path, paths: list[Path], decoded: list[str]) -> None:
    limit = ROW * 4 + 2 * BYTES + BYTES // 2
    for _ in range(2):
        kept = opened(tmp_path, paths, limit)
        assert all(same(kept, path) for path in paths)
    assert decoded == ["a.jpg", "b.jpg", "c.jpg", "d.png", "c.jpg", "d.png"]
    assert sum(path.stat().st_size for path in (tmp_path / "kept").iterdir()) <= limit


def test_files_of_other_lists_make_room_the_longest_unused_first(tmp_path: Path, paths: list[Path]) -> None:
    made = []
    for i, chosen in enumerate((paths[:1], paths[1:2], paths[2:3])):
        kept = opened(tmp_path, chosen)
        kept(chosen[0], as_stored)
        os.utime(kept.path, (i, i))
        made.append(kept)
    disk = [kept.path.stat().st_blocks * 512 for kept in made]
    last = opened(tmp_path, paths[3:], limit=ROW + BYTES + disk[1] + disk[2])
    assert [kept.path.exists() for kept in made] == [False, True, True]
    assert same(made[0], paths[0]) and same(last, paths[3]), "a process that has one open reads on in it"


@pytest.mark.parametrize("how", ["touched", "replaced", "smaller"])
def test_a_changed_image_is_decoded_again(tmp_path: Path, paths: list[Path], decoded: list[str], how: str) -> None:
    kept = opened(tmp_path, paths)
    kept(paths[0], as_stored)
    if how == "touched":
        os.utime(paths[0], (1, 1))
    elif how == "replaced":
        shutil.copy(paths[1], paths[0])
        os.utime(paths[0], (2, 2))
    else:
        Image.new("RGB", (9, 7), "red").save(paths[0])
    again = opened(tmp_path, paths)
    assert again.path != kept.path
    assert same(again, paths[0]) and same(again, paths[0])
    assert decoded == ["a.jpg", "a.jpg"]


def test_an_image_that_changes_while_it_is_used_is_not_kept(
    tmp_path: Path, paths: list[Path], decoded: list[str]
) -> None:
    kept = opened(tmp_path, paths)
    Image.new("RGB", (9, 7), "red").save(paths[0])
    assert same(kept, paths[0]) and same(kept, paths[0])
    assert decoded == ["a.jpg", "a.jpg"]


@pytest.mark.parametrize("where", ["image", "checksum", "length", "cut"])
def test_damage_is_noticed(tmp_path: Path, paths: list[Path], decoded: list[str], where: str) -> None:
    """A byte that has changed; or what a process leaves that is killed before it has written the last one."""
    kept = opened(tmp_path, paths)
    for path in paths:
        kept(path, as_stored)
    content = bytearray(kept.path.read_bytes())
    if where == "cut":
        content = content[: len(content) - BYTES // 2]
    else:
        content[{"image": ROW * 4 + BYTES + 77, "checksum": ROW, "length": ROW + 8}[where]] ^= 1
    kept.path.write_bytes(content)
    decoded.clear()
    again = opened(tmp_path, paths)
    for _ in range(2):
        assert all(same(again, path) for path in paths)
    assert decoded == (["d.png"] if where == "cut" else ["b.jpg"])


def test_a_full_disk_only_costs_time(
    tmp_path: Path, paths: list[Path], decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write: Callable[[int, bytes, int], int] = os.pwrite
    kept = opened(tmp_path, paths)
    with monkeypatch.context() as patch:  # a disk may take a part before it is full
        patch.setattr(os, "pwrite", lambda handle, content, place: write(handle, content[:5], place))
        assert same(kept, paths[0]) and same(kept, paths[0])
    assert same(kept, paths[0]) and same(kept, paths[0])
    assert decoded == ["a.jpg"] * 3


def test_what_cannot_be_read_keeps_its_sentence(tmp_path: Path, paths: list[Path]) -> None:
    paths[1].write_bytes(b"no image")
    paths[2].write_bytes(paths[2].read_bytes()[:400])
    kept = opened(tmp_path, paths)
    assert same(kept, paths[0]) and same(kept, paths[3])
    for path in paths[1:3]:
        with pytest.raises(ImageError, match=path.name):
            kept(path, as_stored)


def test_a_folder_that_cannot_be_made(tmp_path: Path, paths: list[Path]) -> None:
    (tmp_path / "kept").write_text("")
    with pytest.raises(DataError, match=r"kept.* cannot be written") as caught:
        opened(tmp_path, paths)
    assert "--cache-images" in caught.value.hint
