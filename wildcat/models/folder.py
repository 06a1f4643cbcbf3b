"""Open any kind of model folder, and write those that are made of runs: ensembles and refined models.

An ensemble combines the scores of several runs:

    model.json                the manifest; an ensemble adds
                              members: the run folders it was made of
                              combine: "linear" or "average"
                              fitted: what a linear combination was fitted on
    combination.safetensors   weight (C, S*C) and bias (C,) of the linear combination; absent for "average"
    members/1, members/2, ... copies of the run folders, without the training state; or of cascades, whose first stages
                              and verifiers are averaged

A refined model is a run with a segmenter, trained on masks of the run:

    model.json                the manifest; a refined model adds
                              base: the run folder it was made of
                              channels, width, prior_sharpness: of the segmenter, see `wildcat.nn.segmenter.Segmenter`
                              trained: the settings, data and losses of its training
    segmenter.safetensors     weights of the segmenter
    boundaries.safetensors    weights of the boundary network, see `wildcat.nn.boundaries`; only with --propagate
    base/                     a copy of the run folder, whose backbone feeds the segmenter; with --tune all its
                              weights are those that were trained with the segmenter

A cascade is a run with a verifier, which scores crops that the run proposes, see `wildcat.models.cascade`:

    model.json                the manifest; a cascade adds
                              base: the run folder it was made of
                              crops, weight: of `wildcat.models.cascade.Cascade`
                              trained: the settings, data and losses of its training
    verifier.safetensors      weights of the verifier
    base/                     a copy of the run folder

All of them may hold calibration.json, see `wildcat.models.calibration`.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from wildcat.data.dataset import Task
from wildcat.data.transforms import Preprocess
from wildcat.errors import RunError
from wildcat.files import making, reading, write_bytes, writing
from wildcat.models.calibration import Calibration, write_calibration
from wildcat.models.cascade import Cascade
from wildcat.models.manifest import MANIFEST, RESTORE, Kind, read_manifest, write_manifest
from wildcat.models.run import WEIGHTS, Run, copy_run, load_weights, open_run, save_weights
from wildcat.nn.boundaries import BoundaryNetwork
from wildcat.nn.model import Transfer, Wildcat
from wildcat.nn.segmenter import Segmenter

COMBINATION, BASE = "combination.safetensors", "base"
SEGMENTER, BOUNDARIES, VERIFIER = "segmenter.safetensors", "boundaries.safetensors", "verifier.safetensors"

Combine = Literal["linear", "average"]


@dataclass(frozen=True)
class Combination:
    """A linear layer from the scores of S networks to one score per class (Li et al., Object Bank, NIPS 2010).

    Attributes:
        weight: (C, S*C) float32; input s*C + c is the score of class c by network s.
        bias: (C,) float32.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    def __call__(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """(B, S, C) scores of the networks -> (B, C)."""
        return np.asarray(scores.reshape(len(scores), -1) @ self.weight.T + self.bias, dtype=np.float32)


@dataclass(frozen=True)
class Model:
    """An opened model folder of any kind.

    Attributes:
        runs: the run itself; those of the members of an ensemble; the base of a refined model or a cascade.
        members: of an ensemble, runs and cascades; otherwise empty.
        combination: of the scores of an ensemble; None averages them.
    """

    folder: Path
    kind: Kind
    runs: tuple[Run, ...]
    classes: tuple[str, ...]
    task: Task
    manifest: Mapping[str, Any]
    members: tuple[Model, ...] = ()
    combination: Combination | None = None

    @property
    def preprocess(self) -> Preprocess:
        """Of its run, or the first of several."""
        return self.runs[0].preprocess

    def load_segmenter(self) -> Segmenter | None:
        """The segmenter of a refined model, on the CPU, in evaluation mode; None for other kinds.

        Raises:
            RunError: its weights are missing, damaged or of another network.
        """
        if self.kind != "refined":
            return None
        channels, width, prior = self._network_sizes()
        segmenter = Segmenter(channels, len(self.classes), width, prior)
        load_weights(segmenter, self.folder / SEGMENTER)
        return segmenter.eval()

    def load_boundaries(self) -> BoundaryNetwork | None:
        """The boundary network of a refined model, on the CPU, in evaluation mode; None where there is none.

        Raises:
            RunError: its weights are damaged or of another network.
        """
        if self.kind != "refined" or not (self.folder / BOUNDARIES).is_file():
            return None
        boundaries = BoundaryNetwork(self._network_sizes()[0])
        load_weights(boundaries, self.folder / BOUNDARIES)
        return boundaries.eval()

    def load_cascade(self, channels: Sequence[int]) -> Cascade | None:
        """The second stage, on the CPU, in evaluation mode: of a cascade, or of those in an ensemble; otherwise None.

        Args:
            channels: of the features of each run.

        Raises:
            RunError: weights or settings are missing, damaged or of another network.
        """
        settings = self.cascade_settings
        if settings is None:
            return None
        parts = self.members or (self,)
        verifiers = [part._load_verifier(count) for part, count in zip(parts, channels, strict=True)]
        first = next(part.runs[0].folder for part in parts if part.kind == "cascade")
        return Cascade(tuple(verifiers), *settings, first.relative_to(self.folder).as_posix())

    def _load_verifier(self, channels: int) -> Transfer | None:
        if self.kind != "cascade":
            return None
        verifier = Transfer(channels, len(self.classes))
        load_weights(verifier, self.folder / VERIFIER)
        return verifier.eval()

    @property
    def cascade_settings(self) -> tuple[int, float] | None:
        """Crops and weight of a cascade, or of those in an ensemble, which agree; None for other models.

        Raises:
            RunError: they are missing or damaged.
        """
        if self.kind != "cascade":
            return next((m.cascade_settings for m in self.members if m.kind == "cascade"), None)
        with reading(self.folder / MANIFEST, RESTORE):
            crops, weight = int(self.manifest["crops"]), float(self.manifest["weight"])
            if crops < 2 or not 0 <= weight <= 1:
                raise ValueError(f"crops={crops}, weight={weight}")
        return crops, weight

    def _network_sizes(self) -> tuple[tuple[int, ...], int, float | None]:
        """Channels of the levels, width and prior of the segmenter, from the manifest of a refined model."""
        with reading(self.folder / MANIFEST, RESTORE):
            channels, width = tuple(int(c) for c in self.manifest["channels"]), int(self.manifest["width"])
            prior = self.manifest["prior_sharpness"]
            prior = None if prior is None else float(prior)
            if min(*channels, width) < 1 or not (prior is None or 0 < prior < float("inf")):
                raise ValueError("channels below 1, or no positive prior_sharpness")
        return channels, width, prior


def open_model(folder: Path) -> Model:
    """Open a model folder of any kind and check that its files belong together.

    Raises:
        RunError: not a model folder, a damaged or missing file, or a layout of another version.
    """
    manifest = read_manifest(folder)
    kind, classes, combination = manifest["kind"], tuple(manifest["classes"]), None
    members: tuple[Model, ...] = ()
    runs: tuple[Run, ...]
    if kind == "run":
        runs = (open_run(folder),)
    elif kind in ("refined", "cascade"):
        runs = (open_run(folder / BASE),)
    else:
        with reading(folder / MANIFEST, RESTORE):
            count, combine = len(manifest["members"]), manifest["combine"]
            if combine not in get_args(Combine):
                raise ValueError(f"combine={combine!r} is none of {', '.join(get_args(Combine))}")
        members = tuple(open_model(folder / "members" / str(number)) for number in range(1, count + 1))
        check_members(members)
        runs = tuple(member.runs[0] for member in members)
        if combine == "linear":
            combination = _read_combination(folder / COMBINATION, len(runs[0].classes), count)
    if runs[0].classes != classes:
        raise RunError(f"{folder / MANIFEST} names other classes than {runs[0].folder}.", RESTORE)
    return Model(folder, kind, runs, classes, runs[0].task, manifest, members, combination)


def check_members(members: Sequence[Model]) -> None:
    """Refuse models that cannot form an ensemble.

    Raises:
        RunError: one that is neither a run nor a cascade, fewer than two, or they differ in classes, task or
            --intensity-range, or the cascades among them in crops or weight.
    """
    if other := next((member for member in members if member.kind not in ("run", "cascade")), None):
        open_run(other.folder)  # says what to give instead
    if len(members) < 2:
        raise RunError(f"an ensemble of {len(members)} run has nothing to combine.", "Give at least two run folders.")
    first = members[0]
    for member in members[1:]:
        pairs = {
            "task": (member.task, first.task),
            "classes": (member.classes, first.classes),
            "intensity ranges": (member.preprocess.intensity_range, first.preprocess.intensity_range),
        }
        if difference := next((name for name, (own, other) in pairs.items() if own != other), ""):
            raise RunError(
                f"{member.folder} and {first.folder} have different {difference}; their scores cannot be combined.",
                "Combine runs that were trained on the same data set.",
            )
    cascades = [member for member in members if member.kind == "cascade"]
    for cascade in cascades[1:]:
        if cascade.cascade_settings != cascades[0].cascade_settings:
            pair = [(c.folder, *(c.cascade_settings or ())) for c in (cascade, cascades[0])]
            texts = " and ".join("{} ({} crops, weight {})".format(*one) for one in pair)
            raise RunError(f"{texts} verify different crops.", "Make both with the same --crops and --crop-weight.")


def write_ensemble(
    folder: Path, members: Sequence[Model], combination: Combination | None, fitted: Mapping[str, Any]
) -> Model:
    """Write an ensemble of copies of runs and cascades, atomically.

    Args:
        combination: None averages the scores.
        fitted: what the combination was fitted on; plain values.

    Raises:
        RunError: the folder exists and is not empty, or cannot be written.
    """
    with making(folder) as unfinished:
        with writing(folder):
            for number, member in enumerate(members, 1):
                _copy_member(member, unfinished / "members" / str(number))
        if combination is not None:
            arrays = {"weight": combination.weight, "bias": combination.bias}
            write_bytes(unfinished / COMBINATION, safetensors.numpy.save(arrays))
        write_manifest(
            unfinished,
            "ensemble",
            members[0].classes,
            members[0].task,
            members=[str(member.folder) for member in members],
            combine="average" if combination is None else "linear",
            fitted=dict(fitted),
        )
    return open_model(folder)


def _copy_member(member: Model, folder: Path) -> None:
    if member.kind == "run":
        copy_run(member.runs[0], folder)
    else:  # a cascade
        copy_run(member.runs[0], folder / BASE)
        for name in (MANIFEST, VERIFIER):
            shutil.copyfile(member.folder / name, folder / name)


def write_refined(
    folder: Path,
    run: Run,
    segmenter: Segmenter,
    trained: Mapping[str, Any],
    calibration: Calibration,
    boundaries: BoundaryNetwork | None = None,
    model: Wildcat | None = None,
) -> Model:
    """Write a refined model with a copy of its run, atomically.

    Args:
        model: replaces the weights of the copied run, if it was trained with the segmenter.
        trained: settings, data and losses of the training of the segmenter; plain values.
        calibration: of the refined model.

    Raises:
        RunError: the folder exists and is not empty, or cannot be written.
    """
    with making(folder) as unfinished:
        with writing(folder):
            copy_run(run, unfinished / BASE)
        if model is not None:
            save_weights(model, unfinished / BASE / WEIGHTS)
        save_weights(segmenter, unfinished / SEGMENTER)
        if boundaries is not None:
            save_weights(boundaries, unfinished / BOUNDARIES)
        write_manifest(
            unfinished,
            "refined",
            run.classes,
            run.task,
            channels=list(segmenter.channels),
            width=segmenter.classify.in_channels,
            prior_sharpness=segmenter.prior_sharpness,
            base=str(run.folder),
            trained=dict(trained),
        )
        write_calibration(unfinished, run.classes, calibration.params, calibration.record, calibration.crf)
    return open_model(folder)


def write_cascade(
    folder: Path, run: Run, verifier: Transfer, crops: int, weight: float, trained: Mapping[str, Any]
) -> Model:
    """Write a cascade with a copy of its run, atomically.

    Args:
        trained: settings, data and losses of the training of the verifier; plain values.

    Raises:
        RunError: the folder exists and is not empty, or cannot be written.
    """
    with making(folder) as unfinished:
        with writing(folder):
            copy_run(run, unfinished / BASE)
        save_weights(verifier, unfinished / VERIFIER)
        own = {"crops": crops, "weight": weight, "base": str(run.folder), "trained": dict(trained)}
        write_manifest(unfinished, "cascade", run.classes, run.task, **own)
    return open_model(folder)


def _read_combination(path: Path, classes: int, members: int) -> Combination:
    try:
        arrays = safetensors.numpy.load_file(path)
        weight, bias = arrays["weight"], arrays["bias"]
    except (safetensors.SafetensorError, OSError, ValueError, KeyError) as error:
        raise RunError(f"{path} is damaged or missing ({type(error).__name__}).", RESTORE) from error
    if weight.shape != (classes, members * classes) or bias.shape != (classes,):
        raise RunError(
            f"{path} does not fit {members} members of {classes} classes: its weight is {weight.shape}.", RESTORE
        )
    return Combination(weight.astype(np.float32), bias.astype(np.float32))
