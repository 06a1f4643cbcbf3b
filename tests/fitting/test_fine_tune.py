"""All layers trained with the segmenter: the folder holds the new weights, and both losses fall."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from wildcat.data import DataSet
from wildcat.errors import ConfigError, TrainingError
from wildcat.fitting.config import RefineConfig
from wildcat.fitting.refine import refine
from wildcat.models.run import WEIGHTS, open_run
from wildcat.predictor import load

pytestmark = pytest.mark.usefixtures("cache")

QUICK = RefineConfig(label_sizes="1", sharpen="none", epochs=2, tune="all", tune_epochs=2)


def test_the_model_has_the_weights_that_were_trained_with_the_segmenter(
    tiny: Path, shapes: DataSet, tmp_path: Path
) -> None:
    model = refine(open_run(tiny), shapes, tmp_path / "all", QUICK, device="cpu")
    before, after = (safetensors.torch.load_file(f / WEIGHTS) for f in (tiny, tmp_path / "all" / "base"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(name.startswith("backbone.") for name in changed)
    assert {"transfer.weight", "transfer.bias"} <= changed
    assert not any("running" in name or name in ("transfer.mean", "transfer.std") for name in changed)
    assert len(model.manifest["trained"]["losses"]) == 2
    image = next(iter(shapes.split("val"))).path
    assert load(tmp_path / "all", "cpu").predict(image).scores != load(tiny, "cpu").predict(image).scores


def test_both_losses_fall(tiny: Path, shapes: DataSet, tmp_path: Path) -> None:
    losses = {}
    for epochs in (1, 8):
        config = replace(QUICK, tune_epochs=epochs, tune_lr=1e-3)
        model = refine(open_run(tiny), shapes, tmp_path / str(epochs), config, device="cpu")
        losses[epochs] = model.manifest["trained"]["losses"][-1]
    assert losses[8] < losses[1] - 0.05


def test_the_same_seed_gives_the_same_weights(tiny: Path, shapes: DataSet, tmp_path: Path) -> None:
    config = replace(QUICK, epochs=1, tune_epochs=1)
    for name in ("one", "two"):
        refine(open_run(tiny), shapes, tmp_path / name, config, device="cpu")
    first, second = ((tmp_path / name / "base" / WEIGHTS).read_bytes() for name in ("one", "two"))
    assert first == second


def test_a_loss_that_diverges_names_the_setting_and_writes_nothing(tiny: Path, shapes: DataSet, tmp_path: Path) -> None:
    config = replace(QUICK, tune_lr=1e6)
    with pytest.raises(TrainingError, match=r"loss of all layers is .* tune_lr=1e\+06"):
        refine(open_run(tiny), shapes, tmp_path / "diverged", config, device="cpu")
    assert not (tmp_path / "diverged").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tune": "last"}, "tune='last': give segmenter or all"),
        ({"tune_epochs": 0}, "tune_epochs=0: give at least 1"),
        ({"tune_lr": 0.0}, "tune_lr=0.0: give a number above 0"),
        ({"tune_epochs": 9}, "tune_epochs=9 has no effect without tune='all'"),
        ({"boundary_epochs": 9}, "boundary_epochs=9 has no effect without propagate=True"),
    ],
)
def test_settings_out_of_range_or_without_their_step_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RefineConfig(**settings).validate()  # type: ignore[arg-type]
