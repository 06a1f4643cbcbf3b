"""Batch normalisation: running statistics that are frozen, or estimated from new images, or shared by several GPUs."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def estimate_running_statistics(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace the running mean and variance of every batch normalisation by plain averages over `batches`.

    Training normalises by the batch, evaluation by running averages. Those of ImageNet may be far from the images at
    hand (grey ones, for example): the features would change their scale between training and evaluation, and the first
    epochs would be spent on adapting to it. A network without batch normalisation is left alone.

    Args:
        batches: inputs of the network, on its device.
    """
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return
    momenta, training = [norm.momentum for norm in norms], network.training
    network.train()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches
    try:
        for inputs in batches:
            network(inputs)
    finally:
        network.train(training)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def freeze_batchnorm(network: nn.Module) -> None:
    """Let every batch normalisation of a network in training mode use its running statistics, and leave them."""
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


def synchronize_batchnorm(module: nn.Module) -> None:
    """Let every batch normalisation of a module on GPUs average over the images of all processes, in place."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm):
                setattr(parent, name, convert_sync_batchnorm(child))  # type: ignore[no-untyped-call]  # untyped in timm
