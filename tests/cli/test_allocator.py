"""The command line's own process keeps freed memory; a program that imports wildcat is left as it was."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROBE = """
import numpy, resource, sys
{before}
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
block = numpy.ones(32 << 20, numpy.uint8); del block
start = faults()
for _ in range(10):
    block = numpy.ones(32 << 20, numpy.uint8); del block
print(faults() - start)
"""


IN_A_THREAD = """
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
thread = threading.Thread(target=work); thread.start(); thread.join()
"""


def page_faults(before: str, probe: str = PROBE) -> int:
    """How often the kernel hands out a page while the same memory is taken and freed ten times."""
    return int(
        subprocess.run([sys.executable, "-c", probe.format(before=before)], check=True, capture_output=True).stdout
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have no mallopt")
def test_memory_taken_again_costs_no_new_pages() -> None:
    kept = page_faults("from wildcat.cli.allocator import keep_freed_memory; assert keep_freed_memory()")
    returned = page_faults("import wildcat, wildcat.cli")
    assert returned >= 10 * 16, "32 MiB are at least 16 pages, where pages are huge (2 MiB)"
    assert kept < returned / 5


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have no mallopt")
def test_large_blocks_of_threads_cost_no_new_pages_in_one_arena() -> None:
    ask = "from wildcat.cli.allocator import keep_freed_memory, share_one_arena; assert keep_freed_memory()"
    own, shared = page_faults(ask, IN_A_THREAD), page_faults(f"{ask}; assert share_one_arena()", IN_A_THREAD)
    assert own >= 10 * 48
    assert shared < own / 5
