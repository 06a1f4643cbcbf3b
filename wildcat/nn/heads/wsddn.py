"""WSDDN: one branch compares classes, the other regions (Bilen & Vedaldi, CVPR 2016)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from wildcat.errors import ConfigError
from wildcat.nn.backbones import Backbone
from wildcat.nn.heads.background import softmax_logits
from wildcat.nn.model import Output, Wildcat

SIZE = 0  # it has none


class Detection(nn.Module):
    """The detection branch: (B, D, h, w) standardised features -> (B, C, n) log-weights of the regions of each class.

    Attributes:
        detect: 1x1 convolution without bias, to which a softmax over regions is blind; zero at the start, which is the
            average over the regions.
    """

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.detect = nn.Conv2d(num_features, num_classes, kernel_size=1, bias=False)
        nn.init.zeros_(self.detect.weight)

    def forward(self, x: Tensor) -> Tensor:
        values: Tensor = self.detect(x)
        return values.flatten(2).log_softmax(dim=-1)

    def offset_gain(self) -> float:
        """As `SpatialPool.offset_gain`: the weights sum to one."""
        return 1.0


class DetectionNetwork(Wildcat):
    """Two branches on the regions of the map (Bilen & Vedaldi, CVPR 2016, section 3).

    With x^c and x^d the values of the two branches for class c at region r, the score of the region is
    softmax over classes of x^c * softmax over regions of x^d, and phi_c, the probability of the class in the image, is
    the sum of the scores of all regions: at most 1, since the second softmax sums to 1. Training minimises the
    binary log-loss of phi_c, as in the paper.

    Adapted: the regions are the cells of the map, not proposals pooled by SPP, and the paper's regularisation of
    overlapping proposals has no place. Scores are the log-odds of phi_c, of which the usual loss is the same log-loss.
    A class map has the log-odds of softmax(x^c) times the weight of the region relative to the class's highest, so
    that it ranks the regions of a class as the paper does.
    """

    pool: Detection

    def __init__(self, backbone: Backbone, num_classes: int) -> None:
        if num_classes < 2:
            raise ConfigError(
                "head=wsddn compares classes at each region, and there is one class.",
                "Give data with at least two classes, or another method: wildcat methods lists them.",
            )
        super().__init__(backbone, num_classes, 1, Detection(backbone.num_features, num_classes))

    def head(self, features: Tensor) -> Output:
        odds = softmax_logits(self.transfer(features))  # (B, C, h, w) of the classes at each region
        logits = odds.flatten(2)  # (B, C, n)
        weights = self.pool(self.transfer.standardized(features))
        present = (functional.logsigmoid(logits) + weights).logsumexp(dim=-1)  # log phi
        absent = (functional.logsigmoid(-logits) + weights).logsumexp(dim=-1)  # log(1 - phi)
        relative = functional.logsigmoid(logits) + weights - weights.amax(dim=-1, keepdim=True)
        class_maps = log_odds(relative).reshape(odds.shape)
        return Output(present - absent, class_maps, class_maps[:, :, None])


def log_odds(log_probabilities: Tensor) -> Tensor:
    """log p -> log p - log(1 - p), finite for p = 1."""
    absent = -torch.expm1(log_probabilities)
    return log_probabilities - absent.clamp(min=torch.finfo(absent.dtype).tiny).log()


def create(backbone: Backbone, num_classes: int, size: int) -> Wildcat:
    """A `DetectionNetwork`; it has no size."""
    return DetectionNetwork(backbone, num_classes)
