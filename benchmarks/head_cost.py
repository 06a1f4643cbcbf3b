r"""What everything after the backbone costs: whole model against bare backbone, in inference and in training.

    python benchmarks/head_cost.py --out benchmarks/results/head-cost.json
    python benchmarks/head_cost.py --backbones lite2,resnet50 --classes 1000 --num-maps 8 --tasks inference \
        --out benchmarks/results/head-cost-1000.json

Both are timed in turn in one process, so that a noisy machine disturbs both alike; the ratio is taken round by round.
The bare backbone's training step backpropagates the mean of its features and steps the same optimiser.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

import wildcat
from wildcat.cli.allocator import keep_freed_memory
from wildcat.config import TrainConfig
from wildcat.reproduce.record import write_result
from wildcat.train.optim import create_optimizer, multilabel_loss


def steps(
    backbone: str, size: int, batch: int, classes: int, num_maps: int
) -> dict[str, tuple[Callable[[], object], ...]]:
    """(whole model, bare backbone) as functions to time, for inference and training."""
    torch.manual_seed(0)
    model = wildcat.create_model(backbone, num_classes=classes, num_maps=num_maps, pretrained=False)
    model = model.to(memory_format=torch.channels_last)
    images = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 2, (batch, classes), dtype=torch.int8) * 2 - 1
    whole = create_optimizer(model, TrainConfig(backbone=backbone, num_maps=num_maps, lr=1e-4))
    bare = torch.optim.SGD(model.backbone.parameters(), lr=1e-5, momentum=0.9)

    def infer(network: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], object]:
        def run() -> object:
            model.eval()
            with torch.inference_mode():
                return network(images)

        return run

    def train_whole() -> None:
        model.train()
        whole.zero_grad(set_to_none=True)
        multilabel_loss(model(images), labels).backward()
        whole.step()

    def train_bare() -> None:
        model.train()
        bare.zero_grad(set_to_none=True)
        model.backbone(images).mean().backward()
        bare.step()

    return {"inference": (infer(model), infer(model.backbone)), "training step": (train_whole, train_bare)}


def compare(whole: Callable[[], object], bare: Callable[[], object], rounds: int) -> dict[str, float]:
    """Median seconds of both, and the median, lowest and highest ratio over the rounds."""
    times: list[tuple[float, float]] = []
    for index in range(rounds + 2):
        pair = {}
        for run in (whole, bare) if index % 2 else (bare, whole):  # neither always goes first
            begun = time.perf_counter()
            run()
            pair[run] = time.perf_counter() - begun
        if index >= 2:  # the first two warm up
            times.append((pair[whole], pair[bare]))
    ratios = sorted(a / b for a, b in times)
    quarter = len(ratios) // 4
    return {
        "whole_s": round(statistics.median(a for a, _ in times), 4),
        "backbone_s": round(statistics.median(b for _, b in times), 4),
        "ratio_median": round(statistics.median(ratios), 4),
        "ratio_quartiles": [round(ratios[quarter], 4), round(ratios[-1 - quarter], 4)],  # type: ignore[dict-item]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", default="lite0,lite2,resnet50")
    parser.add_argument("--size", type=int, default=448)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--num-maps", type=int, default=4)
    parser.add_argument("--tasks", default="inference,training step", help="which of the two, or both")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    keep_freed_memory()
    results = {}
    for backbone in arguments.backbones.split(","):
        tasks = steps(backbone, arguments.size, arguments.batch, arguments.classes, arguments.num_maps)
        chosen = arguments.tasks.split(",")
        results[backbone] = {name: compare(*tasks[name], arguments.rounds) for name in chosen}
        print(backbone, results[backbone], file=sys.stderr, flush=True)
    settings = {k: v for k, v in vars(arguments).items() if k != "out"} | {"device": "cpu", "dtype": "float32"}
    write_result(arguments.out, f"python benchmarks/head_cost.py --out {arguments.out.name}", settings, results)


if __name__ == "__main__":
    main()
