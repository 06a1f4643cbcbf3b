"""Combine several runs into one model with a linear classifier on all their scores: `wildcat ensemble`.

The paper combines networks of several input sizes this way (section 4.1; Li et al., Object Bank, NIPS 2010). Maps are
averaged on the finest grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wildcat.data.dataset import DataSet, Sample, Task, label_matrix
from wildcat.errors import ConfigError, DataError
from wildcat.models.calibration import fitted_samples
from wildcat.models.folder import Combination, Combine, Model, check_members, write_ensemble
from wildcat.models.member import Member
from wildcat.models.run import refuse_taken
from wildcat.predictor import Predictor
from wildcat.progress import SILENT, Progress
from wildcat.train.optim import multiclass_loss, multilabel_loss

STRENGTH = 0.1  # default regularisation of the linear classifier towards the average


def create_ensemble(
    folder: Path,
    members: Sequence[Model],
    combine: Combine = "linear",
    data: DataSet | None = None,
    split: str = "train",
    strength: float = STRENGTH,
    device: str = "auto",
    progress: Progress = SILENT,
) -> Model:
    """Combine runs into one model folder.

    Args:
        members: runs and cascades; the first stages of cascades are combined like runs, and their verifiers averaged.
        combine: "linear" trains a classifier on the scores of the runs for `split`; "average" uses their mean.
        data, split: labelled images to train the linear classifier on: the training images of the runs, as in the
            paper, see `training_samples`. Never a split to evaluate on.
        strength: see `fit_combination`.
        progress: counts images.

    Raises:
        RunError: the folder exists, or the runs differ in classes, or the cascades in crops or weight.
        ConfigError: a linear combination without data, or a strength out of range.
        DataError: the data has other classes than the runs, or no label that is not ignored.
    """
    check_members(members)
    refuse_taken(folder)
    if combine == "average":
        return write_ensemble(folder, members, None, {})
    runs = [member.runs[0] for member in members]
    if data is None:
        raise ConfigError("a linear combination is trained on labelled images.", "Add --data, or --combine average.")
    if set(data.classes) != set(runs[0].classes):
        raise DataError(
            f"{data.name} has other classes than {runs[0].folder}.", "Give the data the runs were trained on."
        )
    data = data.for_classes(runs[0].classes)
    networks = [Member(run.load_model(), run.preprocess) for run in runs]
    predictor = Predictor("members", networks, runs[0].classes, runs[0].task, device)
    samples = training_samples(members, data, split)
    labels = label_matrix(samples)
    if not labels.any():
        raise DataError(
            f"all labels of {split} of {data.name} are ignored: there is nothing to train the combination on.",
            "Give a split with labels, or --combine average.",
        )
    scores = []
    progress.start("scoring", len(samples))
    for images, outputs in predictor.outputs([s.path for s in samples]):
        scores.append(outputs.member_scores)
        progress.advance(len(images))
    fitted = fit_combination(np.concatenate(scores), labels, runs[0].task, strength)
    record = {"data": data.name, "split": split, "images": len(samples), "strength": strength}
    return write_ensemble(folder, members, fitted, record)


def training_samples(members: Sequence[Model], data: DataSet, split: str) -> Sequence[Sample]:
    """The images of a split that train a linear combination: without those that the runs have held out for `val`."""
    held_out = any(run.config.val_split != "none" for member in members for run in member.runs)
    return fitted_samples(data, split) if held_out else data.split(split)


def fit_combination(
    scores: NDArray[np.float32], labels: NDArray[np.int8], task: Task, strength: float = STRENGTH
) -> Combination:
    """Train the linear classifier on the scores of all members for all classes.

    It minimises the mean training loss plus `strength / 2 * ||W - W0||^2`, where W0 averages the members. The members
    overfit the images that they were trained on, and a plain classifier would trust them too much; this regularisation
    keeps it near the average. Deterministic.

    Args:
        scores: (N, S, C) raw scores of the members.
        labels: (N, C) of 1 present, 0 ignored, -1 absent.
        strength: at least 0; 0: a plain classifier; large values: the average.

    Raises:
        ConfigError: a negative or infinite strength.
    """
    if not (np.isfinite(strength) and strength >= 0):
        raise ConfigError(f"strength={strength}: give a number of at least 0; 0.01 to 1 is usual.")
    _, members, classes = scores.shape
    inputs = torch.from_numpy(scores.reshape(len(scores), -1)).double()
    targets = torch.from_numpy(labels)
    average = torch.eye(classes, dtype=torch.float64).repeat(1, members) / members  # (C, S*C)
    weight, bias = average.clone().requires_grad_(), torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    loss_of = multiclass_loss if task == "multiclass" else multilabel_loss
    images = (targets != 0).sum() / classes  # ignored labels do not count
    optimizer = torch.optim.LBFGS((weight, bias), max_iter=200, tolerance_grad=1e-7, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = loss_of(inputs @ weight.T + bias, targets).sum() / images
        loss = loss + strength / 2 * (weight - average).square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return Combination(weight.detach().float().numpy(), bias.detach().float().numpy())
