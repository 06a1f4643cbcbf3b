"""Parts with weights of both signs (Parizi et al., Automatic discovery and optimization of parts, ICLR 2015)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from wildcat.nn.backbones import Backbone
from wildcat.nn.heads.descriptor import Descriptor, DescriptorNetwork, sample_regions
from wildcat.nn.model import Labelled, Wildcat

SIZE = 256  # parts
SPARSITY = 0.02  # weight of the group lasso


class PartFilters(Descriptor):
    """The highest response to each part filter: (B, D, h, w) -> (B, P).

    The score of class y is sum over parts j of u_yj * max over regions z of w_j . psi(z). The weights u may be
    negative: parts that say that a class is absent. Filters start as random regions of training images; a group lasso,
    lambda * sum_j ||(u_1j ... u_Cj)||, drops the parts that no class needs; filters and weights are trained together.

    Adapted: filters are 1x1 on the cells of the map. The lasso is part of the same training instead of a selection
    before it: after each step of the optimiser all weights of a part shrink towards zero, by at most learning rate
    times lambda (proximal gradient), and stay zero where the loss does not need them. The value of a part at a region
    is its response there, so a class map is what the image's score would be if all regions were this one.

    Attributes:
        filters: 1x1 convolution D -> P.
    """

    normalised = False

    def __init__(self, num_features: int, parts: int = SIZE) -> None:
        super().__init__()
        self.size = parts
        self.filters = nn.Conv2d(num_features, parts, kernel_size=1, bias=False)
        nn.init.normal_(self.filters.weight, std=num_features**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.regions(x).flatten(2).max(dim=-1).values

    def regions(self, x: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, P, h, w) responses."""
        responses: Tensor = self.filters(x)
        return responses

    @torch.no_grad()
    def fit(self, images: Labelled, seed: int) -> None:
        """Set each filter to a random region of the training images, of length 1; with too few, some stay random."""
        rows = sample_regions(images, self.size, seed)
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
        chosen = functional.normalize(rows[order[: self.size]], dim=1)
        self.filters.weight[: len(chosen), :, 0, 0] = chosen.to(self.filters.weight)

    def shrink(self, classifier: Tensor, lr: float) -> None:
        """The proximal step of the group lasso: (C, P, 1, 1) weights of the parts, in place."""
        length = classifier.norm(dim=0, keepdim=True)
        classifier.mul_((1 - lr * SPARSITY / length.clamp(min=1e-12)).clamp(min=0))


def create(backbone: Backbone, num_classes: int, size: int) -> Wildcat:
    """A network with `size` parts."""
    return DescriptorNetwork(backbone, num_classes, PartFilters(backbone.num_features, size))
