"""The two poolings of WILDCAT (Durand et al., CVPR 2017, section 3): over the M maps of a class, then over space.

Everything the paper compares them with is in `wildcat.nn.heads`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from wildcat.config import ClassPool, Regions, check_alpha, check_class_pool, check_regions
from wildcat.errors import ConfigError, ShapeError


def class_wise_pool(maps: Tensor, num_maps: int, pool: ClassPool = "mean", sharpness: float = 1.0) -> Tensor:
    """Pool the M maps of each class at every region (eq. 1, with any of these as its `Cl.Pool`).

    With z_m the M values of a class at a region and r the sharpness:

    - `mean`: the mean of z_m. Each map receives 1/M of the class map's gradient, so the maps learn the same and act as
      one (see `wildcat.nn.model.Wildcat.fuse`).
    - `max`: the highest z_m, which alone receives the gradient.
    - `lse`: (1/r) log(mean of exp(r z_m)). Map m receives softmax(r z)_m of the gradient.
    - `softmax`: the sum of softmax(r z)_m z_m. A map far enough below the others receives a gradient of the other sign.

    For large r, `lse` and `softmax` are the maximum; near 0 they are the mean.

    Args:
        maps: (B, C*M, h, w); the map of class c and modality m has channel index c*M + m.
        num_maps: M.
        pool: `mean`, `max`, `lse` or `softmax`.
        sharpness: r > 0, of `lse` and `softmax`.

    Returns:
        (B, C, h, w) class maps.

    Raises:
        ShapeError: `maps` is not 4-D, or its channels are not divisible by M.
        ConfigError: `num_maps` is below 1, `pool` is none of the four, or `sharpness` is not a positive finite number.
    """
    if num_maps < 1:
        raise ConfigError(f"num_maps={num_maps}: give the number of maps per class, at least 1.")
    check_class_pool(pool, sharpness)
    check_maps(maps)
    channels = maps.shape[1]
    if channels % num_maps:
        raise ShapeError(
            f"{channels} channels cannot be divided into num_maps={num_maps} maps per class.",
            f"Give classes x maps channels, a multiple of {num_maps}.",
        )
    batch, _, height, width = maps.shape
    # (B, C*M, h, w) -> (B, C, M, h, w) -> (B, C, h, w)
    grouped = maps.reshape(batch, channels // num_maps, num_maps, height, width)
    if pool == "max":
        return grouped.max(dim=2).values
    if pool == "lse":
        return (torch.logsumexp(sharpness * grouped, dim=2) - math.log(num_maps)) / sharpness
    if pool == "softmax":
        return (torch.softmax(sharpness * grouped, dim=2) * grouped).sum(dim=2)
    return grouped.mean(dim=2)


def spatial_pool(x: Tensor, kmax: Regions = 1, kmin: Regions | None = None, alpha: float = 0.7) -> Tensor:
    """Mean of the kmax highest plus alpha times the mean of the kmin lowest regions of each map (eq. 3).

    The lowest regions are evidence against the class: in an image without it no region should speak for it, and in one
    with it none strongly against it. The gradient flows through the selected regions only. There is no division by 2,
    unlike in the authors' 2017 release.

    Args:
        x: (B, C, h, w) class maps.
        kmax: k+, an int counts regions (1: the maximum), a float in (0, 1] is a proportion (1.0: all of them).
            Counts larger than the map are clipped to it.
        kmin: k-, as `kmax`; None: the same as `kmax`; 0: no lowest regions.
        alpha: weight of the lowest regions; 0: no lowest regions.

    Returns:
        (B, C) scores.

    Raises:
        ShapeError: `x` is not 4-D or has an empty map.
        ConfigError: `kmax`, `kmin` or `alpha` is out of range.

    >>> import torch
    >>> x = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]])
    >>> spatial_pool(x, kmax=2, kmin=1, alpha=0.5)  # (6 + 3) / 2 + 0.5 * 1
    tensor([[5.]])
    """
    check_regions("kmax", kmax)
    check_regions("kmin", kmin)
    check_alpha(alpha)
    check_maps(x)
    regions = x.flatten(2)  # (B, C, h, w) -> (B, C, n)
    n = regions.shape[-1]
    scores = _mean_of_extremes(regions, region_count(kmax, n), largest=True)
    lowest = region_count(kmax if kmin is None else kmin, n)
    if lowest and alpha:
        scores = scores + alpha * _mean_of_extremes(regions, lowest, largest=False)
    return scores


def region_count(k: Regions, n: int) -> int:
    """The number of regions that `k` selects out of n: a count clipped to n, or `max(1, round(k * n))`.

    >>> region_count(3, 2), region_count(0.2, 49), region_count(1.0, 49), region_count(0.001, 49), region_count(0, 49)
    (2, 10, 49, 1, 0)
    """
    if k == 0:
        return 0
    count = max(1, round(k * n)) if isinstance(k, float) else k
    return min(n, count)


def _mean_of_extremes(regions: Tensor, count: int, largest: bool) -> Tensor:
    """(B, C, n) -> (B, C), the mean of the `count` largest, or smallest, values."""
    if count == regions.shape[-1]:
        return regions.mean(dim=-1)
    if count == 1:  # max, not amax: where values are equal, amax would spread the gradient over all of them
        return (regions.max(dim=-1) if largest else regions.min(dim=-1)).values
    return regions.topk(count, dim=-1, largest=largest, sorted=False).values.mean(dim=-1)


class ClassWisePool(nn.Module):
    """`class_wise_pool` as a layer: (B, C*M, h, w) -> (B, C, h, w)."""

    def __init__(self, num_maps: int, pool: ClassPool = "mean", sharpness: float = 1.0) -> None:
        super().__init__()
        check_class_pool(pool, sharpness)
        self.num_maps, self.pool, self.sharpness = num_maps, pool, sharpness

    def forward(self, maps: Tensor) -> Tensor:
        return class_wise_pool(maps, self.num_maps, self.pool, self.sharpness)

    def extra_repr(self) -> str:
        return f"num_maps={self.num_maps}, pool={self.pool}, sharpness={self.sharpness}"


class SpatialPool(nn.Module):
    """`spatial_pool` as a layer: (B, C, h, w) -> (B, C)."""

    def __init__(self, kmax: Regions = 1, kmin: Regions | None = None, alpha: float = 0.7) -> None:
        super().__init__()
        check_regions("kmax", kmax)
        check_regions("kmin", kmin)
        check_alpha(alpha)
        self.kmax, self.kmin, self.alpha = kmax, kmin, alpha

    def forward(self, x: Tensor) -> Tensor:
        return spatial_pool(x, self.kmax, self.kmin, self.alpha)

    def offset_gain(self) -> float:
        """The rise of a score when every region rises by one: 1, plus alpha where the lowest regions count."""
        return 1.0 if self.kmin == 0 else 1.0 + self.alpha

    def extra_repr(self) -> str:
        return f"kmax={self.kmax}, kmin={self.kmin}, alpha={self.alpha}"


def check_maps(maps: Tensor) -> None:
    """Refuse anything but (B, C, h, w) with h and w above 0.

    Raises:
        ShapeError: names the shape.
    """
    if maps.ndim != 4 or maps.shape[-1] * maps.shape[-2] == 0:
        raise ShapeError(
            f"maps of shape {tuple(maps.shape)}: give (batch, channels, height, width) with height and width above 0."
        )
