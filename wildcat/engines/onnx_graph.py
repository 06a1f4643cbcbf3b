"""Export a network as an ONNX graph for one image size and any batch size, compare it with torch, quantise it."""

from __future__ import annotations

import copy
import importlib.util
import logging
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from wildcat.errors import ConfigError, EngineError, MissingExtra, WildcatError

if TYPE_CHECKING:
    import onnx
    import onnxruntime

EXACT = 1e-3  # largest relative error of float32 features against torch, from rounding
FEWEST = 16  # images for int8 calibration; a few hundred are usual


def relative_error(values: Tensor, reference: Tensor) -> float:
    """Root mean square of the difference relative to that of the reference; infinite if values are not finite.

    >>> relative_error(torch.tensor([3.0, 4.4]), torch.tensor([3.0, 4.0]))  # doctest: +ELLIPSIS
    0.08...
    """
    if values.shape != reference.shape or not bool(values.isfinite().all()):
        return float("inf")
    scale = float(reference.float().norm())
    return float((values.float() - reference.float()).norm()) / max(scale, 1e-12)


def probe(size: int, count: int = 1, seed: int = 0) -> Tensor:
    """(count, 3, size, size) smooth random images, normalised, for comparisons; the same for a seed."""
    draws = torch.from_numpy(np.random.default_rng(seed).normal(size=(count, 3, 16, 16)).astype(np.float32))
    return nn.functional.interpolate(draws, (size, size), mode="bilinear", align_corners=False)


def trace(network: nn.Module, size: int, outputs: Sequence[str]) -> onnx.ModelProto:
    """Export a network, images (B, 3, size, size) -> `outputs` for any B, and compare the graph with torch.

    Raises:
        MissingExtra: the exporter's packages are not installed.
        EngineError: an operation has no ONNX form, or the outputs of the graph differ from the network's.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(package, "export")
    plain = _on_cpu(network)
    # Two images: a batch size of one would be exported as a constant.
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
    except Exception as error:  # the exporter raises many types
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EngineError(
            f"this network has no ONNX form: {reason}.", "Use --engine torch, or another backbone."
        ) from error
    assert program is not None  # noqa: S101  # it is None only when writing a file
    model: onnx.ModelProto = program.model_proto
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    check(model, plain, size)
    return model


def _on_cpu(network: nn.Module) -> nn.Module:
    copied: nn.Module = copy.deepcopy(network).cpu().float().to(memory_format=torch.contiguous_format)
    return copied.eval()


def check(model: onnx.ModelProto, network: nn.Module, size: int) -> None:
    """Compare a graph with its network on a batch of three images and on a single one.

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
    """An onnxruntime session; 0 threads: its default."""
    import onnxruntime  # noqa: PLC0415  # optional

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    providers = ["CUDAExecutionProvider"] if device == "cuda" else []
    return onnxruntime.InferenceSession(model, options, providers=[*providers, "CPUExecutionProvider"])


def describe(model: onnx.ModelProto, properties: Mapping[str, str]) -> None:
    """Add properties to the metadata of a graph."""
    for key, value in properties.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the warnings of the exporter; failures still raise."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def quantize(graph: bytes, images: Iterable[Tensor]) -> tuple[bytes, int, Tensor]:
    """Post-training static quantisation to int8 (QDQ, per-channel weights; Jacob et al., CVPR 2018).

    Args:
        graph: a serialised ONNX graph with the input "images".
        images: preprocessed batches (B, 3, S, S), from which the ranges of activations are measured; read once.

    Returns:
        The serialised graph, the number of images, and the first of them, (1, 3, S, S).

    Raises:
        ConfigError: fewer than 16 images.
        EngineError: the graph cannot be quantised.
        MissingExtra: onnxruntime is not installed.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        raise MissingExtra("onnxruntime", "export")
    import onnx  # noqa: PLC0415  # optional
    from onnxruntime.quantization import (  # noqa: PLC0415
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    reader = _Calibration(images)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(graph)
        try:
            with quiet():
                quantize_static(
                    source,
                    target,
                    reader,
                    quant_format=QuantFormat.QDQ,
                    per_channel=True,
                    activation_type=QuantType.QUInt8,
                    weight_type=QuantType.QInt8,
                    calibrate_method=CalibrationMethod.MinMax,
                )
        except WildcatError:  # an image that cannot be read
            raise
        except Exception as error:  # onnxruntime raises many types, also without any image
            if reader.count >= FEWEST:
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise EngineError(
                    f"this network cannot be quantised: {reason}.", "Use --precision bf16 or fp32."
                ) from error
        if reader.count < FEWEST:
            raise ConfigError(
                f"{reader.count} images are too few to calibrate int8 with.",
                f"Give at least {FEWEST}; a few hundred are usual.",
            )
        quantised = onnx.load(target)
    return quantised.SerializeToString(), reader.count, reader.first


class _Calibration:
    """A CalibrationDataReader of onnxruntime, which counts the images and keeps the first."""

    def __init__(self, images: Iterable[Tensor]) -> None:
        self.batches, self.count, self.first = iter(images), 0, Tensor()

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self.batches, None)
        if batch is None:
            return None
        self.first = batch[:1].clone() if self.count == 0 else self.first
        self.count += len(batch)
        return {"images": batch.numpy()}
