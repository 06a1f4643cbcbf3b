"""Tiles cover an image; the map assembled from their maps equals the map of the whole image."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from wildcat.errors import ConfigError
from wildcat.regions.tiling import Rectangle, assemble_maps, check_tile, tile_image


@settings(deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(32, 900))
def test_every_pixel_is_covered_and_neighbours_overlap(width: int, height: int, side: int) -> None:
    tiles = tile_image(width, height, side)
    for axis, length in enumerate((width, height)):
        own, starts = min(side, length), sorted({tile[axis] for tile in tiles})
        assert {tile[axis + 2] - tile[axis] for tile in tiles} == {own}
        assert starts[0] == 0 and starts[-1] + own == length
        assert all(a + own - b >= int(0.25 * own) for a, b in pairwise(starts))
        fewest = -(-(length - own) // max(1, own * 0.75)) + 1
        assert len(starts) == fewest
    assert len(tiles) == len(set(tiles))


def maps_of_a_plane(tile: Rectangle, rows: int, columns: int) -> NDArray[np.float32]:
    """The maps of a network that computes 2 x + 3 y at each position, and twice that for a second class."""
    xs = tile[0] + (np.arange(columns) + 0.5) * (tile[2] - tile[0]) / columns
    ys = tile[1] + (np.arange(rows) + 0.5) * (tile[3] - tile[1]) / rows
    plane = (2 * xs[None] + 3 * ys[:, None]).astype(np.float32)
    return np.stack([plane, 2 * plane])


@pytest.mark.parametrize(("size", "side"), [((1000, 700), 300), ((640, 200), 256), ((333, 1001), 100)])
def test_a_plane_has_no_seams(size: tuple[int, int], side: int) -> None:
    """Linear interpolation and averaging preserve a plane, up to half a cell from the image's edge."""
    tiles = tile_image(*size, side)
    plane, double = assemble_maps(size, tiles, [maps_of_a_plane(tile, 9, 10) for tile in tiles])
    height, width = plane.shape
    assert size[0] / width <= tiles[0][2] / 10 and size[1] / height <= tiles[0][3] / 9  # no coarser than a tile's
    xs, ys = (np.arange(width) + 0.5) * size[0] / width, (np.arange(height) + 0.5) * size[1] / height
    expected = 2 * xs[None] + 3 * ys[:, None]
    np.testing.assert_allclose(plane[1:-1, 1:-1], expected[1:-1, 1:-1], rtol=1e-4)
    np.testing.assert_allclose(double, 2 * plane, rtol=1e-6)
    assert (np.diff(plane, axis=0) >= 0).all() and (np.diff(plane, axis=1) >= 0).all()


def test_an_image_of_one_tile_keeps_its_map() -> None:
    tiles, maps = tile_image(90, 60, 100), np.random.default_rng(0).normal(size=(4, 2, 6, 9)).astype(np.float32)
    np.testing.assert_allclose(assemble_maps((90, 60), tiles, [maps]), maps, atol=1e-6)


def test_the_nearer_tile_has_more_weight() -> None:
    tiles = tile_image(175, 100, 100)
    assert tiles == [(0, 0, 100, 100), (75, 0, 175, 100)]
    maps = [np.full((1, 10, 10), value, np.float32) for value in (0, 1)]
    row = assemble_maps((175, 100), tiles, maps)[0, 5]
    shared = (np.arange(len(row)) + 0.5) * 175 / len(row)
    assert (row[shared < 75] == 0).all() and np.allclose(row[shared > 100], 1)
    between = row[(shared > 75) & (shared < 100)]
    assert len(between) and (np.diff(between) > 0).all()


def test_wrong_settings() -> None:
    with pytest.raises(ConfigError, match="tile=31"):
        check_tile(31)
