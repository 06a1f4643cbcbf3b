"""Time that the command line saves by keeping freed memory: steps with and without, in pairs of processes.

    python benchmarks/allocator.py --out benchmarks/results/allocator.json

Both processes of a pair run the same steps on the same random images; only one calls `keep_freed_memory`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from script import argument_parser, log, save_result, settings_of

import wildcat
from wildcat.cli.allocator import keep_freed_memory


def seconds(step: Callable[[], object], repeats: int) -> float:
    """Median seconds of a step after one warm-up."""
    taken = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        step()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


def measure(backbone: str, size: int, batch: int, repeats: int) -> None:
    """Print the seconds of a forward pass and of a training step as JSON."""
    torch.manual_seed(0)
    model = wildcat.create_model(backbone, num_classes=20, pretrained=False).to(memory_format=torch.channels_last)
    images = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)

    def infer() -> None:
        with torch.inference_mode():
            model(images)

    def step() -> None:
        model.zero_grad()
        model(images).sum().backward()

    model.eval()
    taken = {"inference": seconds(infer, repeats)}
    model.train()
    print(json.dumps(taken | {"training step": seconds(step, repeats)}))


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--backbones", default="lite0,lite2,resnet50")
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--memory", choices=("kept", "returned"), help=argparse.SUPPRESS)  # measure in this process
    arguments = parser.parse_args()
    if arguments.memory:
        if arguments.memory == "kept" and not keep_freed_memory():
            raise SystemExit("this C library does not support the settings")
        measure(arguments.backbones, arguments.size, arguments.batch, arguments.repeats)
        return
    flags = ["--out", str(arguments.out), "--size", str(arguments.size), "--batch", str(arguments.batch)]
    flags += ["--repeats", str(arguments.repeats)]
    results = {}
    for backbone in arguments.backbones.split(","):
        pairs: dict[str, list[tuple[float, float]]] = {}
        for index in range(arguments.rounds):
            taken = {}
            for memory in ("kept", "returned") if index % 2 else ("returned", "kept"):  # alternate which goes first
                command = [sys.executable, __file__, "--memory", memory, "--backbones", backbone, *flags]
                output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                taken[memory] = json.loads(output)
            for name in taken["kept"]:
                pairs.setdefault(name, []).append((taken["kept"][name], taken["returned"][name]))
        results[backbone] = {
            name: {
                "kept_s": round(statistics.median(a for a, _ in rows), 4),
                "returned_s": round(statistics.median(b for _, b in rows), 4),
                "ratios": sorted(round(a / b, 3) for a, b in rows),
            }
            for name, rows in pairs.items()
        }
        log(backbone, results[backbone])
    save_result(arguments, settings_of(arguments, without=("memory",)), results)


if __name__ == "__main__":
    main()
