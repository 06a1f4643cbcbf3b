"""The segmenter of `wildcat refine`: a second network on the same frozen backbone, trained on the masks of the first.

The first network classifies regions of 32 pixels from image-level labels. Its masks, sharpened to the edges of the
images, label single pixels; a network that also reads the finer levels of the backbone learns from them what many
images agree on (the second stage of weakly supervised segmentation since Wei et al., 2016, and Kolesnikov and Lampert,
2016)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from wildcat.errors import ShapeError
from wildcat.nn.heads import log_sum_exp_pool
from wildcat.nn.model import StandardizingLayer

T = TypeVar("T")

WIDTH = 128  # channels of the segmenter's layers
MIN_STD = 1e-3  # divisor of a channel that is constant
DROPOUT = 0.1  # fraction of the channels that training drops before the classifier


class Segmenter(nn.Module):
    """Levels of a backbone in, one map per class out: log-odds of the class against the background at each place.

    Each level is standardised, projected to `width` channels and resampled to one grid; their sum passes a 3x3
    convolution and a linear classifier (a feature pyramid, Lin et al., CVPR 2017, with one output). The background is
    the class whose log-odds are 0.

    With an image-level prior (Pinheiro and Collobert, CVPR 2015, section 3.3) the probabilities at each place are
    multiplied by those of the image, the softmax of its scores s, see `image_scores`. In log-odds this adds s_c - s_0,
    0 the background, to each map; in training the prior is off.

    Attributes:
        channels: of each level, the finest first.
        prior_sharpness: r of the image-level prior; None: no prior.
    """

    def __init__(
        self, channels: Sequence[int], num_classes: int, width: int = WIDTH, prior_sharpness: float | None = None
    ) -> None:
        super().__init__()
        self.channels, self.prior_sharpness = tuple(channels), prior_sharpness
        self.scales: Sequence[LevelScale] = nn.ModuleList(LevelScale(c) for c in channels)  # type: ignore[assignment]
        self.laterals = nn.ModuleList(nn.Conv2d(c, width, kernel_size=1) for c in channels)
        self.norm = nn.BatchNorm2d(width)
        self.mix = nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False)
        self.mix_norm = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout2d(DROPOUT)
        self.classify = nn.Conv2d(width, num_classes, kernel_size=1)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """(B, D, h, w) of each level -> (B, C, H, W) maps, on the grid of the second finest level.

        Raises:
            ShapeError: the levels do not have the channels that the segmenter was built for.
        """
        check_levels(levels, self.channels)
        grid = output_level(levels).shape[-2:]
        parts = zip(levels, self.scales, self.laterals, strict=True)
        # The projection of a mean is the mean of the projections, for a quarter of the products.
        summed = sum(on_grid(lateral(scale(averaged(level, grid))), grid) for level, scale, lateral in parts)
        mixed = torch.relu(self.mix_norm(self.mix(torch.relu(self.norm(summed)))))
        maps: Tensor = self.classify(self.dropout(mixed))
        if self.prior_sharpness is not None and not self.training:
            scores = image_scores(maps, self.prior_sharpness)
            maps = maps + (scores[:, 1:] - scores[:, :1])[:, :, None, None]
        return maps

    def measure(self, levels: Sequence[Tensor]) -> None:
        """Set mean and standard deviation of each channel from these levels, (B, D, h, w) each."""
        measure_levels(self.scales, levels)


class LevelScale(StandardizingLayer):
    """Fixed per-channel standardisation of a level, `(x - mean) / std`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_statistics(channels)

    def forward(self, level: Tensor) -> Tensor:
        return self.standardized(level)


@torch.no_grad()
def measure_levels(scales: Sequence[LevelScale], levels: Sequence[Tensor]) -> None:
    """Set the mean and standard deviation of each channel of each level."""
    for scale, level in zip(scales, levels, strict=True):
        scale.mean.copy_(level.mean(dim=(0, 2, 3)))
        scale.std.copy_(level.std(dim=(0, 2, 3), correction=0).clamp_min(MIN_STD))


def check_levels(levels: Sequence[Tensor], channels: Sequence[int]) -> None:
    """Raise a ShapeError unless the levels have these channels."""
    found = tuple(int(level.shape[1]) for level in levels)
    if found != tuple(channels):
        raise ShapeError(
            f"the levels have {found} channels, the network takes {tuple(channels)}.",
            "Is it the backbone that it was trained on?",
        )


def output_level(levels: Sequence[T]) -> T:
    """The level, of those ordered from fine to coarse, whose grid the maps have: the second finest."""
    return levels[min(1, len(levels) - 1)]


def on_grid(maps: Tensor, grid: Sequence[int]) -> Tensor:
    """Resample (B, K, h, w) to another grid: the mean over the cells of a finer one, bilinear from a coarser one."""
    size = (int(grid[0]), int(grid[1]))
    if tuple(maps.shape[-2:]) == size:
        return maps
    if maps.shape[-2] >= size[0] and maps.shape[-1] >= size[1]:
        return functional.adaptive_avg_pool2d(maps, size)
    return functional.interpolate(maps, size, mode="bilinear", align_corners=False)


def averaged(maps: Tensor, grid: Sequence[int]) -> Tensor:
    """(B, K, h, w) of a finer grid on this one, see `on_grid`; of a coarser one as they are."""
    return on_grid(maps, grid) if maps.shape[-2] >= grid[0] and maps.shape[-1] >= grid[1] else maps


def log_probabilities(maps: Tensor) -> Tensor:
    """(B, C, h, w) log-odds against the background -> (B, C + 1, h, w) log-probabilities, the background first."""
    return torch.cat([torch.zeros_like(maps[:, :1]), maps], dim=1).log_softmax(dim=1)


def image_scores(maps: Tensor, sharpness: float) -> Tensor:
    """(B, C, h, w) log-odds against the background -> (B, C + 1) s_k = (1 / r) log(mean of exp(r * log p_k)), the
    background first: the logarithm of a mean over the places of the probabilities p of each class, of power r."""
    return log_sum_exp_pool(log_probabilities(maps), sharpness)


def segmentation_loss(maps: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy over places against soft labels, the background first.

    Args:
        maps: (B, C, h, w) log-odds against the background.
        targets: (B, C + 1, h, w) probabilities that sum to 1 at each place, or to less for a smaller weight.
    """
    return -(targets * log_probabilities(maps)).sum() / targets.sum().clamp_min(1.0)
