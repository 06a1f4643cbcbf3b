"""What is minimised and how: losses that leave "difficult" labels out, parameter groups, learning-rate schedules."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from wildcat.config import TrainConfig
from wildcat.nn.model import Wildcat


def multilabel_loss(scores: Tensor, labels: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Multi-label soft-margin loss: binary cross-entropy of each class against its absence, averaged over the labels.

    Args:
        scores: (B, C) logits.
        labels: (B, C) of 1 present, 0 ignored, -1 absent; ignored ones (VOC "difficult") add neither loss nor gradient.
        class_weights: (C,) weight of the present labels of a class.

    Returns:
        Scalar, the mean over all labels that are not ignored.
    """
    known = labels != 0
    losses = functional.binary_cross_entropy_with_logits(
        scores, (labels > 0).to(scores.dtype), reduction="none", pos_weight=class_weights
    )
    return (losses * known).sum() / known.sum().clamp(min=1)


def multiclass_loss(scores: Tensor, labels: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Cross-entropy, 0 of no images. `scores` (B, C) logits; `labels` (B, C), one 1 a row; `class_weights` (C,)."""
    losses = functional.cross_entropy(scores, labels.argmax(dim=1), weight=class_weights, reduction="sum")
    return losses / loss_mass(labels, multiclass=True, class_weights=class_weights).clamp(min=1e-12)


def loss_mass(labels: Tensor, multiclass: bool, class_weights: Tensor | None = None) -> Tensor:
    """What the mean of a batch's loss is taken over: scalar, its known labels, or the class weights of its images.

    Weighted by it, the losses of several batches average to the loss of all of them in one.
    """
    if not multiclass:
        return (labels != 0).sum()
    if class_weights is None:
        return torch.tensor(float(len(labels)))
    return class_weights[labels.argmax(dim=1)].sum()


def class_frequencies(labels: Tensor) -> Tensor:
    """(N, C) labels -> (C,) share of images with the class, ignored labels apart, inside (0, 1) by Laplace's rule."""
    present, known = (labels > 0).sum(dim=0), (labels != 0).sum(dim=0)
    return (present + 1) / (known + 2)


def balancing_weights(frequencies: Tensor, multiclass: bool) -> Tensor:
    """(C,) frequencies -> (C,) loss weights that make rare classes count as much as common ones.

    Multi-class: inverse frequency, mean one over the images. Multi-label: absent to present, at most 100.
    """
    if multiclass:
        inverse = 1 / frequencies
        return inverse / (inverse * frequencies).sum()
    return ((1 - frequencies) / frequencies).clamp(max=100)


def parameter_groups(model: Wildcat, config: TrainConfig) -> list[dict[str, object]]:
    """Parameters in groups with their peak learning rate; biases and normalisation layers have no weight decay.

    The transfer layer learns at M times `peak_lr`: each of the M maps of a class receives 1/M of the class map's
    gradient (eq. 1), so that their mean, which is all a score depends on, would otherwise move M times slower. Its
    weight decay is an M-th, since decay goes with the rate: the mean moves and decays as a single map's weights would.
    """
    groups: list[dict[str, object]] = []
    rate, maps = config.peak_lr, model.num_maps
    parts: list[tuple[nn.Module, float, float]] = [
        (model.transfer, rate * maps, config.weight_decay / maps),
        (model.pool, rate, config.weight_decay),
    ]
    if config.tune == "all":
        parts.append((model.backbone, rate * config.backbone_lr_scale, config.weight_decay))
    for module, rate, weight_decay in parts:
        trained = [p for p in module.parameters() if p.requires_grad]
        matrices = [p for p in trained if p.ndim > 1]
        vectors = [p for p in trained if p.ndim <= 1]
        for parameters, decay in ((matrices, weight_decay), (vectors, 0.0)):
            if parameters and rate > 0:
                groups.append({"params": parameters, "lr": rate, "peak_lr": rate, "weight_decay": decay})
    return groups


def create_optimizer(model: Wildcat, config: TrainConfig) -> torch.optim.Optimizer:
    """SGD with momentum over `parameter_groups`, one pass over each weight."""
    return torch.optim.SGD(parameter_groups(model, config), lr=config.peak_lr, momentum=config.momentum, fused=True)


def learning_rate_factor(step: int, steps_per_epoch: int, config: TrainConfig) -> float:
    """Part of the peak learning rate at optimiser step `step` (from 0): linear warm-up, then the schedule.

    `cosine` falls towards zero, which it would reach one step after the last, `step` divides by 10 after each third of
    the epochs, `constant` stays.
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


def adopt_optimizer_state(optimizer: torch.optim.Optimizer, state: Any) -> None:
    """Take up an optimiser's state that was read from a file.

    Raises:
        KeyError, TypeError, ValueError: it is not of an optimiser like this one.
    """
    own = [{k: type(v) for k, v in group.items()} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    if [{k: type(v) for k, v in group.items()} for group in optimizer.param_groups] != own:
        raise ValueError("other settings")
    for weights, kept in optimizer.state.items():
        if any(isinstance(v, Tensor) and v.shape not in (weights.shape, ()) for v in kept.values()):
            raise ValueError("other shapes")
