"""Running statistics of batch normalisation are estimated when asked to, and never as a side effect."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from wildcat.config import TrainConfig
from wildcat.data.dataset import DataSet
from wildcat.data.transforms import Preprocess
from wildcat.models.run import create_run
from wildcat.nn.factory import create_model
from wildcat.train.batches import ImageBatches
from wildcat.train.batchnorm import estimate_running_statistics
from wildcat.train.loop import train

CONFIG = TrainConfig(
    backbone="test_resnet", weights="none", image_size=64, num_maps=1, epochs=1, batch_size=8, lr=1e-12, workers=0
)


def _channel_mean(batch: torch.Tensor) -> torch.Tensor:
    return batch.mean(dim=(0, 2, 3))


def _channel_variance(batch: torch.Tensor) -> torch.Tensor:
    return batch.var(dim=(0, 2, 3))


def test_running_statistics_are_averages_over_the_batches() -> None:
    network = nn.Sequential(nn.BatchNorm2d(3, momentum=0.1)).eval()
    batches = [torch.from_numpy(np.random.default_rng(i).normal(i, 1 + i, (4, 3, 5, 5))).float() for i in range(3)]
    estimate_running_statistics(network, batches)
    norm = network[0]
    assert isinstance(norm, nn.BatchNorm2d)
    means, variances = ([f(b).numpy() for b in batches] for f in (_channel_mean, _channel_variance))
    np.testing.assert_allclose(norm.running_mean, np.mean(means, axis=0), rtol=1e-5)
    np.testing.assert_allclose(norm.running_var, np.mean(variances, axis=0), rtol=1e-5)
    assert norm.momentum == 0.1 and not network.training


def test_a_network_without_batch_normalisation_reads_no_batch() -> None:
    estimate_running_statistics(nn.Conv2d(3, 2, 1), (pytest.fail("a batch was read") for _ in range(1)))


def test_measuring_the_features_changes_nothing(shapes: DataSet) -> None:
    model = create_model("test_resnet", 5, 1, pretrained=False).train()
    preprocess = Preprocess(64, model.backbone.mean, model.backbone.std)
    batches = ImageBatches(CONFIG, shapes.split("train"), (), preprocess, torch.device("cpu"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    mean, std = batches.channel_statistics(model)
    assert mean.shape == std.shape == (model.backbone.num_features,)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("standardize", [True, False])
def test_training_adapts_running_statistics_with_and_without_standardisation(
    tmp_path: Path, shapes: DataSet, standardize: bool
) -> None:
    run = create_run(tmp_path / "run", replace(CONFIG, standardize=standardize), shapes)
    train(run, shapes)
    norm = run.load_model().backbone.network.bn1
    assert not torch.allclose(norm.running_mean, torch.zeros_like(norm.running_mean), atol=1e-2)  # type: ignore[arg-type]
