"""MOP-CNN: VLAD of windows of several sizes (Gong et al., Multi-scale orderless pooling, ECCV 2014)."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from wildcat.errors import ConfigError
from wildcat.nn.backbones import Backbone
from wildcat.nn.heads.descriptor import (
    REGIONS,
    Descriptor,
    DescriptorNetwork,
    check_clusters,
    cluster_centres,
    sample_regions,
)
from wildcat.nn.model import Labelled, Wildcat

SIZE = 100  # clusters of each level
COMPONENTS = 500  # principal components that are clustered
PARTS = (2, 4)  # windows of a half and of a quarter of the map's sides


class MultiScaleVlad(Descriptor):
    """The global feature and a VLAD at each of two levels, side by side: (B, D, h, w) -> (B, D + 2 K P).

    The paper describes an image at three levels: the network's features of the whole image, and of windows of a half
    and of a quarter of its side. The windows of a level are reduced to P = 500 principal components and encoded by VLAD
    with K = 100 centres c_k from k-means,

        V_k = sum of p - c_k over the windows p whose nearest centre is c_k

    with signed square roots and divided by the length. The levels are concatenated for a linear classifier.

    Adapted: the network runs once per image, and the features of a window are the mean of the map's cells in it, with a
    step of one cell; one principal component analysis serves both levels. The paper runs the network on every window,
    assigns windows to several centres, and reduces each VLAD to 4,096 components. Components and centres do not change
    in training. There are no class maps: a VLAD does not say where its windows were.

    Attributes:
        components: (P, D), orthonormal. centres: (2, K, P).
    """

    components: Tensor
    centres: Tensor

    def __init__(self, num_features: int, clusters: int = SIZE) -> None:
        super().__init__()
        reduced = min(COMPONENTS, num_features)
        self.size = num_features + len(PARTS) * clusters * reduced
        self.register_buffer("components", torch.eye(num_features)[:reduced].clone())
        self.register_buffer("centres", torch.randn(len(PARTS), clusters, reduced))

    def forward(self, x: Tensor) -> Tensor:
        reduced = self.reduced(x)
        levels = [x.mean(dim=(2, 3))]
        levels += [vlad(windows(reduced, part), self.centres[i]) for i, part in enumerate(PARTS)]
        whole = torch.cat([functional.normalize(level, dim=1) for level in levels], dim=1)
        return whole * math.sqrt(x.shape[1] / len(levels))

    def reduced(self, x: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, P, h, w) principal components."""
        return functional.conv2d(x, self.components[:, :, None, None])

    def windows(self, x: Tensor, part: int) -> Tensor:
        """(B, D, h, w) -> (B, P, h', w'), the windows of a level."""
        return windows(self.reduced(x), part)

    def check(self, images: int, cells: tuple[int, int]) -> None:
        check_clusters("mop-cnn", self.centres.shape[1], images)
        if min(cells) < max(PARTS):
            raise ConfigError(
                f"mop-cnn takes windows of a quarter of the map, and the map has {cells[0]} x {cells[1]} cells.",
                "Give a larger image_size, or a smaller output_stride.",
            )

    @torch.no_grad()
    def fit(self, images: Labelled, seed: int) -> None:
        """The principal components of regions of the training images, and the centres of the windows of each level."""
        rows = sample_regions(images, REGIONS, seed).double()
        _, vectors = torch.linalg.eigh(rows.T @ rows)  # standardised: the mean is zero; the largest is the last
        self.components.copy_(vectors.T.flip(0)[: len(self.components)])
        for level, part in enumerate(PARTS):
            found = sample_regions(images, REGIONS, seed, partial(self.windows, part=part))
            self.centres[level] = cluster_centres(found, self.centres.shape[1], seed)


def windows(x: Tensor, part: int) -> Tensor:
    """(B, P, h, w) -> (B, P, h', w'): the means of all windows of 1 / part of the sides, at least one cell."""
    height, width = x.shape[2:]
    return functional.avg_pool2d(x, (max(1, height // part), max(1, width // part)), stride=1)


def vlad(x: Tensor, centres: Tensor) -> Tensor:
    """(B, P, h, w) windows, (K, P) centres -> (B, K * P), signed square roots of the sums of the residuals."""
    rows = x.flatten(2).mT  # (B, n, P)
    # the nearest centre: |x|^2 is the same for all
    nearest = (rows @ centres.T - centres.square().sum(dim=1) / 2).argmax(dim=-1)
    assigned = functional.one_hot(nearest, len(centres)).to(rows)  # (B, n, K)
    residuals = assigned.mT @ rows - assigned.sum(dim=1)[:, :, None] * centres  # (B, K, P)
    return (residuals / (residuals.abs() + 1e-6).sqrt()).flatten(1)


def create(backbone: Backbone, num_classes: int, size: int) -> Wildcat:
    """A network with `size` clusters at each level."""
    return DescriptorNetwork(backbone, num_classes, MultiScaleVlad(backbone.num_features, size))
