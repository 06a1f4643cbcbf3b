"""The levels of a frozen backbone for every training image, cached on disk, and the training of a network on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from wildcat.config import FLIP_VIEWS
from wildcat.data.cache import cache_folder
from wildcat.data.dataset import Sample
from wildcat.data.loader import batch_indices, epoch_order
from wildcat.errors import TrainingError
from wildcat.fitting.config import RefineConfig
from wildcat.models.run import Run
from wildcat.nn.backbones import Backbone
from wildcat.nn.boundaries import BoundaryNetwork
from wildcat.nn.segmenter import Segmenter
from wildcat.progress import Progress
from wildcat.train.feature_cache import cached_features, feature_workers

WARM_UP = 0.1  # fraction of the steps in which the learning rate rises
MEASURED = 64  # images for the mean and standard deviation of the levels


class FlatLevels(nn.Module):
    """The levels of a backbone as one vector per image, (B, L, 1, 1), to be cached as features."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.name = f"{backbone.name}, levels"
        self.shapes: tuple[tuple[int, int, int], ...] = ()

    def forward(self, images: Tensor) -> Tensor:
        levels = self.backbone.levels(images)
        self.shapes = tuple((int(x.shape[1]), int(x.shape[2]), int(x.shape[3])) for x in levels)
        # (B, D, h, w) -> (B, h, w, D): channels last, as the backbone returns them
        return torch.cat([x.permute(0, 2, 3, 1).flatten(1) for x in levels], dim=1)[:, :, None, None]


def unflattened(vectors: Tensor, shapes: Sequence[tuple[int, int, int]]) -> list[Tensor]:
    """(B, L, 1, 1) of `FlatLevels` -> the levels, (B, D, h, w) each, channels last."""
    layers = torch.split(vectors.flatten(1), [d * h * w for d, h, w in shapes], dim=1)
    return [x.reshape(len(x), h, w, d).permute(0, 3, 1, 2) for x, (d, h, w) in zip(layers, shapes, strict=True)]


class LevelCache:
    """The levels of N images in the run's mirrored views.

    Attributes:
        shapes: (D, h, w) of each level, the finest first.
        views: the mirrored axes of each view; the first is the image itself.
    """

    def __init__(
        self, backbone: Backbone, run: Run, samples: Sequence[Sample], device: torch.device, progress: Progress
    ) -> None:
        self.device, self.views = device, FLIP_VIEWS[run.config.flip]
        flat = FlatLevels(backbone)
        progress.start("features", len(samples) * len(self.views))
        self.features = cached_features(
            flat,  # type: ignore[arg-type]  # it has what `cached_features` uses of a backbone
            samples,
            run.preprocess,
            run.config.flip,
            cache_folder() / "features",
            feature_workers(device.type),
            progress=progress,
            amp=run.config.amp,
        )
        self.shapes = flat.shapes

    def __len__(self) -> int:
        return len(self.features)

    def batch(self, indices: Sequence[int], views: Sequence[int]) -> list[Tensor]:
        """The levels of images, each in one of its views, (B, D, h, w) each, on the device."""
        return unflattened(self.features.batch(indices, views).to(self.device), self.shapes)


def fit(
    network: Segmenter | BoundaryNetwork,
    cache: LevelCache,
    loss: Callable[[Tensor, Sequence[int], Sequence[int]], Tensor],
    config: RefineConfig,
    epochs: int,
    batch_size: int,
    lr: str,
    task: str,
    progress: Progress,
) -> float:
    """Train a network on cached levels with AdamW; it ends in evaluation mode.

    Args:
        loss: (output for a batch, its images, the view of each) -> the mean loss.
        lr: the name of the setting with the highest learning rate.

    Returns:
        The mean loss of the last epoch.

    Raises:
        TrainingError: the loss is not finite.
    """
    network.to(cache.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    count, peak = len(cache), getattr(config, lr)
    some = epoch_order(count, config.seed, 0)[:MEASURED]
    network.measure(cache.batch(some, [0] * len(some)))
    optimizer = torch.optim.AdamW(network.parameters(), peak, weight_decay=config.weight_decay)
    steps = epochs * len(batch_indices(range(count), batch_size))
    warm_up = WARM_UP if WARM_UP * steps > 1 else 0.0  # OneCycleLR divides by zero where it ends at the first step
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=steps, pct_start=warm_up)
    progress.start(task, epochs * count)
    total = 0.0
    for epoch in range(epochs):
        network.train()
        views = np.random.default_rng([config.seed, epoch, 2]).integers(0, len(cache.views), count)
        total = 0.0
        for batch in batch_indices(epoch_order(count, config.seed, epoch), batch_size):
            batch_views = [int(views[i]) for i in batch]
            mean = loss(network(cache.batch(batch, batch_views)), batch, batch_views)
            value = float(mean.detach())
            if not math.isfinite(value):
                raise TrainingError(
                    f"the loss of {task} is {value} in epoch {epoch + 1}, at {lr}={peak:g}.", f"Try {lr}={peak / 10:g}."
                )
            optimizer.zero_grad(set_to_none=True)
            mean.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimizer.step()
            schedule.step()
            total += value * len(batch)
            progress.advance(len(batch), f"epoch {epoch + 1}/{epochs} loss {value:.4f}")
    network.eval()
    return round(total / count, 6)
