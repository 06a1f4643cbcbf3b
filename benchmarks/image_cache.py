"""What `wildcat train --cache-images` spares: training images a second with decoded images kept and without.

    python benchmarks/image_cache.py IMAGES --out benchmarks/results/image-cache.json

Images of a folder, as they are and each enlarged to --side pixels as a camera would store it (JPEG, quality 90).
Both ways in turn, --rounds times: an epoch of crops read and augmented by this process, without a network, which is
what readers beside a GPU do; and an epoch of `wildcat train --tune all` with a network that costs next to nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from wildcat.cli.allocator import keep_freed_memory
from wildcat.config import TrainConfig
from wildcat.data import DataSet, Sample, list_images
from wildcat.data.decode_cache import DecodeCache
from wildcat.data.images import read_image
from wildcat.data.loader import Augment, ImageDataset, batch_indices, epoch_order, load_batches
from wildcat.data.transforms import Preprocess
from wildcat.fitting.timing import speedups, time_in_turn
from wildcat.models.run import create_run
from wildcat.reproduce.record import write_result
from wildcat.train.loop import train

BATCH = 16


def enlarged(paths: Sequence[Path], side: int, folder: Path) -> list[Path]:
    """Copies of the images whose longer side has `side` pixels."""
    folder.mkdir()
    made = []
    for path in paths:
        image = read_image(path)
        scale = side / max(image.size)
        size = (round(image.width * scale), round(image.height * scale))
        made.append(folder / f"{path.stem}.jpg")
        image.resize(size, Image.Resampling.LANCZOS).save(made[-1], quality=90)
    return made


def samples_of(paths: Sequence[Path]) -> list[Sample]:
    return [Sample(path.name, path, np.array([1 - 2 * (i % 2)], np.int8)) for i, path in enumerate(paths)]


def reading(paths: Sequence[Path], size: int, keep: Path | None, limit: int) -> Callable[[], None]:
    """One epoch after another, without a network."""
    images = ImageDataset(samples_of(paths), Preprocess(size, (0.5,) * 3, (0.5,) * 3), Augment(0))
    if keep is not None:
        images.read = DecodeCache(keep, [(path, images.spare) for path in paths], limit)
    epochs = iter(range(1_000_000))

    def run() -> None:
        epoch = next(epochs)
        for _ in load_batches(images, batch_indices(epoch_order(len(paths), 0, epoch), BATCH), epoch):
            pass

    return run


def training(paths: Sequence[Path], size: int, gigabytes: float, folder: Path) -> Callable[[], None]:
    """An epoch of a training with a tiny network."""
    samples = samples_of(paths)
    data = DataSet("images", "folder", paths[0].parent, ("one",), "multilabel", {"train": lambda: samples})
    config = TrainConfig(
        backbone="test_resnet",
        weights="none",
        image_size=size,
        epochs=1,
        batch_size=BATCH,
        val_split="none",
        standardize=False,
        device="cpu",
        cache_images=gigabytes,
    )
    number = iter(range(1_000_000))

    def run() -> None:
        train(create_run(folder / f"run-{gigabytes:g}-{next(number)}", config, data), data)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--side", type=int, default=3000)
    parser.add_argument("--size", type=int, default=320, help="pixels of the network's input")
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    keep_freed_memory()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name, torch.random.fork_rng():
        folder, limit = Path(name), int(arguments.gigabytes * 1e9)
        os.environ["WILDCAT_CACHE"] = str(folder / "cache")
        found = list_images(arguments.images)[: arguments.count]
        for what, paths in (("as they are", found), ("enlarged", enlarged(found, arguments.side, folder / "large"))):
            place = folder / what
            ways = {
                "reading": {
                    "decoded": reading(paths, arguments.size, None, limit),
                    "kept": reading(paths, arguments.size, place, limit),
                },
                "training": {
                    "decoded": training(paths, arguments.size, 0.0, place),
                    "kept": training(paths, arguments.size, arguments.gigabytes, place),
                },
            }
            for kind, runs in ways.items():
                rows = speedups(time_in_turn(runs, arguments.rounds, warmup=1), "decoded", len(paths))
                results[f"{kind}, images {what}"] = {
                    way: {"images a second": round(1 / row["seconds"], 1), **row} for way, row in rows.items()
                }
                print(kind, what, rows, file=sys.stderr, flush=True)
    settings = {k: v for k, v in vars(arguments).items() if k not in ("out", "images")}
    command = f"python benchmarks/image_cache.py IMAGES --out {arguments.out.name}"
    write_result(arguments.out, command, settings, results)


if __name__ == "__main__":
    main()
