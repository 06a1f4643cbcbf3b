"""Which engine is fastest here, and what it costs in exactness: `wildcat bench`."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wildcat.config import EngineName, Precision
from wildcat.data.image_ref import ImageInput, load_image
from wildcat.device import machine
from wildcat.engines import PRECISIONS, calibrate_int8, write_pick
from wildcat.engines.onnx_graph import probe
from wildcat.errors import ConfigError, EngineError, MissingExtra
from wildcat.fitting.timing import speedups, time_in_turn
from wildcat.models.run import versions
from wildcat.predictor import Member, Outputs, Predictor

REFERENCE = "torch fp32"

CALIBRATION = 200
"""Images int8 ranges are measured on, at most."""

COMPARED = 64
"""Images whose scores and points are compared, at most."""


def bench_engines(
    predictor: Predictor,
    images: Sequence[ImageInput] = (),
    rounds: int = 10,
    batch_size: int = 8,
    compiled: bool = False,
    progress: Callable[[str], object] = lambda what: None,
) -> dict[str, Any]:
    """Time every engine that runs here, in turn, on one batch, and compare what it says with torch in float32.

    Args:
        images: of the kind to come: int8 graphs are made with them (and kept, for `--precision int8`), and scores
            compared on them. Without any, only times are taken, of random images.
        compiled: time torch.compile too, which takes minutes to be ready.
        progress: called with what is done next.

    Returns:
        Plain values for JSON. `engines`, by "ENGINE PRECISION": `seconds` an image, `speedup` over torch fp32 with its
        `quartiles`, and with images `score_error` (root mean square of the change of scores, in units of their
        standard deviation over images and classes), `same_class` and `same_point` (shares of the images whose
        highest class, and whose point of that class, are the same). `left_out`: the others, with reasons. `settings`,
        `machine`, `versions`.

    Raises:
        ConfigError: numbers below 1, or images too few to make int8 graphs with.
        ImageError: an image cannot be read.
    """
    if rounds < 1 or batch_size < 1:
        raise ConfigError(f"rounds={rounds}, batch_size={batch_size}: both must be at least 1.")
    left_out: dict[str, str] = {}
    ready = {REFERENCE: _with_engine(predictor, "torch", "fp32")}
    for name, precision in ((n, p) for n, all_of in PRECISIONS.items() for p in all_of):
        if name == "compile" and not compiled:
            continue
        label = f"{name} {precision}"
        progress(f"preparing {label}")
        try:
            if precision == "int8" and images and name == "onnx":  # both runtimes take the same graph
                calibrate(predictor, images, batch_size)
            ready[label] = _with_engine(predictor, name, precision)
        except (EngineError, MissingExtra) as error:
            left_out[label] = error.message
    compared = _evenly(images, COMPARED)
    rows: dict[str, dict[str, Any]] = {label: {} for label in ready}
    if compared:
        progress("comparing scores and points")
        expected = _outputs(ready[REFERENCE], compared, batch_size)
        rows = {label: _differences(_outputs(p, compared, batch_size), expected) for label, p in ready.items()}
    inputs = _batch(predictor.members, _evenly(images, batch_size), batch_size)
    progress("timing")
    runs = {label: _runner(p, inputs) for label, p in ready.items()}
    timed = speedups(time_in_turn(runs, rounds), REFERENCE, batch_size)
    return {
        "engines": {label: timed[label] | rows[label] for label in ready},
        "left_out": left_out,
        "settings": {
            "model": predictor.name,
            "backbones": [m.model.backbone.name for m in predictor.members],
            "sizes": [m.preprocess.size for m in predictor.members],
            "flip": predictor.flip,
            "device": predictor.device.type,
            "batch_size": batch_size,
            "rounds": rounds,
            "images_compared": len(compared),
        },
        "machine": machine(),
        "versions": versions() | engine_versions(),
    }


def pick(predictor: Predictor, result: Mapping[str, Any], tolerance: float) -> str:
    """Keep the fastest engine whose score error is within `tolerance` as what `--engine auto` takes; returns its label.

    Raises:
        ConfigError: the tolerance is negative, or nothing was compared.
    """
    check_tolerance(tolerance)
    rows = {k: row for k, row in result["engines"].items() if row.get("score_error", np.inf) <= tolerance}
    if not rows:
        raise ConfigError("engines are picked by what they say of images.", "Name images of the kind to come.")
    label: str = max(rows, key=lambda k: rows[k]["speedup"])
    name, precision = label.split()
    record = {"tolerance": tolerance, **rows[label], "settings": result["settings"], "versions": result["versions"]}
    for member in predictor.members:
        write_pick(
            member.model.backbone,
            member.preprocess.size,
            predictor.device.type,
            name,  # type: ignore[arg-type]  # a label is made of them
            precision,  # type: ignore[arg-type]
            record,
        )
    return label


def check_tolerance(tolerance: float) -> None:
    """Refuse a tolerance that no engine can meet.

    Raises:
        ConfigError: negative, or no number.
    """
    if not tolerance >= 0:
        raise ConfigError(f"tolerance={tolerance}: give a number of at least 0, such as 0.1.")


def engine_versions() -> dict[str, str]:
    """Versions of the runtimes that are installed."""
    found = {}
    for package in ("onnx", "onnxscript", "onnxruntime", "openvino"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _with_engine(predictor: Predictor, name: EngineName, precision: Precision) -> Predictor:
    other = Predictor(
        predictor.name,
        predictor.members,
        predictor.classes,
        predictor.task,
        str(predictor.device),
        predictor.flip,
        predictor.combination,
    )
    other.use_engine(name, precision)
    return other


def calibrate(predictor: Predictor, images: Sequence[ImageInput], batch_size: int = 8) -> int:
    """Make int8 graphs for every member with at most 200 of the images, spread over them; returns how many.

    Raises:
        ConfigError, EngineError, MissingExtra: see `wildcat.engines.calibrate_int8`.
        ImageError: an image cannot be read.
    """
    chosen = _evenly(images, CALIBRATION)
    for member in predictor.members:

        def batches(member: Member = member) -> Iterator[Tensor]:
            for start in range(0, len(chosen), batch_size):
                paths = chosen[start : start + batch_size]
                yield torch.stack([member.preprocess(load_image(path)) for path in paths])

        calibrate_int8(member.model.backbone, member.preprocess.size, batches())
    return len(chosen)


def _evenly(images: Sequence[ImageInput], most: int) -> list[ImageInput]:
    """At most `most` of the images, spread over all of them: a list often goes class by class."""
    count = min(most, len(images))
    return [images[i * len(images) // count] for i in range(count)]


def _batch(members: Sequence[Member], paths: Sequence[ImageInput], batch_size: int) -> list[Tensor]:
    """One batch for each member: of the images, again from the first where they are fewer, or random ones."""
    if not paths:
        return [probe(member.preprocess.size, batch_size) for member in members]
    read = [load_image(paths[i % len(paths)]) for i in range(batch_size)]
    return [torch.stack([member.preprocess(image) for image in read]) for member in members]


def _runner(predictor: Predictor, images: Sequence[Tensor]) -> Callable[[], object]:
    return lambda: predictor.run(images, modalities=False)


def _outputs(predictor: Predictor, paths: Sequence[ImageInput], batch_size: int) -> list[Outputs]:
    return list(predictor.stream_outputs(paths, batch_size))


def _differences(found: Sequence[Outputs], expected: Sequence[Outputs]) -> dict[str, float]:
    scores, maps = (np.concatenate([getattr(o, f) for o in found]) for f in ("scores", "class_maps"))
    true_scores, true_maps = (np.concatenate([getattr(o, f) for o in expected]) for f in ("scores", "class_maps"))
    rows, top = np.arange(len(scores)), true_scores.argmax(axis=1)
    cells, true_cells = (m[rows, top].reshape(len(m), -1).argmax(axis=1) for m in (maps, true_maps))
    spread = max(float(true_scores.std()), 1e-12)
    return {
        "score_error": round(float(np.sqrt(np.mean((scores - true_scores) ** 2))) / spread, 5),
        "same_class": round(float(np.mean(scores.argmax(axis=1) == top)), 4),
        "same_point": round(float(np.mean(cells == true_cells)), 4),
    }
