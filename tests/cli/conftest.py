"""How the tests of the commands run them."""

from __future__ import annotations

from pathlib import Path

import pytest

from wildcat.cli import main


def command(*arguments: object) -> int:
    """The exit code of `wildcat ARGUMENTS`."""
    try:
        return main([str(a) for a in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)


@pytest.fixture(scope="module", autouse=True)
def own_cache(cache: Path) -> None:
    """Every module has a cache folder of its own."""


@pytest.fixture(scope="session")
def shapes(shapes_folder: Path) -> Path:
    """The data that `tiny` was trained on."""
    return shapes_folder
