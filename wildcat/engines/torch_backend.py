"""Torch as an engine: channels last, compiled on request; and folding batch normalisation into convolutions."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.padding import get_same_padding
from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from wildcat.config import Precision
from wildcat.engines.onnx_graph import EXACT, probe, relative_error
from wildcat.errors import EngineError
from wildcat.nn.backbones import Backbone, prefix_tokens
from wildcat.nn.split import ForwardFeatures, ForwardIntermediates

log = logging.getLogger(__name__)

COMPILER = "inductor"  # backend of torch.compile


def open_torch(
    backbone: Callable[[Tensor], Tensor], precision: Precision, device: torch.device
) -> Callable[[Tensor], Tensor]:
    """(B, 3, H, W) -> (B, D, h, w) features in float32, for any image size."""

    def features(images: Tensor) -> Tensor:
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            found = backbone(images)
        return found.float()

    return features


def open_compiled(
    backbone: Backbone, precision: Precision, device: torch.device, size: int
) -> Callable[[Tensor], Tensor]:
    """As `open_torch`, compiled by torch.compile for any batch size: takes minutes, then runs faster.

    Raises:
        EngineError: it cannot be compiled here; on a CPU that needs a C++ compiler.
    """
    compiled = torch.compile(backbone, dynamic=True, backend=COMPILER)
    features: Callable[[Tensor], Tensor] = torch.inference_mode()(open_torch(compiled, precision, device))
    try:
        features(probe(size, 2).to(device))  # with one image, the batch size would be compiled in as a constant
    except Exception as error:  # errors of the compiler and of the C++ compiler it calls have many types
        inner = getattr(error, "inner_exception", error)  # the error of the backend
        reason = (str(inner).strip().splitlines() or [type(inner).__name__])[0]
        raise EngineError(
            f"torch cannot compile {backbone.name} here: {reason}.",
            "It needs a C++ compiler on a CPU, and Triton on a GPU; or use --engine torch.",
        ) from error
    return features


def fold(backbone: Backbone, size: int, levels: bool = False) -> Backbone:
    """Fold batch normalisation into the convolutions before it, for inference: the same features in fewer passes.

    The result shares all other layers with `backbone`, which is not changed: keep only one of them. `backbone` itself
    is returned if there is nothing to fold, if its code cannot be traced (some transformers), or if the folded network
    would compute other features.

    Args:
        backbone: in evaluation mode.
        size: side in pixels of an image that it takes, for the comparison.
        levels: also fold `Backbone.levels`, which takes more memory than `forward` alone.
    """
    if not hasattr(backbone, "network") or not any(isinstance(module, _BatchNorm) for module in backbone.modules()):
        return backbone
    levels = levels and hasattr(backbone.network, "forward_intermediates")
    try:
        network = _FoldedLevels(backbone.network) if levels else _Folded(backbone.network)
        folded = type(backbone)(backbone.name, network, backbone.multiple).eval()
    except (TraceError, TypeError, NotImplementedError) as error:
        log.debug("%s is not folded: %s", backbone.name, error)
        return backbone
    images = probe(size).to(next(backbone.parameters()).device)
    with torch.no_grad():
        found, expected = ((one.levels(images) if levels else (one(images),)) for one in (folded, backbone))
        error_size = max(relative_error(a, b) for a, b in zip(found, expected, strict=True))
    if error_size > EXACT:
        log.debug("%s is not folded: its features would differ by %.1e", backbone.name, error_size)
        return backbone
    return folded


class _Folded(nn.Module):
    """A folded timm network, with the attributes that `Backbone` reads."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.pretrained_cfg: Any = network.pretrained_cfg
        self.num_features: Any = network.num_features
        self.output_fmt = getattr(network, "output_fmt", "NCHW")
        self.num_prefix_tokens = prefix_tokens(network)
        self.graph = fold_graph(self.traced(network))

    def traced(self, network: nn.Module) -> nn.Module:
        """The part of the network that is folded."""
        return ForwardFeatures(network)

    def forward_features(self, images: Tensor) -> Tensor:
        features: Tensor = self.graph(images)
        return features


class _FoldedLevels(_Folded):
    """The same with inner features."""

    def traced(self, network: nn.Module) -> nn.Module:
        return ForwardIntermediates(network)

    def forward_features(self, images: Tensor) -> Tensor:
        features: Tensor = self.graph(images)[0]
        return features

    def forward_intermediates(self, images: Tensor, output_fmt: str) -> tuple[Tensor, list[Tensor]]:
        """As timm's."""
        found: tuple[Tensor, list[Tensor]] = self.graph(images)
        return found


class _PointwiseConv2d(nn.Conv2d):
    """A 1x1 convolution that runs in oneDNN with one thread, too.

    For one thread and fewer than 16 images torch selects a kernel that takes a mobile network 1.4 to 1.6 times as long.
    """

    def forward(self, input: Tensor) -> Tensor:
        plain = input.device.type == "cpu" and input.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        if torch.compiler.is_compiling() or not plain or torch.is_grad_enabled() or torch.get_num_threads() > 1:
            return super().forward(input)
        return torch.mkldnn_convolution(input, self.weight, self.bias, (0, 0), self.stride, self.dilation, self.groups)


class _DepthwiseConv2dSame(Conv2dSame):
    """A depthwise convolution with TensorFlow's "same" padding that pads no copy of its input.

    With stride 2 and even sides it pads one row less above than below, and one column less on the left. A row and a
    column of zeros before the kernel make the padding equal on all sides, so that the convolution does it: the same
    outputs in half of the time.
    """

    def forward(self, x: Tensor) -> Tensor:
        plain = x.device.type == "cpu" and self.dilation == (1, 1) and not torch.compiler.is_compiling()
        totals = [get_same_padding(*side, 1) for side in zip(x.shape[2:], self.kernel_size, self.stride, strict=True)]
        extra = totals[0] % 2
        if not plain or totals[1] % 2 != extra:
            outputs: Tensor = super().forward(x)  # type: ignore[no-untyped-call]  # timm leaves it untyped
            return outputs
        weight = functional.pad(self.weight, (extra, 0, extra, 0))
        padding = [(total + extra) // 2 for total in totals]
        return functional.conv2d(x, weight, self.bias, self.stride, padding, groups=self.groups)


class _Tracer(fx.Tracer):
    """Does not trace into convolutions (some compute their padding from the image size) and normalisations."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, (nn.Conv2d, _BatchNorm)) or super().is_leaf_module(module, name)


def fold_graph(network: nn.Module) -> fx.GraphModule:
    """Trace a network in evaluation mode and fold each batch normalisation that is the only user of a convolution.

    The network is not changed: folded convolutions are new modules, all others are shared.
    """
    graph = fx.GraphModule(network, _Tracer().trace(network))
    for before, after in _convolutions_with_norms(graph):
        conv, norm = cast("nn.Conv2d", graph.get_submodule(before)), cast("_BatchNorm", graph.get_submodule(after))
        fused = fuse_conv_bn_eval(conv, norm)  # a copy
        pointwise = type(fused) is nn.Conv2d and fused.kernel_size == (1, 1) and fused.padding == (0, 0)
        if pointwise and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
            fused.__class__ = _PointwiseConv2d
        if type(fused) is Conv2dSame and fused.groups == fused.in_channels:
            fused.__class__ = _DepthwiseConv2dSame
        graph.set_submodule(before, fused)
        # A normalisation of timm contains dropout and activation.
        rest = [part for part in (getattr(norm, "drop", None), getattr(norm, "act", None)) if part is not None]
        graph.set_submodule(after, nn.Sequential(*rest))
    graph.recompile()
    return graph


def normalised_convolutions(network: nn.Module) -> list[tuple[nn.Conv2d, _BatchNorm]]:
    """Each convolution of a network whose outputs go to one batch normalisation and nowhere else, with that.

    Raises:
        TraceError, TypeError, NotImplementedError: the network's code cannot be traced.
    """
    graph = fx.GraphModule(network, _Tracer().trace(network))
    modules = dict(network.named_modules())
    return [(modules[conv], modules[norm]) for conv, norm in _convolutions_with_norms(graph)]


def _convolutions_with_norms(graph: fx.GraphModule) -> list[tuple[str, str]]:
    """Names of the convolutions, called once, that a batch normalisation is the only user of, and of the latter."""
    modules = dict(graph.named_modules())
    called = Counter(str(node.target) for node in graph.graph.nodes if node.op == "call_module")
    pairs = []
    for node in graph.graph.nodes:
        norm = modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(norm, _BatchNorm):
            continue
        before = node.args[0]
        conv = modules.get(str(before.target)) if before.op == "call_module" else None
        once = len(before.users) == called[str(before.target)] == called[str(node.target)] == 1
        if isinstance(conv, nn.Conv2d) and once:
            pairs.append((str(before.target), str(node.target)))
    return pairs
