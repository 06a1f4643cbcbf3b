"""SPLeaP: learned parts with a soft-max pooling each (Kulkarni et al., Soft pooling of learned parts, ECCV 2016)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from wildcat.nn.backbones import Backbone
from wildcat.nn.heads.descriptor import Descriptor, DescriptorNetwork
from wildcat.nn.model import Wildcat

SIZE = 256  # parts


class LearnedParts(Descriptor):
    """One value per part: (B, D, h, w) -> (B, P).

    A non-linear classifier h_p scores part p at each region x_i, and the image has for the part the value

        f_p = sum over i of softmax_i(beta_p h_p(x_i)) h_p(x_i)

    with a learned beta_p for each part: 0 is the average, large values are the maximum. Parts, beta and the linear
    classifier of f are trained together.

    Adapted: h is two 1x1 convolutions with a ReLU between them, so that the parts share their P hidden units; the paper
    boosts weak classifiers for each part. The regions are the cells of the map instead of random boxes. The value of a
    part at a region is h_p(x_i), so a class map is what the image's score would be if all regions were this one.

    Attributes:
        hidden: D -> P. parts: P -> P. sharpness: (P,) beta, 1 at the start.
    """

    normalised = False
    decays = True

    def __init__(self, num_features: int, parts: int = SIZE) -> None:
        super().__init__()
        self.size = parts
        self.hidden = nn.Conv2d(num_features, parts, kernel_size=1)
        self.parts = nn.Conv2d(parts, parts, kernel_size=1)
        self.sharpness = nn.Parameter(torch.ones(parts))
        nn.init.normal_(self.hidden.weight, std=num_features**-0.5)
        nn.init.normal_(self.parts.weight, std=(2 / parts) ** 0.5)
        nn.init.zeros_(self.hidden.bias)  # type: ignore[arg-type]  # it has one
        nn.init.zeros_(self.parts.bias)  # type: ignore[arg-type]  # it has one

    def forward(self, x: Tensor) -> Tensor:
        responses = self.regions(x).flatten(2)  # (B, P, n)
        weights = (self.sharpness[:, None] * responses).softmax(dim=-1)
        return (weights * responses).sum(dim=-1)

    def regions(self, x: Tensor) -> Tensor:
        """h: (B, D, h, w) -> (B, P, h, w)."""
        responses: Tensor = self.parts(functional.relu(self.hidden(x)))
        return responses


def create(backbone: Backbone, num_classes: int, size: int) -> Wildcat:
    """A network with `size` learned parts."""
    return DescriptorNetwork(backbone, num_classes, LearnedParts(backbone.num_features, size))
