"""MaxBoxAccV2 and PxAP against flood fill, scikit-learn and the definitions of Choe et al. (CVPR 2020)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from sklearn.metrics import average_precision_score

from wildcat.errors import ConfigError, ShapeError
from wildcat.metrics import (
    box_hits,
    box_iou,
    localization_counts,
    max_box_accuracy,
    normalized_heatmap,
    pixel_average_precision,
    pixel_histogram,
)
from wildcat.metrics.wsol import BINS, GRID, IOUS, LEVELS, NO_COUNTS, region_boxes


def smooth(seed: int, size: tuple[int, int] = (14, 18)) -> NDArray[np.float64]:
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=size), 1.5)
    return (noise - noise.min()) / (noise.max() - noise.min())


def flooded_boxes(mask: NDArray[np.bool_]) -> Iterator[tuple[int, int, int, int]]:
    """The box of each 8-connected region, by flood fill."""
    remaining = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    while remaining:
        region = [remaining.pop()]
        for y, x in region:  # grows in the loop
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & remaining
            remaining -= near
            region += near
        rows, columns = zip(*region, strict=True)
        yield min(columns), min(rows), max(columns) + 1, max(rows) + 1


def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    both = width * height
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


@pytest.mark.parametrize("seed", range(4))
def test_box_hits_equal_flood_fill_at_the_thresholds_of_the_paper(seed: int) -> None:
    heat = smooth(seed)
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 9, (2, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(3, 9, (2, 2))], axis=1)
    hits = box_hits(heat, boxes)
    image, best = (heat * 255).astype(np.uint8), {}
    for threshold in np.arange(0, 1, 0.001):  # as clovaai/wsolevaluation: heatmaps of 8 bits, above a whole number
        level = int(threshold * image.max())
        if level not in best:
            found = flooded_boxes(image > level)
            best[level] = max(overlap(f, tuple(b)) for f in found for b in boxes)
    assert sorted(best) == list(range(LEVELS)), "1,000 thresholds have 255 different results"
    expected = [[best[level] >= iou for level in range(LEVELS)] for iou in IOUS]
    np.testing.assert_array_equal(hits, expected)
    assert hits[0].any()


@pytest.mark.parametrize("kind", ["noise", "plateaus", "ridge", "constant", "one row"])
def test_region_boxes_equal_flood_fill(kind: str) -> None:
    """Also where the steepest ascent has ties, and where regions touch at corners alone."""
    rng = np.random.default_rng(6)
    heat = {
        "noise": rng.random((9, 12)),
        "plateaus": rng.integers(0, 4, (12, 12)) / 3,
        "ridge": np.tile([1.0, 0.2, 1.0, 0.2], (8, 2)),
        "constant": np.ones((5, 6)),
        "one row": rng.random((1, 20)),
    }[kind]
    found: dict[int, list[tuple[int, ...]]] = {}
    for lowest, boxes in region_boxes(heat):
        for threshold, box in enumerate(boxes.tolist(), lowest):
            found.setdefault(threshold, []).append(tuple(box))
    levels = (heat * LEVELS).astype(int)
    for threshold in range(LEVELS):
        assert sorted(found.get(threshold, [])) == sorted(flooded_boxes(levels > threshold))


def test_max_box_accuracy_has_one_threshold_for_all_images() -> None:
    """Alone each image is localized at some threshold, and no threshold localizes both."""
    first, second = np.zeros((3, LEVELS), int), np.zeros((3, LEVELS), int)
    first[0, :50], second[0, 60:], second[1, 70:90] = 1, 1, 1
    assert max_box_accuracy(first + second, 2).tolist() == [0.5, 0.5, 0.0]
    assert np.isnan(max_box_accuracy(first, 0)).all()


@pytest.mark.parametrize("seed", range(4))
def test_pxap_equals_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    heats = [smooth(10 * seed + i) for i in range(3)]
    masks = [rng.choice([0, 1, 255], heat.shape, p=[0.6, 0.3, 0.1]) for heat in heats]
    histogram = sum(pixel_histogram(h, m) for h, m in zip(heats, masks, strict=True))
    truth, score = np.concatenate([m.ravel() for m in masks]), np.concatenate([h.ravel() for h in heats])
    expected = average_precision_score(truth[truth != 255], np.floor(score[truth != 255] * BINS))
    assert pixel_average_precision(histogram) == pytest.approx(expected)  # type: ignore[arg-type]
    assert histogram.sum() == (truth != 255).sum()  # type: ignore[union-attr]


def test_a_heatmap_is_resized_and_normalised() -> None:
    coarse = np.random.default_rng(0).normal(3, 5, (7, 9)).astype(np.float32)
    heat = normalized_heatmap(coarse)
    assert heat.shape == (GRID, GRID) and heat.min() == 0 and heat.max() == 1
    same = np.random.default_rng(1).normal(size=(GRID, GRID))
    np.testing.assert_allclose(normalized_heatmap(same), (same - same.min()) / np.ptp(same), atol=1e-6)
    assert not normalized_heatmap(np.full((3, 4), -2.0)).any()


def test_perfect_heatmaps_and_their_opposite() -> None:
    """Two classes in an image of 100 x 200 pixels; the boxes are those of the masks."""
    mask = np.zeros((100, 200), int)
    mask[20:60, 30:90], mask[10:90, 120:180], mask[:, 100] = 1, 2, 255
    maps = np.stack([mask == 1, mask == 2, np.zeros(mask.shape)]).astype(np.float32)
    boxes = [[[30, 20, 90, 60]], [[120, 10, 180, 90]], []]
    found = localization_counts(maps, (100, 200), boxes, mask).metrics()
    assert found["max_box_acc_v2"] == 1 and found["max_box_acc"] == {"0.3": 1.0, "0.5": 1.0, "0.7": 1.0}
    assert found["pxap"] > 0.98
    swapped = localization_counts(maps[[1, 0, 2]], (100, 200), boxes, mask).metrics()
    assert swapped["max_box_acc_v2"] == 0 and swapped["pxap"] < 0.2
    constant = localization_counts(0 * maps, (100, 200), boxes, mask)
    share = constant.pixels[1].sum() / constant.pixels.sum()
    assert constant.metrics()["max_box_acc_v2"] == 0 and constant.metrics()["pxap"] == pytest.approx(share)


def test_counts_add_up_and_cover_what_is_known() -> None:
    mask = np.zeros((60, 60), int)
    mask[5:30, 5:30] = 1
    maps = np.stack([smooth(1), smooth(2)])
    boxes = [[[5, 5, 30, 30]], []]
    both = localization_counts(maps, (60, 60), boxes, mask)
    only_boxes = localization_counts(maps, (60, 60), boxes, None)
    only_mask = localization_counts(maps, (60, 60), None, mask)
    assert both.box_pairs == 1 and both.pixels.sum() == GRID**2
    assert list(only_boxes.metrics()) == ["max_box_acc_v2", "max_box_acc"] and list(only_mask.metrics()) == ["pxap"]
    joined = only_boxes.merge(only_mask)
    assert joined.metrics() == both.metrics()
    assert both.merge(both).box_pairs == 2 and both.merge(both).metrics() == both.metrics()
    assert NO_COUNTS.metrics() == {} and NO_COUNTS.box_pairs == 0 and not NO_COUNTS.pixels.any()


def test_box_iou_is_that_of_continuous_boxes() -> None:
    rng = np.random.default_rng(4)
    corners = rng.uniform(0, 50, (12, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(1, 60, (12, 2))], axis=1)
    expected = [[overlap(tuple(a), tuple(b)) for b in boxes[5:]] for a in boxes[:5]]
    np.testing.assert_allclose(box_iou(boxes[:5], boxes[5:]), expected)
    assert box_iou([], boxes).shape == (0, 12) and box_iou([[3, 3, 3, 3]], [[3, 3, 3, 3]]).tolist() == [[0.0]]


def test_errors_name_the_value_and_the_remedy() -> None:
    with pytest.raises(ConfigError, match="from -1 to 0, outside"):
        box_hits([[-1.0, 0.0]], [[0, 0, 1, 1]])
    with pytest.raises(ShapeError, match="differ in shape"):
        pixel_histogram([[0.5]], [[0, 1]])
    with pytest.raises(ConfigError, match="other than 0, 1 and 255"):
        pixel_histogram([[0.5]], [[7]])
    with pytest.raises(ShapeError, match="not \\(h, w\\)"):
        normalized_heatmap(np.zeros((2, 3, 4)))
    with pytest.raises(ConfigError, match="NaN"):
        normalized_heatmap([[np.nan]])
    assert math.isnan(pixel_average_precision(pixel_histogram([[0.5]], [[0]])))
