"""Gaussian filtering in many dimensions on the permutohedral lattice (Adams, Baek, Davis, Eurographics 2010).

The lattice divides the d-dimensional space into simplices. A filter splats the values of the points onto the corners
of their simplices, blurs along each of the d + 1 axes of the lattice, and slices the result at the points. Each step
is a weighted sum of rows of a table: `torch.nn.functional.embedding_bag`, on CPU and GPU, for all channels at once and
in a fixed order. A lattice is built once and filters any number of times.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from wildcat.errors import ConfigError


@dataclass(frozen=True)
class Lattice:
    """A permutohedral lattice over N pixels in d dimensions: K vertices, and an extra one whose value is always 0.

    Attributes:
        pixels, pixel_weights: ((d + 1) * N,) the pixels that are splatted onto each vertex, sorted by vertex.
        starts: (K + 2,) where each vertex begins in `pixels`.
        neighbours: (d + 1, K + 1, 3) per axis: the vertex, the next and the previous vertex; K where there is none.
        vertices, vertex_weights: (N, d + 1) the corners of the simplex around each pixel.
    """

    pixels: Tensor
    pixel_weights: Tensor
    starts: Tensor
    neighbours: Tensor
    vertices: Tensor
    vertex_weights: Tensor

    def filter(self, values: Tensor) -> Tensor:
        """(N, C) values -> (N, C) their Gaussian-weighted sums: splat, blur along each axis, slice."""
        table = functional.embedding_bag(
            self.pixels,
            values,
            self.starts,
            mode="sum",
            per_sample_weights=self.pixel_weights,
            include_last_offset=True,
        )
        blur = table.new_tensor([1.0, 0.5, 0.5]).repeat(len(table), 1)
        for neighbours in self.neighbours:
            table = functional.embedding_bag(neighbours, table, mode="sum", per_sample_weights=blur)
        return functional.embedding_bag(self.vertices, table, mode="sum", per_sample_weights=self.vertex_weights)

    def scaled(self, before: Tensor, after: Tensor) -> Lattice:
        """The lattice whose filter multiplies each pixel's value by `before` and each result by `after`, both (N,)."""
        return Lattice(
            self.pixels,
            self.pixel_weights * before[self.pixels],
            self.starts,
            self.neighbours,
            self.vertices,
            self.vertex_weights * after[:, None],
        )


def build_lattice(features: Tensor) -> Lattice:
    """The lattice around (d, N) float32 features whose kernel is a Gaussian of standard deviation 1.

    Raises:
        ConfigError: the features span too many cells: their keys do not fit an int64, or float32 cannot place them.
    """
    d, count = features.shape
    base, rank, weights = _enclosing_simplices(features)
    # A vertex with remainder k has coordinates (d + 1) * u + k in all d + 1 axes, so (u, k) names it. The last axis
    # follows from the others (all sum to 0). Digits of mixed radix in one int64 make the key exact: no collisions.
    low, high = base[:d].amin(dim=1) - 2, base[:d].amax(dim=1) + 2
    strides, size = [], d + 1
    for extent in (high - low + 1).tolist():
        strides.append(size)
        size *= extent
    if size >= 2**63 or max(-int(low.min()), int(high.max())) > 2**20:  # beyond it float32 loses the simplex
        raise ConfigError(
            "the Gaussian is too narrow for a lattice over features of this range.",
            "Give larger sigmas; appearance_sigma_rgb=1 separates all levels.",
        )
    stride = base.new_tensor([*strides, 0], dtype=torch.int64)
    keys = base.new_empty(d + 1, count, dtype=torch.int64)
    keys[0] = ((base[:d] - low[:, None]) * stride[:d, None]).sum(dim=0)
    # From corner k - 1 to corner k, the axis of rank d + 1 - k steps down by d + 1 and every remainder grows by 1.
    by_rank = torch.empty_like(keys).scatter_(0, rank, stride[:, None].expand(-1, count))
    for k in range(1, d + 1):
        torch.sub(keys[k - 1], by_rank[d + 1 - k], out=keys[k]).add_(1)

    ordered, order = _sort(keys.view(-1), size)
    first = torch.ones_like(ordered, dtype=torch.bool)
    torch.ne(ordered[1:], ordered[:-1], out=first[1:])
    starts = first.nonzero()[:, 0]
    vertices = torch.empty_like(order, dtype=torch.int32)
    vertices[order] = first.cumsum(0, dtype=torch.int32).sub_(1)
    end = starts.new_full((2,), len(ordered))  # two ends: nothing is splatted onto the extra vertex
    return Lattice(
        pixels=torch.arange(count, dtype=torch.int32, device=order.device).repeat(d + 1)[order],
        pixel_weights=weights.view(-1)[order],
        starts=torch.cat([starts, end]).int(),
        neighbours=_neighbours(ordered[starts], stride),
        vertices=vertices.view(d + 1, count).t().contiguous(),
        # 1 / (1 + 2^-d) corrects the gain of splat, blur and slice (Adams et al.'s code)
        vertex_weights=weights.t().contiguous() / (1 + 2.0**-d),
    )


def _enclosing_simplices(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The simplex around each of N points (Adams et al. 2010, section 3.1 and proposition 4.2).

    Returns, each (d + 1, N): the corner of remainder 0 divided by d + 1; the rank of each axis by its distance from
    that corner, largest first; and the barycentric weight of the corner of each remainder.
    """
    d, count = features.shape
    deviation = math.sqrt(2 / 3) * (d + 1)  # standard deviation of the blur in lattice units
    elevated = features.new_empty(d + 1, count)
    running = features.new_zeros(count)
    for axis in range(d, 0, -1):
        scaled = features[axis - 1] * (deviation / math.sqrt(axis * (axis + 1)))
        elevated[axis] = running - axis * scaled
        running = running + scaled
    elevated[0] = running

    base = torch.round(elevated / (d + 1))
    residual = elevated - base * (d + 1)
    rank = torch.zeros(d + 1, count, dtype=torch.int32, device=features.device)
    for axis in range(d):
        lower = (residual[axis] < residual[axis + 1 :]).int()
        rank[axis] += lower.sum(dim=0, dtype=torch.int32)
        rank[axis + 1 :] += 1 - lower
    # Rounding can leave the plane where coordinates sum to 0: the axes with the largest error move back by one step.
    rank += base.sum(dim=0).int()
    step = (rank < 0).int() - (rank > d).int()
    rank += step * (d + 1)
    base += step
    rank64 = rank.long()
    residual = (elevated - base * (d + 1)) / (d + 1)
    by_rank = torch.empty_like(residual).scatter_(0, rank64, residual)
    weights = by_rank.flip(0)
    weights[1:] -= by_rank.flip(0)[:-1]
    weights[0] += 1 - by_rank[0]
    return base.long(), rank64, weights


def _sort(keys: Tensor, bound: int) -> tuple[Tensor, Tensor]:
    """The keys, all in [0, bound), in ascending order, and their original indices; stable.

    On the CPU, sorting key and index packed into one int64 with NumPy is about 20 times as fast as `torch.sort`.
    """
    bits = len(keys).bit_length()
    if keys.device.type != "cpu" or bound >= 2 ** (63 - bits):
        return torch.sort(keys, stable=True)
    packed = (keys << bits) + torch.arange(len(keys))
    packed = torch.from_numpy(np.sort(packed.numpy()))
    return packed >> bits, packed & (2**bits - 1)


def _neighbours(vertices: Tensor, stride: Tensor) -> Tensor:
    """(d + 1, K + 1, 3) int32 triples of each of the K vertices and its neighbours along each axis.

    `vertices` are the sorted keys. The next vertex along an axis is d higher there and 1 lower in all other axes:
    with remainder k > 0 one step up in u and one down in k, with k = 0 one step down in all other u and k = d.
    """
    axes, count = len(stride), len(vertices)
    indices = torch.arange(count, dtype=torch.int32, device=vertices.device)
    triples = torch.full((axes, count + 1, 3), count, dtype=torch.int32, device=vertices.device)
    triples[:, :count, 0] = indices
    wrap = (vertices % axes == 0) * (axes - int(stride.sum()))
    for axis in range(axes):
        wanted = vertices + wrap + (int(stride[axis]) - 1)
        place = torch.searchsorted(vertices, wanted).clamp_(max=count - 1)
        following = torch.where(vertices[place] == wanted, place, count)
        triples[axis, :count, 1] = following
        triples[axis, :, 2].index_copy_(0, following, indices)
        triples[axis, count] = count
    return triples
