"""Profile of a forward pass, of a training step, and of the stages of predicting one image.

    python benchmarks/costs.py --out benchmarks/results/costs.json

Operations are grouped by purpose, as fractions of the CPU time in torch's profiler. The stages of one image, from its
JPEG to its result row, run on one thread.
"""

from __future__ import annotations

import io
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from script import argument_parser, log, random_predictor, save_result, settings_of
from torch.profiler import ProfilerActivity, profile

from wildcat.config import TrainConfig
from wildcat.data.images import decode_bytes
from wildcat.engines.onnx_graph import probe
from wildcat.predictor import Predictor
from wildcat.train.optim import create_optimizer, multilabel_loss

# Purpose of an operation, by a part of its name; the first match counts.
GROUPS = {
    "convolution": ("conv", "addmm", "linear", "gemm", "aten::mm"),
    "batch normalisation": ("norm",),
    "padding": ("pad",),
    "activation": ("hardtanh", "clamp", "relu", "silu", "sigmoid", "threshold"),
    "region selection": ("topk", "sort", "scatter", "gather", "select"),
    "optimizer": ("foreach", "sgd"),
    "copies and arithmetic": ("copy", "add", "mul", "fill", "zero", "clone", "sum", "mean", "div", "cat"),
}


def shares(run: Callable[[], object], passes: int) -> dict[str, float]:
    """The fraction of CPU time of each group, largest first."""
    run()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(passes):
            run()
    taken: Counter[str] = Counter()
    for event in profiler.events():
        if event.cpu_parent is None:  # includes its calls: padding copies inside
            name = event.name.lower()
            group = next((g for g, parts in GROUPS.items() if any(part in name for part in parts)), "other")
            taken[group] += event.cpu_time_total
    total = sum(taken.values())
    return {group: round(value / total, 4) for group, value in taken.most_common()}


def stages(predictor: Predictor, image: Image.Image, repeats: int) -> dict[str, float]:
    """Median milliseconds of each stage for one image."""
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
        "network": lambda: predictor.forward([batch], modalities=False),
        "points, boxes, row": lambda: json.dumps(prediction.to_dict()),
    }
    found = {}
    for name, step in steps.items():
        step()
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
        found[name] = round(1000 * statistics.median(times), 3)
    return found


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--backbone", default="lite2")
    parser.add_argument("--size", type=int, default=448)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--passes", type=int, default=5)
    arguments = parser.parse_args()
    predictor = random_predictor(arguments.backbone, arguments.size, arguments.classes)
    model = predictor.model
    predictor.use_engine("torch")
    images = probe(arguments.size, arguments.batch).contiguous(memory_format=torch.channels_last)
    results: dict[str, Any] = {
        "forward pass": shares(lambda: predictor.forward([images], modalities=False), arguments.passes),
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    noise = np.random.default_rng(0).integers(0, 256, (47, 63, 3), dtype=np.uint8)
    photograph = Image.fromarray(noise).resize((500, 375), Image.Resampling.BICUBIC)
    results["milliseconds per image"] = stages(predictor, photograph, 2 * arguments.passes)
    torch.set_num_threads(threads)
    labels = torch.randint(0, 2, (arguments.batch, arguments.classes), dtype=torch.int8) * 2 - 1
    optimizer = create_optimizer(model, TrainConfig(backbone=arguments.backbone, lr=1e-4))

    def step() -> None:
        model.train()
        optimizer.zero_grad(set_to_none=True)
        multilabel_loss(model(images), labels).mean().backward()
        optimizer.step()

    results["training step"] = shares(step, max(1, arguments.passes // 2))
    log(results)
    save_result(arguments, settings_of(arguments), results)


if __name__ == "__main__":
    main()
