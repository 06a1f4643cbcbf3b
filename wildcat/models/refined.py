"""The folder of a refined model: a run, and the segmenter trained on masks the run made. It is a model as a run is.

refined.json            classes, task, the segmenter's levels and grid, and what it was trained on
segmenter.safetensors   its weights
base/                   a copy of the run: it says which classes are there, and its backbone feeds the segmenter
calibration.json        how masks are drawn, see `wildcat.models.calibration`
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wildcat.errors import RunError
from wildcat.files import making, read_json, write_json, writing
from wildcat.models.run import REFINED, RESTORE, Run, copy_run, load_weights, open_run, save_weights, versions
from wildcat.nn.segmenter import Segmenter

SCHEMA = 1
"""Version of the folder's layout."""

SEGMENTER, BASE = "segmenter.safetensors", "base"


@dataclass(frozen=True)
class Refined:
    """A refined model's folder that has been opened and checked.

    Attributes:
        base: the run it was made of, a copy.
        channels: of the levels of the backbone that the segmenter sees, the finest first.
        width: channels of the segmenter's layers.
    """

    folder: Path
    base: Run
    channels: tuple[int, ...]
    width: int
    manifest: Mapping[str, Any]

    def load_segmenter(self) -> Segmenter:
        """The segmenter with its weights, on the CPU, ready to predict.

        Raises:
            RunError: the weights are missing, damaged or of another network.
        """
        segmenter = Segmenter(self.channels, len(self.base.classes), self.width)
        load_weights(segmenter, self.folder / SEGMENTER)
        return segmenter.eval()


def is_refined(folder: Path) -> bool:
    """Whether a folder says that it is a refined model."""
    return (folder / REFINED).is_file()


def write_refined(
    folder: Path,
    run: Run,
    segmenter: Segmenter,
    record: Mapping[str, Any],
    finish: Callable[[Path], object] = lambda made: None,
) -> Refined:
    """Make the folder of a refined model; all of it or nothing.

    Args:
        record: what to say of how the segmenter was trained; plain values.
        finish: writes what else belongs there, given the folder in the making.

    Raises:
        RunError: the folder exists and is not empty, or the disk is full; nothing is left behind.
    """
    with making(folder) as made:
        with writing(folder):
            copy_run(run, made / BASE)
        save_weights(segmenter, made / SEGMENTER)
        manifest = {
            "schema": SCHEMA,
            "classes": list(run.classes),
            "task": run.task,
            "channels": list(segmenter.channels),
            "width": segmenter.classify.in_channels,
            "base": str(run.folder),
            "trained": dict(record),
            "versions": versions(),
        }
        write_json(made / REFINED, manifest)
        finish(made)
    return open_refined(folder)


def open_refined(folder: Path) -> Refined:
    """Open the folder of a refined model and check that its parts fit each other.

    Raises:
        RunError: a damaged or missing file, or a layout of another version.
    """
    path = folder / REFINED
    manifest = read_json(path, RESTORE)
    try:
        schema, classes = manifest["schema"], tuple(manifest["classes"])
        channels, width = tuple(int(c) for c in manifest["channels"]), int(manifest["width"])
        if min(*channels, width) < 1:
            raise ValueError("channels below 1")
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise RunError(f"{path} is damaged ({type(error).__name__}: {error}).", RESTORE) from error
    if schema != SCHEMA:
        raise RunError(f"{path} has layout version {schema!r}; this version reads {SCHEMA}.", RESTORE)
    base = open_run(folder / BASE)
    if base.classes != classes:
        raise RunError(f"{path} names other classes than {folder / BASE}.", RESTORE)
    return Refined(folder, base, channels, width, manifest)
