"""Regions against scikit-image's labelling, boxes against painted rectangles and a loop over cells."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy import ndimage
from skimage import measure

from wildcat.errors import ConfigError, ShapeError
from wildcat.regions.boxes import Box, connected_regions, map_to_boxes

SIDES = st.tuples(st.integers(1, 12), st.integers(1, 12))


def check_regions(mask: NDArray[np.bool_]) -> None:
    """Equal to scikit-image: same regions, same boxes, largest first, ties by the first cell."""
    labels = measure.label(mask, connectivity=2)
    expected = sorted(measure.regionprops(labels), key=lambda region: (-region.area, region.label))
    found = connected_regions(mask)
    assert [region.mask.sum() for region in found] == [region.area for region in expected]
    for region, wanted in zip(found, expected, strict=True):
        assert (region.rows, region.columns) == wanted.slice
        np.testing.assert_array_equal(region.mask, wanted.image)


@settings(deadline=None)
@given(arrays(bool, SIDES))
def test_regions_equal_scikit_image(mask: NDArray[np.bool_]) -> None:
    check_regions(mask)


def test_regions_of_spirals_combs_and_noise() -> None:
    """Shapes whose branches meet late, where a single labelling pass fails."""
    rng = np.random.default_rng(0)
    comb = np.ones((41, 61), dtype=bool)
    comb[:-1, 1::2] = False
    spiral = np.zeros((41, 41), dtype=bool)
    for ring in range(0, 20, 2):
        spiral[ring : 41 - ring, ring : 41 - ring] = True
        spiral[ring + 1 : 40 - ring, ring + 1 : 40 - ring] = False
        spiral[ring + 2, ring + 1] = True
    for mask in (comb, comb[::-1], spiral, spiral.T, *(rng.random((70, 90)) < p for p in (0.3, 0.45, 0.6, 0.9))):
        check_regions(mask)


def boxes_by_cells(heat: NDArray[np.float64], threshold: float) -> list[tuple[float, ...]]:
    cut = min(heat.min() + threshold * (heat.max() - heat.min()), heat.max())
    labels = measure.label(heat >= cut, connectivity=2)
    found = []
    for k in range(1, labels.max() + 1):
        rows, columns = np.nonzero(labels == k)
        box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1, heat[labels == k].max())
        found.append((len(rows), -k, box))
    return [box for _, _, box in sorted(found, reverse=True, key=lambda item: item[:2])]


@pytest.mark.parametrize("seed", range(20))
def test_boxes_equal_a_loop_over_components(seed: int) -> None:
    rng = np.random.default_rng(seed)
    heat = ndimage.gaussian_filter(rng.normal(size=(40, 55)), rng.uniform(0.5, 4)) * 10 - 3
    threshold = rng.uniform(0.2, 0.9)
    np.testing.assert_allclose(map_to_boxes(heat, threshold), boxes_by_cells(heat, threshold))


def test_painted_rectangles_in_cells_and_pixels() -> None:
    heat = np.full((30, 40), -2.0)
    heat[3:9, 5:20] = 6.0
    heat[4, 6] = 8.0
    heat[20:30, 38:40] = 7.0
    assert map_to_boxes(heat) == [Box(5, 3, 20, 9, 8.0), Box(38, 20, 40, 30, 7.0)]
    assert map_to_boxes(heat, size=(300, 200)) == [Box(25, 30, 100, 90, 8.0), Box(190, 200, 200, 300, 7.0)]
    assert map_to_boxes(heat, min_area=21 / 1200) == [Box(5, 3, 20, 9, 8.0)]
    assert map_to_boxes(heat, min_area=0.5) == []
    assert map_to_boxes(heat, threshold=1.0) == [Box(6, 4, 7, 5, 8.0)]


def test_threshold_is_a_fraction_of_the_range_not_of_the_maximum() -> None:
    ramp = np.arange(11.0)[None] - 5
    assert map_to_boxes(ramp, 0.7) == [Box(7, 0, 11, 1, 5.0)]
    np.testing.assert_allclose(map_to_boxes(ramp * 3 + 100, 0.7), [(7, 0, 11, 1, 115)])


def test_cells_that_touch_at_a_corner_form_one_region() -> None:
    assert len(map_to_boxes(np.eye(5))) == 1


def test_flat_and_tiny_maps() -> None:
    assert map_to_boxes(np.full((4, 4), 3.0)) == []
    assert map_to_boxes([[0, 1]]) == [Box(1, 0, 2, 1, 1.0)]
    low = np.float64(-0.1)
    high = np.nextafter(np.float64(0.2), 1)
    assert map_to_boxes([[low, high]], threshold=1.0) == [Box(1, 0, 2, 1, high)]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint8])
def test_dtypes_agree(dtype: type) -> None:
    heat = np.random.default_rng(0).integers(0, 200, (20, 20)).astype(dtype)
    assert map_to_boxes(heat, 0.8) == map_to_boxes(heat.astype(np.float64), 0.8)


def test_fast_enough_for_every_class_of_every_image() -> None:
    """About 2 ms for a smooth 512 x 512 map; the bound is ten times that for busy machines."""
    heat = ndimage.gaussian_filter(np.random.default_rng(0).random((512, 512)), 20)
    times = []
    for _ in range(7):
        begin = time.perf_counter()
        map_to_boxes(heat)
        times.append(time.perf_counter() - begin)
    assert min(times) < 0.02


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"heatmap": np.zeros((2, 3, 3))}, ShapeError, r"not \(H, W\)"),
        ({"heatmap": np.zeros((0, 3))}, ShapeError, r"not \(H, W\)"),
        ({"heatmap": [[0.0, np.nan]]}, ConfigError, "NaN"),
        ({"threshold": 0.0}, ConfigError, "threshold=0.0"),
        ({"threshold": 50}, ConfigError, "fraction"),
    ],
)
def test_errors_name_the_value_and_the_remedy(
    arguments: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        map_to_boxes(**({"heatmap": np.eye(3)} | arguments))  # type: ignore[arg-type]
