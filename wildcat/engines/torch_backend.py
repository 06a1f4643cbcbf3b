"""Torch as an engine: batch normalisation folded into the convolutions before it, channels last; compiled if asked."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from wildcat.config import Precision
from wildcat.engines.onnx_graph import EXACT, probe, relative_error
from wildcat.errors import EngineError
from wildcat.nn.backbones import Backbone

COMPILER = "inductor"
"""torch.compile's backend."""

CHECK_SIDE = 64
"""Pixels of the image on which folding is checked: it is exact at any size, and small ones cost nothing."""


def open_torch(backbone: Backbone, precision: Precision, device: torch.device) -> Callable[[Tensor], Tensor]:
    """(B, 3, H, W) -> (B, D, h, w) features of any image size, by torch.

    Raises:
        EngineError: int8, which torch does not do here.
    """
    if precision == "int8":
        raise EngineError("torch has no int8 here.", "Give --engine openvino or onnx, or --precision bf16.")
    network = fold(backbone).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return _features_of(network, precision, device)


def _features_of(
    network: Callable[[Tensor], Tensor], precision: Precision, device: torch.device
) -> Callable[[Tensor], Tensor]:
    """A network as an engine runs it: images channels last, in bfloat16 if asked, features in float32."""

    def features(images: Tensor) -> Tensor:
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            found = network(images)
        return found.float()

    return features


def open_compiled(
    backbone: Backbone, precision: Precision, device: torch.device, size: int
) -> Callable[[Tensor], Tensor]:
    """As `open_torch`, by torch.compile, for any number of images: some minutes of compiling, then faster.

    Raises:
        EngineError: it cannot be compiled here; on a CPU that takes a C++ compiler.
    """
    network = fold(backbone).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    compiled = torch.compile(network, dynamic=True, backend=COMPILER)
    features: Callable[[Tensor], Tensor] = torch.inference_mode()(_features_of(compiled, precision, device))
    try:
        features(probe(size, 2).to(device))  # one image would be taken for the only number there is
    except Exception as error:  # the compiler raises kinds of its own, and those of the C++ compiler it calls
        inner = getattr(error, "inner_exception", error)  # what the backend raised
        reason = (str(inner).strip().splitlines() or [type(inner).__name__])[0]
        raise EngineError(
            f"torch cannot compile {backbone.name} here: {reason}.",
            "It needs a C++ compiler on a CPU, and Triton on a GPU; or use --engine torch.",
        ) from error
    return features


def fold(backbone: Backbone) -> Backbone:
    """A copy for inference whose convolutions do what the batch normalisation after them did: a pass less each.

    The backbone itself comes back where it has nothing to fold, or where its code cannot be followed without running
    it (some transformers), or where the copy would not compute the same.
    """
    if not any(isinstance(module, _BatchNorm) for module in backbone.modules()):
        return backbone
    try:
        folded = Backbone(backbone.name, _Folded(backbone.network))
        images = probe(CHECK_SIDE).to(next(backbone.parameters()).device)
        with torch.inference_mode():
            same = relative_error(folded(images), backbone(images)) <= EXACT
    except Exception:  # tracing raises anything on code it cannot follow; the network itself works
        return backbone
    return folded if same else backbone


class _Folded(nn.Module):
    """A timm network's features, traced and folded, under the names by which `Backbone` knows them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.pretrained_cfg: Any = network.pretrained_cfg
        self.num_features: Any = network.num_features
        self.output_fmt = getattr(network, "output_fmt", "NCHW")
        self.num_prefix_tokens: Any = getattr(network, "num_prefix_tokens", 0)
        self.graph = fold_graph(_Features(copy.deepcopy(network).eval()))

    def forward_features(self, images: Tensor) -> Tensor:
        features: Tensor = self.graph(images)
        return features


class _Features(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.network.forward_features(images)  # type: ignore[operator]  # every timm model has it
        return features


class _Tracer(fx.Tracer):
    """Convolutions (some compute their padding from the image's size) and normalisations stay whole."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, (nn.Conv2d, _BatchNorm)) or super().is_leaf_module(module, name)


def fold_graph(network: nn.Module) -> fx.GraphModule:
    """Trace a network in evaluation mode and fold each normalisation whose only input is a convolution's output."""
    graph = fx.GraphModule(network, _Tracer().trace(network))
    modules = dict(graph.named_modules())
    for node in graph.graph.nodes:
        norm = modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(norm, _BatchNorm):
            continue
        before = node.args[0]
        conv = modules.get(str(before.target)) if before.op == "call_module" else None
        if not isinstance(conv, nn.Conv2d) or len(before.users) > 1:
            continue
        graph.set_submodule(str(before.target), fuse_conv_bn_eval(conv, norm))
        # timm's normalisations bring dropout and activation along.
        rest = [part for part in (getattr(norm, "drop", None), getattr(norm, "act", None)) if part is not None]
        graph.set_submodule(str(node.target), nn.Sequential(*rest))
    graph.recompile()
    return graph.eval()
