"""Graphs kept between commands: found again by what the network is, and never trusted without a look.

<cache>/engines/<digest>/fp32.onnx   the backbone at one image size
                         int8.onnx   the same, quantised
                         int8.npy    an image its ranges were measured on, to check it with
                             int8.json   on how many images, by which versions
<cache>/engines/<digest>.lock        held by who uses them; the longest unused are removed, see `wildcat.data.cache`
<cache>/engines/picks.json           which engine `wildcat bench --pick` found fastest here
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import io
import json
import platform
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from wildcat.config import EngineName, Precision
from wildcat.data.cache import cache_folder, cache_limit, hold, make_room
from wildcat.engines.onnx_graph import trace
from wildcat.engines.quantize import quantize
from wildcat.errors import EngineError
from wildcat.files import remove_leftovers, write_bytes, write_json, writing
from wildcat.nn.backbones import Backbone

FORMAT = 1
"""Version of what is kept; graphs of another one are not found."""


def digest(backbone: Backbone, size: int) -> str:
    """What a graph depends on: the network's structure and weights, the image size, and what made the graph."""
    found = hashlib.sha256()
    made = {name: _version(name) for name in ("torch", "onnx", "onnxscript")}
    found.update(json.dumps([FORMAT, size, made, repr(backbone)]).encode())
    for name, values in backbone.state_dict().items():
        found.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        found.update(values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()[:32]


def graph_folder(backbone: Backbone, size: int) -> Path:
    """Where the graphs of a network at an image size are kept."""
    return cache_folder() / "engines" / digest(backbone, size)


def fp32_graph(backbone: Backbone, size: int, again: bool = False) -> bytes:
    """The serialised graph of a backbone at an image size, made where it is not kept yet, or `again`.

    Raises:
        MissingExtra, EngineError: see `wildcat.engines.onnx_graph.trace`.
        RunError: it cannot be written.
    """
    path, limit = graph_folder(backbone, size) / "fp32.onnx", cache_limit()
    with _held(path.parent):
        if path.is_file() and not again:
            return path.read_bytes()
        graph: bytes = trace(backbone, size, ["features"]).SerializeToString()
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path)
        write_bytes(path, graph)
        make_room(path.parent.parent, limit)
    return graph


def int8_graph(backbone: Backbone, size: int) -> tuple[bytes, Tensor]:
    """The quantised graph that `calibrate_int8` made, and an image (1, 3, size, size) its ranges were measured on.

    Raises:
        EngineError: there is none for these weights at this size, or its image is damaged.
    """
    folder = graph_folder(backbone, size)
    try:
        with _held(folder):
            image = torch.from_numpy(np.load(folder / "int8.npy").astype(np.float32))
            return (folder / "int8.onnx").read_bytes(), image
    except (OSError, ValueError, EOFError) as error:
        raise EngineError(
            f"there is no int8 graph of these weights at {size} px.",
            "Make it with a few hundred images like those to come: wildcat bench RUN IMAGES.",
        ) from error


def calibrate_int8(backbone: Backbone, size: int, images: Iterable[Tensor]) -> int:
    """Make and keep the quantised graph, its ranges measured on `images`, batches (B, 3, size, size).

    Returns:
        The number of images.

    Raises:
        ConfigError, EngineError, MissingExtra: see `wildcat.engines.quantize.quantize`.
    """
    folder = graph_folder(backbone, size)
    with _held(folder):
        graph, count, first = quantize(fp32_graph(backbone, size), images)
        array = io.BytesIO()
        np.save(array, first.numpy().astype(np.float16))
        write_bytes(folder / "int8.npy", array.getvalue())
        write_bytes(folder / "int8.onnx", graph)
        write_json(folder / "int8.json", {"images": count, "onnxruntime": _version("onnxruntime")})
    return count


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Keep other processes from removing the graphs of a network while they are read or written."""
    with hold(folder) or contextlib.nullcontext():
        yield


def read_pick(backbone: Backbone, size: int, device: str) -> tuple[EngineName, Precision]:
    """The engine and precision picked for a network on this machine.

    Raises:
        EngineError: none was picked.
    """
    entry = _picks().get(_pick_key(backbone, size, device), {})
    if entry.get("engine") not in get_args(EngineName) or entry.get("precision") not in get_args(Precision):
        raise EngineError(
            f"no engine was picked for these weights at {size} px on this machine's {device}.",
            "Pick one: wildcat bench RUN IMAGES --pick, with this command's --sizes, --output-stride and --device.",
        )
    return entry["engine"], entry["precision"]


def write_pick(
    backbone: Backbone, size: int, device: str, engine: EngineName, precision: Precision, record: dict[str, Any]
) -> Path:
    """Keep a choice, with what it rests on; returns the file."""
    path = _picks_path()
    picks = _picks() | {_pick_key(backbone, size, device): {"engine": engine, "precision": precision, **record}}
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, picks)
    return path


def _picks_path() -> Path:
    return cache_folder() / "engines" / "picks.json"


def _picks() -> dict[str, Any]:
    try:
        picks = json.loads(_picks_path().read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none yet, or damaged: it is made again by the next pick
        return {}
    return picks if isinstance(picks, dict) else {}


def _pick_key(backbone: Backbone, size: int, device: str) -> str:
    return f"{platform.node()} {device} {digest(backbone, size)}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"
