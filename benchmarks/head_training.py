"""Training a head on frozen features, against one forward pass of the backbone over the same images.

    python benchmarks/head_training.py --data VOCdevkit --out benchmarks/results/head-training.json

The training is `wildcat train DATA --tune head` as a user runs it, from the start of the process to its end, with an
empty cache: imports, decoding, features, epochs, validation, saving; and the same with --amp, which runs the frozen
backbone in bfloat16, where the processor can. The forward pass is the backbone alone on random tensors: as timm gives
it, with batch normalisation folded (as the feature cache computes), and in bfloat16. All are measured alternately,
--rounds times. The accuracy of both trainings is that of val, on which both chose their epoch. A training in this
process gives the seconds of each stage. The goal is a ratio of at most 1.15, and 1.0 with --amp.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from script import argument_parser, log, save_result

import wildcat
from wildcat.cli.allocator import keep_freed_memory
from wildcat.config import FLIP_VIEWS, TrainConfig
from wildcat.data import open_dataset
from wildcat.data.dataset import DataSet
from wildcat.data.loader import batch_indices
from wildcat.device import cpu_has_bf16
from wildcat.engines.torch_backend import fold
from wildcat.evaluation import evaluate
from wildcat.fitting.benchmark import time_in_turn
from wildcat.models.run import create_run
from wildcat.nn.backbones import Backbone, create_backbone
from wildcat.progress import Progress
from wildcat.reproduce.runner import plain_settings
from wildcat.reproduce.tables import spread
from wildcat.train.loop import train

BATCH = 16  # images per forward pass of the feature cache

# (training, forward pass) whose times are compared.
RATIOS = (
    ("command", "forward"),
    ("command", "folded"),
    ("command --amp", "forward"),
    ("command --amp", "forward bf16"),
)


class Stages(Progress):
    """Measures the seconds of each stage of a training, and of its steps."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {"steps": 0.0}
        self.stage, self.since = "preparation", time.perf_counter()

    def start(self, task: str, total: int | None, done: int = 0) -> None:
        self.finish(task)

    def finish(self, following: str = "") -> None:
        """End the current stage."""
        now = time.perf_counter()
        self.seconds[self.stage] = self.seconds.get(self.stage, 0.0) + now - self.since
        self.stage, self.since = following, now

    def epoch(self, record: dict[str, Any], network: Any = None) -> None:
        self.seconds["steps"] += record["seconds"]


def forward_pass(network: Backbone, size: int, images: int, amp: bool = False) -> Callable[[], None]:
    """The backbone on `images` random images, in bfloat16 if `amp`."""
    inputs = torch.randn(BATCH, 3, size, size).contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            for batch in batch_indices(range(images), BATCH):
                network(inputs[: len(batch)])

    return run


def command(config: TrainConfig, source: str, out: Path) -> Callable[[], None]:
    """`wildcat train` in a process of its own, with an empty cache; the run is in `out` afterwards."""
    flags = f"--tune head --backbone {config.backbone} --image-size {config.image_size} --epochs {config.epochs}"
    flags += f" --flip {config.flip} --workers {config.workers} --device cpu" + " --amp" * config.amp

    def run() -> None:
        shutil.rmtree(out, ignore_errors=True)
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(
                [sys.executable, "-m", "wildcat", "train", source, "--out", str(out), *flags.split()],
                env={**os.environ, "WILDCAT_CACHE": f"{folder}/cache"},
                check=True,
                capture_output=True,
            )

    return run


def profile(config: TrainConfig, data: DataSet) -> dict[str, float]:
    """Seconds of each stage of a training in this process."""
    stages = Stages()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["WILDCAT_CACHE"] = f"{folder}/cache"
        train(create_run(Path(folder) / "run", config, data), data, progress=stages)
        stages.finish()
    seconds = {name: round(value, 2) for name, value in stages.seconds.items()}
    seconds["validation and saving"] = round(seconds.pop("training") - seconds["steps"], 2)
    return seconds


def accuracy(run: Path, data: DataSet) -> dict[str, float]:
    """mAP and point AP on val."""
    metrics = evaluate(wildcat.load(run, "cpu"), data, "val", measures=("classification", "pointing"))
    return {"map": metrics["classification"]["map"], "point_ap": metrics["pointing"]["map"]}


def processor_seconds() -> float:
    """CPU seconds of this process and its finished children."""
    return sum(os.times()[:4])


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--backbone", default="lite2")
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--flip", default="none", choices=list(FLIP_VIEWS))
    parser.add_argument("--workers", type=int, default=-1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cpu", action="store_true", help="compare CPU seconds, for a shared machine")
    arguments = parser.parse_args()
    keep_freed_memory()
    config = TrainConfig(
        backbone=arguments.backbone,
        image_size=arguments.size,
        tune="head",
        epochs=arguments.epochs,
        flip=arguments.flip,
        workers=arguments.workers,
        device="cpu",
    )
    data = open_dataset(arguments.data)
    samples, val = data.training_split("train", "val")
    views = len(FLIP_VIEWS[config.flip])
    images = len(samples) * views + len(val)
    backbone = create_backbone(config.backbone).eval().to(memory_format=torch.channels_last)
    configs = {"command": config} | ({"command --amp": replace(config, amp=True)} if cpu_has_bf16() else {})
    clock = processor_seconds if arguments.cpu else time.perf_counter
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            **{name: command(given, arguments.data, Path(folder) / name) for name, given in configs.items()},
            "forward": forward_pass(backbone, config.image_size, images),
            "folded": forward_pass(fold(backbone, config.image_size), config.image_size, images),
        }
        if cpu_has_bf16():
            runs["forward bf16"] = forward_pass(backbone, config.image_size, images, amp=True)
        forward_pass(backbone, config.image_size, BATCH)()
        times = time_in_turn(runs, arguments.rounds, warmup=0, clock=clock)
        results = {
            "images": {"train": len(samples), "views of each": views, "val": len(val), "forward passes": images},
            "seconds": {name: spread(taken) for name, taken in times.items()},
            "ratio": {
                f"{training} / {forward}": spread([a / b for a, b in zip(times[training], times[forward], strict=True)])
                for training, forward in RATIOS
                if training in times
            },
            "val": {name: accuracy(Path(folder) / name, data) for name in configs},
            "profile": profile(config, data),
        }
    log(results)
    clock_name = "processor" if arguments.cpu else "wall"
    save_result(arguments, plain_settings(config) | {"rounds": arguments.rounds, "clock": clock_name}, results)


if __name__ == "__main__":
    main()
