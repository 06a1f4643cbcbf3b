"""The ensemble folder: several trained networks and how their scores become one. It is a model as a run folder is.

    ensemble.json             classes, task, members, how they are combined and what that was fitted on
    combination.safetensors   weight (C, S*C) and bias (C,) of the linear combination; absent where scores are averaged
    members/1, members/2, ... run folders with all that is needed to predict: settings, manifest, weights

The members are copies, so that an ensemble lives on when the runs it was made of do not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from wildcat.data.dataset import Task
from wildcat.errors import RunError
from wildcat.files import making, read_json, write_bytes, write_json, writing
from wildcat.models.run import ENSEMBLE, RESTORE, Run, copy_run, open_run, refuse_taken, versions

SCHEMA = 1
"""Version of the folder's layout."""

COMBINATION = "combination.safetensors"

Combine = Literal["linear", "average"]


@dataclass(frozen=True)
class Ensemble:
    """An ensemble folder that has been opened and checked.

    Attributes:
        weight, bias: (C, S*C) and (C,) float32 of the linear combination, or None where scores are averaged.
    """

    folder: Path
    runs: tuple[Run, ...]
    classes: tuple[str, ...]
    task: Task
    weight: NDArray[np.float32] | None
    bias: NDArray[np.float32] | None
    manifest: Mapping[str, Any]


def is_ensemble(folder: Path) -> bool:
    """Whether a folder says that it is an ensemble."""
    return (folder / ENSEMBLE).is_file()


def check_members(runs: Sequence[Run]) -> None:
    """Refuse runs that cannot speak for the same classes.

    Raises:
        RunError: fewer than two, or other classes, or another task.
    """
    if len(runs) < 2:
        raise RunError(f"an ensemble of {len(runs)} run has nothing to combine.", "Name at least two run folders.")
    first = runs[0]
    for run in runs[1:]:
        if run.task != first.task or run.classes != first.classes:
            what = "task" if run.task != first.task else "classes"
            raise RunError(
                f"{run.folder} and {first.folder} have different {what}; their scores cannot be combined.",
                "Combine runs that were trained on the same data set.",
            )


def write_ensemble(
    folder: Path,
    runs: Sequence[Run],
    combination: tuple[NDArray[np.float32], NDArray[np.float32]] | None,
    record: Mapping[str, Any],
) -> Ensemble:
    """Make an ensemble folder of copies of the runs; all of it or nothing.

    Args:
        combination: weight (C, S*C) and bias (C,), or None to average.
        record: what to say of how it was fitted.

    Raises:
        RunError: the folder exists and is not empty, or the disk is full; nothing is left behind.
    """
    check_members(runs)
    refuse_taken(folder)
    with making(folder) as made:
        with writing(folder):
            for number, run in enumerate(runs, 1):
                copy_run(run, made / "members" / str(number))
        if combination is not None:
            arrays = {"weight": combination[0], "bias": combination[1]}
            write_bytes(made / COMBINATION, safetensors.numpy.save(arrays))
        manifest = {
            "schema": SCHEMA,
            "classes": list(runs[0].classes),
            "task": runs[0].task,
            "members": [str(run.folder) for run in runs],
            "combine": "average" if combination is None else "linear",
            "fitted": dict(record),
            "versions": versions(),
        }
        write_json(made / ENSEMBLE, manifest)
    return open_ensemble(folder)


def open_ensemble(folder: Path) -> Ensemble:
    """Open an ensemble folder and check that its parts fit each other.

    Raises:
        RunError: a damaged or missing file, or a layout of another version.
    """
    path = folder / ENSEMBLE
    manifest = read_json(path, RESTORE)
    try:
        schema, count, combine = manifest["schema"], len(manifest["members"]), str(manifest["combine"])
    except (KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged ({type(error).__name__}: {error}).", RESTORE) from error
    if schema != SCHEMA:
        raise RunError(f"{path} has layout version {schema!r}; this version reads {SCHEMA}.", RESTORE)
    runs = tuple(open_run(folder / "members" / str(number)) for number in range(1, count + 1))
    check_members(runs)
    classes = runs[0].classes
    weight = bias = None
    if combine == "linear":
        weight, bias = _read_combination(folder / COMBINATION, len(classes), count)
    return Ensemble(folder, runs, classes, runs[0].task, weight, bias, manifest)


def _read_combination(path: Path, classes: int, members: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    try:
        arrays = safetensors.numpy.load_file(path)
        weight, bias = arrays["weight"], arrays["bias"]
    except (safetensors.SafetensorError, OSError, ValueError, KeyError) as error:
        raise RunError(f"{path} is damaged or missing ({type(error).__name__}).", RESTORE) from error
    if weight.shape != (classes, members * classes) or bias.shape != (classes,):
        raise RunError(
            f"{path} does not fit {members} members of {classes} classes: its weight is {weight.shape}.", RESTORE
        )
    return weight.astype(np.float32), bias.astype(np.float32)
