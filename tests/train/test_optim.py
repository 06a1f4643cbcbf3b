"""Losses equal scikit-learn and PyTorch, ignored labels add nothing, and schedules follow tables worked by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.metrics import log_loss
from torch import Tensor, nn

from wildcat.config import ClassPool, TrainConfig
from wildcat.data.dataset import Sample, label_counts
from wildcat.nn.factory import create_model, model_from_config
from wildcat.train.optim import (
    balancing_weights,
    class_frequencies,
    create_optimizer,
    learning_rate_factor,
    map_information,
    multiclass_loss,
    multilabel_loss,
    parameter_groups,
)


def scores_and_labels(seed: int, batch: int = 6, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    scores = torch.tensor(rng.normal(0, 3, (batch, classes)), requires_grad=True)
    return scores, torch.from_numpy(rng.choice([-1, 0, 1], (batch, classes)).astype(np.int8))


def one_hot(indices: list[int], classes: int) -> torch.Tensor:
    return torch.tensor([[1 if c == i else -1 for c in range(classes)] for i in indices], dtype=torch.int8)


# --- losses ---------------------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(st.integers(0, 999))
def test_multilabel_loss_is_the_log_loss_summed_over_the_known_labels(seed: int) -> None:
    scores, labels = scores_and_labels(seed)
    loss = multilabel_loss(scores, labels)
    assert loss.shape == (6,)
    known = labels.numpy() != 0
    probability = 1 / (1 + np.exp(-scores.detach().numpy()[known]))
    expected = log_loss(labels.numpy()[known] > 0, probability, labels=[False, True], normalize=False)
    assert loss.sum().item() == pytest.approx(expected, rel=1e-9)


def test_multilabel_loss_is_pytorchs_times_the_classes_if_nothing_is_ignored() -> None:
    scores, labels = scores_and_labels(0)
    labels = torch.where(labels == 0, torch.tensor(1, dtype=torch.int8), labels)
    expected = 4 * nn.functional.multilabel_soft_margin_loss(scores, (labels > 0).double(), reduction="none")
    torch.testing.assert_close(multilabel_loss(scores, labels), expected, rtol=1e-12, atol=0)


def test_ignored_labels_add_no_gradient_whatever_their_score() -> None:
    scores, labels = scores_and_labels(1)
    multilabel_loss(scores, labels).sum().backward()
    assert scores.grad is not None
    assert (labels == 0).any()
    assert torch.equal(scores.grad == 0, labels == 0)
    wild = torch.where(labels == 0, 1e6, scores.detach())
    torch.testing.assert_close(multilabel_loss(wild, labels), multilabel_loss(scores, labels), rtol=1e-12, atol=0)


def test_a_batch_without_any_known_label_has_no_loss_and_no_gradient() -> None:
    scores = torch.zeros(2, 3, requires_grad=True)
    loss = multilabel_loss(scores, torch.zeros(2, 3, dtype=torch.int8)).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0
    assert scores.grad is not None
    assert not scores.grad.any()


def test_multilabel_class_weights_weigh_the_present_labels() -> None:
    scores, labels = scores_and_labels(2)
    weights = torch.tensor([1.0, 3.0, 0.5, 10.0], dtype=torch.float64)
    expected = [0.0] * len(labels)
    for i, (row, known) in enumerate(zip(scores.tolist(), labels.tolist(), strict=True)):
        for c, (score, label) in enumerate(zip(row, known, strict=True)):
            expected[i] += weights[c].item() * math.log1p(math.exp(-score)) if label == 1 else 0.0
            expected[i] += math.log1p(math.exp(score)) if label == -1 else 0.0
    np.testing.assert_allclose(multilabel_loss(scores, labels, weights).detach(), expected, rtol=1e-9)


def test_multiclass_loss_is_the_log_loss_of_the_softmax() -> None:
    scores, _ = scores_and_labels(3)
    truth = [0, 3, 1, 1, 2, 0]
    probability = np.exp(scores.detach().numpy())
    probability /= probability.sum(axis=1, keepdims=True)
    loss = multiclass_loss(scores, one_hot(truth, 4))
    assert loss.mean().item() == pytest.approx(log_loss(truth, probability, labels=range(4)), rel=1e-9)
    weights = torch.tensor([1.0, 3.0, 0.5, 10.0], dtype=torch.float64)
    torch.testing.assert_close(multiclass_loss(scores, one_hot(truth, 4), weights), weights[truth] * loss)


# --- frequencies and weights ----------------------------------------------------------------------------------------


def test_class_frequencies_leave_ignored_labels_out() -> None:
    rows = np.array([[1, -1, 0], [1, -1, 0], [1, 1, 0], [1, 0, 0]], dtype=np.int8)
    counts = label_counts([Sample(str(i), Path(str(i)), row) for i, row in enumerate(rows)])
    np.testing.assert_array_equal(counts, [[4, 1, 0], [0, 2, 0]])
    frequencies = class_frequencies(*torch.from_numpy(counts))
    np.testing.assert_allclose(frequencies, [5 / 6, 2 / 5, 1 / 2])  # Laplace: (n + 1) / (N + 2)


def test_balancing_weights() -> None:
    def weights_of(present: list[int], multiclass: bool, images: int = 10**6) -> torch.Tensor:
        counts = torch.tensor(present)
        return balancing_weights(counts, images - counts, multiclass)

    np.testing.assert_allclose(weights_of([500_000, 100_000, 1000], multiclass=False), [1, 9, 100], rtol=1e-4)
    present = [500_000, 300_000, 200_000]
    weights = weights_of(present, multiclass=True)
    np.testing.assert_allclose(weights * torch.tensor(present), 1e6 / 3, rtol=1e-4)  # every class counts as much
    rare = weights_of([999_900, 100], multiclass=True)
    assert float(rare[1] / rare[0]) == pytest.approx(100)
    for counts in (present, [6, 3, 1], [6, 4, 0, 0, 0]):
        weights = weights_of(counts, multiclass=True, images=sum(counts))
        mean = (weights * torch.tensor(counts)).sum() / sum(counts)
        assert float(mean) == pytest.approx(1), "an image counts 1 on average, whatever classes have none"


# --- learning rates -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0.0, [1, 1, 1, 1, 1, 1]),
        ("constant", 1.0, [1 / 3, 2 / 3, 1, 1, 1, 1]),
        ("step", 0.0, [1, 1, 0.1, 0.1, 0.01, 0.01]),
        ("step", 1.0, [1 / 3, 2 / 3, 0.1, 0.1, 0.01, 0.01]),
        ("cosine", 0.0, [(1 + math.cos(math.pi * i / 6)) / 2 for i in range(6)]),
        ("cosine", 1.0, [1 / 3, 2 / 3, 1, (2 + math.sqrt(2)) / 4, 0.5, (2 - math.sqrt(2)) / 4]),
        ("cosine", 99.0, [1 / 4, 2 / 4, 3 / 4, 1, 0.75, 0.25]),  # at most half of the training is warm-up
    ],
)
def test_learning_rates_of_three_epochs_of_two_steps(schedule: str, warmup: float, expected: list[float]) -> None:
    config = TrainConfig(epochs=3, schedule=schedule, warmup=warmup)  # type: ignore[arg-type]
    np.testing.assert_allclose([learning_rate_factor(step, 2, config) for step in range(6)], expected, atol=1e-12)


@given(
    schedule=st.sampled_from(["cosine", "step", "constant"]),
    warmup=st.floats(0, 10),
    epochs=st.integers(1, 20),
    steps=st.integers(1, 50),
)
def test_learning_rates_rise_once_and_fall(schedule: str, warmup: float, epochs: int, steps: int) -> None:
    config = TrainConfig(epochs=epochs, schedule=schedule, warmup=warmup)  # type: ignore[arg-type]
    factors = [learning_rate_factor(step, steps, config) for step in range(epochs * steps)]
    assert all(0 < f <= 1 for f in factors)
    top = int(np.argmax(factors))
    assert schedule == "step" or all(np.diff(factors[: top + 1]) >= 0)
    assert all(np.diff(factors[top:]) <= 1e-12)


# --- information of the maps ------------------------------------------------------------------------------------------


def test_the_information_of_maps_equals_the_loop() -> None:
    rng = np.random.default_rng(0)
    maps, class_maps = rng.normal(0, 2, (2, 3, 4, 5, 6)), rng.normal(size=(2, 3, 5, 6))
    found = map_information(torch.from_numpy(maps), torch.from_numpy(class_maps), share=0.3)
    for b, c in np.ndindex(2, 3):
        top = np.argsort(class_maps[b, c].ravel())[-9:]  # 0.3 of 30 regions
        z = maps[b, c].reshape(4, 30)[:, top]
        joint = softmax(z, axis=0) / 9  # of map and region, all regions alike
        expected = sum(
            joint[m, i] * math.log(joint[m, i] / (joint[m].sum() * joint[:, i].sum())) for m, i in np.ndindex(4, 9)
        )
        assert float(found[b, c]) == pytest.approx(expected, abs=1e-12)


def test_information_is_highest_where_the_maps_share_the_regions_and_zero_where_they_are_alike() -> None:
    divided = torch.zeros(1, 1, 4, 2, 2)
    for m in range(4):
        divided[0, 0, m, m // 2, m % 2] = 50.0
    alike, one = torch.zeros(1, 1, 4, 2, 2), torch.zeros(1, 1, 4, 2, 2)
    one[:, :, 2] = 50.0  # explains every region
    level = torch.zeros(1, 1, 2, 2)
    assert float(map_information(divided, level, share=1.0)) == pytest.approx(math.log(4))
    for maps in (alike, one):
        assert float(map_information(maps, level, share=1.0)) == pytest.approx(0, abs=1e-6)


def test_information_does_not_move_the_mean_of_the_maps() -> None:
    maps = torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.double).requires_grad_()
    map_information(maps, maps.detach().mean(dim=2)).sum().backward()
    assert maps.grad is not None and float(maps.grad.abs().max()) > 1e-3
    torch.testing.assert_close(maps.grad.sum(dim=2), torch.zeros(2, 3, 5, 6, dtype=torch.double), atol=1e-12, rtol=0)


# --- parameter groups -----------------------------------------------------------------------------------------------


def test_groups_of_a_fine_tuned_network() -> None:
    config = TrainConfig(backbone="test_resnet", weights="none", lr=0.5, backbone_lr_scale=0.08, weight_decay=0.3)
    model = create_model("test_resnet", 2, pretrained=False)
    names = {id(p): name for name, p in model.named_parameters()}
    seen = {}
    for group in parameter_groups(model, config):
        for parameter in group["params"]:  # type: ignore[attr-defined]
            assert id(parameter) not in seen
            seen[id(parameter)] = (group["peak_lr"], group["weight_decay"])
    assert seen.keys() == names.keys(), "every parameter is in exactly one group"
    matrices = {id(m.weight) for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    assert 0 < len(matrices) < len(names)
    for key, name in names.items():
        lr = 0.01 if name.startswith("backbone") else 0.5 * 96**0.5 if name == "transfer.bias" else 0.5  # D = 96
        assert seen[key] == (lr, 0.3 if key in matrices else 0.0), name


@pytest.mark.parametrize("class_pool", ["mean", "max", "lse", "softmax"])
def test_a_step_moves_the_class_map_as_it_moves_a_single_map(class_pool: ClassPool) -> None:
    """The default rate and decay suit each pooling: M alike maps with the mean, one map far above the others else."""
    features = torch.randn(2, 96, 3, 3, generator=torch.Generator().manual_seed(0))

    def class_maps_after_a_step(num_maps: int, offsets: Tensor) -> Tensor:
        config = TrainConfig(num_maps=num_maps, class_pool=class_pool, backbone="test_resnet", tune="head")
        model = model_from_config(config, 1, weights="none")
        with torch.no_grad():
            model.transfer.weight.copy_(torch.linspace(-1, 1, 96)[None, :, None, None].expand_as(model.transfer.weight))
            model.transfer.bias.copy_(offsets)
        optimizer = create_optimizer(model, config)
        multilabel_loss(model.training_output(features).scores, -torch.ones(2, 1)).sum().backward()
        optimizer.step()
        return model.head(features).class_maps

    offsets, height = torch.tensor([-100.0, 5.0, -100.0]), 5.0
    if class_pool == "mean":
        offsets, height = torch.zeros(3), 0.0
    elif class_pool == "lse":
        height -= math.log(3) / TrainConfig().class_sharpness  # of one map among three
    found, expected = class_maps_after_a_step(3, offsets), class_maps_after_a_step(1, torch.tensor([height]))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_the_rate_falls_towards_the_first_layers() -> None:
    model = create_model("test_resnet", 2, pretrained=False)
    config = TrainConfig(lr=0.4, backbone_lr_scale=0.1, layer_decay=0.5)
    groups = parameter_groups(model, config)
    rate = {id(p): group["peak_lr"] for group in groups for p in group["params"]}  # type: ignore[attr-defined]
    names = ("conv1.0", "layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv1", "layer4.0.conv1")
    first, *rest = rates = [rate[id(model.backbone.network.get_parameter(f"{name}.weight"))] for name in names]
    assert all(later == pytest.approx(2 * earlier) for earlier, later in zip(rates, rest, strict=False)), rates
    assert first > 0 and rates[-1] <= 0.4 / config.num_maps * 0.1


def test_groups_of_a_head() -> None:
    model = create_model("test_resnet", 2, pretrained=False)
    config = TrainConfig(tune="head", lr=0.5)
    groups = parameter_groups(model, config)
    assert [[id(p) for p in g["params"]] for g in groups] == [[id(model.transfer.weight)], [id(model.transfer.bias)]]  # type: ignore[attr-defined]
    frozen = parameter_groups(model, TrainConfig(lr=0.5, backbone_lr_scale=0.0))
    assert len(frozen) == 2, "a backbone with learning rate 0 is not stepped"


def test_the_optimiser_is_sgd_with_momentum() -> None:
    """v <- momentum v + (g + decay w); w <- w - lr v, by hand over two steps."""
    model = create_model("test_resnet", 1, num_maps=1, pretrained=False)
    optimizer = create_optimizer(model, TrainConfig(tune="head", lr=0.1, momentum=0.9, weight_decay=0.01))
    weight = model.transfer.weight.detach().clone()
    velocity = torch.zeros_like(weight)
    for _ in range(2):
        optimizer.zero_grad()
        model.transfer.weight.grad = torch.ones_like(weight)
        optimizer.step()
        velocity = 0.9 * velocity + 1 + 0.01 * weight
        weight = weight - 0.1 * velocity
        torch.testing.assert_close(model.transfer.weight.detach(), weight)
