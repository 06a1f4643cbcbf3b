"""From class maps to points: the arg-max cell of each map, in pixels of the original image."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from wildcat.errors import ConfigError, ShapeError

Array = TypeVar("Array", torch.Tensor, NDArray[np.floating])


def peak_points(maps: Array, size: ArrayLike) -> Array:
    """The (x, y) of the centre of each map's highest cell, in continuous pixels of the original image.

    The network sees the whole image warped to its input, so the cells of a map tile the image evenly: the cell in
    column j and row i of an (h, w) map has its centre at ((j + 0.5) * width / w, (i + 0.5) * height / h). Coordinates
    are continuous: the first pixel spans 0 to 1 and has its centre at 0.5. Among equal cells the first in row-major
    order is taken.

    Args:
        maps: (..., h, w), a tensor on any device or an array.
        size: (height, width) of the original image; or (..., 2) that broadcasts with the leading dimensions of
            `maps`, for example (B, 1, 2) against maps of (B, C, h, w).

    Returns:
        (..., 2) of (x, y): float32 on the same device for a tensor, float64 for an array. No gradient flows.

    Raises:
        ShapeError: the maps have no cells, or `size` does not fit them.
        ConfigError: a size that is not positive, or NaN in the maps.

    >>> peak_points(np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 9.0]]), size=(100, 300)).tolist()
    [250.0, 75.0]
    """
    if maps.ndim < 2 or 0 in maps.shape[-2:]:
        raise ShapeError(
            f"maps of shape {tuple(maps.shape)} are not (..., h, w) with at least one cell.", "Give class maps."
        )
    sizes = _sizes(size, tuple(maps.shape[:-2]))
    if isinstance(maps, torch.Tensor):
        _check_no_nan(bool(maps.isnan().any()))
        first = maps.detach().flatten(-2).argmax(dim=-1).cpu().numpy()
        points = _centres(first, (maps.shape[-2], maps.shape[-1]), sizes)
        return torch.from_numpy(points).to(maps.device, torch.float32)
    _check_no_nan(bool(np.isnan(maps).any()))
    first = maps.reshape(*maps.shape[:-2], -1).argmax(axis=-1)
    return _centres(first, (maps.shape[-2], maps.shape[-1]), sizes)


def _centres(cells: NDArray[np.int64], grid: tuple[int, int], sizes: NDArray[np.float64]) -> NDArray[np.float64]:
    h, w = grid
    centres = np.stack([(cells % w + 0.5) / w, (cells // w + 0.5) / h], axis=-1)  # (..., 2) in [0, 1]
    scaled: NDArray[np.float64] = centres * sizes[..., ::-1]  # (height, width) -> (x, y)
    return scaled


def _sizes(size: ArrayLike, leading: tuple[int, ...]) -> NDArray[np.float64]:
    sizes = np.asarray(size, dtype=np.float64)
    try:
        fits = sizes.shape[-1:] == (2,) and np.broadcast_shapes(sizes.shape[:-1], leading) == leading
    except ValueError:
        fits = False
    if not fits:
        raise ShapeError(
            f"size of shape {sizes.shape} does not fit maps of {leading} leading dimensions.",
            "Give (height, width), or one per image shaped (B, 1, 2) for maps of (B, C, h, w).",
        )
    if not (sizes > 0).all():
        raise ConfigError(f"size={sizes.tolist()} is not positive.", "Give the image's (height, width) in pixels.")
    return sizes


def _check_no_nan(found: bool) -> None:
    if found:
        raise ConfigError("the maps hold NaN: they have no highest cell.", "Find where the model first gives NaN.")
