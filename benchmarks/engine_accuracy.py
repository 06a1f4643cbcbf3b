"""Accuracy of each engine and precision on a data set with boxes.

    python benchmarks/engine_accuracy.py --run runs/voc --data VOCdevkit --out benchmarks/results/engine-accuracy.json

int8 ranges are calibrated on training images; the metrics are those of --split.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from script import argument_parser, log, save_result

import wildcat
from wildcat.cli.allocator import keep_freed_memory
from wildcat.data import open_dataset
from wildcat.engines import PRECISIONS
from wildcat.evaluation import evaluate
from wildcat.fitting.benchmark import calibrate, engine_versions


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--name", help="name of the data in tables, for example of a subset")
    parser.add_argument("--split", default="val")
    parser.add_argument("--calibration-split", default="train")
    arguments = parser.parse_args()
    keep_freed_memory()
    data = open_dataset(arguments.data)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["WILDCAT_CACHE"] = folder
        predictor = wildcat.load(arguments.run, "cpu")
        count = calibrate(predictor, [sample.path for sample in data.split(arguments.calibration_split)])
        for engine, precisions in PRECISIONS.items():
            for precision in precisions if engine != "compile" else ():
                predictor.use_engine(engine, precision)
                metrics = evaluate(predictor, data, arguments.split, measures=("classification", "pointing"))
                row = {"map": metrics["classification"]["map"], "point_ap": metrics["pointing"]["map"]}
                results[f"{engine} {precision}"] = row
                log(engine, precision, row)
    settings = {
        "run": arguments.run.name,
        "backbone": predictor.model.backbone.name,
        "image_size": predictor.preprocess.size,
        "data": arguments.name or data.name,
        "split": arguments.split,
        "images": len(data.split(arguments.split)),
        "calibration": count,
        "calibration_split": arguments.calibration_split,
        "packages": engine_versions(),
    }
    save_result(arguments, settings, results)


if __name__ == "__main__":
    main()
