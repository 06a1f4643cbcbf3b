"""Outlines of masks as polygons: tracing along pixel edges, and simplification."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wildcat.errors import ConfigError, ShapeError

# (x, y) steps east, south, west, north: each is a right turn after the previous one, as y points down.
STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))
# For each heading, the (x, y) offset from a pixel corner to the pixel ahead on the left.
AHEAD_LEFT = ((0, -1), (0, 0), (-1, 0), (-1, -1))


def trace_outline(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Trace the outer boundary of an 8-connected region: a closed polygon (n, 2) of its corners (x, y), clockwise.

    Pixel (column, row) spans column to column + 1 and row to row + 1, so that filling the polygon at pixel centres
    gives the region back, with its holes filled. Where two pixels touch only at a corner, the polygon contains it
    twice. The first point is the upper left corner of the region's first pixel in row-major order; other regions are
    ignored.

    Raises:
        ShapeError: the mask is not (H, W), or is empty.

    >>> trace_outline(np.array([[False, True, True], [False, True, False]])).tolist()
    [[1, 0], [3, 0], [3, 1], [2, 1], [2, 2], [1, 2]]
    """
    if mask.ndim != 2 or not mask.any():
        raise ShapeError(f"a mask of shape {mask.shape} has no outline.", "Give one (H, W) mask with a pixel in it.")
    width = mask.shape[1] + 2
    inside = np.pad(mask.astype(np.uint8), 1).tobytes()  # indexing bytes is faster than indexing an array
    first = inside.index(1)
    steps = [x + width * y for x, y in STEPS]
    left = [x + width * y for x, y in AHEAD_LEFT]
    right = [left[1], left[2], left[3], left[0]]  # ahead on the right = ahead on the left after a right turn
    # A corner has the index of the pixel below and right of it. Start heading east, with the first pixel on the right.
    corner, heading, corners = first, 0, [first]
    while True:
        corner += steps[heading]
        if corner == first:  # no pixel above or left of it is inside, so it is visited once
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
    """Simplify a closed polygon (n, 2) so that no removed point is further than `tolerance` pixels from it.

    The method of Douglas and Peucker (1973). A tolerance of 1 straightens the stairs of slanted edges. Parts thinner
    than the tolerance may intersect; a polygon is returned unchanged if fewer than three points would remain.

    Raises:
        ConfigError: the tolerance is negative or not finite.

    >>> simplify_outline(np.array([[0, 0], [5, 0], [5, 1], [9, 1], [9, 9], [0, 9]]), 1.0).tolist()
    [[0, 0], [9, 1], [9, 9], [0, 9]]
    """
    if check_tolerance(tolerance) == 0:
        return points
    closed = np.concatenate([points, points[:1]]).astype(np.float64)
    far = int(np.argmax(np.hypot(*(closed - closed[0]).T)))
    keep = np.zeros(len(closed), dtype=bool)
    keep[[0, far]] = True
    segments = [(0, far), (far, len(closed) - 1)]
    while segments:
        a, b = segments.pop()
        if b - a < 2:
            continue
        distance = _distance_to_segment(closed[a + 1 : b], closed[a], closed[b])
        furthest = int(np.argmax(distance))
        if distance[furthest] > tolerance:
            middle = a + 1 + furthest
            keep[middle] = True
            segments += [(a, middle), (middle, b)]
    return points[keep[:-1]] if keep.sum() >= 3 else points


def check_tolerance(tolerance: float) -> float:
    """Return the tolerance; refuse a negative or infinite one."""
    if not 0 <= tolerance < float("inf"):
        raise ConfigError(f"simplify={tolerance}: give pixels, 0 or more.", "0 keeps every point; 1 is usual.")
    return tolerance


def outline_area(points: NDArray[np.int64]) -> float:
    """Area of a closed polygon (n, 2) in square pixels (shoelace formula)."""
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
