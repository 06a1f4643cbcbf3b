"""What computes a backbone's features: torch, torch compiled, onnxruntime or OpenVINO.

An engine takes over the part that costs, images (B, 3, S, S) -> features (B, D, h, w). What follows (1x1 convolution,
poolings: a hundredth of the work) stays in torch, in full precision, so that every pooling, architecture, mirrored view
and the M modality maps come out of any engine, and nothing is written twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from wildcat.config import EngineChoice, EngineName, Precision
from wildcat.engines.graph_cache import calibrate_int8, fp32_graph, int8_graph, read_pick, write_pick
from wildcat.engines.onnx_graph import EXACT, probe, relative_error
from wildcat.engines.runtimes import PRECISIONS, check_runtime, open_onnxruntime, open_openvino
from wildcat.engines.torch_backend import open_compiled, open_torch
from wildcat.errors import ConfigError, EngineError, did_you_mean
from wildcat.nn.backbones import Backbone

__all__ = ["PRECISIONS", "Engine", "calibrate_int8", "open_engine", "read_pick", "write_pick"]

ROUGH = 0.5
"""Largest relative error of features in bf16 or int8 on an image; another network's are off by about 1.4."""


@dataclass(frozen=True)
class Engine:
    """What computes the features of one backbone.

    Attributes:
        features: (B, 3, S, S) float32 images -> (B, D, h, w) float32 features, on the images' device.
    """

    name: EngineName
    precision: Precision
    features: Callable[[Tensor], Tensor]


def open_engine(
    name: EngineChoice, precision: Precision, backbone: Backbone, size: int, device: torch.device
) -> Engine:
    """An engine for a backbone, checked against it on an image.

    Args:
        name: "torch", "compile" (torch.compile), "onnx", "openvino", or "auto": what `wildcat bench --pick` found here,
            whatever the precision.
        precision: "fp32", "bf16" or "int8", see `PRECISIONS`; int8 takes a graph that `calibrate_int8` has made.
        size: side of the images in pixels; torch takes any other as well.

    Raises:
        ConfigError: no such engine, or not in this precision.
        MissingExtra: its package is not installed.
        EngineError: it cannot run this network or device, or gives other features than the network does.
    """
    if name == "auto":
        name, precision = read_pick(backbone, size, device.type)
    if name not in PRECISIONS:
        raise ConfigError(
            f"there is no engine {name!r}.",
            did_you_mean(name, PRECISIONS) or "Give torch, compile, onnx, openvino or auto.",
        )
    if precision not in PRECISIONS[name]:
        raise ConfigError(f"{name} has no precision {precision}.", f"It has: {', '.join(PRECISIONS[name])}.")
    if name == "torch":
        return Engine(name, precision, open_torch(backbone, precision, device))
    if name == "compile":
        engine = Engine(name, precision, open_compiled(backbone, precision, device, size))
        return _accepted(engine, _error(engine, backbone, probe(size, 2, seed=2).to(device)), "Use --engine torch.")
    check_runtime(name, device)
    remedy = "Make its graph again with wildcat bench RUN IMAGES." if precision == "int8" else "Use --engine torch."
    for again in (False, True):
        try:
            # Ranges of int8 were measured on images; anything else may lie outside them.
            if precision == "int8":
                graph, images = int8_graph(backbone, size)
            else:
                graph, images = fp32_graph(backbone, size, again), probe(size, seed=2)
            runs = open_onnxruntime(graph, device) if name == "onnx" else open_openvino(graph, precision)
            engine = Engine(name, precision, runs)
            error = _error(engine, backbone, images.to(device))
        except (ConfigError, EngineError, ImportError):
            raise
        except Exception as reason:  # a kept graph that is damaged; each runtime has kinds of its own for that
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
    """The engine, where its features are those of the network but for rounding."""
    if error > _tolerance(engine.precision):
        raise EngineError(
            f"{engine.name} in {engine.precision} gives features that differ from torch's "
            f"by {error:.0%} of their size.",
            remedy,
        )
    return engine


def _tolerance(precision: Precision) -> float:
    return EXACT if precision == "fp32" else ROUGH
