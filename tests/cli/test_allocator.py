"""The command line keeps freed memory in its own process; importing wildcat changes nothing for the caller."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have no mallopt")

PROBE = """
import numpy, resource, threading
{before}
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def work():
    block = numpy.ones(96 << 20, numpy.uint8); del block
    start = faults()
    for _ in range(10):
        block = numpy.ones(96 << 20, numpy.uint8); del block
    print(faults() - start)
{run}
"""
IN_A_THREAD = "thread = threading.Thread(target=work); thread.start(); thread.join()"


def page_faults(before: str, run: str = "work()") -> int:
    """Page faults while the same memory is allocated and freed ten times."""
    code = PROBE.format(before=before, run=run)
    return int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout)


def test_reallocated_memory_causes_no_page_faults() -> None:
    kept = page_faults("from wildcat.cli.allocator import keep_freed_memory; assert keep_freed_memory()")
    returned = page_faults("import wildcat, wildcat.cli")
    assert returned >= 10 * 48, "96 MiB are at least 48 pages, where pages are huge (2 MiB)"
    assert kept < returned / 5


def test_large_blocks_of_threads_cause_no_page_faults() -> None:
    kept = page_faults("from wildcat.cli.allocator import keep_freed_memory; assert keep_freed_memory()", IN_A_THREAD)
    assert kept < page_faults("import wildcat, wildcat.cli", IN_A_THREAD) / 5


def test_kept_memory_can_be_returned_once() -> None:
    code = """
import numpy
from pathlib import Path
from wildcat.cli.allocator import keep_freed_memory, return_freed_memory
keep_freed_memory()
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
blocks = [numpy.ones(1 << 20, numpy.uint8) for _ in range(96)]
held = resident()
del blocks
kept = resident()
assert return_freed_memory()
print(held - kept, kept - resident())
"""
    process = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    kept, returned = map(int, process.stdout.split())
    assert kept < 8 << 20 and returned > 80 << 20
