"""Fetching public data sets: resumed where it broke off, checked, and unpacked whole or not at all."""

from __future__ import annotations

import datetime
import filecmp
import hashlib
import http.client
import json
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wildcat.data.archive import unpack
from wildcat.data.sources import Download, Source
from wildcat.errors import DataError

MANIFEST = "fetched.json"
"""File beside the data that says what was fetched: address, bytes, SHA-256, what that was checked against, when."""

_WORK = ".fetch"  # folder beside the data for what is not complete yet
_ATTEMPTS = 3
_PAUSE = 2.0  # seconds before a transfer that broke off is tried again
_TIMEOUT = 30.0  # seconds without a byte
_CHUNK = 1 << 20
_MOST_BYTES = 8 << 30  # of a file whose size nobody says
_UNPACK_RATIO = 20  # annotations of COCO, which are JSON, unpack to about four times their size

Progress = Callable[[str, int, int | None], object]
"""Called with what is done, how much of it (bytes, or files when unpacking) and of how much where known."""


@dataclass(frozen=True)
class Fetched:
    """What `fetch_dataset` did: the path to open, whether it was there already, and sentences worth showing."""

    path: Path
    already: bool
    notes: tuple[str, ...] = ()


class _BrokenOffError(Exception):
    """A transfer that may go on at another time or address."""


def is_fetched(source: Source, to: Path) -> bool:
    """Whether all that `source` holds is in folder `to`, and nothing of it is still being fetched."""
    work = [path for download in source.downloads for path in _work_paths(to, download)]
    return all((to / path).exists() for path in source.holds) and not any(path.exists() for path in work)


def fetch_dataset(source: Source, to: Path, progress: Progress = lambda what, done, total: None) -> Fetched:
    """Get a public data set into folder `to`, which may hold others.

    Each file is transferred into `to/.fetch`, going on where an earlier call broke off, checked against the published
    size and checksum, unpacked beside, moved into place and removed. `fetched.json` records what came; where nobody has
    published a checksum that record is all there is, and a note says so. Files that are in place are never replaced:
    equal ones are kept, a different one is an error. What is complete is not fetched again.

    The caller asks for the licence.

    Raises:
        DataError: no connection, a file that is not the published one, an archive that is refused or damaged, too
            little space, a file that is in the way.
    """
    if is_fetched(source, to):
        return Fetched(to / source.opens, already=True)
    try:
        (to / _WORK).mkdir(parents=True, exist_ok=True)
        done = _read_manifest(to)
        wanted = [d for d in source.downloads if d.file not in done or d.file in _unfinished(source, to)]
        wanted = wanted or list(source.downloads)  # recorded, but no longer there
        sizes = [d.size or 0 for d in wanted]
        _refuse_no_space(to, sum(sizes) + max(sizes), source.name)
        notes = [_fetch_one(source, download, to, progress) for download in wanted]
        missing = [path for path in source.holds if not (to / path).exists()]
        if missing:
            raise DataError(
                f"{source.name} was unpacked into {to}, but {missing[0]} is not there: its files have changed.",
                source.by_hand,
            )
        shutil.rmtree(to / _WORK, ignore_errors=True)
    except OSError as error:
        raise DataError(
            f"{to} cannot be written ({error.strerror or error}).", "Name another folder with --to."
        ) from error
    return Fetched(to / source.opens, already=False, notes=tuple(note for note in (*notes, source.note) if note))


def _fetch_one(source: Source, download: Download, to: Path, progress: Progress) -> str:
    """Transfer, check, unpack and record one file; a sentence where its content could not be checked."""
    file, part, _, stage = _work_paths(to, download)
    if not file.exists():
        url = _transfer(source, download, to, progress)
        sha256 = _check(source, download, part, progress)
        record = {
            "url": url,
            "bytes": part.stat().st_size,
            "sha256": sha256,
            "checked": download.digest or "not published",
            "date": datetime.date.today().isoformat(),
        }
        _write_manifest(to, _read_manifest(to) | {download.file: record})
        part.replace(file)
    shutil.rmtree(stage, ignore_errors=True)
    if file.suffix in (".zip", ".tar"):
        size = file.stat().st_size
        limit = max(64 << 20, _UNPACK_RATIO * size)
        _refuse_no_space(to, size, f"unpacking {download.file}")
        unpack(file, stage, limit, progress=lambda files: progress(f"unpacking {download.file}", files, None))
        _merge(stage, to / download.folder)
    else:
        stage.mkdir()
        shutil.copyfile(file, stage / file.name)
        _merge(stage / file.name, to / download.folder / file.name)
    file.unlink()
    shutil.rmtree(stage, ignore_errors=True)
    if download.digest:
        return ""
    sha256 = _read_manifest(to)[download.file]["sha256"]
    return f"No checksum of {download.file} is published: its SHA-256, {sha256}, is recorded in {to / MANIFEST}."


def _work_paths(to: Path, download: Download) -> tuple[Path, Path, Path, Path]:
    """The checked file, the part that has come, what is known of that part, and the folder it is unpacked in."""
    file = to / _WORK / download.file
    return file, *(file.with_name(file.name + end) for end in (".part", ".part.json", ".unpacked"))  # type: ignore[return-value]


def _unfinished(source: Source, to: Path) -> set[str]:
    return {d.file for d in source.downloads if any(path.exists() for path in _work_paths(to, d))}


def _transfer(source: Source, download: Download, to: Path, progress: Progress) -> str:
    """Bring the part to its full length and say from which address."""
    faults: list[str] = []
    for attempt in range(_ATTEMPTS):
        for url in download.urls:
            try:
                _transfer_from(url, download, to, progress)
                return url
            except _BrokenOffError as error:
                faults.append(f"{url}: {error}")
        if attempt < _ATTEMPTS - 1:
            time.sleep(_PAUSE)
    part = _work_paths(to, download)[1]
    kept = part.stat().st_size if part.exists() else 0
    raise DataError(
        f"{download.file} could not be fetched from {'; '.join(faults[-len(download.urls) :])}"
        + (f"; {kept} bytes{f' of {download.size}' if download.size else ''} are kept." if kept else "."),
        f"Type the same command again{' to go on from there' if kept else ' when you are connected'}. "
        f"Or by hand: {source.by_hand}",
    )


def _transfer_from(url: str, download: Download, to: Path, progress: Progress) -> None:
    _, part, known, _ = _work_paths(to, download)
    have = part.stat().st_size if part.exists() else 0
    if have and have == download.size:
        return
    headers = {"User-Agent": "wildcat", "Accept-Encoding": "identity"} | _resume_headers(url, download, have, known)
    if "Range" not in headers:
        have = 0
    # Addresses are those of sources.py: no user names one.
    request = urllib.request.Request(url, headers=headers)  # noqa: S310
    response = _open(request, part, have if download.size is None else None)
    if response is None:
        return
    with response:
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise _BrokenOffError("the server sends it compressed, which was not asked for")
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            have = 0  # the server does not resume, or the file has changed: from the beginning
        elif not (response.headers.get("Content-Range") or "").startswith(f"bytes {have}-"):
            part.unlink()
            raise _BrokenOffError("the server sent another part than asked for")
        length = response.headers.get("Content-Length")
        total = have + int(length) if length and length.isdecimal() else None
        if download.size is not None and total not in (None, download.size):
            raise _BrokenOffError(f"{total} bytes are offered, {download.size} were published: it is another file")
        if total is not None:
            _refuse_no_space(to, 2 * total - have, download.file)
        stamp = {"url": url, "validator": response.headers.get("ETag") or response.headers.get("Last-Modified")}
        known.write_text(json.dumps(stamp), encoding="utf-8")
        limit = download.size or total or _MOST_BYTES
        with part.open("ab" if have else "wb") as target:
            while chunk := _read(response):
                have += len(chunk)
                if have > limit:
                    raise _BrokenOffError(f"more than {limit} bytes are sent: it is another file")
                target.write(chunk)
                progress(download.file, have, download.size or total)
    if have < (download.size or total or 0):
        raise _BrokenOffError(f"the connection ended after {have} of {download.size or total} bytes")


def _resume_headers(url: str, download: Download, have: int, known: Path) -> dict[str, str]:
    """Headers that ask for the rest of a part, where it is sure to be of the same file; else none.

    A published checksum makes sure at the end; without one the server must say that its file is the one begun.
    """
    if not have:
        return {}
    if download.digest:
        return {"Range": f"bytes={have}-"}
    try:
        stamp = json.loads(known.read_text(encoding="utf-8"))
        if stamp["url"] == url and isinstance(stamp["validator"], str) and not stamp["validator"].startswith("W/"):
            return {"Range": f"bytes={have}-", "If-Range": stamp["validator"]}
    except (OSError, ValueError, KeyError, TypeError):  # no or damaged record: from the beginning
        pass
    return {}


def _open(request: urllib.request.Request, part: Path, whole: int | None) -> Any:
    """The response to a request; None where the server says that the `whole` bytes of the part are all there is."""
    try:
        return urllib.request.urlopen(request, timeout=_TIMEOUT)  # noqa: S310 - see above
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            if error.headers.get("Content-Range") == f"bytes */{whole}":
                return None
            part.unlink(missing_ok=True)  # the part is longer than the file
        raise _BrokenOffError(f"the server answers {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenOffError(str(getattr(error, "reason", error)) or type(error).__name__) from error


def _read(response: Any) -> bytes:
    try:
        chunk: bytes = response.read(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenOffError(str(error) or type(error).__name__) from error
    return chunk


def _check(source: Source, download: Download, part: Path, progress: Progress) -> str:
    """The part's SHA-256, after its content was compared with the published checksum; a wrong part is removed."""
    name, _, expected = download.digest.partition(":")
    published = hashlib.new(name or "sha256", usedforsecurity=False)
    sha256 = hashlib.sha256()
    size, done = part.stat().st_size, 0
    with part.open("rb") as file:
        while chunk := file.read(_CHUNK):
            published.update(chunk)
            sha256.update(chunk)
            done += len(chunk)
            progress(f"checking {download.file}", done, size)
    if expected and published.hexdigest() != expected:
        part.unlink()
        raise DataError(
            f"{download.file} has the {name.upper()} {published.hexdigest()}, published is {expected}: it came "
            "damaged, or its source has changed. It was removed.",
            f"Type the same command again. If this is said again, do not trust the source. By hand: {source.by_hand}",
        )
    return sha256.hexdigest()


def _merge(source: Path, target: Path) -> None:
    """Move a file or folder into place; a folder that exists takes in what it lacks, and equal files are kept."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        source.replace(target)
    elif source.is_dir() and target.is_dir():
        for child in sorted(source.iterdir()):
            _merge(child, target / child.name)
    elif not (source.is_file() and target.is_file() and filecmp.cmp(source, target, shallow=False)):
        raise DataError(
            f"{target} is there already and is not that of the data set.",
            "Move it away, or name another folder with --to.",
        )


def _refuse_no_space(folder: Path, needed: int, what: str) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(
            f"{folder} has {free / 1e9:.1f} GB free; {what} needs {needed / 1e9:.1f} GB with its unpacked files.",
            "Free some space, or name a folder on another disk with --to.",
        )


def _read_manifest(to: Path) -> dict[str, Any]:
    path = to / MANIFEST
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(
            f"{path} is damaged: {error}.", "Remove it; the data sets beside it are not touched."
        ) from error
    return content if isinstance(content, dict) else {}


def _write_manifest(to: Path, content: dict[str, Any]) -> None:
    draft = to / _WORK / MANIFEST
    draft.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    draft.replace(to / MANIFEST)
