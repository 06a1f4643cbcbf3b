"""Plots with matplotlib (extra `plot`): precision-recall curves, and metrics over a setting.

Each function returns the bytes of an image file; matplotlib's global state and display are not used.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wildcat.errors import ConfigError, import_extra
from wildcat.viz.colors import MARK_COLORS
from wildcat.viz.fonts import drawn_texts, font_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

SUFFIXES = (".png", ".svg", ".pdf")
MARKERS = "osD^vPX"
COLORS = [tuple(v / 255 for v in color) for color in MARK_COLORS]


@dataclass(frozen=True)
class Series:
    """One line of a plot.

    Attributes:
        name: shown in the legend.
        spread: standard deviations of `y`, drawn as error bars; empty if unknown.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float] = ()


def draw_series(
    series: Sequence[Series], x_label: str, y_label: str, title: str, suffix: str = ".png", log_x: bool = False
) -> bytes:
    """Plot metrics over a setting, such as mAP over alpha, with error bars of one standard deviation.

    Args:
        suffix: ".png", ".svg" or ".pdf".
        log_x: logarithmic (base 2) x axis with a tick at each value, for settings that double (M).

    Raises:
        ConfigError: unknown suffix.
        MissingExtra: matplotlib is not installed.
    """

    figure, axes = _figure(title, suffix)
    for i, line in enumerate(series):
        style: dict[str, Any] = {"marker": MARKERS[i % len(MARKERS)], "markersize": 5, "label": line.name}
        style |= {"color": COLORS[(i + 6) % len(COLORS)], "linewidth": 1.6}
        axes.errorbar(line.x, line.y, yerr=list(line.spread) or None, capsize=3, **style)
    if log_x:
        ticks = sorted({x for line in series for x in line.x})
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
        axes.minorticks_off()
    axes.set(xlabel=x_label, ylabel=y_label)
    return _encode(figure, suffix, legend=len(series) > 1)


def draw_precision_recall(
    curves: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]], title: str, suffix: str = ".png"
) -> bytes:
    """Plot precision over recall, one line per class: name -> (recall (K,), precision (K,)), both in [0, 1].

    A class whose name no font of the system has is `#i` in the legend, i = 1 for the first.

    Raises:
        ConfigError, MissingExtra: see `draw_series`.
    """
    figure, axes = _figure(title, suffix)
    dashes = ("-", "--", ":", "-.")
    names = drawn_texts([f" {name}" if name.startswith("_") else name for name in curves])  # "_x" is not in a legend
    for i, (name, (recall, precision)) in enumerate(zip(names, curves.values(), strict=True)):
        style: dict[str, Any] = {"color": COLORS[i % len(COLORS)], "linestyle": dashes[i // len(COLORS) % len(dashes)]}
        axes.step(recall, precision, where="pre", linewidth=1.4, label=name, **style)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    return _encode(figure, suffix, legend=True)


def _figure(title: str, suffix: str) -> tuple[Figure, Axes]:
    if suffix not in SUFFIXES:
        raise ConfigError(f"{suffix or 'no suffix'}: give a file name that ends in {', '.join(SUFFIXES)} or .csv.")
    figure = import_extra("matplotlib.figure", "matplotlib", "plot").Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=11)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _use_font(artist: Text) -> None:
    """Draw a text with a font that has its characters."""
    from matplotlib.font_manager import FontProperties  # noqa: PLC0415

    if file := font_file(artist.get_text()):
        artist.set_fontproperties(FontProperties(fname=file, size=artist.get_fontsize()))


def _encode(figure: Figure, suffix: str, legend: bool) -> bytes:
    (axes,) = figure.axes
    handles, labels = axes.get_legend_handles_labels()
    if legend and handles:
        texts = axes.legend(handles, labels, fontsize=8, frameon=False, ncols=1 + (len(labels) - 1) // 14).get_texts()
        for artist in texts:
            _use_font(artist)
    if font_file(axes.get_title()) is None:
        axes.title.set_text(axes.get_title().encode("ascii", "replace").decode())
    _use_font(axes.title)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=suffix[1:], dpi=144)
    return buffer.getvalue()
