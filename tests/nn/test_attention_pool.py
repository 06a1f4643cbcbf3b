"""Attention equals the paper's loop over features; it starts as the average, learns where to look, and is kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from wildcat.config import TrainConfig
from wildcat.errors import ConfigError, RunError, ShapeError
from wildcat.models.run import load_weights, save_weights
from wildcat.nn.factory import create_model, model_from_config
from wildcat.nn.heads import AttentionPool, attention_pool
from wildcat.nn.model import Wildcat


def random(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def network(classes: int = 3, num_maps: int = 2, size: int = 4) -> Wildcat:
    """A network of double precision whose layers after the backbone are random, and its features standardised."""
    model = create_model(
        "test_resnet", classes, num_maps, pretrained=False, pooling="attention", attention_size=size
    ).double()
    channels = model.backbone.num_features
    with torch.no_grad():
        for i, parameter in enumerate([*model.transfer.parameters(), *model.pool.parameters()]):
            parameter.copy_(random(i, *parameter.shape))
    model.transfer.standardize(random(7, channels), random(8, channels).abs() + 0.1)
    return model


# --- the formula ----------------------------------------------------------------------------------------------------


def test_scores_are_the_classes_of_attended_features() -> None:
    """Eq. 9 of Ilse et al. for each class, region by region: the features are pooled first, and classified then."""
    model = network()
    features = random(0, 2, model.backbone.num_features, 2, 3)
    mean, std = model.transfer.mean.numpy(), model.transfer.std.numpy()
    v, u, w = (p.detach().numpy()[:, :, 0, 0] for p in model.pool.parameters())
    weight = model.transfer.weight.detach().numpy()[:, :, 0, 0].reshape(3, 2, -1)  # (C, M, D)
    bias = model.transfer.bias.detach().numpy().reshape(3, 2)
    scores = np.zeros((2, 3))
    for b in range(2):
        h = [(features[b, :, i, j].numpy() - mean) / std for i in range(2) for j in range(3)]
        for c in range(3):
            said = [w[c] @ (np.tanh(v @ region) / (1 + np.exp(-u @ region))) for region in h]
            attention = np.exp(said) / np.sum(np.exp(said))
            attended = sum(a * region for a, region in zip(attention, h, strict=True))
            scores[b, c] = np.mean([weight[c, m] @ attended + bias[c, m] for m in range(2)])
    with torch.no_grad():
        np.testing.assert_allclose(model.head(features).scores.numpy(), scores, atol=1e-9)
    assert np.ptp(scores, axis=0).min() > 0.01


def test_pooling_equals_a_loop_with_weights_of_each_class_or_shared() -> None:
    x = random(0, 2, 3, 2, 4)
    for attention in (random(1, 2, 3, 2, 4), random(1, 2, 1, 2, 4)):
        weights = np.exp(np.broadcast_to(attention.numpy(), x.shape))
        expected = [[np.average(x[b, c].numpy(), weights=weights[b, c]) for c in range(3)] for b in range(2)]
        np.testing.assert_allclose(attention_pool(x, attention).numpy(), expected, atol=1e-12)
        np.testing.assert_allclose(attention_pool(x, attention + 1e3).numpy(), expected, atol=1e-9)


def test_gradcheck() -> None:
    pool = AttentionPool(5, 2, size=3).double()
    with torch.no_grad():
        pool.attend.weight.copy_(random(0, 2, 3, 1, 1))
    inputs = (random(1, 2, 2, 2, 3), random(2, 2, 5, 2, 3), *(p.detach().clone() for p in pool.parameters()))
    for value in inputs:
        value.requires_grad_()

    def scores(x: Tensor, features: Tensor, content: Tensor, gate: Tensor, attend: Tensor) -> Tensor:
        weights = {"content.weight": content, "gate.weight": gate, "attend.weight": attend}
        return torch.func.functional_call(pool, weights, (x, features))

    assert torch.autograd.gradcheck(scores, inputs)


# --- where it begins ------------------------------------------------------------------------------------------------


def test_it_begins_as_average_pooling() -> None:
    made = []
    for pooling in ("average", "attention"):
        torch.manual_seed(0)
        made.append(create_model("test_resnet", 3, 2, pretrained=False, pooling=pooling))
    average, attention = made
    attention.transfer.load_state_dict(average.transfer.state_dict())
    features = random(0, 2, average.backbone.num_features, 4, 5).float()
    torch.testing.assert_close(attention.head(features).scores, average.head(features).scores)


@pytest.mark.parametrize("channels", [48, 1280])
def test_standardised_features_reach_the_bend_of_the_gates_for_any_number_of_channels(channels: int) -> None:
    """The usual start, 1/sqrt(D), would leave them in the linear part, where every region is gated alike."""
    torch.manual_seed(0)
    pool = AttentionPool(channels, 3)
    features = random(0, 4, channels, 6, 6).float()
    for layer in (pool.content, pool.gate):
        assert layer(features).std().item() == pytest.approx(1, abs=0.1)


def test_the_seed_fixes_it() -> None:
    torch.manual_seed(5)
    first = AttentionPool(8, 3).state_dict()
    torch.manual_seed(5)
    again = AttentionPool(8, 3).state_dict()
    assert list(first) == ["content.weight", "gate.weight", "attend.weight"]
    assert all(torch.equal(first[name], again[name]) for name in first)


# --- learning, keeping ----------------------------------------------------------------------------------------------


def test_it_learns_to_look_where_the_average_drowns() -> None:
    """Every region votes at random but for one in sixteen, which knows, and bears a mark: attention must find it."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    votes, marks = rng.choice([-1, 1], (512, 16)), np.zeros((512, 16))
    labels, places = rng.choice([-1, 1], 512), rng.integers(0, 16, 512)
    votes[range(512), places], marks[range(512), places] = labels, 4
    features = np.concatenate([rng.normal(size=(512, 6, 16)), votes[:, None], marks[:, None]], axis=1)
    x = torch.from_numpy(features.reshape(512, 8, 4, 4)).float()
    truth = torch.from_numpy(labels).float()
    losses = {}
    for rate in (0.0, 5.0):
        pool, classify = AttentionPool(8, 1, size=16), torch.nn.Conv2d(8, 1, 1)
        parts = [{"params": pool.parameters(), "lr": rate}, {"params": classify.parameters(), "lr": 0.5}]
        optimizer = torch.optim.SGD(parts, momentum=0.9)
        for _ in range(150):
            optimizer.zero_grad()
            loss = torch.nn.functional.soft_margin_loss(pool(classify(x), x)[:, 0], truth)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        losses[rate] = loss.item()
    assert losses[0.0] > 0.5 > 10 * losses[5.0], "left at its start it is the average"


def test_a_saved_network_loads_again(tmp_path: Path) -> None:
    config = TrainConfig("test_resnet", "none", pooling="attention", attention_size=6)
    torch.manual_seed(1)
    model = model_from_config(config, num_classes=3).eval()
    torch.nn.init.normal_(model.pool.attend.weight)
    save_weights(model, tmp_path / "model.safetensors")
    torch.manual_seed(2)
    again = model_from_config(config, num_classes=3).eval()
    images = random(0, 2, 3, 64, 96).float()
    with torch.no_grad():
        assert not torch.equal(again(images), model(images))
        load_weights(again, tmp_path / "model.safetensors")
        assert torch.equal(again(images), model(images))
    wider = model_from_config(TrainConfig("test_resnet", "none", pooling="attention"), num_classes=3)
    with pytest.raises(RunError, match=r"first pool\.content\.weight"):
        load_weights(wider, tmp_path / "model.safetensors")


# --- what is refused ------------------------------------------------------------------------------------------------


def test_wrong_shapes_and_sizes() -> None:
    with pytest.raises(ShapeError, match=r"maps of shape \(2, 3, 0, 4\)"):
        attention_pool(torch.zeros(2, 3, 0, 4), torch.zeros(2, 3, 0, 4))
    for shape in ((2, 2, 4, 4), (1, 1, 4, 4), (2, 3, 1, 4), (2, 3)):
        with pytest.raises(ShapeError) as caught:
            attention_pool(torch.zeros(2, 3, 4, 4), torch.zeros(shape))
        assert f"attention of shape {shape} does not fit maps of shape (2, 3, 4, 4)" in caught.value.message
    with pytest.raises(ConfigError, match="attention_size=0: give a whole number of at least 1"):
        AttentionPool(8, 3, size=0)
