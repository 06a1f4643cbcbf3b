"""Where the time goes: the operations of a pass through the network, of a training step, and the work around a pass.

    python benchmarks/costs.py --out benchmarks/results/costs.json

By torch's profiler, as shares of its CPU time; operations are grouped by what they are for. Around the pass: what one
image costs from its JPEG to its row, stage by stage, one thread.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.profiler import ProfilerActivity, profile

import wildcat
from wildcat.cli.allocator import keep_freed_memory
from wildcat.config import TrainConfig
from wildcat.data.images import decode_bytes
from wildcat.data.transforms import Preprocess
from wildcat.engines.onnx_graph import probe
from wildcat.predictor import Member, Predictor
from wildcat.reproduce.record import write_result
from wildcat.train.optim import create_optimizer, multilabel_loss

GROUPS = {
    "convolution": ("conv", "addmm", "linear", "gemm", "aten::mm"),
    "batch normalisation": ("norm",),
    "padding before strides": ("pad",),
    "activation": ("hardtanh", "clamp", "relu", "silu", "sigmoid", "threshold"),
    "choice of regions": ("topk", "sort", "scatter", "gather", "select"),
    "optimiser": ("foreach", "sgd"),
    "copies and sums": ("copy", "add", "mul", "fill", "zero", "clone", "sum", "mean", "div", "cat"),
}
"""What an operation is for, by a part of its name; the first that fits."""


def shares(run: Callable[[], object], passes: int) -> dict[str, float]:
    """Each group's share of the CPU time of a run, the largest first."""
    run()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(passes):
            run()
    taken: Counter[str] = Counter()
    for event in profiler.events():
        if event.cpu_parent is None:  # with all that it calls: padding is a copy inside
            name = event.name.lower()
            group = next((g for g, parts in GROUPS.items() if any(part in name for part in parts)), "other")
            taken[group] += event.cpu_time_total
    total = sum(taken.values())
    return {group: round(value / total, 4) for group, value in taken.most_common()}


def stages(predictor: Predictor, image: Image.Image, repeats: int) -> dict[str, float]:
    """Milliseconds of one image in each stage, median, one thread."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    content, preprocess = buffer.getvalue(), predictor.preprocess
    decoded = decode_bytes(content, "x", preprocess.max_downscale)[0]
    warped = preprocess.warp(decoded)
    batch = preprocess.normalise(warped[None])
    prediction = predictor.predict(image, modalities=False)
    steps: dict[str, Callable[[], object]] = {
        "decode": lambda: decode_bytes(content, "x", preprocess.max_downscale),
        "warp": lambda: preprocess.warp(decoded),
        "normalise": lambda: preprocess.normalise(warped[None]),
        "network": lambda: predictor.run([batch], modalities=False),
        "points, boxes and row": lambda: json.dumps(prediction.to_dict()),
    }
    found = {}
    for name, step in steps.items():
        step()
        times = []
        for _ in range(repeats):
            begun = time.perf_counter()
            step()
            times.append(time.perf_counter() - begun)
        found[name] = round(1000 * statistics.median(times), 3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="lite2")
    parser.add_argument("--size", type=int, default=448)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    model = wildcat.create_model(arguments.backbone, num_classes=arguments.classes, pretrained=False)
    own = model.backbone
    member = Member(model, Preprocess(arguments.size, own.mean, own.std, own.interpolation))
    predictor = Predictor("random", [member], [str(i) for i in range(arguments.classes)], "multilabel", "cpu")
    predictor.use_engine("torch")
    images = probe(arguments.size, arguments.batch).contiguous(memory_format=torch.channels_last)
    results: dict[str, Any] = {
        "a pass": shares(lambda: predictor.run([images], modalities=False), arguments.passes),
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    noise = np.random.default_rng(0).integers(0, 256, (47, 63, 3), dtype=np.uint8)
    photograph = Image.fromarray(noise).resize((500, 375), Image.Resampling.BICUBIC)
    results["an image, milliseconds"] = stages(predictor, photograph, 2 * arguments.passes)
    torch.set_num_threads(threads)
    labels = torch.randint(0, 2, (arguments.batch, arguments.classes), dtype=torch.int8) * 2 - 1
    optimizer = create_optimizer(model, TrainConfig(backbone=arguments.backbone, lr=1e-4))

    def step() -> None:
        model.train()
        optimizer.zero_grad(set_to_none=True)
        multilabel_loss(model(images), labels).backward()
        optimizer.step()

    results["a training step"] = shares(step, max(1, arguments.passes // 2))
    print(results, file=sys.stderr)
    settings = {k: v for k, v in vars(arguments).items() if k != "out"}
    write_result(arguments.out, f"python benchmarks/costs.py --out {arguments.out.name}", settings, results)


if __name__ == "__main__":
    main()
