"""Every method of its own head trains on cached features and through the backbone, and is loaded as it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from wildcat.config import TrainConfig
from wildcat.data.dataset import DataSet
from wildcat.errors import ConfigError
from wildcat.methods import HEADS
from wildcat.models.run import create_run, open_run
from wildcat.nn.heads.descriptor import DescriptorNetwork
from wildcat.predictor import load
from wildcat.settings import method_settings
from wildcat.train import batches
from wildcat.train.loop import train
from wildcat.train.optim import create_optimizer


def config_of(name: str, weights: str, **changes: object) -> TrainConfig:
    """Small settings of a method; mop-cnn needs maps of 4 x 4 cells."""
    settings = {**method_settings(name), "head_size": 0 if name == "wsddn" else 4, **changes}
    size = 128 if name == "mop-cnn" else 64
    base = TrainConfig("test_resnet", weights, workers=0, device="cpu", batch_size=8, image_size=size)
    return replace(base, **settings)  # type: ignore[arg-type]  # of the right types


@pytest.mark.parametrize("name", HEADS)
def test_a_method_learns_from_cached_features(name: str, weights: str, shapes: DataSet, tmp_path: Path) -> None:
    run = create_run(tmp_path / "run", config_of(name, weights, tune="head", epochs=6, val_split="none"), shapes)
    assert train(run, shapes).finished
    losses = [record["loss"] for record in run.history()]
    assert losses[-1] < losses[0]
    again = open_run(run.folder).load_model()
    assert not torch.equal(again.transfer.weight, torch.zeros_like(again.transfer.weight))
    predictor = load(run.folder, device="cpu")
    prediction = predictor.predict(shapes.split("val")[0].path)
    assert predictor.has_maps == prediction.has_maps == HEADS[name].has_maps
    if prediction.has_maps:
        assert prediction.points.keys() == set(shapes.classes)
        return
    assert "points" not in prediction.to_dict() and prediction.labels is not None
    for ask in (lambda: prediction.points, lambda: prediction.heatmap("disk"), prediction.mask, prediction.plot):
        with pytest.raises(ConfigError, match="gives class scores only: its method has no class maps"):
            ask()


@pytest.mark.parametrize("name", ["compact-bilinear", "mop-cnn"])
def test_vectors_that_do_not_change_are_computed_once(
    name: str, weights: str, shapes: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(name, weights, tune="head", epochs=3, val_split="none", flip="horizontal")
    calls: list[int] = []
    vectors = DescriptorNetwork.vectors

    def counted(model: DescriptorNetwork, features: torch.Tensor) -> torch.Tensor:
        calls.append(len(features))
        return vectors(model, features)

    monkeypatch.setattr(DescriptorNetwork, "vectors", counted)
    once = create_run(tmp_path / "once", config, shapes)
    train(once, shapes)
    images = len(shapes.split("train"))
    assert sum(calls) == 2 * images, "each image and its mirror image"
    monkeypatch.setattr(batches, "VECTOR_BYTES", 0)
    always = create_run(tmp_path / "always", config, shapes)
    train(always, shapes)
    for one, other in zip(once.history(), always.history(), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)


@pytest.mark.parametrize("name", HEADS)
def test_a_method_trains_the_backbone(name: str, shapes: DataSet, tmp_path: Path) -> None:
    config = config_of(name, "none", tune="all", epochs=1, val_split="none", lr=0.001)
    run = create_run(tmp_path / "run", config, shapes)
    assert train(run, shapes).finished
    model = run.load_model().train()
    model.training_output(model.features(torch.randn(2, 3, 128, 128))).scores.square().sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in model.backbone.parameters())
    decay = {
        id(p): group["weight_decay"] for group in create_optimizer(model, config).param_groups for p in group["params"]
    }
    decays = name in ("spleap", "wsddn")
    assert all(bool(decay[id(p)]) == (decays and p.ndim > 1) for p in model.pool.parameters())


def test_the_lasso_drops_parts(weights: str, shapes: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wildcat.nn.heads.negative_parts.SPARSITY", 10.0)
    config = config_of("negative-parts", weights, tune="head", epochs=3, val_split="none")
    run = create_run(tmp_path / "run", config, shapes)
    train(run, shapes)
    used = run.load_model().transfer.weight.flatten(1).norm(dim=0)
    assert (used == 0).any()


@pytest.mark.parametrize(
    ("name", "changes", "sentence"),
    [
        ("netvlad", {"head_size": 64}, "64 clusters, and there are 22 training images.*head_size=22 or fewer"),
        ("mop-cnn", {"head_size": 100}, "100 clusters, and there are 22 training images"),
        ("mop-cnn", {"image_size": 64}, "the map has 2 x 2 cells.*larger image_size"),
        ("wsddn", {"head_size": 8}, "head_size=8: wsddn has no size"),
    ],
)
def test_what_a_method_cannot_use_is_refused_before_the_run_is_created(
    name: str, changes: dict[str, object], sentence: str, weights: str, shapes: DataSet, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"(?s){sentence}"):
        create_run(tmp_path / "run", config_of(name, weights, tune="head", **changes), shapes)
    assert not (tmp_path / "run").exists()


def test_one_class_is_nothing_to_compare(weights: str, shapes: DataSet, tmp_path: Path) -> None:
    one = shapes.for_classes(shapes.classes[:1])
    with pytest.raises(ConfigError, match=r"(?s)wsddn compares classes.*one class.*another method"):
        create_run(tmp_path / "run", config_of("wsddn", weights, tune="head"), one)
    run = create_run(tmp_path / "other", config_of("netvlad", weights, tune="head", epochs=1, val_split="none"), one)
    assert train(run, one).finished
