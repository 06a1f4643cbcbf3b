"""Fetching: from a server on this machine, whole, cut, resumed, wrong and hostile; and unpacking by itself."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import stat
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import wildcat.data.download as fetching
from wildcat.cli import main
from wildcat.data import fetch_dataset, find_source, is_fetched, open_dataset, write_coco
from wildcat.data.archive import unpack
from wildcat.data.registry import list_datasets
from wildcat.data.sources import SOURCES, Download, Source
from wildcat.errors import ConfigError, DataError


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`, by Range too, and writes down what it was asked; the switches make it misbehave."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, str | None, str | None]] = []
        self.cut_after: list[int] = []  # bytes after which the next responses break off
        self.ranges = True
        self.length = True
        self.status = 200
        self.etag = '"1"'

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.0"

    def do_GET(self) -> None:
        server = self.server
        asked, condition = self.headers.get("Range"), self.headers.get("If-Range")
        server.asked.append((self.path[1:], asked, condition))
        body = server.files.get(self.path[1:], b"")
        start = 0
        if asked and server.ranges and condition in (None, server.etag):
            start = int(asked.removeprefix("bytes=").rstrip("-"))
        if server.status != 200 or self.path[1:] not in server.files:
            self.send_error(server.status if server.status != 200 else 404)
            return
        if start and start >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if server.length:
            self.send_header("Content-Length", str(len(body) - start))
        self.send_header("ETag", server.etag)
        self.end_headers()
        end = start + server.cut_after.pop(0) if server.cut_after else len(body)
        self.wfile.write(body[start:end])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(fetching, "_PAUSE", 0.0)
    monkeypatch.setattr(fetching, "_TIMEOUT", 5.0)
    monkeypatch.setattr(fetching, "_CHUNK", 64)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    made = Server()
    threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def tar_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def zip_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


CONTENT = {"Set/a.txt": bytes(range(256)) * 8, "Set/deep/b.txt": b"b" * 700}
TAR = tar_of(CONTENT)


def source(server: Server, digest: str = "", size: int | None = None, name: str = "set.tar", **more: object) -> Source:
    """A data set of one file, TAR unless `server.files` says otherwise."""
    server.files.setdefault(name, TAR)
    download = Download((server.url(name),), ".", size, digest)
    values = {"holds": ("Set/a.txt", "Set/deep"), "opens": "Set", "note": ""} | more
    return Source("Set", "http://home", "Free.", (download,), values["opens"], values["holds"], values["note"])  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def md5(content: bytes) -> str:
    return f"md5:{hashlib.md5(content, usedforsecurity=False).hexdigest()}"


def test_whole(server: Server, tmp_path: Path) -> None:
    steps: list[tuple[str, int, int | None]] = []
    result = fetch_dataset(source(server, md5(TAR), len(TAR)), tmp_path / "to", lambda *step: steps.append(step))
    assert (result.path, result.already, result.notes) == (tmp_path / "to" / "Set", False, ())
    found = contents(tmp_path / "to")
    record = json.loads(found.pop("fetched.json"))["set.tar"]
    assert found == CONTENT
    assert record["sha256"] == hashlib.sha256(TAR).hexdigest()
    assert (record["bytes"], record["checked"], record["url"]) == (len(TAR), md5(TAR), server.url("set.tar"))
    assert ("set.tar", len(TAR), len(TAR)) in steps
    assert ("unpacking set.tar", 2, None) in steps


def test_complete_is_left_alone(server: Server, tmp_path: Path) -> None:
    fetch_dataset(source(server), tmp_path)
    assert is_fetched(source(server), tmp_path)
    server.asked.clear()
    assert fetch_dataset(source(server), tmp_path).already
    assert server.asked == []


def test_laid_by_hand_is_complete(server: Server, tmp_path: Path) -> None:
    (tmp_path / "Set" / "deep").mkdir(parents=True)
    (tmp_path / "Set" / "a.txt").touch()
    assert fetch_dataset(source(server), tmp_path).already
    assert server.asked == []


def test_no_published_checksum_is_said(server: Server, tmp_path: Path) -> None:
    result = fetch_dataset(source(server, note="Open it with care."), tmp_path)
    assert "No checksum of set.tar is published" in result.notes[0]
    assert hashlib.sha256(TAR).hexdigest() in result.notes[0]
    assert result.notes[1] == "Open it with care."
    assert json.loads((tmp_path / "fetched.json").read_text())["set.tar"]["checked"] == "not published"


@pytest.mark.parametrize("digest", ["", md5(TAR)])
def test_broken_off_and_resumed_within_a_call(server: Server, tmp_path: Path, digest: str) -> None:
    server.cut_after = [1000, 3000]
    fetch_dataset(source(server, digest), tmp_path)
    condition = None if digest else '"1"'
    assert server.asked == [
        ("set.tar", None, None),
        ("set.tar", "bytes=1000-", condition),
        ("set.tar", "bytes=4000-", condition),
    ]
    assert (tmp_path / "Set" / "a.txt").read_bytes() == CONTENT["Set/a.txt"]


def test_broken_off_and_resumed_by_the_next_call(server: Server, tmp_path: Path) -> None:
    server.cut_after = [1000, 500, 200]
    with pytest.raises(DataError, match=r"the connection ended after 1700 bytes of|1700") as caught:
        fetch_dataset(source(server), tmp_path)
    assert "1700 bytes are kept" in caught.value.message
    assert "go on from there" in caught.value.hint
    assert "Or by hand: Get" in caught.value.hint
    assert not is_fetched(source(server), tmp_path)
    assert not (tmp_path / "Set").exists()
    server.asked.clear()
    fetch_dataset(source(server), tmp_path)
    assert server.asked == [("set.tar", "bytes=1700-", '"1"')]
    assert (tmp_path / "Set" / "a.txt").read_bytes() == CONTENT["Set/a.txt"]
    assert not (tmp_path / ".fetch").exists()


@pytest.mark.parametrize("change", ["new file", "no ranges", "no record"])
def test_a_part_of_another_file_is_not_used(server: Server, tmp_path: Path, change: str) -> None:
    server.cut_after = [1000, 500, 200]
    with pytest.raises(DataError):
        fetch_dataset(source(server), tmp_path)
    if change == "new file":
        server.etag = '"2"'
        server.files["set.tar"] = tar_of(dict(reversed(CONTENT.items())))
    elif change == "no ranges":
        server.ranges = False
    else:
        (tmp_path / ".fetch" / "set.tar.part.json").write_text("{")
    fetch_dataset(source(server), tmp_path)
    assert (tmp_path / "Set" / "a.txt").read_bytes() == CONTENT["Set/a.txt"]


def test_a_part_that_was_whole_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / ".fetch").mkdir()
    (tmp_path / ".fetch" / "set.tar.part").write_bytes(TAR)
    fetch_dataset(source(server, md5(TAR), len(TAR)), tmp_path / ".")
    assert server.asked == [], "its size is known"
    other = tmp_path / "other"
    (other / ".fetch").mkdir(parents=True)
    (other / ".fetch" / "set.tar.part").write_bytes(TAR)
    fetch_dataset(source(server, md5(TAR)), other)
    assert server.asked == [("set.tar", f"bytes={len(TAR)}-", None)], "the server says so"
    assert (other / "Set" / "a.txt").read_bytes() == CONTENT["Set/a.txt"]


def test_wrong_checksum(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"set.tar has the MD5 .*, published is 00") as caught:
        fetch_dataset(source(server, "md5:00"), tmp_path)
    assert "do not trust the source" in caught.value.hint
    assert not (tmp_path / "Set").exists()
    assert not (tmp_path / ".fetch" / "set.tar.part").exists(), "the wrong file is not resumed"
    fetch_dataset(source(server, md5(TAR)), tmp_path)
    assert (tmp_path / "Set" / "a.txt").exists()


@pytest.mark.parametrize("length", [True, False])
@pytest.mark.parametrize("size", [len(TAR) - 1, len(TAR) + 1])
def test_wrong_size(server: Server, tmp_path: Path, size: int, length: bool) -> None:
    server.length = length
    with pytest.raises(DataError, match=r"another file|the connection ended after"):
        fetch_dataset(source(server, md5(TAR), size), tmp_path)
    assert not (tmp_path / "Set").exists()


def test_second_address(server: Server, tmp_path: Path) -> None:
    made = source(server, md5(TAR))
    download = Download((server.url("gone.tar"), server.url("set.tar")), ".", None, md5(TAR))
    fetch_dataset(Source("Set", made.homepage, "", (download,), made.opens, made.holds), tmp_path)
    assert [name for name, *_ in server.asked] == ["gone.tar", "set.tar"]


def test_no_connection(server: Server, tmp_path: Path) -> None:
    made = source(server)
    server.shutdown()
    server.server_close()
    with pytest.raises(DataError, match="could not be fetched from http://127") as caught:
        fetch_dataset(made, tmp_path)
    assert "refused" in caught.value.message
    assert "when you are connected" in caught.value.hint
    assert f"by hand: Get {server.url('set.tar')} (see http://home)" in caught.value.hint


def test_server_error(server: Server, tmp_path: Path) -> None:
    made, server.status = source(server), 503
    with pytest.raises(DataError, match="the server answers 503"):
        fetch_dataset(made, tmp_path)


def test_no_space(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = fetching.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda _: usage._replace(free=len(TAR)))
    with pytest.raises(DataError, match=r"GB free; Set needs"):
        fetch_dataset(source(server, size=len(TAR)), tmp_path)
    assert server.asked == [], "said before anything is asked"
    with pytest.raises(DataError, match=r"GB free; set.tar needs"):
        fetch_dataset(source(server), tmp_path)
    assert not (tmp_path / "Set").exists()


def test_files_in_the_way(server: Server, tmp_path: Path) -> None:
    (tmp_path / "Set").mkdir()
    (tmp_path / "Set" / "a.txt").write_bytes(CONTENT["Set/a.txt"])
    (tmp_path / "Set" / "mine.txt").write_text("mine")
    fetch_dataset(source(server), tmp_path)
    assert contents(tmp_path / "Set") == {"a.txt": CONTENT["Set/a.txt"], "deep/b.txt": b"b" * 700, "mine.txt": b"mine"}
    other = tmp_path / "other"
    (other / "Set").mkdir(parents=True)
    (other / "Set" / "a.txt").write_text("another")
    with pytest.raises(DataError, match=r"a.txt is there already and is not that of the data set"):
        fetch_dataset(source(server), other)
    assert (other / "Set" / "a.txt").read_text() == "another"
    server.asked.clear()
    (other / "Set" / "a.txt").unlink()
    fetch_dataset(source(server), other)
    assert server.asked == [], "the file that came is kept until it is in place"
    assert contents(other / "Set")["a.txt"] == CONTENT["Set/a.txt"]


def test_changed_content_is_said(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"unpacked into .*, but Set/c.txt is not there"):
        fetch_dataset(source(server, holds=("Set/c.txt",)), tmp_path)


def test_folder_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        fetch_dataset(source(server), tmp_path / "file")


def test_damaged_manifest(server: Server, tmp_path: Path) -> None:
    (tmp_path / "fetched.json").write_text("{")
    with pytest.raises(DataError, match=r"fetched.json is damaged"):
        fetch_dataset(source(server), tmp_path)


def test_voc2007_of_two_archives(server: Server, tmp_path: Path) -> None:
    xml = (
        b"<annotation><object><name>dog</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    )
    xml += b"</object></annotation>"
    for split, name in (("trainval", "000001"), ("test", "000002")):
        files = {
            "ImageSets/Main/%s.txt": f"{name}\n".encode(),
            f"JPEGImages/{name}.jpg": b"",
            f"Annotations/{name}.xml": xml,
        }
        server.files[f"VOC{split}.tar"] = tar_of(
            {f"VOCdevkit/VOC2007/{k.replace('%s', split)}": v for k, v in files.items()}
        )
    official = find_source("voc2007")
    downloads = tuple(Download((server.url(f"VOC{s}.tar"),), ".") for s in ("trainval", "test"))
    local = Source("VOC2007", "", "", downloads, official.opens, official.holds)
    data = open_dataset(fetch_dataset(local, tmp_path).path)
    assert (data.name, data.splits) == ("VOC2007", ("trainval", "test"))
    sample = data.split("test")[0]
    assert sample.name == "000002" and sample.labels[data.classes.index("dog")] == 1


def test_coco_of_zips(server: Server, tmp_path: Path) -> None:
    root = write_coco(tmp_path / "made", train=2, val=1, size=(32, 32), year=2017)
    for part in ("annotations", "train2017", "val2017"):
        server.files[f"{part}.zip"] = zip_of({f"{part}/{p.name}": p.read_bytes() for p in (root / part).iterdir()})
    downloads = tuple(Download((server.url(name),), "coco") for name in server.files)
    official = find_source("COCO2017")
    result = fetch_dataset(Source("COCO2017", "", "", downloads, official.opens, official.holds), tmp_path / "to")
    assert contents(result.path) == contents(root)
    assert len(open_dataset(result.path).split("train")) == 2


# --- unpacking ----------------------------------------------------------------------------------------------------


def hostile_tar(name: str = "a", kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, link
        archive.addfile(info)
    return buffer.getvalue()


def hostile_zip(name: str = "a", mode: int = stat.S_IFREG | 0o644, flags: int = 0) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        archive.writestr(info, b"/etc/passwd")
    data = buffer.getvalue()
    if flags:  # the general purpose flags of the central directory, which the writer would not set
        at = data.index(b"PK\x01\x02") + 8
        data = data[:at] + flags.to_bytes(2, "little") + data[at + 2 :]
    return data


HOSTILE: list[tuple[str, str, bytes, str]] = [
    ("absolute", "x.tar", hostile_tar("/tmp/evil"), "outside its folder"),
    ("parent", "x.tar", hostile_tar("a/../../evil"), "outside its folder"),
    ("symlink", "x.tar", hostile_tar("a", tarfile.SYMTYPE, "/etc"), "link or device"),
    ("hard link", "x.tar", hostile_tar("a", tarfile.LNKTYPE, "../evil"), "link or device"),
    ("device", "x.tar", hostile_tar("a", tarfile.CHRTYPE), "link or device"),
    ("pipe", "x.tar", hostile_tar("a", tarfile.FIFOTYPE), "link or device"),
    ("twice", "x.tar", tar_of({"a": b"1", "./a": b"2"}), "has a member twice"),
    ("file as folder", "x.tar", tar_of({"a": b"1", "a/b": b"2"}), "has a member twice|cannot be unpacked"),
    ("too large", "x.tar", tar_of({"a": b"1" * 6000, "b": b"1" * 6000}), "more than 10000 bytes"),
    ("too many", "x.tar", tar_of({str(i): b"" for i in range(11)}), "more than 10 members"),
    ("zip absolute", "x.zip", hostile_zip("/tmp/evil"), "outside its folder"),
    ("zip parent", "x.zip", hostile_zip("../evil"), "outside its folder"),
    ("zip drive", "x.zip", hostile_zip("C:/evil"), "outside its folder"),
    ("zip backslash", "x.zip", hostile_zip("a\\..\\..\\evil"), "outside its folder"),
    ("zip symlink", "x.zip", hostile_zip("a", stat.S_IFLNK | 0o777), "link or device"),
    ("zip encrypted", "x.zip", hostile_zip(flags=1), "encrypted"),
    ("zip bomb", "x.zip", zip_of({"a": bytes(1_000_000)}), "more than 10000 bytes"),
    ("zip many", "x.zip", zip_of({str(i): b"" for i in range(11)}), "more than 10 members"),
    ("no tar", "x.tar", b"<html>not found</html>" * 100, "is cut or damaged"),
    ("no zip", "x.zip", b"<html>not found</html>", "is cut or damaged"),
    ("empty", "x.tar", b"", "is cut or damaged"),
    ("header damaged", "x.tar", TAR[:2560] + b"\1" * 512 + TAR[3072:], "is cut or damaged"),
]


@pytest.mark.parametrize(("name", "content", "said"), [h[1:] for h in HOSTILE], ids=[h[0] for h in HOSTILE])
def test_hostile_archives(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        unpack(tmp_path / name, tmp_path / "in" / "to", max_bytes=10_000, max_entries=10)
    assert str(tmp_path / name) in caught.value.message
    assert caught.value.hint
    assert {p.name for p in tmp_path.iterdir()} == {name, "in"}, "nothing outside the folder"
    assert {p.name for p in (tmp_path / "in").iterdir()} == {"to"}
    assert not any(p.is_symlink() for p in tmp_path.rglob("*"))


@pytest.mark.parametrize(("name", "content"), [("x.tar", TAR), ("x.zip", zip_of(CONTENT))])
def test_cut_anywhere_is_noticed(tmp_path: Path, name: str, content: bytes) -> None:
    # Of the tar, 512 + 2,048 bytes are the first file, 512 + 1,024 the second, and the rest is padding.
    sizes = range(1, 4096, 255) if name == "x.tar" else range(1, len(content), 37)
    for size in (*sizes, 512, 2560, 3072):
        if size < len(content):
            (tmp_path / name).write_bytes(content[:size])
            with pytest.raises(DataError, match="is cut or damaged"):
                unpack(tmp_path / name, tmp_path / str(size), max_bytes=1 << 20)


def test_a_damaged_zip_member_is_noticed(tmp_path: Path) -> None:
    content = bytearray(zip_of({"a.txt": bytes(range(256)) * 4}))
    content[60] ^= 0xFF
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(DataError, match="is cut or damaged"):
        unpack(tmp_path / "x.zip", tmp_path / "to", max_bytes=1 << 20)


@pytest.mark.parametrize(("name", "content"), [("x.tar", TAR), ("x.zip", zip_of(CONTENT))])
def test_good_archives(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert unpack(tmp_path / name, tmp_path / "to", max_bytes=1 << 20) == 2
    assert contents(tmp_path / "to") == CONTENT


def test_hostile_archive_of_a_data_set(server: Server, tmp_path: Path) -> None:
    server.files["set.tar"] = hostile_tar("../../evil")
    with pytest.raises(DataError, match="outside its folder"):
        fetch_dataset(source(server), tmp_path / "to")
    assert {p.name for p in (tmp_path / "to").iterdir()} == {".fetch", "fetched.json"}
    assert not list(tmp_path.rglob("evil"))


# --- the table and the command ------------------------------------------------------------------------------------


def test_table_of_sources() -> None:
    listed = {row.name: row for row in list_datasets()}
    for name, made in SOURCES.items():
        assert name == made.name
        assert f"fetch {name} " in listed[name].where and made.opens in listed[name].where
        assert made.licence.rstrip('"').endswith(".") and made.homepage.startswith("http")
        for download in made.downloads:
            assert download.file.endswith((".tar", ".zip", ".txt"))
            assert all(url.startswith(("http://", "https://")) and url.endswith(download.file) for url in download.urls)
            algorithm, _, digest = download.digest.partition(":")
            lengths = {"": 0, "md5": 32, "sha1": 40, "sha256": 64}
            assert len(digest) == lengths[algorithm] and set(digest) <= set("0123456789abcdef")
    with pytest.raises(ConfigError, match="'VOC207'") as caught:
        find_source("VOC207")
    assert "VOC2007" in caught.value.hint
    with pytest.raises(DataError, match="packaged") as error:
        find_source("solar")
    assert "pip install" in error.value.hint


def test_command(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SOURCES, "Set", source(server, md5(TAR)))
    asked: list[str] = []
    to = ["datasets", "fetch", "Set", "--to", str(tmp_path)]

    def answer(text: str, terminal: bool = True) -> Callable[[str], str]:
        monkeypatch.setattr("sys.stdin.isatty", lambda: terminal, raising=False)
        return lambda question: asked.append(question) or text  # type: ignore[func-returns-value]

    for reply, terminal in (("n", True), ("", True), ("y", False)):
        monkeypatch.setattr("builtins.input", answer(reply, terminal))
        assert main(to) == 1
        out, err = capsys.readouterr()
        assert "Free." in out and "terms of use were not agreed to" in err and "--accept-licence" in err
    assert len(asked) == 2, "nobody is asked where there is no terminal"
    assert server.asked == [] and list(tmp_path.iterdir()) == []
    monkeypatch.setattr("builtins.input", answer("y"))
    assert main(to) == 0
    assert f"{tmp_path / 'Set'} is ready" in capsys.readouterr().out
    assert main(to) == 0
    assert "is there already; nothing was done" in capsys.readouterr().out
    assert main([*to[:-1], str(tmp_path / "b"), "--accept-licence"]) == 0
    assert (tmp_path / "b" / "Set" / "a.txt").exists()
    assert main(["datasets", "fetch", "Set"]) == 2
    assert "--to DIR" in capsys.readouterr().err
    assert main(["datasets"]) == 0
    assert "COCO2014" in capsys.readouterr().out
