"""The manifest of a model folder: model.json, one format for every kind of model.

    schema      version of the layout of model folders
    kind        "run": one trained network; "ensemble": several of them; "refined": a run and a segmenter; "cascade": a
                run and a verifier of crops
    classes     names, in the order of the scores
    task        "multilabel" or "multiclass"
    created, versions

Each kind adds its own entries, see `wildcat.models.run` and `wildcat.models.folder`.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy
import PIL
import timm
import torch
import torchvision

from wildcat._version import __version__
from wildcat.data.dataset import Task
from wildcat.errors import RunError, did_you_mean
from wildcat.files import read_json, write_json

MANIFEST = "model.json"
SCHEMA = 2
RESTORE = "Restore it from a copy, or train again."

Kind = Literal["run", "ensemble", "refined", "cascade"]


def write_manifest(folder: Path, kind: Kind, classes: Sequence[str], task: Task, **entries: Any) -> None:
    """Write model.json, atomically; `entries` are plain values."""
    common = {"schema": SCHEMA, "kind": kind, "created": timestamp(), "classes": list(classes), "task": task}
    write_json(folder / MANIFEST, {**common, **entries, "versions": versions()})


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a model folder and check its common entries.

    Raises:
        RunError: not a model folder, a damaged manifest, or one of another version.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        near = did_you_mean(folder.name, _siblings(folder), folder.parent)
        raise RunError(f"there is no model folder {folder}.", near or "Give a folder that wildcat train wrote.")
    if not path.is_file():
        raise RunError(
            f"{folder} is not a model folder: it has no {MANIFEST}.",
            "Give the folder named with --out in wildcat train.",
        )
    manifest = read_json(path, RESTORE)
    if not isinstance(manifest, dict):
        raise RunError(f"{path} is damaged: it is not a JSON object.", RESTORE)
    if manifest.get("schema") != SCHEMA:
        writer = manifest.get("versions")
        version = writer.get("wildcat") if isinstance(writer, dict) else None
        raise RunError(
            f"{path} has layout version {manifest.get('schema')!r}; this is wildcat {__version__}, which reads "
            f"version {SCHEMA}.",
            f"It was written by wildcat {version}: use that one." if version else RESTORE,
        )
    classes = manifest.get("classes")
    valid = {
        "kind": manifest.get("kind") in get_args(Kind),
        "classes": isinstance(classes, list)
        and {type(c) for c in classes} == {str}
        and len(set(classes)) == len(classes),
        "task": manifest.get("task") in get_args(Task),
    }
    if wrong := [name for name in valid if not valid[name]]:
        raise RunError(f"{path} is damaged: missing or invalid {', '.join(wrong)}.", RESTORE)
    return manifest


class RecordedData(NamedTuple):
    """Where and how the data of a model was read: source, format and reader options as given on the command line."""

    source: str = ""
    format: str | None = None
    options: tuple[str, ...] = ()


def recorded_data(folder: Path) -> RecordedData:
    """The data that a model was trained on, of an ensemble that of its first member; empty if none is recorded."""
    for path in (folder / part / MANIFEST for part in ("", "base", "members/1", "members/1/base")):
        try:
            data = json.loads(path.read_text(encoding="utf-8-sig"))["data"]
            return RecordedData(str(data["source"]), data.get("format"), tuple(map(str, data.get("options", ()))))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
    return RecordedData()


def kind_of(folder: Path) -> Kind | None:
    """The kind of model in a folder; None if it holds none, or its manifest cannot be read."""
    try:
        kind: Kind = read_manifest(folder)["kind"]
    except RunError:
        return None
    return kind


def versions() -> dict[str, str]:
    """Versions of this package and of those that determine its numbers."""
    return {
        "wildcat": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "timm": timm.__version__,
        "numpy": numpy.__version__,
        "pillow": PIL.__version__,
    }


def timestamp() -> str:
    """The current time in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _siblings(path: Path) -> list[str]:
    return [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
