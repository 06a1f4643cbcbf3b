"""Batch normalisation: running statistics that are frozen, or estimated from new images, or shared by several GPUs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from wildcat.errors import ConfigError


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
            with single_values_refused(len(inputs)):
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


@contextlib.contextmanager
def single_values_refused(images: int) -> Iterator[None]:
    """Turn the error of batch normalisation that has one value per channel to train on into one sentence.

    Raises:
        ConfigError: says how to give it more.
    """
    try:
        yield
    except ValueError as error:
        if "Expected more than 1 value per channel" not in str(error):
            raise
        raise ConfigError(
            f"batch normalisation cannot train on a batch of {images} image of this size: it needs more than one value "
            "per channel.",
            "Give --batch-size 2 or more for each process, or a larger --image-size; the statistics of pretrained "
            "weights (--freeze-bn) need neither.",
        ) from error
