"""15-Scene with a frozen backbone: accuracy on the given split and on random splits of the official protocol.

    python benchmarks/scenes.py --data DIR/15-Scene --out benchmarks/results/scenes.json

100 training pictures a class, the rest tested once; the last epoch is kept, so nothing is chosen on test pictures.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from wildcat.bench.heads import train_and_evaluate
from wildcat.bench.record import spread, write_result
from wildcat.config import TrainConfig
from wildcat.data import open_dataset

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
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    data = open_dataset(arguments.data)
    splits = [("train", "test")] + [(f"train-seed{s}", f"test-seed{s}") for s in range(arguments.random_splits)]
    results: dict[str, object] = {}
    for name, settings in POOLINGS.items():
        accuracies = []
        for train_split, test_split in splits:
            config = TrainConfig(
                tune="head",
                backbone=arguments.backbone,
                image_size=arguments.image_size,
                epochs=arguments.epochs,
                train_split=train_split,
                val_split="none",
                **settings,  # type: ignore[arg-type]  # plain values of the right types
            )
            report = train_and_evaluate(data, config, test_split)["classification"]
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
    settings = {k: v for k, v in vars(arguments).items() if k not in ("out", "data")}
    settings |= {"data": "15-Scene, 100 train pictures a class, the rest (2,985) tested", "tune": "head", "seed": 0}
    write_result(
        arguments.out, f"python benchmarks/scenes.py --data 15-Scene --out {arguments.out.name}", settings, results
    )


if __name__ == "__main__":
    main()
