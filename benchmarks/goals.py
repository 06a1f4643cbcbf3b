"""Speed against its goals: the result files that are in git, the same files as `make bench` has just written them, and
what became slower.

    python benchmarks/goals.py

A measurement has become slower if its whole spread (quartiles, or lowest to highest) is worse than the whole spread of
the last one, and its middle by more than 5 %. Ratios compare two times of one run, so they carry over from machine to
machine better than times do; a last measurement on a processor with other vector instructions is marked.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

from wildcat.reproduce.tables import markdown_table

RESULTS = Path(__file__).parent / "results"
NOISE = 0.05  # of a measurement without a spread


class Goal(NamedTuple):
    """A number of a result file and the value that it should reach.

    Attributes:
        path: keys of the number, or of the group that holds it with its spread.
        goal: the least it should be; or the most, with `at_most`.
    """

    name: str
    file: str
    path: tuple[str | int, ...]
    goal: float
    at_most: bool = True


GOALS = (
    Goal("cold start of predict / import torch, timm and a forward pass", "cold-start", ("ratio",), 1.15),
    Goal("predict from disk / its network, 224 px", "predict-throughput", ("224 px",), 0.9, at_most=False),
    Goal("predict from disk / its network, 448 px", "predict-throughput", ("448 px",), 0.9, at_most=False),
    Goal("service / its network, 320 px", "serve-load", ("ratio",), 0.9, at_most=False),
    Goal("service / its network, 224 px", "serve-load-224", ("ratio",), 0.9, at_most=False),
    Goal("service / its network, 448 px", "serve-load-448", ("ratio",), 0.9, at_most=False),
    Goal("service, MB per process", "serve-load", ("memory_per_process_mb",), 400),
    Goal("start of the service, seconds", "serve-load", ("start_s",), 5),
    Goal("training of a head / forward passes", "head-training", ("ratio", "command / forward"), 1.15),
    Goal("the same in bf16 / float32 passes", "head-training", ("ratio", "command --amp / forward"), 1.0),
    Goal("training of all layers / bare steps", "train-throughput", ("float32", "ratio", "bare"), 0.9, at_most=False),
    Goal("the whole model / its backbone, lite2", "head-cost", ("lite2", "inference"), 1.05),
    Goal("the same, a training step", "head-cost", ("lite2", "training step"), 1.05),
    Goal("growth with the images, exponent", "scaling", ("images",), 1.05),
    Goal("growth with the classes, exponent", "scaling", ("classes",), 1.05),
    Goal("growth with the rows of 10,000 classes, exponent", "many-classes", ("exponent",), 1.05),
    Goal("sorting all regions / spatial_pool", "spatial-pool", ("seconds ratio",), 1.0, at_most=False),
)


class Spread(NamedTuple):
    """The lowest or the lower quartile, the middle, and the highest or the upper quartile."""

    low: float
    middle: float
    high: float


def spread(node: Any) -> Spread:
    """The spread of a number in the forms of our result files."""
    if isinstance(node, (int, float)):
        return Spread(node, node, node)
    if isinstance(node, list):
        return Spread(*node)
    if "values" in node:
        return Spread(min(node["values"]), node["mean"], max(node["values"]))
    middle = next(node[key] for key in ("median", "ratio_median", "ratio", "exponent") if key in node)
    pairs = [node.get("quartiles") or node.get("ratio_quartiles"), _pair(node, "lower", "upper")]
    low, high = next((pair for pair in pairs if pair), None) or _pair(node, "lowest", "highest") or (middle, middle)
    return Spread(low, middle, high)


def _pair(node: dict[str, Any], low: str, high: str) -> tuple[float, float] | None:
    return (node[low], node[high]) if low in node else None


def judge(goal: Goal, last: dict[str, Any] | None, now: dict[str, Any]) -> tuple[list[str], bool]:
    """The cells of a goal's row, and whether it became slower.

    Args:
        last, now: contents of the result file, in git and in the folder; equal: it was not measured again.
    """
    before, found = last and measured(goal, last), measured(goal, now)
    assert found is not None
    sign = 1 if goal.at_most else -1
    verdict = "reached" if sign * found.middle <= sign * goal.goal else "missed"
    bound = f"{'at most' if goal.at_most else 'at least'} {goal.goal:g}"
    if before is None or last is None or last == now:
        return [goal.name, bound, text(before) if before else "", "" if last == now else text(found), verdict], False
    worse = found.low > before.high if goal.at_most else found.high < before.low
    slower = worse and sign * (found.middle - before.middle) > NOISE * before.middle
    other = " (another processor)" if last["machine"].get("flags") != now["machine"].get("flags") else ""
    verdict += ", slower" if slower else ""
    return [goal.name, bound, text(before) + other, text(found), verdict], slower


def measured(goal: Goal, content: dict[str, Any]) -> Spread | None:
    """The number of a goal in the content of its result file; None: not measured, as bf16 on some processors."""
    node = content["results"]
    for key in goal.path:
        if isinstance(node, dict) and key not in node:
            return None
        node = node[key]
    return spread(node)


def text(found: Spread) -> str:
    """`1.02 (1.01 to 1.16)`, or the middle alone."""
    return f"{found.middle:.2f}" + (f" ({found.low:.2f} to {found.high:.2f})" if found.low < found.high else "")


def in_git(path: Path) -> dict[str, Any] | None:
    """The content of a result file as it was committed last; None: never, or git is not there."""
    command = ["git", "show", f"HEAD:./{path.name}"]
    try:
        shown = subprocess.run(command, cwd=path.parent, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    content: dict[str, Any] = json.loads(shown.stdout)
    return content


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder that make bench wrote into")
    folder = parser.parse_args().results
    rows, slower = [], []
    for goal in GOALS:
        path = folder / f"{goal.file}.json"
        now = json.loads(path.read_text("utf-8")) if path.is_file() else None
        if now and measured(goal, now):
            cells, worse = judge(goal, in_git(RESULTS / path.name), now)
            rows.append(cells)
            if worse:
                slower.append(goal.name)
    print(markdown_table(["", "goal", "last", "now", ""], rows))
    print(f"Slower than its spread: {'; '.join(slower) or 'nothing'}.")


if __name__ == "__main__":
    main()
