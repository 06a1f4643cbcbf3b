"""The random walk against a dense transition matrix, built pair by pair as the paper states it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from wildcat.errors import ConfigError, ShapeError
from wildcat.regions.propagation import affinities, line, neighbours, pair_windows, random_walk


def affinity(boundaries: NDArray[np.float64], a: tuple[int, int], b: tuple[int, int]) -> float:
    """1 - the highest boundary among the pixels whose distance from the segment's line is below 1, inside its box."""
    (ay, ax), (by, bx) = a, b
    highest = 0.0
    for y in range(min(ay, by), max(ay, by) + 1):
        for x in range(min(ax, bx), max(ax, bx) + 1):
            area = (by - ay) * (x - ax) - (bx - ax) * (y - ay)
            if area**2 / ((by - ay) ** 2 + (bx - ax) ** 2) < 1:
                highest = max(highest, boundaries[y, x])
    return 1 - highest


def dense_walk(
    maps: NDArray[np.float64], boundaries: NDArray[np.float64], power: float, steps: int
) -> NDArray[np.float64]:
    """T^t (M * (1 - b)), with all pixels as rows and columns of a dense matrix."""
    height, width = boundaries.shape
    cells = [(y, x) for y in range(height) for x in range(width)]
    matrix = np.eye(len(cells))
    for i, a in enumerate(cells):
        for j, b in enumerate(cells):
            if i != j and (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2 < 25:
                matrix[i, j] = affinity(boundaries, a, b) ** power
    matrix /= matrix.sum(axis=0)  # columns sum to 1; the matrix of affinities is symmetric
    field = (maps * (1 - boundaries)).reshape(len(maps), -1)
    for _ in range(steps):
        field = field @ matrix
    return field.reshape(maps.shape)


@pytest.mark.parametrize(("height", "width"), [(7, 9), (3, 12), (1, 6), (2, 2)])
def test_walk_is_that_of_the_dense_matrix(height: int, width: int) -> None:
    rng = np.random.default_rng(height)
    maps, boundaries = rng.random((3, height, width)), rng.random((height, width)) ** 3
    for power, steps in ((10.0, 8), (2.0, 3), (1.0, 0)):
        found = random_walk(maps, boundaries, power, steps)
        assert isinstance(found, np.ndarray)
        np.testing.assert_allclose(found, dense_walk(maps, boundaries, power, steps), rtol=1e-4, atol=1e-6)


def test_neighbours_and_lines_are_those_of_the_paper() -> None:
    assert len(neighbours()) == 34 and (0, 5) not in neighbours() and (3, 4) not in neighbours()
    assert set(neighbours(2)) == {(0, 1), (1, -1), (1, 0), (1, 1)} and (2, -2) in neighbours(3)
    assert line(0, 3) == ((0, 0), (0, 1), (0, 2), (0, 3))
    assert set(line(2, -2)) == {(0, 0), (0, -1), (1, 0), (1, -1), (1, -2), (2, -1), (2, -2)}


def test_a_wall_is_not_crossed_and_equal_maps_stay_equal() -> None:
    boundaries = torch.zeros(20, 21)
    boundaries[:, 10] = 1
    maps = torch.zeros(2, 20, 21)
    maps[0, 3, 2] = 1.0
    maps[1] = 0.25
    spread = random_walk(maps, boundaries, steps=256)
    assert spread[0, :, 11:].max() == 0 and spread[0, :, :10].min() > 0.9 / 200 / 2
    assert float(spread[0, :, :10].std() / spread[0, :, :10].mean()) < 0.2, "2^8 steps even out half of the image"
    torch.testing.assert_close(spread[1][boundaries == 0], torch.full((400,), 0.25))


def test_affinities_of_a_batch_have_a_gradient() -> None:
    boundaries = torch.rand(2, 6, 7, dtype=torch.float64, requires_grad=True)
    for (dy, dx), values in zip(neighbours(), affinities(boundaries), strict=True):
        near, far = pair_windows(dy, dx, 6, 7)
        assert values.shape == boundaries[:, near[0], near[1]].shape == boundaries[:, far[0], far[1]].shape
    sum(values.sum() for values in affinities(boundaries)).backward()  # type: ignore[union-attr]
    assert boundaries.grad is not None and bool((boundaries.grad <= 0).all()) and bool((boundaries.grad < 0).any())


def test_wrong_input_is_one_sentence() -> None:
    with pytest.raises(ShapeError, match=r"maps are \(1, 2, 3\) and boundaries \(3, 2\)"):
        random_walk(torch.zeros(1, 2, 3), torch.zeros(3, 2))
    for wrong in (1.5, -0.1, float("nan")):
        with pytest.raises(ConfigError, match=r"not all in \[0, 1\]"):
            random_walk(torch.zeros(1, 2, 2), torch.full((2, 2), wrong))
    assert random_walk(torch.zeros(0, 4, 4), torch.zeros(4, 4)).shape == (0, 4, 4)
