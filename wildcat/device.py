"""Devices, facts about the machine (cores, vector instructions), and several batches at once on its cores."""

from __future__ import annotations

import itertools
import math
import os
import platform
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch

from wildcat.errors import ConfigError, EngineError

CGROUP = Path("/sys/fs/cgroup")  # CPU limits of the container of this process (Linux)
CPUINFO = Path("/proc/cpuinfo")  # Linux
BF16_FLAGS = {"avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16"}  # of processors that compute in bfloat16
EMULATING = ("AVX512_CORE", "AVX512_CORE_VNNI")  # limits of oneDNN's instructions under which it emulates bfloat16
CONCURRENT_BATCHES = 4  # most batches that `map_batches` computes at the same time: each needs its own memory

Batch = TypeVar("Batch")
Result = TypeVar("Result")


def choose_device(name: str) -> torch.device:
    """The device of a name; auto is CUDA if available, then Apple's MPS, then the CPU.

    Raises:
        ConfigError: this machine has no such device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # "meta" and absent devices fail here
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device={name}: this machine has no such device.", "Give auto, cpu, cuda, cuda:1 or mps."
        ) from error
    return device


def refuse_forked(process: int) -> None:
    """Refuse to compute in a process forked from `process`: its OpenMP threads do not exist here, and torch would hang.

    Raises:
        EngineError: how to start processes instead.
    """
    if os.getpid() != process and torch.get_num_threads() > 1:
        raise EngineError(
            "this process was forked from one that loaded the model; torch would hang here.",
            'Start processes by multiprocessing.get_context("spawn"), or call torch.set_num_threads(1) in them.',
        )


def machine() -> dict[str, Any]:
    """The processor, its vector instructions, the cores and torch's threads, to be recorded with timings."""
    values = _cpu_info()
    name, flags = values.get("model name", platform.processor() or platform.machine()), values.get("flags", "")
    vector = [flag for flag in flags.split() if flag.startswith(("avx", "amx"))]
    return {
        "processor": name,
        "flags": " ".join(vector),
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
    }


def _cpu_info() -> dict[str, str]:
    """The last processor's entries in /proc/cpuinfo; none on other systems than Linux."""
    if not CPUINFO.is_file():
        return {}
    lines = (line.split(":", 1) for line in CPUINFO.read_text().splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in lines}


def bf16_is_native(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16; without them torch emulates it, up to 20 times slower."""
    if device.type == "cuda":
        return torch.version.hip is not None or torch.cuda.get_device_capability(device)[0] >= 8
    return device.type != "cpu" or cpu_has_bf16()


def cpu_has_bf16() -> bool:
    """Whether the processor, as far as ONEDNN_MAX_CPU_ISA lets oneDNN use it, has instructions for bfloat16."""
    try:
        supported = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):  # this build of torch has no oneDNN
        return False
    # torch's answer includes AVX-512 without bf16, where oneDNN emulates it
    if not supported or os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in EMULATING:
        return False
    values = _cpu_info()
    flags = values.get("flags", values.get("Features", ""))  # x86, ARM
    return bool(BF16_FLAGS & set(flags.split())) if flags else True


def available_cores() -> int:
    """Cores that this process may use: those of its CPU affinity, at most the CPU quota of its control group (cgroup).

    Containers limit CPU time by a quota that `os.cpu_count` does not know.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota = cgroup_quota(CGROUP)
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def engine_threads() -> int:
    """Threads for an engine: torch's number (which follows OMP_NUM_THREADS), at most the available cores."""
    return min(torch.get_num_threads(), available_cores())


def cgroup_quota(root: Path) -> float | None:
    """CPU quota of this process's control group in cores, version 2 (`cpu.max`) or 1; None where there is none."""
    try:
        if (root / "cpu.max").is_file():
            quota, period = (root / "cpu.max").read_text().split()
        else:
            quota = (root / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (root / "cpu" / "cpu.cfs_period_us").read_text().strip()
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # no such file, or "max": no limit
        return None


def map_batches(function: Callable[[Batch], Result], batches: Iterable[Batch]) -> Iterator[Result]:
    """`function` of each batch, in order, in a few threads, each with a share of the cores.

    With all cores in one batch, each layer waits for the slowest core, which reads images or runs other programs.
    Measured for lite2 at 320 px on two cores: 0.96 instead of 1.34 of the time of a plain forward pass over all cores,
    reading included.

    Args:
        function: computes on the CPU, and in the threads of torch alone.
        batches: read by the caller's thread, at most one more than are computed. The results of those before an error
            come first.
    """
    failed: list[Exception] = []

    def until_error() -> Iterator[Batch]:
        try:
            yield from batches
        except Exception as error:
            failed.append(error)

    yield from _mapped(function, until_error())
    if failed:
        raise failed[0]


def _mapped(function: Callable[[Batch], Result], source: Iterator[Batch]) -> Iterator[Result]:
    threads = torch.get_num_threads()
    first = list(itertools.islice(source, min(threads, CONCURRENT_BATCHES)))
    if len(first) < 2:
        yield from map(function, itertools.chain(first, source))
        return
    waiting: deque[Future[Result]] = deque()
    share = threads // len(first)
    with ThreadPoolExecutor(len(first), "wildcat-batch", torch.set_num_threads, (share,)) as pool:
        try:
            for batch in itertools.chain(first, source):
                waiting.append(pool.submit(function, batch))
                if len(waiting) > len(first):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
            torch.set_num_threads(threads)  # threads started later would inherit the share
