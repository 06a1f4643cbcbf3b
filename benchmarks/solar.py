"""Solar cells after fine-tuning: ROC AUC, AP and accuracy on the held-out quarter.

    wildcat train solar --recipe solar --out runs/solar
    python benchmarks/solar.py --run runs/solar --out benchmarks/results/solar.json

The last epoch is kept: nothing is chosen on the held-out quarter, which is looked at here, once.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from wildcat.bench.record import write_result
from wildcat.config import to_dict
from wildcat.data import open_dataset
from wildcat.evaluation import evaluate
from wildcat.predictor import load
from wildcat.train.runs import open_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    data = open_dataset("solar")
    run = open_run(arguments.run)
    result = evaluate(load(arguments.run, flip="both"), data, arguments.split)
    result["one_view"] = evaluate(load(arguments.run), data, arguments.split)["classification"]
    history = run.history()
    result["training"] = {
        "best_epoch": next(line["epoch"] for line in reversed(history) if line["best"]),
        "epochs": len(history),
        "seconds": round(sum(line["seconds"] for line in history)),
        "history": [{k: line[k] for k in ("epoch", "loss", "val") if k in line} for line in history],
    }
    settings = to_dict(run.config) | {
        "data": "elpv-dataset, defective from probability 0.5, mono and poly, fixed stratified 75/25 split",
        "prediction": "maps averaged over the four mirrored views (flip=both); one_view is the picture alone",
        "anchor": "88.4 % accuracy, fine-tuned VGG19 (Deitsch et al. 2019), on their own split",
    }
    command = f"python benchmarks/solar.py --run runs/solar --out {arguments.out.name}"
    write_result(arguments.out, command, settings, result)


if __name__ == "__main__":
    main()
