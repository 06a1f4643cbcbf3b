"""How the cost of prediction grows with images, classes, maps per class and pixels: four points each, and the exponent.

    python benchmarks/scaling.py --out benchmarks/results/scaling.json    # also writes scaling.png

Scores and class maps by torch in float32, random images in batches of 8; one setting varies, the others stay at
C = 20, M = 4, 224 px, one batch. The four points of a line are measured alternately; the exponent is the slope of
log(seconds) over log(setting), fitted to the medians: 1 is linear, 0 is constant. Modalities are the M maps themselves,
which are computed only on request.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
from script import argument_parser, log, random_predictor, save_result, settings_of

from wildcat.engines.onnx_graph import probe
from wildcat.errors import MissingExtra
from wildcat.files import write_bytes
from wildcat.fitting.benchmark import time_in_turn
from wildcat.viz.curves import Series, draw_series

BATCH = 8

# What is varied, and its four values.
LINES: dict[str, tuple[int, ...]] = {
    "images": (8, 16, 32, 64),
    "classes": (20, 80, 320, 1280),
    "maps per class": (1, 4, 16, 64),
    "maps per class, modalities": (1, 4, 16, 64),
    "pixels": (96**2, 192**2, 384**2, 768**2),
}


def step(backbone: str, device: str, line: str, value: int) -> Callable[[], object]:
    """The prediction that is timed at one point of a line."""
    classes = value if line == "classes" else 20
    num_maps = value if line.startswith("maps") else 4
    size = round(value**0.5) if line == "pixels" else 224
    predictor = random_predictor(backbone, size, classes, num_maps, device)
    predictor.use_engine("torch")
    images = probe(size, BATCH)
    batches = value // BATCH if line == "images" else 1

    def run() -> None:
        for _ in range(batches):
            predictor.forward([images], modalities=line.endswith("modalities"))

    return run


def exponent(settings: tuple[int, ...], seconds: list[float]) -> float:
    """The slope of log(seconds) over log(setting).

    >>> exponent((1, 2, 4, 8), [3.0, 12.0, 48.0, 192.0])
    2.0
    """
    return round(float(np.polyfit(np.log(settings), np.log(seconds), 1)[0]), 3)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--backbone", default="lite0")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    for line, values in LINES.items():
        runs = {str(value): step(arguments.backbone, arguments.device, line, value) for value in values}
        times = time_in_turn(runs, arguments.rounds, warmup=1)
        medians = [statistics.median(times[str(value)]) for value in values]
        fits = sorted(exponent(values, list(row)) for row in zip(*times.values(), strict=True))
        results[line] = {
            "settings": list(values),
            "seconds": [round(s, 5) for s in medians],
            "exponent": exponent(values, medians),
            "lowest": fits[0],
            "highest": fits[-1],
        }
        log(line, results[line])
    save_result(arguments, settings_of(arguments), results)
    series = [
        Series(
            f"{line}: exponent {row['exponent']:.2f}",
            [value / row["settings"][0] for value in row["settings"]],
            [seconds / row["seconds"][0] for seconds in row["seconds"]],
        )
        for line, row in results.items()
    ]
    title = f"Cost of prediction, {arguments.backbone}"
    try:
        image = draw_series(series, "relative setting", "relative time", title, log_x=True)
    except MissingExtra as error:
        log(f"no plot: {error.message}")
    else:
        write_bytes(arguments.out.with_suffix(".png"), image)


if __name__ == "__main__":
    main()
