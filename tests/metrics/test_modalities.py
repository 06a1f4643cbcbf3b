"""The measures of modality maps equal tables worked by hand and loops."""

from __future__ import annotations

import math

import numpy as np
import pytest

from wildcat.errors import ShapeError
from wildcat.metrics.modalities import (
    cluster_purity,
    map_shares,
    maps_differ,
    mask_coverage,
    top_region_iou,
    top_regions,
)

QUARTERS = np.zeros((4, 4, 4))  # map m is high in a quarter of the grid, one corner each
for _m, (_i, _j) in enumerate(((0, 0), (0, 2), (2, 0), (2, 2))):
    QUARTERS[_m, _i : _i + 2, _j : _j + 2] = 1.0


def test_top_regions_are_the_highest() -> None:
    maps = np.random.default_rng(0).normal(size=(2, 3, 5, 4))
    top = top_regions(maps, 0.3)
    assert top.shape == maps.shape
    for one, chosen in zip(maps.reshape(6, -1), top.reshape(6, -1), strict=True):
        assert sorted(one[chosen]) == sorted(one)[-6:]  # 0.3 of 20
    assert top_regions(maps, 0.001).reshape(6, -1).sum(axis=1).tolist() == [1] * 6


def test_overlap_of_top_regions() -> None:
    assert top_region_iou(QUARTERS, 0.25) == 0
    assert top_region_iou(np.stack([QUARTERS[0]] * 3), 0.25) == 1
    # three pairs: equal 1, and twice disjoint 0
    assert top_region_iou(QUARTERS[[0, 0, 1]], 0.25) == pytest.approx(1 / 3)
    assert math.isnan(top_region_iou(QUARTERS[:1], 0.25))


def test_coverage_of_a_mask_whose_size_is_no_multiple_of_the_grid() -> None:
    mask = np.zeros((9, 13), dtype=bool)
    mask[2:8, 3:12] = True
    covered = np.zeros((4, 9, 13), dtype=bool)
    for y in range(9):
        for x in range(13):
            covered[:, y, x] = QUARTERS[:, int((y + 0.5) * 4 / 9), int((x + 0.5) * 4 / 13)] > 0
    covered &= mask
    together, best = mask_coverage(QUARTERS[:2], mask, 0.25)
    assert together == pytest.approx(covered[:2].any(axis=0).sum() / mask.sum())
    assert best == pytest.approx(max(covered[0].sum(), covered[1].sum()) / mask.sum())
    assert best < together
    assert mask_coverage(QUARTERS, mask, 0.25)[0] == 1
    assert np.isnan(mask_coverage(QUARTERS, np.zeros((9, 13)))).all()


def test_shares_of_the_maps() -> None:
    maps = QUARTERS[:3] + np.linspace(0, 0.1, 16).reshape(4, 4)
    # The 8 highest regions: all of map 2's quarter, which is lowest in the image, and the lower halves of the others.
    assert map_shares(maps, maps.max(axis=0), 0.5).tolist() == [2 / 8, 2 / 8, 4 / 8]
    assert map_shares(maps, QUARTERS[0], 0.25).tolist() == [1, 0, 0]


def test_maps_that_differ_by_their_initial_weights_are_alike() -> None:
    rng = np.random.default_rng(0)
    learned, noise = rng.normal(size=(6, 7)), rng.normal(size=(4, 6, 7))
    assert not maps_differ(learned + 0.01 * noise)
    assert maps_differ(learned + 0.5 * noise)
    assert not maps_differ(learned[None])
    assert not maps_differ(np.zeros((4, 6, 7)))
    with pytest.raises(ShapeError, match="modality maps"):
        maps_differ(learned)


def test_purity_of_maps_that_select_one_kind_each_and_of_maps_that_select_all() -> None:
    rng = np.random.default_rng(0)
    kinds = np.repeat(np.arange(3), 40)
    features = 5 * np.eye(3)[kinds] + 0.1 * rng.normal(size=(120, 3))
    assert cluster_purity(features, kinds, 3) == 1
    assert cluster_purity(features, rng.permutation(kinds), 3) < 0.5
