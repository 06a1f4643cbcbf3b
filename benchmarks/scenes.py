"""15-Scene with a frozen backbone: accuracy on the given split and on random splits of the official protocol.

    python benchmarks/scenes.py --data DIR/15-Scene --out benchmarks/results/scenes.json
    python benchmarks/scenes.py --data DIR/15-Scene --sizes 224,320,448 --flip horizontal --random-splits 5 \\
        --poolings average --out benchmarks/results/scenes-sizes.json

100 training images a class, the rest tested once; the last epoch is kept, so nothing is chosen on test images.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from wildcat.config import TrainConfig
from wildcat.data import open_dataset
from wildcat.reproduce.heads import train_and_evaluate
from wildcat.reproduce.record import spread, write_result

POOLINGS: dict[str, dict[str, object]] = {
    "average": {"pooling": "average", "num_maps": 1},
    "wildcat": {"pooling": "wildcat", "num_maps": 4, "kmax": 0.4, "alpha": 0.7},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--backbone", default="lite2")
    parser.add_argument("--image-size", type=int, default=320)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--random-splits", type=int, default=3)
    parser.add_argument("--poolings", default=",".join(POOLINGS))
    parser.add_argument("--sizes", default="", help="one network for each input size, combined; 224,320,448")
    parser.add_argument("--combine", default="linear", choices=("linear", "average"))
    parser.add_argument("--flip", default="none", choices=("none", "horizontal"), help="views averaged when tested")
    parser.add_argument("--no-amp", action="store_true", help="compute features in float32 instead of bfloat16")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    data = open_dataset(arguments.data)
    splits = [("train", "test")] + [(f"train-seed{s}", f"test-seed{s}") for s in range(arguments.random_splits)]
    results: dict[str, object] = {}
    sizes = [int(size) for size in arguments.sizes.split(",") if size]
    for name in arguments.poolings.split(","):
        settings = POOLINGS[name]
        accuracies = []
        for train_split, test_split in splits:
            config = TrainConfig(
                tune="head",
                backbone=arguments.backbone,
                image_size=arguments.image_size,
                epochs=arguments.epochs,
                train_split=train_split,
                val_split="none",
                amp=not arguments.no_amp,
                **settings,  # type: ignore[arg-type]  # plain values of the right types
            )
            result = train_and_evaluate(
                data, config, test_split, sizes=sizes, combine=arguments.combine, flip=arguments.flip
            )
            report = result["classification"]
            accuracies.append((report["accuracy"], report["class_mean_accuracy"]))
            print(name, test_split, report["accuracy"], file=sys.stderr, flush=True)
        results[name] = {
            "settings": settings,
            "given_split": {"accuracy": round(accuracies[0][0], 5), "class_mean_accuracy": round(accuracies[0][1], 5)},
            "random_splits": {
                "accuracy": spread([a for a, _ in accuracies[1:]]),
                "class_mean_accuracy": spread([m for _, m in accuracies[1:]]),
            },
        }
    settings = {k: v for k, v in vars(arguments).items() if k not in ("out", "data", "poolings")}
    settings |= {"data": "15-Scene, 100 train images a class, the rest (2,985) tested", "tune": "head", "seed": 0}
    chosen = f"--sizes {arguments.sizes} --combine {arguments.combine} " if sizes else ""
    chosen += f"--flip {arguments.flip} " if arguments.flip != "none" else ""
    chosen += f"--random-splits {arguments.random_splits} --poolings {arguments.poolings}"
    command = f"python benchmarks/scenes.py --data 15-Scene {chosen} --out {arguments.out.name}"
    write_result(arguments.out, command, settings, results)


if __name__ == "__main__":
    main()
