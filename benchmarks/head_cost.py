r"""Cost of everything after the backbone: whole model against bare backbone, in inference and in training.

    python benchmarks/head_cost.py --out benchmarks/results/head-cost.json
    python benchmarks/head_cost.py --backbones lite2,resnet50 --classes 1000 --num-maps 8 --tasks inference \
        --out benchmarks/results/head-cost-1000.json

Both are measured alternately in one process, so that a noisy machine disturbs both alike; the ratio is taken per round.
The training step of the bare backbone backpropagates the mean of its features and uses the same optimizer. Inference
uses the average of the M maps' weights (`Wildcat.fuse`), as prediction without modality maps does.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from script import argument_parser, log, save_result, settings_of

import wildcat
from wildcat.cli.allocator import keep_freed_memory
from wildcat.config import TrainConfig
from wildcat.fitting.benchmark import time_in_turn
from wildcat.train.optim import create_optimizer, multilabel_loss

Step = Callable[[], object]


def steps(backbone: str, size: int, batch: int, classes: int, num_maps: int) -> dict[str, tuple[Step, Step]]:
    """(whole model, bare backbone) as functions to time, for inference and training."""
    torch.manual_seed(0)
    model = wildcat.create_model(backbone, num_classes=classes, num_maps=num_maps, pretrained=False)
    model = model.to(memory_format=torch.channels_last)
    images = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 2, (batch, classes), dtype=torch.int8) * 2 - 1
    model_optimizer = create_optimizer(model, TrainConfig(backbone=backbone, num_maps=num_maps, lr=1e-4))
    backbone_optimizer = torch.optim.SGD(model.backbone.parameters(), lr=1e-5, momentum=0.9)

    def infer(network: Callable[[torch.Tensor], torch.Tensor]) -> Step:
        def run() -> object:
            model.eval()
            with torch.inference_mode():
                return network(images)

        return run

    def train_model() -> None:
        model.train()
        model_optimizer.zero_grad(set_to_none=True)
        multilabel_loss(model(images), labels).mean().backward()
        model_optimizer.step()

    def train_backbone() -> None:
        model.train()
        backbone_optimizer.zero_grad(set_to_none=True)
        model.backbone(images).mean().backward()
        backbone_optimizer.step()

    with torch.no_grad():
        fused = model.fuse()
    return {"inference": (infer(fused), infer(model.backbone)), "training step": (train_model, train_backbone)}


def compare(model: Step, backbone: Step, rounds: int) -> dict[str, Any]:
    """Median seconds of both, and the median and quartiles of their ratio over the rounds."""
    times = time_in_turn({"model": model, "backbone": backbone}, rounds)
    ratios = sorted(a / b for a, b in zip(times["model"], times["backbone"], strict=True))
    quarter = len(ratios) // 4
    return {
        "whole_s": round(statistics.median(times["model"]), 4),
        "backbone_s": round(statistics.median(times["backbone"]), 4),
        "ratio_median": round(statistics.median(ratios), 4),
        "ratio_quartiles": [round(ratios[quarter], 4), round(ratios[-1 - quarter], 4)],
    }


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--backbones", default="lite0,lite2,resnet50")
    parser.add_argument("--size", type=int, default=448)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--num-maps", type=int, default=4)
    parser.add_argument("--tasks", default="inference,training step", help="one of the two, or both")
    parser.add_argument("--rounds", type=int, default=12)
    arguments = parser.parse_args()
    keep_freed_memory()
    results = {}
    for backbone in arguments.backbones.split(","):
        tasks = steps(backbone, arguments.size, arguments.batch, arguments.classes, arguments.num_maps)
        results[backbone] = {name: compare(*tasks[name], arguments.rounds) for name in arguments.tasks.split(",")}
        log(backbone, results[backbone])
    save_result(arguments, settings_of(arguments) | {"device": "cpu", "dtype": "float32"}, results)


if __name__ == "__main__":
    main()
