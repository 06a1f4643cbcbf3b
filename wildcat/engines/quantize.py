"""Eight-bit graphs: post-training static quantisation, its ranges measured on images (Jacob et al., CVPR 2018)."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from wildcat.engines.onnx_graph import quiet
from wildcat.errors import ConfigError, EngineError, MissingExtra, WildcatError

FEWEST = 16
"""Images below which measured ranges are guesses; a few hundred are customary."""


def quantize(graph: bytes, images: Iterable[Tensor]) -> tuple[bytes, int, Tensor]:
    """A float32 graph with its convolutions in int8 (QDQ; per-channel weights, ranges of activations from `images`).

    Args:
        graph: a serialised ONNX graph with the input "images".
        images: batches (B, 3, S, S) as the network takes them; read once.

    Returns:
        The serialised graph, how many images its ranges were measured on, and the first of them, (1, 3, S, S).

    Raises:
        ConfigError: fewer than 16 images.
        EngineError: the graph cannot be quantised.
        MissingExtra: onnxruntime is not installed.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        raise MissingExtra("onnxruntime", "export")
    import onnx  # noqa: PLC0415  # optional
    from onnxruntime.quantization import (  # noqa: PLC0415
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    count, first = 0, Tensor()

    class ImageDataset(CalibrationDataReader):  # type: ignore[misc]  # untyped
        def __init__(self) -> None:
            self.batches: Iterator[Tensor] = iter(images)

        def get_next(self) -> dict[str, Any] | None:
            nonlocal count, first
            batch = next(self.batches, None)
            if batch is None:
                return None
            first = batch[:1].clone() if count == 0 else first
            count += len(batch)
            return {"images": batch.numpy()}

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(graph)
        try:
            with quiet():
                quantize_static(
                    source,
                    target,
                    ImageDataset(),
                    quant_format=QuantFormat.QDQ,
                    per_channel=True,
                    activation_type=QuantType.QUInt8,
                    weight_type=QuantType.QInt8,
                    calibrate_method=CalibrationMethod.MinMax,
                )
        except WildcatError:  # an image that cannot be read
            raise
        except Exception as error:  # of kinds of its own, also where it was given no image at all
            if count < FEWEST:
                raise _too_few(count) from error
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise EngineError(
                f"this network cannot be quantised: {reason}.", "Use --precision bf16 or fp32."
            ) from error
        if count < FEWEST:
            raise _too_few(count)
        made = onnx.load(target)
    return made.SerializeToString(), count, first


def _too_few(count: int) -> ConfigError:
    return ConfigError(
        f"{count} images are too few to measure ranges on.", f"Give at least {FEWEST}; a few hundred are customary."
    )
