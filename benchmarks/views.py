"""What a finer output stride, several input sizes and mirrored views buy, and what they cost; one trained run.

    wildcat train DIR/VOCdevkit --tune head --backbone lite2 --image-size 448 --kmax 0.2 --val-split none --out RUN
    python benchmarks/views.py --run RUN --data DIR/VOCdevkit --name "VOC 2012 mini" --out benchmarks/results/views.json

Times are of the network alone, on the same images, each way of looking in turn; the median of several rounds, as a
ratio to looking once at the size and stride of training.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from wildcat.data import open_dataset
from wildcat.data.images import read_image
from wildcat.evaluation import evaluate
from wildcat.models.run import open_run
from wildcat.predictor import Predictor, load
from wildcat.reproduce.record import plain_settings, write_result

TIMED = 4
"""Images that are timed together."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--data", required=True, help="a VOC devkit, or any data set with boxes and masks")
    parser.add_argument("--name", default="", help="what to call the data in tables, where it is a subset")
    parser.add_argument("--split", default="val")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    run, data = open_run(arguments.run), open_dataset(arguments.data)
    size = run.preprocess.size
    ways: dict[str, dict[str, Any]] = {
        f"{size} px, stride 32": {},
        "mirrored": {"flip": "horizontal"},
        "stride 16": {"output_stride": 16},
        "stride 16, mirrored": {"output_stride": 16, "flip": "horizontal"},
        f"{size} + {size * 5 // 4} px": {"sizes": (size, size * 5 // 4)},
        f"{size * 3 // 4} + {size} + {size * 5 // 4} px": {"sizes": (size * 3 // 4, size, size * 5 // 4)},
    }
    looking = {name: load(arguments.run, arguments.device, calibrated=False, **way) for name, way in ways.items()}
    images = [read_image(s.path) for s in data.split(arguments.split)[:TIMED]]
    inputs = {
        name: [torch.stack([m.preprocess(p) for p in images]) for m in predictor.members]
        for name, predictor in looking.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(arguments.rounds + 1):
        for name, predictor in looking.items():
            taken = timed(predictor, inputs[name])
            if turn:  # the first round warms up
                seconds[name].append(taken)
    base = next(iter(ways))
    results: dict[str, dict[str, Any]] = {}
    for name, predictor in looking.items():
        found = evaluate(predictor, data, arguments.split)
        ratios = [own / other for own, other in zip(seconds[name], seconds[base], strict=True)]
        results[name] = {
            "map": found["classification"]["map"],
            "point_ap": found["pointing"]["map"],
            "miou": found["segmentation"]["miou"],
            "seconds_per_image": round(statistics.median(seconds[name]) / TIMED, 4),
            "ratio": round(statistics.median(ratios), 3),
            "ratio_low": round(min(ratios), 3),
            "ratio_high": round(max(ratios), 3),
        }
        print(name, results[name], file=sys.stderr, flush=True)
    images_of = {s: len(data.split(s)) for s in ("train", arguments.split)}
    settings = plain_settings(run.config) | {
        "data": f"{arguments.name or data.name}, {images_of['train']} train, {images_of[arguments.split]} "
        f"{arguments.split} images",
        "rounds": arguments.rounds,
        "images_timed": TIMED,
        "ap_variant": "voc10",
        "point_tolerance_px": 18,
        "device": str(looking[base].device),
    }
    told = f"--data VOCdevkit --name '{arguments.name}' --out {arguments.out.name}"
    command = f"python benchmarks/views.py --run RUN {told}"
    write_result(arguments.out, command, settings, results)


def timed(predictor: Predictor, inputs: list[torch.Tensor]) -> float:
    """Seconds for class maps and scores of the images."""
    begun = time.perf_counter()
    predictor.run(inputs, modalities=False)  # its results are on the CPU: nothing is left running on a GPU
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
