"""Tables and plots of a reproduction: ours beside the paper's, as JSON, CSV, Markdown and PNG."""

from __future__ import annotations

import contextlib
import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wildcat.errors import MissingExtra
from wildcat.files import write_bytes, write_json
from wildcat.reproduce.experiments import FIGURES, METRIC_NAMES, Experiment
from wildcat.reproduce.record import spread
from wildcat.viz.curves import Series, draw_series

Cells = Mapping[str, Sequence[Mapping[str, Any]]]
"""Row -> the records of its cells, a seed each."""


def row_summaries(experiment: Experiment, done: Cells) -> dict[str, Any]:
    """Each row with the paper's numbers and ours: mean, standard deviation and values over the seeds."""
    rows: dict[str, Any] = {}
    for row in experiment.rows:
        cells = done.get(row.name, ())
        measured = [m for m in FIGURES if cells and m in cells[0]["figures"]]
        rows[row.name] = {
            "paper": dict(row.paper),
            "settings": cells[0]["config"] if cells else None,
            "figures": {m: spread([cell["figures"][m] for cell in cells]) for m in measured},
            "seconds": round(statistics.mean(cell["seconds"] for cell in cells), 1) if cells else None,
            "x": row.x,
            "line": row.line,
        }
    return rows


def write_outputs(summary: Mapping[str, Any], done: Cells, stem: Path) -> None:
    """Write the summary, one line a cell as CSV, the table as Markdown, and the plot of a figure."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    write_json(stem.with_suffix(".json"), summary)
    write_bytes(stem.with_suffix(".csv"), cells_as_csv(summary, done).encode())
    write_bytes(stem.with_suffix(".md"), (markdown(summary) + "\n").encode())
    if summary["settings"]["x_label"]:
        with contextlib.suppress(MissingExtra):  # the table says the same
            write_bytes(stem.with_suffix(".png"), plot(summary))


def cells_as_csv(summary: Mapping[str, Any], done: Cells) -> str:
    """One line a cell: experiment, row, data, splits, seed, settings, figures, AP variant, seconds, versions."""
    lines = []
    for name, cells in done.items():
        for cell in cells:
            config = {k: v for k, v in cell["config"].items() if k not in ("seed", "train_split", "val_split")}
            lines.append(
                {"experiment": summary["settings"]["experiment"], "row": name, "data": summary["settings"]["data"]}
                | {"train_split": cell["config"]["train_split"], "test_split": cell["test_split"]}
                | {"seed": cell["config"]["seed"]}
                | {m: round(cell["figures"][m], 5) if m in cell["figures"] else "" for m in FIGURES}
                | {"ap_variant": cell["ap_variant"], "seconds": cell["seconds"]}
                | {"sizes": " ".join(map(str, cell["sizes"])), "combine": cell["combine"] or ""}
                | config
                | {f"version_{k}": v for k, v in cell["versions"].items()}
            )
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()


def markdown(summary: Mapping[str, Any]) -> str:
    """The table with the paper's numbers beside ours; mean and standard deviation over the seeds, in per cent."""
    s, rows = summary["settings"], summary["results"]
    papers = sorted({name for row in rows.values() for name in row["paper"]})
    metrics = s["metrics"]
    sizes = " + ".join(map(str, s["sizes"]))
    how = (
        f"frozen {s['backbone']}, {s['epochs']} epochs of the head"
        if s["tune"] == "head"
        else (f"every layer of {s['backbone']}, {s['epochs']} epochs")
    )
    combined = f", one network a size, combined by {COMBINED[s['combine']]}" if s["combine"] else ""
    variant = f" ({s['ap_variant']})"
    names = [f"{METRIC_NAMES[m]}{'' if m == 'accuracy' else variant} %" for m in metrics]
    tolerance = f"; points within {s['point_tolerance_px']} px" if "point_ap" in metrics else ""
    lines = [
        f"**{s['experiment'].capitalize()}: {s['title']}.** {s['data']}: {s['train']}, measured on {s['test']}; "
        f"{how} at {sizes} px{combined}; mean ± standard deviation over {s['seeds']} seeds, last epoch{tolerance}.",
        "",
        "| " + " | ".join(["", *names, *(f"paper, {p}" for p in papers)]) + " |",
        "|" + "---|" * (1 + len(metrics) + len(papers)),
    ]
    for name, row in rows.items():
        ours = [percent(row["figures"].get(m)) for m in metrics]
        theirs = [f"{row['paper'][p]:.1f}" if p in row["paper"] else "" for p in papers]
        lines.append("| " + " | ".join([name, *ours, *theirs]) + " |")
    return "\n".join(lines)


COMBINED = {"linear": "a linear classifier on their scores", "average": "averaging"}
"""How several sizes become one model, in words."""


def plot(summary: Mapping[str, Any]) -> bytes:
    """The figure as PNG: the first metric over the setting that is varied, a line for each kind of row."""
    s, rows = summary["settings"], summary["results"]
    metric = s["metrics"][0]
    lines: dict[str, list[tuple[float, float, float]]] = {}
    for row in rows.values():
        if row["x"] is not None and metric in row["figures"]:
            figure = row["figures"][metric]
            lines.setdefault(row["line"], []).append((row["x"], 100 * figure["mean"], 100 * (figure["std"] or 0.0)))
    series = [Series(name, *map(list, zip(*sorted(points), strict=True))) for name, points in lines.items()]
    variant = "" if metric == "accuracy" else f" ({s['ap_variant']})"
    label = f"{METRIC_NAMES[metric]} %{variant}"
    title = f"{s['data']}: {s['title']}"
    return draw_series(series, s["x_label"], label, title, log_x=s["experiment"] == "table6")


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def percent(figure: Mapping[str, Any] | float | None) -> str:
    """A share as per cent; of several seeds (see `spread`) the mean, with the deviation where there is one.

    >>> percent(0.5), percent({"mean": 0.872, "std": 0.004}), percent(None)
    ('50.0', '87.2 ± 0.4', '')
    """
    if figure is None:
        return ""
    if not isinstance(figure, Mapping):
        return f"{100 * figure:.1f}"
    deviation = "" if figure["std"] is None else f" ± {100 * figure['std']:.1f}"
    return f"{100 * figure['mean']:.1f}{deviation}"


def slug(name: str) -> str:
    """A data set's name as part of a file name: `VOC 2012 mini` -> `VOC-2012-mini`."""
    return "-".join("".join(c if c.isalnum() else " " for c in name).split())
