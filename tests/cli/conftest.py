"""One tiny trained run for all tests of the commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from wildcat.cli import main
from wildcat.data import write_shapes

TINY = ("--backbone", "test_resnet", "--weights", "none", "--image-size", "64", "--workers", "0", "--device", "cpu")
TINY += ("--batch-size", "8", "--lr", "0.001")


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
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("data") / "shapes", train=16, val=8, size=(64, 96))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, shapes: Path) -> Path:
    """A run folder trained for one epoch on `shapes`; read only."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WILDCAT_CACHE", str(folder.with_name("cache")))
        assert command("train", shapes, "--out", folder, "--epochs", 1, *TINY) == 0
    return folder
