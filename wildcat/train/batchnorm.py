"""Batch normalisation: running averages learned anew, and averages over the images of several processes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextlib.contextmanager
def relearning_norms(model: nn.Module) -> Iterator[None]:
    """Batch normalisation starts its running averages anew, as plain averages over the batches that follow.

    Training normalises by the batch, evaluation by running averages. Those of ImageNet may be far from the images at
    hand (grey ones, say): features would change their scale between the two, and the first epochs be wasted on it.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    model.train()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def synchronise_norms(model: nn.Module, device: torch.device) -> bool:
    """Let batch normalisation average over the images of all processes; whether the model has any.

    Parameters, running averages and their names stay as they are. On GPUs it is torch's own that does it.
    """
    norms = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, _BatchNorm)
    ]
    for parent, name, norm in norms:
        shared = convert_sync_batchnorm(norm) if device.type == "cuda" else SharedNorm.of(norm)  # type: ignore[no-untyped-call]  # timm leaves it untyped
        setattr(parent, name, shared)
    return bool(norms)


class SharedNorm(nn.BatchNorm2d):
    """Batch normalisation by the mean and spread of what all processes see, for any device; torch's is for GPUs.

    A process may see more than another, or nothing: what counts is the values, not the processes.
    """

    @classmethod
    def of(cls, norm: nn.Module) -> SharedNorm:
        """It with the parameters and averages of `norm`, and what follows in timm's layers (drop and act)."""
        shared = cls.__new__(cls)
        shared.__dict__.update(norm.__dict__)
        return shared

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, ...) -> the same shape; B may be 0."""
        y = self._normalised(x) if self.training else super().forward(x)
        for name in ("drop", "act"):
            if name in self._modules:
                y = getattr(self, name)(y)
        return y

    def _normalised(self, x: Tensor) -> Tensor:
        others = [d for d in range(x.ndim) if d != 1]
        shape = [1, -1, *[1] * (x.ndim - 2)]
        values = x.float()
        here = values.new_tensor([x.numel() // x.shape[1]])
        sums = _Sum.apply(torch.cat([values.sum(dim=others), here]))
        mean, count = sums[:-1] / sums[-1], sums[-1].detach()
        centred = values - mean.view(shape)
        variance = _Sum.apply(centred.square().sum(dim=others)) / count  # about the mean: squares alone would cancel
        self._average(mean.detach(), variance.detach(), float(count))
        y: Tensor = centred * (variance + self.eps).rsqrt().view(shape)
        if self.weight is not None:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(x.dtype)

    @torch.no_grad()
    def _average(self, mean: Tensor, variance: Tensor, count: float) -> None:
        """Take the batch into the running averages, as `torch.nn.BatchNorm2d` does."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        part = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, part)
        self.running_var.lerp_(variance * (count / max(count - 1, 1)), part)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions."""


class _Sum(torch.autograd.Function):
    """A sum over processes, whose gradient is the sum of theirs: torch has none that is both public and kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        distributed.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Sum.apply(gradient.contiguous())  # type: ignore[no-any-return]  # torch leaves it untyped
