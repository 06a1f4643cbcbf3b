"""Large images: overlapping tiles that cover an image, and the map of the image assembled from the maps of its tiles.

The network processes each tile like an image of its own, so that small objects in large photographs keep their size.
Near its edge a tile lacks context: where tiles overlap, their maps are averaged with weights that fall towards the
edge, so that no seams appear.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wildcat.errors import ConfigError

OVERLAP = 0.25  # minimum overlap of neighbouring tiles, as a fraction of a tile's side
SMALLEST_TILE = 32  # pixels; smaller tiles give only a few cells in the map of any network
LEAST_WEIGHT = 1e-3  # weight of a tile's outermost cells

Rectangle = tuple[int, int, int, int]  # left, top, right, bottom in pixels; right and bottom exclusive


@dataclass(frozen=True)
class Tiles:
    """Overlapping tiles of one size that cover an image, evenly spaced.

    Attributes:
        image: (width, height) in pixels.
        tile: (width, height) of each tile.
        lefts, tops: left edges of the columns and top edges of the rows of tiles, ascending.
    """

    image: tuple[int, int]
    tile: tuple[int, int]
    lefts: tuple[int, ...]
    tops: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.lefts) * len(self.tops)

    def __iter__(self) -> Iterator[Rectangle]:
        """The tiles, row by row."""
        for top in self.tops:
            for left in self.lefts:
                yield left, top, left + self.tile[0], top + self.tile[1]


def check_tile(side: int) -> None:
    """Raise a ConfigError if tiles of this side are too small."""
    if side < SMALLEST_TILE:
        raise ConfigError(
            f"tile={side}: give a side of at least {SMALLEST_TILE} pixels.",
            "Two to four times the input size is usual, such as 1024.",
        )


def tile_image(width: int, height: int, side: int) -> Tiles:
    """The fewest tiles of `side` pixels that cover an image and overlap by at least a quarter of their side.

    If the image is narrower or lower than `side`, so are its tiles.

    Raises:
        ConfigError: `side` is too small.

    >>> tiles = tile_image(2000, 800, side=1000)
    >>> len(tiles), tiles.tile, tiles.lefts, tiles.tops
    (3, (1000, 800), (0, 500, 1000), (0,))
    """
    check_tile(side)
    tile = (min(side, width), min(side, height))
    return Tiles((width, height), tile, _starts(width, tile[0]), _starts(height, tile[1]))


def _starts(length: int, side: int) -> tuple[int, ...]:
    steps = int(np.ceil((length - side) / max(1.0, side * (1 - OVERLAP))))
    return tuple(round(float(x)) for x in np.linspace(0, length - side, steps + 1))


class MapCanvas:
    """The map of a whole image, accumulated from the maps of its tiles.

    Its cells are at most as large as those of the tiles. Each cell is the weighted mean of all tiles that cover it,
    sampled at its centre: bilinear between the centres of a tile's cells, weighted by the distance to the tile's edge.
    """

    def __init__(self, tiles: Tiles) -> None:
        self.tiles = tiles
        self._sum: NDArray[np.float32] | None = None
        self._weight: NDArray[np.float32] | None = None

    def add(self, tile: Rectangle, maps: NDArray[np.float32]) -> None:
        """Add the maps (..., h, w) of a tile; all tiles have maps of the same shape."""
        rows, columns = maps.shape[-2:]
        if self._sum is None or self._weight is None:
            image, side = self.tiles.image, self.tiles.tile
            width, height = -(-columns * image[0] // side[0]), -(-rows * image[1] // side[1])  # rounded up
            self._sum = np.zeros((*maps.shape[:-2], height, width), dtype=np.float32)
            self._weight = np.zeros((height, width), dtype=np.float32)
        height, width = self._weight.shape
        across, x_weights, x_sampler = _sampler(width, self.tiles.image[0], tile[0], tile[2], columns)
        down, y_weights, y_sampler = _sampler(height, self.tiles.image[1], tile[1], tile[3], rows)
        self._sum[..., down, across] += y_sampler @ maps @ x_sampler.T  # (..., h, w) -> (..., covered rows, columns)
        self._weight[down, across] += np.outer(y_weights, x_weights)

    def maps(self) -> NDArray[np.float32]:
        """(..., rows, columns) of the whole image, after `add` was called for every tile."""
        if self._sum is None or self._weight is None:
            raise ConfigError("the canvas has no tile yet.", "Add the maps of every tile first.")
        return np.asarray(self._sum / self._weight, dtype=np.float32)


def _sampler(
    cells: int, length: int, start: int, stop: int, tile_cells: int
) -> tuple[slice, NDArray[np.float32], NDArray[np.float32]]:
    """Along one axis: the n canvas cells that a tile covers, their weights (n,), and a matrix (n, tile_cells).

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
