"""Small data and a small network with weights, for trainings of a second."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch

from wildcat.data.sample import DataSet
from wildcat.data.shapes import write_shapes
from wildcat.data.voc import read_voc


@pytest.fixture(autouse=True)
def _every_epoch_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings of a second are saved as those of hours are."""
    monkeypatch.setattr("wildcat.train.loop.SAVE_SECONDS", 0.0)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    """22 pictures to train with and 10 to validate with."""
    return read_voc(write_shapes(tmp_path_factory.mktemp("data") / "shapes", train=22, val=10, size=(48, 64)))


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of weights for test_resnet: training only the head asks for some."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "test_resnet.safetensors"
    safetensors.torch.save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), path)
    return str(path)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has its own cache folder."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("WILDCAT_CACHE", str(folder))
    return folder
