"""What each engine and precision costs in accuracy, on a data set with boxes.

    python benchmarks/engine_accuracy.py --run runs/voc --data VOCdevkit --out benchmarks/results/engine-accuracy.json

int8 ranges are measured on training images; figures are of --split, which is only measured on.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import wildcat
from wildcat.cli.allocator import keep_freed_memory
from wildcat.data import open_dataset
from wildcat.engines import PRECISIONS
from wildcat.evaluation import evaluate
from wildcat.fitting.benchmark import calibrate, engine_versions
from wildcat.reproduce.record import write_result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--name", help="of the data in the result; by default its own")
    parser.add_argument("--split", default="val")
    parser.add_argument("--calibration-split", default="train")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    keep_freed_memory()
    data = open_dataset(arguments.data)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["WILDCAT_CACHE"] = folder
        predictor = wildcat.load(arguments.run, "cpu")
        count = calibrate(predictor, [s.path for s in data.split(arguments.calibration_split)])
        for name, precision in ((n, p) for n, all_of in PRECISIONS.items() if n != "compile" for p in all_of):
            predictor.use_engine(name, precision)
            figures = evaluate(predictor, data, arguments.split, measures=("classification", "pointing"))
            row = {"map": figures["classification"]["map"], "point_ap": figures["pointing"]["map"]}
            results[f"{name} {precision}"] = row
            print(name, precision, row, file=sys.stderr, flush=True)
    settings = {
        "run": Path(arguments.run).name,
        "backbone": predictor.model.backbone.name,
        "image_size": predictor.preprocess.size,
        "data": arguments.name or data.name,
        "split": arguments.split,
        "images": len(data.split(arguments.split)),
        "calibration": count,
        "calibration_split": arguments.calibration_split,
        "packages": engine_versions(),
    }
    command = f"python benchmarks/engine_accuracy.py --run {settings['run']} --data {settings['data']}"
    write_result(arguments.out, f"{command} --out {arguments.out.name}", settings, results)


if __name__ == "__main__":
    main()
