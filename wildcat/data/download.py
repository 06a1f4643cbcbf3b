"""Download public data sets: resumed, checked against published checksums, unpacked safely."""

from __future__ import annotations

import filecmp
import shutil
import tarfile
import time
import zipfile
import zlib
from pathlib import Path
from typing import Any

from wildcat.data.sources import Download, Source
from wildcat.errors import DataError
from wildcat.progress import SILENT, Progress

_ATTEMPTS, _PAUSE, _TIMEOUT = 3, 2.0, 30.0  # tries of every address, seconds between them, seconds without a byte
_CHUNK = 1 << 16  # a connection that breaks loses less than one chunk


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
        sizes = [download.size or 0 for download in pending]
        left = [max(0, size - _received(work / d.file)) for size, d in zip(sizes, pending, strict=True)]
        free, needed = shutil.disk_usage(to).free, sum(left) + max(sizes, default=0)  # archives, and files of one
        if free < needed:
            raise DataError(
                f"{to} has {free / 1e9:.1f} GB free; {source.name} needs {needed / 1e9:.1f} GB to be unpacked.",
                "Free some space, or choose a folder on another disk with --to.",
            )
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


def _received(file: Path) -> int:
    """The bytes of a download that are on the disk."""
    part = _part(file)
    return next((path.stat().st_size for path in (file, part) if path.exists()), 0)


def _part(file: Path) -> Path:
    """Where the bytes of an unfinished download are."""
    return file.with_name(f"{file.name}.part")


def _transfer(source: Source, download: Download, file: Path, progress: Progress) -> None:
    """Download `file` from the first address that answers, resuming its `.part`; it appears complete and checked."""
    import requests  # noqa: PLC0415  # slow, and only downloads need it
    from pooch.hashes import hash_matches  # noqa: PLC0415

    part = _part(file)
    errors: list[str] = []
    for attempt in range(_ATTEMPTS):
        for url in download.urls:
            try:
                resumed = _transfer_from(url, download, part, progress)
            except requests.RequestException as error:
                status = 0 if error.response is None else error.response.status_code
                if status == 416:  # the part is longer than the file
                    part.unlink(missing_ok=True)
                reason = f"the server answers {status}" if status else f"no connection ({type(error).__name__})"
                errors.append(f"{url}: {reason}")
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
    import requests  # noqa: PLC0415

    # Without a published checksum nothing would notice that the rest belongs to another version of the file.
    resume = part.stat().st_size if download.digest and part.exists() else 0
    if resume and resume == download.size:
        return True
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={resume}-"} if resume else {})
    progress.start(download.file, download.size, resume)
    with requests.get(url, headers=headers, timeout=_TIMEOUT, stream=True) as response:
        response.raise_for_status()
        with part.open("ab" if response.status_code == 206 else "wb") as file:  # 200: the server does not resume
            for chunk in response.iter_content(_CHUNK):
                file.write(chunk)
                progress.advance(len(chunk))
    return resume > 0


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a `.zip` or `.tar` into `folder`, and nothing outside. What was written before an error stays.

    Raises:
        DataError: a cut or damaged archive, an encrypted member, a device, or a link out of `folder`.
    """
    # shutil leaves out links and ".." of a zip.
    options: dict[str, Any] = {} if archive.suffix == ".zip" else {"filter": "data"}
    try:
        shutil.unpack_archive(archive, folder, **options)
    except (shutil.ReadError, zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, RuntimeError) as error:
        raise DataError(
            f"{archive} ({archive.stat().st_size} bytes) cannot be unpacked: {error}.",
            "Do not trust this file: download it from its source again.",
        ) from error


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
