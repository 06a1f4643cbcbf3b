"""Atomic writes of files and folders, written under a temporary name and renamed when complete; names of files."""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from wildcat.errors import RunError

PART = ".part"  # suffix of the hidden temporary files and folders
LEFT_ALONE = 3600.0  # seconds for which a temporary file may belong to a command that is still running
_REMEDIES = {
    errno.ENOENT: "A folder of this path does not exist; create it.",
    errno.ENOTDIR: "A part of this path is a file, not a folder; give another path.",
    errno.EEXIST: "A part of this path is a file, not a folder; give another path.",
    errno.ENAMETOOLONG: "Give a shorter name.",
}


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError into a RunError that names `path`."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{path} cannot be written: {error.strerror or error}.",
            _REMEDIES.get(error.errno or 0, "Check the free space and the permissions there."),
        ) from error


@contextlib.contextmanager
def reading(path: Path, hint: str) -> Iterator[None]:
    """Turn what missing or wrong values in a file raise into a RunError that names `path`."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise RunError(f"{path} is damaged ({type(error).__name__}: {str(error)[:200]}).", hint) from error


def make_parent(path: Path) -> None:
    """Create the folder that a file will be written to, and those around it.

    Raises:
        RunError: they cannot be created.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically: after a crash it is either the old or the new one."""
    with writing(path):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PART)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o644)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def making(folder: Path) -> Iterator[Path]:
    """Write a folder atomically: the temporary folder it yields is renamed at the end, or removed on an error.

    A folder that exists cannot always be replaced (the working directory, a mount point): the temporary folder is made
    inside, and at the end its entries are moved one by one.

    Raises:
        RunError: the folder exists and is not empty, or cannot be written.
    """
    refuse_existing(folder)
    with writing(folder):
        target = folder.resolve()  # a symbolic link stays
        exists = target.exists()
        draft = target / "new" if exists else target
        draft.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(draft)
        temporary = Path(tempfile.mkdtemp(dir=draft.parent, prefix=f".{draft.name}.", suffix=PART))
    try:
        yield temporary
        refuse_existing(folder)  # another command may have written it
        with writing(folder):
            if exists:
                for entry in temporary.iterdir():
                    entry.replace(target / entry.name)
                temporary.rmdir()
            else:
                temporary.chmod(0o755)
                temporary.replace(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def remove_leftovers(path: Path, seconds: float = LEFT_ALONE) -> None:
    """Remove the temporary files of commands that were killed while writing `path`.

    Files modified in the last `seconds` stay: another command may be writing them.
    """
    for left in path.parent.glob(f".{glob.escape(path.name)}.????????{PART}"):
        with contextlib.suppress(OSError):  # another command removed it
            if time.time() - left.stat().st_mtime >= seconds:
                shutil.rmtree(left) if left.is_dir() else left.unlink()


def remove_folder(folder: Path) -> None:
    """Remove a folder with its content; where it is a symbolic link or a mount point, the content alone."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    with contextlib.suppress(OSError):
        folder.rmdir()


def write_json(path: Path, value: Any) -> None:
    """Write JSON, indented, atomically."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode(errors="backslashreplace"))


def read_json(path: Path, hint: str) -> Any:
    """Read a JSON file, also one that an editor saved with a byte order mark.

    Raises:
        RunError: it is missing, cannot be read or is not JSON; with `hint`.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise RunError(f"there is no file {path}.", hint) from error
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged ({type(error).__name__}: {str(error)[:200]}).", hint) from error


def refuse_existing(folder: Path, hint: str = "") -> None:
    """Refuse to overwrite a folder. Temporary files and folders of `making` and `write_bytes` do not count.

    Args:
        hint: what to do instead; by default it suggests the first free name.

    Raises:
        RunError: the folder exists and is not empty, or is a file.
    """
    if folder.exists() and (not folder.is_dir() or any(not fnmatch(p.name, f".*{PART}") for p in folder.iterdir())):
        raise RunError(
            f"{folder} exists and is never overwritten.",
            hint or f"Give another --out, for example {next_free(folder)}.",
        )


def next_free(path: Path) -> Path:
    """The first of folder-2, folder-3, ... that does not exist; of a file the first of file-2.html, file-3.html, ..."""
    if path.name in ("", ".."):  # the working directory, or one above
        path = path.resolve()
    stem, suffix = (path.stem, path.suffix) if path.is_file() else (path.name or "out", "")  # "/" has no name
    number = 2
    while (candidate := path.parent / f"{stem}-{number}{suffix}").exists():
        number += 1
    return candidate


def file_name(name: str) -> str:
    """Turn a class name into a file name: letters, digits, dots, dashes; other characters become underscores.

    Cut at 120 bytes: file systems allow 255, and a suffix and a number may follow.

    >>> file_name("Bernese mountain dog / puppy")
    'Bernese_mountain_dog___puppy'
    """
    safe = "".join(c if c.isalnum() or c in "-." else "_" for c in name).lstrip(".")
    return safe.encode()[:120].decode(errors="ignore") or "_"


def file_names(names: Iterable[str]) -> dict[str, str]:
    """Name -> `file_name`, numbered where two would collide, also on case-insensitive disks.

    >>> file_names(["a/b", "a_b"])
    {'a/b': 'a_b', 'a_b': 'a_b-2'}
    """
    taken: dict[str, int] = {}
    return {name: free_name(file_name(name), taken) for name in names}


def free_name(base: str, taken: dict[str, int]) -> str:
    """`base`, or the first free of `base-2`, `base-3`, ...; the result is added to `taken`.

    Args:
        taken: name -> the last number used, so that the millionth `frame` is found as fast as the second.
    """
    candidate, number = base, taken.get(base.casefold(), 1)
    while candidate.casefold() in taken:
        number += 1
        candidate = f"{base}-{number}"
    taken[base.casefold()] = number
    taken.setdefault(candidate.casefold(), 1)
    return candidate
