"""Gaussian filtering in many dimensions on the permutohedral lattice (Adams, Baek, Davis, Eurographics 2010).

The lattice divides the d-dimensional space into simplices. A filter splats the values of the points onto the corners
of their simplices, blurs along each of the d + 1 axes of the lattice, and slices the result at the points. Each step
is a weighted sum of rows of a table: `torch.nn.functional.embedding_bag`, on CPU and GPU, for all channels at once and
in a fixed order. A lattice is built once and filters any number of times.

The permutohedral lattice is the integer lattice Z^d after a linear map (the basis of A_d* of Conway and Sloane), and
its simplices are those of Kuhn: from the cell of a point the path to the corner (1, ..., 1) steps along the axes in
the order of the fractions of the point, largest first. The d + 1 axes of the blur are the diagonal of Z^d and its axes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

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


def build_lattice(features: Tensor) -> Lattice:
    """The lattice around (d, N) float32 features whose kernel is a Gaussian of standard deviation 1.

    Raises:
        ConfigError: the features span too many cells: their keys do not fit an int64, or float32 cannot place them.
    """
    d, count = features.shape
    cell, axes, weights = _enclosing_simplices(features)
    # A vertex is named by its d coordinates, digits of mixed radix in one int64: exact, no collisions. The range of
    # each coordinate has one cell more on both sides for the neighbours.
    low, high = cell.amin(dim=1) - 1, cell.amax(dim=1) + 2
    strides, size = [], 1
    for extent in (high - low + 1).tolist():
        strides.append(size)
        size *= int(extent)
    if size >= 2**63 or max(-int(low.min()), int(high.max())) > 2**20:  # beyond it float32 loses the simplex
        raise ConfigError(
            "the Gaussian is too narrow for a lattice over features of this range.",
            "Give larger sigmas; appearance_sigma_rgb=1 separates all levels.",
        )
    stride = torch.tensor(strides, device=features.device)
    keys = torch.empty(d + 1, count, dtype=torch.int64, device=features.device)
    keys[0] = ((cell - low[:, None]).long() * stride[:, None]).sum(dim=0)
    torch.index_select(stride, 0, axes.view(-1), out=keys[1:].view(-1))
    for k in range(d):
        keys[k + 1] += keys[k]

    ordered, order = _sort(keys.view(-1), size)
    first = torch.zeros_like(ordered, dtype=torch.bool)
    torch.ne(ordered[1:], ordered[:-1], out=first[1:])
    ranks = first.cumsum(0, dtype=torch.int32)
    counts = torch.bincount(ranks)
    starts = functional.pad(counts.cumsum(0), (1, 1))
    starts[-1] = len(ordered)
    vertices = torch.empty_like(ranks).scatter_(0, order, ranks)
    return Lattice(
        pixels=torch.arange(count, dtype=torch.int32, device=order.device).repeat(d + 1).index_select(0, order),
        pixel_weights=weights.view(-1).index_select(0, order),
        starts=starts.int(),
        neighbours=_neighbours(ordered.index_select(0, starts[:-2]), [sum(strides), *strides]),
        vertices=vertices.view(d + 1, count).t().contiguous(),
        # 1 / (1 + 2^-d) corrects the gain of splat, blur and slice (Adams et al.'s code)
        vertex_weights=weights.t().contiguous().div_(1 + 2.0**-d),
    )


def _enclosing_simplices(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The simplex around each of N points: its lowest corner, and the path from there to its other corners.

    Blurring by (1/2, 1, 1/2) along the diagonal of Z^d and its axes, and interpolating in the simplices twice, has the
    covariance 2/3 (I + 1) in Z^d. Its Cholesky factor maps features with a Gaussian of standard deviation 1 to Z^d.

    Returns: (d, N) the lowest corner, floats; (d, N) int32 axes along which the path steps; and (d + 1, N) the
    barycentric weights of the corners.
    """
    d, count = features.shape
    places, running = torch.empty_like(features), features.new_zeros(count)
    for axis, feature in enumerate(features):
        below = math.sqrt(2 / 3 / ((axis + 1) * (axis + 2)))  # the factor's entries below the diagonal are all equal
        torch.add(running, feature, alpha=(axis + 2) * below, out=places[axis])
        running.add_(feature, alpha=below)
    cell = places.floor()
    # Sort the fractions of each point, largest first, together with their axes: fractions + 1 lie in [1, 2], so their
    # bits are ordered as they are, and the lowest bits, which hold the axis, are below the precision of the places.
    bits = (d - 1).bit_length()
    tagged = (places.sub_(cell) + 1).view(torch.int32) >> bits << bits
    rows = [row | axis for axis, row in enumerate(tagged)]
    for turn in range(d):  # odd-even transposition sort: torch.sort along the first axis takes 10 times as long
        for i in range(turn % 2, d - 1, 2):
            rows[i], rows[i + 1] = torch.maximum(rows[i], rows[i + 1]), torch.minimum(rows[i], rows[i + 1])
    tagged = torch.stack(rows)
    levels = tagged.view(torch.float32)
    weights = features.new_empty(d + 1, count)
    torch.sub(2, levels[0], out=weights[0])
    torch.sub(levels[:-1], levels[1:], out=weights[1:-1])
    torch.sub(levels[-1], 1, out=weights[-1])
    return cell, tagged & (2**bits - 1), weights


def _sort(keys: Tensor, bound: int) -> tuple[Tensor, Tensor]:
    """The keys, all in [0, bound), in ascending order, and their original indices; stable.

    On the CPU, sorting key and index packed into one int64 with NumPy is about 20 times as fast as `torch.sort`.
    """
    bits = len(keys).bit_length()
    if keys.device.type != "cpu" or bound >= 2 ** (63 - bits):
        return torch.sort(keys, stable=True)
    packed = (keys << bits).add_(torch.arange(len(keys)))
    packed.numpy().sort()
    return packed >> bits, packed & (2**bits - 1)


def _neighbours(vertices: Tensor, steps: list[int]) -> Tensor:
    """(d + 1, K + 1, 3) int32 triples of each of the K vertices and its neighbours along each axis.

    `vertices` are the sorted keys, `steps` their differences from a vertex to the next along each axis.
    """
    count = len(vertices)
    indices = torch.arange(count, dtype=torch.int32, device=vertices.device)
    triples = torch.full((len(steps), count + 1, 3), count, dtype=torch.int32, device=vertices.device)
    triples[:, :count, 0] = indices
    for triple, step in zip(triples, steps, strict=True):
        wanted = vertices + step
        place = torch.searchsorted(vertices, wanted, out_int32=True).clamp_(max=count - 1)
        following = torch.where(vertices.index_select(0, place) == wanted, place, count)
        triple[:count, 1] = following
        triple[:, 2].scatter_(0, following.long(), indices)
        triple[count] = count
    return triples
