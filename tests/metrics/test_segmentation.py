"""Segmentation metrics against loops over pixels and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn import metrics as oracle

from wildcat.errors import ConfigError, ShapeError
from wildcat.metrics import class_iou, mean_iou, overlap_confusion


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


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: overlap_confusion([[0]], [[0, 1]], 2), ShapeError, "differ in shape.*\n.*not the target"),
        (lambda: overlap_confusion([[255]], [[0]], 2), ConfigError, "predictions contain 255"),
        (lambda: overlap_confusion([[0]], [[7]], 2), ConfigError, "targets contain 7"),
        (lambda: overlap_confusion([[0.5]], [[0]], 2), ConfigError, "argmax"),
        (lambda: mean_iou([[1, 2]]), ShapeError, "overlap_confusion"),
    ],
)
def test_errors_name_the_value_and_the_remedy(call, error: type[Exception], message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=message):
        call()
