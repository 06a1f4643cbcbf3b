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


def page_faults(before: str) -> int:
    """How often the kernel hands out a page while the same 32 MiB are taken and freed ten times."""
    return int(
        subprocess.run([sys.executable, "-c", PROBE.format(before=before)], check=True, capture_output=True).stdout
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have no mallopt")
def test_memory_taken_again_costs_no_new_pages() -> None:
    kept = page_faults("from wildcat.cli.process import keep_freed_memory; assert keep_freed_memory()")
    returned = page_faults("import wildcat, wildcat.cli")
    assert returned >= 10 * 16, "32 MiB are at least 16 pages, where pages are huge (2 MiB)"
    assert kept < returned / 5
