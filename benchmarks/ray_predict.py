"""Throughput of prediction in shards with Ray, against one process on the same cores; the goal is a ratio of 0.85.

    python benchmarks/ray_predict.py --run RUN --images FOLDER --out benchmarks/results/ray-predict.json

Both predict the same shards from images on disk to rows on disk, alternately, --rounds times. One process computes with
a thread per core; Ray's workers share the cores. The rate is that of all shards but the first of each worker. The time
until these, in which Ray starts workers that load the network, is reported separately: a command pays for it once.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import torch
from script import argument_parser, log, save_result, settings_of

from wildcat.cli.allocator import keep_freed_memory
from wildcat.device import available_cores
from wildcat.predictor import BATCH_SIZE, Predictor, load
from wildcat.reproduce.tables import spread
from wildcat.scale.inputs import find_sources, image_locations
from wildcat.scale.ray_backend import RayOptions, import_ray, predict_with_ray, ray_started
from wildcat.scale.rows import Row, read_rows
from wildcat.scale.shards import Shard, ShardFolder, predict_here, split_shards, write_shards


def load_in_worker(run: str) -> Predictor:
    keep_freed_memory()
    return load(run, "cpu")


def timed(
    predicted: Iterator[tuple[Shard, Iterable[Row]]], shards: list[Shard], folder: Path, skip: int
) -> list[float]:
    """Seconds from the start to each shard on disk, after the first `skip` of them."""
    began, times = time.perf_counter(), []

    def predict(_: Iterator[Shard]) -> Iterator[tuple[Shard, Iterable[Row]]]:
        for found in predicted:
            yield found
            times.append(time.perf_counter() - began)

    write_shards(iter(shards), ShardFolder(folder, {"format": "jsonl"}, resume=False), predict)
    return times[skip - 1 :]


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--run", required=True, help="a run folder, or the name of a packaged model")
    parser.add_argument("--images", required=True, help="a folder of images")
    parser.add_argument("--count", type=int, default=640, help="images per round; those of the folder are repeated")
    parser.add_argument("--shard-rows", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(available_cores())
    found = list(image_locations(find_sources([arguments.images])))
    images = [found[i % len(found)] for i in range(arguments.count)]
    shards = list(split_shards(images, arguments.shard_rows))
    run = Path(arguments.run)
    load_run = partial(load_in_worker, str(run.absolute()) if run.is_dir() else arguments.run)
    predictor, options = load_run(), RayOptions(load_run, arguments.workers)
    rates: dict[str, list[float]] = {"one process": [], "ray": []}
    starts: dict[str, list[float]] = {"one process": [], "ray": []}
    with tempfile.TemporaryDirectory() as name, ray_started(arguments.workers):
        for turn in range(arguments.rounds):
            ways = {
                "one process": predict_here(predictor, None, BATCH_SIZE, iter(shards)),
                "ray": predict_with_ray(iter(shards), options),
            }
            for way, predicted in ways.items():
                folder = Path(name) / f"{way}{turn}"
                times = timed(predicted, shards, folder, arguments.workers)
                count = arguments.count - arguments.workers * arguments.shard_rows
                rates[way].append(count / (times[-1] - times[0]))
                starts[way].append(times[0])
                rows = [row["image"] for path in sorted(folder.glob("shard-*")) for row in read_rows(path)]
                if rows != [image.name for image in images]:
                    raise SystemExit(f"the rows of {way} are not those of the images")
                log(f"{way}: {rates[way][-1]:.2f} images per second")
    results = {
        "images a second": {way: spread(values) for way, values in rates.items()},
        "ratio": round(statistics.median(rates["ray"]) / statistics.median(rates["one process"]), 4),
        "seconds to start": round(statistics.median(starts["ray"]) - statistics.median(starts["one process"]), 2),
    }
    settings = settings_of(arguments, without=("images",)) | {"cores": available_cores()}
    save_result(arguments, settings | {"run": run.name, "ray": import_ray().__version__}, results)


if __name__ == "__main__":
    main()
