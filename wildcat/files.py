"""Files and folders that are whole or not there: written beside their names and moved to them when they are done."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wildcat.errors import RunError

PART = ".part"
"""Suffix of a hidden file or folder that is being written, and is moved to its name when it is whole."""

LEFT_ALONE = 3600.0
"""Seconds in which what is half-written may still be another command's at work."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failure to write at `path` into one sentence."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{path} cannot be written: {error.strerror or error}.",
            "Check the space and the rights there; what was written before is intact.",
        ) from error


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a crash leaves either the old one or the new one."""
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
    """A folder in the making: it gets the name of `folder` when the block ends, and nothing is left where that fails.

    Raises:
        RunError: the folder exists and is not empty, or cannot be written.
    """
    refuse_existing(folder)
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        made = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=PART))
    try:
        yield made
        with writing(folder):
            made.chmod(0o755)
            if folder.exists():  # and is empty: not every system renames onto a folder
                folder.rmdir()
            made.replace(folder)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


def remove_leftovers(path: Path, seconds: float = LEFT_ALONE) -> None:
    """Remove what commands that were killed while they wrote `path` have left beside it.

    Another command may be writing it at this moment: what has changed in the last `seconds` stays.
    """
    for left in path.parent.glob(f".{glob.escape(path.name)}.????????{PART}"):
        with contextlib.suppress(OSError):  # another command was quicker
            if time.time() - left.stat().st_mtime >= seconds:
                shutil.rmtree(left) if left.is_dir() else left.unlink()


def write_json(path: Path, value: Any) -> None:
    """Write JSON, indented, atomically."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path, hint: str) -> Any:
    """What a JSON file holds.

    Raises:
        RunError: it cannot be read, or is no JSON; with `hint`.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged ({type(error).__name__}: {str(error)[:200]}).", hint) from error


def refuse_existing(folder: Path, hint: str = "") -> None:
    """Refuse to write where something is already.

    Args:
        hint: what to do instead; by default, to take the first free name.

    Raises:
        RunError: the folder exists and is not empty, or is a file.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(
            f"{folder} exists and is never overwritten.",
            hint or f"Give another --out, for example {next_free(folder)}.",
        )


def next_free(folder: Path) -> Path:
    """The first of folder-2, folder-3, ... that does not exist."""
    number = 2
    while (candidate := folder.with_name(f"{folder.name}-{number}")).exists():
        number += 1
    return candidate
