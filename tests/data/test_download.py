"""Downloads from a local server: complete, cut, resumed, wrong and hostile; and unpacking alone."""

from __future__ import annotations

import hashlib
import http.server
import io
import stat
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import wildcat.data.download as downloading
from tests.data.miniatures import write_coco
from wildcat.cli import main
from wildcat.data import fetch_dataset, find_source, is_fetched, open_dataset
from wildcat.data.download import unpack
from wildcat.data.registry import list_datasets
from wildcat.data.sources import SOURCES, Download, Source
from wildcat.errors import ConfigError, DataError
from wildcat.progress import Progress


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`, with Range, and records the requests; the switches make it misbehave."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.cut_after: list[int] = []  # bytes after which the next responses break off
        self.ranges = True
        self.status = 200

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.0"

    def do_GET(self) -> None:
        server = self.server
        asked = self.headers.get("Range")
        server.asked.append((self.path[1:], asked))
        body = server.files.get(self.path[1:], b"")
        start = 0
        if asked and server.ranges:
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
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        end = start + server.cut_after.pop(0) if server.cut_after else len(body)
        self.wfile.write(body[start:end])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(downloading, "_PAUSE", 0.0)
    monkeypatch.setattr(downloading, "_TIMEOUT", 5.0)
    monkeypatch.setattr(downloading, "_CHUNK", 64)
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


def source(server: Server, digest: str = "", size: int | None = None, holds: tuple[str, ...] = ()) -> Source:
    """A data set of one file, TAR unless `server.files` says otherwise."""
    server.files.setdefault("set.tar", TAR)
    return source_of(Download((server.url("set.tar"),), ".", size, digest), holds=holds)


def source_of(*downloads: Download, opens: str = "Set", holds: tuple[str, ...] = ()) -> Source:
    return Source(
        "Set", "folder", "A set.", "http://home", "Free.", downloads, opens, holds or ("Set/a.txt", "Set/deep")
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def md5(content: bytes) -> str:
    return f"md5:{hashlib.md5(content, usedforsecurity=False).hexdigest()}"


PART = ".fetch-Set/set.tar.part"


def test_a_complete_download_leaves_the_data_alone(server: Server, tmp_path: Path) -> None:
    steps: list[tuple[str, int | None, int]] = []

    class Recorded(Progress):
        def start(self, task: str, total: int | None, done: int = 0) -> None:
            steps.append((task, total, done))

        def advance(self, count: int = 1, note: str = "") -> None:
            task, total, done = steps[-1]
            steps[-1] = task, total, done + count

    made = source(server, md5(TAR), len(TAR))
    assert not is_fetched(made, tmp_path / "to")
    assert fetch_dataset(made, tmp_path / "to", Recorded()) == tmp_path / "to" / "Set"
    assert contents(tmp_path / "to") == CONTENT
    assert steps == [("set.tar", len(TAR), len(TAR)), ("unpacking set.tar", None, 0)]
    assert is_fetched(made, tmp_path / "to")
    server.asked.clear()
    assert fetch_dataset(made, tmp_path / "to") == tmp_path / "to" / "Set"
    assert server.asked == []


def test_a_data_set_unpacked_by_hand_is_complete(server: Server, tmp_path: Path) -> None:
    (tmp_path / "Set" / "deep").mkdir(parents=True)
    (tmp_path / "Set" / "a.txt").touch()
    assert fetch_dataset(source(server), tmp_path) == tmp_path / "Set"
    assert server.asked == []


def test_a_broken_connection_is_resumed_within_a_call(server: Server, tmp_path: Path) -> None:
    server.cut_after = [1024, 2944]
    fetch_dataset(source(server, md5(TAR)), tmp_path)
    assert server.asked == [("set.tar", None), ("set.tar", "bytes=1024-"), ("set.tar", "bytes=3968-")]
    assert contents(tmp_path) == CONTENT


def test_without_a_checksum_a_broken_connection_begins_again(server: Server, tmp_path: Path) -> None:
    server.cut_after = [1000]
    fetch_dataset(source(server), tmp_path)
    assert server.asked == [("set.tar", None)] * 2
    assert contents(tmp_path) == CONTENT


def test_a_broken_connection_is_resumed_by_the_next_call(server: Server, tmp_path: Path) -> None:
    made = source(server, md5(TAR))
    server.cut_after = [1024, 512, 192]
    with pytest.raises(DataError, match=r"could not be downloaded from .*no connection") as caught:
        fetch_dataset(made, tmp_path)
    assert "resume after 1728 bytes" in caught.value.hint
    assert "Or by hand: Get" in caught.value.hint
    assert not is_fetched(made, tmp_path)
    assert not (tmp_path / "Set").exists()
    server.asked.clear()
    fetch_dataset(made, tmp_path)
    assert server.asked == [("set.tar", "bytes=1728-")]
    assert contents(tmp_path) == CONTENT


@pytest.mark.parametrize("change", ["new file", "no ranges", "shorter file"])
def test_a_part_of_another_file_is_not_used(server: Server, tmp_path: Path, change: str) -> None:
    server.cut_after = [1000, 500, 2000]
    with pytest.raises(DataError):
        fetch_dataset(source(server, md5(TAR)), tmp_path)
    if change == "new file":
        server.files["set.tar"] = tar_of(dict(reversed(CONTENT.items())))
    elif change == "shorter file":
        server.files["set.tar"] = zip_of(CONTENT)[:1000]
    server.ranges = change != "no ranges"
    if change == "shorter file":
        with pytest.raises(DataError, match="its checksum is not the published"):
            fetch_dataset(source(server, md5(TAR)), tmp_path)
        return
    fetch_dataset(source(server, md5(server.files["set.tar"])), tmp_path)
    assert contents(tmp_path) == CONTENT


def test_a_part_that_is_complete_is_not_downloaded_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / PART).parent.mkdir()
    (tmp_path / PART).write_bytes(TAR)
    fetch_dataset(source(server, md5(TAR), len(TAR)), tmp_path)
    assert server.asked == []
    assert contents(tmp_path) == CONTENT


def test_a_wrong_checksum_is_refused(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"set.tar was removed: its checksum is not the published md5:00") as caught:
        fetch_dataset(source(server, "md5:00"), tmp_path)
    assert "do not trust the source" in caught.value.hint
    assert len(server.asked) == 1
    assert contents(tmp_path) == {}, "the wrong file is not resumed"
    fetch_dataset(source(server, md5(TAR)), tmp_path)
    assert contents(tmp_path) == CONTENT


def test_the_second_address_is_tried(server: Server, tmp_path: Path) -> None:
    server.files["set.tar"] = TAR
    download = Download((server.url("gone.tar"), server.url("set.tar")), ".", None, md5(TAR))
    fetch_dataset(source_of(download), tmp_path)
    assert [name for name, _ in server.asked] == ["gone.tar", "set.tar"]


def test_no_connection(server: Server, tmp_path: Path) -> None:
    made = source(server)
    server.shutdown()
    server.server_close()
    with pytest.raises(
        DataError, match=r"could not be downloaded from http://127.*: no connection \(ConnectionError\)\."
    ) as caught:
        fetch_dataset(made, tmp_path)
    assert "when you are connected" in caught.value.hint
    assert f"by hand: Get {server.url('set.tar')} (see http://home)" in caught.value.hint


def test_a_server_error_is_named(server: Server, tmp_path: Path) -> None:
    made, server.status = source(server), 503
    with pytest.raises(DataError, match="the server answers 503"):
        fetch_dataset(made, tmp_path)


def test_too_little_space(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = downloading.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(downloading.shutil, "disk_usage", lambda _: usage._replace(free=len(TAR)))
    with pytest.raises(DataError, match=r"GB free; Set needs"):
        fetch_dataset(source(server, size=len(TAR)), tmp_path)
    assert server.asked == []
    assert not (tmp_path / "Set").exists()


def test_the_bytes_that_are_there_need_no_space(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest of an archive and its files."""
    made = source(server, md5(TAR), size=len(TAR))
    part = downloading._work_folder(made, tmp_path) / "set.tar.part"
    part.parent.mkdir()
    part.write_bytes(TAR[:100])
    usage = downloading.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(downloading.shutil, "disk_usage", lambda _: usage._replace(free=2 * len(TAR) - 101))
    with pytest.raises(DataError, match=r"GB free; Set needs"):
        fetch_dataset(made, tmp_path)
    monkeypatch.setattr(downloading.shutil, "disk_usage", lambda _: usage._replace(free=2 * len(TAR) - 100))
    fetch_dataset(made, tmp_path)
    assert contents(tmp_path) == CONTENT


def test_files_in_the_way(server: Server, tmp_path: Path) -> None:
    (tmp_path / "Set").mkdir()
    (tmp_path / "Set" / "a.txt").write_bytes(CONTENT["Set/a.txt"])
    (tmp_path / "Set" / "mine.txt").write_text("mine")
    fetch_dataset(source(server), tmp_path)
    assert contents(tmp_path / "Set") == {"a.txt": CONTENT["Set/a.txt"], "deep/b.txt": b"b" * 700, "mine.txt": b"mine"}
    other = tmp_path / "other"
    (other / "Set").mkdir(parents=True)
    (other / "Set" / "a.txt").write_text("another")
    with pytest.raises(DataError, match=r"a.txt exists and differs from the file of the data set"):
        fetch_dataset(source(server), other)
    assert (other / "Set" / "a.txt").read_text() == "another"
    server.asked.clear()
    (other / "Set" / "a.txt").unlink()
    fetch_dataset(source(server), other)
    assert server.asked == [], "the archive is kept until its files are in place"
    assert contents(other / "Set")["a.txt"] == CONTENT["Set/a.txt"]


def test_changed_content_is_named(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"unpacked into .*, but Set/c.txt is missing"):
        fetch_dataset(source(server, holds=("Set/c.txt",)), tmp_path)


def test_a_folder_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        fetch_dataset(source(server), tmp_path / "file")


def test_an_archive_is_not_downloaded_again_when_a_later_one_fails(server: Server, tmp_path: Path) -> None:
    server.files = {"a.tar": tar_of({"Set/a.txt": b"a"}), "list.txt": b"a list"}
    downloads = [Download((server.url(name),), "Set" if name == "list.txt" else ".") for name in ("a.tar", "list.txt")]
    made = source_of(*downloads, holds=("Set/a.txt", "Set/list.txt"))
    content = server.files.pop("list.txt")
    with pytest.raises(DataError, match=r"list\.txt could not be downloaded"):
        fetch_dataset(made, tmp_path)
    assert not is_fetched(made, tmp_path)
    server.files["list.txt"] = content
    server.asked.clear()
    fetch_dataset(made, tmp_path)
    assert server.asked == [("list.txt", None)]
    assert contents(tmp_path) == {"Set/a.txt": b"a", "Set/list.txt": b"a list"}


def test_voc2007_of_two_archives(server: Server, tmp_path: Path) -> None:
    xml = (
        b"<annotation><object><name>dog</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    )
    xml += b"</object></annotation>"
    for split, name in (("trainval", "000001"), ("test", "000002")):
        files = {
            f"ImageSets/Main/{split}.txt": f"{name}\n".encode(),
            f"JPEGImages/{name}.jpg": b"",
            f"Annotations/{name}.xml": xml,
        }
        server.files[f"VOC{split}.tar"] = tar_of({f"VOCdevkit/VOC2007/{name}": files[name] for name in files})
    downloads = tuple(Download((server.url(f"VOC{s}.tar"),), ".") for s in ("trainval", "test"))
    data = open_dataset(fetch_dataset(replace(find_source("voc2007"), downloads=downloads), tmp_path))
    assert (data.name, data.splits) == ("VOC2007", ("trainval", "test"))
    sample = data.split("test")[0]
    assert sample.name == "000002" and sample.labels[data.classes.index("dog")] == 1


def test_coco_of_zips(server: Server, tmp_path: Path) -> None:
    root = write_coco(tmp_path / "made", train=2, val=1, size=(32, 32), year=2017)
    for part in ("annotations", "train2017", "val2017"):
        server.files[f"{part}.zip"] = zip_of({f"{part}/{p.name}": p.read_bytes() for p in (root / part).iterdir()})
    downloads = tuple(Download((server.url(name),), "coco") for name in server.files)
    path = fetch_dataset(replace(find_source("COCO2017"), downloads=downloads), tmp_path / "to")
    assert contents(path) == contents(root)
    assert len(open_dataset(path).split("train")) == 2


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


# Name of the case, of the archive, its content, and the message; "": unpacked inside the folder, or left out.
HOSTILE: list[tuple[str, str, bytes, str]] = [
    ("absolute", "x.tar", hostile_tar("/tmp/evil"), ""),
    ("parent", "x.tar", hostile_tar("a/../../evil"), "outside the destination"),
    ("symlink", "x.tar", hostile_tar("a", tarfile.SYMTYPE, "/etc"), "is a link to an absolute path"),
    ("hard link", "x.tar", hostile_tar("a", tarfile.LNKTYPE, "../evil"), "outside the destination"),
    ("device", "x.tar", hostile_tar("a", tarfile.CHRTYPE), "is a special file"),
    ("pipe", "x.tar", hostile_tar("a", tarfile.FIFOTYPE), "is a special file"),
    ("zip absolute", "x.zip", hostile_zip("/tmp/evil"), ""),
    ("zip parent", "x.zip", hostile_zip("../evil"), ""),
    ("zip backslash", "x.zip", hostile_zip("a\\..\\..\\evil"), ""),
    ("zip symlink", "x.zip", hostile_zip("a", stat.S_IFLNK | 0o777), ""),
    ("zip encrypted", "x.zip", hostile_zip(flags=1), "encrypted"),
    ("no tar", "x.tar", b"<html>not found</html>" * 100, "cannot be unpacked"),
    ("no zip", "x.zip", b"<html>not found</html>", "cannot be unpacked"),
    ("empty", "x.tar", b"", "cannot be unpacked"),
    ("cut tar", "x.tar", TAR[:2000], "cannot be unpacked"),
    ("cut zip", "x.zip", zip_of(CONTENT)[:-30], "cannot be unpacked"),
]


@pytest.mark.parametrize(("name", "content", "message"), [h[1:] for h in HOSTILE], ids=[h[0] for h in HOSTILE])
def test_hostile_archives(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    if message:
        with pytest.raises(DataError, match=message) as caught:
            unpack(tmp_path / name, tmp_path / "in" / "to")
        assert str(tmp_path / name) in caught.value.message
        assert caught.value.hint
    else:
        unpack(tmp_path / name, tmp_path / "in" / "to")
    assert {p.name for p in tmp_path.iterdir()} <= {name, "in"}, "nothing outside the folder"
    assert {p.name for p in (tmp_path / "in").glob("*")} <= {"to"}
    assert not any(p.is_symlink() for p in tmp_path.rglob("*"))
    assert not Path("/tmp/evil").exists()


def test_a_damaged_zip_member_is_noticed(tmp_path: Path) -> None:
    content = bytearray(zip_of({"a.txt": bytes(range(256)) * 4}))
    content[60] ^= 0xFF
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(DataError, match="cannot be unpacked"):
        unpack(tmp_path / "x.zip", tmp_path / "to")


@pytest.mark.parametrize(("name", "content"), [("x.tar", TAR), ("x.zip", zip_of(CONTENT))])
def test_good_archives(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    unpack(tmp_path / name, tmp_path / "to")
    assert contents(tmp_path / "to") == CONTENT


def test_a_hostile_archive_of_a_data_set_is_not_installed(server: Server, tmp_path: Path) -> None:
    server.files["set.tar"] = hostile_tar("../../evil")
    with pytest.raises(DataError, match="outside the destination"):
        fetch_dataset(source(server), tmp_path / "to")
    assert {p.name for p in (tmp_path / "to").iterdir()} == {".fetch-Set"}
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
        assert "Free." in out and "terms of use were not accepted" in err and "--accept-licence" in err
    assert len(asked) == 2, "nobody is asked where there is no terminal"
    assert server.asked == [] and list(tmp_path.iterdir()) == []
    monkeypatch.setattr("builtins.input", answer("y"))
    assert main(to) == 0
    assert f"{tmp_path / 'Set'} is ready" in capsys.readouterr().out
    assert main(to) == 0
    assert "exists already; nothing to do" in capsys.readouterr().out
    assert main([*to[:-1], str(tmp_path / "b"), "--accept-licence"]) == 0
    assert (tmp_path / "b" / "Set" / "a.txt").exists()
    assert main(["datasets", "fetch", "Set"]) == 2
    assert "--to DIR" in capsys.readouterr().err
    assert main(["datasets"]) == 0
    assert "COCO2014" in capsys.readouterr().out
