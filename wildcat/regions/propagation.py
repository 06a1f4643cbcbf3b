"""Random walk on class maps: spread the evidence of each region over the image, up to the boundaries of objects.

The second half of IRN (Ahn, Cho and Kwak, CVPR 2019). Pixels are nodes; near pixels are joined by an affinity that is
low where a boundary lies between them; class maps are averaged along these joints many times. The boundaries come from
`wildcat.nn.boundaries`. The transition matrix is never built: one step adds shifted copies of the maps, one for each of
the 68 neighbours of a pixel.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from wildcat.errors import ConfigError, ShapeError
from wildcat.regions.crf import Array, as_tensor, like

RADIUS = 5  # pixels nearer to each other than this are joined, as in the paper
POWER = 10.0  # beta of the paper: exponent of the affinities; a higher one respects weaker boundaries
STEPS = 64  # the paper's 2^8 are for cells of 4 pixels; on those of `wildcat refine`, of 8 pixels, 64 go as far

SMALLEST = 1e-12  # of the values after a walk: pixels inside walls are reached by none

Window = tuple[slice, slice]  # rows and columns


@cache
def neighbours(radius: int = RADIUS) -> tuple[tuple[int, int], ...]:
    """(dy, dx) of the neighbours nearer than `radius`, one of each opposite pair: 34 for a radius of 5."""
    columns = range(1 - radius, radius)
    pairs = [(y, x) for y in range(radius) for x in columns if y > 0 or x > 0]
    return tuple((y, x) for y, x in pairs if y * y + x * x < radius * radius)


@cache
def line(dy: int, dx: int) -> tuple[tuple[int, int], ...]:
    """(y, x) of the pixels on the line from (0, 0) to (dy, dx), both included: those less than a pixel away from it."""
    rows, columns = range(min(0, dy), max(0, dy) + 1), range(min(0, dx), max(0, dx) + 1)
    return tuple((y, x) for y in rows for x in columns if (dy * x - dx * y) ** 2 < dy * dy + dx * dx)


def pair_windows(dy: int, dx: int, height: int, width: int) -> tuple[Window, Window]:
    """The pixels of an image that have a neighbour at (dy, dx), and these neighbours, in the same order."""
    rows, columns, left = max(0, height - dy), max(0, width - abs(dx)), max(0, -dx)
    near = slice(0, rows), slice(left, left + columns)
    return near, (slice(dy, dy + rows), slice(left + dx, left + dx + columns))


def affinities(boundaries: Tensor) -> list[Tensor]:
    """The affinity of each pixel to its neighbours: 1 - the highest boundary on the line between them.

    Args:
        boundaries: (B, H, W) probabilities of a boundary.

    Returns:
        for each of `neighbours` (B, H - dy, W - |dx|), of the pixels that have it, see `pair_windows`.
    """
    height, width = boundaries.shape[-2:]
    found = []
    for dy, dx in neighbours():
        (rows, columns), _ = pair_windows(dy, dx, height, width)
        highest = boundaries[:, rows, columns]
        for y, x in line(dy, dx):
            if (y, x) != (0, 0):
                window = boundaries[:, rows.start + y : rows.stop + y, columns.start + x : columns.stop + x]
                highest = torch.maximum(highest, window)
        found.append(1 - highest)
    return found


def random_walk(maps: Array, boundaries: Tensor | NDArray[Any], power: float = POWER, steps: int = STEPS) -> Array:
    """Class maps after a random walk that rarely crosses boundaries: T^t (M * (1 - b)) of the paper.

    T has the affinities to the power `power`, divided so that each step replaces a pixel by a weighted mean of itself,
    with affinity 1, and its neighbours. So values stay within 0 and the highest of `maps`.

    Args:
        maps: (C, H, W), at least 0.
        boundaries: (H, W) probabilities of a boundary.
        power: exponent of the affinities, above 0.
        steps: number of times T is applied.

    Returns:
        (C, H, W) float32.

    Raises:
        ShapeError: the sizes differ.
        ConfigError: boundaries that are not in [0, 1].

    >>> walls = torch.tensor([[0.0, 0.0, 1.0, 0.0, 0.0]])
    >>> random_walk(torch.tensor([[[1.0, 0.0, 0.0, 0.0, 0.0]]]), walls).round(decimals=2).tolist()
    [[[0.5, 0.5, 0.0, 0.0, 0.0]]]
    """
    values, walls = as_tensor(maps).float(), as_tensor(boundaries).float()
    if values.ndim != 3 or values.shape[1:] != walls.shape:
        raise ShapeError(
            f"maps are {tuple(values.shape)} and boundaries {tuple(walls.shape)}, not (C, H, W) and (H, W).",
            "Resize the maps to the boundaries first (regions.upsample_maps).",
        )
    if not bool(((walls >= 0) & (walls <= 1)).all()):  # NaN is not
        raise ConfigError("boundaries are not all in [0, 1].", "Give probabilities.")
    height, width = walls.shape
    weights = [affinity[0] ** power for affinity in affinities(walls.to(values.device)[None])]
    windows = [pair_windows(dy, dx, height, width) for dy, dx in neighbours()]
    total = torch.ones_like(walls)
    for weight, (near, far) in zip(weights, windows, strict=True):
        total[near] += weight
        total[far] += weight
    values = values * (1 - walls)
    for _ in range(steps):
        summed = values.clone()
        for weight, ((near_y, near_x), (far_y, far_x)) in zip(weights, windows, strict=True):
            summed[:, near_y, near_x].addcmul_(weight, values[:, far_y, far_x])
            summed[:, far_y, far_x].addcmul_(weight, values[:, near_y, near_x])
        values = summed.div_(total)
    return like(values, maps)


def propagate(probabilities: Array, boundaries: Tensor | NDArray[Any]) -> Array:
    """Probabilities of the background and of classes after a random walk of all of them up to the boundaries.

    Args:
        probabilities: (C, H, W) that sum to 1 at each pixel.
        boundaries: (H, W) probabilities of a boundary.

    Returns:
        (C, H, W) float32 that sum to 1 at each pixel.
    """
    walked = as_tensor(random_walk(probabilities, boundaries)).clamp_min(SMALLEST)
    return like(walked / walked.sum(dim=0), probabilities)
