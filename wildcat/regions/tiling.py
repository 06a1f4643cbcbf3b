"""Images larger than a network sees well: overlapping tiles that cover one, and one map made of those of the tiles.

A tile is looked at like an image of its own, so a thing of 100 pixels in a photograph of 12,000 is as large to the
network as it would be in a snapshot. Near its edge a tile knows less of what surrounds it: where tiles overlap their
maps are averaged with weights that fall towards the edge, and no seam is left.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wildcat.errors import ConfigError

OVERLAP = 0.25
"""The least part of a tile's side that it shares with its neighbour."""

SMALLEST_TILE = 32
"""Pixels: below, a tile shows no more than a few cells of any network's map."""

LEAST_WEIGHT = 1e-3
"""Of the outermost cell of a tile, where the weights have fallen to their lowest."""

Rectangle = tuple[int, int, int, int]
"""left, top, right, bottom in pixels; right and bottom exclusive."""


@dataclass(frozen=True)
class Tiles:
    """Overlapping tiles of one size that cover an image, evenly spread.

    Attributes:
        image: (width, height) in pixels.
        tile: (width, height) of each tile.
        lefts, tops: where the columns and the rows of tiles begin, ascending; together they are the grid.
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
    """Refuse a side no tile can have.

    Raises:
        ConfigError: below `SMALLEST_TILE` pixels.
    """
    if side < SMALLEST_TILE:
        raise ConfigError(
            f"tile={side}: give a side of at least {SMALLEST_TILE} pixels.",
            "Two to four times the input size is usual, such as 1024.",
        )


def tile_image(width: int, height: int, side: int, overlap: float = OVERLAP) -> Tiles:
    """The fewest tiles of `side` pixels that cover an image and overlap by at least `overlap` of their side.

    An image that is narrower or lower than a tile has tiles that are as narrow or low as itself.

    Raises:
        ConfigError: a side too small, or an overlap outside [0, 1).

    >>> tiles = tile_image(2000, 800, side=1000)
    >>> len(tiles), tiles.tile, tiles.lefts, tiles.tops
    (3, (1000, 800), (0, 500, 1000), (0,))
    """
    check_tile(side)
    if not 0 <= overlap < 1:
        raise ConfigError(f"overlap={overlap}: give a part of the tile's side in [0, 1).", "0.25 is usual.")
    return Tiles(
        (width, height),
        (min(side, width), min(side, height)),
        _starts(width, min(side, width), overlap),
        _starts(height, min(side, height), overlap),
    )


def _starts(length: int, side: int, overlap: float) -> tuple[int, ...]:
    steps = int(np.ceil((length - side) / max(1.0, side * (1 - overlap))))
    return tuple(round(float(x)) for x in np.linspace(0, length - side, steps + 1))


class MapCanvas:
    """The map of a whole image, filled with the maps of its tiles one after the other.

    Its cells are as large as those of the tiles. Each takes, at its own centre, the value of every tile that covers it,
    bilinear between the centres of the tile's cells, weighted by the distance to the tile's edge.
    """

    def __init__(self, tiles: Tiles) -> None:
        self.tiles = tiles
        self._sum: NDArray[np.float32] | None = None
        self._weight: NDArray[np.float32] | None = None

    def add(self, tile: Rectangle, maps: NDArray[np.float32]) -> None:
        """Fill in a tile's maps (..., h, w); all tiles have maps of one shape."""
        rows, columns = maps.shape[-2:]
        if self._sum is None or self._weight is None:
            # ceil: a cell of the canvas is never larger than one of a tile
            size = [-(-n * p // t) for n, p, t in zip((columns, rows), self.tiles.image, self.tiles.tile, strict=True)]
            self._sum = np.zeros((*maps.shape[:-2], size[1], size[0]), dtype=np.float32)
            self._weight = np.zeros((size[1], size[0]), dtype=np.float32)
        height, width = self._weight.shape
        across, x_weights, x_sampler = _sampler(width, self.tiles.image[0], tile[0], tile[2], columns)
        down, y_weights, y_sampler = _sampler(height, self.tiles.image[1], tile[1], tile[3], rows)
        self._sum[..., down, across] += y_sampler @ maps @ x_sampler.T  # (.., h, w) -> (.., cells down, cells across)
        self._weight[down, across] += np.outer(y_weights, x_weights)

    def maps(self) -> NDArray[np.float32]:
        """(..., rows, columns) of the whole image, once every tile is in."""
        if self._sum is None or self._weight is None:
            raise ConfigError("no tile has been filled in.", "Add the maps of every tile first.")
        return np.asarray(self._sum / self._weight, dtype=np.float32)


def _sampler(
    cells: int, length: int, start: int, stop: int, tile_cells: int
) -> tuple[slice, NDArray[np.float32], NDArray[np.float32]]:
    """Along one axis: which cells of the canvas a tile covers, their weights (n,), and (n, tile_cells) to sample them.

    The sampler is linear interpolation between the centres of the tile's cells, times the weight.
    """
    centres = (np.arange(cells) + 0.5) * (length / cells)
    first, last = np.searchsorted(centres, [start, stop])
    centres = centres[first:last]
    place = np.clip((centres - start) * (tile_cells / (stop - start)) - 0.5, 0, tile_cells - 1)
    left = np.minimum(place.astype(np.int64), max(0, tile_cells - 2))
    # From the outermost centres of the tile's cells: beyond them its map is only held, not known.
    to_edge = np.minimum(centres - start, stop - centres) / (stop - start) - 0.5 / tile_cells
    weights = np.clip(to_edge / OVERLAP, LEAST_WEIGHT, 1).astype(np.float32)
    sampler = np.zeros((len(centres), tile_cells), dtype=np.float32)
    index = np.arange(len(centres))
    sampler[index, np.minimum(left + 1, tile_cells - 1)] = place - left
    sampler[index, left] += 1 - (place - left)
    return slice(first, last), weights, sampler * weights[:, None]
