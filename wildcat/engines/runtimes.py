"""onnxruntime and OpenVINO as engines; both run the same ONNX graph."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from wildcat.config import EngineName, Precision
from wildcat.device import engine_threads
from wildcat.engines.onnx_graph import session_of
from wildcat.errors import EngineError, MissingExtra

if TYPE_CHECKING:
    import openvino

PRECISIONS: dict[EngineName, tuple[Precision, ...]] = {
    "torch": ("fp32", "bf16"),
    "compile": ("fp32", "bf16"),
    "onnx": ("fp32", "int8"),
    "openvino": ("fp32", "bf16", "int8"),
}
DEVICES: dict[EngineName, tuple[str, ...]] = {"onnx": ("cpu", "cuda"), "openvino": ("cpu",)}


def check_runtime(name: EngineName, device: torch.device) -> None:
    """Check that a runtime can be used here, before a graph is exported for it.

    Raises:
        EngineError: it does not run on the device.
        MissingExtra: it is not installed.
    """
    if device.type not in DEVICES[name]:
        raise EngineError(f"engine {name} does not run on {device.type} here.", "Give --device cpu, or --engine torch.")
    package, extra = {"onnx": ("onnxruntime", "export"), "openvino": ("openvino", "openvino")}[name]
    if importlib.util.find_spec(package) is None:
        raise MissingExtra(package, extra)


def open_onnxruntime(graph: bytes, device: torch.device) -> Callable[[Tensor], Tensor]:
    """(B, 3, S, S) -> (B, D, h, w) by onnxruntime.

    Raises:
        EngineError: the installed build does not support the device.
    """
    session = session_of(graph, engine_threads(), device.type)
    if device.type == "cuda" and "CUDAExecutionProvider" not in session.get_providers():
        raise EngineError(
            "the installed onnxruntime does not support CUDA.",
            "Install onnxruntime-gpu instead, or give --device cpu.",
        )

    def features(images: Tensor) -> Tensor:
        (found,) = session.run(None, {"images": images.cpu().contiguous().numpy()})
        return torch.from_numpy(np.asarray(found)).to(images.device)

    return features


@cache
def openvino_core() -> openvino.Core:
    """One OpenVINO core for the life of the process.

    Its CPU plugin installs a signal stack in the thread that creates it, and frees it when it is destroyed. With
    several cores the thread may be left with a freed stack, and the next signal crashes the process.
    """
    import openvino  # noqa: PLC0415  # optional

    return openvino.Core()


def open_openvino(graph: bytes, precision: Precision) -> Callable[[Tensor], Tensor]:
    """(B, 3, S, S) -> (B, D, h, w) by OpenVINO, on the processor."""
    core = openvino_core()
    settings = {
        "INFERENCE_NUM_THREADS": engine_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        # By default it silently uses bfloat16 if the processor has it.
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
    }
    compiled = core.compile_model(core.read_model(graph), "CPU", settings)
    lock = threading.Lock()  # a compiled model runs one batch at a time

    def features(images: Tensor) -> Tensor:
        with lock:
            found = np.array(compiled(images.contiguous().numpy())[0])  # a copy: the next batch reuses the memory
        return torch.from_numpy(found)

    return features
