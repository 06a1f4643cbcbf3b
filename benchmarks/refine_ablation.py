"""What each step of `wildcat refine` adds: mean IoU without and with a dense CRF, point AP, and CPU minutes.

    python benchmarks/refine_ablation.py --run runs/base --data DIR/VOCdevkit --out refine-ablation.json

All variants refine the same run with the same seed. The first row is the run itself. Nothing is chosen on the measured
split. Caches are shared: a step's minutes leave out features that an earlier row has computed. With --wrong-labels the
settings of the run are trained anew on labels of which some are wrong, and so is its refinement.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
from pathlib import Path
from typing import Any

from script import (
    argument_parser,
    log,
    mask_metrics,
    save_result,
    settings_of,
    with_wrong_labels,
)

from wildcat.cli.allocator import keep_freed_memory
from wildcat.data import open_dataset
from wildcat.fitting.config import RefineConfig
from wildcat.fitting.refine import refine
from wildcat.models.run import create_run, open_run
from wildcat.predictor import load
from wildcat.reproduce.tables import slug
from wildcat.train.loop import train

VARIANTS: dict[str, dict[str, Any]] = {
    "labels of one size, CRF": {"label_sizes": "1"},
    "+ three sizes": {},
    "the same, then all layers": {"tune": "all"},
    "+ boundaries and random walk": {"propagate": True},
    "the same, PAMR instead of the CRF": {"propagate": True, "sharpen": "pamr"},
    "the same, without sharpening": {"propagate": True, "sharpen": "none"},
    "the same, two rounds": {"propagate": True, "rounds": 2},
}
MAIN = ("labels of one size, CRF", "+ three sizes", "+ boundaries and random walk")  # each adds a step to the one above
PROPAGATED = ", masks propagated"


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--run", type=Path, required=True, help="the run to refine")
    parser.add_argument("--data", required=True, help="a VOC devkit or another data set with masks")
    parser.add_argument("--name", default="", help="name of the data in tables")
    parser.add_argument("--split", default="val", help="the split to measure on")
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=MAIN, help="rows to compute")
    parser.add_argument("--wrong-labels", type=float, default=0.0, help="fraction of training images that get one")
    arguments = parser.parse_args()
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        ablate(arguments, Path(folder))


def ablate(arguments: argparse.Namespace, folder: Path) -> None:
    """Measure the run and its refinements, which are written into a folder, and save the result."""
    data, run = open_dataset(arguments.data), open_run(arguments.run)
    if arguments.wrong_labels:
        data, _ = with_wrong_labels(data, run.config.train_split, arguments.wrong_labels, run.config.seed)
        run = create_run(folder / "run", run.config, data, arguments.data)
        train(run, data)
    results: dict[str, dict[str, float]] = {"the run itself": measure(run.folder, data, arguments.split)}
    log("run", results["the run itself"])
    for name in arguments.variants:
        start = cpu_seconds()
        config = RefineConfig(**VARIANTS[name])
        refine(run, data, folder / slug(name), config)
        minutes = (cpu_seconds() - start) / 60
        for suffix, propagate in (("", False), (PROPAGATED, True))[: 1 + config.propagate]:
            metrics = measure(folder / slug(name), data, arguments.split, propagate)
            results[name + suffix] = {"cpu_minutes": round(minutes, 2), **metrics}
            log(name + suffix, results[name + suffix])
    save_result(
        arguments, {**settings_of(arguments, without=("variants",)), "data": arguments.name or data.name}, results
    )


def measure(folder: Path, data: Any, split: str, propagate: bool = False) -> dict[str, float]:
    """Metrics of a model, with the mirrored view."""
    predictor = load(folder, flip="horizontal", propagate=propagate)
    predictions = list(predictor.stream([sample.path for sample in data.split(split)], modalities=False))
    return mask_metrics(predictor, data, split, predictions)


def cpu_seconds() -> float:
    """Processor time of this process and its children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


if __name__ == "__main__":
    main()
