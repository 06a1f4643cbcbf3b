"""Tables of the benchmarks about scale and robustness, for `tables.py`."""

from __future__ import annotations

from typing import Any

from wildcat.reproduce.tables import markdown_table


def soak(result: dict[str, Any]) -> str:
    """The state after kills."""
    r = result["results"]
    prediction = r["prediction"]
    training = [row for name, row in r.items() if name.startswith("training")]
    commands = {name.partition(", ")[2]: row for name, row in r.items() if name.startswith("command")}
    runs, equal = (sum(row[key] for row in training) for key in ("runs", "weights_equal"))
    kills = sum(row["kills"] for row in training)
    return (
        f"Killed for {r['minutes']:.0f} minutes. Prediction in shards: {prediction['kills']} kills, "
        f"{prediction['rows']:,} rows of {prediction['folders']} folders, {prediction['missing']} missing, "
        f"{prediction['twice']} twice. Training: {kills} kills of {runs} runs, {equal} of which end with the weights, "
        f"optimiser state, random numbers and history of a training without kills. {', '.join(commands)}: "
        f"{sum(row['kills'] for row in commands.values())} kills, "
        f"{sum(row['half'] for row in commands.values())} left a part of a file."
    )


def long_run(result: dict[str, Any]) -> str:
    """Memory over many predictions."""
    r = result["results"]
    rows = [
        [sink, f"{one['images']:,}", f"{one['rss_mb']:.1f}", one["open_files"], one["threads"]]
        for sink, found in r.items()
        for one in (found["counts"][0], found["counts"][-1])
    ]
    head = "One process, real images repeated; counts of the kernel early and at the end."
    return f"{head}\n\n" + markdown_table(["output", "images", "memory, MB", "open files", "threads"], rows)


def billion(result: dict[str, Any]) -> str:
    """Cost of each stage, and core-hours for a billion images."""
    s, r = result["settings"], result["results"]
    head = (
        f"{s['backbone']} at {s['size']} px, {s['images']} images of {r['kilobytes an image']:.0f} kB, rows of "
        f"{r['bytes a row']:,} bytes; one thread of an {result['machine']['processor']}, processor time."
    )
    rows = [
        [stage, f"{1000 * seconds:.3f}", f"{r['core-hours for a billion'][stage]:,}"]
        for stage, seconds in r["seconds an image"].items()
    ]
    return f"{head}\n\n" + markdown_table(["stage", "ms per image", "core-hours for a billion"], rows)
