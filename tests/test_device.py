"""Devices, and the cores that a container leaves to a process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import wildcat.device
from wildcat.data.loader import suggested_workers
from wildcat.device import available_cores, bf16_is_native, choose_device, engine_threads, machine
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
