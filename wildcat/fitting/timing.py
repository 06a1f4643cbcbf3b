"""Times that can be compared: alternatives in turn, round by round, so that a noisy machine disturbs all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

Times = Mapping[str, Sequence[float]]
"""Name -> seconds of each round."""


def time_in_turn(
    runs: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup: int = 2,
    progress: Callable[[int], object] = lambda rounds: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each alternative in each of `rounds` rounds; who goes first changes from round to round.

    On CUDA a run is over when its kernels are.

    Args:
        warmup: rounds before, which are not counted: memory is taken and kernels are chosen then.
        progress: called with 1 after every round.
    """
    names = list(runs)
    times: dict[str, list[float]] = {name: [] for name in names}
    for index in range(warmup + rounds):
        first = index % len(names)
        for name in names[first:] + names[:first]:
            begun = clock()
            runs[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            taken = clock() - begun
            if index >= warmup:
                times[name].append(taken)
        progress(1)
    return times


def speedups(times: Times, reference: str, images: int = 1) -> dict[str, dict[str, Any]]:
    """Of each alternative: median seconds an image, and how many times faster than the reference it is.

    The ratio is taken round by round; its median, and its quartiles as the spread.

    >>> speedups({"a": [4.0, 6.0, 4.0], "b": [2.0, 2.0, 2.0]}, "a")["b"]
    {'seconds': 2.0, 'speedup': 2.0, 'quartiles': [2.0, 3.0]}
    """
    rows = {}
    for name, taken in times.items():
        ratios = sorted(base / own for base, own in zip(times[reference], taken, strict=True))
        quarter = len(ratios) // 4
        rows[name] = {
            "seconds": round(statistics.median(taken) / images, 6),
            "speedup": round(statistics.median(ratios), 3),
            "quartiles": [round(ratios[quarter], 3), round(ratios[-1 - quarter], 3)],
        }
    return rows
