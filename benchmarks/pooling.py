r"""Compare the poolings of the paper's Table 1 on the same features and schedule.

    python benchmarks/pooling.py --data DIR/VOCdevkit --name "VOC 2012 mini" --out benchmarks/results/pooling.json
    python benchmarks/pooling.py --data DIR/VOCdevkit --name "VOC 2012 mini" --poolings weldon --sizes 448,576,704 \
        --combine average --flip horizontal --amp --out benchmarks/results/pooling-sizes.json
    python benchmarks/pooling.py --data DIR/15-Scene --split test --image-size 320 --k 0.4 --poolings average,wildcat \
        --amp --out benchmarks/results/scenes.json
    python benchmarks/pooling.py --data DIR/15-Scene --split test --sizes 320,448 --combine average --seeds 5 \
        --poolings average,mop-cnn --flip horizontal --out benchmarks/results/scenes-sizes.json

On data with boxes: mAP and point AP over several seeds. On 15-Scene: accuracy on the given split, and on one random
split of 100 training images per class for each seed. Every training uses its last epoch.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from typing import Any

from script import (
    add_training_arguments,
    argument_parser,
    data_text,
    head_config,
    log,
    poolings,
    save_result,
    settings_of,
)

from wildcat.cli.allocator import keep_freed_memory
from wildcat.data import DataSet, open_dataset
from wildcat.reproduce.heads import train_and_evaluate
from wildcat.reproduce.tables import spread


def main() -> None:
    parser = argument_parser(__doc__)
    add_training_arguments(parser, image_size=384)
    parser.add_argument("--k", type=float, default=0.1, help="k+ = k- of WELDON and WILDCAT, as a proportion")
    parser.add_argument("--sizes", default="", help="one network for each of these input sizes, combined")
    parser.add_argument("--combine", default="linear", choices=("linear", "average"))
    parser.add_argument("--flip", default="none", choices=("none", "horizontal"), help="views averaged when measuring")
    arguments = parser.parse_args()
    keep_freed_memory()
    data = open_dataset(arguments.data)
    scenes = data.format == "scenes"
    results: dict[str, Any] = {}
    for name, settings in poolings(arguments, arguments.k).items():
        start = time.perf_counter()
        values: dict[str, list[float]] = defaultdict(list)
        for seed in range(arguments.seeds):
            splits = {"train_split": f"train-seed{seed}"} if scenes else {}
            split = f"{arguments.split}-seed{seed}" if scenes else arguments.split
            for metric, value in measure(arguments, data, split, seed, settings | splits).items():
                values[metric].append(value)
            log(name, seed, {metric: round(found[-1], 4) for metric, found in values.items()})
        means = {metric: spread(found) for metric, found in values.items()}
        if scenes:
            results[name] = {"settings": settings, "random_splits": means}
            results[name]["given_split"] = measure(arguments, data, arguments.split, 0, settings)
        else:
            seconds = round((time.perf_counter() - start) / arguments.seeds, 1)
            results[name] = {"settings": settings, **means, "seconds_per_seed": seconds}
    shared = settings_of(arguments, without=("name", "poolings", "flip"))
    shared |= {"data": data_text(arguments, data), "tune": "head", "ap_variant": "voc10", "point_tolerance_px": 18}
    save_result(arguments, shared | {"views": arguments.flip}, results)


def measure(
    arguments: argparse.Namespace, data: DataSet, split: str, seed: int, settings: dict[str, Any]
) -> dict[str, float]:
    """Train the heads of one seed and return their metrics."""
    result = train_and_evaluate(
        data,
        head_config(arguments, seed, **settings),
        split,
        sizes=[int(size) for size in arguments.sizes.split(",") if size],
        combine=arguments.combine,
        measures=("classification", "pointing"),
        flip=arguments.flip,
    )
    if data.format == "scenes":
        return {name: round(result["classification"][name], 5) for name in ("accuracy", "class_mean_accuracy")}
    pointing = result["pointing"]
    return {
        "map": result["classification"]["map"],
        "point_ap": pointing["map"],
        "pointing_game": pointing["pointing_game"],
    }


if __name__ == "__main__":
    main()
