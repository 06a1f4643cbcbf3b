"""Shared fixtures. Nothing here reaches a network."""

from __future__ import annotations

import os
import signal
from pathlib import Path

# Tiny networks gain nothing from several threads, and on a busy machine threads that wait for each other take minutes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

# A shell that starts tests in the background has them ignore Ctrl-C; the tests of interruption need it to work.
signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with VOCdevkit/ (VOC 2012 mini) and 15-Scene/; the test is skipped where it is absent."""
    folder = Path(os.environ.get("WILDCAT_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "VOCdevkit" / "VOC2012").is_dir():
        pytest.skip(f"no real data at {folder} (set WILDCAT_TEST_DATA to a folder with VOCdevkit/ and 15-Scene/)")
    return folder
