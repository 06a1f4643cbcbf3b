"""`wildcat train --tune all` from JPEGs on disk, against the bare backbone's step on random tensors; the goal is 0.9.

    python benchmarks/train_throughput.py --data VOCdevkit --out benchmarks/results/train-throughput.json

A training step with all that belongs to it (decoding, augmentation, head, loss, clipping, progress) alternates with a
step of timm's network alone: forward, backward and SGD on random tensors of the same shape, channels last, in float32.
The bare step is measured with frozen statistics of batch normalisation, as training has them by default, and with
those of the batch, as timm builds the network. Then the same for training with --amp. The ratio is computed from pairs
of neighbouring steps. --workers 0 reads images between the steps, in the same process: nothing is hidden by a step that
is not measured. --cpu measures processor time, for a shared machine; with one thread that is what a step costs.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from script import argument_parser, log, save_result

from wildcat.cli.allocator import keep_freed_memory
from wildcat.config import TrainConfig
from wildcat.data import open_dataset
from wildcat.data.dataset import DataSet
from wildcat.models.run import create_run
from wildcat.nn.weights import EMBEDDED
from wildcat.progress import Progress
from wildcat.reproduce.runner import plain_settings
from wildcat.train.batchnorm import freeze_batchnorm
from wildcat.train.loop import train

Clock = Callable[[], float]
REFERENCE = "bare"


def bare_step(config: TrainConfig, frozen: bool) -> Callable[[], None]:
    """Forward, backward and SGD of timm's network on a random batch."""
    name = EMBEDDED[config.backbone].timm_name if config.backbone in EMBEDDED else config.backbone
    network = timm.create_model(name, num_classes=0).to(memory_format=torch.channels_last).train()
    if frozen:
        freeze_batchnorm(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-6, momentum=config.momentum, fused=True)
    size = (config.batch_size, 3, config.image_size, config.image_size)
    images = torch.randn(size).contiguous(memory_format=torch.channels_last)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        network.forward_features(images).mean().backward()
        optimizer.step()

    return step


class AlternateSteps(Progress):
    """Measures every training step, and runs and measures the bare steps after it."""

    def __init__(self, bare: Mapping[str, Callable[[], None]], clock: Clock) -> None:
        self.bare, self.clock, self.training = bare, clock, False
        self.seconds: dict[str, list[float]] = {name: [] for name in ("training", *bare)}

    def start(self, task: str, total: int | None, done: int = 0) -> None:
        self.training, self.since = task == "training", self.clock()

    def advance(self, count: int = 1, note: str = "") -> None:
        if not self.training:
            return
        self.seconds["training"].append(self.clock() - self.since)
        for name, step in self.bare.items():
            self.since = self.clock()
            step()
            self.seconds[name].append(self.clock() - self.since)
        self.since = self.clock()


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Median, lower and upper quartile."""
    lower, median, upper = np.percentile(values, [25, 50, 75])
    return {"median": round(float(median), 4), "lower": round(float(lower), 4), "upper": round(float(upper), 4)}


def measure(config: TrainConfig, data: DataSet, clock: Clock) -> dict[str, Any]:
    """Images per second of training and of the bare steps, and their ratios, without the first step."""
    bare = {REFERENCE: bare_step(config, True), f"{REFERENCE}, statistics of the batch": bare_step(config, False)}
    progress = AlternateSteps(bare, clock)
    with tempfile.TemporaryDirectory() as folder:
        train(create_run(Path(folder) / "run", config, data), data, progress=progress)
    steps = {name: seconds[1:] for name, seconds in progress.seconds.items()}
    return {
        "images per second": {n: quartiles([config.batch_size / s for s in taken]) for n, taken in steps.items()},
        "ratio": {n: quartiles([b / t for b, t in zip(steps[n], steps["training"], strict=True)]) for n in bare},
        "steps": len(steps["training"]),
    }


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--backbone", default="lite2")
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--steps", type=int, default=9, help="training steps, of which the first is not measured")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--threads", type=int, help="threads of torch; default: all cores")
    parser.add_argument("--cpu", action="store_true", help="measure processor time, for a shared machine")
    arguments = parser.parse_args()
    keep_freed_memory()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    clock = time.process_time if arguments.cpu else time.perf_counter
    config = TrainConfig(
        backbone=arguments.backbone,
        image_size=arguments.size,
        head_epochs=0,
        epochs=1,
        val_split="none",
        workers=arguments.workers,
        device="cpu",
    )
    data = open_dataset(arguments.data)
    samples = data.split("train")[: arguments.steps * config.batch_size]
    data = replace(data, readers={"train": lambda: samples}, _cache={})
    results = {}
    for name, given in {"float32": config, "--amp": replace(config, amp=True)}.items():
        results[name] = measure(given, data, clock)
        log(name, results[name])
    clock_name = "processor" if arguments.cpu else "wall"
    save_result(arguments, plain_settings(config) | {"clock": clock_name}, results)


if __name__ == "__main__":
    main()
