"""The tables of benchmarks about failures and very many images, for `tables.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def soak(result: dict[str, Any]) -> str:
    """What was left after kills."""
    r = result["results"]
    prediction = r["prediction"]
    training = [row for name, row in r.items() if name.startswith("training")]
    commands = {name.partition(", ")[2]: row for name, row in r.items() if name.startswith("command")}
    runs, equal = (sum(row[key] for row in training) for key in ("runs", "weights_equal"))
    kills = sum(row["kills"] for row in training)
    return (
        f"Killed for {r['minutes']:.0f} minutes. Prediction in parts: {prediction['kills']} kills, "
        f"{prediction['rows']:,} rows of {prediction['folders']} folders, {prediction['missing']} missing, "
        f"{prediction['twice']} twice. Training: {kills} kills of {runs} runs, {equal} of which end with the weights, "
        f"optimiser, random numbers and history of one left alone. {', '.join(commands)}: "
        f"{sum(row['kills'] for row in commands.values())} kills, "
        f"{sum(row['half'] for row in commands.values())} left half."
    )


def long_run(result: dict[str, Any]) -> str:
    """What stays over many predictions."""
    r = result["results"]
    rows = [
        [sink, f"{one['images']:,}", f"{one['rss_mb']:.1f}", one["open_files"], one["threads"]]
        for sink, found in r.items()
        for one in (found["figures"][0], found["figures"][-1])
    ]
    head = "One process, real images repeated: what the kernel counts early and at the end."
    return f"{head}\n\n" + table(["sink", "images", "memory, MB", "open files", "threads"], rows)


def failures(result: dict[str, Any]) -> str:
    """What failures cost, in simulated time."""
    s = result["settings"]
    world = s["world"]
    head = (
        f"{world['parts']:,} parts of {world['rows']:,} images on {world['workers']} workers, simulated under the "
        f"policy of the scheduler ({s['retries']} retries, the last with care); medians of {s['seeds']} seeds."
    )
    rows = [
        [
            name,
            row["finished"],
            f"{100 * row['overhead']:.1f} %",
            f"{row['tail']:.1f}",
            f"{row['deaths']:g}",
            f"{row['commands that stopped']:g}",
        ]
        for name, row in result["results"].items()
    ]
    columns = ["what fails", "finished", "overhead", "tail, parts", "deaths", "commands gone on with"]
    return f"{head}\n\n" + table(columns, rows)


def billion(result: dict[str, Any]) -> str:
    """Stages of an image, and core-hours for a billion."""
    s, r = result["settings"], result["results"]
    head = (
        f"{s['backbone']} at {s['size']} px, {s['images']} images of {r['kilobytes an image']:.0f} kB, rows of "
        f"{r['bytes a row']:,} bytes; one thread of a {result['machine']['processor']}, seconds of the processor."
    )
    rows = [
        [stage, f"{1000 * seconds:.3f}", f"{r['core-hours for a billion'][stage]:,}"]
        for stage, seconds in r["seconds an image"].items()
    ]
    return f"{head}\n\n" + table(["stage", "ms an image", "core-hours for a billion"], rows)
