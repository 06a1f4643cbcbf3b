"""How many cores are really there."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch

CGROUP = Path("/sys/fs/cgroup/cpu.max")
"""Where a container's share of the processor stands (Linux, cgroup v2): "QUOTA PERIOD" in microseconds, or "max"."""


def available_cores() -> int:
    """Cores that this process may use: those it is bound to, and no more than its container is given."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = CGROUP.read_text().split()[:2]
        return cores if quota == "max" else max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):
        return cores


def engine_threads() -> int:
    """Threads for an engine: as many as torch would take (it heeds OMP_NUM_THREADS), where they are there."""
    return min(torch.get_num_threads(), available_cores())
