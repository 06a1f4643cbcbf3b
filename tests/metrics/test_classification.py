"""Classification metrics against the devkits' loops, scikit-learn and tables worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics as oracle

from wildcat.errors import ConfigError, ShapeError
from wildcat.metrics import (
    average_precision,
    class_mean_accuracy,
    confusion_matrix,
    mean_average_precision,
    multiclass_accuracy,
    precision_recall_curve,
    roc_auc,
)


def devkit_ap(scores: NDArray[np.float64], labels: NDArray[np.int64], year: int) -> float:
    """`VOCevalcls.m` line by line: 2007 with the eleven levels of MATLAB's 0:0.1:1, 2010 with the envelope."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    tp = fp = 0
    recall, precision = [], []
    for i in order:
        tp += labels[i] > 0
        fp += labels[i] < 0
        if tp + fp:  # MATLAB's 0/0 is NaN, which its max ignores
            recall.append(tp / (labels > 0).sum())
            precision.append(tp / (tp + fp))
    if year == 2007:
        levels = [0, 0.1, 0.2, 3 * 0.1, 0.4, 0.5, 0.6, 1 - 3 * 0.1, 0.8, 0.9, 1]
        return sum(max((p for p, r in zip(precision, recall, strict=True) if r >= t), default=0) for t in levels) / 11
    mrec, mpre = [0.0, *recall, 1.0], [0.0, *precision, 0.0]
    for i in range(len(mpre) - 2, -1, -1):
        mpre[i] = max(mpre[i], mpre[i + 1])
    return sum((mrec[i] - mrec[i - 1]) * mpre[i] for i in range(1, len(mrec)) if mrec[i] != mrec[i - 1])


def random_problem(seed: int, size: int = 60, tied: bool = False) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 8, size).astype(float) if tied else rng.permutation(size).astype(float)
    labels = rng.choice([-1, 0, 1], size, p=[0.6, 0.15, 0.25])
    labels[:2] = (1, -1)
    return scores, labels


@pytest.mark.parametrize("seed", range(40))
def test_variants_follow_the_devkits(seed: int) -> None:
    scores, labels = random_problem(seed)
    assert average_precision(scores, labels, "voc07") == pytest.approx(devkit_ap(scores, labels, 2007), abs=1e-12)
    assert average_precision(scores, labels, "voc10") == pytest.approx(devkit_ap(scores, labels, 2010), abs=1e-12)
    ranked = labels[np.argsort(-scores)]
    ranked = ranked[ranked != 0] == 1
    at_each_positive = (np.cumsum(ranked) / np.arange(1, len(ranked) + 1))[ranked]
    assert average_precision(scores, labels, "plain") == pytest.approx(at_each_positive.mean(), abs=1e-12)


def test_ten_positives_meet_every_level_of_voc07() -> None:
    """Recall lands on each tenth: 3/10 falls just short of MATLAB's 3 * 0.1, the others reach their level."""
    labels = np.array([1, 1, 1, -1, 1, 1, 1, -1, 1, -1, -1, 1, 1, 1])
    scores = -np.arange(len(labels), dtype=float)
    by_hand = (1 + 1 + 1 + 6 / 7 + 6 / 7 + 6 / 7 + 6 / 7 + 7 / 9 + 10 / 14 * 3) / 11
    assert average_precision(scores, labels, "voc07") == pytest.approx(by_hand, abs=1e-12)
    assert devkit_ap(scores, labels, 2007) == pytest.approx(by_hand, abs=1e-12)


def test_table_worked_by_hand() -> None:
    scores, labels = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4], [-1, 1, 0, 1, -1, 1]  # precision at positives: 1/2, 2/3, 3/5
    assert average_precision(scores, labels, "plain") == pytest.approx((1 / 2 + 2 / 3 + 3 / 5) / 3)
    assert average_precision(scores, labels, "voc10") == pytest.approx((2 / 3 + 2 / 3 + 3 / 5) / 3)
    assert average_precision(scores, labels, "voc07") == pytest.approx((2 / 3 * 7 + 3 / 5 * 4) / 11)
    assert average_precision(scores, labels) == average_precision(scores, labels, "voc10")


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("seed", range(10))
def test_plain_roc_and_curve_equal_scikit_learn(seed: int, tied: bool) -> None:
    scores, labels = random_problem(seed, tied=tied)
    known = labels != 0
    truth = labels[known] == 1
    assert average_precision(scores, labels, "plain") == pytest.approx(
        oracle.average_precision_score(truth, scores[known]), abs=1e-12
    )
    assert roc_auc(scores, labels) == pytest.approx(oracle.roc_auc_score(truth, scores[known]), abs=1e-12)
    precision, recall, thresholds = oracle.precision_recall_curve(truth, scores[known])
    curve = precision_recall_curve(scores, labels)
    np.testing.assert_allclose(curve.precision, precision[:-1][::-1])
    np.testing.assert_allclose(curve.recall, recall[:-1][::-1])
    np.testing.assert_allclose(curve.thresholds, thresholds[::-1])


@pytest.mark.parametrize("variant", ["voc07", "voc10", "plain"])
def test_all_scores_equal_give_the_prevalence(variant: str) -> None:
    assert average_precision([0.5] * 8, [1, 1, -1, -1, -1, -1, -1, -1], variant) == pytest.approx(0.25)
    assert average_precision([0.5] * 8, [-1, -1, -1, -1, -1, -1, 1, 1], variant) == pytest.approx(0.25)


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from([-1, 0, 1])), min_size=1, max_size=30), st.randoms())
def test_order_scale_and_ignored_rows_do_not_matter(rows: list[tuple[int, int]], random) -> None:  # type: ignore[no-untyped-def]
    scores, labels = zip(*rows, strict=True)
    shuffled_scores, shuffled_labels = zip(*random.sample(rows, len(rows)), strict=True)
    without = [row for row in rows if row[1] != 0]
    for variant in ("voc07", "voc10", "plain"):
        expected = average_precision(scores, labels, variant)
        found = [
            average_precision(shuffled_scores, shuffled_labels, variant),
            average_precision(np.exp(scores) - 7, labels, variant),
            average_precision([s for s, _ in without], [y for _, y in without], variant),
        ]
        np.testing.assert_allclose(found, expected, atol=1e-12)
        assert math.isnan(expected) or 0 <= expected <= 1


def test_infinite_scores_rank_at_the_ends() -> None:
    assert average_precision([np.inf, np.inf, -np.inf], [1, -1, 1], "plain") == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_mean_leaves_out_classes_without_positives() -> None:
    scores = np.array([[0.9, 0.2, 0.1], [0.1, 0.8, 0.3], [0.5, 0.9, 0.2]])
    labels = np.array([[1, -1, -1], [-1, 1, -1], [1, -1, 0]])
    mean, per_class = mean_average_precision(scores, labels, "plain")
    np.testing.assert_allclose(per_class, [1.0, 0.5, np.nan])
    assert mean == pytest.approx(0.75)
    assert math.isnan(mean_average_precision(scores, -np.ones_like(labels))[0])


def test_no_positives_are_nan() -> None:
    for variant in ("voc07", "voc10", "plain"):
        assert math.isnan(average_precision([0.1, 0.2], [-1, 0], variant))
        assert math.isnan(average_precision([], [], variant))
    assert math.isnan(roc_auc([0.1, 0.2], [1, 1]))


@pytest.mark.parametrize("seed", range(5))
def test_accuracies_equal_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, targets = rng.normal(size=(50, 7)), rng.integers(0, 5, 50)  # classes 5 and 6 never occur
    guesses = scores.argmax(axis=1)
    assert multiclass_accuracy(scores, targets) == pytest.approx(oracle.accuracy_score(targets, guesses))
    per_class = [np.mean(guesses[targets == c] == c) for c in range(5)]
    assert class_mean_accuracy(scores, targets) == pytest.approx(np.mean(per_class))
    np.testing.assert_array_equal(
        confusion_matrix(targets, guesses, 7), oracle.confusion_matrix(targets, guesses, labels=range(7))
    )
    assert math.isnan(multiclass_accuracy(np.zeros((0, 3)), np.zeros(0, dtype=int)))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: average_precision([0.1, np.nan], [1, -1]), ConfigError, "1 of 2 values in scores are NaN"),
        (lambda: average_precision([0.1, 0.2], [1]), ShapeError, r"scores \(2,\) and labels \(1,\)"),
        (lambda: average_precision([[0.1]], [[1]]), ShapeError, "mean_average_precision"),
        (lambda: average_precision([0.1, 0.2], [1, 2]), ConfigError, r"contain 2; .*\n.*where\(labels, 1, -1\)"),
        (lambda: average_precision([0.1, 0.2], [True, False]), ConfigError, r"booleans.*\n.*where\(labels, 1, -1\)"),
        (lambda: average_precision([0.1], [1], "voc7"), ConfigError, "did you mean voc07"),  # type: ignore[arg-type]
        (lambda: mean_average_precision([0.1], [1]), ShapeError, "average_precision"),
        (lambda: roc_auc([np.nan], [1]), ConfigError, "NaN"),
        (lambda: multiclass_accuracy([[0.1, 0.2]], [2]), ConfigError, r"targets contain 2, outside \[0, 2\)"),
        (lambda: multiclass_accuracy([[0.1, 0.2]], [0.5]), ConfigError, "not class indices"),
        (lambda: multiclass_accuracy([0.1, 0.2], [0, 1]), ShapeError, "not \\(N, C\\)"),
        (lambda: multiclass_accuracy([[0.1, np.nan]], [0]), ConfigError, "NaN"),
        (lambda: confusion_matrix([0, 1], [0], 2), ShapeError, "differ in shape"),
        (lambda: confusion_matrix([0, -1], [0, 0], 2), ConfigError, "targets contain -1"),
    ],
)
def test_errors_name_the_value_and_the_remedy(call, error: type[Exception], message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=message):
        call()
