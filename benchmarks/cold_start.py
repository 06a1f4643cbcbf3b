"""Cold start: `wildcat predict` of one image against importing torch and timm and one forward pass.

    python benchmarks/cold_start.py --image photo.jpg --out benchmarks/results/cold-start.json

Each is a new process; they alternate. Times are those of the processor, in one thread, which other work on the machine
changes less than the clock; files are in the cache of the system after the first pair, which does not count.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path

from script import argument_parser, log, save_result, settings_of

PLAIN = """
import timm, torch
model = timm.create_model("tf_efficientnet_lite0").eval()
with torch.inference_mode():
    model(torch.zeros(1, 3, 224, 224))
"""


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--model", default="imagenet-lite0")
    parser.add_argument("--pairs", type=int, default=10)
    arguments = parser.parse_args()
    commands = {
        "import torch, timm; a forward pass": [sys.executable, "-c", PLAIN],
        "wildcat predict": [sys.executable, "-m", "wildcat", "predict", arguments.model, str(arguments.image)],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for pair in range(arguments.pairs + 1):
        for name, command in commands.items():
            seconds = processor_seconds(command)
            log(pair, name, round(seconds, 2))
            if pair:
                times[name].append(seconds)
    plain, predict = times.values()
    ratios = [b / a for a, b in zip(plain, predict, strict=True)]
    results = {
        "seconds": {name: quartiles(values) for name, values in times.items()},
        "ratio": quartiles(ratios),
    }
    save_result(arguments, settings_of(arguments), results)


def processor_seconds(command: list[str]) -> float:
    """User and system time of a process and those it starts."""
    before = os.times()
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def quartiles(values: list[float]) -> list[float]:
    """The lower quartile, the median and the upper quartile."""
    return [round(x, 3) for x in statistics.quantiles(values, n=4, method="inclusive")]


if __name__ == "__main__":
    main()
