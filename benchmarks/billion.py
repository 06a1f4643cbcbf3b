"""What an image costs from its name to its row, stage by stage, and what a billion of them come to.

    python benchmarks/billion.py RUN IMAGES --out benchmarks/results/billion.json

One thread. Seconds are those of the processor and not of the clock, so that other programs matter little. Stages: its
name is listed, in a folder and in a tar shard; its bytes are read; it is decoded and made the network's input; it goes
through the network in batches of 8; its row is made and written, as JSON and as Parquet. A billion is multiplication.
"""

from __future__ import annotations

import argparse
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import wildcat
from wildcat.cli.allocator import keep_freed_memory
from wildcat.config import PartFormat
from wildcat.data import list_images
from wildcat.predictor import BATCH_SIZE, Predictor
from wildcat.reproduce.record import write_result
from wildcat.scale.inputs import find_sources
from wildcat.scale.inputs import list_images as stream_images
from wildcat.scale.shards import rows_of

BILLION = 10**9


def cost(work: Callable[[], object], images: int, rounds: int) -> float:
    """Seconds of the processor an image: the lowest of some rounds, which other programs have disturbed least."""
    taken = []
    for _ in range(rounds):
        begun = time.process_time()
        work()
        taken.append((time.process_time() - begun) / images)
    return min(taken)


def copies(source: Path, count: int, folder: Path) -> tuple[Path, Path]:
    """`count` images of a folder, over and over: as links in a folder, and in a tar shard."""
    found = list_images(source)
    linked, shard = folder / "linked", folder / "s.tar"
    linked.mkdir()
    with tarfile.open(shard, "w") as tar:
        for i in range(count):
            image = found[i % len(found)]
            (linked / f"{i:06d}{image.suffix}").symlink_to(image.resolve())
            tar.add(image, f"{i:06d}{image.suffix}")
    return linked, shard


def stages(predictor: Predictor, linked: Path, shard: Path, count: int, rounds: int) -> dict[str, float]:
    """Seconds an image of each stage."""
    paths = sorted(linked.iterdir())
    prepared = [predictor.prepare(path) for path in paths[: 8 * BATCH_SIZE]]
    batches = [prepared[i : i + BATCH_SIZE] for i in range(0, len(prepared), BATCH_SIZE)]
    predictions = [p for batch in batches for p in predictor.predict_prepared(batch, False)]

    def rows(part_format: PartFormat) -> None:
        sink = rows_of(part_format)
        for number, prediction in enumerate(predictions):
            sink.add({"row": number, **prediction.to_dict()})
        sink.content()

    work: dict[str, tuple[Callable[[], object], int]] = {
        "list a folder": (lambda: list(stream_images(find_sources([str(linked)]))), count),
        "list a shard": (lambda: list(stream_images(find_sources([str(shard)]))), count),
        "read": (lambda: [path.read_bytes() for path in paths], count),
        "read, decode and warp": (lambda: [predictor.prepare(path) for path in paths], count),
        "network": (
            lambda: [predictor.predict_prepared(batch, False) for batch in batches],
            len(prepared),
        ),
        "row, JSON": (lambda: rows("jsonl"), len(predictions)),
        "row, Parquet": (lambda: rows("parquet"), len(predictions)),
    }
    return {name: round(cost(run, images, rounds), 8) for name, (run, images) in work.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("images")
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    predictor = wildcat.load(arguments.run, "cpu")
    with tempfile.TemporaryDirectory() as name:
        linked, shard = copies(Path(arguments.images), arguments.count, Path(name))
        seconds = stages(predictor, linked, shard, arguments.count, arguments.rounds)
        kilobytes = shard.stat().st_size / arguments.count / 1000
        rows = rows_of("jsonl")
        rows.add(predictor.predict(sorted(linked.iterdir())[0]).to_dict())
    hours = {stage: round(s * BILLION / 3600) for stage, s in seconds.items()}
    results: dict[str, Any] = {
        "seconds an image": seconds,
        "core-hours for a billion": hours,
        "kilobytes an image": round(kilobytes, 1),
        "bytes a row": len(rows.content()),
    }
    print(results)
    settings = {k: v for k, v in vars(arguments).items() if k not in ("out", "run")}
    settings |= {
        "run": Path(arguments.run).name,
        "images": Path(arguments.images).name,
        "backbone": predictor.model.backbone.name,
        "size": predictor.preprocess.size,
    }
    write_result(
        arguments.out, f"python benchmarks/billion.py RUN IMAGES --out {arguments.out.name}", settings, results
    )


if __name__ == "__main__":
    main()
