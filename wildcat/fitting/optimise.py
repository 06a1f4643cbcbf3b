"""The training loop of the networks of `wildcat refine`: AdamW, with a learning rate that rises and falls once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from wildcat.data.loader import batch_indices, epoch_order
from wildcat.errors import TrainingError
from wildcat.fitting.config import RefineConfig
from wildcat.progress import Progress

WARM_UP = 0.1  # fraction of the steps in which the learning rate rises
LARGEST_GRADIENT = 5.0  # norm, as --clip-norm of `wildcat train`


Loss = Callable[[Tensor, Sequence[int], Sequence[int]], Tensor]  # (output, images, views) -> the mean loss


class Batch(NamedTuple):
    """Indices of the images of a batch, and the index of the mirrored view in which each is seen."""

    images: list[int]
    views: list[int]


class Training(NamedTuple):
    """What `optimise` trains: its name in the progress bar, its length, and the setting with its learning rate."""

    task: str
    epochs: int
    batch_size: int
    lr: str


def optimise(
    parts: Sequence[tuple[nn.Module, float]],
    losses: Callable[[int, Sequence[Batch]], Iterator[Tensor]],
    count: int,
    views: int,
    training: Training,
    config: RefineConfig,
    progress: Progress,
) -> float:
    """Train networks; they end in evaluation mode.

    Args:
        parts: the networks, and the learning rate of each as a fraction of the setting `training.lr`.
        losses: (epoch, its batches) -> the mean loss of each batch; puts the networks into training mode first.
        count: of images; `views`: of each image.

    Returns:
        The mean loss of the last epoch.

    Raises:
        TrainingError: the loss is not finite.
    """
    peak = getattr(config, training.lr)
    groups = [{"params": list(network.parameters())} for network, _ in parts]
    parameters = [parameter for group in groups for parameter in group["params"]]
    optimizer = torch.optim.AdamW(groups, peak, weight_decay=config.weight_decay)
    steps = training.epochs * len(batch_indices(range(count), training.batch_size))
    warm_up = WARM_UP if WARM_UP * steps > 1 else 0.0  # OneCycleLR divides by zero where it ends at the first step
    peaks = [peak * scale for _, scale in parts]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peaks, total_steps=steps, pct_start=warm_up)
    progress.start(training.task, training.epochs * count)
    total = 0.0
    for epoch in range(training.epochs):
        chosen = np.random.default_rng([config.seed, epoch, 2]).integers(0, views, count)
        batches = [
            Batch(images, [int(chosen[i]) for i in images])
            for images in batch_indices(epoch_order(count, config.seed, epoch), training.batch_size)
        ]
        total = 0.0
        for batch, mean in zip(batches, losses(epoch, batches), strict=True):
            value = float(mean.detach())
            if not math.isfinite(value):
                raise TrainingError(
                    f"the loss of {training.task} is {value} in epoch {epoch + 1}, at {training.lr}={peak:g}.",
                    f"Try {training.lr}={peak / 10:g}.",
                )
            optimizer.zero_grad(set_to_none=True)
            mean.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            nn.utils.clip_grad_norm_(parameters, LARGEST_GRADIENT)
            optimizer.step()
            schedule.step()
            total += value * len(batch.images)
            progress.advance(len(batch.images), f"epoch {epoch + 1}/{training.epochs} loss {value:.4f}")
    for network, _ in parts:
        network.eval()
    return round(total / count, 6)
