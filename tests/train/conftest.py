"""Every training test saves each epoch and has its own cache folder."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _every_epoch_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings of a second are saved as those of hours are."""
    monkeypatch.setattr("wildcat.train.loop.SAVE_SECONDS", 0.0)
    monkeypatch.setattr("wildcat.progress.REPEATED", 0.0)  # and interrupted as often


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has its own cache folder."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("WILDCAT_CACHE", str(folder))
    return folder
