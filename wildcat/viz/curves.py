"""Plots for people, with matplotlib (extra `plot`): precision-recall, training, and a figure over a setting.

Each function returns the bytes of an image; nothing is shown on a screen and no global state of matplotlib is touched.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wildcat.errors import ConfigError, MissingExtra
from wildcat.viz.colors import MARK_COLORS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".png", ".svg", ".pdf")
MARKERS = "osD^vPX"
COLORS = [tuple(v / 255 for v in color) for color in MARK_COLORS]


@dataclass(frozen=True)
class Series:
    """One line of a plot.

    Attributes:
        name: for the legend.
        x: positions.
        y: heights.
        spread: standard deviations around `y`, drawn as bars; empty where unknown.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float] = ()


def draw_series(
    series: Sequence[Series], x_label: str, y_label: str, title: str, suffix: str = ".png", log_x: bool = False
) -> bytes:
    """Lines over a setting, such as accuracy over alpha, with bars of one standard deviation.

    Args:
        suffix: ".png", ".svg" or ".pdf".
        log_x: a logarithmic axis with a tick at each position, for settings that double (M).

    Raises:
        ConfigError: another suffix.
        MissingExtra: matplotlib is not installed.
    """

    def draw(axes: Axes) -> None:
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

    return _drawn(draw, title, suffix, legend=len(series) > 1)


def draw_precision_recall(
    curves: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]], title: str, suffix: str = ".png"
) -> bytes:
    """Precision over recall, a line for each class: name -> (recall (K,), precision (K,)), both in [0, 1].

    Raises:
        ConfigError, MissingExtra: see `draw_series`.
    """
    dashes = ("-", "--", ":", "-.")

    def draw(axes: Axes) -> None:
        for i, (name, (recall, precision)) in enumerate(curves.items()):
            style = {"color": COLORS[i % len(COLORS)], "linestyle": dashes[i // len(COLORS) % len(dashes)]}
            axes.step(recall, precision, where="pre", linewidth=1.4, label=name, **style)  # type: ignore[arg-type]
        axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))

    return _drawn(draw, title, suffix, legend=True)


def draw_training(history: Sequence[Mapping[str, Any]], title: str, suffix: str = ".png") -> bytes:
    """Loss and validation metric over the epochs of a run; `history` holds the lines of its metrics.jsonl.

    Raises:
        ConfigError: no finished epoch, or another suffix.
        MissingExtra: matplotlib is not installed.
    """
    if not history:
        raise ConfigError("there is no finished epoch to draw.", "Train for at least one epoch.")
    epochs = [int(line["epoch"]) for line in history]
    val = [line["val"] for line in history if "val" in line]

    def draw(axes: Axes) -> None:
        axes.plot(epochs, [line["loss"] for line in history], color=COLORS[6], label="training loss")
        axes.set(xlabel="epoch", ylabel="loss")
        if not val:
            return
        axes.plot(epochs[-len(val) :], [v["loss"] for v in val], color=COLORS[6], linestyle="--", label="val loss")
        name = next(key for key in val[0] if key != "loss")
        right = axes.twinx()
        right.plot(epochs[-len(val) :], [v[name] for v in val], color=COLORS[4], marker="o", markersize=3)
        right.set_ylabel(f"val {name}", color=COLORS[4])

    return _drawn(draw, title, suffix, legend=True)


def _drawn(draw: Any, title: str, suffix: str, legend: bool) -> bytes:
    if suffix not in SUFFIXES:
        raise ConfigError(f"{suffix or 'no suffix'}: give a file name that ends in {', '.join(SUFFIXES)} or .csv.")
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415  # optional: extra plot
    except ImportError as error:
        raise MissingExtra("matplotlib", "plot") from error
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.add_subplot()
    draw(axes)
    axes.set_title(title, fontsize=11)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    if legend and handles:
        columns = 1 + (len(labels) - 1) // 14
        axes.legend(handles, labels, fontsize=8, frameon=False, ncols=columns)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=suffix[1:], dpi=144)
    return buffer.getvalue()
