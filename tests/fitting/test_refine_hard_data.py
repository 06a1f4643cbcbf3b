"""Refining data that leaves a step without anything to learn ends with finite losses and masks of the right shape."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wildcat.config import TrainConfig
from wildcat.data import open_dataset
from wildcat.errors import ShapeError
from wildcat.fitting.config import RefineConfig
from wildcat.fitting.refine import refine
from wildcat.models.folder import open_model
from wildcat.models.run import WEIGHTS, Run, create_run, save_weights
from wildcat.nn.factory import model_from_config
from wildcat.predictor import load

pytestmark = pytest.mark.usefixtures("cache", "few_boundary_steps")

SIZE = 64


def noise(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (48, 60, 3), dtype=np.uint8)


def one_color(rng: np.random.Generator) -> np.ndarray:
    return np.full((48, 60, 3), rng.integers(0, 256), np.uint8)


def untrained(folder: Path, labels: list[str], pixels: Callable[..., np.ndarray], backbone: str, bias: float) -> Run:
    """A run with random weights on images with these labels; `bias` of all maps."""
    rng, table = np.random.default_rng(0), folder / "images.csv"
    folder.mkdir()
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "labels", "split"])
        for i, label in enumerate(labels):
            Image.fromarray(pixels(rng)).save(folder / f"{i}.png")
            writer.writerow([f"{i}.png", label, "train"])
    data = open_dataset(table, separator="|", task="multilabel")
    torch.manual_seed(0)
    config = TrainConfig(backbone=backbone, weights="none", image_size=SIZE, flip="horizontal", val_split="none")
    run = create_run(folder / "run", config, data, str(table))
    model = model_from_config(config, len(run.classes))
    with torch.no_grad():
        model.transfer.bias.fill_(bias)
    save_weights(model, run.folder / WEIGHTS)
    return run


CASES = {
    "one class": (["cat"] * 5 + [""], noise, "test_resnet", 0.0),
    "no image with two classes": (["cat", "dog", "cow"] * 2, noise, "test_resnet", 0.0),
    "images of one color": (["cat", "dog|cow"] * 3, one_color, "test_resnet", 0.0),
    "masks that cover everything": (["cat", "dog|cow"] * 3, noise, "test_resnet", 50.0),
    "masks that are empty": (["cat", "dog|cow"] * 3, noise, "test_resnet", -50.0),
    "one level": (["cat", "dog|cow"] * 3, noise, "test_vit", 0.0),
}


@pytest.mark.parametrize("case", CASES)
def test_hard_data(case: str, tmp_path: Path) -> None:
    labels, pixels, backbone, bias = CASES[case]
    run = untrained(tmp_path / "data", labels, pixels, backbone, bias)
    data = open_dataset(tmp_path / "data" / "images.csv", separator="|", task="multilabel")
    config = RefineConfig(propagate=True, epochs=1, boundary_epochs=1, batch_size=2, label_margin=0.5)
    refine(run, data, tmp_path / "refined", config, device="cpu")
    losses = open_model(tmp_path / "refined").manifest["trained"]["losses"]
    assert len(losses) == 2 and np.isfinite(losses).all()
    for propagate in (False, True):
        prediction = load(tmp_path / "refined", "cpu", propagate=propagate).predict(tmp_path / "data" / "0.png")
        assert np.isfinite(prediction.class_maps).all()
        for crf in (False, True):
            mask = prediction.mask(crf=crf)
            assert mask.shape == (48, 60) and mask.max() <= len(data.classes)


def test_a_backbone_of_one_size_says_which_label_sizes_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wildcat.nn.backbones import Backbone

    run = untrained(tmp_path / "data", ["cat", "dog"] * 2, noise, "test_resnet", 0.0)
    data = open_dataset(tmp_path / "data" / "images.csv", separator="|", task="multilabel")
    forward = Backbone.forward

    def fixed(self: Backbone, images: torch.Tensor) -> torch.Tensor:
        if images.shape[-1] != SIZE:
            raise ShapeError(f"{self.name} does not take images of {images.shape[-1]} pixels.")
        return forward(self, images)

    monkeypatch.setattr(Backbone, "forward", fixed)
    with pytest.raises(ShapeError, match="does not take images of 48 pixels") as caught:
        refine(run, data, tmp_path / "refined", RefineConfig(label_sizes="0.75,1"), device="cpu")
    assert "--label-sizes 1" in caught.value.hint and not (tmp_path / "refined").exists()
