"""The two poolings of WILDCAT (Durand et al., CVPR 2017, section 3): over the M maps of a class, then over space.

A score is made in two steps. `class_wise_pool` averages the M maps of each class (eq. 1), so that each map may find
another part of the object. `spatial_pool` then averages the k+ regions that speak most for the class and adds, with
weight alpha, the k- regions that speak most against it (eq. 3): the negative evidence. Below them stand the spatial
poolings it is compared with; the one that learns where to look has a file of its own, `wildcat.nn.attention`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from wildcat.config import Regions, check_alpha, check_regions, check_residual
from wildcat.errors import ConfigError, ShapeError, did_you_mean
from wildcat.nn.extremes import extreme_means, partitions_well


def class_wise_pool(maps: Tensor, num_maps: int) -> Tensor:
    """Mean over the M maps of each class (eq. 1).

    Args:
        maps: (B, C*M, h, w); the map of class c and modality m has channel index c*M + m.
        num_maps: M.

    Returns:
        (B, C, h, w) class maps. The gradient that reaches each of the M maps is 1/M of the class map's, the same for
        all M: maps made by one linear layer, as in the paper, differ by where their weights began and by nothing else.
        (Architecture "c" of `wildcat.nn.model` pools each map over space before this mean, and teaches each its own.)

    Raises:
        ShapeError: `maps` is not 4-D, or its channels are not divisible by M.
    """
    if num_maps < 1:
        raise ConfigError(f"num_maps={num_maps}: give the number of maps per class, at least 1.")
    _check_maps(maps)
    channels = maps.shape[1]
    if channels % num_maps:
        raise ShapeError(
            f"{channels} channels cannot be shared by num_maps={num_maps} maps per class.",
            f"Give classes x maps channels, a multiple of {num_maps}.",
        )
    batch, _, height, width = maps.shape
    # (B, C*M, h, w) -> (B, C, M, h, w) -> (B, C, h, w)
    return maps.reshape(batch, channels // num_maps, num_maps, height, width).mean(dim=2)


def spatial_pool(x: Tensor, kmax: Regions = 1, kmin: Regions | None = None, alpha: float = 0.7) -> Tensor:
    """Mean of the kmax highest plus alpha times the mean of the kmin lowest regions of each map (eq. 3).

    There is no division by 2, unlike in the authors' 2017 release. The gradient flows through the selected regions
    only.

    Args:
        x: (B, C, h, w) class maps.
        kmax: k+, an int counts regions (1: the maximum), a float in (0, 1] is a proportion (1.0: all of them).
            Counts larger than the map are clipped to it.
        kmin: k-, as `kmax`; None means as `kmax`; 0 switches the lowest regions off.
        alpha: weight of the lowest regions; 0 switches them off.

    Returns:
        (B, C) scores.

    Raises:
        ShapeError: `x` is not 4-D or has an empty map.
        ConfigError: `kmax`, `kmin` or `alpha` out of range.

    >>> x = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]])
    >>> spatial_pool(x, kmax=2, kmin=1, alpha=0.5)  # (6 + 3) / 2 + 0.5 * 1
    tensor([[5.]])
    """
    check_regions("kmax", kmax)
    check_regions("kmin", kmin)
    check_alpha(alpha)
    _check_maps(x)
    regions = x.flatten(2)  # (B, C, h, w) -> (B, C, n)
    total = regions.shape[-1]
    highest = region_count(kmax, total)
    lowest = 0 if alpha == 0 else region_count(kmax if kmin is None else kmin, total)
    if 1 < highest < total and lowest < total and partitions_well(regions, highest):
        high, low = extreme_means(regions, highest, lowest)
        return high + alpha * low
    scores = _mean_of_extremes(regions, highest, highest=True)
    if lowest:
        scores = scores + alpha * _mean_of_extremes(regions, lowest, highest=False)
    return scores


def region_count(k: Regions, total: int) -> int:
    """How many of `total` regions `k` means: a count clipped to them, or `max(1, round(k * total))` of a proportion.

    >>> region_count(3, 2), region_count(0.2, 49), region_count(1.0, 49), region_count(0.001, 49), region_count(0, 49)
    (2, 10, 49, 1, 0)
    """
    if k == 0:
        return 0
    return min(total, max(1, round(k * total)) if isinstance(k, float) else k)


def _mean_of_extremes(regions: Tensor, count: int, highest: bool) -> Tensor:
    """(B, C, n) -> (B, C), the mean of the `count` highest, or lowest."""
    if count == regions.shape[-1]:
        return regions.mean(dim=-1)
    if count == 1:  # max, not amax: with ties amax would spread the gradient over all of them
        return (regions.max(dim=-1) if highest else regions.min(dim=-1)).values
    return regions.topk(count, dim=-1, largest=highest, sorted=False).values.mean(dim=-1)


def log_sum_exp_pool(x: Tensor, sharpness: float) -> Tensor:
    """Log-sum-exp pooling, `(1/r) * log(mean(exp(r * x)))` (Sun et al., ProNet, CVPR 2016; Pinheiro & Collobert 2015).

    Args:
        x: (B, C, h, w) class maps.
        sharpness: r > 0; towards 0 the mean of the map, large its maximum.

    Returns:
        (B, C) scores.

    Raises:
        ShapeError: `x` is not 4-D or has an empty map.
        ConfigError: `sharpness` is not a positive finite number.
    """
    _check_sharpness(sharpness)
    _check_maps(x)
    regions = x.flatten(2)  # (B, C, h, w) -> (B, C, n)
    return (torch.logsumexp(sharpness * regions, dim=-1) - math.log(regions.shape[-1])) / sharpness


def csra_pool(x: Tensor, residual: float = 0.2, temperature: float = math.inf) -> Tensor:
    """Class-specific residual attention (CSRA: Zhu & Wu, Residual Attention, ICCV 2021) of one head.

    The paper attends to features: region k of class i has weight s_k = softmax over k of T m_i.x_k, and the class is
    scored m_i.f_i, of f_i = mean of x_k + lambda * sum of s_k x_k (its section 3). Its classifier m_i is linear, so
    that m_i.f_i is, of the class map y_k = m_i.x_k alone, `mean(y) + lambda * sum(softmax(T y) y)`: what is computed
    here. Their release differs in two ways: it divides each y by the length of m_i, and adds up several heads, each
    with a classifier and a temperature of its own. Without that division a finite T is measured in units of the scores;
    T = inf, the average plus lambda times the maximum, depends on no unit.

    Args:
        x: (B, C, h, w) class maps.
        residual: lambda >= 0, the weight of the attended score.
        temperature: T > 0; towards 0 the weights are uniform, inf puts all weight on the highest region.

    Returns:
        (B, C) scores.

    Raises:
        ShapeError: `x` is not 4-D or has an empty map.
        ConfigError: `residual` or `temperature` out of range.

    >>> csra_pool(torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]]), residual=0.5)  # 3 + 0.5 * 6
    tensor([[6.]])
    """
    check_residual(residual, temperature)
    _check_maps(x)
    regions = x.flatten(2)  # (B, C, h, w) -> (B, C, n)
    if math.isinf(temperature):
        attended = _mean_of_extremes(regions, 1, highest=True)
    else:
        attended = (torch.softmax(temperature * regions, dim=-1) * regions).sum(dim=-1)
    return regions.mean(dim=-1) + residual * attended


class SpatialPool(nn.Module):
    """`spatial_pool` as a layer: (B, C, h, w) -> (B, C)."""

    def __init__(self, kmax: Regions, kmin: Regions | None, alpha: float) -> None:
        super().__init__()
        check_regions("kmax", kmax)
        check_regions("kmin", kmin)
        check_alpha(alpha)
        self.kmax, self.kmin, self.alpha = kmax, kmin, alpha

    def forward(self, x: Tensor) -> Tensor:
        return spatial_pool(x, self.kmax, self.kmin, self.alpha)

    def offset_gain(self) -> float:
        """How much a score rises when every region rises by one: 1, plus alpha where the lowest regions count."""
        return 1.0 if self.kmin == 0 else 1.0 + self.alpha

    def extra_repr(self) -> str:
        return f"kmax={self.kmax}, kmin={self.kmin}, alpha={self.alpha}"


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


MapPool = SpatialPool | LogSumExpPool | ResidualAttentionPool
"""The layers that pool each map by itself: (B, C, h, w) -> (B, C) for any C."""


def create_pool(
    name: str = "wildcat",
    kmax: Regions = 0.2,
    kmin: Regions | None = None,
    alpha: float = 0.7,
    sharpness: float = 4.0,
    residual: float = 0.2,
    temperature: float = math.inf,
) -> MapPool:
    """The pooling layer of a row of the paper's Table 1; the name fixes what defines the row, the rest is yours.

    `max`: the highest region (DeepMIL). `topk`: the kmax highest (top instances). `average`: all regions (GAP).
    `weldon`: kmax highest plus kmin lowest, equal weights. `wildcat`: the lowest weighted by alpha. `lse`: ProNet.
    `csra`: residual attention, newer than the table.

    Raises:
        ConfigError: an unknown name or a value out of range; `attention`, which pools more than maps.
    """
    if name == "attention":
        raise ConfigError(
            "pooling 'attention' looks at the features too, and needs to know how many there are.",
            "Make wildcat.nn.attention.AttentionPool(num_features, num_classes), or the network with create_model.",
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


POOLINGS: dict[str, dict[str, Regions | None]] = {
    "wildcat": {},
    "weldon": {"alpha": 1.0},
    "topk": {"kmin": 0, "alpha": 0.0},
    "max": {"kmax": 1, "kmin": 0, "alpha": 0.0},
    "average": {"kmax": 1.0, "kmin": 0, "alpha": 0.0},
    "lse": {},
    "csra": {},
}
"""What each row of Table 1 fixes; poolings by parameters of their own fix nothing of eq. 3."""


def _check_maps(maps: Tensor) -> None:
    if maps.ndim != 4 or maps.shape[-1] * maps.shape[-2] == 0:
        raise ShapeError(
            f"maps of shape {tuple(maps.shape)}: give (batch, channels, height, width) with height and width above 0."
        )


def _check_sharpness(sharpness: float) -> None:
    if not (math.isfinite(sharpness) and sharpness > 0):
        raise ConfigError(f"sharpness={sharpness}: give a positive number; ProNet-like settings are 1 to 10.")
