"""The network is what figure 2 of the paper draws; folding, priors and both architectures equal explicit formulas."""

from __future__ import annotations

import math
from types import MappingProxyType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import wildcat
from wildcat.config import Architecture, ClassPool, TrainConfig
from wildcat.errors import ConfigError, ShapeError
from wildcat.methods import HEADS, METHODS
from wildcat.nn.backbones import Backbone
from wildcat.nn.factory import ARCHITECTURES, create_model, model_from_config
from wildcat.nn.heads import AttentionPool, AttentionWildcat, competing_logits, create_pool
from wildcat.nn.model import Transfer, Wildcat
from wildcat.nn.pooling import ClassWisePool, class_wise_pool
from wildcat.settings import method_settings


class Identity(nn.Module):
    """A network whose features are the image: it makes every number of the layers after it checkable."""

    pretrained_cfg = MappingProxyType({"mean": (0.5,) * 3, "std": (0.5,) * 3})
    num_features = 3

    def forward_features(self, images: Tensor) -> Tensor:
        return images


def tiny(
    classes: int = 2,
    num_maps: int = 2,
    architecture: Architecture = "a",
    pooling: str = "wildcat",
    kmax: float = 3,
    class_pool: ClassPool = "mean",
) -> Wildcat:
    """A network of double precision on identity features, with random weights."""
    pool = AttentionPool(3, classes, size=5) if pooling == "attention" else create_pool(pooling, kmax)
    network = AttentionWildcat if pooling == "attention" else ARCHITECTURES[architecture]
    maps_pool = ClassWisePool(num_maps, class_pool, sharpness=2.0)
    model = network(Backbone("identity", Identity()), classes, num_maps, pool, maps_pool)
    rng = np.random.default_rng(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.from_numpy(rng.normal(size=parameter.shape)))
    return model.double()


def images(batch: int = 2, height: int = 4, width: int = 5) -> Tensor:
    return torch.from_numpy(np.random.default_rng(3).normal(size=(batch, 3, height, width)))


def numpy_maps(model: Wildcat, features: np.ndarray) -> np.ndarray:
    """(B, D, h, w) -> (B, C, M, h, w): an explicit standardisation and a sum over channels, place by place."""
    mean, std = model.transfer.mean.numpy(), model.transfer.std.numpy()
    weight, bias = model.transfer.weight.detach().numpy()[:, :, 0, 0], model.transfer.bias.detach().numpy()
    batch, _, height, width = features.shape
    maps = np.zeros((batch, model.num_classes, model.num_maps, height, width))
    for c in range(model.num_classes):
        for m in range(model.num_maps):
            for d in range(features.shape[1]):
                maps[:, c, m] += weight[c * model.num_maps + m, d] * (features[:, d] - mean[d]) / std[d]
            maps[:, c, m] += bias[c * model.num_maps + m]
    return maps


def top_and_bottom(x: np.ndarray, k: int, alpha: float) -> np.ndarray:
    ranked = np.sort(x.reshape(*x.shape[:2], -1))
    return ranked[..., -k:].mean(-1) + alpha * ranked[..., :k].mean(-1)


# --- the two architectures ------------------------------------------------------------------------------------------


def test_architecture_a_classifies_and_then_pools() -> None:
    model, inputs = tiny(), images()
    model.transfer.standardize(torch.tensor([0.3, -0.2, 1.0]), torch.tensor([0.5, 2.0, 0.1]))
    maps = numpy_maps(model, inputs.numpy())
    with torch.no_grad():
        np.testing.assert_allclose(model.maps(inputs).numpy(), maps, atol=1e-6)
        np.testing.assert_allclose(model.head(inputs).class_maps.numpy(), maps.mean(axis=2), atol=1e-6)
        np.testing.assert_allclose(model(inputs).numpy(), top_and_bottom(maps.mean(axis=2), 3, 0.7), atol=1e-6)


def test_architecture_b_pools_and_then_classifies() -> None:
    model, inputs = tiny(architecture="b"), images()
    model.transfer.standardize(torch.tensor([0.3, -0.2, 1.0]), torch.tensor([0.5, 2.0, 0.1]))
    mean, std = (v.numpy()[:, None, None] for v in (model.transfer.mean, model.transfer.std))
    pooled = top_and_bottom((inputs.numpy() - mean) / std, 3, 0.7)  # (B, D)
    scores = pooled @ model.transfer.weight.detach().numpy()[:, :, 0, 0].T + model.transfer.bias.detach().numpy()
    expected = scores.reshape(2, 2, 2).mean(axis=2)  # (B, C, M) -> (B, C)
    with torch.no_grad():
        np.testing.assert_allclose(model(inputs).numpy(), expected, atol=1e-6)
        np.testing.assert_allclose(model.maps(inputs).numpy(), numpy_maps(model, inputs.numpy()), atol=1e-6)


def test_architecture_c_pools_each_map_and_then_averages_its_scores() -> None:
    model, inputs = tiny(classes=3, num_maps=4, architecture="c"), images()
    model.transfer.standardize(torch.tensor([0.3, -0.2, 1.0]), torch.tensor([0.5, 2.0, 0.1]))
    maps = numpy_maps(model, inputs.numpy())
    expected = np.mean([top_and_bottom(maps[:, :, m], 3, 0.7) for m in range(4)], axis=0)
    with torch.no_grad():
        np.testing.assert_allclose(model(inputs).numpy(), expected, atol=1e-6)
        np.testing.assert_allclose(model.maps(inputs).numpy(), maps, atol=1e-6)
        np.testing.assert_allclose(model.head(inputs).class_maps.numpy(), maps.mean(axis=2), atol=1e-6)


@pytest.mark.parametrize("pooling", ["average", "attention"])
def test_with_a_pooling_that_is_linear_in_the_maps_the_architectures_are_the_same(pooling: str) -> None:
    """The order of linear steps does not matter; the weights of attention depend on the features only."""
    inputs = images()
    a, b, c = (tiny(architecture=x, pooling=pooling)(inputs) for x in ("a", "b", "c"))
    torch.testing.assert_close(a, b)
    torch.testing.assert_close(a, c)


@pytest.mark.parametrize("pooling", ["wildcat", "lse", "csra"])
def test_with_one_map_architecture_c_is_a_and_with_several_it_is_not(pooling: str) -> None:
    def scores(num_maps: int, architecture: Architecture) -> Tensor:
        return tiny(num_maps=num_maps, architecture=architecture, pooling=pooling)(images())

    torch.testing.assert_close(scores(1, "a"), scores(1, "c"))
    assert (scores(3, "a") - scores(3, "c")).abs().min() > 1e-3


def test_only_in_architecture_c_do_the_maps_of_a_class_learn_different_things() -> None:
    def gradients(architecture: Architecture) -> Tensor:
        model = tiny(num_maps=3, architecture=architecture, kmax=1)
        model(images()).sum().backward()
        assert model.transfer.weight.grad is not None
        return model.transfer.weight.grad.reshape(2, 3, 3)  # (C, M, D)

    for architecture in ("a", "b"):
        alike = gradients(architecture)
        torch.testing.assert_close(alike, alike[:, :1].expand_as(alike))
    own = gradients("c")
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert (own[:, first] - own[:, second]).abs().max() > 0.01


@pytest.mark.parametrize("temperature", [0.7, 4.0, math.inf])
def test_residual_attention_is_the_papers_attention_over_features(temperature: float) -> None:
    """Zhu & Wu attend to features, class by class, and classify what they attended to; we pool the class's map."""
    model, inputs = tiny(classes=3, num_maps=2), images(2, 3, 4)
    model.pool = create_pool("csra", residual=0.3, temperature=temperature)
    model.transfer.standardize(torch.tensor([0.3, -0.2, 1.0]), torch.tensor([0.5, 2.0, 0.1]))
    mean, std = (v.numpy() for v in (model.transfer.mean, model.transfer.std))
    weight = model.transfer.weight.detach().numpy()[:, :, 0, 0].reshape(3, 2, 3).mean(axis=1)  # (C, D), mean over M
    bias = model.transfer.bias.detach().numpy().reshape(3, 2).mean(axis=1)
    scores = np.zeros((2, 3))
    for b in range(2):
        x = [(inputs[b, :, i, j].numpy() - mean) / std for i in range(3) for j in range(4)]  # n features (D,)
        for c in range(3):
            said = np.array([weight[c] @ feature for feature in x])
            if math.isinf(temperature):
                attention = (said == said.max()).astype(float)
            else:
                attention = np.exp(temperature * said) / sum(np.exp(temperature * said))
            attended = sum(a * feature for a, feature in zip(attention, x, strict=True))
            residual = sum(x) / len(x) + 0.3 * attended
            scores[b, c] = weight[c] @ residual + (1 + 0.3) * bias[c]  # theirs has no bias; ours is in the map
    np.testing.assert_allclose(model(inputs).detach().numpy(), scores, atol=1e-6)


@pytest.mark.parametrize("architecture", ["a", "b", "c"])
@pytest.mark.parametrize("pooling", ["wildcat", "lse", "attention"])
def test_a_fused_network_gives_the_same_scores_and_class_maps(architecture: Architecture, pooling: str) -> None:
    model, inputs = tiny(classes=3, num_maps=4, architecture=architecture, pooling=pooling), images()
    model.transfer.standardize(torch.tensor([0.3, -0.2, 1.0]), torch.tensor([0.5, 2.0, 0.1]))
    before = torch.get_rng_state()
    fused = model.fuse()
    assert torch.equal(torch.get_rng_state(), before)
    with torch.no_grad():
        expected, found = model.head(inputs), fused.head(inputs)
    torch.testing.assert_close(found.scores, expected.scores)
    torch.testing.assert_close(found.class_maps, expected.class_maps)
    assert fused.num_maps == (4 if architecture == "c" and pooling != "attention" else 1)
    assert fused.backbone is model.backbone
    assert (model.num_maps, model.transfer.out_channels) == (4, 12), "the network itself stays as it is"
    gradients = []
    for one in (model, fused):  # a step is the same, too
        model.zero_grad()
        one.head(inputs).scores.square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("class_pool", ["max", "lse", "softmax"])
def test_a_network_whose_maps_compete_is_not_fused(class_pool: ClassPool) -> None:
    """Only the mean of linear maps is a linear map."""
    model, inputs = tiny(classes=3, num_maps=4, class_pool=class_pool), images()
    assert model.fuse() is model
    maps = torch.from_numpy(numpy_maps(model, inputs.numpy()))
    expected = class_wise_pool(maps.flatten(1, 2), 4, class_pool, 2.0)
    output = model.head(inputs)
    torch.testing.assert_close(output.class_maps, expected)
    np.testing.assert_allclose(output.scores.detach(), top_and_bottom(expected.numpy(), 3, 0.7), atol=1e-6)


def test_gradcheck_of_the_network() -> None:
    model, inputs = tiny(), images(1, 3, 4)
    model.transfer.standardize(torch.tensor([0.3, -0.2, 1.0]), torch.tensor([0.5, 2.0, 0.1]))

    def scores(weight: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(model, {"transfer.weight": weight, "transfer.bias": bias}, inputs)

    assert torch.autograd.gradcheck(scores, (model.transfer.weight, model.transfer.bias))


# --- standardisation and prior --------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(0.01, 50)), min_size=1, max_size=6), st.integers(1, 5))
def test_the_transfer_layer_is_a_convolution_on_standardised_features(
    channels: list[tuple[float, float]], outputs: int
) -> None:
    generator = torch.Generator().manual_seed(outputs)
    transfer = Transfer(len(channels), outputs).double()
    transfer.standardize(*(torch.tensor(v, dtype=torch.float64) for v in zip(*channels, strict=True)))
    features = torch.randn(2, len(channels), 3, 4, generator=generator, dtype=torch.float64)
    mean, std = np.array(channels).T[:, :, None, None]
    standardised = torch.from_numpy((features.numpy() - mean) / std)
    torch.testing.assert_close(transfer.standardized(features), standardised, atol=1e-9, rtol=1e-9)
    expected = nn.functional.conv2d(standardised, transfer.weight, transfer.bias)
    torch.testing.assert_close(transfer(features), expected, atol=1e-9, rtol=1e-9)


def test_standardised_features_have_unit_variance_and_constant_channels_are_ignored() -> None:
    rng = np.random.default_rng(0)
    features = torch.from_numpy(rng.normal(3.0, [[[[0.1]], [[7.0]], [[0.0]], [[50.0]]]], (200, 4, 5, 5)))
    transfer = Transfer(4, 1).double()
    transfer.standardize(features.mean(dim=(0, 2, 3)), features.std(dim=(0, 2, 3), correction=0))
    standardised = transfer.standardized(features)
    np.testing.assert_allclose(standardised.var(dim=(0, 2, 3), correction=0), [1, 1, 0, 1], atol=1e-9)
    np.testing.assert_allclose(standardised.mean(dim=(0, 2, 3)), 0, atol=1e-9)
    transfer(features).sum().backward()
    assert transfer.weight.grad is not None
    assert transfer.weight.grad.isfinite().all()
    assert transfer.weight.grad[0, 2].item() == 0
    assert transfer.folded()[0][0, 2].item() == 0


def test_unset_standardisation_is_the_identity() -> None:
    features = images()
    assert torch.equal(Transfer(3, 2).double().standardized(features), features)


@pytest.mark.parametrize("pooling", ["wildcat", "weldon", "topk", "max", "average", "lse", "csra", "attention"])
@pytest.mark.parametrize("architecture", ["a", "b", "c"])
@pytest.mark.parametrize("multiclass", [False, True])
def test_with_zero_weights_scores_start_at_the_prior(
    pooling: str, architecture: Architecture, multiclass: bool
) -> None:
    model = tiny(3, 4, architecture, pooling)
    model.transfer.standardize(torch.tensor([0.3, -0.2, 1.0]), torch.tensor([0.5, 2.0, 0.1]))
    frequencies = [0.02, 0.38, 0.6]
    model.initialise(torch.tensor(frequencies, dtype=torch.float64), multiclass)
    with torch.no_grad():
        model.transfer.weight.zero_()
    expected = [math.log(p) if multiclass else math.log(p / (1 - p)) for p in frequencies]
    np.testing.assert_allclose(model(images()).detach(), [expected] * 2, atol=1e-9)


# --- the public constructor ------------------------------------------------------------------------------------------


def test_public_face() -> None:
    model = wildcat.create_model("test_resnet", num_classes=3, num_maps=2, pretrained=False).eval()
    images = torch.zeros(2, 3, 64, 96)
    assert isinstance(model, nn.Module)
    with torch.no_grad():
        maps = model.maps(images)
        assert maps.shape == (2, 3, 2, 2, 3)
        np.testing.assert_allclose(model(images), top_and_bottom(maps.mean(2).numpy(), 1, 0.7), atol=1e-5)  # 0.2 * 6
    assert wildcat.list_backbones()[0] == "lite0"
    with pytest.raises(AttributeError, match="no attribute 'creat_model'"):
        _ = wildcat.creat_model


def test_model_from_config_follows_every_setting() -> None:
    config = TrainConfig(
        backbone="test_vit",
        weights="none",
        image_size=64,
        num_maps=3,
        pooling="weldon",
        kmax=2,
        kmin=5,
        architecture="b",
    )
    model = model_from_config(config, num_classes=7)
    assert (model.num_classes, model.num_maps, type(model)) == (7, 3, ARCHITECTURES["b"])
    assert str(model.pool) == "SpatialPool(kmax=2, kmin=5, alpha=1.0)"
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 7)
    lse = model_from_config(TrainConfig("test_resnet", "none", 16, "lse", sharpness=2.5), 2)
    assert str(lse.pool) == "LogSumExpPool(sharpness=2.5)"
    assert lse.maps(torch.zeros(2, 3, 64, 64)).shape == (2, 2, 4, 4, 4), "output stride 16"
    csra = model_from_config(TrainConfig("test_resnet", "none", pooling="csra", residual=0.4, temperature=2.0), 2)
    assert str(csra.pool) == "ResidualAttentionPool(residual=0.4, temperature=2.0)"
    attention = model_from_config(TrainConfig("test_resnet", "none", pooling="attention", attention_size=9), 2)
    assert isinstance(attention.pool, AttentionPool)
    assert attention.pool.content.weight.shape == (9, attention.backbone.num_features, 1, 1)
    c = model_from_config(TrainConfig("test_resnet", "none", architecture="c"), 2)
    assert type(c) is ARCHITECTURES["c"]


@pytest.mark.parametrize("name", [name for name in METHODS if name not in HEADS])
@pytest.mark.parametrize("architecture", ["a", "b", "c"])
def test_every_method_in_every_architecture_gives_scores_that_teach(name: str, architecture: Architecture) -> None:
    values = {**method_settings(name), "num_maps": 2, "architecture": architecture}
    model = model_from_config(TrainConfig("test_resnet", "none", **values), num_classes=3)
    scores = model(torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, 64, 96))).float())
    assert scores.shape == (2, 3)
    scores.square().sum().backward()
    assert model.transfer.weight.grad is not None
    assert (model.transfer.weight.grad.flatten(1).abs().amax(dim=1) > 0).all()


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 64, 64), (1, 64, 64, 3), (2, 3, 64)])
def test_images_of_a_wrong_shape(shape: tuple[int, ...]) -> None:
    model = tiny()
    for call in (model, model.maps, model.features):
        with pytest.raises(ShapeError) as caught:
            call(torch.zeros(shape))
        assert caught.value.message.startswith(f"images of shape {shape}: give (batch, 3, height, width)")


def test_arguments_out_of_range() -> None:
    with pytest.raises(ConfigError, match="num_classes=0"):
        create_model("test_resnet", num_classes=0, pretrained=False)
    with pytest.raises(ConfigError, match="num_maps=0"):
        create_model("test_resnet", num_maps=0, pretrained=False)
    with pytest.raises(ConfigError, match=r"kmax=1.5.*did you mean 0.15 or 2"):
        create_model("test_resnet", kmax=1.5, pretrained=False)
    with pytest.raises(ConfigError, match=r"architecture='d': give 'a' .*, 'b' .* or 'c'"):
        create_model("test_resnet", pretrained=False, architecture="d")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="temperature=0"):
        create_model("no_such_network", pooling="csra", temperature=0.0)  # before the backbone is looked for
    with pytest.raises(ConfigError, match="attention_size=0"):
        create_model("test_resnet", pretrained=False, pooling="attention", attention_size=0)


@pytest.mark.parametrize("pooling", ["wildcat", "attention"])
def test_making_a_model_leaves_the_callers_random_numbers_usable(pooling: str) -> None:
    """Weights are drawn from torch's generator, so that a seed fixes them."""
    made = []
    for _ in range(2):
        torch.manual_seed(7)
        made.append(create_model("test_resnet", 2, pretrained=False, pooling=pooling).state_dict())
    assert all(torch.equal(made[0][k], made[1][k]) for k in made[0])


# --- a background that competes ---------------------------------------------------------------------------------------


def test_competing_logits_by_a_loop() -> None:
    maps = 6 * torch.randn(2, 4, 3, 5, dtype=torch.float64)
    found = competing_logits(maps)
    every = np.concatenate([maps.numpy(), np.zeros((2, 1, 3, 5))], axis=1)
    for c in range(5):
        rest = np.exp(np.delete(every, c, axis=1)).sum(axis=1)
        np.testing.assert_allclose(found[:, c], every[:, c] - np.log(rest), rtol=1e-9, atol=1e-9)
    probs = torch.cat([maps, torch.zeros(2, 1, 3, 5, dtype=torch.float64)], dim=1).softmax(dim=1)
    torch.testing.assert_close(found.sigmoid(), probs)


def test_competing_logits_far_apart_and_its_gradient() -> None:
    far = torch.tensor([500.0, -500.0, 0.0, 200.0]).reshape(1, 4, 1, 1)
    assert competing_logits(far).isfinite().all()
    assert competing_logits(far).flatten().tolist() == [300.0, -1000.0, -500.0, -300.0, -500.0]
    maps = torch.randn(1, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(competing_logits, (maps,))


def test_a_network_with_a_background() -> None:
    model = create_model("test_resnet", 3, pretrained=False, background=True).eval()
    features = model.features(torch.randn(2, 3, 96, 64))
    with torch.no_grad():
        every, maps = model.training_output(features).scores, model.head(features).class_maps
        assert every.shape == (2, 4) and maps.shape == (2, 3, 3, 2)
        torch.testing.assert_close(model.head(features).scores, every[:, :3])
        torch.testing.assert_close(every, model.pool(competing_logits(maps)))
    plain = create_model("test_resnet", 3, pretrained=False)
    assert plain.training_output(features).scores.shape == (2, 3)
    assert plain.state_dict().keys() == model.state_dict().keys(), "the background has no weights of its own"
    for wrong in ({"architecture": "b"}, {"pooling": "attention"}):
        with pytest.raises(ConfigError, match="background=True goes with"):
            create_model("test_resnet", 3, pretrained=False, background=True, **wrong)  # type: ignore[arg-type]
