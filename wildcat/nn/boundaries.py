"""The boundary network of `wildcat refine`: levels of a frozen backbone in, the probability of an object boundary out.

IRN (Ahn, Cho and Kwak, CVPR 2019): no boundary is ever labelled. The network learns that two near pixels whose labels
agree have no boundary between them, and two that differ have one somewhere on the line between them
(`wildcat.fitting.boundaries`). Its branches read the features of the backbone without changing them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from wildcat.nn.segmenter import LevelScale, check_levels, measure_levels, output_level

WIDTH, GROUPS = 32, 4  # channels and normalisation groups of each branch, as in the paper


class BoundaryNetwork(nn.Module):
    """Each level is standardised, projected to 32 channels, normalised and upsampled to the finest; then one 1x1
    convolution over all of them.

    Attributes:
        channels: of each level, the finest first.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.channels = tuple(channels)
        self.scales: Sequence[LevelScale] = nn.ModuleList(LevelScale(c) for c in channels)  # type: ignore[assignment]
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, WIDTH, kernel_size=1, bias=False), nn.GroupNorm(GROUPS, WIDTH), nn.ReLU())
            for c in channels
        )
        self.join = nn.Conv2d(WIDTH * len(self.channels), 1, kernel_size=1)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """(B, D, h, w) of each level -> (B, H, W) probabilities of a boundary, on the grid of the finest.

        Raises:
            ShapeError: the levels do not have the channels that the network was built for.
        """
        check_levels(levels, self.channels)
        grid = (int(levels[0].shape[-2]), int(levels[0].shape[-1]))
        joined = []
        for level, scale, branch in zip(levels, self.scales, self.branches, strict=True):
            found = branch(scale(level))
            if tuple(found.shape[-2:]) != grid:
                found = functional.interpolate(found, grid, mode="bilinear", align_corners=False)
            joined.append(found)
        return torch.sigmoid(self.join(torch.cat(joined, dim=1)).float())[:, 0]  # bf16 is coarse near 1

    def walls(self, levels: Sequence[Tensor]) -> Tensor:
        """The highest boundary in each cell of the segmenter's maps, (B, h, w): a random walk there is 16 times faster
        than on the finest level."""
        height, width = output_level(levels).shape[-2:]
        return functional.adaptive_max_pool2d(self(levels), (height, width))

    def measure(self, levels: Sequence[Tensor]) -> None:
        """Set mean and standard deviation of each channel from these levels, (B, D, h, w) each."""
        measure_levels(self.scales, levels)
