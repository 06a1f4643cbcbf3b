"""Pointing metrics against a plain loop over images and tables worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from wildcat.errors import ConfigError, ShapeError
from wildcat.metrics import point_hits, pointing_average_precision, pointing_game


def loop_pointing_ap(
    points: NDArray[np.float64], scores: NDArray[np.float64], boxes: list[NDArray[np.float64]], tolerance: float
) -> float:
    """Oquab et al. 2015 as a loop over images without ties; the all-point area with a monotone envelope."""
    present = sum(len(b) > 0 for b in boxes)
    tp = fp = 0
    curve = [(0.0, 0.0)]
    for i in np.argsort(-scores):
        x, y = points[i]
        hit = any(
            x1 - tolerance <= x <= x2 + tolerance and y1 - tolerance <= y <= y2 + tolerance
            for x1, y1, x2, y2 in boxes[i]
        )
        tp, fp = tp + hit, fp + (not hit)
        curve.append((tp / present, tp / (tp + fp)))
    area = 0.0
    for k in range(1, len(curve)):
        area += (curve[k][0] - curve[k - 1][0]) * max(p for _, p in curve[k:])
    return area


def random_problem(seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64], list[NDArray[np.float64]]]:
    rng = np.random.default_rng(seed)
    corners = [rng.uniform(0, 200, (rng.integers(0, 4), 2)) for _ in range(50)]
    boxes = [np.concatenate([c, c + rng.uniform(20, 90, c.shape)], axis=1) for c in corners]
    return rng.uniform(0, 220, (50, 2)), rng.permutation(50).astype(float), boxes


@pytest.mark.parametrize("tolerance", [0, 18, 40])
@pytest.mark.parametrize("seed", range(10))
def test_equals_a_loop_over_images(seed: int, tolerance: float) -> None:
    points, scores, boxes = random_problem(seed)
    expected = loop_pointing_ap(points, scores, boxes, tolerance)
    assert 0 < expected < 1
    assert pointing_average_precision(points, scores, boxes, tolerance) == pytest.approx(expected, abs=1e-12)


def test_table_worked_by_hand() -> None:
    """Ranked: hit, miss with the class present, absent, hit. Three images have the class, so recall ends at 2/3."""
    box = [[10.0, 10.0, 20.0, 20.0]]
    points = [(15, 15), (80, 15), (15, 15), (15, 15)]
    scores, boxes = [4.0, 3.0, 2.0, 1.0], [box, box, [], box]
    assert pointing_average_precision(points, scores, boxes) == pytest.approx((1 + 1 / 2) / 3)
    assert pointing_average_precision(points, scores, boxes, variant="plain") == pytest.approx((1 + 1 / 2) / 3)
    assert pointing_average_precision(points, scores, boxes, variant="voc07") == pytest.approx((4 * 1 + 3 / 2) / 11)
    # without the second image two have the class and recall reaches one
    ignored = [False, True, False, False]
    assert pointing_average_precision(points, scores, boxes, ignored=ignored) == pytest.approx((1 + 2 / 3) / 2)


def test_perfect_points_give_the_classification_ap() -> None:
    """With every point on its object the metric is the classification AP."""
    points, boxes = np.full((4, 2), 5.0), [[[0, 0, 10, 10]], [], [[0, 0, 10, 10]], []]
    assert pointing_average_precision(points, [4, 3, 2, 1], boxes) == pytest.approx((1 + 2 / 3) / 2)
    assert pointing_average_precision(points + 100, [4, 3, 2, 1], boxes) == 0


def test_border_of_the_grown_box_is_inside() -> None:
    box = [[100, 50, 120, 60]]
    inside = [(82, 32), (138, 78), (82, 78), (110, 55)]
    outside = [(81.9, 55), (138.1, 55), (110, 31.9), (110, 78.1)]
    assert point_hits(inside, [box] * 4, 18).all()
    assert not point_hits(outside, [box] * 4, 18).any()


def test_any_box_of_the_same_image_counts() -> None:
    boxes = [[[0, 0, 5, 5], [50, 50, 60, 60]], [[200, 200, 210, 210]]]
    assert point_hits([(55, 55), (55, 55)], boxes, 0).tolist() == [True, False]


def test_pointing_game_counts_only_pairs_with_the_class() -> None:
    points, _, boxes = random_problem(3)
    hits = []
    for (x, y), rows in zip(points, boxes, strict=True):
        if len(rows):
            hits.append(any(a - 15 <= x <= c + 15 and b - 15 <= y <= d + 15 for a, b, c, d in rows))
    assert 0 < np.mean(hits) < 1
    assert pointing_game(points, boxes) == pytest.approx(np.mean(hits))


def test_no_object_is_nan() -> None:
    assert math.isnan(pointing_average_precision([(1, 1)], [0.5], [[]]))
    assert math.isnan(pointing_average_precision([(1, 1)], [0.5], [[[0, 0, 9, 9]]], ignored=[True]))
    assert math.isnan(pointing_average_precision(np.zeros((0, 2)), [], []))
    assert math.isnan(pointing_game([(1, 1)], [np.zeros((0, 4))]))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"points": [(1, np.nan), (1, 1)]}, ConfigError, "points are NaN"),
        ({"points": [(1, 1)]}, ShapeError, "for 2 lists of boxes"),
        ({"scores": [0.1]}, ShapeError, "scores for 2 points"),
        ({"scores": [0.1, np.nan]}, ConfigError, "scores are NaN"),
        ({"boxes": [[[10, 10, 5, 5]], []]}, ConfigError, "not x y width height"),
        ({"boxes": [[1, 2, 3, 4], []]}, ShapeError, r"boxes\[0\] has shape \(4,\)"),
        ({"tolerance": -1}, ConfigError, "tolerance=-1"),
        ({"ignored": [True]}, ShapeError, "ignored"),
        ({"variant": "voc12"}, ConfigError, "voc10"),
    ],
)
def test_errors_name_the_value_and_the_remedy(change: dict[str, object], error: type[Exception], message: str) -> None:
    arguments = {"points": [(1, 1), (1, 1)], "scores": [0.1, 0.2], "boxes": [[[0, 0, 9, 9]], []]} | change
    with pytest.raises(error, match=message):
        pointing_average_precision(**arguments)  # type: ignore[arg-type]
