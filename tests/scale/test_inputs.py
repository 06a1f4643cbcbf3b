"""Sources: which images are listed, in which order, with which bytes, and what is refused."""

from __future__ import annotations

import importlib
import io
import pickle
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.scale.conftest import png, shard
from wildcat.data import image_ref as stored
from wildcat.data import remote as places
from wildcat.data.image_ref import ImageLocation, load_image
from wildcat.data.remote import expand_braces
from wildcat.errors import ConfigError, DataError, ImageError
from wildcat.scale import inputs
from wildcat.scale.inputs import find_sources, image_locations, load_cells

fsspec = pytest.importorskip("fsspec")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def listed(*texts: object) -> list[ImageLocation]:
    return list(image_locations(find_sources([str(t) for t in texts])))


def same(image: Image.Image, content: bytes) -> bool:
    return bool(np.array_equal(np.asarray(image), np.asarray(Image.open(io.BytesIO(content)))))


@pytest.fixture
def memory() -> Iterator[Any]:
    store = fsspec.filesystem("memory")
    yield store
    store.store.clear()
    store.pseudo_dirs[:] = [""]


# --- files and folders ------------------------------------------------------------------------------------------------


def test_a_folder_is_walked_in_one_order_and_hidden_files_are_skipped(tmp_path: Path) -> None:
    for name in ("b.png", "a/z.png", "a/.x.png", ".h/y.png", "a/notes.txt", "c/d/e.JPG", "a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png(0))
    (tmp_path / "c" / "up").symlink_to(tmp_path)
    found = [Path(one.name).relative_to(tmp_path).as_posix() for one in listed(tmp_path)]
    assert found == ["a/z.png", "a.png", "b.png", "c/d/e.JPG"]
    assert [one.name for one in listed(tmp_path, tmp_path)] == [one.name for one in listed(tmp_path)]


def test_a_folder_of_shards_says_how_to_name_them(tmp_path: Path) -> None:
    shard(tmp_path / "a.tar", {"x.png": png(0)})
    with pytest.raises(DataError, match=r"holds no images") as caught:
        listed(tmp_path)
    assert "*.tar'" in caught.value.hint


def test_braces_are_ranges_and_lists(tmp_path: Path) -> None:
    assert expand_braces("s-{000..002}.tar") == ["s-000.tar", "s-001.tar", "s-002.tar"]
    assert expand_braces("{a,b}-{9..10}") == ["a-9", "a-10", "b-9", "b-10"]
    assert expand_braces("plain{x}") == ["plain{x}"]
    (tmp_path / "{1,2}.png").write_bytes(png(0))
    assert [one.name for one in listed(tmp_path / "{1,2}.png")] == [str(tmp_path / "{1,2}.png")]
    with pytest.raises(ConfigError, match=r"stands for 100,000,000 files"):
        expand_braces("{0..99999999}")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("gone.tar", r"gone\.tar does not exist"),
        ("s-{0..3}.tar", r"s-0\.tar does not exist"),
        ("*.tar", r"no file matches"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        listed(tmp_path / text)
    assert caught.value.hint


def test_a_folder_that_vanishes_is_not_a_thousand_broken_images(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(png(0))
    (one,) = listed(tmp_path / "in")
    (tmp_path / "in" / "a.png").unlink()
    with pytest.raises(ImageError, match="does not exist"):
        load_image(one)
    (tmp_path / "in").rmdir()
    with pytest.raises(DataError, match="has vanished") as caught:
        load_image(one)
    assert not isinstance(caught.value, ImageError)


# --- shards -----------------------------------------------------------------------------------------------------------


def test_images_of_shards_are_found_where_they_lie_from_any_process(tmp_path: Path) -> None:
    contents = {f"dir/{i:03}.png": png(i) for i in range(5)} | {"x" * 150 + ".png": png(7)}  # a long name has a header
    others = {"dir/000.json": b"{}", "000.cls": b"3"}
    shard(tmp_path / "s-00.tar", {**others, **contents})
    shard(tmp_path / "s-01.tar", {"a.jpg.txt": b"no", "b.PNG": png(9)})
    found = listed(tmp_path / "s-{00..01}.tar")
    assert [one.member for one in found] == [*contents, "b.PNG"]
    assert found[0].name == f"{tmp_path}/s-00.tar#dir/000.png"
    for one in reversed(found):
        again = pickle.loads(pickle.dumps(one))
        assert same(load_image(again), contents.get(one.member, png(9)))
    assert [one.name for one in listed(tmp_path / "s-*.tar")] == [one.name for one in found]


def test_a_shard_cut_anywhere_is_refused_and_what_was_listed_is_whole(tmp_path: Path) -> None:
    contents = {f"{i}.png": png(i) for i in range(4)}
    whole = shard(tmp_path / "s.tar", contents).read_bytes()
    with tarfile.open(tmp_path / "s.tar") as file:
        end = max(info.offset_data + info.size for info in file)
    for cut in range(0, end, 97):
        (tmp_path / "cut.tar").write_bytes(whole[:cut])
        found = []
        with pytest.raises(DataError, match=r"cut\.tar .*is cut or damaged") as caught:
            found.extend(image_locations(find_sources([str(tmp_path / "cut.tar")])))
        assert "--resume" in caught.value.hint
        for one in found:
            assert same(load_image(one), contents[one.member])


def test_damaged_headers_never_give_another_error(tmp_path: Path) -> None:
    whole = shard(tmp_path / "s.tar", {f"{i}.png": png(i) for i in range(3)}).read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        spoiled = bytearray(whole)
        for place in rng.integers(0, len(whole), 3):
            spoiled[place] ^= 1 << int(rng.integers(8))
        spoiled[int(rng.integers(512))] = int(rng.integers(256))
        (tmp_path / "bad.tar").write_bytes(spoiled)
        try:
            for one in image_locations(find_sources([str(tmp_path / "bad.tar")])):
                load_image(one)
        except DataError:
            refused += 1
    assert refused > 250


def test_links_devices_and_giants_are_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(0))
    kinds = {"s.png": tarfile.SYMTYPE, "h.png": tarfile.LNKTYPE, "d.png": tarfile.CHRTYPE, "f.png": tarfile.FIFOTYPE}
    members: dict[str, Any] = {"good.png": png(1), "big.png": png(2, (99, 99))}
    for name, kind in kinds.items():
        members[name] = tarfile.TarInfo(name)
        members[name].type, members[name].linkname = kind, str(secret)
    shard(tmp_path / "s.tar", members)
    monkeypatch.setattr(stored, "MAX_BYTES", len(png(1)))
    said = {}
    for one in listed(tmp_path / "s.tar"):
        try:
            load_image(one)
        except ImageError as error:
            said[one.member] = error.message
    assert set(said) == {*kinds, "big.png"}
    assert "is a link to" in said["s.png"] and "is a link to" in said["h.png"] and "is a device" in said["d.png"]
    assert "bytes; the limit is" in said["big.png"]


def test_a_header_that_claims_gigabytes_is_not_believed(tmp_path: Path) -> None:
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 4 << 30
    with (tmp_path / "bomb.tar").open("wb") as file:
        file.write(header.tobuf(tarfile.GNU_FORMAT))
        file.truncate(5 << 30)  # sparse: nothing is written
    with pytest.raises(DataError, match=r"a header claims 4,294,9"):
        listed(tmp_path / "bomb.tar")


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s.tar.gz").write_bytes(b"x")
    with pytest.raises(DataError, match="compressed archive"):
        listed(tmp_path / "s.tar.gz")


# --- tables -----------------------------------------------------------------------------------------------------------


def table(path: Path, columns: dict[str, Any], rows_in_group: int = 1000) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=rows_in_group)
    return path


def held(column: str | None, *texts: object, only: slice = slice(None)) -> list[Image.Image | str]:
    found = list(image_locations(find_sources([str(t) for t in texts]), column))[only]
    seen: list[Image.Image | str] = []
    for one in load_cells(found, column):
        try:
            seen.append(load_image(one))
        except ImageError as error:
            seen.append(error.message)
    return seen


@pytest.mark.parametrize("rows_in_group", [1, 7, 1000])
def test_rows_of_a_table_are_its_images(tmp_path: Path, rows_in_group: int) -> None:
    contents = [png(i) for i in range(50)]
    table(tmp_path / "t.parquet", {"id": range(50), "image": contents}, rows_in_group)
    for only in (slice(None), slice(13, 29), slice(49, 50), slice(0, 50, 9)):
        seen = held(None, tmp_path / "t.parquet", only=only)
        assert len(seen) == len(contents[only])
        assert all(same(s, c) for s, c in zip(seen, contents[only], strict=True) if isinstance(s, Image.Image))
        assert not [s for s in seen if isinstance(s, str)]


def test_the_struct_that_hugging_face_writes(tmp_path: Path) -> None:
    cells = [
        {"bytes": png(1), "path": "a.png"},
        {"bytes": None, "path": "/etc/passwd"},
        None,
        {"bytes": b"", "path": ""},
    ]
    table(tmp_path / "t.parquet", {"image": cells, "label": [0, 1, 2, 3]})
    first, path, none, empty = held(None, tmp_path / "t.parquet")
    assert isinstance(first, Image.Image) and same(first, png(1))
    assert str(path).endswith("t.parquet#1 names the file '/etc/passwd' instead of holding its bytes.")
    assert str(none).endswith("t.parquet#2 holds no image.")
    assert str(empty).endswith("t.parquet#3 is empty (0 bytes).")


def test_which_column_holds_the_images(tmp_path: Path) -> None:
    two = table(tmp_path / "two.parquet", {"left": [png(1)], "right": [png(2)], "name": ["x"]})
    with pytest.raises(DataError, match="several columns of bytes: left, right"):
        held(None, two)
    (right,) = held("right", two)
    assert isinstance(right, Image.Image) and same(right, png(2))
    with pytest.raises(DataError, match="column 'rihgt' does not exist") as caught:
        held("rihgt", two)
    assert caught.value.hint == "did you mean right?"
    with pytest.raises(DataError, match="column 'name' holds no bytes"):
        held("name", two)
    none = table(tmp_path / "none.parquet", {"name": ["x"], "image": ["a.jpg"]})
    with pytest.raises(DataError, match="has no column of images") as caught:
        held(None, none)
    assert "It has: name, image." in caught.value.hint


def test_a_table_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = table(tmp_path / "t.parquet", {"image": [png(i) for i in range(9)]}).read_bytes()
    for cut in range(0, len(whole), 501):
        (tmp_path / "cut.parquet").write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"cut\.parquet"):
            held(None, tmp_path / "cut.parquet")


# --- addresses --------------------------------------------------------------------------------------------------------


def test_a_store_gives_what_a_disk_gives(tmp_path: Path, memory: Any) -> None:
    local = tmp_path / "set"
    (local / "more").mkdir(parents=True)
    (local / "a.png").write_bytes(png(1))
    (local / "more" / "b.png").write_bytes(png(2))
    shard(local / "s-0.tar", {"c.png": png(3), "d.png": png(4)})
    table(local / "t.parquet", {"image": [png(5)]})
    memory.put(str(local), "/set", recursive=True)
    texts = ("", "/s-{0..0}.tar", "/*.parquet", "/**/*.png")
    for root in (str(local), f"file://{local}", "memory://set"):
        found = list(image_locations(find_sources([root + text for text in texts])))
        read = [np.asarray(load_image(one)) for one in load_cells(found)]
        assert [Path(one.name).name for one in found][:5] == [
            "a.png",
            "b.png",
            "s-0.tar#c.png",
            "s-0.tar#d.png",
            "t.parquet#0",
        ]
        expected = [np.asarray(Image.open(io.BytesIO(png(i)))) for i in (1, 2, 3, 4, 5)]
        assert all(np.array_equal(r, e) for r, e in zip(read, expected, strict=False))
        assert found[0].name == ("memory:///set/a.png" if root.startswith("memory") else str(local / "a.png"))


def test_a_store_that_hesitates_is_asked_again(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.pipe("/a.png", png(1))
    (one,) = listed("memory://a.png")
    kind, waits, failures = type(memory), list[float](), 3
    really = kind.cat_file

    def hesitant(*arguments: Any, **options: Any) -> Any:
        if len(waits) < failures:
            raise TimeoutError("the store is busy")
        return really(memory, *arguments[1:], **options)

    monkeypatch.setattr(kind, "cat_file", hesitant)
    monkeypatch.setattr(places.time, "sleep", waits.append)
    assert same(load_image(one), png(1))
    assert waits == [0.5, 1.0, 2.0]
    failures = 99
    with pytest.raises(DataError, match=r"cannot be read .the store is busy.") as caught:
        load_image(one)
    assert not isinstance(caught.value, ImageError)  # not the image's fault: the command stops, and can go on


def test_a_server_that_does_not_say_the_size(memory: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    memory.pipe("/a.png", png(1))
    memory.pipe("/s.tar", shard(tmp_path / "s.tar", {"b.png": png(2)}).read_bytes())
    monkeypatch.setattr(type(memory), "size", lambda *_: None)
    (one,) = listed("memory://a.png")
    assert same(load_image(one), png(1))
    with pytest.raises(DataError, match=r"the server of memory:///?s\.tar does not say its size"):
        listed("memory://s.tar")
    monkeypatch.setattr(stored, "MAX_BYTES", 50)
    with pytest.raises(ImageError, match="has 51 bytes; the limit is 50"):
        load_image(one)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("https://host/0000.parquet?download=true", "table"),
        ("https://host/s.tar?sig=a/b.png#c", "tar"),
        ("http://host/a.png?name=s.tar", "image"),
        ("s3://bucket/a?b.tar", "tar"),  # a character of the name there
    ],
)
def test_a_query_does_not_hide_the_type_of_a_source(monkeypatch: pytest.MonkeyPatch, text: str, kind: str) -> None:
    monkeypatch.setattr(inputs, "path_type", lambda _: "file")
    assert find_sources([text]) == [(text, kind)]


def test_unknown_and_uninstalled_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"unknown scheme s4:") as caught:
        listed("s4://bucket/a.tar")
    assert "s3" in caught.value.hint
    known = importlib.import_module("fsspec.registry").known_implementations
    for text, packages in (
        ("Install cloudfs to use it", "cloudfs"),
        ("Install the cloudfs package to use it", "cloudfs"),
        ('It requires "requests" and "aiohttp" to be installed', "requests aiohttp"),
    ):
        monkeypatch.setitem(known, "cloud", {"class": "no_such_fs.Cloud", "err": text})
        with pytest.raises(ConfigError, match=r"cloud:// needs a package") as caught:
            listed("cloud://bucket/a.tar")
        assert caught.value.hint == f"Type: pip install {packages}"
    with pytest.raises(DataError, match=r"memory://gone\.tar does not exist"):
        listed("memory://gone.tar")
