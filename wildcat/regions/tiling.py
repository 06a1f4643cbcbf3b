"""Large images: overlapping tiles that cover an image, and the map of the image assembled from the maps of its tiles.

The network processes each tile like an image of its own, so that small objects in large photographs keep their size.
Near its edge a tile lacks context: where tiles overlap, their maps are averaged with weights that fall towards the
edge, so that no seams appear.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from wildcat.errors import ConfigError

OVERLAP = 0.25  # minimum overlap of neighbouring tiles, as a fraction of a tile's side
SMALLEST_TILE = 32  # pixels; smaller tiles give only a few cells in the map of any network
LEAST_WEIGHT = 1e-3  # weight of a tile's outermost cells

Rectangle = tuple[int, int, int, int]  # left, top, right, bottom in pixels; right and bottom exclusive


def check_tile(side: int) -> None:
    """Raise a ConfigError if tiles of this side are too small."""
    if side < SMALLEST_TILE:
        raise ConfigError(
            f"tile={side}: give a side of at least {SMALLEST_TILE} pixels.",
            "Two to four times the input size is usual, such as 1024.",
        )


def tile_image(width: int, height: int, side: int) -> list[Rectangle]:
    """The fewest tiles of one size that cover an image and overlap by at least a quarter of their side, row by row.

    Tiles have sides of `side` pixels; if the image is narrower or lower, so are they.

    >>> tile_image(2000, 800, side=1000)
    [(0, 0, 1000, 800), (500, 0, 1500, 800), (1000, 0, 2000, 800)]
    """
    across, down = min(side, width), min(side, height)
    return [(left, top, left + across, top + down) for top in _starts(height, down) for left in _starts(width, across)]


def _starts(length: int, side: int) -> tuple[int, ...]:
    steps = int(np.ceil((length - side) / max(1.0, side * (1 - OVERLAP))))
    return tuple(round(float(x)) for x in np.linspace(0, length - side, steps + 1))


def assemble_maps(
    size: tuple[int, int], tiles: Sequence[Rectangle], maps: Sequence[NDArray[np.float32]]
) -> NDArray[np.float32]:
    """The maps (..., rows, columns) of an image of `size` (width, height), from the maps (..., h, w) of its tiles.

    Its cells are at most as large as those of the tiles. Each cell is the weighted mean of all tiles that cover it,
    sampled at its centre: bilinear between the centres of a tile's cells, weighted by the distance to the tile's edge.
    """
    rows, columns = maps[0].shape[-2:]
    if rows * columns == 0:  # of a method without class maps
        return maps[0]
    left, top, right, bottom = tiles[0]
    width, height = -(-columns * size[0] // (right - left)), -(-rows * size[1] // (bottom - top))  # rounded up
    total = np.zeros((*maps[0].shape[:-2], height, width), dtype=np.float32)
    weight = np.zeros((height, width), dtype=np.float32)
    for (left, top, right, bottom), tile_maps in zip(tiles, maps, strict=True):
        across, x_weights, x_sampler = _sampler(width, size[0], left, right, columns)
        down, y_weights, y_sampler = _sampler(height, size[1], top, bottom, rows)
        total[..., down, across] += y_sampler @ tile_maps @ x_sampler.T  # (..., h, w) -> (..., covered rows, columns)
        weight[down, across] += np.outer(y_weights, x_weights)
    return np.asarray(total / weight, dtype=np.float32)


def _sampler(
    cells: int, length: int, start: int, stop: int, tile_cells: int
) -> tuple[slice, NDArray[np.float32], NDArray[np.float32]]:
    """Along one axis: the n cells that a tile covers, their weights (n,), and a matrix (n, tile_cells).

    The matrix interpolates linearly between the centres of the tile's cells and multiplies by the weights.
    """
    centres = (np.arange(cells) + 0.5) * (length / cells)
    first, last = np.searchsorted(centres, [start, stop])
    centres = centres[first:last]
    position = np.clip((centres - start) * (tile_cells / (stop - start)) - 0.5, 0, tile_cells - 1)
    left = np.minimum(position.astype(np.int64), max(0, tile_cells - 2))
    # Distance from the outermost cell centres of the tile; beyond them its map is constant.
    to_edge = np.minimum(centres - start, stop - centres) / (stop - start) - 0.5 / tile_cells
    weights = np.clip(to_edge / OVERLAP, LEAST_WEIGHT, 1).astype(np.float32)
    sampler = np.zeros((len(centres), tile_cells), dtype=np.float32)
    index = np.arange(len(centres))
    sampler[index, np.minimum(left + 1, tile_cells - 1)] = position - left
    sampler[index, left] += 1 - (position - left)
    return slice(first, last), weights, sampler * weights[:, None]
