"""From a mask to a polygon: its outer edge, along the edges of pixels, and with fewer points where that is wanted."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wildcat.errors import ConfigError, ShapeError

_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))
"""(x, y) of a step east, south, west, north: each a right turn after the one before, with y down."""

_AHEAD_LEFT = ((0, -1), (0, 0), (-1, 0), (-1, -1))
"""From a pixel corner, the (x, y) of the pixel ahead on the left, for each direction."""


def trace_outline(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The outer edge of an 8-connected region as a closed polygon, (n, 2) of (x, y) where it turns, clockwise.

    Pixel (column, row) spans column to column + 1 and row to row + 1, so that filling the polygon at the centres of
    pixels gives the region back exactly, but for its holes: an outline has none, and they come back filled. Where two
    pixels touch at a corner only, the polygon passes it twice. The first point is the upper left corner of the first
    pixel in row-major order; other regions of the mask are left out.

    Raises:
        ShapeError: the mask is not (H, W), or is empty.

    >>> trace_outline(np.array([[False, True, True], [False, True, False]])).tolist()
    [[1, 0], [3, 0], [3, 1], [2, 1], [2, 2], [1, 2]]
    """
    if mask.ndim != 2 or not mask.any():
        raise ShapeError(f"a mask of shape {mask.shape} has no outline.", "Give one (H, W) mask with a pixel in it.")
    width = mask.shape[1] + 2
    inside = np.pad(mask.astype(np.uint8), 1).tobytes()  # of bytes, single items are quickest to look up
    first = inside.index(1)
    steps = [x + width * y for x, y in _STEPS]
    left = [x + width * y for x, y in _AHEAD_LEFT]
    right = [left[1], left[2], left[3], left[0]]  # the pixel ahead on the right is the one on the left of a right turn
    # A corner is numbered as the pixel below and right of it. We start east with the first pixel on our right.
    corner, heading, corners = first, 0, [first]
    while True:
        corner += steps[heading]
        if corner == first:  # nothing above or left of it is inside: it is passed once
            break
        if inside[corner + left[heading]]:
            heading = (heading - 1) % 4
        elif inside[corner + right[heading]]:
            continue
        else:
            heading = (heading + 1) % 4
        corners.append(corner)
    flat = np.array(corners)
    return np.stack([flat % width - 1, flat // width - 1], axis=1)


def simplify_outline(points: NDArray[np.int64], tolerance: float) -> NDArray[np.int64]:
    """Fewer of the points (n, 2) of a closed polygon, so that none left out is further than `tolerance` from it.

    The method of Douglas and Peucker (1973). At 1 pixel the stairs of slanted edges become straight. Parts that are
    thinner than the tolerance may cross themselves; a polygon of which fewer than three points would be left stays.

    Raises:
        ConfigError: a tolerance that is negative or no number.

    >>> simplify_outline(np.array([[0, 0], [5, 0], [5, 1], [9, 1], [9, 9], [0, 9]]), 1.0).tolist()
    [[0, 0], [9, 1], [9, 9], [0, 9]]
    """
    if check_tolerance(tolerance) == 0:
        return points
    closed = np.concatenate([points, points[:1]]).astype(np.float64)
    far = int(np.argmax(np.hypot(*(closed - closed[0]).T)))
    keep = np.zeros(len(closed), dtype=bool)
    keep[[0, far]] = True
    open_parts = [(0, far), (far, len(closed) - 1)]
    while open_parts:
        a, b = open_parts.pop()
        if b - a < 2:
            continue
        distance = _distance_to_segment(closed[a + 1 : b], closed[a], closed[b])
        furthest = int(np.argmax(distance))
        if distance[furthest] > tolerance:
            middle = a + 1 + furthest
            keep[middle] = True
            open_parts += [(a, middle), (middle, b)]
    return points[keep[:-1]] if keep.sum() >= 3 else points


def check_tolerance(tolerance: float) -> float:
    """The tolerance itself.

    Raises:
        ConfigError: it is negative or no number.
    """
    if not 0 <= tolerance < float("inf"):
        raise ConfigError(f"simplify={tolerance}: give pixels, 0 or more.", "0 keeps every point; 1 is usual.")
    return tolerance


def outline_area(points: NDArray[np.int64]) -> float:
    """The area inside a closed polygon (n, 2), in square pixels (shoelace formula)."""
    x, y = points.T
    return abs(float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum())) / 2


def _distance_to_segment(
    points: NDArray[np.float64], start: NDArray[np.float64], end: NDArray[np.float64]
) -> NDArray[np.float64]:
    along = end - start
    squared = float(along @ along)
    t = ((points - start) @ along / squared).clip(0, 1) if squared else np.zeros(len(points))
    distance: NDArray[np.float64] = np.hypot(*(points - start - t[:, None] * along).T)
    return distance
