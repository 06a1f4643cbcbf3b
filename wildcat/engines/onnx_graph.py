"""A network as an ONNX graph of one image size and any number of images, checked against torch."""

from __future__ import annotations

import copy
import importlib.util
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wildcat.errors import EngineError, MissingExtra

if TYPE_CHECKING:
    import onnx
    import onnxruntime

EXACT = 1e-3
"""Largest relative error of a float32 graph against torch: rounding, and no more."""


def relative_error(values: Tensor, reference: Tensor) -> float:
    """Root mean square of the difference, in units of the reference's; infinite where values are not finite.

    >>> relative_error(torch.tensor([3.0, 4.4]), torch.tensor([3.0, 4.0]))  # doctest: +ELLIPSIS
    0.08...
    """
    if values.shape != reference.shape or not bool(values.isfinite().all()):
        return float("inf")
    scale = float(reference.float().norm())
    return float((values.float() - reference.float()).norm()) / max(scale, 1e-12)


def probe(size: int, count: int = 1, seed: int = 0) -> Tensor:
    """(count, 3, size, size) of smooth random images, normalised: what a graph is checked on. Always the same."""
    draws = torch.from_numpy(np.random.default_rng(seed).normal(size=(count, 3, 16, 16)).astype(np.float32))
    return nn.functional.interpolate(draws, (size, size), mode="bilinear", align_corners=False)


def trace(network: nn.Module, size: int, outputs: Sequence[str], reference: nn.Module | None = None) -> onnx.ModelProto:
    """The graph of a network, images (B, 3, size, size) to `outputs`, for any B; checked against torch.

    The network itself is left as it is. Batch normalisation is folded into convolutions whose weights are used once.

    Args:
        reference: the network to check against, where it is not the one that is traced.

    Raises:
        MissingExtra: the exporter's packages are not installed.
        EngineError: an operation has no ONNX form, or the graph does not compute what the network does.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(package, "export")
    plain = _on_cpu(network)
    # Two images, not one: a batch of one would be taken for a constant.
    batch: dict[int, object] = {0: torch.export.Dim("batch")}
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                plain,
                (probe(size, 2),),
                dynamo=True,
                dynamic_shapes=(batch,),
                input_names=["images"],
                output_names=list(outputs),
                verbose=False,
            )
    except Exception as error:  # the exporter raises kinds of its own for each thing it cannot do
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EngineError(
            f"this network has no ONNX form: {reason}.", "Use --engine torch, or another backbone."
        ) from error
    assert program is not None  # noqa: S101  # it is None for files only
    model: onnx.ModelProto = program.model_proto
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    check(model, plain if reference is None else _on_cpu(reference), size)
    return model


def _on_cpu(network: nn.Module) -> nn.Module:
    copied: nn.Module = copy.deepcopy(network).cpu().float().to(memory_format=torch.contiguous_format)
    return copied.eval()


def check(model: onnx.ModelProto, network: nn.Module, size: int) -> None:
    """Compare a graph with its network, on three images together and on one alone.

    Raises:
        EngineError: an output differs by more than rounding.
    """
    session = session_of(model.SerializeToString())
    images = probe(size, 3, seed=1)
    with torch.inference_mode():
        expected = network(images)
    expected = (expected,) if isinstance(expected, Tensor) else expected
    for part in (slice(0, 3), slice(1, 2)):
        found = session.run(None, {"images": images[part].numpy()})
        for output, values, reference in zip(model.graph.output, found, expected, strict=True):
            error = relative_error(torch.from_numpy(np.asarray(values)), reference[part])
            if error > EXACT:
                raise EngineError(
                    f"the ONNX graph's {output.name} differ from torch's by {error:.1e} of their size.",
                    "Nothing was written. Try other versions of torch and onnxruntime, or use --engine torch.",
                )


def session_of(model: bytes, threads: int = 0, device: str = "cpu") -> onnxruntime.InferenceSession:
    """An onnxruntime session; 0 threads: as many as it likes.

    Raises:
        MissingExtra: onnxruntime is not installed.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        raise MissingExtra("onnxruntime", "export")
    import onnxruntime  # noqa: PLC0415  # optional

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    providers = ["CUDAExecutionProvider"] if device == "cuda" else []
    return onnxruntime.InferenceSession(model, options, providers=[*providers, "CPUExecutionProvider"])


def describe(model: onnx.ModelProto, properties: Mapping[str, str]) -> None:
    """Add properties to a graph's metadata."""
    for key, value in properties.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value


def run_graph(session: onnxruntime.InferenceSession, images: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """The outputs of a session for (B, 3, S, S) images."""
    return [np.asarray(values) for values in session.run(None, {"images": images})]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporter's chatter from the user; what fails raises anyway."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
