"""From class maps to points: the highest cell of each map, in pixels of the original image."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wildcat.errors import ConfigError, ShapeError


def peak_points(maps: NDArray[np.floating], size: tuple[float, float]) -> NDArray[np.float64]:
    """The (x, y) of the centre of each map's highest cell, in continuous pixels of the original image.

    The network sees the whole image resized to its input, so the cells of a map tile the image evenly: the cell in
    column j and row i of an (h, w) map has its centre at ((j + 0.5) * width / w, (i + 0.5) * height / h). Coordinates
    are continuous: the first pixel spans 0 to 1 and has its centre at 0.5. Of equal cells the first in row-major order
    wins.

    Args:
        maps: (..., h, w).
        size: (height, width) of the original image.

    Returns:
        (..., 2) of (x, y).

    Raises:
        ShapeError: the maps have no cells.
        ConfigError: NaN in the maps.

    >>> peak_points(np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 9.0]]), size=(100, 300)).tolist()
    [250.0, 75.0]
    """
    if maps.ndim < 2 or 0 in maps.shape[-2:]:
        raise ShapeError(f"maps of shape {maps.shape} are not (..., h, w) with at least one cell.", "Give class maps.")
    if np.isnan(maps).any():
        raise ConfigError("the maps contain NaN.", "Check the model: its outputs became NaN in training.")
    h, w = maps.shape[-2:]
    cells = maps.reshape(*maps.shape[:-2], -1).argmax(axis=-1)
    x = (cells % w + 0.5) * (size[1] / w)
    y = (cells // w + 0.5) * (size[0] / h)
    return np.stack([x, y], axis=-1)
