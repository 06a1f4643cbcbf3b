"""onnxruntime and OpenVINO as engines: both run the same ONNX graph."""

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
from wildcat.engines.onnx_graph import run_graph, session_of
from wildcat.engines.threads import engine_threads
from wildcat.errors import EngineError, MissingExtra

if TYPE_CHECKING:
    import openvino

PRECISIONS: dict[EngineName, tuple[Precision, ...]] = {
    "torch": ("fp32", "bf16"),
    "compile": ("fp32", "bf16"),
    "onnx": ("fp32", "int8"),
    "openvino": ("fp32", "bf16", "int8"),
}
"""What each engine can compute in."""


DEVICES: dict[EngineName, tuple[str, ...]] = {"onnx": ("cpu", "cuda"), "openvino": ("cpu",)}
"""Where the runtimes run."""


def check_runtime(name: EngineName, device: torch.device) -> None:
    """Refuse a runtime that cannot be used here, before a graph is made for it.

    Raises:
        EngineError: a device it does not run on.
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
        EngineError: its installed build does not know the device.
    """
    session = session_of(graph, engine_threads(), device.type)
    if device.type == "cuda" and "CUDAExecutionProvider" not in session.get_providers():
        raise EngineError(
            "the installed onnxruntime knows no CUDA.",
            "pip install onnxruntime-gpu in its place, or give --device cpu.",
        )

    def features(images: Tensor) -> Tensor:
        return torch.from_numpy(run_graph(session, images.cpu().contiguous().numpy())[0]).to(images.device)

    return features


@cache
def openvino_core() -> openvino.Core:
    """The one OpenVINO of the process, kept as long as that lives.

    Its CPU plugin gives the thread that makes it a stack for signals, and frees it with itself. Of several the thread
    may keep one that is freed: the next signal, such as that a child process has ended, then ends the process.
    """
    import openvino  # noqa: PLC0415  # optional

    return openvino.Core()


def open_openvino(graph: bytes, precision: Precision) -> Callable[[Tensor], Tensor]:
    """(B, 3, S, S) -> (B, D, h, w) by OpenVINO, on the processor."""
    core = openvino_core()
    settings = {
        "INFERENCE_NUM_THREADS": engine_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        # Left to itself it takes bfloat16 wherever the processor has it, and says nothing.
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
    }
    compiled = core.compile_model(core.read_model(graph), "CPU", settings)
    lock = threading.Lock()  # a compiled model answers one at a time

    def features(images: Tensor) -> Tensor:
        with lock:
            found = np.array(compiled(images.contiguous().numpy())[0])  # a copy: the next answer overwrites its memory
        return torch.from_numpy(found)

    return features
