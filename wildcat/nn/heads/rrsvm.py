"""RRSVM: learned weights of the sorted regions (Wei & Hoai, Region ranking SVM, CVPR 2016)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wildcat.nn.backbones import Backbone
from wildcat.nn.model import Wildcat
from wildcat.nn.pooling import check_maps

SIZE = 32  # proportions of the map


class RankPool(nn.Module):
    """Weighted sum of the sorted regions of each class map, (B, C, h, w) -> (B, C), with learned weights.

    The paper scores an image by sum_k s_k w.x_(k) + b, where x_(k) is the region with the k-th highest w.x, and the
    weights fulfil s_1 >= s_2 >= ... >= s_n >= 0. With sum 1, which only fixes the scale of w, these weights are the
    convex combinations of the means of the j highest regions, j = 1 ... n: their weights are 1/j for k <= j, else 0.
    The maximum, the top instances and the average are three of them.

    Adapted: each class learns a softmax over the means of K proportions of the map, from 1/1024 to all of it in equal
    ratios, so that the layer takes maps of any size; a part of a region counts by that part. It is trained by gradient
    descent with the rest and with the loss of the other heads; the paper alternates a quadratic program for (s, b) with
    ridge regression for (w, b).

    Attributes:
        mixture: (C, K) logits of the weights of the K means; equal at the start.
    """

    decays = False

    def __init__(self, num_classes: int, size: int = SIZE) -> None:
        super().__init__()
        self.mixture = nn.Parameter(torch.zeros(num_classes, size))

    def forward(self, x: Tensor) -> Tensor:
        check_maps(x)
        regions = x.flatten(2).sort(dim=-1, descending=True).values  # (B, C, n)
        return (regions * self.weights(regions.shape[-1])).sum(dim=-1)

    def weights(self, n: int) -> Tensor:
        """(C, n): s of each class for a map of n regions."""
        k = self.mixture.shape[1]
        proportions = torch.logspace(-10 if k > 1 else 0, 0, k, base=2, dtype=torch.float64)
        ends = torch.arange(1, n + 1, dtype=torch.float64)
        count = (n * proportions).clamp(min=1)[:, None]  # regions in each mean, (K, 1)
        means = ((count - ends + 1).clamp(0, 1) / count).to(self.mixture)  # (K, n)
        return self.mixture.softmax(dim=1) @ means

    def offset_gain(self) -> float:
        """As `SpatialPool.offset_gain`: the weights sum to one."""
        return 1.0

    def extra_repr(self) -> str:
        return "classes={}, size={}".format(*self.mixture.shape)


def create(backbone: Backbone, num_classes: int, size: int) -> Wildcat:
    """A network with one map per class and `RankPool`."""
    return Wildcat(backbone, num_classes, 1, RankPool(num_classes, size))
