"""Tables and plots of an experiment with the paper's numbers, as JSON, CSV, Markdown and PNG."""

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
from wildcat.reproduce.experiments import MEASURED, METRIC_NAMES, Experiment
from wildcat.viz.curves import Series, draw_series

Records = Mapping[str, Sequence[Mapping[str, Any]]]  # name of a row -> the records of its cells, one per seed

# How the networks of several input sizes are combined, in words.
COMBINED = {"linear": "a linear classifier on their scores", "average": "averaging"}


def summarize_rows(experiment: Experiment, records: Records, needs: Mapping[str, str]) -> dict[str, Any]:
    """Each row with the paper's numbers and the measured mean, standard deviation and values over the seeds.

    Args:
        needs: name of a row -> what it would need to be run; "" if it is run.
    """
    rows: dict[str, Any] = {}
    for row in experiment.rows:
        cells = records.get(row.name, ())
        measured = [metric for metric in MEASURED if cells and metric in cells[0]["metrics"]]
        rows[row.name] = {
            "paper": dict(row.paper),
            "settings": cells[0]["config"] if cells else None,
            "metrics": {metric: spread([cell["metrics"][metric] for cell in cells]) for metric in measured},
            "seconds": round(statistics.mean(cell["seconds"] for cell in cells), 1) if cells else None,
            "x": row.x,
            "line": row.line,
            "needs": needs[row.name],
        }
    return rows


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, sample standard deviation and the values, rounded to five digits."""
    return {
        "mean": round(statistics.fmean(values), 5),
        "std": round(statistics.stdev(values), 5) if len(values) > 1 else None,
        "values": [round(float(v), 5) for v in values],
    }


def write_tables(summary: Mapping[str, Any], records: Records, path: Path) -> None:
    """Write the summary to `path` (.json), and beside it the cells as CSV, the table as Markdown and the plot."""
    write_json(path, summary)
    write_bytes(path.with_suffix(".csv"), cells_csv(summary, records).encode())
    write_bytes(path.with_suffix(".md"), (markdown(summary) + "\n").encode())
    if summary["settings"]["x_label"]:
        with contextlib.suppress(MissingExtra):  # without matplotlib only the table
            write_bytes(path.with_suffix(".png"), plot(summary))


def cells_csv(summary: Mapping[str, Any], records: Records) -> str:
    """One line per cell: experiment, row, data, splits, seed, metrics, AP variant, seconds, settings, versions."""
    lines = []
    for name, cells in records.items():
        for cell in cells:
            config = {k: v for k, v in cell["config"].items() if k not in ("seed", "train_split", "val_split")}
            lines.append(
                {"experiment": summary["settings"]["experiment"], "row": name, "data": summary["settings"]["data"]}
                | {"train_split": cell["config"]["train_split"], "test_split": cell["test_split"]}
                | {"seed": cell["config"]["seed"]}
                | {m: round(cell["metrics"][m], 5) if m in cell["metrics"] else "" for m in MEASURED}
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
    """The table with the paper's numbers beside the measured ones (mean and deviation over seeds), in per cent."""
    s, rows = summary["settings"], summary["results"]
    papers = sorted({name for row in rows.values() for name in row["paper"]})
    metrics = s["metrics"]
    if s["tune"] == "head":
        training = f"frozen {s['backbone']}, {s['epochs']} epochs of the head"
    else:
        training = f"every layer of {s['backbone']}, {s['epochs']} epochs"
    sizes = " + ".join(map(str, s["sizes"]))
    combined = f", one network per size, combined by {COMBINED[s['combine']]}" if s["combine"] else ""
    tolerance = f"; points within {s['point_tolerance_px']} px" if "point_ap" in metrics else ""
    seeds = f"mean ± standard deviation over {s['seeds']} seeds" if s["seeds"] > 1 else "one seed"
    single = any(value["std"] is None for row in rows.values() for value in row["metrics"].values())
    seeds += ", one where no deviation is given" if s["seeds"] > 1 and single else ""
    caption = (
        f"**{s['experiment'].capitalize()}: {s['title']}.** {s['data']}: {s['train']}, measured on {s['test']}; "
        f"{training} at {sizes} px{combined}; {seeds}, last epoch{tolerance}."
    )
    columns = ["", *(metric_label(m, s["ap_variant"]) for m in metrics), *(f"paper, {name}" for name in papers)]
    lines = []
    for name, row in rows.items():
        measured = [percent(row["metrics"].get(metric)) for metric in metrics]
        if needs := row.get("needs"):
            measured[0] = f"not run: needs {needs}"
        published = [f"{row['paper'][p]:.1f}" if p in row["paper"] else "" for p in papers]
        lines.append([name, *measured, *published])
    return f"{caption}\n\n{markdown_table(columns, lines)}"


def metric_label(metric: str, variant: str) -> str:
    """A metric in the heading of a table or on the axis of a plot, with the variant of average precision."""
    return f"{METRIC_NAMES[metric]} %" if metric in ("accuracy", "miou") else f"{METRIC_NAMES[metric]} ({variant}) %"


def plot(summary: Mapping[str, Any]) -> bytes:
    """A figure as PNG: the first metric over the varied setting, one line per group of rows."""
    s, rows = summary["settings"], summary["results"]
    metric = s["metrics"][0]
    lines: dict[str, list[tuple[float, float, float]]] = {}
    for row in rows.values():
        if row["x"] is not None and metric in row["metrics"]:
            value = row["metrics"][metric]
            lines.setdefault(row["line"], []).append((row["x"], 100 * value["mean"], 100 * (value["std"] or 0.0)))
    series = [Series(name, *map(list, zip(*sorted(points), strict=True))) for name, points in lines.items()]
    label = metric_label(metric, s["ap_variant"])
    return draw_series(series, s["x_label"], label, f"{s['data']}: {s['title']}", log_x=s["experiment"] == "table6")


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def percent(value: Mapping[str, Any] | float | None) -> str:
    """A fraction in per cent; for several seeds (see `spread`) the mean and the standard deviation.

    >>> percent(0.5), percent({"mean": 0.872, "std": 0.004}), percent(None)
    ('50.0', '87.2 ± 0.4', '')
    """
    if value is None:
        return ""
    if not isinstance(value, Mapping):
        return f"{100 * value:.1f}"
    deviation = "" if value["std"] is None else f" ± {100 * value['std']:.1f}"
    return f"{100 * value['mean']:.1f}{deviation}"


def slug(name: str) -> str:
    """The name of a data set in a file name: `VOC 2012 mini` -> `VOC-2012-mini`."""
    return "-".join("".join(c if c.isalnum() else " " for c in name).split())
