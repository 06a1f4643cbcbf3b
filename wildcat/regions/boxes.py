"""Connected regions of a mask or a class map, and boxes around them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wildcat.errors import ConfigError, ShapeError

EIGHT_CONNECTED = np.ones((3, 3), dtype=bool)  # cells that touch at an edge or a corner belong together


class Box(NamedTuple):
    """A box in continuous pixels with exclusive right and bottom edges, and the highest value of the map inside it.

    A tuple, so that `np.array(boxes)[:, :4]` is x1 y1 x2 y2.
    """

    x1: float
    y1: float
    x2: float
    y2: float
    score: float


class Region(NamedTuple):
    """A connected region: the rows and columns of its bounding box, and its cells inside the box (h, w) bool."""

    rows: slice
    columns: slice
    mask: NDArray[np.bool_]


def connected_regions(mask: NDArray[np.bool_], min_area: float = 0.0) -> list[Region]:
    """The 8-connected regions of an (H, W) mask, largest first; equal ones by their first cell in row-major order.

    Args:
        mask: (H, W) bool.
        min_area: minimum size of a region, as a fraction of all cells.

    >>> [int(region.mask.sum()) for region in connected_regions(np.array([[True, False, True, True]]))]
    [2, 1]
    """
    from scipy import ndimage  # noqa: PLC0415  # slow to import, and not every prediction needs boxes

    labels, _ = ndimage.label(mask, EIGHT_CONNECTED)
    areas = np.bincount(labels.ravel())[1:]  # without the outside, label 0
    boxes = ndimage.find_objects(labels)
    order = [i for i in np.argsort(-areas, kind="stable").tolist() if areas[i] >= min_area * mask.size]
    return [Region(boxes[i][0], boxes[i][1], labels[boxes[i]] == i + 1) for i in order]


def map_to_boxes(
    heatmap: ArrayLike, threshold: float = 0.5, min_area: float = 0.0, *, size: tuple[int, int] | None = None
) -> list[Box]:
    """Boxes around the regions where a class map reaches a fraction of its range, the largest region first.

    A region is a set of 8-connected cells whose value is at least `min + threshold * (max - min)`. Its score is the
    highest value of the map in it, in the map's own units, so that boxes of one class can be ranked across images.

    Args:
        heatmap: (H, W), any scale; upsample a coarse map first for finer edges.
        threshold: in (0, 1], a fraction of the map's range.
        min_area: the minimum size of a region as a fraction of the map's cells.
        size: (height, width) of the image that the map covers; boxes are in its pixels. None: in the map's cells.

    Returns:
        A list of `Box`, empty if the map is constant or no region is large enough.

    Raises:
        ShapeError: the map is not (H, W) with at least one cell.
        ConfigError: NaN or an infinity in the map, or a threshold out of range.

    >>> map_to_boxes([[0, 0, 0, 0], [0, 9, 8, 0]], size=(20, 40))
    [Box(x1=10.0, y1=10.0, x2=30.0, y2=20.0, score=9.0)]
    """
    values = np.asarray(heatmap)
    if values.dtype.kind != "f":
        values = values.astype(np.float64)
    if values.ndim != 2 or values.size == 0:
        raise ShapeError(f"heatmap has shape {values.shape}, not (H, W).", "Give the map of one class.")
    if not np.isfinite(values).all():
        raise ConfigError("heatmap contains NaN or infinities.", "Check the model: its outputs became NaN in training.")
    if not 0 < threshold <= 1:
        raise ConfigError(f"threshold={threshold} is not in (0, 1].", "It is a fraction of the map's range; try 0.5.")
    low, high = float(values.min()), float(values.max())
    if high <= low:
        return []
    level = min(low + threshold * (high - low), high)  # rounding must not lift the level above the peak
    height, width = values.shape
    scale_y, scale_x = (1.0, 1.0) if size is None else (size[0] / height, size[1] / width)
    return [
        Box(
            columns.start * scale_x,
            rows.start * scale_y,
            columns.stop * scale_x,
            rows.stop * scale_y,
            float(values[rows, columns][inside].max()),
        )
        for rows, columns, inside in connected_regions(values >= values.dtype.type(level), min_area)
    ]
