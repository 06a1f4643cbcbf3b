"""A training that is killed again and again and resumed ends with the same bits as one without kills."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.killing import Job, kill_commands, record, soak_kills
from wildcat.data.dataset import DataSet
from wildcat.models.manifest import MANIFEST
from wildcat.models.run import CONFIG, METRICS, STATE, WEIGHTS, load_state

TINY = "--backbone test_resnet --image-size 64 --workers 0 --device cpu --batch-size 4 --epochs 3 --lr 0.05"


def tensors(value: Any, name: str = "state") -> dict[str, Tensor]:
    """All tensors of a state, wherever they are."""
    if isinstance(value, Tensor):
        return {name: value}
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    return {key: tensor for k, v in inside for key, tensor in tensors(v, f"{name} {k}").items()}


def history(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / METRICS).read_text().splitlines()]
    return [{k: v for k, v in line.items() if "second" not in k} for line in lines]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("tune", ["all", "head"])
def test_killed_at_any_moment_a_training_ends_with_the_same_bits(
    tmp_path: Path, shapes: DataSet, weights: str, tune: str, cache: Path
) -> None:
    line = ["train", str(shapes.root), "--out", "run-{n}", "--resume", "--weights", weights, "--tune", tune]
    tiny = TINY.replace("--epochs 3", "--head-epochs 1 --epochs 2") if tune == "all" else TINY
    kills = soak_kills("TRAINING_KILLS", 8) // 2
    job = Job(tune, [*line, *tiny.split()], "run-{n}", kills, resume=True, forget=str(cache))
    (killed,) = kill_commands([job], tmp_path, timeout=60 + 20 * kills)
    assert killed.kills == kills and killed.started > kills // 2
    undisturbed = tmp_path / "run-0"
    expected = tensors(load_state(undisturbed / STATE))
    assert len(expected) > 10 and [line["epoch"] for line in history(undisturbed)] == [1, 2, 3]
    for n in range(1, killed.targets):
        run = tmp_path / f"run-{n}"
        assert {path.name for path in run.iterdir()} == {CONFIG, MANIFEST, WEIGHTS, STATE, METRICS}, (
            "no temporary files"
        )
        assert (run / WEIGHTS).read_bytes() == (undisturbed / WEIGHTS).read_bytes()
        assert history(run) == history(undisturbed)
        found = tensors(load_state(run / STATE))
        assert found.keys() == expected.keys()
        assert [name for name in found if not torch.equal(found[name], expected[name])] == []
    record(f"training, {tune}", kills=killed.kills, runs=killed.targets, weights_equal=killed.targets, left_over=0)
