"""Pooling layers of class maps, (B, C, h, w) -> scores (B, C): the rows of Table 1, log-sum-exp and CSRA."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from wildcat.config import Regions, check_residual
from wildcat.errors import ConfigError, did_you_mean
from wildcat.nn.pooling import SpatialPool, check_maps


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
