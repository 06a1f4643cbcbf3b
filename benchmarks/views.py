"""Accuracy and cost of a finer output stride, several input sizes and mirrored views, for one trained run.

    wildcat train DIR/VOCdevkit --tune head --backbone lite2 --image-size 448 --kmax 0.2 --val-split none --out RUN
    python benchmarks/views.py --run RUN --data DIR/VOCdevkit --name "VOC 2012 mini" --out benchmarks/results/views.json

Times are of the network alone on the same images, measured alternately; the median of several rounds, relative to one
view at the size and stride of training.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import torch
from script import argument_parser, data_text, log, save_result

from wildcat.data import open_dataset
from wildcat.data.images import read_image
from wildcat.evaluation import evaluate
from wildcat.fitting.benchmark import time_in_turn
from wildcat.models.run import open_run
from wildcat.predictor import load
from wildcat.reproduce.runner import plain_settings

BATCH = 4  # images in a timed forward pass


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--data", required=True, help="a VOC devkit or another data set with boxes and masks")
    parser.add_argument("--name", default="", help="name of the data in tables, for example of a subset")
    parser.add_argument("--split", default="val")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    run, data = open_run(arguments.run), open_dataset(arguments.data)
    size = run.preprocess.size
    base = f"{size} px, stride 32"
    options: dict[str, dict[str, Any]] = {
        base: {},
        "mirrored": {"flip": "horizontal"},
        "stride 16": {"output_stride": 16},
        "stride 16, mirrored": {"output_stride": 16, "flip": "horizontal"},
        f"{size} + {size * 5 // 4} px": {"sizes": (size, size * 5 // 4)},
        f"{size * 3 // 4} + {size} + {size * 5 // 4} px": {"sizes": (size * 3 // 4, size, size * 5 // 4)},
    }
    predictors = {n: load(arguments.run, arguments.device, calibrated=False, **o) for n, o in options.items()}
    images = [read_image(sample.path) for sample in data.split(arguments.split)[:BATCH]]
    inputs = {
        name: [torch.stack([member.preprocess(image) for image in images]) for member in predictor.members]
        for name, predictor in predictors.items()
    }
    runs = {n: (lambda p=p, x=inputs[n]: p.forward(x, modalities=False)) for n, p in predictors.items()}
    seconds = time_in_turn(runs, arguments.rounds, warmup=1)
    results: dict[str, dict[str, Any]] = {}
    for name, predictor in predictors.items():
        metrics = evaluate(predictor, data, arguments.split)
        ratios = [own / other for own, other in zip(seconds[name], seconds[base], strict=True)]
        results[name] = {
            "map": metrics["classification"]["map"],
            "point_ap": metrics["pointing"]["map"],
            "miou": metrics["segmentation"]["miou"],
            "seconds_per_image": round(statistics.median(seconds[name]) / BATCH, 4),
            "ratio": round(statistics.median(ratios), 3),
            "ratio_low": round(min(ratios), 3),
            "ratio_high": round(max(ratios), 3),
        }
        log(name, results[name])
    settings = plain_settings(run.config) | {
        "data": data_text(arguments, data),
        "rounds": arguments.rounds,
        "images_timed": BATCH,
        "ap_variant": "voc10",
        "point_tolerance_px": 18,
        "device": str(predictors[base].device),
    }
    save_result(arguments, settings, results)


if __name__ == "__main__":
    main()
