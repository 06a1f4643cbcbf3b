"""From tags to a trained head, against one forward pass over the images; the goal is a ratio of at most 1.25.

    python benchmarks/head_training.py VOCdevkit --out benchmarks/results/head-training.json

The total is `wildcat train DATA --tune head` as a user types it, from the start of the process to its end, with an
empty cache: imports, reading and decoding, features, their statistics, all epochs, val after each, weights on disk; and
the same with --amp, which has the frozen backbone compute in bfloat16. The forward pass is the backbone alone over
random tensors, in the batches features are computed in: as many images as are computed, the training images in each
of their mirrored views and the val images in one. It is timed as timm gives the network, with its batch normalisation
folded into its convolutions as features are computed, and in bfloat16. All in turn, --rounds times. What --amp costs
in accuracy is measured on val, where both trainings chose their epoch. Where the rest of the time goes is told by a
training in this process, stage by stage.
"""

from __future__ import annotations

import argparse
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

import wildcat
from wildcat.cli.allocator import keep_freed_memory, share_one_arena
from wildcat.config import FLIP_VIEWS, TrainConfig
from wildcat.data import open_dataset
from wildcat.data.dataset import DataSet
from wildcat.data.loader import batch_indices
from wildcat.engines.torch_backend import fold
from wildcat.evaluation import evaluate
from wildcat.fitting.timing import time_in_turn
from wildcat.models.run import create_run
from wildcat.nn.backbones import Backbone, create_backbone
from wildcat.progress import Progress
from wildcat.reproduce.record import plain_settings, spread, write_result
from wildcat.train.loop import train

BATCH = 16
"""Images that `cached_features` computes together."""

RATIOS = (
    ("command", "forward"),
    ("command", "folded"),
    ("command --amp", "forward"),
    ("command --amp", "forward bf16"),
)
"""What is compared with what: the command with the pass, and with passes that a user would have to know how to make."""


class Stages(Progress):
    """Seconds of each stage, and of the training steps by themselves."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {"steps": 0.0}
        self.stage, self.since = "before", time.perf_counter()

    def start(self, task: str, total: int | None, done: int = 0) -> None:
        self.end(task)

    def end(self, following: str = "") -> None:
        now = time.perf_counter()
        self.seconds[self.stage] = self.seconds.get(self.stage, 0.0) + now - self.since
        self.stage, self.since = following, now

    def epoch(self, record: dict[str, Any]) -> None:
        self.seconds["steps"] += record["seconds"]


def forward_pass(network: Backbone, size: int, images: int, amp: bool = False) -> Callable[[], None]:
    """The backbone over as many random images, in bfloat16 if asked."""
    inputs = torch.randn(BATCH, 3, size, size).contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            for batch in batch_indices(range(images), BATCH):
                network(inputs[: len(batch)])

    return run


def command(config: TrainConfig, source: str, out: Path) -> Callable[[], None]:
    """`wildcat train`, in a process of its own, with a cache of its own; the run lies in `out` afterwards."""
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
    """Seconds of the stages of a training in this process."""
    stages = Stages()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["WILDCAT_CACHE"] = f"{folder}/cache"
        train(create_run(Path(folder) / "run", config, data), data, progress=stages)
        stages.end()
    seconds = {name: round(value, 2) for name, value in stages.seconds.items()}
    seconds["val and saving"] = round(seconds["training"] - seconds["steps"], 2)
    return {name: value for name, value in seconds.items() if name != "training"}


def accuracy(run: Path, data: DataSet) -> dict[str, float]:
    """Mean average precision of classification and of points on val, of 1."""
    figures = evaluate(wildcat.load(run, "cpu"), data, "val", measures=("classification", "pointing"))
    return {"map": figures["classification"]["map"], "point_ap": figures["pointing"]["map"]}


def processor_seconds() -> float:
    """Of this process and of those it has started and that have ended."""
    return sum(os.times()[:4])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--backbone", default="lite2")
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--flip", default="none", choices=list(FLIP_VIEWS))
    parser.add_argument("--workers", type=int, default=-1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cpu", action="store_true", help="compare processor seconds, where the machine is shared")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    keep_freed_memory()
    share_one_arena()  # as the command does
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
    kept = Path(tempfile.mkdtemp())
    settings = {"command": config, "command --amp": replace(config, amp=True)}
    runs = {
        **{name: command(given, arguments.data, kept / name) for name, given in settings.items()},
        "forward": forward_pass(backbone, config.image_size, images),
        "folded": forward_pass(fold(backbone), config.image_size, images),
        "forward bf16": forward_pass(backbone, config.image_size, images, amp=True),
    }
    forward_pass(backbone, config.image_size, BATCH)()
    clock = processor_seconds if arguments.cpu else time.perf_counter
    times = time_in_turn(runs, arguments.rounds, 0, lambda _: print("round done", file=sys.stderr), clock)
    results = {
        "images": {"train": len(samples), "views of each": views, "val": len(val), "forward passes": images},
        "seconds": {name: spread(taken) for name, taken in times.items()},
        "ratio": {
            f"{whole} / {part}": spread([a / b for a, b in zip(times[whole], times[part], strict=True)])
            for whole, part in RATIOS
        },
        "val": {name: accuracy(kept / name, data) for name in settings},
        "profile": profile(config, data),
    }
    print(results)
    flags = f"--backbone {config.backbone} --size {config.image_size} --epochs {config.epochs} --flip {config.flip}"
    line = f"python benchmarks/head_training.py DATA {flags} --rounds {arguments.rounds} --out {arguments.out.name}"
    line += " --cpu" if arguments.cpu else ""
    told = plain_settings(config) | {"rounds": arguments.rounds, "clock": "processor" if arguments.cpu else "wall"}
    write_result(arguments.out, line, told, results)
    shutil.rmtree(kept)


if __name__ == "__main__":
    main()
