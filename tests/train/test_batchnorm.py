"""Running statistics are estimated when asked to; frozen ones are folded, which changes no result."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import nn

from wildcat.config import TrainConfig
from wildcat.data.dataset import DataSet
from wildcat.data.transforms import Preprocess
from wildcat.device import cpu_has_bf16
from wildcat.models.run import create_run
from wildcat.nn.backbones import create_backbone
from wildcat.nn.factory import create_model
from wildcat.train.batches import ImageBatches
from wildcat.train.batchnorm import (
    avoid_slow_gradients,
    estimate_running_statistics,
    fold_frozen_batchnorm,
    freeze_batchnorm,
    slow_in_bf16,
)
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


def gradients(model: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Outputs of a network, gradients of a sum over its squares, and its state afterwards."""
    model.zero_grad()
    outputs = model(images)
    outputs.square().sum().backward()
    named = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"outputs": outputs.detach(), **named, **{f"state {k}": v.clone() for k, v in model.state_dict().items()}}


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "tf_efficientnet_lite0", "test_vit"])
def test_folded_statistics_train_as_frozen_ones(name: str) -> None:
    """In double precision outputs and the gradient of every parameter agree; copies do not share anything."""
    torch.manual_seed(0)
    backbone = create_backbone(name, "none", image_size=64)
    estimate_running_statistics(backbone, torch.randn(2, 4, 3, 64, 64))
    backbone = backbone.double().train()
    freeze_batchnorm(backbone)
    images = torch.randn(3, 3, 64, 64, dtype=torch.float64)
    expected = gradients(backbone, images)
    assert fold_frozen_batchnorm(backbone.network) == sum(isinstance(m, nn.BatchNorm2d) for m in backbone.modules())
    copied = copy.deepcopy(backbone)
    found = gradients(backbone, images)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-8, atol=1e-8 * float(value.abs().max()), msg=key)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.zero_()
    torch.testing.assert_close(copied(images), expected["outputs"])


def test_convolutions_without_a_normalisation_of_their_own_are_not_folded() -> None:
    class Shared(nn.Module):
        """One convolution for two normalisations, and one whose outputs are used twice."""

        def __init__(self) -> None:
            super().__init__()
            self.shared, self.twice = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
            self.one, self.other, self.last = (nn.BatchNorm2d(3) for _ in range(3))

        def forward_features(self, images: torch.Tensor) -> torch.Tensor:
            cells = self.one(self.shared(images)) + self.other(self.shared(images))
            again: torch.Tensor = self.twice(cells)
            return again + self.last(again)

    assert fold_frozen_batchnorm(Shared().eval()) == 0


@pytest.mark.skipif(not cpu_has_bf16(), reason="needs a processor that computes in bfloat16")
def test_mixed_precision_trains_in_the_same_direction() -> None:
    backbone = create_backbone("test_efficientnet", "none", image_size=64)
    estimate_running_statistics(backbone, torch.randn(2, 4, 3, 64, 64))
    backbone.train()
    freeze_batchnorm(backbone)
    images = torch.randn(4, 3, 64, 64)
    expected = gradients(backbone, images)
    fold_frozen_batchnorm(backbone.network)
    avoid_slow_gradients(backbone.network)
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(backbone, images)
    for key, value in expected.items():
        if not key.startswith("state") and value.norm() > 0:
            assert (
                float(nn.functional.cosine_similarity(found[key].float().flatten(), value.flatten(), dim=0)) > 0.98
            ), key


@pytest.mark.skipif(not cpu_has_bf16(), reason="needs a processor that computes in bfloat16")
@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(8, 8, 5, padding=2, groups=8),
        nn.Conv2d(8, 16, 3, 2, 1, groups=4, bias=False),
        Conv2dSame(8, 8, 3, stride=2, groups=8),
        nn.Conv2d(8, 8, 7, padding="same", groups=8),
        nn.Conv2d(8, 8, 5, padding=2, padding_mode="reflect", groups=8),
    ],
)
def test_gradients_in_float32_of_a_convolution_in_bfloat16(conv: nn.Conv2d) -> None:
    """The outputs are those of autocast; the gradients those of float32 for the same rounded inputs."""
    assert slow_in_bf16(conv)
    images = torch.randn(3, 8, 9, 12).bfloat16().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = conv(images)
    expected = gradients_of(conv, images, conv(images), rounded.float())
    avoid_slow_gradients(conv)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = conv(images)
    assert torch.equal(outputs, rounded)
    for one, other in zip(gradients_of(conv, images, outputs, rounded.float()), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2 * float(other.abs().max()))


def gradients_of(
    conv: nn.Conv2d, images: torch.Tensor, outputs: torch.Tensor, upstream: torch.Tensor
) -> list[torch.Tensor]:
    """Gradients of images, weight and bias, for a gradient of the outputs."""
    return list(torch.autograd.grad(outputs, [images, *conv.parameters()], upstream.to(outputs.dtype)))
