"""Compare the engines that can run a model here, in speed and in accuracy: `wildcat bench`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wildcat.data.image_ref import ImageInput, load_image
from wildcat.device import machine
from wildcat.engines import PRECISIONS, calibrate_int8
from wildcat.engines.graph_cache import package_version
from wildcat.engines.onnx_graph import probe
from wildcat.errors import ConfigError, EngineError, MissingExtra, RunError
from wildcat.fitting.choice import thinned
from wildcat.models.manifest import versions
from wildcat.models.member import Member, Outputs
from wildcat.predictor import Predictor
from wildcat.progress import SILENT, Progress

REFERENCE = "torch fp32"

CALIBRATION = 200  # images for int8 calibration, at most
COMPARED = 64  # images whose scores and points are compared, at most
ACCEPTED = 0.1  # largest score error, in standard deviations of the scores, of the engine that `fastest` returns


def bench_engines(
    predictor: Predictor,
    images: Sequence[ImageInput] = (),
    rounds: int = 10,
    batch_size: int = 8,
    compiled: bool = False,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Time every engine that runs here, in turn, on one batch, and compare its outputs with torch's in float32.

    Args:
        images: typical images: int8 graphs are calibrated with them (and cached for `--precision int8`), and scores are
            compared on them. Without any, random images are timed.
        compiled: also time torch.compile, which takes minutes to compile.
        progress: counts engines.

    Returns:
        Plain values for JSON. `engines`, by "ENGINE PRECISION": `seconds` per image, `speedup` over torch fp32 with its
        `quartiles`, and with images `score_error` (root mean square of the change of the scores, in units of their
        standard deviation over images and classes), `same_class` and `same_point` (fractions of the images whose
        highest class, and its point, are the same). `left_out`: other engines, with reasons. `settings`, `machine`,
        `versions`.

    Raises:
        ConfigError: numbers below 1, too few images for int8 calibration, or a cascade.
        ImageError: an image cannot be read.
    """
    if rounds < 1 or batch_size < 1:
        raise ConfigError(f"rounds={rounds}, batch_size={batch_size}: both must be at least 1.")
    if predictor.cascade is not None:
        raise ConfigError(
            f"{predictor.name} is a cascade; bench times one stage.",
            f"Give its first stage: {predictor.name}/{predictor.cascade.first_stage}.",
        )
    candidates = [(n, p) for n, precisions in PRECISIONS.items() for p in precisions if n != "compile" or compiled]
    left_out: dict[str, str] = {}
    ready: dict[str, Predictor] = {}
    refined = any(member.segmenter is not None for member in predictor.members)
    progress.start("preparing engines", len(candidates))
    for name, precision in candidates:
        label = f"{name} {precision}"
        progress.advance(1, label)
        if refined and label != REFERENCE:
            left_out[label] = "a refined model runs on torch in fp32 only."
            continue
        try:
            if precision == "int8" and images and name == "onnx":  # both runtimes take the same graph
                calibrate(predictor, images, batch_size)
            other = copy(predictor)
            other.use_engine(name, precision)
            ready[label] = other
        except (EngineError, MissingExtra, RunError) as error:  # RunError: the cache cannot be written
            left_out[label] = error.one_line
    compared = thinned(images, COMPARED)  # lists are often sorted by class
    rows: dict[str, dict[str, Any]] = {label: {} for label in ready}
    if compared:
        progress.start("comparing scores and points", len(ready))
        outputs = {}
        for label, other in ready.items():
            outputs[label] = [found for _, found in other.outputs(compared, batch_size=batch_size)]
            progress.advance()
        rows = {label: _differences(found, outputs[REFERENCE]) for label, found in outputs.items()}
    inputs = _batch(predictor.members, thinned(images, batch_size), batch_size)
    runs = {label: partial(other.forward, inputs, modalities=False) for label, other in ready.items()}
    timed = speedups(time_in_turn(runs, rounds, progress=progress), REFERENCE, batch_size)
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


def fastest(result: Mapping[str, Any]) -> str:
    """The fastest engine, "ENGINE PRECISION", of those with the same scores as torch fp32 up to `ACCEPTED`.

    Where no scores were compared, of those in fp32.
    """
    rows = result["engines"]
    accepted = [k for k, row in rows.items() if row.get("score_error", 0.0 if "fp32" in k else np.inf) <= ACCEPTED]
    label: str = max(accepted, key=lambda label: rows[label]["speedup"])
    return label


def engine_versions() -> dict[str, str]:
    """Versions of the installed runtimes."""
    found = {name: package_version(name) for name in ("onnx", "onnxscript", "onnxruntime", "openvino")}
    return {name: version for name, version in found.items() if version != "none"}


def calibrate(predictor: Predictor, images: Sequence[ImageInput], batch_size: int = 8) -> int:
    """Create int8 graphs for every member with at most 200 of the images, evenly spaced; returns their number.

    Raises:
        ConfigError, EngineError, MissingExtra, RunError: see `wildcat.engines.calibrate_int8`.
        ImageError: an image cannot be read.
    """
    chosen = thinned(images, CALIBRATION)
    for member in predictor.members:

        def batches(member: Member = member) -> Iterator[Tensor]:
            for start in range(0, len(chosen), batch_size):
                paths = chosen[start : start + batch_size]
                read = [load_image(path, member.preprocess.intensity_range) for path in paths]
                yield torch.stack([member.preprocess(image) for image in read])

        calibrate_int8(member.model.backbone, member.preprocess.size, batches())
    return len(chosen)


def _batch(members: Sequence[Member], paths: Sequence[ImageInput], batch_size: int) -> list[Tensor]:
    """One batch for each member: of the images, repeated if they are too few, or of random ones."""
    if not paths:
        return [probe(member.preprocess.size, batch_size) for member in members]
    read = [load_image(paths[i % len(paths)], members[0].preprocess.intensity_range) for i in range(batch_size)]
    return [torch.stack([member.preprocess(image) for image in read]) for member in members]


def _differences(found: Sequence[Outputs], expected: Sequence[Outputs]) -> dict[str, float]:
    scores, maps = (np.concatenate([getattr(o, f) for o in found]) for f in ("scores", "class_maps"))
    true_scores, true_maps = (np.concatenate([getattr(o, f) for o in expected]) for f in ("scores", "class_maps"))
    rows, top = np.arange(len(scores)), true_scores.argmax(axis=1)
    spread = max(float(true_scores.std()), 1e-12)
    differences = {
        "score_error": round(float(np.sqrt(np.mean((scores - true_scores) ** 2))) / spread, 5),
        "same_class": round(float(np.mean(scores.argmax(axis=1) == top)), 4),
    }
    if maps.size:
        cells, true_cells = (m[rows, top].reshape(len(m), -1).argmax(axis=1) for m in (maps, true_maps))
        differences["same_point"] = round(float(np.mean(cells == true_cells)), 4)
    return differences


Times = Mapping[str, Sequence[float]]  # name -> seconds of each round


def time_in_turn(
    runs: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup: int = 2,
    progress: Progress = SILENT,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each alternative in each round; they take turns, so that other load on the machine affects all alike.

    The order rotates from round to round. On CUDA a run ends when its kernels do.

    Args:
        warmup: rounds that are not timed, for memory allocation and the choice of kernels.
        progress: counts rounds.
    """
    names = list(runs)
    times: dict[str, list[float]] = {name: [] for name in names}
    progress.start("timing", warmup + rounds)
    for index in range(warmup + rounds):
        first = index % len(names)
        for name in names[first:] + names[:first]:
            start = clock()
            runs[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            taken = clock() - start
            if index >= warmup:
                times[name].append(taken)
        progress.advance()
    return times


def speedups(times: Times, reference: str, images: int = 1) -> dict[str, dict[str, Any]]:
    """For each alternative the median seconds per image, and the speedup over the reference.

    Ratios are computed per round; `speedup` is their median, `quartiles` their spread.

    >>> speedups({"a": [4.0, 6.0, 4.0], "b": [2.0, 2.0, 2.0]}, "a")["b"]
    {'seconds': 2.0, 'speedup': 2.0, 'quartiles': [2.0, 3.0]}
    """
    rows = {}
    for name, taken in times.items():
        ratios = sorted(base / own for base, own in zip(times[reference], taken, strict=True))
        quarter = len(ratios) // 4
        rows[name] = {
            "seconds": round(statistics.median(taken) / images, 6),
            "speedup": round(statistics.median(ratios), 3),
            "quartiles": [round(ratios[quarter], 3), round(ratios[-1 - quarter], 3)],
        }
    return rows
