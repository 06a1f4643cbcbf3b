"""The state of a training, saved so that a resumed run takes exactly the steps that were left."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from wildcat.data.dataset import Sample
from wildcat.errors import RunError
from wildcat.files import reading
from wildcat.models.run import (
    METRICS,
    STATE,
    WEIGHTS,
    Run,
    adopt_state,
    copied_weights,
    load_state,
    save_state,
    write_history,
    write_weights,
)
from wildcat.nn.model import Wildcat
from wildcat.train.distributed import broadcast_from_first, gather, rank, shared_errors
from wildcat.train.optim import load_optimizer_state


@dataclass
class Position:
    """How far a training has come, and its best epoch so far."""

    epoch: int = 0
    step: int = 0  # optimiser steps done in this epoch
    loss_sum: float = 0.0
    loss_count: int = 0
    seconds: float = 0.0
    best_epoch: int = -1
    best_key: list[float] = field(default_factory=list)  # metric and negative loss on val


class Checkpoint:
    """Position, history and best weights of a training; `save` and `restore` exchange them with the run folder.

    Attributes:
        history: one record per epoch, the lines of metrics.jsonl.
        best: weights of the best epoch that are not in the run folder yet.
        saved: time of the last save, `time.monotonic()`.
    """

    optimizer: torch.optim.Optimizer

    def __init__(self, run: Run, model: Wildcat, fingerprint: str) -> None:
        self.run, self.model, self.fingerprint = run, model, fingerprint
        self.device = next(model.parameters()).device
        self.position = Position()
        self.average: nn.Module | None = None
        self.restored: dict[str, Any] = {}  # the state of the stage that was interrupted
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Tensor] | None = None
        self.saved = time.monotonic()

    def start_stage(
        self, optimizer: torch.optim.Optimizer, average: nn.Module | None, first_epoch: int, seed: int
    ) -> None:
        """Take over what a stage trains with, as it was left if the stage was interrupted.

        Args:
            average: the network with the moving average of the weights, if there is one.
            first_epoch: of the stage.
            seed: of the random numbers of a stage that begins; each process draws its own.

        Raises:
            RunError: the restored state belongs to another optimiser or network.
        """
        self.optimizer, self.average = optimizer, average
        state, self.restored = self.restored, {}
        if (self.position.epoch, self.position.step) == (first_epoch, 0):
            torch.manual_seed((seed + rank()) % 2**63)
            return
        path = self.run.folder / STATE
        with reading(path, "Give another --out."):
            load_optimizer_state(optimizer, state["optimizer"])
            if average is not None:
                adopt_state(average, state["average"], path)
            generators = [state["generators"], *state.get("other_generators", ())]
            if rank() < len(generators):
                torch.set_rng_state(generators[rank()]["cpu"])
                if self.device.type == "cuda" and "cuda" in generators[rank()]:
                    torch.cuda.set_rng_state(generators[rank()]["cuda"], self.device)

    def end_epoch(self, record: dict[str, Any], key: list[float]) -> dict[str, Any]:
        """Record an epoch, keep its weights if they are the best so far, and move on to the next epoch.

        Args:
            record: of the epoch, without `best`.
            key: metric and negative loss on val; empty without val, where the last epoch is the best.

        Returns:
            The record with `best`.
        """
        position = self.position
        best = not key or key > position.best_key
        if best:
            position.best_key, position.best_epoch = key, position.epoch
            if rank() == 0:
                self.best = copied_weights(self.model)
        self.history.append(record | {"best": best})
        position.epoch, position.step = position.epoch + 1, 0
        position.loss_sum, position.loss_count, position.seconds = 0.0, 0, 0.0
        return self.history[-1]

    def save(self) -> None:
        """Write everything needed to resume here, with this number of processes or another."""
        generators = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            generators["cuda"] = torch.cuda.get_rng_state(self.device)
        first, *others = gather(generators)
        with shared_errors():
            self.write_best()
            if rank() == 0:
                state = {
                    "model": self.model.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "average": None if self.average is None else self.average.state_dict(),
                    "generators": first,
                    "other_generators": others,
                    "position": vars(self.position),
                    "data": self.fingerprint,
                }
                save_state(self.run.folder / STATE, state)
        self.saved = time.monotonic()

    def write_best(self) -> None:
        """Write the weights of the best epoch, and the history, if the run folder does not have them yet."""
        if rank() == 0 and self.history:
            if self.best is not None:
                write_weights(self.best, self.run.folder / WEIGHTS)
                self.best = None
            write_history(self.run.folder / METRICS, self.history)

    def restore(self) -> None:
        """Load the state in the run folder.

        Raises:
            RunError: the state is damaged, or belongs to another network, other images or other labels.
        """
        path = self.run.folder / STATE
        state = broadcast_from_first(lambda: load_state(path))
        with reading(path, "Give another --out."):
            if state["data"] != self.fingerprint:
                raise RunError(
                    f"the images or labels are not those that {self.run.folder} was started with.",
                    "Bring the data back as it was, or give another --out.",
                )
            adopt_state(self.model, state["model"], path)
            self.position = read_position(state["position"])
        self.restored = state
        history = broadcast_from_first(self.run.history)
        self.history = [record for record in history if record["epoch"] <= self.position.epoch]


def read_position(values: dict[str, Any]) -> Position:
    """The position of a saved state.

    Raises:
        TypeError, ValueError: it was not saved by this program.
    """
    position = Position(**values)
    types = {name: type(value) for name, value in vars(Position()).items()}
    if {name: type(value) for name, value in values.items()} != types or min(position.epoch, position.step) < 0:
        raise ValueError("no position")
    return position


def fingerprint(samples: Sequence[Sample], val_samples: Sequence[Sample]) -> str:
    """A digest of the names and labels of the images, in order; folders may move."""
    digest = hashlib.sha256()
    for split in (samples, val_samples):
        digest.update(f"{len(split)}\0".encode())
        for sample in split:
            digest.update(sample.name.encode(errors="surrogateescape") + b"\0" + sample.labels.tobytes())
    return digest.hexdigest()
