"""Time and memory of `spatial_pool` against a full sort of every map, forward and backward, in pairs of processes.

    python benchmarks/spatial_pool.py --out benchmarks/results/spatial-pool.json

The full sort implements eq. 3 literally: sort the regions, average both ends. Both processes of a pair use the same
random maps and keep freed memory, as the command line does; memory is the peak above the memory before the first pass.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import torch
from script import argument_parser, log, save_result, settings_of
from torch import Tensor

from wildcat.cli.allocator import keep_freed_memory
from wildcat.nn.pooling import region_count, spatial_pool


def full_sort(x: Tensor, k: float, alpha: float) -> Tensor:
    """(B, C, h, w) -> (B, C): eq. 3 by sorting."""
    ranked = x.flatten(2).sort(dim=-1, descending=True).values
    count = region_count(k, ranked.shape[-1])
    return ranked[..., :count].mean(dim=-1) + alpha * ranked[..., -count:].mean(dim=-1)


FUNCTIONS = {"spatial_pool": lambda x, k, alpha: spatial_pool(x, k, k, alpha), "full_sort": full_sort}


def measure(function: str, shape: list[int], k: float, alpha: float, repeats: int, device: str) -> None:
    """Print as JSON: seconds, peak memory in megabytes, and two sums that must agree between the functions."""
    if device == "cpu":
        keep_freed_memory()
    torch.manual_seed(0)
    x = torch.randn(shape, device=device, requires_grad=True)
    before, taken = peak(device), []
    for _ in range(repeats + 1):
        x.grad = None
        begun = time.perf_counter()
        scores = FUNCTIONS[function](x, k, alpha)
        scores.square().sum().backward()
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - begun)
    memory = peak(device) - before
    grad = x.grad
    assert grad is not None
    sums = [float(scores.double().sum()), float(grad.double().square().sum())]
    print(json.dumps({"seconds": statistics.median(taken[1:]), "memory_mb": round(memory), "sums": sums}))


def peak(device: str) -> float:
    """Peak memory of this process in megabytes."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--shape", type=int, nargs=4, default=[16, 1000, 56, 56])
    parser.add_argument("--k", type=float, default=0.2)
    parser.add_argument("--alpha", type=float, default=0.7)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--function", choices=list(FUNCTIONS), help=argparse.SUPPRESS)  # measure in this process
    arguments = parser.parse_args()
    if arguments.function:
        a = arguments
        measure(a.function, a.shape, a.k, a.alpha, a.repeats, a.device)
        return
    flags = [
        "--out",
        str(arguments.out),
        "--shape",
        *map(str, arguments.shape),
        "--k",
        str(arguments.k),
        "--alpha",
        str(arguments.alpha),
    ]
    flags += ["--repeats", str(arguments.repeats), "--device", arguments.device]
    rounds = []
    for index in range(arguments.rounds):
        taken = {}
        for name in list(FUNCTIONS) if index % 2 else list(FUNCTIONS)[::-1]:  # alternate which goes first
            command = [sys.executable, __file__, "--function", name, *flags]
            taken[name] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for ours, theirs in zip(taken["spatial_pool"]["sums"], taken["full_sort"]["sums"], strict=True):
            assert abs(ours - theirs) <= 1e-4 * abs(theirs), "the functions do not agree"
        rounds.append(taken)
        log(taken)
    results = {
        name: {key: statistics.median(r[name][key] for r in rounds) for key in ("seconds", "memory_mb")}
        for name in FUNCTIONS
    }
    for key in ("seconds", "memory_mb"):
        ratios = sorted(r["full_sort"][key] / r["spatial_pool"][key] for r in rounds)
        results[f"{key} ratio"] = {"median": round(statistics.median(ratios), 3), "lowest": round(ratios[0], 3)}
        results[f"{key} ratio"]["highest"] = round(ratios[-1], 3)
    save_result(arguments, settings_of(arguments, without=("function",)), results)


if __name__ == "__main__":
    main()
