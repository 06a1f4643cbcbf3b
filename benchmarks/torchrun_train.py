"""Training by several processes under torchrun, against one process on the same cores: the same result, and how fast.

    python benchmarks/torchrun_train.py VOCDEVKIT 15-SCENE --out benchmarks/results/torchrun_train.json

Two trainings: the head on frozen features of VOC 2012 mini, features included; and every layer on a few images of
each class of 15-Scene. Each is done by one process with as many threads as there are cores, and by `--processes` that
share them, in turn, --rounds times; the cache of features is empty every time. What is compared is the last state:
weights, and loss and metric of every epoch. Starting Python and torch is in the wall time, not in images a second.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from wildcat.data import list_images
from wildcat.models.run import STATE, load_state, open_run
from wildcat.reproduce.record import spread, write_result
from wildcat.scale.ray_backend import usable_cores

HEAD = "--tune head --backbone lite0 --image-size 160 --epochs 5"
ALL = "--tune all --backbone lite0 --image-size 128 --epochs 2 --batch-size 16 --workers 0"


def few_scenes(scenes: Path, folder: Path, images: int) -> Path:
    """So many images of each class to train on, and a quarter as many for val."""
    for place in sorted(p for p in scenes.iterdir() if p.is_dir()):
        chosen = list_images(place)[: images + images // 4]
        for i, image in enumerate(chosen):
            link = folder / ("train" if i < images else "val") / place.name / image.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(image.resolve())
    return folder


def trained(data: Path, flags: str, processes: int, out: Path) -> dict[str, Any]:
    """Train in `processes`, each with its share of the cores; seconds, and the state at the end."""
    start = [sys.executable, "-m"]
    if processes > 1:
        start += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    command = [*start, "wildcat", "train", str(data), "--out", str(out), "--device", "cpu", *flags.split()]
    with tempfile.TemporaryDirectory() as cache:
        threads = str(max(1, usable_cores() // processes))
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "WILDCAT_CACHE": cache}
        begun = time.perf_counter()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - begun
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    history = open_run(out).history()
    rate = sum(line["images_per_second"] for line in history) / len(history)
    return {"wall": seconds, "rate": rate, "history": history, "model": load_state(out / STATE)["model"]}


def difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, float]:
    """How far two trainings ended from each other: weights by their length, losses and metrics as they are."""
    finite = {name: value.double() for name, value in one["model"].items() if bool(value.isfinite().all())}
    apart = sum(float((other["model"][name].double() - value).square().sum()) for name, value in finite.items())
    length = sum(float(value.square().sum()) for value in finite.values())
    epochs = list(zip(one["history"], other["history"], strict=True))
    metric = "map" if "map" in one["history"][0]["val"] else "accuracy"
    return {
        "weights": (apart / length) ** 0.5,
        "loss": max(abs(a["loss"] - b["loss"]) for a, b in epochs),
        "val_loss": max(abs(a["val"]["loss"] - b["val"]["loss"]) for a, b in epochs),
        "val_metric": max(abs(a["val"][metric] - b["val"][metric]) for a, b in epochs),
    }


def compared(data: Path, flags: str, sizes: Sequence[int], rounds: int, folder: Path) -> dict[str, Any]:
    """One process and several in turn."""
    found: dict[int, list[dict[str, Any]]] = {size: [] for size in (1, *sizes)}
    for number in range(rounds):
        for size, results in found.items():
            results.append(trained(data, flags, size, folder / f"{size}-{number}"))
            print(f"{flags}: {size} processes, {results[-1]['wall']:.1f} s", file=sys.stderr, flush=True)
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("voc", type=Path)
    parser.add_argument("scenes", type=Path)
    parser.add_argument("--processes", type=int, nargs="+", default=[2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=16, help="of each of the 15 classes, to train every layer on")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(usable_cores())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        scenes = few_scenes(arguments.scenes, folder / "scenes", arguments.images)
        results = {
            "head, VOC 2012 mini": compared(
                arguments.voc, HEAD, arguments.processes, arguments.rounds, folder / "head"
            ),
            "all layers, 15-Scene": compared(scenes, ALL, arguments.processes, arguments.rounds, folder / "all"),
        }
    settings = {"rounds": arguments.rounds, "images": arguments.images, "cores": usable_cores()}
    command = f"python benchmarks/torchrun_train.py VOCDEVKIT 15-SCENE --rounds {arguments.rounds}"
    sizes = " ".join(map(str, arguments.processes))
    write_result(arguments.out, f"{command} --processes {sizes} --out {arguments.out.name}", settings, results)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
