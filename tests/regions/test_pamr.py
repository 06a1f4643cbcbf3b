"""Pixel-adaptive mask refinement against a loop over pixels and neighbours."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from wildcat.errors import ConfigError, ShapeError
from wildcat.regions import pamr


def loop(image: NDArray[np.uint8], probabilities: NDArray[np.float64], iterations: int) -> NDArray[np.float64]:
    """The definition, one pixel after the other; coordinates beyond the edge are clamped to it."""
    height, width = probabilities.shape[1:]
    colors = image.astype(np.float64)
    offsets = [(d * y, d * x) for d in (1, 2, 4, 8, 12, 24) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]

    def clamped(y: int, x: int) -> tuple[int, int]:
        return min(max(y, 0), height - 1), min(max(x, 0), width - 1)

    values = probabilities / probabilities.sum(axis=0)
    for _ in range(iterations):
        new = np.zeros_like(values)
        for y in range(height):
            for x in range(width):
                places = [clamped(y + dy, x + dx) for dy, dx in offsets]
                near = np.asarray([colors[place] for place in places])
                sigma = np.concatenate([near, np.tile(colors[y, x], (6, 1))]).std(axis=0, ddof=1)
                likeness = -(np.abs(near - colors[y, x]) / (0.1 * sigma + 1e-8)).mean(axis=1)
                weights = np.exp(likeness - likeness.max())
                weights /= weights.sum()
                new[:, y, x] = sum(w * values[:, p[0], p[1]] for w, p in zip(weights, places, strict=True))
        values = new
    return values


def test_it_is_the_loop() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (9, 13, 3), dtype=np.uint8)
    probabilities = rng.random((3, 9, 13))
    for iterations in (0, 1, 3):
        found = pamr(image, probabilities, iterations)
        np.testing.assert_allclose(found, loop(image, probabilities, iterations), rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(found.sum(axis=0), 1, rtol=1e-5)


def test_an_image_of_one_color_is_averaged() -> None:
    rng = np.random.default_rng(1)
    image, probabilities = np.full((8, 8, 3), 90, np.uint8), rng.random((2, 8, 8))
    found = pamr(image, torch.from_numpy(probabilities))
    assert isinstance(found, torch.Tensor) and bool(found.isfinite().all())
    assert float(found.std()) < probabilities.std()


def test_wrong_input_is_one_sentence() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(ConfigError, match="iterations=-1"):
        pamr(image, np.ones((1, 4, 4)), -1)
    with pytest.raises(ShapeError, match="4 x 5 and the image is 4 x 4"):
        pamr(image, np.ones((1, 4, 5)))
    with pytest.raises(ConfigError, match="below 0"):
        pamr(image, -np.ones((1, 4, 4)))
