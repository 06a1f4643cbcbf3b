"""Devices, the cores that a container leaves to a process, and several batches at once on them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import wildcat.device
from wildcat.data.loader import suggested_workers
from wildcat.device import (
    CONCURRENT_BATCHES,
    available_cores,
    bf16_is_native,
    choose_device,
    engine_threads,
    machine,
    map_batches,
)
from wildcat.errors import ConfigError


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "250000 100000"}, 3),
        ({"cpu.max": "5000 100000"}, 1),
        ({"cpu.max": ""}, 8),
        ({"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ({}, 8),
    ],
)
def test_cores_respect_the_quota_of_the_container(
    files: dict[str, str], cores: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(wildcat.device, "CGROUP", tmp_path)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert available_cores() == cores
    assert machine()["cores"] == cores
    assert suggested_workers("cuda") == cores, "the loader counts the same cores"
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    assert engine_threads() == min(2, cores)


@pytest.mark.parametrize(
    ("cpuinfo", "onednn", "limit", "native"),
    [
        ("flags\t\t: avx2 avx512f avx512_bf16", True, "", True),
        ("flags\t\t: avx2 avx512f amx_bf16", True, "", True),
        ("flags\t\t: avx2 avx512f avx512_vnni", True, "", False),  # oneDNN emulates it
        ("flags\t\t: avx2 fma", False, "", False),
        ("flags\t\t: avx2 avx512f avx512_bf16", False, "AVX2", False),
        ("flags\t\t: avx2 avx512f avx512_bf16", True, "avx512_core", False),
        ("Features\t: fp asimd bf16 i8mm", True, "", True),
        ("Features\t: fp asimd", True, "", False),
        (None, True, "", True),  # another system than Linux: torch knows
        (None, False, "", False),
    ],
)
def test_processors_with_bf16_instructions(
    cpuinfo: str | None, onednn: bool, limit: str, native: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if cpuinfo is not None:
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{cpuinfo}\n")
    monkeypatch.setattr(wildcat.device, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert bf16_is_native(torch.device("cpu")) is native
    assert bf16_is_native(torch.device("mps"))


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(ConfigError, match="device=abacus: this machine has no such device"):
        choose_device("abacus")


@pytest.fixture
def _four_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_four_threads")
def test_batches_are_computed_at_the_same_time_and_returned_in_order() -> None:
    together = threading.Barrier(CONCURRENT_BATCHES, timeout=30)  # broken unless all passes wait at once

    def function(batch: int) -> int:
        together.wait()
        return batch

    assert list(map_batches(function, range(2 * CONCURRENT_BATCHES))) == list(range(2 * CONCURRENT_BATCHES))


@pytest.mark.usefixtures("_four_threads")
@pytest.mark.parametrize(("batches", "share"), [(1, 4), (2, 2), (3, 1), (9, 1)])
def test_each_has_a_share_of_the_threads_and_the_caller_keeps_his(batches: int, share: int) -> None:
    assert list(map_batches(lambda _: torch.get_num_threads(), range(batches))) == [share] * batches
    assert torch.get_num_threads() == 4
    with_default: list[int] = []
    later = threading.Thread(target=lambda: with_default.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert with_default == [4]


@pytest.mark.usefixtures("_four_threads")
def test_few_batches_are_read_ahead_and_none_after_an_error() -> None:
    read = 0

    def endless() -> Iterator[int]:
        nonlocal read
        while True:
            read += 1
            yield read

    def function(batch: int) -> int:
        if batch == 20:
            raise ValueError("batch 20")
        return batch

    found = map_batches(function, endless())
    for number in range(1, 20):
        assert next(found) == number
        assert read <= number + CONCURRENT_BATCHES
    with pytest.raises(ValueError, match="batch 20"):
        next(found)
    assert read <= 20 + CONCURRENT_BATCHES
    assert list(map_batches(function, [])) == []


@pytest.mark.usefixtures("_four_threads")
@pytest.mark.parametrize("good", [0, 1, 2, 10])
def test_the_batches_before_one_that_cannot_be_read_are_returned(good: int) -> None:
    def batches() -> Iterator[int]:
        yield from range(good)
        raise OSError("unplugged")

    returned: list[int] = []
    with pytest.raises(OSError, match="unplugged"):
        returned.extend(map_batches(lambda batch: batch, batches()))
    assert returned == list(range(good))
