"""Masks from tags: each pooling with and without a dense CRF, and the segmenter that `wildcat refine` makes of one.

    python benchmarks/masks.py --data DIR/VOCdevkit --name "VOC 2012 mini" --amp --out benchmarks/results/masks.json

Every run is trained on tags alone, on the same cached features and schedule, and its masks are drawn at the defaults:
classes of probability 0.5, raw maps above 0. Beside them stand the background fitted on the masks of training images,
where there are any (`wildcat calibrate`), and the best one in hindsight, which no deployed model can know.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from wildcat.config import TrainConfig
from wildcat.data import DataSet, open_dataset
from wildcat.evaluation import Tally, class_order, evaluate, mask_confusion, segmentation_report, true_mask
from wildcat.fitting.calibrate import fit_background
from wildcat.fitting.refine import refine
from wildcat.models.run import create_run
from wildcat.prediction import default_mask_params
from wildcat.predictor import Predictor, load
from wildcat.reproduce.heads import predictions_from_features
from wildcat.reproduce.record import spread, write_result
from wildcat.train.loop import train

POOLINGS: dict[str, dict[str, Any]] = {
    "max": {"pooling": "max", "num_maps": 1},
    "average": {"pooling": "average", "num_maps": 1},
    "weldon": {"pooling": "weldon", "num_maps": 1, "kmax": 0.2},
    "wildcat": {"pooling": "wildcat", "num_maps": 4, "kmax": 0.2, "alpha": 0.7},
}
REFINED = "wildcat"
"""The pooling whose runs are refined too."""

MEASURES = ("classification", "pointing", "segmentation")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a VOC devkit, or any data set with masks")
    parser.add_argument("--name", default="", help="what to call the data in tables, where it is a subset")
    parser.add_argument("--split", default="val")
    parser.add_argument("--backbone", default="lite2")
    parser.add_argument("--image-size", type=int, default=448)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--refined-seeds", type=int, default=3, help="of these the runs are refined too")
    parser.add_argument("--poolings", default=",".join(POOLINGS))
    parser.add_argument("--amp", action="store_true", help="compute features in bfloat16")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    data = open_dataset(arguments.data)
    results: dict[str, dict[str, Any]] = {}
    for name in arguments.poolings.split(","):
        figures: dict[str, list[float]] = defaultdict(list)
        refined: dict[str, list[float]] = defaultdict(list)
        for seed in range(arguments.seeds):
            config = TrainConfig(
                tune="head",
                backbone=arguments.backbone,
                image_size=arguments.image_size,
                epochs=arguments.epochs,
                seed=seed,
                val_split="none",
                amp=arguments.amp,
                **POOLINGS[name],
            )
            with tempfile.TemporaryDirectory() as folder:
                run = create_run(Path(folder) / "run", config, data)
                train(run, data)
                predictor = load(run.folder)
                for key, value in measure_head(predictor, data, arguments.split, arguments.amp).items():
                    figures[key].append(value)
                print(name, seed, {k: round(v[-1], 4) for k, v in figures.items()}, file=sys.stderr, flush=True)
                if name == REFINED and seed < arguments.refined_seeds:
                    begun = time.perf_counter()
                    refine(run, data, Path(folder) / "refined")
                    refined["seconds"].append(time.perf_counter() - begun)
                    for key, value in measure_refined(Path(folder) / "refined", data, arguments.split).items():
                        refined[key].append(value)
                    print(
                        "refined", seed, {k: round(v[-1], 4) for k, v in refined.items()}, file=sys.stderr, flush=True
                    )
        results[name] = {"settings": POOLINGS[name], **{key: spread(values) for key, values in figures.items()}}
        if refined:
            count = len(refined["map"])
            label = f"{name}, refined ({count} seed{'s' if count > 1 else ''})"
            results[label] = {key: spread(values) for key, values in refined.items()}
    masked = sum(s.mask is not None for s in data.split("train"))
    shared = {
        "data": f"{arguments.name or data.name}, {len(data.split('train'))} train, "
        f"{len(data.split(arguments.split))} {arguments.split} images",
        "masks_of_train": masked,
        "split": arguments.split,
        "backbone": arguments.backbone,
        "image_size": arguments.image_size,
        "epochs": arguments.epochs,
        "seeds": arguments.seeds,
        "amp": arguments.amp,
        "tune": "head",
        "views": "horizontal",
        "ap_variant": "voc10",
        "point_tolerance_px": 18,
    }
    command = (
        f"python benchmarks/masks.py --data VOCdevkit --name '{arguments.name}' "
        f"{'--amp ' if arguments.amp else ''}--out {arguments.out.name}"
    )
    write_result(arguments.out, command, shared, results)


def measure_head(predictor: Predictor, data: DataSet, split: str, amp: bool) -> dict[str, float]:
    """Figures of a run, from cached features with the mirrored view."""
    order = class_order(predictor, data)
    learned = [s for s in data.split("train") if s.mask is not None]
    predictions = list(predictions_from_features(predictor, data.split(split), amp, "horizontal"))
    plain = evaluate(predictor, data, split, predictions=predictions, measures=MEASURES)
    sharp = evaluate(predictor, data, split, crf=True, predictions=predictions, measures=("segmentation",))
    figures = {
        "map": plain["classification"]["map"],
        "point_ap": plain["pointing"]["map"],
        "miou": plain["segmentation"]["miou"],
        "miou_crf": sharp["segmentation"]["miou"],
        "miou_hindsight": plain["segmentation"]["hindsight"]["miou"],
    }
    if learned:
        kept = list(zip(predictions_from_features(predictor, learned, amp, "horizontal"), learned, strict=True))
        params, _ = fit_background(default_mask_params(data.task), kept, order, False, lambda steps: None)
        samples = data.split(split)
        tally = Tally(params=params)
        tally.confusion = sum(
            mask_confusion(p, true_mask(p, s), order, False, params) for p, s in zip(predictions, samples, strict=True)
        )
        figures["miou_calibrated"] = segmentation_report(tally, data, split, False)["miou"]
    return figures


def measure_refined(folder: Path, data: DataSet, split: str) -> dict[str, float]:
    """Figures of a refined model, with the mirrored view."""
    predictor = load(folder, flip="horizontal")
    predictions = list(predictor.stream([s.path for s in data.split(split)], modalities=False))
    plain = evaluate(predictor, data, split, predictions=predictions, measures=MEASURES)
    sharp = evaluate(predictor, data, split, crf=True, predictions=predictions, measures=("segmentation",))
    return {
        "map": plain["classification"]["map"],
        "point_ap": plain["pointing"]["map"],
        "miou": plain["segmentation"]["miou"],
        "miou_crf": sharp["segmentation"]["miou"],
        "miou_hindsight": plain["segmentation"]["hindsight"]["miou"],
    }


if __name__ == "__main__":
    main()
