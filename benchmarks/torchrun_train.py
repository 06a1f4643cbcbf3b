"""Training in several processes under torchrun, against one process on the same cores: difference and speed.

    python benchmarks/torchrun_train.py --voc VOCdevkit --scenes 15-Scene --out benchmarks/results/torchrun-train.json

Two trainings: the head on frozen features of VOC 2012 mini, including the features; and every layer on a few images of
each class of 15-Scene. Each runs in one process with one thread per core, and in `--processes` that share the cores,
alternately, --rounds times, with an empty feature cache. Compared are the weights at the end, and loss and metric of
every epoch. The wall time includes starting Python and torch; images per second does not.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from script import argument_parser, log, save_result, settings_of

from wildcat.data import list_images
from wildcat.device import available_cores
from wildcat.models.run import STATE, load_state, open_run
from wildcat.reproduce.tables import spread

HEAD = "--tune head --backbone lite0 --image-size 160 --epochs 5"
ALL = "--tune all --backbone lite0 --image-size 128 --epochs 2 --batch-size 16 --workers 0"


def few_scenes(scenes: Path, folder: Path, images: int) -> Path:
    """A data set with `images` training images of each class, and a quarter as many for val."""
    for place in sorted(p for p in scenes.iterdir() if p.is_dir()):
        chosen = list_images(place)[: images + images // 4]
        for i, image in enumerate(chosen):
            link = folder / ("train" if i < images else "val") / place.name / image.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(image.resolve())
    return folder


def trained(data: Path, flags: str, processes: int, out: Path) -> dict[str, Any]:
    """Train in `processes` that share the cores; returns seconds, history and the weights at the end."""
    start = [sys.executable, "-m"]
    if processes > 1:
        start += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    command = [*start, "wildcat", "train", str(data), "--out", str(out), "--device", "cpu", *flags.split()]
    with tempfile.TemporaryDirectory() as cache:
        threads = str(max(1, available_cores() // processes))
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "WILDCAT_CACHE": cache}
        start_time = time.perf_counter()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - start_time
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    history = open_run(out).history()
    rate = sum(line["images_per_second"] for line in history) / len(history)
    return {"wall": seconds, "rate": rate, "history": history, "model": load_state(out / STATE)["model"]}


def difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, float]:
    """Difference of two trainings: relative norm for the weights, largest difference for losses and metrics."""
    finite = {name: value.double() for name, value in one["model"].items() if bool(value.isfinite().all())}
    distance = sum(float((other["model"][name].double() - value).square().sum()) for name, value in finite.items())
    norm = sum(float(value.square().sum()) for value in finite.values())
    epochs = list(zip(one["history"], other["history"], strict=True))
    metric = "map" if "map" in one["history"][0]["val"] else "accuracy"
    return {
        "weights": (distance / norm) ** 0.5,
        "loss": max(abs(a["loss"] - b["loss"]) for a, b in epochs),
        "val_loss": max(abs(a["val"]["loss"] - b["val"]["loss"]) for a, b in epochs),
        "val_metric": max(abs(a["val"][metric] - b["val"][metric]) for a, b in epochs),
    }


def compared(data: Path, flags: str, sizes: Sequence[int], rounds: int, folder: Path) -> dict[str, Any]:
    """Train alternately in one process and in several."""
    found: dict[int, list[dict[str, Any]]] = {size: [] for size in (1, *sizes)}
    for number in range(rounds):
        for size, results in found.items():
            results.append(trained(data, flags, size, folder / f"{size}-{number}"))
            log(f"{flags}: {size} processes, {results[-1]['wall']:.1f} s")
    alone = found[1][0]
    metric = "map" if "map" in alone["history"][0]["val"] else "accuracy"
    return {
        "flags": flags,
        "metric": metric,
        "last": alone["history"][-1]["val"],
        "processes": {
            str(size): {
                "wall_seconds": spread([r["wall"] for r in results]),
                "images_per_second": spread([r["rate"] for r in results]),
                "difference": difference(alone, results[0]),
                "same_bits_every_round": all(difference(results[0], r)["weights"] == 0 for r in results),
            }
            for size, results in found.items()
        },
    }


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--voc", type=Path, required=True)
    parser.add_argument("--scenes", type=Path, required=True)
    parser.add_argument("--processes", type=int, nargs="+", default=[2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=16, help="training images per class of 15-Scene")
    arguments = parser.parse_args()
    torch.set_num_threads(available_cores())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        scenes = few_scenes(arguments.scenes, folder / "scenes", arguments.images)
        results = {
            "head, VOC 2012 mini": compared(
                arguments.voc, HEAD, arguments.processes, arguments.rounds, folder / "head"
            ),
            "all layers, 15-Scene": compared(scenes, ALL, arguments.processes, arguments.rounds, folder / "all"),
        }
    save_result(arguments, settings_of(arguments, without=("voc", "scenes")) | {"cores": available_cores()}, results)


if __name__ == "__main__":
    main()
