"""Charts and tables of a report as plain values: SVG coordinates and rows, which report.html.j2 draws."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wildcat.metrics import PrecisionRecall

MAX_CLASSES = 40  # with more, only the worst precision-recall curves are drawn, and no confusion matrix
MAX_CURVE_POINTS = 80
SHADES = 10  # of the confusion matrix, see report.css
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 520, 260, 64, 12, 12, 38  # a line chart and its margins, in SVG units


def draw_curves(
    curves: Mapping[str, PrecisionRecall], ap: Mapping[str, float | None]
) -> list[tuple[str, float, list[tuple[float, float]]]]:
    """(class, AP, curve) of each class with a defined AP; of many classes, those with the lowest AP."""
    known = [(name, value, curve_points(curves[name])) for name, value in ap.items() if value is not None]
    return known if len(known) <= MAX_CLASSES else sorted(known, key=lambda row: row[1])[:MAX_CLASSES]


def curve_points(curve: PrecisionRecall) -> list[tuple[float, float]]:
    """A precision-recall curve as steps, (x, y) in [0, 100] with y downwards.

    A long curve is reduced to `MAX_CURVE_POINTS` steps, the best precision of each slice of recall.
    """
    recall, precision = curve.recall, curve.precision
    if len(recall) > MAX_CURVE_POINTS:
        cell = np.minimum((recall * MAX_CURVE_POINTS).astype(int), MAX_CURVE_POINTS - 1)
        starts = np.flatnonzero(np.diff(cell, prepend=-1))
        ends = np.append(starts[1:], len(recall)) - 1
        recall, precision = recall[ends], np.maximum.reduceat(precision, starts)
    x = np.stack([np.concatenate([[0.0], recall[:-1]]), recall], axis=1).ravel()
    y = np.repeat(precision, 2)
    return [(round(100 * a, 1), round(100 - 100 * b, 1)) for a, b in zip(x.tolist(), y.tolist(), strict=True)]


def confusion_table(matrix: NDArray[np.int64]) -> dict[str, Any]:
    """(C, C) counts, rows true, columns predicted -> the table's rows with shades, and the largest confusions."""
    totals = matrix.sum(axis=1)
    shares = matrix / np.maximum(totals, 1)[:, None]
    shades = np.where(matrix > 0, np.maximum(1, (shares * SHADES).round()), 0).astype(int)
    off = matrix - np.diag(np.diag(matrix))
    largest = [divmod(int(i), len(matrix)) for i in np.argsort(-off, axis=None, kind="stable")[:10]]
    rows = [list(zip(counts, row, strict=True)) for counts, row in zip(matrix.tolist(), shades.tolist(), strict=True)]
    return {
        "totals": totals.tolist(),
        "rows": rows if len(matrix) <= MAX_CLASSES else [],
        "largest": [(t, p, int(off[t, p])) for t, p in largest if off[t, p]],
    }


def draw_training(history: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Charts of the loss and of each validation metric over the epochs, and the same as a table."""
    if not history:
        return None
    epochs = [int(row["epoch"]) for row in history]
    validated = [row for row in history if row.get("val")]
    val_epochs = [int(row["epoch"]) for row in validated]
    val = {key: [float(row["val"][key]) for row in validated] for key in (validated[0]["val"] if validated else ())}
    loss = [float(row["loss"]) for row in history]
    lines = [("training loss", epochs, loss)]
    if "loss" in val:
        lines.append(("val loss", val_epochs, val.pop("loss")))
    summary = f"Training loss from {loss[0]:.3f} to {loss[-1]:.3f} over {len(epochs)} epochs."
    charts = [line_chart("Loss", "loss", summary, lines)]
    best = max((i for i, row in enumerate(validated) if row.get("best")), default=None)
    for key, values in val.items():
        title = "Validation mean average precision" if key == "map" else f"Validation {key}"
        summary = f"{title} from {values[0]:.3f} to {values[-1]:.3f} over {len(values)} epochs."
        name = f"val {key}"
        if best is not None:
            name += ", best epoch circled"
            summary += f" Best: epoch {val_epochs[best]}, {values[best]:.3f}."
        charts.append(line_chart(title, key, summary, [(name, val_epochs, values)], best))
    rows = [
        (int(row["epoch"]), [float(row["loss"]), *((row.get("val") or {}).get(key) for key in val)]) for row in history
    ]
    return {"charts": charts, "headings": ["loss", *(f"val {key}" for key in val)], "rows": rows}


def line_chart(
    title: str,
    y_label: str,
    summary: str,
    lines: Sequence[tuple[str, Sequence[int], Sequence[float]]],
    circled: int | None = None,
) -> dict[str, Any]:
    """Lines (name, epochs, values) as SVG coordinates; values that are not finite are left out.

    Args:
        circled: index of a point of the first line.
    """
    xs = [x for _, epochs, _ in lines for x in epochs]
    ys = [y for _, _, values in lines for y in values if math.isfinite(y)] or [0.0]
    pad = (max(ys) - min(ys)) * 0.06 or abs(max(ys)) * 0.1 or 1.0
    y_low, y_high = min(ys) - pad, max(ys) + pad

    def place_x(x: float) -> float:
        share = (x - min(xs)) / (max(xs) - min(xs)) if max(xs) > min(xs) else 0.5
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def place_y(y: float) -> float:
        return round(HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM), 1)

    _, epochs, values = lines[0]
    finite = circled is not None and math.isfinite(values[circled])
    return {
        "title": title,
        "y_label": y_label,
        "summary": summary,
        "x_ticks": [(place_x(x), f"{x:g}") for x in sorted({round(x) for x in np.linspace(min(xs), max(xs), 6)})],
        "y_ticks": [(place_y(y), f"{y:.3g}") for y in np.linspace(min(ys), max(ys), 4).tolist()],
        "lines": [
            (name, [(place_x(x), place_y(y)) for x, y in zip(at, line, strict=True) if math.isfinite(y)])
            for name, at, line in lines
        ],
        "circle": (place_x(epochs[circled]), place_y(values[circled])) if circled is not None and finite else None,
    }
