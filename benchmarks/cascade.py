"""ProNet's cascade against its first stage: mAP, point AP and the pointing game of both.

    python benchmarks/cascade.py --data DIR/VOCdevkit --out cascade.json

The weight of the crops is chosen among --crop-weights by the mAP on a fifth of the training images that is held out,
with one seed; then both stages are trained on all training images. With a single weight nothing is chosen.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from script import (
    add_training_arguments,
    argument_parser,
    data_text,
    head_config,
    log,
    save_result,
    settings_of,
)

from wildcat.cli.allocator import keep_freed_memory
from wildcat.data import DataSet, open_dataset
from wildcat.data.dataset import hold_out
from wildcat.evaluation import evaluate
from wildcat.fitting.config import RefineConfig
from wildcat.fitting.refine import refine
from wildcat.methods import METHODS
from wildcat.models.run import create_run
from wildcat.predictor import load
from wildcat.reproduce.tables import spread
from wildcat.train.loop import train

HELD_OUT = 0.2  # of the training images
FIRST = "first stage"


def main() -> None:
    parser = argument_parser(__doc__)
    add_training_arguments(parser, image_size=384)
    parser.add_argument("--crops", type=int, default=RefineConfig.crops)
    parser.add_argument("--crop-weights", type=float, nargs="+", default=(0.3, 0.5, 0.7, 1.0))
    arguments = parser.parse_args()
    keep_freed_memory()
    data = open_dataset(arguments.data)
    held_out: dict[str, dict[str, float]] = {}
    weight = arguments.crop_weights[0]
    if len(arguments.crop_weights) > 1:
        kept, others = hold_out(data.split("train"), HELD_OUT, data.classes)
        part = replace(data, readers={"train": lambda: kept, "held-out": lambda: others}, _cache={})
        held_out = measure(arguments, part, "held-out", 0, arguments.crop_weights)
        weight = max(arguments.crop_weights, key=lambda one: held_out[f"cascade, weight {one:g}"]["map"])
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for seed in range(arguments.seeds):
        for name, metrics in measure(arguments, data, arguments.split, seed, [weight]).items():
            for metric, value in metrics.items():
                values[name][metric].append(value)
    results = {name: {metric: spread(found) for metric, found in row.items()} for name, row in values.items()}
    shared = settings_of(arguments, without=("name", "poolings"))
    shared |= {"data": data_text(arguments, data), "tune": "head", "ap_variant": "voc10", "point_tolerance_px": 18}
    save_result(arguments, shared | {"crop_weight": weight}, {"held_out": held_out, "measured": results})


def measure(
    arguments: argparse.Namespace, data: DataSet, split: str, seed: int, weights: Sequence[float]
) -> dict[str, dict[str, float]]:
    """Train both stages on `train`; the metrics of the first one, and of the cascade with each weight."""
    with tempfile.TemporaryDirectory() as folder:
        run = create_run(Path(folder) / "run", head_config(arguments, seed, **METHODS["pronet"].settings), data)
        train(run, data)
        config = RefineConfig(method="pronet-cascade", crops=arguments.crops, crop_weight=1.0, seed=seed)
        cascade = refine(run, data, Path(folder) / "cascade", config)
        predictors = [load(model.folder) for model in (run, cascade)]
        images = [sample.path for sample in data.split(split)]
        first, verified = (list(one.stream(images, modalities=False)) for one in predictors)
    found = {FIRST: first}
    for weight in weights:  # of the classes that were not verified both have the same score
        pairs = zip(first, verified, strict=True)
        found[f"cascade, weight {weight:g}"] = [
            replace(b, class_scores=(1 - weight) * a.class_scores + weight * b.class_scores) for a, b in pairs
        ]
    results = {}
    for name, predictions in found.items():
        measured: dict[str, Any] = evaluate(
            predictors[0], data, split, predictions=predictions, measures=("classification", "pointing")
        )
        pointing = measured["pointing"]
        results[name] = {"map": measured["classification"]["map"], "point_ap": pointing["map"]}
        results[name]["pointing_game"] = pointing["pointing_game"]
        log(split, seed, name, results[name])
    return results


if __name__ == "__main__":
    main()
