"""Metrics of one point per class: pointwise localization (Oquab et al., CVPR 2015) and the pointing game.

Points are (x, y) and boxes x1 y1 x2 y2, in continuous pixels of the original image: x2, y2 are exclusive edges, the
centre of the first pixel is (0.5, 0.5). A point is inside a box grown by t pixels when x1 - t <= x <= x2 + t and
y1 - t <= y <= y2 + t, the border included.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wildcat.errors import ConfigError, ShapeError
from wildcat.metrics.classification import ApVariant, check_no_nan, curve_area, curve_of_hits


def pointing_average_precision(
    points: ArrayLike,
    scores: ArrayLike,
    boxes: Sequence[ArrayLike],
    tolerance: float = 18,
    variant: ApVariant = "voc10",
    *,
    ignored: ArrayLike | None = None,
) -> float:
    """Average precision of one class's points, ranked by the class score (Oquab et al., CVPR 2015, section 5).

    Each image has one detection. It is a true positive if its point lies inside one of the boxes grown by `tolerance`,
    and a false positive otherwise, also if the class is present. Every image with the class counts in the denominator
    of the recall, so a missed object lowers recall as well as precision.

    Args:
        points: (N, 2) predicted (x, y) per image.
        scores: (N,) class score per image.
        boxes: N arrays (n_i, 4) of the class's ground truth, x1 y1 x2 y2; n_i = 0 if the class is absent.
        tolerance: pixels of the original image.
        variant: see `average_precision`.
        ignored: (N,) bool, images to leave out: those whose only objects of the class are difficult.

    Returns:
        A value in [0, 1], or nan if no image has the class.

    Raises:
        ShapeError: the lengths or shapes do not match.
        ConfigError: NaN, a negative tolerance, a box with x2 < x1 or y2 < y1, or an unknown variant.

    >>> boxes = [[[10, 10, 50, 40]], [[0, 0, 5, 5]], []]
    >>> pointing_average_precision([(30, 20), (90, 90), (7, 7)], [0.9, 0.8, 0.1], boxes)  # hit, miss, absent
    0.5
    """
    score = np.asarray(scores, dtype=np.float64)
    hits = point_hits(points, boxes, tolerance)
    if score.shape != hits.shape:
        raise ShapeError(
            f"{score.shape} scores for {len(hits)} points.",
            "Give one score, one point and one list of boxes per image.",
        )
    check_no_nan("scores", score)
    keep = np.ones(len(hits), dtype=bool) if ignored is None else ~np.asarray(ignored, dtype=bool)
    if keep.shape != hits.shape:
        raise ShapeError(f"ignored {keep.shape} for {len(hits)} points.", "Give one true / false per image.")
    present = _box_counts(boxes) > 0
    return curve_area(curve_of_hits(score[keep], hits[keep], int(present[keep].sum())), variant)


def pointing_game(points: ArrayLike, boxes: Sequence[ArrayLike], tolerance: float = 15) -> float:
    """Fraction of image-class pairs with the class present whose point hits; nan without one.

    Zhang et al. (ECCV 2016) average this over the classes.

    Args:
        points: (P, 2) predicted (x, y), one per image-class pair.
        boxes: P arrays (n_i, 4); pairs with n_i = 0 (class absent) do not count.
        tolerance: pixels of the original image, on each side of a box.

    Raises:
        ShapeError, ConfigError: as `pointing_average_precision`.

    >>> pointing_game([(3, 3), (90, 90), (1, 1)], [[[0, 0, 9, 9]], [[0, 0, 9, 9]], []])
    0.5
    """
    hits = point_hits(points, boxes, tolerance)
    present = _box_counts(boxes) > 0
    return float(hits[present].mean()) if present.any() else float("nan")


def point_hits(points: ArrayLike, boxes: Sequence[ArrayLike], tolerance: float) -> NDArray[np.bool_]:
    """(N,) bool: whether each point lies inside one of its image's boxes grown by `tolerance`, border included.

    Raises:
        ShapeError, ConfigError: as `pointing_average_precision`.

    >>> point_hits([(28, 5), (28.1, 5)], [[[0, 0, 10, 10]]] * 2, tolerance=18).tolist()
    [True, False]
    """
    point = np.asarray(points, dtype=np.float64)
    if len(boxes) == 0:
        point = point.reshape(-1, 2)
    if point.shape != (len(boxes), 2):
        raise ShapeError(
            f"points {point.shape} for {len(boxes)} lists of boxes.",
            "Give an (N, 2) array of (x, y) and N arrays (n_i, 4).",
        )
    check_no_nan("points", point)
    if not tolerance >= 0:
        raise ConfigError(
            f"tolerance={tolerance} is negative or not a number.", "Give pixels, for example 18 (pointing game: 15)."
        )
    owner = np.repeat(np.arange(len(boxes)), _box_counts(boxes))
    corners = np.concatenate([np.zeros((0, 4)), *(_box_array(b, i) for i, b in enumerate(boxes))])
    lower, upper = corners[:, :2] - tolerance, corners[:, 2:] + tolerance
    inside = ((point[owner] >= lower) & (point[owner] <= upper)).all(axis=1)
    hits = np.zeros(len(boxes), dtype=bool)
    hits[owner[inside]] = True
    return hits


def _box_counts(boxes: Sequence[ArrayLike]) -> NDArray[np.int64]:
    return np.array([len(np.asarray(b)) for b in boxes], dtype=np.int64)


def _box_array(boxes: ArrayLike, image: int) -> NDArray[np.float64]:
    array = np.asarray(boxes, dtype=np.float64)
    if array.size == 0:
        return np.zeros((0, 4))
    if array.ndim != 2 or array.shape[1] != 4:
        raise ShapeError(
            f"boxes[{image}] has shape {array.shape}, not (n, 4).", "Give rows of x1 y1 x2 y2, or an empty list."
        )
    check_no_nan(f"boxes[{image}]", array)
    backwards = (array[:, 2:] < array[:, :2]).any(axis=1)
    if backwards.any():
        raise ConfigError(
            f"boxes[{image}] has a box whose right or bottom edge comes first: {array[backwards][0].tolist()}.",
            "Boxes are x1 y1 x2 y2, not x y width height.",
        )
    return array
