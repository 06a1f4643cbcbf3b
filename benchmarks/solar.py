"""Solar cells after fine-tuning: ROC AUC, AP and accuracy on the held-out quarter.

    wildcat train solar --recipe solar --out runs/solar
    wildcat train solar --recipe solar --backbone lite2 --image-size 300 --epochs 12 --out runs/solar-300
    wildcat ensemble runs/solar runs/solar-300 --combine average --out runs/solar-both
    python benchmarks/solar.py --run runs/solar-both --out benchmarks/results/solar.json

Runs use their last epoch and are averaged: nothing is chosen on the held-out quarter. Each member is measured too, with
one view and with four mirrored views.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from script import argument_parser, save_result

from wildcat.config import Flip
from wildcat.data import open_dataset
from wildcat.evaluation import evaluate
from wildcat.models.folder import open_model
from wildcat.models.run import Run, open_run
from wildcat.predictor import load
from wildcat.reproduce.runner import plain_settings


def stages(run: Run) -> list[dict[str, Any]]:
    """Settings and history of a run and of the runs whose weights it started from, in order of training."""
    folder = Path(run.config.weights)
    earlier = stages(open_run(folder)) if folder.is_dir() else []
    settings = plain_settings(run.config) | ({"weights": "the stage before"} if earlier else {})
    history = [{k: line[k] for k in ("epoch", "loss", "val", "seconds") if k in line} for line in run.history()]
    return [*earlier, {"settings": settings, "history": history}]


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--note", default="", help="a remark on how this run was trained")
    arguments = parser.parse_args()
    data = open_dataset("solar")
    runs = open_model(arguments.run).runs

    def measured(source: Path, flip: Flip) -> dict[str, Any]:
        return evaluate(load(source, flip=flip), data, arguments.split)

    result = measured(arguments.run, "both")
    result["one_view"] = measured(arguments.run, "none")["classification"]
    result["members"] = [
        {
            "backbone": run.config.backbone,
            "image_size": run.config.image_size,
            "four_views": measured(run.folder, "both")["classification"] if len(runs) > 1 else result["classification"],
            "stages": stages(run),
        }
        for run in runs
    ]
    settings = {
        "members": [f"{run.config.backbone} at {run.config.image_size} px" for run in runs],
        "data": "elpv-dataset, defective from probability 0.5, mono and poly, fixed stratified 75/25 split",
        "prediction": "maps averaged over the four mirrored views (flip=both); one_view: without mirroring",
        "anchor": "88.4 % accuracy, fine-tuned VGG19 (Deitsch et al. 2019), on their own split",
        "note": arguments.note,
    }
    save_result(arguments, settings, result)


if __name__ == "__main__":
    main()
