"""NetVLAD: residuals of the regions to soft clusters (Arandjelović et al., NetVLAD, CVPR 2016)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

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

SIZE = 64  # clusters
SECOND = 0.01  # of the weight of the nearest cluster, that of the second nearest at the start


class SoftVlad(Descriptor):
    """Sum of the residuals to each cluster, (B, D, h, w) -> (B, K * D).

    With the features x_i of a region divided by their length,

        V_k = sum over i of a_k(x_i) (x_i - c_k),   a_k(x) = softmax over k of w_k . x + b_k

    Each V_k is divided by its length (intra-normalisation), then the whole vector by its own. w_k = 2 alpha c_k and
    b_k = -alpha |c_k|^2 at the start, so that a is a softmax of -alpha |x - c_k|^2; then w, b and c are trained
    independently. The centres c come from k-means of regions of training images.

    Adapted: the features are standardised before they are divided by their length; without it the largest channels of
    a ReLU network decide alone. alpha gives the second nearest cluster a hundredth of the weight of the nearest, in the
    mean. There are no class maps: the lengths that the residuals are divided by are those of the whole image.

    Attributes:
        assign: (K, D), w. offset: (K,), b. centres: (K, D), c.
    """

    def __init__(self, num_features: int, clusters: int = SIZE) -> None:
        super().__init__()
        self.size = clusters * num_features
        self.assign = nn.Parameter(torch.zeros(clusters, num_features))
        self.offset = nn.Parameter(torch.zeros(clusters))
        self.centres = nn.Parameter(torch.zeros(clusters, num_features))

    def forward(self, x: Tensor) -> Tensor:
        regions = functional.normalize(x, dim=1).flatten(2)  # (B, D, n)
        weights = (self.assign @ regions + self.offset[:, None]).softmax(dim=1)  # (B, K, n)
        residuals = weights @ regions.mT - weights.sum(dim=-1, keepdim=True) * self.centres  # (B, K, D)
        vlad = functional.normalize(residuals, dim=2).flatten(1)
        return functional.normalize(vlad, dim=1) * math.sqrt(x.shape[1])

    def check(self, images: int, cells: tuple[int, int]) -> None:
        check_clusters("netvlad", len(self.centres), images)

    @torch.no_grad()
    def fit(self, images: Labelled, seed: int) -> None:
        """Centres by k-means, and the soft assignment to them."""
        rows = functional.normalize(sample_regions(images, REGIONS, seed), dim=1)
        centres = cluster_centres(rows, len(self.centres), seed)
        alpha = 1.0
        if len(centres) > 1:
            nearest = torch.cdist(rows, centres).square().topk(2, dim=1, largest=False).values
            alpha = -math.log(SECOND) / max(float((nearest[:, 1] - nearest[:, 0]).mean()), 1e-6)
        self.centres.copy_(centres)
        self.assign.copy_(2 * alpha * centres)
        self.offset.copy_(-alpha * centres.square().sum(dim=1))


def create(backbone: Backbone, num_classes: int, size: int) -> Wildcat:
    """A network with `size` clusters."""
    return DescriptorNetwork(backbone, num_classes, SoftVlad(backbone.num_features, size))
