"""Download public data sets: resumed, checked against published checksums, unpacked safely."""

from __future__ import annotations

import filecmp
import shutil
import stat
import tarfile
import time
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any

from wildcat.data.sources import Download, Source
from wildcat.errors import DataError
from wildcat.progress import SILENT, Progress

if TYPE_CHECKING:
    import requests

_ATTEMPTS, _PAUSE, _TIMEOUT = 3, 2.0, 30.0  # tries of every address, seconds between them, seconds without a byte
_CHUNK = 1 << 16  # a connection that breaks loses less than one chunk
_UNPACK_RATIO = 20  # an archive may unpack to this many times its size; COCO's JSON to about four times


def is_fetched(source: Source, to: Path) -> bool:
    """Whether folder `to` holds everything of `source`, and no download of it is unfinished."""
    return all((to / path).exists() for path in source.holds) and not _work_folder(source, to).exists()


def fetch_dataset(source: Source, to: Path, progress: Progress = SILENT) -> Path:
    """Download a public data set into folder `to`, which may hold others; returns the path for `open_dataset`.

    Unfinished files are kept in a hidden folder in `to`, and the next call resumes there. A file is unpacked after its
    checksum matches the published one. Existing files in `to` are never replaced. Does nothing if the data set is
    complete. The caller asks for the licence.

    Raises:
        DataError: no connection, a wrong checksum, an unsafe or damaged archive, too little space, or a different file
            in the way.
    """
    work = _work_folder(source, to)
    if is_fetched(source, to):
        return to / source.opens
    try:
        work.mkdir(parents=True, exist_ok=True)
        pending = [d for d in source.downloads if not (work / f"{d.file}.done").exists()]
        _check_space(to, [d.size or 0 for d in pending], source.name)
        for download in pending:
            archive, stage = work / download.file, work / f"{download.file}.unpacked"
            if not archive.exists():
                _transfer(source, download, archive, progress)
            shutil.rmtree(stage, ignore_errors=True)
            stage.mkdir()
            if archive.suffix in (".zip", ".tar"):
                progress.start(f"unpacking {download.file}", None)
                unpack(archive, stage)
            else:
                shutil.copyfile(archive, stage / archive.name)
            _merge(stage, to / download.folder)
            (work / f"{download.file}.done").touch()
            archive.unlink()
        if missing := [path for path in source.holds if not (to / path).exists()]:
            raise DataError(
                f"{source.name} was unpacked into {to}, but {missing[0]} is missing: its files have changed.",
                source.by_hand,
            )
        shutil.rmtree(work)
    except OSError as error:
        raise DataError(
            f"{to} cannot be written ({error.strerror or error}).", "Choose another folder with --to."
        ) from error
    return to / source.opens


def _work_folder(source: Source, to: Path) -> Path:
    return to / f".fetch-{source.name}"


def _transfer(source: Source, download: Download, file: Path, progress: Progress) -> None:
    """Download `file` from the first address that answers, resuming its `.part`; it appears complete and checked."""
    import requests  # noqa: PLC0415  # slow, and only downloads need it
    from pooch.hashes import hash_matches  # noqa: PLC0415

    part = file.with_name(f"{file.name}.part")
    errors: list[str] = []
    for attempt in range(_ATTEMPTS):
        for url in download.urls:
            try:
                resumed = _transfer_from(url, download, part, progress)
            except requests.RequestException as error:
                errors.append(f"{url}: {_reason(error)}")
                if "416" in errors[-1]:  # the part is longer than the file
                    part.unlink(missing_ok=True)
                continue
            if hash_matches(part, download.digest or None):
                part.replace(file)
                return
            part.unlink()
            errors.append(f"{url}: the checksum is not the published {download.digest}")
            if not resumed:
                raise DataError(
                    f"{download.file} was removed: its checksum is not the published {download.digest}.",
                    f"Run the same command again; if it repeats, do not trust the source. By hand: {source.by_hand}",
                )
        if attempt < _ATTEMPTS - 1:
            time.sleep(_PAUSE)
    done = part.stat().st_size if part.exists() else 0
    raise DataError(
        f"{download.file} could not be downloaded from {'; '.join(errors[-len(download.urls) :])}.",
        f"Run the same command again{f' to resume after {done} bytes' if done else ' when you are connected'}. "
        f"Or by hand: {source.by_hand}",
    )


def _transfer_from(url: str, download: Download, part: Path, progress: Progress) -> bool:
    """Download `url` to `part`; whether it continued bytes of an earlier transfer."""
    import pooch  # noqa: PLC0415

    # Without a published checksum nothing would notice that the rest belongs to another version of the file.
    resume = part.stat().st_size if download.digest and part.exists() else 0
    if resume and resume == download.size:
        return True
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={resume}-"} if resume else {})
    progress.start(download.file, download.size, resume)
    with part.open("ab" if resume else "wb") as target:

        def restart(response: requests.Response, **_: Any) -> None:
            if response.status_code == 200:  # the whole file: the server does not resume
                target.truncate(0)

        downloader = pooch.HTTPDownloader(
            chunk_size=_CHUNK, timeout=_TIMEOUT, headers=headers, hooks={"response": restart}
        )
        downloader(url, _Counted(target, progress), None)
    return resume > 0


class _Counted:
    """A file to write to that reports the bytes written."""

    def __init__(self, file: IO[bytes], progress: Progress) -> None:
        self.file, self.progress = file, progress

    def write(self, chunk: bytes) -> None:
        self.file.write(chunk)
        self.progress.advance(len(chunk))

    def flush(self) -> None:
        self.file.flush()


def _reason(error: requests.RequestException) -> str:
    import requests  # noqa: PLC0415

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"the server answers {error.response.status_code}"
    if isinstance(error, requests.Timeout):
        return "no answer"
    name = type(error).__name__  # SSLError, ProxyError, ...
    return f"no connection ({name})" if isinstance(error, requests.ConnectionError) else "the connection broke"


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a `.zip` or plain `.tar` into `folder`. What was written before an error stays: remove `folder` then.

    Raises:
        DataError: a member that is neither file nor folder or would lie outside `folder`, a content of more than
            `_UNPACK_RATIO` times the archive (at least 64 MB), or a cut or damaged archive.
    """
    limit = max(64 << 20, _UNPACK_RATIO * archive.stat().st_size)
    try:
        if archive.suffix.lower() == ".zip":
            with zipfile.ZipFile(archive) as zipped:
                entries = zipped.infolist()
                links = [e.filename for e in entries if stat.S_IFMT(e.external_attr >> 16) == stat.S_IFLNK]
                _check_members(archive, [e.filename for e in entries], links, sum(e.file_size for e in entries), limit)
                zipped.extractall(folder)  # noqa: S202  # its members were checked
        else:
            with tarfile.open(archive, "r:") as tar:
                members = tar.getmembers()
                links = [m.name for m in members if not (m.isreg() or m.isdir())]
                _check_members(archive, [m.name for m in members], links, sum(m.size for m in members), limit)
                tar.extractall(folder, filter="data")
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, RuntimeError) as error:
        raise DataError(
            f"{archive} ({archive.stat().st_size} bytes) cannot be unpacked: {error}.", "Download or copy it again."
        ) from error


def _check_members(archive: Path, names: list[str], links: list[str], size: int, limit: int) -> None:
    outside = [n for n in names if PurePosixPath(n).is_absolute() or ".." in PurePosixPath(n).parts or "\\" in n]
    for wrong, problem in ((links, "is a link or device"), (outside, "would lie outside its folder")):
        if wrong:
            raise DataError(
                f"{archive} has the member {wrong[0]!r}, which {problem}; it is not unpacked.",
                "Do not trust this file: download it from its source again.",
            )
    if size > limit:
        raise DataError(f"{archive} unpacks to {size} bytes; at most {limit} are expected.", "Do not trust this file.")


def _merge(source: Path, target: Path) -> None:
    """Move a file or folder into place; a folder that exists receives what it lacks, and equal files stay."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        source.replace(target)
    elif source.is_dir() and target.is_dir():
        for child in sorted(source.iterdir()):
            _merge(child, target / child.name)
    elif not (source.is_file() and target.is_file() and filecmp.cmp(source, target, shallow=False)):
        raise DataError(
            f"{target} exists and differs from the file of the data set.",
            "Move it away, or choose another folder with --to.",
        )


def _check_space(folder: Path, sizes: list[int], name: str) -> None:
    """Refuse to begin without room for all files unpacked and the largest archive beside them."""
    free, needed = shutil.disk_usage(folder).free, sum(sizes) + max(sizes, default=0)
    if free < needed:
        raise DataError(
            f"{folder} has {free / 1e9:.1f} GB free; {name} needs {needed / 1e9:.1f} GB with its unpacked files.",
            "Free some space, or choose a folder on another disk with --to.",
        )
