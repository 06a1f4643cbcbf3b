"""How the cost of prediction grows with images, classes, maps a class and pixels: four points each, and the exponent.

    python benchmarks/scaling.py --out benchmarks/results/scaling.json    # and scaling.png beside it

Scores and class maps by torch in float32, random images in batches of 8; what is not varied is C = 20, M = 4, 224 px,
one batch. The four points of a line are timed in turn; the exponent is the slope of log(seconds) over log(setting),
fitted to the medians: 1 is linear, 0 is free. Modalities are the M maps themselves, which are only made when asked for.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import wildcat
from wildcat.cli.allocator import keep_freed_memory
from wildcat.data.transforms import Preprocess
from wildcat.engines.onnx_graph import probe
from wildcat.errors import MissingExtra
from wildcat.files import write_bytes
from wildcat.fitting.timing import time_in_turn
from wildcat.nn.backbones import EMBEDDED
from wildcat.predictor import Member, Predictor
from wildcat.reproduce.record import write_result
from wildcat.viz.curves import Series, draw_series

BATCH = 8

LINES: dict[str, tuple[int, ...]] = {
    "images": (8, 16, 32, 64),
    "classes": (20, 80, 320, 1280),
    "maps a class": (1, 4, 16, 64),
    "maps a class, modalities": (1, 4, 16, 64),
    "pixels": (96**2, 192**2, 384**2, 768**2),
}
"""What is varied, and its four points."""


def step(backbone: str, device: str, line: str, value: int) -> Callable[[], object]:
    """What is timed at one point of a line."""
    torch.manual_seed(0)
    classes = value if line == "classes" else 20
    num_maps = value if line.startswith("maps") else 4
    size = round(value**0.5) if line == "pixels" else 224
    model = wildcat.create_model(backbone, classes, num_maps, pretrained=backbone in EMBEDDED)
    own = model.backbone
    member = Member(model, Preprocess(size, own.mean, own.std, own.interpolation))
    predictor = Predictor("random", [member], [str(i) for i in range(classes)], "multilabel", device)
    predictor.use_engine("torch")
    images = probe(size, BATCH)
    batches = value // BATCH if line == "images" else 1

    def run() -> None:
        for _ in range(batches):
            predictor.run([images], modalities=line.endswith("modalities"))

    return run


def exponent(settings: tuple[int, ...], seconds: list[float]) -> float:
    """The slope of log(seconds) over log(setting).

    >>> exponent((1, 2, 4, 8), [3.0, 12.0, 48.0, 192.0])
    2.0
    """
    return round(float(np.polyfit(np.log(settings), np.log(seconds), 1)[0]), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="lite0")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.device == "cpu":
        keep_freed_memory()
    results: dict[str, Any] = {}
    for line, values in LINES.items():
        runs = {str(value): step(arguments.backbone, arguments.device, line, value) for value in values}
        times = time_in_turn(runs, arguments.rounds, warmup=1)
        medians = [statistics.median(times[str(value)]) for value in values]
        rounds = list(zip(*times.values(), strict=True))
        fits = sorted(exponent(values, list(row)) for row in rounds)
        results[line] = {
            "settings": list(values),
            "seconds": [round(s, 5) for s in medians],
            "exponent": exponent(values, medians),
            "lowest": fits[0],
            "highest": fits[-1],
        }
        print(line, results[line], file=sys.stderr, flush=True)
    settings = {k: v for k, v in vars(arguments).items() if k != "out"}
    write_result(arguments.out, f"python benchmarks/scaling.py --out {arguments.out.name}", settings, results)
    series = [
        Series(
            f"{line}: exponent {row['exponent']:.2f}",
            [value / row["settings"][0] for value in row["settings"]],
            [seconds / row["seconds"][0] for seconds in row["seconds"]],
        )
        for line, row in results.items()
    ]
    try:
        image = draw_series(
            series, "times more", "times the seconds", f"Cost of prediction, {arguments.backbone}", log_x=True
        )
    except MissingExtra as error:
        print(f"no plot: {error.message}", file=sys.stderr)
    else:
        write_bytes(arguments.out.with_suffix(".png"), image)


if __name__ == "__main__":
    main()
