"""Solar cells after fine-tuning: ROC AUC, AP and accuracy on the held-out quarter.

    wildcat train solar --recipe solar --out runs/solar
    python benchmarks/solar.py --run runs/solar --out benchmarks/results/solar.json

The last epoch is kept: nothing is chosen on the held-out quarter, which is looked at here, once.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from wildcat.bench.record import write_result
from wildcat.config import to_dict
from wildcat.data import open_dataset
from wildcat.evaluation import evaluate
from wildcat.predictor import load
from wildcat.train.runs import Run, open_run


def stages(run: Run) -> list[dict[str, Any]]:
    """Settings and history of a run and of those it went on from, the first of them first."""
    folder = Path(run.config.weights)
    before = stages(open_run(folder)) if folder.is_dir() else []
    settings = to_dict(run.config) | ({"weights": "the stage before"} if before else {})
    history = [{k: line[k] for k in ("epoch", "loss", "val", "seconds") if k in line} for line in run.history()]
    return [*before, {"settings": settings, "history": history}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--note", default="", help="what a reader should know of how this run came about")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    data = open_dataset("solar")
    run = open_run(arguments.run)
    result = evaluate(load(arguments.run, flip="both"), data, arguments.split)
    result["one_view"] = evaluate(load(arguments.run), data, arguments.split)["classification"]
    result["training"] = {"stages": stages(run)}
    settings = {
        "backbone": run.config.backbone,
        "image_size": run.config.image_size,
        "data": "elpv-dataset, defective from probability 0.5, mono and poly, fixed stratified 75/25 split",
        "prediction": "maps averaged over the four mirrored views (flip=both); one_view is the picture alone",
        "anchor": "88.4 % accuracy, fine-tuned VGG19 (Deitsch et al. 2019), on their own split",
        "note": arguments.note,
    }
    command = f"python benchmarks/solar.py --run runs/solar --out {arguments.out.name}"
    write_result(arguments.out, command, settings, result)


if __name__ == "__main__":
    main()
