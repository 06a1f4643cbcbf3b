"""The numbers of a report as HTML: tiles, training, a table of classes, curves, the confusion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wildcat.report.charts import Line, bar, line_chart, small_curve, text
from wildcat.report.contents import Contents

SHADES = 10
"""Steps of the heat table."""

UNKNOWN = "\u2013"
"""Stands where a figure is undefined."""

MOST_CLASSES = 40
"""A confusion matrix of more classes is shown as a list of its largest cells; of curves, only the worst are drawn."""

METRIC_NAMES = {"map": "mean average precision"}

GAME_TOLERANCE = 15
"""Pixels around a box in the pointing game, see `wildcat.metrics.pointing_game`."""


def percent(value: float | None) -> str:
    """A share as percent with one decimal."""
    return UNKNOWN if value is None else f"{100 * value:.1f}"


def figure_tiles(contents: Contents) -> str:
    """The figures, each with its variant, its tolerance and the split it was measured on."""
    figures = contents.figures
    if not figures:
        return ""
    where = f"{figures['split']}, {figures['images']:,} images"
    tiles: list[tuple[str, float | None, str]] = []
    if classes := figures.get("classification"):
        tiles.append(("Mean average precision", classes["map"], f"{classes['variant']} AP · {where}"))
        extra = {"accuracy": "Accuracy", "class_mean_accuracy": "Accuracy, mean of classes", "roc_auc": "ROC AUC"}
        tiles += [(name, classes[key], where) for key, name in extra.items() if key in classes]
    if points := figures.get("pointing"):
        detail = f"{points['variant']} AP, {points['tolerance']} px tolerance · {where}"
        tiles.append(("Pointing, mean AP", points["map"], detail))
        tiles.append(("Pointing game", points["pointing_game"], f"{GAME_TOLERANCE} px tolerance · {where}"))
    if masks := figures.get("segmentation"):
        sharpened = "with CRF" if masks["crf"] else "without CRF"
        background = masks["rule"] + ("" if masks["threshold"] is None else f" {masks['threshold']:g}")
        detail = f"background by {background}, {sharpened} · {where}"
        tiles.append(("Mean IoU", masks["miou"], detail))
    shown = "".join(
        f'<div class="tile"><dt>{text(name)}</dt><dd>{percent(value)}<span class="unit"> %</span></dd>'
        f"<p>{text(detail)}</p></div>"
        for name, value, detail in tiles
    )
    return f'<dl class="tiles">{shown}</dl>'


def training(history: Sequence[Mapping[str, Any]]) -> str:
    """Loss and validation metric over the epochs, drawn and as numbers."""
    if not history:
        return ""
    epochs = [int(row["epoch"]) for row in history]
    measured = [row for row in history if row.get("val")]
    metrics = [key for key in measured[0]["val"] if key != "loss"] if measured else []
    val_epochs = [int(row["epoch"]) for row in measured]
    lines = [Line("training loss", epochs, [float(row["loss"]) for row in history], "line-1")]
    if measured and "loss" in measured[0]["val"]:
        lines.append(Line("val loss", val_epochs, [float(row["val"]["loss"]) for row in measured], "line-2 dashed"))
    summary = f"Training loss from {lines[0].y[0]:.3f} to {lines[0].y[-1]:.3f} over {len(epochs)} epochs."
    charts = [line_chart(lines, "epoch", "loss", "Loss", summary)]
    for key in metrics:
        values = [float(row["val"][key]) for row in measured]
        best = max((i for i, row in enumerate(measured) if row.get("best")), default=None)
        named = f"val {key}" + ("" if best is None else ", the kept epoch ringed")
        summary = f"Validation {key} from {values[0]:.3f} to {values[-1]:.3f} over {len(values)} epochs."
        if best is not None:
            summary += f" Kept: epoch {val_epochs[best]}, {values[best]:.3f}."
        line = Line(named, val_epochs, values, "line-1", best)
        charts.append(line_chart([line], "epoch", key, f"Validation {METRIC_NAMES.get(key, key)}", summary))
    head = "".join(f"<th scope=col>{text(h)}</th>" for h in ("epoch", "loss", *(f"val {k}" for k in metrics)))
    rows = "".join(
        f"<tr><th scope=row>{int(row['epoch'])}</th><td>{float(row['loss']):.4f}</td>"
        + "".join(f"<td>{_plain((row.get('val') or {}).get(key))}</td>" for key in metrics)
        + "</tr>"
        for row in history
    )
    return (
        f'<div class="plots">{"".join(charts)}</div><details><summary>The numbers</summary>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="Training, numbers"><table><thead><tr>{head}</tr>'
        f"</thead><tbody>{rows}</tbody></table></div></details>"
    )


def _plain(value: float | None) -> str:
    return UNKNOWN if value is None else f"{float(value):.4f}"


def class_table(contents: Contents) -> str:
    """One row a class: how many images have it, and a bar for each figure."""
    figures = contents.figures
    if not figures or "classification" not in figures:
        return ""
    columns: list[tuple[str, Mapping[str, float | None], str]] = [
        (f"AP ({figures['classification']['variant']})", figures["classification"]["ap"], "fill-1")
    ]
    if points := figures.get("pointing"):
        columns.append((f"Point AP ({points['tolerance']} px)", points["ap"], "fill-2"))
    if masks := figures.get("segmentation"):
        columns.append(("IoU", masks["iou"], "fill-3"))
    gallery = contents.gallery
    head = "".join(f'<th scope="col" class="wide">{text(name)}, %</th>' for name, _, _ in columns)
    rows = []
    for i, name in enumerate(gallery.classes):
        cells = "".join(
            f'<td class="measure" data-value="{-1 if values.get(name) is None else values[name]}">'
            f"<span>{percent(values.get(name))}</span>{bar(values.get(name), style)}</td>"
            for _, values, style in columns
        )
        count = gallery.counts[name, "hit"]
        link = f'<a href="#class-{i}"><bdi>{text(name)}</bdi></a>'
        rows.append(f'<tr><th scope="row">{link}</th><td data-value="{count}">{count:,}</td>{cells}</tr>')
    return (
        '<div class="scroll tall" tabindex="0" role="region" aria-label="Figures of each class">'
        f'<table class="sortable"><thead><tr><th scope="col">Class</th><th scope="col">Present in</th>{head}</tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def curves(contents: Contents) -> str:
    """A small precision-recall curve for each class."""
    figures = contents.figures
    if not contents.curves or not figures:
        return ""
    ap = figures["classification"]["ap"]
    known = [name for name in contents.curves if ap[name] is not None]
    order = list(known)
    note = ""
    if len(known) > MOST_CLASSES:
        order = sorted(known, key=lambda name: ap[name])[:MOST_CLASSES]
        note = f"<p>The {MOST_CLASSES} classes of the lowest AP, of {len(known):,}.</p>"
    cells = "".join(
        f'<figure class="mini">{small_curve(contents.curves[name], _curve_summary(name, ap[name]))}'
        f'<figcaption><bdi>{text(name)}</bdi><span class="num">{percent(ap[name])}</span></figcaption></figure>'
        for name in order
    )
    variant = text(figures["classification"]["variant"])
    return (
        f"<p>Precision (upwards) over recall (to the right), both from 0 to 1, as measured; the number is AP in % "
        f'({variant}, {text(figures["split"])}).</p>{note}<div class="minis">{cells}</div>'
    )


def _curve_summary(name: str, value: float) -> str:
    return f"Precision-recall curve of {name}: average precision {100 * value:.1f} percent."


def confusion(contents: Contents) -> str:
    """The confusion of classes that exclude each other, as a table of shades and as a list of its largest cells."""
    matrix = contents.confusion
    if matrix is None or not contents.figures:
        return ""
    names = contents.gallery.classes
    off = matrix.copy()
    np.fill_diagonal(off, 0)
    largest = [divmod(int(i), len(names)) for i in np.argsort(-off, axis=None, kind="stable")[:10]]
    listed = "".join(
        f"<li><bdi>{text(names[t])}</bdi> taken for <bdi>{text(names[p])}</bdi>: {off[t, p]:,} of "
        f"{matrix[t].sum():,}</li>"
        for t, p in largest
        if off[t, p]
    )
    often = f"<h3>Most often confused</h3><ol class='often'>{listed}</ol>" if listed else "<p>Nothing is confused.</p>"
    intro = f"<p>Images of {text(contents.figures['split'])}: rows are the true class, columns the predicted one."
    if len(names) > MOST_CLASSES:
        return f"{intro} Of {len(names):,} classes the table is too large to show.</p>{often}"
    head = "".join(f'<th scope="col"><span><bdi>{text(name)}</bdi></span></th>' for name in names)
    rows = []
    for t, name in enumerate(names):
        total = int(matrix[t].sum())
        cells = []
        for p, count in enumerate(matrix[t].tolist()):
            share = count / total if total else 0.0
            shade = f' class="q{max(1, round(share * SHADES))}"' if count else ""
            hint = f"{name} taken for {names[p]}: {count} of {total}"
            cells.append(f'<td{shade} title="{text(hint)}">{count or ""}</td>')
        rows.append(f'<tr><th scope="row"><bdi>{text(name)}</bdi></th>{"".join(cells)}</tr>')
    return (
        f"{intro} The shade is the share of the row.</p>"
        '<div class="scroll" tabindex="0" role="region" aria-label="Confusion matrix"><table class="heat"><thead><tr>'
        f"<td></td>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>{often}"
    )
