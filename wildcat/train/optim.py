"""Losses that ignore "difficult" labels, the metric that chooses an epoch, the optimiser, learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from timm.optim import param_groups_layer_decay  # type: ignore[attr-defined]  # timm does not list its exports
from torch import Tensor
from torch.nn import functional

from wildcat.config import TrainConfig
from wildcat.data.dataset import PRESENT
from wildcat.metrics import mean_average_precision, multiclass_accuracy
from wildcat.nn.model import Wildcat
from wildcat.nn.pooling import region_count

MOST_WEIGHT = 100.0  # of a rare class's image: with more, a single one moves the weights too far in a step


def multilabel_loss(scores: Tensor, labels: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Binary cross-entropy of each class against its absence, summed over the classes.

    Args:
        scores: (B, C) logits.
        labels: (B, C) of 1 present, 0 ignored (VOC "difficult"), -1 absent; ignored labels add no loss, no gradient.
        class_weights: (C,) weights of the present labels.

    Returns:
        (B,), one loss per image.
    """
    losses = functional.binary_cross_entropy_with_logits(
        scores, (labels > 0).to(scores.dtype), reduction="none", pos_weight=class_weights
    )
    return (losses * (labels != 0)).sum(dim=1)


def multiclass_loss(scores: Tensor, labels: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Cross-entropy: (B, C) logits, (B, C) labels with one 1 in each row, (C,) weights -> (B,), one loss per image."""
    return functional.cross_entropy(scores, labels.argmax(dim=1), weight=class_weights, reduction="none")


def map_information(maps: Tensor, class_maps: Tensor, share: float = 0.2) -> Tensor:
    """Mutual information between the top regions of each class map and the M maps of the class, in nats.

    Map m of a class has at a region the probability p_m = softmax(z)_m of being the one that explains it. Over the
    regions of an image, H(mean p) - mean H(p) is highest, log M, where each region belongs to one map and each map has
    as many regions (Krause, Perona & Gomes, Discriminative clustering by regularized information maximization, NeurIPS
    2010). p does not change when all M values do, so the gradient leaves the mean of the maps as it is.

    Args:
        maps: (B, C, M, h, w). class_maps: (B, C, h, w).
        share: of the regions, those where the class map is highest.

    Returns:
        (B, C), from 0 to log M.
    """
    regions = class_maps.flatten(2)  # (B, C, n)
    top = regions.topk(region_count(share, regions.shape[-1]), dim=-1, sorted=False).indices
    chosen = maps.flatten(3).gather(3, top[:, :, None].expand(-1, -1, maps.shape[2], -1))  # (B, C, M, k)
    log_prob = chosen.log_softmax(dim=2)
    conditional = -(log_prob.exp() * log_prob).sum(dim=2).mean(dim=-1)
    log_mean = log_prob.logsumexp(dim=-1) - math.log(log_prob.shape[-1])  # (B, C, M)
    return -(log_mean.exp() * log_mean).sum(dim=2) - conditional


def with_background(labels: Tensor) -> Tensor:
    """(B, C) labels -> (B, C + 1): the background, last, is present in every image."""
    return torch.cat([labels, torch.full_like(labels[:, :1], PRESENT)], dim=1)


def class_frequencies(present: Tensor, absent: Tensor) -> Tensor:
    """(C,) images with and without each class -> (C,) share of those with it, in (0, 1) by Laplace's rule."""
    return (present + 1) / (present + absent + 2)


def balancing_weights(present: Tensor, absent: Tensor, multiclass: bool) -> Tensor:
    """(C,) images with and without each class -> (C,) loss weights that make rare classes count as much as common ones.

    Multi-class: inverse frequency, at most `MOST_WEIGHT` times that of the most common class, with mean one over the
    images. Multi-label: absent / present, at most `MOST_WEIGHT`.
    """
    frequencies = class_frequencies(present, absent)
    if multiclass:
        inverse = (1 / frequencies).clamp(max=MOST_WEIGHT / float(frequencies.max()))
        return inverse * present.sum() / (inverse * present).sum()
    return ((1 - frequencies) / frequencies).clamp(max=MOST_WEIGHT)


def parameter_groups(model: Wildcat, config: TrainConfig) -> list[dict[str, object]]:
    """Trained parameters in groups with their peak learning rates.

    The layers after the backbone have `lr`. The last layer of the backbone has `backbone_lr_scale` times the rate of a
    class map, `lr / gradient_shares`, and each layer before it `layer_decay` times the rate of the next one. Biases and
    normalisation layers have no weight decay, nor have the layers of a pooling with `decays = False`.

    The bias of the transfer layer has sqrt(D) times the rate, for D features: standardised features have length
    sqrt(D), the constant that the bias multiplies has length 1. At the same rate the bias would stay at the prior, and
    with it the zero level of the maps, from which masks are drawn.
    """
    groups: list[dict[str, object]] = []

    def add(parameters: Sequence[Tensor], lr: float, weight_decay: float) -> None:
        if parameters and lr > 0:
            groups.append({"params": parameters, "lr": lr, "peak_lr": lr, "weight_decay": weight_decay})

    add([model.transfer.weight], config.peak_lr, config.decay)
    add([model.transfer.bias], config.peak_lr * model.backbone.num_features**0.5, 0.0)
    pool, decays = list(model.pool.parameters()), getattr(model.pool, "decays", True)
    add([p for p in pool if p.ndim > 1 and decays], config.peak_lr, config.decay)
    add([p for p in pool if p.ndim <= 1 or not decays], config.peak_lr, 0.0)
    if config.tune != "head":
        for group in param_groups_layer_decay(model.backbone.network, config.decay, layer_decay=config.layer_decay):
            lr = config.peak_lr / config.gradient_shares * config.backbone_lr_scale * group["lr_scale"]
            add(group["params"], lr, group["weight_decay"])
    return groups


def create_optimizer(model: Wildcat, config: TrainConfig) -> torch.optim.Optimizer:
    """SGD with momentum over `parameter_groups`."""
    return torch.optim.SGD(parameter_groups(model, config), lr=config.peak_lr, momentum=config.momentum, fused=True)


def learning_rate_factor(step: int, steps_per_epoch: int, config: TrainConfig) -> float:
    """Factor of the peak learning rate at optimiser step `step` (from 0): linear warm-up, then the schedule.

    `cosine` falls towards zero, which it would reach one step after the last; `step` divides by 10 after each third of
    the epochs; `constant` stays.
    """
    total = max(1, steps_per_epoch * config.epochs)
    warmup = min(config.warmup, config.epochs / 2) * steps_per_epoch
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "step":
        return float(0.1 ** (3 * step // total))
    progress = (step - warmup) / max(1.0, total - warmup)
    return 0.5 * (1 + math.cos(math.pi * progress))


def metric_name(multiclass: bool) -> str:
    """The name of `validation_metric`."""
    return "accuracy" if multiclass else "map"


def validation_metric(scores: Tensor, labels: Tensor, multiclass: bool) -> float:
    """Accuracy of (N, C) scores for multi-class data, otherwise mean all-point AP (0 where undefined)."""
    if multiclass:
        return multiclass_accuracy(scores.numpy(), (labels == PRESENT).int().argmax(dim=1).numpy())
    value = mean_average_precision(scores.numpy(), labels.numpy(), "voc10")[0]
    return float(np.nan_to_num(value))


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: Any) -> None:
    """Load an optimiser's state that was read from a file.

    Raises:
        KeyError, TypeError, ValueError: it belongs to another optimiser.
    """
    own = [{k: type(v) for k, v in group.items()} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    if [{k: type(v) for k, v in group.items()} for group in optimizer.param_groups] != own:
        raise ValueError("other settings")
    for weights, values in optimizer.state.items():
        if any(isinstance(v, Tensor) and v.shape not in (weights.shape, ()) for v in values.values()):
            raise ValueError("other shapes")
