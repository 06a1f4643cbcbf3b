"""Masks from image-level labels: each pooling with and without a dense CRF, and after `wildcat refine`.

    python benchmarks/masks.py --data DIR/VOCdevkit --name "VOC 2012 mini" --amp --out benchmarks/results/masks.json

All runs use the same cached features and schedule. Masks are drawn with the default thresholds (probability 0.5, raw
map above 0), with the background fitted on the masks of training images, if there are any (`wildcat calibrate`), and
with the background that is best on the measured masks, which a deployed model cannot know.
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from script import (
    add_training_arguments,
    argument_parser,
    data_text,
    head_config,
    log,
    mask_metrics,
    poolings,
    save_result,
    settings_of,
)

from wildcat.cli.allocator import keep_freed_memory
from wildcat.data import DataSet, open_dataset
from wildcat.evaluation import Tally, mask_confusion, segmentation_report, true_mask
from wildcat.fitting.calibrate import fit_background
from wildcat.fitting.refine import refine
from wildcat.models.run import create_run
from wildcat.prediction import default_mask_params
from wildcat.predictor import Predictor, load
from wildcat.reproduce.heads import predictions_from_features
from wildcat.reproduce.tables import spread
from wildcat.train.loop import train

REFINED = "wildcat"  # the pooling whose runs are refined


def main() -> None:
    parser = argument_parser(__doc__)
    add_training_arguments(parser, image_size=448)
    parser.add_argument("--k", type=float, default=0.2, help="k+ = k- of WELDON and WILDCAT, as a proportion")
    parser.add_argument("--refined-seeds", type=int, default=3, help="number of seeds whose runs are refined")
    arguments = parser.parse_args()
    keep_freed_memory()
    data = open_dataset(arguments.data)
    results: dict[str, dict[str, Any]] = {}
    for name, settings in poolings(arguments, arguments.k).items():
        values: dict[str, list[float]] = defaultdict(list)
        refined: dict[str, list[float]] = defaultdict(list)
        for seed in range(arguments.seeds):
            with tempfile.TemporaryDirectory() as folder:
                run = create_run(Path(folder) / "run", head_config(arguments, seed, **settings), data)
                train(run, data)
                append(values, measure_head(load(run.folder), data, arguments.split, arguments.amp))
                log(name, seed, {key: round(found[-1], 4) for key, found in values.items()})
                if name == REFINED and seed < arguments.refined_seeds:
                    start = time.perf_counter()
                    refine(run, data, Path(folder) / "refined")
                    seconds = time.perf_counter() - start
                    metrics = measure_refined(Path(folder) / "refined", data, arguments.split)
                    append(refined, {"seconds": seconds, **metrics})
                    log("refined", seed, {key: round(found[-1], 4) for key, found in refined.items()})
        results[name] = {"settings": settings, **{key: spread(found) for key, found in values.items()}}
        if refined:
            count = len(refined["map"])
            label = f"{name}, refined ({count} seed{'s' if count > 1 else ''})"
            results[label] = {key: spread(found) for key, found in refined.items()}
    shared = settings_of(arguments, without=("name", "poolings", "refined_seeds"))
    shared |= {"data": data_text(arguments, data), "masks_of_train": len(masked(data)), "tune": "head"}
    shared |= {"views": "horizontal", "ap_variant": "voc10", "point_tolerance_px": 18}
    save_result(arguments, shared, results)


def append(values: dict[str, list[float]], metrics: dict[str, float]) -> None:
    for key, value in metrics.items():
        values[key].append(value)


def masked(data: DataSet) -> list[Any]:
    """The training images that have a mask."""
    return [sample for sample in data.split("train") if sample.mask is not None]


def measure_head(predictor: Predictor, data: DataSet, split: str, amp: bool) -> dict[str, float]:
    """Metrics of a run, from cached features with the mirrored view."""
    samples, learned = data.split(split), masked(data)
    predictions = list(predictions_from_features(predictor, samples, amp, "horizontal"))
    metrics = mask_metrics(predictor, data, split, predictions)
    if learned:
        pairs = list(zip(predictions_from_features(predictor, learned, amp, "horizontal"), learned, strict=True))
        params, _ = fit_background(default_mask_params(data.task), pairs)
        tally = Tally(params=params)
        tally.confusion = sum(
            mask_confusion(p, true_mask(p, s), False, params) for p, s in zip(predictions, samples, strict=True)
        )
        metrics["miou_calibrated"] = segmentation_report(tally, data, split)["miou"]
    return metrics


def measure_refined(folder: Path, data: DataSet, split: str) -> dict[str, float]:
    """Metrics of a refined model, with the mirrored view."""
    predictor = load(folder, flip="horizontal")
    predictions = list(predictor.stream([sample.path for sample in data.split(split)], modalities=False))
    return mask_metrics(predictor, data, split, predictions)


if __name__ == "__main__":
    main()
