"""How many wrong labels `wildcat audit` finds: one label of a tenth of the training images is made wrong at random.

    python benchmarks/audit.py --data DIR/VOCdevkit --name "VOC 2012 mini" --out benchmarks/results/audit.json

`script.with_wrong_labels` makes them. The labels of the data set itself are taken as right, which they are not always.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import replace

from script import (
    WRONG_KINDS,
    argument_parser,
    log,
    save_result,
    settings_of,
    with_wrong_labels,
)

from wildcat.cli.allocator import keep_freed_memory
from wildcat.curation import Audit, audit_data
from wildcat.data import open_dataset
from wildcat.reproduce.tables import spread
from wildcat.settings import load_recipe


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--data", required=True, help="a multi-label data set")
    parser.add_argument("--name", default="", help="name of the data in tables, for example of a subset")
    parser.add_argument("--split", default="train")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--fraction", type=float, default=0.1, help="share of the images with a wrong label")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=1, help="the settings of the recipe were chosen on seed 0")
    arguments = parser.parse_args()
    keep_freed_memory()
    data = open_dataset(arguments.data)
    data = replace(data, readers={arguments.split: data.readers[arguments.split]}, _cache={})
    values: dict[str, list[float]] = defaultdict(list)
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        config = replace(load_recipe("audit"), seed=seed)
        noisy, flipped = with_wrong_labels(data, arguments.split, arguments.fraction, seed)
        start = time.perf_counter()
        measured = measure(audit_data(noisy, config, folds=arguments.folds), flipped)
        measured["seconds"] = time.perf_counter() - start
        for key, value in measured.items():
            values[key].append(value)
        log(seed, {key: round(value, 4) for key, value in measured.items()})
    settings = settings_of(arguments, without=("name",))
    settings |= {"data": arguments.name or data.name, "images": len(data.split(arguments.split))}
    settings |= {name: getattr(config, name) for name in ("backbone", "image_size", "epochs", "weight_decay")}
    save_result(arguments, settings, {key: spread(found) for key, found in values.items()})


def measure(audit: Audit, flipped: dict[str, str]) -> dict[str, float]:
    """Shares of the wrong labels in the first tenth of the list and among the suspects; all are shares of images."""
    rows = audit.suspects()
    first = {row["image"] for row in rows[: len(flipped)]}
    suspects = {row["image"] for row in rows if row["suspect"]}
    found = {
        "precision_at_tenth": len(first & flipped.keys()) / len(first),
        "suspects": float(len(suspects)),
        "suspect_precision": len(suspects & flipped.keys()) / max(1, len(suspects)),
        "suspect_recall": len(suspects & flipped.keys()) / len(flipped),
    }
    for kind in WRONG_KINDS:
        names = {name for name, other in flipped.items() if other == kind}
        found[f"{kind}_in_tenth"] = len(first & names) / max(1, len(names))
    return found


if __name__ == "__main__":
    main()
