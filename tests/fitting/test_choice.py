"""The choice of propagation and CRF: what is measured, and when a gain is more than noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from wildcat.fitting.choice import (
    FEWEST,
    MaskSteps,
    choose,
    label_f1,
    mean_gain,
    miou_gain,
    overlap_miou,
    possible_steps,
    thinned,
)
from wildcat.metrics import mean_iou, overlap_confusion
from wildcat.regions import CrfParams

PLAIN, WALK, CRF, BOTH = (MaskSteps(walk, crf) for crf in (False, True) for walk in (False, True))


def masks_like(truth: NDArray[np.int64], right: float, seed: int) -> NDArray[np.int64]:
    """Each pixel is true with probability `right`, otherwise of any class."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(truth.shape) < right, truth, rng.integers(0, 4, truth.shape))


def confusions(truths: NDArray[np.int64], right: float, seed: int) -> list[NDArray[np.int64]]:
    masks = masks_like(truths, right, seed)
    return [overlap_confusion(m, t, 4) for m, t in zip(masks, truths, strict=True)]


def overlaps(found: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.stack([np.stack([np.diag(c), c.sum(axis=0), c.sum(axis=1)]) for c in found])


@pytest.fixture
def truths() -> NDArray[np.int64]:
    """40 masks of 10 x 10 pixels: background and one of three classes, by halves."""
    rng = np.random.default_rng(0)
    return np.stack([np.where(np.arange(10) < 5, 0, c) * np.ones((10, 1), int) for c in rng.integers(1, 4, 40)])


def test_the_mean_iou_is_that_of_the_summed_confusion(truths: NDArray[np.int64]) -> None:
    found = confusions(truths, 0.7, 1)
    assert overlap_miou(overlaps(found).sum(axis=0)) == pytest.approx(mean_iou(np.sum(found, axis=0)))
    absent = np.zeros((3, 5), int)
    absent[:, 1] = (3, 4, 5)
    assert overlap_miou(absent) == pytest.approx(3 / 6), "classes in neither mask do not count"


def test_the_error_of_the_gain_is_that_of_a_bootstrap_one_by_one(truths: NDArray[np.int64]) -> None:
    before, after = confusions(truths, 0.6, 1), confusions(truths, 0.65, 2)
    gain, error = miou_gain(overlaps(before), overlaps(after))
    assert gain == pytest.approx(mean_iou(np.sum(after, axis=0)) - mean_iou(np.sum(before, axis=0)))
    rng, gains = np.random.default_rng(7), []
    for _ in range(400):
        drawn = rng.integers(0, 40, 40)
        gains.append(mean_iou(sum(after[i] for i in drawn)) - mean_iou(sum(before[i] for i in drawn)))
    assert error == pytest.approx(np.std(gains), rel=0.15)


def test_only_a_gain_above_noise_is_chosen(truths: NDArray[np.int64]) -> None:
    same, noise, better = (overlaps(confusions(truths, right, i)) for i, right in enumerate((0.6, 0.6, 0.75)))
    assert choose({PLAIN: same, CRF: noise}, miou_gain)[0] == PLAIN
    assert choose({PLAIN: better, CRF: same}, miou_gain)[0] == PLAIN
    chosen, tried = choose({PLAIN: same, WALK: noise, CRF: better}, miou_gain)
    assert chosen == CRF
    assert [(row["propagate"], row["crf"]) for row in tried] == [(True, False), (False, True)]
    assert tried[1]["gain"] > 2 * tried[1]["error"] > 0
    few = {PLAIN: same[: FEWEST - 1], CRF: better[: FEWEST - 1]}
    assert choose(few, miou_gain)[0] == PLAIN, "too few images"


def test_a_costlier_option_must_beat_the_choice_so_far() -> None:
    rng = np.random.default_rng(1)
    plain = rng.uniform(0.3, 0.5, 30)
    walk, both = plain + rng.normal(0.2, 0.05, 30), plain + rng.normal(0.205, 0.05, 30)
    assert choose({PLAIN: plain, WALK: walk, BOTH: both}, mean_gain)[0] == WALK
    assert choose({PLAIN: plain, BOTH: both}, mean_gain)[0] == BOTH
    assert choose({PLAIN: plain, BOTH: plain.copy()}, mean_gain)[0] == PLAIN, "no gain and no error"


def test_noise_is_rarely_chosen() -> None:
    """Two standard errors leave 2.3 % on one side."""
    rng = np.random.default_rng(2)
    taken = sum(choose({PLAIN: rng.normal(size=50), CRF: rng.normal(size=50)}, mean_gain)[0] == CRF for _ in range(500))
    assert 0 < taken < 0.05 * 500


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_f1_of_labels_by_sets(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.choice(4, (20, 20), p=[0.9, 0.08, 0.015, 0.005])
    labels = rng.choice(np.array([-1, 0, 1], np.int8), 3)
    shown = {c for c in range(3) if np.mean(mask == c + 1) >= 0.005 and labels[c] != 0}
    present = {c for c in range(3) if labels[c] == 1}
    hits, false, missed = len(shown & present), len(shown - present), len(present - shown)
    expected = 2 * hits / (2 * hits + false + missed) if hits + false + missed else 1.0
    assert label_f1(mask, labels) == pytest.approx(expected)


def test_flags_leave_one_option() -> None:
    settings = CrfParams(iterations=3)
    assert possible_steps(None, None, bounded=True) == [PLAIN, WALK, CRF, BOTH]
    assert possible_steps(None, None, bounded=False, crf_params=settings) == [PLAIN, MaskSteps(False, settings)]
    assert possible_steps(True, False, bounded=True) == [WALK]
    assert possible_steps(None, True, bounded=True) == [CRF, BOTH]


def test_thinned_is_evenly_spaced() -> None:
    values: list[Any] = list(range(10))
    assert list(thinned(values, 4)) == [0, 3, 6, 9] and list(thinned(values, 10)) == values
    assert list(thinned([], 4)) == []
