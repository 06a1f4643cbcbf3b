"""Classes that compete at each region, with each other and with a background."""

from __future__ import annotations

import torch
from torch import Tensor

from wildcat.nn.model import Output, Wildcat


class BackgroundWildcat(Wildcat):
    """A network whose classes compete at each region, with each other and with a background present in every image.

    Class maps are log-odds against the background, so masks need no threshold (Pinheiro and Collobert, CVPR 2015).
    """

    def head(self, features: Tensor) -> Output:
        scores, class_maps, maps = self.competing(features)
        return Output(scores[:, : self.num_classes], class_maps, maps)

    def training_output(self, features: Tensor, modalities: bool = False) -> Output:
        network = self if modalities else self.fuse()
        return network.competing(features)

    def competing(self, features: Tensor) -> Output:
        """As `head`, with (B, C + 1) scores: that of the background, whose label is always present, is the last."""
        maps = self.transfer(features)
        class_maps = self.class_pool(maps)
        scores = self.pool(competing_logits(class_maps))
        return Output(scores, class_maps, maps.unflatten(1, (self.num_classes, self.num_maps)))


def competing_logits(maps: Tensor) -> Tensor:
    """(B, C, h, w) log-odds of each class against the background -> (B, C + 1, h, w) logits, the background last.

    The loss of independent classes applies to them, see `softmax_logits`.

    >>> competing_logits(torch.zeros(1, 1, 1, 1)).flatten().tolist()  # one class, as likely as the background
    [0.0, 0.0]
    """
    return softmax_logits(torch.cat([maps, torch.zeros_like(maps[:, :1])], dim=1))


def softmax_logits(values: Tensor) -> Tensor:
    """(B, C, ...) -> the logit of each class's softmax probability over C > 1 classes, the same shape.

    That is its value minus the log-sum-exp of all others.

    >>> softmax_logits(torch.tensor([[2.0, 0.0]])).tolist()
    [[2.0, -2.0]]
    """
    highest, best = values.max(dim=1, keepdim=True)
    is_best = torch.zeros_like(values, dtype=torch.bool).scatter(1, best, value=True)
    # log(total - own) would cancel for the highest value: sum the others explicitly there.
    without_best = values.masked_fill(is_best, -torch.inf).logsumexp(dim=1, keepdim=True)
    total = (values - highest).exp().sum(dim=1, keepdim=True)
    own = (values - highest).exp().masked_fill(is_best, 0.0)
    return values - torch.where(is_best, without_best, highest + (total - own).log())
