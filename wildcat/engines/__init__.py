"""Engines that compute a backbone's features: torch, torch.compile, onnxruntime or OpenVINO.

An engine is one function, images (B, 3, S, S) -> features (B, D, h, w): nearly all of the cost. The layers after it
(1x1 convolution and pooling, about 1 %) run in torch in full precision, so every head, mirrored view and modality map
works with any engine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from wildcat.config import EngineName, Precision
from wildcat.device import bf16_is_native
from wildcat.engines.graph_cache import calibrate_int8, fp32_graph, int8_graph
from wildcat.engines.onnx_graph import EXACT, probe, relative_error
from wildcat.engines.runtimes import PRECISIONS, check_runtime, open_onnxruntime, open_openvino
from wildcat.engines.torch_backend import fold, open_compiled, open_torch
from wildcat.errors import ConfigError, EngineError, did_you_mean
from wildcat.nn.backbones import Backbone

__all__ = ["PRECISIONS", "Engine", "calibrate_int8", "fold", "open_engine"]

ROUGH = 0.5  # largest relative error of features in bf16 or int8; those of another network differ by about 1.4


@dataclass(frozen=True)
class Engine:
    """Computes the features of one backbone.

    Attributes:
        features: (B, 3, S, S) float32 images -> (B, D, h, w) float32 features, on the device of the images.
    """

    name: EngineName
    precision: Precision
    features: Callable[[Tensor], Tensor]


def open_engine(name: EngineName, precision: Precision, backbone: Backbone, size: int, device: torch.device) -> Engine:
    """Open an engine for a backbone and compare its features with torch's on an image.

    Args:
        name: "torch", "compile" (torch.compile), "onnx" or "openvino".
        precision: "fp32", "bf16" or "int8", see `PRECISIONS`; int8 needs a graph made by `calibrate_int8`.
        size: side of the images in pixels; torch takes any other as well.

    Raises:
        ConfigError: no such engine, or not in this precision.
        MissingExtra: its package is not installed.
        EngineError: it cannot run this network or device, its features differ from torch's, or the device has no bf16
            instructions for that precision.
    """
    if name not in PRECISIONS:
        raise ConfigError(
            f"there is no engine {name!r}.", did_you_mean(name, PRECISIONS) or "Give torch, compile, onnx or openvino."
        )
    if precision not in PRECISIONS[name]:
        raise ConfigError(f"{name} has no precision {precision}.", f"It has: {', '.join(PRECISIONS[name])}.")
    if precision == "bf16" and not bf16_is_native(device):
        raise EngineError(
            f"this {device.type.upper()} has no bf16 instructions: bf16 would be several times slower than fp32.",
            "Leave --precision out, or give fp32.",
        )
    if name == "torch":
        return Engine(name, precision, open_torch(backbone, precision, device))
    if name == "compile":
        engine = Engine(name, precision, open_compiled(backbone, precision, device, size))
        return _accepted(engine, _error(engine, backbone, probe(size, 2, seed=2).to(device)), "Use --engine torch.")
    check_runtime(name, device)
    remedy = "Create its graph again: wildcat bench RUN IMAGES." if precision == "int8" else "Use --engine torch."
    for again in (False, True):
        try:
            # int8 is compared on a real image: random ones may lie outside the calibrated ranges.
            if precision == "int8":
                graph, images = int8_graph(backbone, size)
            else:
                graph, images = fp32_graph(backbone, size, again), probe(size, seed=2)
            runs = open_onnxruntime(graph, device) if name == "onnx" else open_openvino(graph, precision)
            engine = Engine(name, precision, runs)
            error = _error(engine, backbone, images.to(device))
        except (ConfigError, EngineError, ImportError):
            raise
        except Exception as reason:  # the cached graph is damaged; each runtime raises types of its own for that
            if again:
                what = (str(reason).strip().splitlines() or [type(reason).__name__])[0]
                raise EngineError(f"{name} cannot run this network in {precision}: {what}.", remedy) from reason
            continue
        if error <= _tolerance(precision):
            break
    return _accepted(engine, error, remedy)


def _error(engine: Engine, backbone: Backbone, images: Tensor) -> float:
    with torch.inference_mode():
        return relative_error(engine.features(images), backbone(images))


def _accepted(engine: Engine, error: float, remedy: str) -> Engine:
    """The engine, if its features are those of torch up to rounding."""
    if error > _tolerance(engine.precision):
        raise EngineError(
            f"{engine.name} in {engine.precision} gives features that differ from torch's "
            f"by {error:.0%} of their size.",
            remedy,
        )
    return engine


def _tolerance(precision: Precision) -> float:
    return EXACT if precision == "fp32" else ROUGH
