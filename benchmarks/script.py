"""What the benchmark scripts share: arguments, result files, random models and the poolings that are compared."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import wildcat
from wildcat.cli.allocator import keep_freed_memory
from wildcat.config import TrainConfig
from wildcat.data import DataSet, Sample
from wildcat.data.dataset import ABSENT, PRESENT
from wildcat.data.transforms import Preprocess
from wildcat.device import machine
from wildcat.evaluation import evaluate
from wildcat.files import write_json
from wildcat.methods import find_method
from wildcat.models.manifest import versions
from wildcat.models.member import Member
from wildcat.nn.weights import EMBEDDED
from wildcat.prediction import Prediction
from wildcat.predictor import Predictor

WRONG_KINDS = ("removed", "added", "replaced")  # of `with_wrong_labels`


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the option --out; `description` is the docstring of the script."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the result file (JSON) to write")
    return parser


def add_training_arguments(parser: argparse.ArgumentParser, image_size: int) -> None:
    """The options of scripts that train heads on cached features."""
    parser.add_argument("--data", required=True, help="a VOC devkit or another data set")
    parser.add_argument("--name", default="", help="name of the data in tables, for example of a subset")
    parser.add_argument("--split", default="val", help="the split to measure on")
    parser.add_argument("--backbone", default="lite2")
    parser.add_argument("--image-size", type=int, default=image_size)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--lr", type=float, help="default: 0.01 for each of the M maps")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--poolings", default="max,average,weldon,wildcat")
    parser.add_argument("--amp", action="store_true", help="compute features in bfloat16")


def head_config(arguments: argparse.Namespace, seed: int, **settings: Any) -> TrainConfig:
    """The settings of one training of a head; the last epoch is used, so nothing is chosen on the measured split."""
    return TrainConfig(
        tune="head",
        backbone=arguments.backbone,
        image_size=arguments.image_size,
        epochs=arguments.epochs,
        lr=arguments.lr,
        seed=seed,
        val_split="none",
        amp=arguments.amp,
        **settings,
    )


def poolings(arguments: argparse.Namespace, proportion: float) -> dict[str, dict[str, Any]]:
    """The chosen poolings of the paper's Table 1, `proportion` is k+ = k- of WELDON and WILDCAT; or other methods."""
    known: dict[str, dict[str, Any]] = {
        "max": {"pooling": "max", "num_maps": 1},
        "average": {"pooling": "average", "num_maps": 1},
        "weldon": {"pooling": "weldon", "num_maps": 1, "kmax": proportion},
        "wildcat": {"pooling": "wildcat", "num_maps": 4, "kmax": proportion, "alpha": 0.7},
    }
    return {name: known.get(name) or dict(find_method(name).settings) for name in arguments.poolings.split(",")}


def data_text(arguments: argparse.Namespace, data: DataSet) -> str:
    """Name of the data and number of images, for tables."""
    train, measured = (len(data.split(split)) for split in ("train", arguments.split))
    return f"{arguments.name or data.name}, {train} train, {measured} {arguments.split} images"


def with_wrong_labels(data: DataSet, split: str, fraction: float, seed: int) -> tuple[DataSet, dict[str, str]]:
    """The data set with wrong labels in a fraction of the images of a split, and image name -> the kind of its label.

    Each chosen image loses a class it has, or gains one it has not, or both (a class is replaced), a third of them
    each; no other label changes.
    """
    rng = np.random.default_rng(seed)
    samples = list(data.split(split))
    kinds = {}
    for i in rng.permutation(len(samples))[: round(fraction * len(samples))]:
        kind = WRONG_KINDS[rng.integers(3)]
        samples[i] = replace(samples[i], labels=wrong_labels(samples[i], kind, rng))
        kinds[samples[i].name] = kind
    return replace(data, readers={**data.readers, split: partial(tuple, samples)}, _cache={}), kinds


def wrong_labels(sample: Sample, kind: str, rng: np.random.Generator) -> NDArray[np.int8]:
    """Labels of which one class is removed or added, or both."""
    labels = sample.labels.copy()
    present, absent = np.flatnonzero(labels == PRESENT), np.flatnonzero(labels == ABSENT)
    if kind != "added":
        labels[rng.choice(present)] = ABSENT
    if kind != "removed":
        labels[rng.choice(absent)] = PRESENT
    return labels


def random_predictor(backbone: str, size: int, classes: int, num_maps: int = 4, device: str = "cpu") -> Predictor:
    """A model with a random head. On a CPU the process keeps freed memory, as the command line does."""
    if device == "cpu":
        keep_freed_memory()
    torch.manual_seed(0)
    model = wildcat.create_model(backbone, classes, num_maps, pretrained=backbone in EMBEDDED).eval()
    own = model.backbone
    member = Member(model, Preprocess(size, own.mean, own.std, own.interpolation))
    return Predictor("random", [member], [f"class {i}" for i in range(classes)], "multilabel", device)


def mask_metrics(
    predictor: Predictor, data: DataSet, split: str, predictions: Sequence[Prediction]
) -> dict[str, float]:
    """mAP, point AP, mean IoU without and with a dense CRF, and `miou_hindsight` where a threshold decides on masks."""
    plain = evaluate(predictor, data, split, predictions=predictions)
    crf = evaluate(predictor, data, split, crf=True, predictions=predictions, measures=("segmentation",))
    metrics = {
        "map": plain["classification"]["map"],
        "point_ap": plain["pointing"]["map"],
        "miou": plain["segmentation"]["miou"],
        "miou_crf": crf["segmentation"]["miou"],
    }
    if (best := plain["segmentation"].get("hindsight")) is not None:
        metrics["miou_hindsight"] = best["miou"]
    return metrics


def log(*values: object) -> None:
    """Print progress to stderr."""
    print(*values, file=sys.stderr, flush=True)


def settings_of(arguments: argparse.Namespace, without: Collection[str] = ()) -> dict[str, Any]:
    """The arguments as plain values, paths by their names."""
    values = {name: value for name, value in vars(arguments).items() if name not in ("out", *without)}
    return {name: value.name if isinstance(value, Path) else value for name, value in values.items()}


def save_result(arguments: argparse.Namespace, settings: dict[str, Any], results: Any) -> None:
    """Write the result file with the command line, in which paths are shortened to their names."""
    words = [Path(word).name if Path(word).exists() or word == str(arguments.out) else word for word in sys.argv[1:]]
    write_result(
        arguments.out, shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words]), settings, results
    )
    log(f"{arguments.out} written")


def write_result(path: Path, command: str, settings: Mapping[str, Any], results: Any) -> None:
    """Write a result file (JSON): command, date, versions, machine (with CPU flags), settings and results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "command": command,
        "date": datetime.now(UTC).date().isoformat(),
        "versions": versions(),
        "machine": machine(),
        "settings": dict(settings),
        "results": results,
    }
    write_json(path, content)
