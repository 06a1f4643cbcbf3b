"""What `spatial_pool` saves over sorting every map: time and memory, forward and backward, in pairs of processes.

    python benchmarks/spatial_pool.py --out benchmarks/results/spatial-pool.json

The full sort is eq. 3 written straight down: sort the regions, average both ends. Both processes of a pair keep freed
memory, as the command line does, and get the same random maps; memory is the process's peak above what it held before.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from wildcat.cli.allocator import keep_freed_memory
from wildcat.nn.pooling import region_count, spatial_pool
from wildcat.reproduce.record import write_result


def full_sort(x: Tensor, k: float, alpha: float) -> Tensor:
    """(B, C, h, w) -> (B, C): eq. 3 by sorting."""
    ranked = x.flatten(2).sort(dim=-1, descending=True).values
    count = region_count(k, ranked.shape[-1])
    return ranked[..., :count].mean(dim=-1) + alpha * ranked[..., -count:].mean(dim=-1)


WAYS = {"spatial_pool": lambda x, k, alpha: spatial_pool(x, k, k, alpha), "full_sort": full_sort}


def child(way: str, shape: list[int], k: float, alpha: float, repeats: int, device: str) -> None:
    """Print seconds, peak memory in megabytes and two sums that the ways must agree in, as JSON."""
    if device == "cpu":
        keep_freed_memory()
    torch.manual_seed(0)
    x = torch.randn(shape, device=device, requires_grad=True)
    before, taken = peak(device), []
    for _ in range(repeats + 1):
        x.grad = None
        begun = time.perf_counter()
        scores = WAYS[way](x, k, alpha)
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
    """The most megabytes this process has held."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=4, default=[16, 1000, 56, 56])
    parser.add_argument("--k", type=float, default=0.2)
    parser.add_argument("--alpha", type=float, default=0.7)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--child", choices=list(WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.child:
        a = arguments
        child(a.child, a.shape, a.k, a.alpha, a.repeats, a.device)
        return
    if arguments.out is None:
        parser.error("--out is needed")
    given = ["--shape", *map(str, arguments.shape), "--k", str(arguments.k), "--alpha", str(arguments.alpha)]
    given += ["--repeats", str(arguments.repeats), "--device", arguments.device]
    rounds = []
    for index in range(arguments.rounds):
        taken = {}
        for way in list(WAYS) if index % 2 else list(WAYS)[::-1]:  # neither always goes first
            command = [sys.executable, __file__, "--child", way, *given]
            taken[way] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for mine, theirs in zip(taken["spatial_pool"]["sums"], taken["full_sort"]["sums"], strict=True):
            assert abs(mine - theirs) <= 1e-4 * abs(theirs), "the two ways do not compute the same"
        rounds.append(taken)
        print(taken, file=sys.stderr, flush=True)
    results = {way: {"seconds": statistics.median(r[way]["seconds"] for r in rounds)} for way in WAYS}
    for way, row in results.items():
        row["memory_mb"] = statistics.median(r[way]["memory_mb"] for r in rounds)
    for key in ("seconds", "memory_mb"):
        ratios = sorted(r["full_sort"][key] / r["spatial_pool"][key] for r in rounds)
        results[f"{key} ratio"] = {"median": round(statistics.median(ratios), 3), "lowest": round(ratios[0], 3)}
        results[f"{key} ratio"]["highest"] = round(ratios[-1], 3)
    settings = {k: v for k, v in vars(arguments).items() if k not in ("out", "child")}
    write_result(arguments.out, f"python benchmarks/spatial_pool.py --out {arguments.out.name}", settings, results)


if __name__ == "__main__":
    main()
