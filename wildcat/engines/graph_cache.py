"""Cache of ONNX graphs on disk; a graph is compared with its network each time it is loaded.

<cache>/engines/<digest>/fp32.onnx   the backbone at one image size
                         int8.onnx   the same, quantised
                         int8.npy    one of its calibration images, for the comparison
<cache>/engines/<digest>.lock        held while in use; the least recently used are removed, see `wildcat.data.cache`
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import io
import json
import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wildcat.data.cache import cache_folder, cache_limit, hold, make_room
from wildcat.engines.onnx_graph import quantize, trace
from wildcat.errors import EngineError, RunError
from wildcat.files import make_parent, remove_leftovers, write_bytes
from wildcat.nn.backbones import Backbone

log = logging.getLogger(__name__)

FORMAT = 2  # version of the cache: graphs of another version are not found


def graph_folder(backbone: Backbone, size: int) -> Path:
    """The folder with the graphs of a network at an image size.

    Its name is a digest of the network's structure and weights, the size, and the versions of the exporter.
    """
    found = hashlib.sha256()
    versions = {name: package_version(name) for name in ("torch", "onnx", "onnxscript")}
    found.update(json.dumps([FORMAT, size, versions, repr(backbone)]).encode())
    for name, values in backbone.state_dict().items():
        found.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        found.update(values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return cache_folder() / "engines" / found.hexdigest()[:32]


def fp32_graph(backbone: Backbone, size: int, again: bool = False) -> bytes:
    """The serialised graph of a backbone at an image size, from the cache or exported (always with `again`).

    A cache that cannot be written is logged.

    Raises:
        MissingExtra, EngineError: see `wildcat.engines.onnx_graph.trace`.
    """
    path, limit = graph_folder(backbone, size) / "fp32.onnx", cache_limit()
    with hold(path.parent) or contextlib.nullcontext():
        if not again and path.is_file():
            return path.read_bytes()
        graph: bytes = trace(backbone, size, ["features"]).SerializeToString()
        try:
            make_parent(path)
            remove_leftovers(path)
            write_bytes(path, graph)
            make_room(path.parent.parent, limit)
        except RunError as error:
            log.warning("%s The graph is exported each time; set WILDCAT_CACHE to a folder for it.", error.message)
    return graph


def int8_graph(backbone: Backbone, size: int) -> tuple[bytes, Tensor]:
    """The quantised graph made by `calibrate_int8`, and one of its calibration images (1, 3, size, size).

    Raises:
        EngineError: there is none for these weights at this size, or the image is damaged.
    """
    folder = graph_folder(backbone, size)
    try:
        with hold(folder) or contextlib.nullcontext():
            image = torch.from_numpy(np.load(folder / "int8.npy").astype(np.float32))
            return (folder / "int8.onnx").read_bytes(), image
    except (OSError, ValueError, EOFError) as error:
        raise EngineError(
            f"there is no int8 graph of these weights at {size} px.",
            "Create it with a few hundred typical images: wildcat bench RUN IMAGES.",
        ) from error


def calibrate_int8(backbone: Backbone, size: int, images: Iterable[Tensor]) -> int:
    """Quantise the graph of a backbone, with calibration images in batches (B, 3, size, size), and cache it.

    Returns:
        The number of images.

    Raises:
        ConfigError, EngineError, MissingExtra: see `wildcat.engines.onnx_graph.quantize`.
        RunError: the cache cannot be written.
    """
    folder = graph_folder(backbone, size)
    with hold(folder) or contextlib.nullcontext():
        graph, count, first = quantize(fp32_graph(backbone, size), images)
        array = io.BytesIO()
        np.save(array, first.numpy().astype(np.float16))
        write_bytes(folder / "int8.npy", array.getvalue())
        write_bytes(folder / "int8.onnx", graph)
    return count


def package_version(package: str) -> str:
    """The version of an installed package, or "none"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"
