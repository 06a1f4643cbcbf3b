"""Overlap measures against loops over pixels, painted boxes and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn import metrics as oracle

from wildcat.errors import ConfigError, ShapeError
from wildcat.metrics import (
    box_iou,
    class_iou,
    max_box_accuracy,
    max_box_accuracy_v2,
    mean_iou,
    overlap_confusion,
    pixel_average_precision,
    pixel_histogram,
)


def random_masks(seed: int, count: int = 6) -> list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(count):
        size = rng.integers(5, 12, 2)
        target = rng.integers(0, 4, size).astype(np.uint8)
        target[rng.random(size) < 0.2] = 255
        pairs.append((rng.integers(0, 4, size).astype(np.uint8), target))  # of six classes, 4 and 5 never occur
    return pairs


def test_confusion_and_iou_equal_sets_of_pixels() -> None:
    pairs = random_masks(0)
    confusion = sum(overlap_confusion(p, t, 6) for p, t in pairs)
    predicted = np.concatenate([p.ravel() for p, _ in pairs])
    true = np.concatenate([t.ravel() for _, t in pairs])
    np.testing.assert_array_equal(
        confusion, oracle.confusion_matrix(true[true != 255], predicted[true != 255], labels=range(6))
    )
    expected = []
    for c in range(4):
        a = {i for i, (p, t) in enumerate(zip(predicted, true, strict=True)) if p == c and t != 255}
        b = {i for i, t in enumerate(true) if t == c}
        expected.append(len(a & b) / len(a | b))
    np.testing.assert_allclose(class_iou(confusion), [*expected, np.nan, np.nan])
    assert mean_iou(confusion) == pytest.approx(np.mean(expected))


def test_class_only_predicted_counts_as_zero_and_uint8_does_not_wrap() -> None:
    prediction, target = np.full((2, 2), 20, dtype=np.uint8), np.zeros((2, 2), dtype=np.uint8)
    confusion = overlap_confusion(prediction, target, 21)
    assert confusion[0, 20] == 4
    assert mean_iou(confusion) == 0
    assert mean_iou([[2, 0, 0], [0, 2, 0], [0, 0, 0]]) == 1
    assert math.isnan(mean_iou(np.zeros((3, 3))))


def test_box_iou_equals_painted_pixels() -> None:
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 12, (9, 2))
    boxes = np.concatenate([corners, corners + rng.integers(1, 9, (9, 2))], axis=1)

    def paint(box: NDArray[np.int64]) -> NDArray[np.bool_]:
        canvas = np.zeros((24, 24), dtype=bool)
        canvas[box[1] : box[3], box[0] : box[2]] = True
        return canvas

    expected = [[(paint(a) & paint(b)).sum() / (paint(a) | paint(b)).sum() for b in boxes[4:]] for a in boxes]
    assert 0 < np.mean(expected) < 1
    np.testing.assert_allclose(box_iou(boxes, boxes[4:]), expected)
    np.testing.assert_allclose(box_iou([[1, 1, 1, 5]], [[1, 1, 1, 5]]), [[0]])
    assert box_iou([], boxes).shape == (0, 9)


def test_max_box_accuracy_tries_every_threshold() -> None:
    rng = np.random.default_rng(1)
    iou = rng.random((30, 9))
    for needed in (0.3, 0.5, 0.7):
        shares = [sum(row[t] >= needed for row in iou) / 30 for t in range(9)]
        assert max_box_accuracy(iou, needed) == (pytest.approx(max(shares)), shares.index(max(shares)))
    by_hand = [[0.3, 0.0], [0.5, 0.8]]  # at 0.3: 1.0; at 0.5: 0.5; at 0.7: 0.5
    assert max_box_accuracy_v2(by_hand) == pytest.approx(2 / 3)
    assert max_box_accuracy(by_hand) == (0.5, 0)


def test_pixel_average_precision_equals_scikit_learn_on_all_pixels() -> None:
    rng = np.random.default_rng(2)
    maps = [rng.integers(0, 1001, (7, 9)) / 1000 for _ in range(5)]  # on the bins' edges: no quantisation
    masks = [rng.choice([0, 1, 255], (7, 9)) for _ in range(5)]
    total = sum(pixel_histogram(m, t) for m, t in zip(maps, masks, strict=True))
    heat, truth = np.concatenate([m.ravel() for m in maps]), np.concatenate([t.ravel() for t in masks])
    expected = oracle.average_precision_score(truth[truth != 255] == 1, heat[truth != 255])
    assert pixel_average_precision(total) == pytest.approx(expected, abs=1e-12)
    assert total.sum() == (truth != 255).sum()


def test_pixel_average_precision_by_brute_force_over_thresholds() -> None:
    """The paper's definition: precision and recall at each threshold of a grid, over the pixels of all images."""
    rng = np.random.default_rng(3)
    heat, truth = rng.random((20, 20)), rng.random((20, 20)) < 0.3
    area, last_recall = 0.0, 0.0
    for threshold in np.arange(50, -1, -1) / 50:
        found = heat >= threshold
        if found.any():
            recall = (found & truth).sum() / truth.sum()
            area += (recall - last_recall) * (found & truth).sum() / found.sum()
            last_recall = recall
    histogram = pixel_histogram(heat, truth, num_thresholds=50)
    assert pixel_average_precision(histogram) == pytest.approx(area, abs=1e-12)
    assert math.isnan(pixel_average_precision(pixel_histogram(heat, np.zeros_like(truth))))


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: overlap_confusion([[0]], [[0, 1]], 2), ShapeError, "differ in shape.*\n.*never the target"),
        (lambda: overlap_confusion([[255]], [[0]], 2), ConfigError, "predictions hold 255"),
        (lambda: overlap_confusion([[0]], [[7]], 2), ConfigError, "targets hold 7"),
        (lambda: overlap_confusion([[0.5]], [[0]], 2), ConfigError, "argmax"),
        (lambda: mean_iou([[1, 2]]), ShapeError, "overlap_confusion"),
        (lambda: box_iou([1, 2, 3, 4], [[1, 2, 3, 4]]), ShapeError, "a has shape"),
        (lambda: max_box_accuracy([0.5]), ShapeError, "images, map thresholds"),
        (lambda: max_box_accuracy([[np.nan]]), ConfigError, "NaN"),
        (lambda: max_box_accuracy_v2([[0.5]], ()), ConfigError, "empty"),
        (lambda: pixel_histogram([[1.5]], [[1]]), ConfigError, "Normalise"),
        (lambda: pixel_histogram([[0.5]], [[3]]), ConfigError, "other than 0, 1 and ignore"),
        (lambda: pixel_histogram([[0.5]], [[1, 0]]), ShapeError, "differ in shape"),
        (lambda: pixel_average_precision([1, 2]), ShapeError, "pixel_histogram"),
    ],
)
def test_errors_name_the_value_and_the_remedy(call, error: type[Exception], says: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=says):
        call()
