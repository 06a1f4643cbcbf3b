"""Throughput of prediction in parts by Ray, against one process with the same cores; the goal is a ratio of 0.85.

    python benchmarks/ray_predict.py RUN IMAGES --out benchmarks/results/ray_predict.json

Both make the same parts of the same images, from decoding to the rows on disk, in turn, --rounds times. One process
computes with as many threads as there are cores; Ray's workers share them. Starting Ray and loading the network is
reported by itself: it is paid once. The rows of all rounds are of the same images in the same order, or there is no
result.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from wildcat.cli.predict_sharded import load_in_worker
from wildcat.data.image_ref import ImageLocation
from wildcat.reproduce.record import spread, write_result
from wildcat.scale.inputs import find_sources, list_images
from wildcat.scale.ray_backend import RayPool, import_ray, usable_cores
from wildcat.scale.shards import Done, Part, PartFolder, read_part, split_parts
from wildcat.scale.worker import PartMaker, run_parts

Make = Callable[[Iterator[Part]], Iterator[Done]]


def images_of(source: str, count: int) -> list[ImageLocation]:
    """`count` images of a source, over and over where it has fewer."""
    found = list(list_images(find_sources([source])))
    return [found[i % len(found)] for i in range(count)]


def timed(parts: list[Part], folder: Path, make: Make) -> float:
    """Seconds for all parts, into a new folder."""
    start = time.perf_counter()
    run_parts(parts, PartFolder(folder, {"format": "jsonl"}, resume=False), make)
    return time.perf_counter() - start


def rows_in(folder: Path) -> list[tuple[int, str]]:
    """Number and image of every row; scores differ in the last digit with the number of threads."""
    return [(row["row"], row["image"]) for path in sorted(folder.glob("part-*")) for row in read_part(path)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("images")
    parser.add_argument("--count", type=int, default=640, help="images of a round")
    parser.add_argument("--part-rows", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    cores = usable_cores()
    torch.set_num_threads(cores)
    parts = list(split_parts(images_of(arguments.images, arguments.count), arguments.part_rows))
    load = partial(load_in_worker, str(Path(arguments.run).absolute()), "cpu")
    predictor = load()
    seconds: dict[str, list[float]] = {"one process": [], "ray": []}
    start = time.perf_counter()
    with (
        tempfile.TemporaryDirectory() as name,
        RayPool(load, PartMaker(Path(name), "jsonl"), arguments.workers) as pool,
    ):
        pool.processes()
        starting = time.perf_counter() - start

        def ray_into(folder: Path) -> Make:
            pool.maker = PartMaker(folder, "jsonl")
            return pool.make_all

        def here(folder: Path) -> Make:
            return partial(map, partial(PartMaker(folder, "jsonl"), predictor))

        ways = {"one process": here, "ray": ray_into}
        made: list[list[tuple[int, str]]] = []
        for turn in range(-1, arguments.rounds):  # the first warms up
            for way, prepared in ways.items():
                folder = Path(name) / f"{way}{turn}"
                taken = timed(parts[: arguments.workers] if turn < 0 else parts, folder, prepared(folder))
                if turn >= 0:
                    seconds[way].append(taken)
                    made.append(rows_in(folder))
                    print(f"{way}: {arguments.count / taken:.2f} images a second", file=sys.stderr, flush=True)
    if any(rows != made[0] for rows in made):
        raise SystemExit("the rows of one process and of Ray are of other images")
    rates = {way: [arguments.count / s for s in taken] for way, taken in seconds.items()}
    results = {
        "images a second": {way: spread(values) for way, values in rates.items()},
        "ratio": round(statistics.median(rates["ray"]) / statistics.median(rates["one process"]), 4),
        "seconds to start": round(starting, 2),
    }
    print(results)
    settings = {k: v for k, v in vars(arguments).items() if k not in ("out", "run", "images")}
    settings |= {"run": Path(arguments.run).name, "cores": cores, "ray": import_ray().__version__}
    command = f"python benchmarks/ray_predict.py RUN IMAGES --out {arguments.out.name}"
    write_result(arguments.out, command, settings, results)


if __name__ == "__main__":
    main()
