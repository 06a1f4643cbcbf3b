"""Dense CRF against pydensecrf: time, agreement of the label maps, peak memory.

    pip install pydensecrf2        # the reference; it needs a compiler and is no dependency of wildcat
    python benchmarks/crf.py --data VOCdevkit --out benchmarks/results/crf.json

Probabilities are simulated from the VOC masks like those of a network of stride 32: averaged over 32 x 32 pixels, noise
on the logits, upsampled. The libraries are measured alternately, for each image and round. A wall time counts only if
other processes used less than a tenth of a core meanwhile, because threads wait for each other and a busy core distorts
all of them. `--patience` waits for such moments; the other times are reported separately, and the CPU time of all.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from script import argument_parser, save_result

from wildcat.regions import CrfParams, dense_crf

CELL, FLOOR, NOISE = 32, 0.05, 1.0
BUSY = 0.1  # of one core, by other processes
Array = NDArray[Any]


class Sample(NamedTuple):
    """Wall and CPU seconds of one run, and whether the machine was otherwise idle."""

    wall: float
    cpu: float
    quiet: bool


def reference(image: Array, probabilities: Array, params: CrfParams) -> Array:
    """pydensecrf at the same setting; (C, H, W) in and out."""
    from pydensecrf import densecrf  # type: ignore[import-untyped]  # noqa: PLC0415  optional

    classes, height, width = probabilities.shape
    crf = densecrf.DenseCRF2D(width, height, classes)
    crf.setUnaryEnergy(np.ascontiguousarray(-np.log(np.maximum(probabilities, 1e-18)).reshape(classes, -1)))
    crf.addPairwiseGaussian(sxy=params.smoothness_sigma, compat=params.smoothness_weight)
    crf.addPairwiseBilateral(
        sxy=params.appearance_sigma_xy,
        srgb=params.appearance_sigma_rgb,
        rgbim=np.ascontiguousarray(image),
        compat=params.appearance_weight,
    )
    return np.array(crf.inference(params.iterations)).reshape(classes, height, width)


def soft(mask: Array, classes: list[int], cell: int, seed: int) -> Array:
    """(C, H, W) float32 probabilities made from a mask."""
    rng = np.random.default_rng(seed)
    hard = torch.from_numpy(np.stack([mask == c for c in classes])).float()[None]
    height, width = mask.shape
    coarse = torch.nn.functional.adaptive_avg_pool2d(hard, (-(-height // cell), -(-width // cell)))
    noise = torch.from_numpy(rng.standard_normal(tuple(coarse.shape), dtype=np.float32))
    logits = (coarse + FLOOR).log() + NOISE * noise
    fine = torch.nn.functional.interpolate(logits, size=(height, width), mode="bilinear", align_corners=False)
    return fine.softmax(dim=1)[0].numpy()


def load(devkit: Path, count: int, size: tuple[int, int]) -> list[tuple[str, Array, Array]]:
    """Name, image and mask of the first `count` images of the val list with this (height, width)."""
    folder = devkit / "VOC2012"
    names = (folder / "ImageSets" / "Segmentation" / "val.txt").read_text().split()
    found = []
    for name in names:
        with Image.open(folder / "JPEGImages" / f"{name}.jpg") as image:
            if (image.height, image.width) != size:
                continue
            pixels = np.array(image.convert("RGB"))  # a copy: pydensecrf requires writable memory
        with Image.open(folder / "SegmentationClass" / f"{name}.png") as image:
            found.append((name, pixels, np.asarray(image)))
        if len(found) == count:
            break
    return found


def busy_seconds() -> float:
    """CPU seconds used by all processes of the machine (Linux), or NaN."""
    try:
        user, nice, system = (int(v) for v in Path("/proc/stat").read_text().split()[1:4])
    except (OSError, ValueError):
        return float("nan")
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def wait_for_quiet(patience: float) -> None:
    end = time.monotonic() + patience
    while time.monotonic() < end:
        before = busy_seconds()
        time.sleep(0.5)
        if not busy_seconds() - before > BUSY * 0.5 + 0.02:
            return


def timed(run: Callable[[], Array]) -> Sample:
    """Measure one run; an unknown load counts as an idle machine."""
    others, start, own = busy_seconds(), time.perf_counter(), time.process_time()
    run()
    wall, cpu = time.perf_counter() - start, time.process_time() - own
    others = busy_seconds() - others - cpu
    return Sample(wall, cpu, not others > BUSY * wall + 0.02)  # two ticks of the clock


def summary(values: list[float]) -> dict[str, Any]:
    if not values:
        return {"samples": 0}
    low, median, high = (round(float(v), 4) for v in np.percentile(values, [25, 50, 75]))
    return {"samples": len(values), "median": median, "quartiles": [low, high]}


def measure(images: list[tuple[str, Array, Array]], rounds: int, threads: int, patience: float) -> dict[str, Any]:
    """Times of the three variants with a number of threads, measured alternately."""
    torch.set_num_threads(threads)
    params = CrfParams()
    samples: dict[str, list[Sample]] = {"pydensecrf_21": [], "wildcat_21": [], "wildcat_present": []}
    for _ in range(rounds):
        for index, (_, image, mask) in enumerate(images):
            full = soft(mask, list(range(21)), CELL, index)
            present = [int(c) for c in np.unique(mask) if c < 255]
            few = np.ascontiguousarray(full[present] / full[present].sum(axis=0))
            variants = {
                "pydensecrf_21": lambda image=image, full=full: reference(image, full, params),
                "wildcat_21": lambda image=image, full=full: dense_crf(image, full, params),
                "wildcat_present": lambda image=image, few=few: dense_crf(image, few, params),
            }
            wait_for_quiet(patience)
            for variant, run in variants.items():
                samples[variant].append(timed(run))
    result: dict[str, Any] = {"threads": threads, "rounds": rounds}
    for variant, rows in samples.items():
        result[variant] = {
            "wall_s": summary([row.wall for row in rows if row.quiet]),
            "wall_s_on_a_busy_machine": summary([row.wall for row in rows if not row.quiet]),
            "cpu_s": summary([row.cpu for row in rows]),
        }
    for variant in ("wildcat_21", "wildcat_present"):
        pairs = list(zip(samples[variant], samples["pydensecrf_21"], strict=True))
        result[f"{variant}_over_pydensecrf_21"] = {
            "wall": summary([ours.wall / theirs.wall for ours, theirs in pairs if ours.quiet and theirs.quiet]),
            "cpu": summary([ours.cpu / theirs.cpu for ours, theirs in pairs]),
        }
    return result


def agreement(images: list[tuple[str, Array, Array]]) -> dict[str, Any]:
    """Fraction of equal labels of the two implementations, and the accuracy of each."""
    params = CrfParams()
    rows: dict[str, list[float]] = {}

    def note(key: str, a: Array, b: Array, where: Array | None = None) -> None:
        rows.setdefault(key, []).append(float((a == b)[... if where is None else where].mean()))

    for seed, (_, image, mask) in enumerate(images):
        prior = soft(mask, list(range(21)), CELL, seed)
        ours, theirs = (crf(image, prior, params).argmax(axis=0) for crf in (dense_crf, reference))
        note("full_size_wildcat_equals_pydensecrf", ours, theirs)
        for key, labels in (("input", prior.argmax(axis=0)), ("wildcat", ours), ("pydensecrf", theirs)):
            note(f"full_size_accuracy_{key}", labels, mask, mask < 255)
    return {key: {"mean": round(float(np.mean(v)), 5), "worst": round(min(v), 5)} for key, v in rows.items()}


def peak_memory(variant: str, arguments: argparse.Namespace) -> int:
    """MiB that one run adds to the peak of a process (Linux)."""
    size = map(str, arguments.size)
    command = [sys.executable, __file__, "--data", str(arguments.data), "--size", *size, "--peak", variant]
    command += ["--out", str(arguments.out)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_peak(variant: str, images: list[tuple[str, Array, Array]]) -> None:
    _, image, mask = images[0]
    classes = [int(c) for c in np.unique(mask) if c < 255] if variant == "wildcat_present" else list(range(21))
    prior = soft(mask, classes, CELL, 0)
    tiny = (image[:8, :8], np.ascontiguousarray(prior[:, :8, :8]))
    run = reference if variant == "pydensecrf_21" else dense_crf
    run(*tiny, CrfParams())  # loads the libraries
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak, see proc(5)
    before = status_kib("VmRSS")
    run(image, prior, CrfParams())
    print((status_kib("VmHWM") - before) // 1024)


def status_kib(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a VOCdevkit folder with VOC2012")
    parser.add_argument("--size", type=int, nargs=2, default=(375, 500), help="height and width of the images")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--agreement-images", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, os.cpu_count() or 1])
    parser.add_argument("--patience", type=float, default=0.0, help="seconds to wait for an idle moment, per image")
    parser.add_argument("--peak", help=argparse.SUPPRESS)  # measure the peak memory of a variant in this process
    arguments = parser.parse_args()
    size = (arguments.size[0], arguments.size[1])
    images = load(arguments.data, max(arguments.images, arguments.agreement_images), size)
    if arguments.peak:
        print_peak(arguments.peak, images)
        return
    timed_images = images[: arguments.images]
    settings = {
        "data": f"VOC 2012 val, {size[0]} x {size[1]} pixels, {len(timed_images)} images timed: "
        + " ".join(name for name, _, _ in timed_images),
        "present_classes": [int((np.unique(mask) < 255).sum()) for _, _, mask in timed_images],
        "probabilities": {"cell": CELL, "floor": FLOOR, "noise": NOISE, "seed": "index of the image"},
        "params": asdict(CrfParams()),
        "pydensecrf2": importlib.metadata.version("pydensecrf2"),
    }
    results = {
        "time": [measure(timed_images, arguments.rounds, threads, arguments.patience) for threads in arguments.threads],
        "agreement": {"images": len(images)} | agreement(images),
        "peak_memory_mib": {
            variant: peak_memory(variant, arguments) for variant in ("pydensecrf_21", "wildcat_21", "wildcat_present")
        },
    }
    save_result(arguments, settings, results)


if __name__ == "__main__":
    main()
