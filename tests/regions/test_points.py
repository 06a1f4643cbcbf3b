"""Points against blocks painted on images of different shapes."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from wildcat.errors import ConfigError, ShapeError
from wildcat.regions.points import peak_points


def painted(size: tuple[int, int], centre: tuple[float, float], half: int = 12) -> NDArray[np.float32]:
    """An image of `size` (height, width), bright in a block around `centre` (x, y)."""
    image = np.zeros(size, dtype=np.float32)
    x, y = (int(v) for v in centre)
    image[max(y - half, 0) : y + half, max(x - half, 0) : x + half] = 1
    return image


@pytest.mark.parametrize("size", [(375, 500), (500, 333), (120, 900), (448, 448)])
@pytest.mark.parametrize("grid", [(14, 14), (7, 7), (9, 13)])
def test_points_lie_on_the_painted_block(size: tuple[int, int], grid: tuple[int, int]) -> None:
    """Pillow's BOX filter averages over the area of each cell: an independent map from image to cells."""
    height, width = size
    cell_x, cell_y = width / grid[1], height / grid[0]
    rng = np.random.default_rng(0)
    for _ in range(20):
        centre = (rng.uniform(13, width - 13), rng.uniform(13, height - 13))
        pooled = Image.fromarray(painted(size, centre)).resize(grid[::-1], Image.Resampling.BOX)
        x, y = peak_points(np.asarray(pooled), size)
        # at most half a cell, and half the block where it covers several cells alike
        assert abs(x - int(centre[0])) <= cell_x / 2 + max(0, 12 - cell_x / 2) + 1e-6
        assert abs(y - int(centre[1])) <= cell_y / 2 + max(0, 12 - cell_y / 2) + 1e-6


def test_no_bias_on_average() -> None:
    """The mean error over many points is 0; a shift by half a cell (14 and 18 pixels here) would show."""
    size, grid = (400, 500), (14, 14)
    rng = np.random.default_rng(1)
    errors = []
    for _ in range(600):
        x, y = rng.uniform(0, 500), rng.uniform(0, 400)
        maps = np.zeros(grid)
        maps[int(y // (400 / 14)), int(x // (500 / 14))] = 1  # the cell that contains the point
        errors.append(peak_points(maps, size) - (x, y))
    assert np.abs(np.mean(errors, axis=0)).max() < 2
    assert np.abs(errors).max(axis=0) == pytest.approx((500 / 28, 400 / 28), rel=0.05)


def test_corner_cells_by_hand() -> None:
    maps = np.zeros((4, 2, 5))
    for cell, (row, column) in enumerate([(0, 0), (0, 4), (1, 0), (1, 4)]):
        maps[cell, row, column] = 1
    assert peak_points(maps, (60, 200)).tolist() == [[20, 15], [180, 15], [20, 45], [180, 45]]


def test_leading_dimensions_and_ties_take_the_first_cell() -> None:
    maps = np.random.default_rng(0).integers(0, 3, (2, 3, 4, 6, 5)).astype(np.float32)
    points = peak_points(maps, (90, 31))
    assert points.shape == (2, 3, 4, 2)
    for point, cells in zip(points.reshape(-1, 2), maps.reshape(-1, 30).tolist(), strict=True):
        first = cells.index(max(cells))
        assert tuple(point) == pytest.approx(((first % 5 + 0.5) * 31 / 5, (first // 5 + 0.5) * 90 / 6))


def test_half_precision_maps_give_exact_points() -> None:
    maps = np.zeros((14, 14), dtype=np.float16)
    maps[13, 13] = 1
    assert peak_points(maps, (4000, 6000)).tolist() == pytest.approx([13.5 * 6000 / 14, 13.5 * 4000 / 14], rel=1e-6)


@pytest.mark.parametrize(
    ("maps", "size", "error", "message"),
    [
        (np.zeros(5), (4, 4), ShapeError, "h, w"),
        (np.zeros((3, 0)), (4, 4), ShapeError, "at least one cell"),
        (np.full((3, 3), np.nan), (4, 4), ConfigError, "NaN"),
    ],
)
def test_errors_name_the_value(maps, size, error: type[Exception], message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=message):
        peak_points(maps, size)
