"""Colour maps against matplotlib and CIELAB, the palette against VOC's own mask files."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from skimage.color import deltaE_ciede2000, rgb2lab

from wildcat.errors import ConfigError
from wildcat.viz.colors import (
    COLORMAPS,
    MARK_COLORS,
    apply_colormap,
    class_palette,
    colormap_table,
    readable_on,
    unit_range,
)

# Machado, Oliveira and Fernandes (2009), complete deuteranomaly and protanomaly, on linear RGB
DEUTERANOPIA = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
PROTANOPIA = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]


def seen_by(colors: NDArray[np.uint8], matrix: list[list[float]] | None) -> NDArray[np.float64]:
    """CIELAB of RGB colours as a colour-blind reader sees them; None: as anybody."""
    linear = (colors / 255) ** 2.2
    if matrix is not None:
        linear = (linear @ np.array(matrix).T).clip(0, 1)
    lab: NDArray[np.float64] = rgb2lab((linear ** (1 / 2.2))[None])[0]
    return lab


@pytest.mark.parametrize(("name", "off"), [("viridis", 1), ("inferno", 1), ("cividis", 5)])
def test_tables_are_matplotlibs(name: str, off: int) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    expected = matplotlib.colormaps[name](np.arange(256), bytes=True)[:, :3].astype(int)
    assert np.abs(colormap_table(name) - expected).max() <= off


@pytest.mark.parametrize("matrix", [None, DEUTERANOPIA, PROTANOPIA])
@pytest.mark.parametrize("name", COLORMAPS)
def test_lightness_rises_steadily_for_every_eye(name: str, matrix: list[list[float]] | None) -> None:
    lightness = seen_by(colormap_table(name), matrix)[:, 0]
    smooth = np.convolve(lightness, np.ones(8) / 8, mode="valid")  # 8-bit rounding aside
    assert (np.diff(smooth) > 0).all()
    assert lightness[-1] - lightness[0] > 60
    if matrix is None:  # uniform: equal steps of value are about equal steps of lightness
        assert np.abs(lightness - np.linspace(lightness[0], lightness[-1], 256)).max() < 6


def test_mark_colors_are_told_apart_by_every_eye() -> None:
    for matrix in (None, DEUTERANOPIA, PROTANOPIA):
        lab = seen_by(np.array(MARK_COLORS), matrix)
        assert min(deltaE_ciede2000(lab[i], lab[j]) for i, j in combinations(range(len(lab)), 2)) > 8


def test_colormap_takes_the_nearest_of_256_clips_and_greys_nan() -> None:
    table = colormap_table("inferno")
    values = np.array([[-3.0, 0.0, 0.4], [0.999, 7.0, np.nan]])
    expected = [[table[0], table[0], table[102]], [table[255], table[255], (128, 128, 128)]]
    np.testing.assert_array_equal(apply_colormap(values), expected)


def test_unit_range_by_hand() -> None:
    np.testing.assert_allclose(unit_range([[2.0, np.nan], [4.0, 3.0]]), [[0, np.nan], [1, 0.5]])
    np.testing.assert_allclose(unit_range([-5, 0, 5, 20], (0, 10)), [0, 0, 0.5, 1])
    np.testing.assert_allclose(unit_range([-np.inf, 1, 3, np.inf]), [0, 0, 1, 1])
    np.testing.assert_allclose(unit_range(np.array([0, 255], dtype=np.uint8)), [0, 1])
    np.testing.assert_allclose(unit_range([-1.7e308, 0, 1.7e308]), [0, 0.5, 1])


def test_unit_range_of_nothing_to_tell_apart() -> None:
    np.testing.assert_array_equal(unit_range([7.0, 7.0, np.nan]), [0, 0, np.nan])
    np.testing.assert_array_equal(unit_range([np.nan]), [np.nan])
    assert unit_range(np.zeros((0, 3))).shape == (0, 3)
    np.testing.assert_array_equal(unit_range([7.0, 7.0], (0.0, 10.0)), [0.7, 0.7])


def test_palette_begins_as_printed_in_the_devkit() -> None:
    known = {1: (128, 0, 0), 2: (0, 128, 0), 7: (128, 128, 128), 8: (64, 0, 0), 15: (192, 128, 128), 20: (0, 64, 128)}
    palette = class_palette(256)
    for index, color in known.items():
        assert tuple(palette[index]) == color
    assert tuple(palette[255]) == (224, 224, 192)
    assert len({tuple(color) for color in palette.tolist()}) == 256


def test_palette_is_that_of_the_official_masks(real_data: Path) -> None:
    mask = next((real_data / "VOCdevkit" / "VOC2012" / "SegmentationClass").glob("*.png"))
    with Image.open(mask) as image:
        stored = np.array(image.getpalette()).reshape(-1, 3)
    np.testing.assert_array_equal(class_palette(len(stored)), stored)


def test_letters_have_contrast_on_every_color() -> None:
    """At least 4.5 to 1, what WCAG 2 asks for text, on a grid of all RGB colours."""

    def luminance(color: tuple[int, ...]) -> float:
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (c / 255 for c in color)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for color in np.stack(np.meshgrid(*[range(0, 256, 17)] * 3), -1).reshape(-1, 3).tolist():
        light, dark = sorted((luminance(color), luminance(readable_on(color))), reverse=True)
        assert (light + 0.05) / (dark + 0.05) > 4.5


def test_errors_name_the_value_and_the_remedy() -> None:
    with pytest.raises(ConfigError, match="num_classes=257"):
        class_palette(257)
    with pytest.raises(ConfigError, match="low <= high"):
        unit_range([1.0], (2.0, 1.0))
