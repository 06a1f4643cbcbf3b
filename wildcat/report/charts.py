"""Charts as SVG text: no library, no script, colours from the page's own variables, so that they follow its theme.

Each chart is an image for assistive technology: it carries a name and a sentence of what it shows.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wildcat.metrics import PrecisionRecall

WIDTH, HEIGHT = 520, 260
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 38
CURVE_POINTS = 80
"""A small curve shows no more steps than this."""


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        name: for the legend.
        x, y: its points.
        style: a class of the style sheet: "line-1", "line-2 dashed", ...
        mark: index of a point to ring, or None.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: str
    mark: int | None = None


def text(value: object) -> str:
    """Anything as HTML text or attribute: escaped, without control characters and lone surrogates.

    >>> text('<b>"Tom" & co</b>')
    '&lt;b&gt;&quot;Tom&quot; &amp; co&lt;/b&gt;'
    """
    plain = str(value).encode("utf-8", "backslashreplace").decode()
    return html.escape("".join(c if c.isprintable() or c == " " else "\ufffd" for c in plain))


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers from `low` to `high`.

    >>> ticks(0.0, 1.0), ticks(1, 3, 4)
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [1.0, 2.0, 3.0])
    """
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    if isinstance(low, int) and isinstance(high, int):
        step = max(1.0, step)
    first = math.ceil(low / step - 1e-9)
    return [round((first + i) * step, 12) for i in range(int((high - first * step) / step + 1e-9) + 1)]


def line_chart(lines: Sequence[Line], x_label: str, y_label: str, title: str, summary: str) -> str:
    """Lines over an integer axis, such as epochs; points that are not finite interrupt nothing and are left out."""
    xs = [x for line in lines for x in line.x]
    ys = [y for line in lines for y in line.y if math.isfinite(y)] or [0.0]
    x_low, x_high = min(xs), max(xs)
    pad = (max(ys) - min(ys)) * 0.06 or abs(max(ys)) * 0.1 or 1.0
    y_low, y_high = min(ys) - pad, max(ys) + pad

    def place(x: float, y: float) -> tuple[float, float]:
        across = 0.5 if x_high == x_low else (x - x_low) / (x_high - x_low)
        up = (y - y_low) / (y_high - y_low)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = []
    for value in ticks(y_low, y_high, 4):
        y = place(x_low, value)[1]
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in ticks(round(x_low), round(x_high), 6):
        x = place(value, y_low)[0]
        parts.append(f'<text class="tick" x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{value:g}</text>')
    for line in lines:
        points = [place(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline class="line {line.style}" points="{path}"/>')
        if len(points) == 1:
            parts.append(f'<circle class="dot {line.style}" cx="{points[0][0]:.1f}" cy="{points[0][1]:.1f}" r="3"/>')
        if line.mark is not None and math.isfinite(line.y[line.mark]):
            x, y = place(line.x[line.mark], line.y[line.mark])
            parts.append(f'<circle class="ring {line.style}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>')
    middle = LEFT + (WIDTH - LEFT - RIGHT) / 2
    parts.append(f'<text class="axis" x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">{text(x_label)}</text>')
    legend = "".join(
        f'<span class="key"><svg class="swatch" viewBox="0 0 22 8" aria-hidden="true"><line class="line {line.style}" '
        f'x1="1" x2="21" y1="4" y2="4"/></svg>{text(line.name)}</span>'
        for line in lines
    )
    image = (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{text(summary)}">'
        f"{''.join(parts)}</svg>"
    )
    return (
        f'<figure class="plot"><figcaption><strong>{text(title)}</strong>'
        f'<span class="keys">{legend}</span></figcaption>{image}<span class="visually-hidden">{text(y_label)}</span>'
        "</figure>"
    )


def small_curve(curve: PrecisionRecall, summary: str) -> str:
    """A precision-recall curve in a square, recall to the right and precision upwards, both from 0 to 1."""
    recall, precision = _thinned(curve)
    steps = []
    previous = 0.0
    for r, p in zip(recall.tolist(), precision.tolist(), strict=True):
        steps += [(previous, p), (r, p)]
        previous = r
    points = " ".join(f"{x * 100:.1f},{100 - y * 100:.1f}" for x, y in steps)
    area = f"0,100 {points} {previous * 100:.1f},100" if steps else ""
    return (
        f'<svg class="curve" viewBox="-3 -3 106 106" role="img" aria-label="{text(summary)}">'
        '<path class="grid" d="M0 50H100M50 0V100"/><path class="frame" d="M0 0V100H100"/>'
        f'<polygon class="area" points="{area}"/><polyline class="line line-1" points="{points}"/></svg>'
    )


def bar(share: float | None, style: str) -> str:
    """A share in [0, 1] as a bar; its number stands beside it, so it is no image of its own."""
    filled = 0.0 if share is None else 100 * min(max(share, 0.0), 1.0)
    return (
        '<svg class="bar" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="track" width="100" height="8"/><rect class="{style}" width="{filled:.1f}" height="8"/></svg>'
    )


def _thinned(curve: PrecisionRecall) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The steps of a curve, or of a long one as many as can be seen: in each slice of recall the best precision."""
    recall, precision = curve.recall, curve.precision
    if len(recall) <= CURVE_POINTS:
        return recall, precision
    cell = np.minimum((recall * CURVE_POINTS).astype(int), CURVE_POINTS - 1)
    starts = np.flatnonzero(np.diff(cell, prepend=-1))
    ends = np.append(starts[1:], len(recall)) - 1
    return recall[ends], np.maximum.reduceat(precision, starts)
