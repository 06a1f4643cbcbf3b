"""Gated attention (Ilse, Tomczak & Welling, ICML 2018): the weights of the regions are computed from the features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wildcat.errors import ConfigError, ShapeError
from wildcat.nn.model import Output, Wildcat
from wildcat.nn.pooling import check_maps


def attention_pool(x: Tensor, attention: Tensor) -> Tensor:
    """Weighted mean of each class map; the weights are a softmax of `attention` over the regions.

    Args:
        x: (B, C, h, w) class maps.
        attention: (B, C, h, w), or (B, 1, h, w) where the classes share it: logits of the weights.

    Returns:
        (B, C) scores.

    Raises:
        ShapeError: `x` is not 4-D or has an empty map, or `attention` does not fit it.

    >>> x = torch.tensor([[[[1.0, 5.0]]]])
    >>> attention_pool(x, torch.tensor([[[[1.0, 3.0]]]]).log())  # (1 * 1 + 3 * 5) / 4
    tensor([[4.]])
    """
    check_maps(x)
    if attention.shape not in (x.shape, (x.shape[0], 1, *x.shape[2:])):
        raise ShapeError(
            f"attention of shape {tuple(attention.shape)} does not fit maps of shape {tuple(x.shape)}.",
            "Give one attention map for each class map, or one for all.",
        )
    weights = attention.flatten(2).softmax(dim=-1)  # (B, C, h, w) -> (B, C, n)
    return (weights * x.flatten(2)).sum(dim=-1)


class AttentionPool(nn.Module):
    """Gated attention with one map of weights per class: (B, C, h, w) maps, (B, D, h, w) features -> (B, C) scores.

    Region k with features h_k has for class c the weight (Ilse, Tomczak & Welling, ICML 2018, eq. 9)

        a_ck = softmax over k of w_c . (tanh(V h_k) * sigmoid(U h_k)),    V, U: (L, D);  w: (C, L)

    and the score of the class is the sum over k of a_ck times its map. The paper pools the features with the weights
    and then classifies them: the same, because the classifier is linear. It has one class and thus one w; with several
    classes per image each needs its own weights (as in the multi-branch CLAM: Lu et al., Nature Biomedical Engineering
    2021). Both releases add biases, which eq. 9 does not have: standardised features have mean 0.

    V and U start at a spread of 1/sqrt(D), so that V h and U h have a spread of 1 on standardised features; w starts at
    zero, which is average pooling.

    Attributes:
        content: V.
        gate: U.
        attend: w.
    """

    def __init__(self, num_features: int, num_classes: int, size: int = 128) -> None:
        super().__init__()
        if size < 1:
            raise ConfigError(f"attention_size={size}: give a whole number of at least 1.")
        self.content = nn.Conv2d(num_features, size, kernel_size=1, bias=False)
        self.gate = nn.Conv2d(num_features, size, kernel_size=1, bias=False)
        self.attend = nn.Conv2d(size, num_classes, kernel_size=1, bias=False)
        nn.init.normal_(self.content.weight, std=num_features**-0.5)
        nn.init.normal_(self.gate.weight, std=num_features**-0.5)
        nn.init.zeros_(self.attend.weight)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        return attention_pool(x, self.attention(features))

    def attention(self, features: Tensor) -> Tensor:
        """(B, D, h, w) standardised features -> (B, C, h, w) logits of the weights."""
        gated = torch.tanh(self.content(features)) * torch.sigmoid(self.gate(features))  # (B, L, h, w)
        attention: Tensor = self.attend(gated)
        return attention

    def offset_gain(self) -> float:
        """As `SpatialPool.offset_gain`: the weights sum to one."""
        return 1.0


class AttentionWildcat(Wildcat):
    """A network whose pooling is an `AttentionPool`, which also reads the standardised features."""

    def head(self, features: Tensor) -> Output:
        maps = self.transfer(features)
        class_maps = self.class_pool(maps)
        scores = self.pool(class_maps, self.transfer.standardized(features))
        return Output(scores, class_maps, maps.unflatten(1, (self.num_classes, self.num_maps)))
