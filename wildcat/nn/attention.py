"""Gated attention (Ilse, Tomczak & Welling, Attention-based Deep MIL, ICML 2018): a pooling that learns where to look.

The poolings of `wildcat.nn.pooling` rank the regions of a class map by the very scores they pool. This one asks a small
network of its own, which sees the features, how much each region of the image shall count for each class.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from wildcat.errors import ConfigError, ShapeError


def attention_pool(x: Tensor, attention: Tensor) -> Tensor:
    """Mean of each class map with its own weights, a softmax over the regions.

    Args:
        x: (B, C, h, w) class maps.
        attention: (B, C, h, w), or (B, 1, h, w) where the classes share it: logarithms of the weights, to which a
            constant may be added.

    Returns:
        (B, C) scores.

    Raises:
        ShapeError: `x` is not 4-D or has an empty map, or `attention` does not fit it.

    >>> x = torch.tensor([[[[1.0, 5.0]]]])
    >>> attention_pool(x, torch.tensor([[[[1.0, 3.0]]]]).log())  # (1 * 1 + 3 * 5) / 4
    tensor([[4.]])
    """
    if x.ndim != 4 or x.shape[-1] * x.shape[-2] == 0:
        raise ShapeError(
            f"maps of shape {tuple(x.shape)}: give (batch, channels, height, width) with height and width above 0."
        )
    if attention.shape not in (x.shape, (x.shape[0], 1, *x.shape[2:])):
        raise ShapeError(
            f"attention of shape {tuple(attention.shape)} does not fit maps of shape {tuple(x.shape)}.",
            "Give one attention map for each class map, or one for all.",
        )
    weights = attention.flatten(2).softmax(dim=-1)  # (B, C, h, w) -> (B, C, n)
    return (weights * x.flatten(2)).sum(dim=-1)


class AttentionPool(nn.Module):
    """Gated attention with one map of weights per class: (B, C, h, w) maps, (B, D, h, w) features -> (B, C) scores.

    Region k of the image, with features h_k, has for class c the weight (eq. 9 of the paper)

        a_ck = softmax over k of w_c . (tanh(V h_k) * sigmoid(U h_k)) / sqrt(L),    V, U: (L, D);  w: (C, L)

    and the class's score is the sum over k of a_ck times its map. The paper pools the features with the weights and
    then classifies them: the same, because the classifier is linear. It has one class and thus one w; with several
    classes in an image, each elsewhere, each needs weights of its own (as in the multi-branch CLAM: Lu et al., Nature
    Biomedical Engineering 2021). Both releases add biases, which eq. 9 has not: standardised features have mean 0.
    The division by sqrt(L) is ours: w could hold it, and no model is lost. It keeps the gated vector's length about the
    same for any L, like that of the features, so that w can learn at the rate of the transfer layer.

    It starts as average pooling: w begins at zero, and thus all weights equal. V and U begin as unit normals, made for
    features of length 1, which is what `wildcat.nn.model.FeatureScale` makes of those of any backbone: V h and U h then
    have spread 1, where tanh and sigmoid bend. The usual 1/sqrt(D) would leave them in their linear part, near zero.

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
        nn.init.normal_(self.content.weight)
        nn.init.normal_(self.gate.weight)
        nn.init.zeros_(self.attend.weight)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        return attention_pool(x, self.attention(features))

    def attention(self, features: Tensor) -> Tensor:
        """(B, D, h, w) standardised features -> (B, C, h, w): logarithms of the weights, up to a constant a map."""
        gated = torch.tanh(self.content(features)) * torch.sigmoid(self.gate(features))  # (B, L, h, w)
        attention: Tensor = self.attend(gated) / math.sqrt(gated.shape[1])
        return attention

    def offset_gain(self) -> float:
        """As `SpatialPool.offset_gain`: the weights sum to one."""
        return 1.0
