r"""Train recipes on one data set, several seeds each, and measure them on a split that nothing was chosen on.

    python benchmarks/fine_tuning.py --data DIR/VOCdevkit --name "VOC 2012 mini" --runs runs/voc --seeds 2 \
        --train "head image_size=448" --train finetune --train "finetune tune=all" \
        --out benchmarks/results/fine-tuning-voc.json
    python benchmarks/fine_tuning.py --data DIR/15-Scene --split test --runs runs/scenes --seeds 5 \
        --train scenes --out benchmarks/results/fine-tuning-scenes.json
    python benchmarks/fine_tuning.py --data solar --split test --flip both --runs runs/solar --seeds 2 \
        --train solar --out benchmarks/results/fine-tuning-solar.json

A training is a recipe and settings that replace its own; with --sizes it is done once for each input size, and the
networks are measured alone and with their outputs averaged. On 15-Scene each seed has another random split of 100
training images per class. Every training uses its last epoch. Runs that --runs holds already are not trained again.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from script import argument_parser, data_text, log, save_result

from wildcat.cli.allocator import keep_freed_memory
from wildcat.config import TrainConfig
from wildcat.data import DataSet, open_dataset
from wildcat.evaluation import evaluate
from wildcat.fitting.ensemble import create_ensemble
from wildcat.models.folder import open_model
from wildcat.predictor import load
from wildcat.progress import ProgressBar
from wildcat.reproduce.runner import plain_settings, table_metrics, trained_run
from wildcat.reproduce.tables import slug, spread
from wildcat.settings import from_dict, load_recipe


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--data", required=True, help="a VOC devkit or another data set")
    parser.add_argument("--name", default="", help="name of the data in tables, for example of a subset")
    parser.add_argument("--split", default="val", help="the split to measure on")
    parser.add_argument("--train", action="append", required=True, metavar="'RECIPE NAME=VALUE ...'")
    parser.add_argument("--sizes", default="", help="input sizes; default: that of the recipe")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--flip", default="horizontal", choices=("none", "horizontal", "both"), help="views averaged")
    parser.add_argument("--runs", type=Path, required=True, help="folder for the runs")
    arguments = parser.parse_args()
    keep_freed_memory()
    data = open_dataset(arguments.data)
    results = {text: measure_training(arguments, data, text) for text in arguments.train}
    settings = {"data": data_text(arguments, data), "seeds": arguments.seeds, "views": arguments.flip}
    save_result(arguments, settings | {"ap_variant": "voc10", "point_tolerance_px": 18}, results)


def measure_training(arguments: argparse.Namespace, data: DataSet, text: str) -> dict[str, Any]:
    """Settings of a training, and for each input size the spread of its metrics over the seeds."""
    config = parse_training(text)
    sizes = [int(size) for size in arguments.sizes.split(",") if size] or [config.image_size]
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for seed in range(arguments.seeds):
        own = replace(config, seed=seed, val_split="none")
        split = arguments.split
        if data.format == "scenes":
            own, split = replace(own, train_split=f"train-seed{seed}"), f"{split}-seed{seed}"
        folder = arguments.runs / slug(text) / str(seed)
        with ProgressBar() as progress:
            runs = [trained_run(replace(own, image_size=size), data, folder / str(size), progress) for size in sizes]
        models = {f"{size} px": run.folder for size, run in zip(sizes, runs, strict=True)}
        if len(runs) > 1:
            together = folder / "average"
            if not together.exists():
                create_ensemble(together, [open_model(run.folder) for run in runs], "average")
            models[f"{' + '.join(map(str, sizes))} px, averaged"] = together
        for name, model in models.items():
            result = evaluate(load(model, flip=arguments.flip), data, split)
            for metric, value in measured(result).items():
                values[name][metric].append(value)
            log(text, seed, name, {metric: round(found[-1], 4) for metric, found in values[name].items()})
        for size, run in zip(sizes, runs, strict=True):
            values[f"{size} px"]["seconds"].append(sum(epoch["seconds"] for epoch in run.history()))
    rows = {name: {key: spread(found) for key, found in metrics.items()} for name, metrics in values.items()}
    return {"settings": plain_settings(config), "inputs": rows}


def parse_training(text: str) -> TrainConfig:
    """`RECIPE NAME=VALUE ...` -> settings."""
    recipe, *given = text.split()
    pairs = (word.partition("=") for word in given)
    return from_dict({name: yaml.safe_load(value) for name, _, value in pairs}, text, load_recipe(recipe))


def measured(result: dict[str, Any]) -> dict[str, float]:
    """The metrics of an evaluation that the tables show, in [0, 1]."""
    found = table_metrics(result)
    if (area := result["classification"].get("roc_auc")) is not None:
        found["roc_auc"] = area
    if "segmentation" in result:
        found["miou"] = result["segmentation"]["miou"]
    return found


if __name__ == "__main__":
    main()
