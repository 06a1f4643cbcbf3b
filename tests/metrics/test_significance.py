"""The tests of differences equal scipy's where they are the same test, and values worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from wildcat.errors import ShapeError
from wildcat.metrics import corrected_t_test, holm


@pytest.mark.parametrize("folds", [2, 5, 10])
def test_without_correction_it_is_the_paired_t_test(folds: int) -> None:
    rng = np.random.default_rng(folds)
    a, b = rng.normal(0.80, 0.02, folds), rng.normal(0.82, 0.02, folds)
    assert corrected_t_test(a - b, 0) == pytest.approx(stats.ttest_rel(a, b).pvalue, rel=1e-9)


def test_the_correction_of_nadeau_and_bengio() -> None:
    """Differences 1, 2, 3: mean 2, variance 1; of 3 folds each tests half as many images as it trains on."""
    t = 2 / math.sqrt((1 / 3 + 1 / 2) * 1)
    by_hand = 1 - t / math.sqrt(2 + t * t)  # two-sided p of Student's t with 2 degrees of freedom
    assert corrected_t_test([1, 2, 3], 0.5) == pytest.approx(by_hand, rel=1e-9)
    assert corrected_t_test([-1, -2, -3], 0.5) == pytest.approx(by_hand, rel=1e-9)
    assert corrected_t_test([1, 2, 3], 0.5) > corrected_t_test([1, 2, 3], 0)


def test_differences_without_variance() -> None:
    assert corrected_t_test([0.0, 0.0, 0.0], 0.25) == 1
    assert corrected_t_test([0.5, 0.5, 0.5], 0.25) == 0


def test_one_fold_is_refused() -> None:
    with pytest.raises(ShapeError, match="at least two folds"):
        corrected_t_test([0.1], 0.25)


def test_false_alarms_of_cross_validation_are_rarer_than_without_correction() -> None:
    """Two methods that are equally good, whose folds share a part of their chance, as overlapping training sets do."""
    rng = np.random.default_rng(0)
    shared = math.sqrt(0.2) * rng.normal(size=(2000, 1))  # correlation 0.2 = n_test / (n_test + n_train)
    differences = shared + math.sqrt(0.8) * rng.normal(size=(2000, 5))
    alarms = [np.mean([corrected_t_test(d, ratio) < 0.05 for d in differences]) for ratio in (0, 0.25)]
    assert alarms[0] > 0.1
    assert alarms[1] == pytest.approx(0.05, abs=0.015)


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1, 1])
    assert holm([0.02]) == [0.02]
    assert holm([]) == []
