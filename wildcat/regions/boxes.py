"""From a class map to boxes: the connected regions above a threshold."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wildcat.errors import ConfigError, ShapeError, did_you_mean


class Box(NamedTuple):
    """A box in continuous pixels, x2 and y2 exclusive edges, with the highest value of the map inside its region.

    A tuple, so that `np.array(boxes)[:, :4]` is x1 y1 x2 y2.
    """

    x1: float
    y1: float
    x2: float
    y2: float
    score: float


class _Runs(NamedTuple):
    """Horizontal runs of True cells in row-major order: [start, stop) columns of a row, and the component of each."""

    row: NDArray[np.int64]
    start: NDArray[np.int64]
    stop: NDArray[np.int64]
    component: NDArray[np.int64]
    num_components: int


def map_to_boxes(
    heatmap: ArrayLike,
    threshold: float = 0.5,
    min_area: float = 0.0,
    which: Literal["largest", "all"] = "largest",
    *,
    size: tuple[int, int] | None = None,
    connectivity: Literal[4, 8] = 8,
) -> list[Box]:
    """Boxes around the connected regions where the map reaches a fraction of its range.

    A region is a set of connected cells whose value is at least `min + threshold * (max - min)`. Its score is the
    highest value of the map in it, in the map's own units, so that boxes of one class rank across images.

    Args:
        heatmap: (H, W), any scale; upsample a coarse map first, for finer edges.
        threshold: in (0, 1], a fraction of the map's range.
        min_area: in [0, 1), the share of the map's cells that a region must at least cover.
        which: "largest", the region of the most cells (of equal ones the first in row-major order), or "all",
            the largest first.
        size: (height, width) of the image the map covers evenly; boxes come in its pixels. None: in the map's cells.
        connectivity: 4 (edges) or 8 (edges and corners).

    Returns:
        A list of `Box`, empty where the map is constant or no region is large enough.

    Raises:
        ShapeError: the map is not (H, W) with at least one cell.
        ConfigError: NaN or an infinity in the map, or an argument out of range.

    >>> map_to_boxes([[0, 0, 0, 0], [0, 9, 8, 0]], size=(20, 40))
    [Box(x1=10.0, y1=10.0, x2=30.0, y2=20.0, score=9.0)]
    """
    values = np.asarray(heatmap)
    if values.dtype.kind != "f":
        values = values.astype(np.float64)
    _check(values, threshold, min_area, which, size)
    low, high = float(values.min()), float(values.max())
    if high <= low:  # a flat map points nowhere
        return []
    cut = min(low + threshold * (high - low), high)  # rounding must not lift the cut above the peak
    runs = _runs(values >= values.dtype.type(cut), connectivity)
    count, owner = runs.num_components, runs.component
    area = np.bincount(owner, weights=runs.stop - runs.start, minlength=count)
    height, width = values.shape
    scale_y, scale_x = (1.0, 1.0) if size is None else (size[0] / height, size[1] / width)
    peak = np.full(count, -np.inf)
    np.maximum.at(peak, owner, _run_maxima(values, runs))
    x1, x2 = np.full(count, width), np.zeros(count, dtype=np.int64)
    np.minimum.at(x1, owner, runs.start)
    np.maximum.at(x2, owner, runs.stop)
    y1, y2 = np.full(count, height), np.zeros(count, dtype=np.int64)
    np.minimum.at(y1, owner, runs.row)
    np.maximum.at(y2, owner, runs.row + 1)
    table = np.stack([x1 * scale_x, y1 * scale_y, x2 * scale_x, y2 * scale_y, peak], axis=1)
    order = np.argsort(-area, kind="stable")
    order = order[area[order] >= min_area * values.size]
    return [Box(*row) for row in table[order[:1] if which == "largest" else order].tolist()]


def connected_components(mask: ArrayLike, connectivity: Literal[4, 8] = 8) -> tuple[NDArray[np.int32], int]:
    """((H, W) int32 of 0 = outside, 1..n = the component, n), numbered by first cell in row-major order.

    Raises:
        ShapeError: the mask is not two-dimensional.
        ConfigError: a connectivity other than 4 or 8.

    >>> connected_components([[1, 0, 1], [1, 1, 0]], connectivity=4)[0].tolist()
    [[1, 0, 2], [1, 1, 0]]
    """
    inside = np.asarray(mask, dtype=bool)
    if inside.ndim != 2:
        raise ShapeError(f"mask has shape {inside.shape}, not (H, W).", "Give one mask at a time.")
    runs = _runs(inside, connectivity)
    labels = np.zeros(inside.shape, dtype=np.int32)
    labels[inside] = np.repeat(runs.component + 1, runs.stop - runs.start)
    return labels, runs.num_components


def _runs(mask: NDArray[np.bool_], connectivity: int) -> _Runs:
    """The runs of a mask and their components: neighbouring rows are compared run by run, never cell by cell."""
    if connectivity not in (4, 8):
        raise ConfigError(
            f"connectivity={connectivity!r} is not 4 or 8.", "Use 8 to join cells that touch at a corner."
        )
    height, width = mask.shape
    stride = width + 2  # two empty columns between rows: runs of different rows never touch in the flat order
    padded = np.zeros((height, stride), dtype=np.int8)
    padded[:, 1:-1] = mask
    edges = np.flatnonzero(np.diff(padded.ravel()))
    start, stop = edges[0::2], edges[1::2]  # flat positions; start in the columns 0..width-1 of stride
    # Runs of the next row that overlap a run stand side by side: from the first that ends after it starts to the last
    # that starts before it ends. At 8-connectivity touching corners count as overlap.
    corner = int(connectivity == 8)
    first = np.searchsorted(stop, start + stride - corner, side="right")
    last = np.searchsorted(start, stop + stride + corner, side="left")
    overlaps = np.maximum(last - first, 0)
    upper = np.repeat(np.arange(len(start)), overlaps)
    nth = np.arange(len(upper)) - np.repeat(np.cumsum(overlaps) - overlaps, overlaps)
    lower = np.repeat(first, overlaps) + nth
    roots, component = np.unique(_union(len(start), upper, lower), return_inverse=True)
    row = start // stride
    return _Runs(row, start - row * stride, stop - row * stride, component, len(roots))


def _union(count: int, a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int64]:
    """(count,) the smallest member of each item's set, where a[i] and b[i] are in one set for every i.

    Each round hangs every root under the smallest root it is joined to, then flattens the trees.
    """
    parent = np.arange(count)
    while True:
        root_a, root_b = parent[a], parent[b]
        apart = root_a != root_b
        if not apart.any():
            return parent
        a, b, root_a, root_b = a[apart], b[apart], root_a[apart], root_b[apart]
        np.minimum.at(parent, np.maximum(root_a, root_b), np.minimum(root_a, root_b))
        while (parent != (grand := parent[parent])).any():
            parent = grand


def _run_maxima(values: NDArray[np.floating], runs: _Runs) -> NDArray[np.floating]:
    begin = runs.row * values.shape[1] + runs.start
    end = runs.row * values.shape[1] + runs.stop
    # reduceat takes [begin, end) at every other place; one more cell lets the last end lie past the map
    bounds = np.stack([begin, end], axis=1).ravel()
    maxima: NDArray[np.floating] = np.maximum.reduceat(np.append(values.ravel(), values.flat[0]), bounds)[0::2]
    return maxima


def _check(
    values: NDArray[np.floating], threshold: float, min_area: float, which: str, size: tuple[int, int] | None
) -> None:
    if values.ndim != 2 or values.size == 0:
        raise ShapeError(f"heatmap has shape {values.shape}, not (H, W).", "Give one class's map at a time.")
    if not np.isfinite(values).all():
        raise ConfigError("heatmap holds NaN or infinities.", "Find where the model first gives them.")
    if not 0 < threshold <= 1:
        raise ConfigError(f"threshold={threshold} is not in (0, 1].", "It is a fraction of the map's range; try 0.5.")
    if not 0 <= min_area < 1:
        raise ConfigError(f"min_area={min_area} is not in [0, 1).", "It is a share of the image; try 0.01.")
    if which not in ("largest", "all"):
        raise ConfigError(f"which={which!r} is not 'largest' or 'all'.", did_you_mean(str(which), ("largest", "all")))
    if size is not None and not (len(size) == 2 and min(size) > 0):
        raise ConfigError(f"size={size!r} is not a (height, width).", "Give the image's (height, width) in pixels.")
