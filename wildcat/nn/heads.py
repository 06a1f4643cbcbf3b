"""The heads that the paper compares WILDCAT with, and later ones: pooling layers, and networks with other heads."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from wildcat.config import Regions, check_residual
from wildcat.errors import ConfigError, ShapeError, did_you_mean
from wildcat.nn.model import Output, Wildcat
from wildcat.nn.pooling import SpatialPool, check_maps

# --- pooling layers: class maps (B, C, h, w) -> scores (B, C) ---------------------------------------------------------


def log_sum_exp_pool(x: Tensor, sharpness: float) -> Tensor:
    """Log-sum-exp pooling, `(1/r) * log(mean(exp(r * x)))` (Sun et al., ProNet, CVPR 2016; Pinheiro & Collobert 2015).

    Args:
        x: (B, C, h, w) class maps.
        sharpness: r > 0; near 0 the result is the mean of the map, for large r its maximum.

    Returns:
        (B, C) scores.

    Raises:
        ShapeError: `x` is not 4-D or has an empty map.
        ConfigError: `sharpness` is not a positive finite number.
    """
    _check_sharpness(sharpness)
    check_maps(x)
    regions = x.flatten(2)  # (B, C, h, w) -> (B, C, n)
    return (torch.logsumexp(sharpness * regions, dim=-1) - math.log(regions.shape[-1])) / sharpness


def csra_pool(x: Tensor, residual: float = 0.2, temperature: float = math.inf) -> Tensor:
    """Class-specific residual attention with one head (CSRA: Zhu & Wu, Residual Attention, ICCV 2021, section 3).

    The paper attends to features: region k has weight s_k = softmax over k of T m_i.x_k for class i, and the score is
    m_i.f_i with f_i = mean of x_k + lambda * sum of s_k x_k. The classifier m_i is linear, so with the class map
    y_k = m_i.x_k the score is `mean(y) + lambda * sum(softmax(T y) y)`. The authors' release differs: it divides y by
    the length of m_i, and sums several heads with a classifier and a temperature each. T = inf is the average plus
    lambda times the maximum.

    Args:
        x: (B, C, h, w) class maps.
        residual: lambda >= 0, the weight of the attended score.
        temperature: T > 0; near 0 all regions have the same weight, inf selects the highest region.

    Returns:
        (B, C) scores.

    Raises:
        ShapeError: `x` is not 4-D or has an empty map.
        ConfigError: `residual` or `temperature` is out of range.

    >>> csra_pool(torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]]), residual=0.5)  # 3 + 0.5 * 6
    tensor([[6.]])
    """
    check_residual(residual, temperature)
    check_maps(x)
    regions = x.flatten(2)  # (B, C, h, w) -> (B, C, n)
    if math.isinf(temperature):
        attended = regions.max(dim=-1).values
    else:
        attended = (torch.softmax(temperature * regions, dim=-1) * regions).sum(dim=-1)
    return regions.mean(dim=-1) + residual * attended


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


class LogSumExpPool(nn.Module):
    """`log_sum_exp_pool` as a layer: (B, C, h, w) -> (B, C)."""

    def __init__(self, sharpness: float) -> None:
        super().__init__()
        _check_sharpness(sharpness)
        self.sharpness = sharpness

    def forward(self, x: Tensor) -> Tensor:
        return log_sum_exp_pool(x, self.sharpness)

    def offset_gain(self) -> float:
        """As `SpatialPool.offset_gain`."""
        return 1.0

    def extra_repr(self) -> str:
        return f"sharpness={self.sharpness}"


class ResidualAttentionPool(nn.Module):
    """`csra_pool` as a layer: (B, C, h, w) -> (B, C)."""

    def __init__(self, residual: float, temperature: float) -> None:
        super().__init__()
        check_residual(residual, temperature)
        self.residual, self.temperature = residual, temperature

    def forward(self, x: Tensor) -> Tensor:
        return csra_pool(x, self.residual, self.temperature)

    def offset_gain(self) -> float:
        """As `SpatialPool.offset_gain`: both the average and the attended score rise."""
        return 1.0 + self.residual

    def extra_repr(self) -> str:
        return f"residual={self.residual}, temperature={self.temperature}"


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


MapPool = SpatialPool | LogSumExpPool | ResidualAttentionPool

# What each row of the paper's Table 1 fixes in eq. 3; `lse` and `csra` have parameters of their own.
POOLINGS: dict[str, dict[str, Regions | None]] = {
    "wildcat": {},
    "weldon": {"alpha": 1.0},
    "topk": {"kmin": 0, "alpha": 0.0},
    "max": {"kmax": 1, "kmin": 0, "alpha": 0.0},
    "average": {"kmax": 1.0, "kmin": 0, "alpha": 0.0},
    "lse": {},
    "csra": {},
}


def create_pool(
    name: str = "wildcat",
    kmax: Regions = 0.2,
    kmin: Regions | None = None,
    alpha: float = 0.7,
    sharpness: float = 4.0,
    residual: float = 0.2,
    temperature: float = math.inf,
) -> MapPool:
    """The pooling layer of a row of the paper's Table 1, or a later one.

    `max`: the highest region (DeepMIL). `topk`: the kmax highest (top instances). `average`: all regions (GAP).
    `weldon`: kmax highest plus kmin lowest, equal weights. `wildcat`: the lowest weighted by alpha. `lse`: ProNet.
    `csra`: residual attention.

    Raises:
        ConfigError: an unknown name, a value out of range, or `attention`, which also needs the features.
    """
    if name == "attention":
        raise ConfigError(
            "pooling 'attention' needs the features as well as the maps.",
            "Make wildcat.nn.heads.AttentionPool(num_features, num_classes), or the network with create_model.",
        )
    if name not in POOLINGS:
        raise ConfigError(
            f"there is no pooling {name!r}.",
            did_you_mean(name, (*POOLINGS, "attention")) or f"Poolings are: {', '.join(POOLINGS)}, attention.",
        )
    if name == "lse":
        return LogSumExpPool(sharpness)
    if name == "csra":
        return ResidualAttentionPool(residual, temperature)
    given: dict[str, Regions | None] = {"kmax": kmax, "kmin": kmin, "alpha": alpha}
    values = given | POOLINGS[name]
    return SpatialPool(values["kmax"], values["kmin"], values["alpha"])  # type: ignore[arg-type]  # alpha is a float


def _check_sharpness(sharpness: float) -> None:
    if not (math.isfinite(sharpness) and sharpness > 0):
        raise ConfigError(f"sharpness={sharpness}: give a positive number; ProNet-like settings are 1 to 10.")


# --- networks whose head differs from figure 2 ------------------------------------------------------------------------


class PoolThenClassify(Wildcat):
    """Architecture (b) of Table 5: pool each feature over space, classify, pool the M scores of a class."""

    def head(self, features: Tensor) -> Output:
        _, class_maps, maps = super().head(features)
        pooled = self.pool(self.transfer.standardized(features))[:, :, None, None]  # (B, D, h, w) -> (B, D, 1, 1)
        scores = functional.conv2d(pooled, self.transfer.weight, self.transfer.bias)  # (B, C*M, 1, 1)
        scores = self.class_pool(scores)  # (B, C, 1, 1)
        return Output(scores.flatten(1), class_maps, maps)

    def offset_gain(self) -> float:
        """The bias is added after the pooling."""
        return 1.0


class PoolEachMap(Wildcat):
    """Architecture "c" (not in the paper): pool each of the M maps of a class over space, then pool their scores.

    With the mean, each map receives a gradient of its own, at the regions that it selects; with the mean in eq. 1 all M
    maps of a class receive the same.
    """

    def head(self, features: Tensor) -> Output:
        maps = self.transfer(features)  # (B, C*M, h, w)
        scores = self.class_pool(self.pool(maps)[:, :, None, None]).flatten(1)  # (B, C*M) -> (B, C)
        class_maps = self.class_pool(maps)
        return Output(scores, class_maps, maps.unflatten(1, (self.num_classes, self.num_maps)))

    def fuse(self) -> Wildcat:
        """The network itself: pooling each map is not linear in the maps, so their weights cannot be averaged."""
        return self


class AttentionWildcat(Wildcat):
    """A network whose pooling is an `AttentionPool`, which also reads the standardised features."""

    def head(self, features: Tensor) -> Output:
        maps = self.transfer(features)
        class_maps = self.class_pool(maps)
        scores = self.pool(class_maps, self.transfer.standardized(features))
        return Output(scores, class_maps, maps.unflatten(1, (self.num_classes, self.num_maps)))


class BackgroundWildcat(Wildcat):
    """A network whose classes compete at each region, with each other and with a background present in every image.

    Class maps are log-odds against the background, so masks need no threshold (Pinheiro and Collobert, CVPR 2015).
    """

    def head(self, features: Tensor) -> Output:
        scores, class_maps, maps = self.training_output(features)
        return Output(scores[:, : self.num_classes], class_maps, maps)

    def training_output(self, features: Tensor) -> Output:
        """(B, C + 1) scores: that of the background, whose label is always present, is the last."""
        maps = self.transfer(features)
        class_maps = self.class_pool(maps)
        scores = self.pool(competing_logits(class_maps))
        return Output(scores, class_maps, maps.unflatten(1, (self.num_classes, self.num_maps)))


def competing_logits(maps: Tensor) -> Tensor:
    """(B, C, h, w) log-odds of each class against the background -> (B, C + 1, h, w) logits, the background last.

    The logit of a class's softmax probability at each region: its value minus the log-sum-exp of all other classes and
    the background, whose value is 0. The loss of independent classes applies to it.

    >>> competing_logits(torch.zeros(1, 1, 1, 1)).flatten().tolist()  # one class, as likely as the background
    [0.0, 0.0]
    """
    every = torch.cat([maps, torch.zeros_like(maps[:, :1])], dim=1)
    highest, best = every.max(dim=1, keepdim=True)
    is_best = torch.zeros_like(every, dtype=torch.bool).scatter(1, best, value=True)
    # log(total - own) would cancel for the highest value: sum the others explicitly there.
    without_best = every.masked_fill(is_best, -torch.inf).logsumexp(dim=1, keepdim=True)
    total = (every - highest).exp().sum(dim=1, keepdim=True)
    own = (every - highest).exp().masked_fill(is_best, 0.0)
    return every - torch.where(is_best, without_best, highest + (total - own).log())
