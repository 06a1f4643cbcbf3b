"""Batch normalisation (statistics that are frozen, estimated anew, or shared by GPUs), and bfloat16 on a CPU."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.norm_act import BatchNormAct2d, convert_sync_batchnorm
from timm.layers.padding import pad_same
from torch import Tensor, nn
from torch.fx.proxy import TraceError
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from wildcat.engines.torch_backend import normalised_convolutions
from wildcat.errors import ConfigError
from wildcat.nn.split import ForwardFeatures

log = logging.getLogger(__name__)


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


def fold_frozen_batchnorm(network: nn.Module) -> int:
    """Compute frozen batch normalisation inside the weights of the convolution before it; returns how many.

    With running statistics the normalisation is a scale and an offset per channel, `w / std` and `b - mean * w / std`:
    a convolution with these weights has the same outputs and the same gradients of all parameters, and saves two passes
    over its outputs and their memory. Parameters and state dict stay as they are. Normalisations that do not follow a
    convolution, and networks that cannot be traced, are left alone.

    Args:
        network: a timm network whose batch normalisations are and stay in evaluation mode.
    """
    try:
        pairs = [
            (conv, norm)
            for conv, norm in normalised_convolutions(ForwardFeatures(network))
            if type(conv) in (nn.Conv2d, Conv2dSame)
            and type(norm) in (nn.BatchNorm2d, BatchNormAct2d)
            and norm.affine
            and norm.track_running_stats
        ]
    except (TraceError, TypeError, NotImplementedError) as error:
        log.debug("frozen batch normalisation is not folded: %s", error)
        return 0
    for conv, norm in pairs:
        conv.forward = partial(_normalised_convolution, conv, norm)  # type: ignore[method-assign]
        norm.forward = partial(_after_normalisation, norm)  # type: ignore[method-assign]
    return len(pairs)


def _normalised_convolution(conv: nn.Conv2d, norm: Any, inputs: Tensor) -> Tensor:
    """(B, D, h, w) -> the convolution's outputs, normalised by running statistics."""
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    offset = norm.bias - norm.running_mean * scale
    if conv.bias is not None:
        offset = offset + conv.bias * scale
    outputs = _convolve(conv, inputs, conv.weight * scale[:, None, None, None], offset.detach())
    normalised: Tensor = _BiasGradient.apply(outputs, offset)
    return normalised


def avoid_slow_gradients(network: nn.Module) -> None:
    """Let convolutions whose gradients are slow in bfloat16 on a CPU compute these in float32."""
    for conv in (module for module in network.modules() if isinstance(module, nn.Conv2d)):
        if type(conv) in (nn.Conv2d, Conv2dSame) and slow_in_bf16(conv) and "forward" not in vars(conv):
            conv.forward = partial(_convolution, conv)  # type: ignore[method-assign]


def slow_in_bf16(conv: nn.Conv2d) -> bool:
    """Whether oneDNN takes up to ten times as long for the gradients in bfloat16 as in float32."""
    return conv.groups > 1 and (max(conv.stride) > 1 or max(conv.kernel_size) > 3)


def _convolution(conv: nn.Conv2d, inputs: Tensor) -> Tensor:
    return _convolve(conv, inputs, conv.weight, conv.bias)


def _convolve(conv: nn.Conv2d, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    padding: Any = conv.padding
    outputs: Tensor
    if isinstance(conv, Conv2dSame):
        sides: dict[str, Any] = {"kernel_size": conv.kernel_size, "stride": conv.stride, "dilation": conv.dilation}
        inputs, padding = pad_same(inputs, **sides), (0, 0)  # timm's types want lists
    layout = conv.stride, padding, conv.dilation, conv.groups
    if conv.padding_mode != "zeros" or isinstance(padding, str):
        outputs = conv._conv_forward(inputs, weight, bias)
    elif inputs.device.type == "cpu" and torch.is_autocast_enabled("cpu") and slow_in_bf16(conv):
        outputs = _Float32Gradients.apply(inputs, weight, bias, layout)
    else:
        outputs = functional.conv2d(inputs, weight, bias, *layout)
    return outputs


class _Float32Gradients(torch.autograd.Function):
    """A convolution that is computed as autocast says, and its gradients in float32."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, layout: tuple[Any, ...]) -> Tensor:
        inputs = inputs.to(torch.get_autocast_dtype("cpu"))  # what is kept for the gradient of the weight
        ctx.save_for_backward(inputs, weight)
        ctx.layout, ctx.bias_sizes = layout, None if bias is None else bias.shape
        return functional.conv2d(inputs, weight, bias, *layout)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.layout
        found = torch.ops.aten.convolution_backward(
            *(tensor.float() for tensor in (gradient, inputs, weight)),
            *(ctx.bias_sizes, stride, padding, dilation, False, (0, 0), groups, ctx.needs_input_grad[:3]),
        )
        return (*found, None)


def _after_normalisation(norm: _BatchNorm, inputs: Tensor) -> Tensor:
    """Dropout and activation, which a normalisation of timm contains."""
    outputs: Tensor = norm.act(norm.drop(inputs)) if isinstance(norm, BatchNormAct2d) else inputs
    return outputs


class _BiasGradient(torch.autograd.Function):
    """Outputs of a layer that has added the bias -> the same; the bias gets its gradient here.

    oneDNN computes the gradient of a convolution's bias together with that of its weight, which takes up to half as
    long again as the weight alone; one sum takes a fifth.
    """

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, bias: Tensor) -> Tensor:
        ctx.mark_dirty(outputs)
        ctx.bias_dtype = bias.dtype
        return outputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient, gradient.sum(dim=(0, 2, 3), dtype=ctx.bias_dtype)


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
