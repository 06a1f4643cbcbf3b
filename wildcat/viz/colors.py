"""Colour maps for heatmaps, and palettes for classes and marks.

viridis, inferno and cividis are matplotlib's maps (CC0): perceptually uniform, with lightness that increases with the
value for readers with and without colour blindness. Every fifth of the 256 colours is stored and the rest interpolated,
with an error of at most 1 of 255 (5 in the darkest blues of cividis).
"""

from __future__ import annotations

import base64

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wildcat.errors import ConfigError

_TABLES = {
    "viridis": (
        "44015445085b470f62471669481d6f482374472a7946307d453681433c844142863e48883c4d8a3a538b37588c355d8c32628d"
        "30678d2e6c8e2c718e2a768e287a8e267f8e24848d23898d218d8c1f928c1e978a1e9b891ea08720a58523a98228ae7f2eb27c"
        "35b7783dbb7445bf6f4fc36959c76464cb5d70ce567cd24f88d54795d73fa2da37afdc2ebdde26cae01ed7e219e4e318f1e51c"
        "fde724"
    ),
    "inferno": (
        "00000301010b0403160906210f092d160b391d0c45260b502e0a5a370961400966480b6a500d6c58106d60136e68166e70196e"
        "781c6d801f6b88216a902468982765a02a62a72d5faf315bb73456be3852c53d4dcc4148d24742d94d3dde5337e45a31e8612b"
        "ed6825f0701ef37918f68111f88a0bfa9306fb9d06fba60bfbb014fbb91ef9c32af8cd37f5d745f3e056f1e968f1f27df5f891"
        "fcfea4"
    ),
    "cividis": (
        "00224d00265500295e002c6700307008337016366f1f3a6e273d6d2e416c34446c39486c3f4b6b444f6b49526b4e566c52596c"
        "575d6d5b606e60646e64676f686b716d6e727172737575757979777e7d788380788784788c8878918c77968f779b9376a09775"
        "a59b73aa9f72afa370b4a76fb9ab6dbeb06ac4b468c9b865cebc62d4c15ed9c55adfca56e4ce51ead34cefd846f5dc3ffbe136"
        "fde737"
    ),
}

COLORMAPS = ("inferno", "viridis", "cividis")  # as the report and the page of the service offer them

# Seven colours that readers with colour blindness can distinguish (Okabe and Ito, 2008), for points, boxes and masks.
MARK_COLORS: tuple[tuple[int, int, int], ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (213, 94, 0),
    (204, 121, 167),
    (0, 114, 178),
)
NAN_COLOR = (128, 128, 128)


def colormap_table(name: str) -> NDArray[np.uint8]:
    """The (256, 3) RGB table of one of `COLORMAPS`, lowest value first.

    >>> colormap_table("inferno")[[0, -1]].tolist()
    [[0, 0, 3], [252, 254, 164]]
    """
    points = np.frombuffer(bytes.fromhex(_TABLES[name]), dtype=np.uint8).reshape(-1, 3)
    steps = np.arange(256)
    channels = [np.interp(steps, steps[::5], channel) for channel in points.T]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def encode_colormaps() -> dict[str, str]:
    """The `COLORMAPS` for maps.js: base64 of 256 RGB triples each."""
    return {name: base64.b64encode(colormap_table(name).tobytes()).decode() for name in COLORMAPS}


def unit_range(values: ArrayLike, limits: tuple[float, float] | None = None) -> NDArray[np.float64]:
    """Scale values to [0, 1] for display.

    Args:
        values: any shape and scale; NaN stays NaN, infinities are clipped.
        limits: (low, high) that become 0 and 1, to show several maps on one scale; values beyond are clipped. None: the
            finite minimum and maximum.

    Returns:
        float64 of the same shape; all 0 if low equals high.

    Raises:
        ConfigError: low above high, or a limit that is not finite.

    >>> unit_range([-1, 0, 3]).tolist()
    [0.0, 0.25, 1.0]
    """
    array = np.asarray(values, dtype=np.float64)
    finite = array[np.isfinite(array)]
    low, high = limits or ((float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0))
    if not (np.isfinite(low) and np.isfinite(high) and low <= high):
        raise ConfigError(f"limits={limits} are not a scale.", "Give a finite (low, high) with low <= high.")
    if high <= low:
        return np.where(np.isnan(array), np.nan, 0.0)
    # halved, so that high - low stays finite for the largest floats
    unit: NDArray[np.float64] = (np.clip(array, low, high) / 2 - low / 2) / (high / 2 - low / 2)
    return unit


def apply_colormap(values: ArrayLike) -> NDArray[np.uint8]:
    """Map values in [0, 1] to uint8 RGB (..., 3) of inferno; values beyond are clipped, NaN is grey.

    >>> apply_colormap([0.0, 1.0, float("nan")]).tolist()
    [[0, 0, 3], [252, 254, 164], [128, 128, 128]]
    """
    array = np.asarray(values, dtype=np.float64)
    unknown = np.isnan(array)
    index = (np.where(unknown, 0.0, array).clip(0, 1) * 255).round().astype(np.uint8)
    colors: NDArray[np.uint8] = colormap_table("inferno")[index]
    colors[unknown] = NAN_COLOR
    return colors


def class_palette(num_classes: int = 256) -> NDArray[np.uint8]:
    """The (num_classes, 3) RGB palette of the VOC devkit (`VOClabelcolormap.m`).

    The bits of the class index are distributed over R, G and B. Index 0 (background) is black, 255 is the pale colour
    of the ignored border in VOC's masks.

    Raises:
        ConfigError: `num_classes` is outside [1, 256], the range of an indexed image.

    >>> class_palette(4).tolist()
    [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    """
    if not 1 <= num_classes <= 256:
        raise ConfigError(f"num_classes={num_classes} is not in [1, 256].", "An indexed image holds 256 colours.")
    index = np.arange(num_classes)
    palette = np.zeros((num_classes, 3), dtype=np.uint8)
    for level in range(8):
        for channel in range(3):
            bit = (index >> (3 * level + channel)) & 1
            palette[:, channel] |= (bit << (7 - level)).astype(np.uint8)
    return palette


def readable_on(color: ArrayLike) -> tuple[int, int, int]:
    """Black or white, whichever has more contrast on an RGB colour (WCAG 2 relative luminance).

    >>> readable_on((240, 228, 66)), readable_on((0, 114, 178))
    ((0, 0, 0), (255, 255, 255))
    """
    channel = np.asarray(color, dtype=np.float64) / 255
    linear = np.where(channel <= 0.04045, channel / 12.92, ((channel + 0.055) / 1.055) ** 2.4)
    luminance = float(linear @ (0.2126, 0.7152, 0.0722))
    # contrast with white is 1.05 / (luminance + 0.05), with black (luminance + 0.05) / 0.05
    return (0, 0, 0) if (luminance + 0.05) ** 2 > 1.05 * 0.05 else (255, 255, 255)
