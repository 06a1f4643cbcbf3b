"""Compare the poolings of the paper's Table 1 on one data set: same features, same schedule, several seeds.

    python benchmarks/pooling.py --data DIR/VOCdevkit --name "VOC 2012 mini" --out benchmarks/results/pooling.json
    python benchmarks/pooling.py --data DIR/VOCdevkit --name "VOC 2012 mini" --poolings weldon --sizes 448,576 \\
        --flip horizontal --amp --out benchmarks/results/pooling-sizes.json

The best epoch is the last one for every pooling (no choice is made on val), so that val is a clean test.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from wildcat.config import TrainConfig
from wildcat.data import open_dataset
from wildcat.reproduce.heads import train_and_evaluate
from wildcat.reproduce.record import spread, write_result

POOLINGS: dict[str, dict[str, object]] = {
    "max": {"pooling": "max", "num_maps": 1},
    "average": {"pooling": "average", "num_maps": 1},
    "weldon": {"pooling": "weldon", "num_maps": 1, "kmax": 0.1},
    "wildcat": {"pooling": "wildcat", "num_maps": 4, "kmax": 0.1, "alpha": 0.7},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a VOC devkit, or any data set with boxes")
    parser.add_argument("--name", default="", help="what to call the data in tables, where it is a subset")
    parser.add_argument("--split", default="val")
    parser.add_argument("--backbone", default="lite2")
    parser.add_argument("--image-size", type=int, default=384)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--lr", type=float, default=None)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--poolings", default=",".join(POOLINGS))
    parser.add_argument("--sizes", default="", help="one network for each input size, scores and maps averaged")
    parser.add_argument("--flip", default="none", choices=("none", "horizontal"), help="views averaged when measured")
    parser.add_argument("--amp", action="store_true", help="compute features in bfloat16")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    data = open_dataset(arguments.data)
    results: dict[str, dict[str, object]] = {}
    sizes = [int(size) for size in arguments.sizes.split(",") if size]
    for name in arguments.poolings.split(","):
        settings = POOLINGS[name]
        maps, points, games = [], [], []
        begun = time.perf_counter()
        for seed in range(arguments.seeds):
            config = TrainConfig(
                tune="head",
                backbone=arguments.backbone,
                image_size=arguments.image_size,
                epochs=arguments.epochs,
                lr=arguments.lr,
                seed=seed,
                val_split="none",
                amp=arguments.amp,
                **settings,  # type: ignore[arg-type]  # plain values of the right types
            )
            result = train_and_evaluate(
                data,
                config,
                arguments.split,
                sizes=sizes,
                combine="average",
                measures=("classification", "pointing"),
                flip=arguments.flip,
            )
            maps.append(result["classification"]["map"])
            points.append(result["pointing"]["map"])
            games.append(result["pointing"]["pointing_game"])
            print(name, seed, f"mAP {maps[-1]:.4f} point AP {points[-1]:.4f}", file=sys.stderr, flush=True)
        results[name] = {
            "settings": settings,
            "map": spread(maps),
            "point_ap": spread(points),
            "pointing_game": spread(games),
            "seconds_per_seed": round((time.perf_counter() - begun) / arguments.seeds, 1),
        }
    shared = {
        k: str(v) if isinstance(v, Path) else v
        for k, v in vars(arguments).items()
        if k not in ("out", "data", "name", "poolings", "flip")
    }
    counts = f"{len(data.split('train'))} train, {len(data.split(arguments.split))} val images"
    shared |= {"data": f"{arguments.name or data.name}, {counts}"}
    shared |= {
        "tune": "head",
        "flip": "horizontal",
        "views": arguments.flip,
        "ap_variant": "voc10",
        "point_tolerance_px": 18,
    }
    chosen = f"--sizes {arguments.sizes} --flip {arguments.flip} " if sizes else ""
    chosen += f"--poolings {arguments.poolings} {'--amp ' if arguments.amp else ''}"
    command = (
        f"python benchmarks/pooling.py --data VOCdevkit --name '{arguments.name}' {chosen}--out {arguments.out.name}"
    )
    write_result(arguments.out, command, shared, results)


if __name__ == "__main__":
    main()
