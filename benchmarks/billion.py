"""The cost of an image from its name to its row, stage by stage, and of a billion images.

    python benchmarks/billion.py --run RUN --images FOLDER --out benchmarks/results/billion.json

One thread, in seconds of processor time, so that other programs matter little. The stages: list the name, in a folder
and in a tar shard; read the bytes; decode and resize; the network in batches of 8; the row as JSON and as Parquet.
"""

from __future__ import annotations

import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from script import argument_parser, save_result, settings_of

import wildcat
from wildcat.cli.allocator import keep_freed_memory
from wildcat.config import ShardFormat
from wildcat.data import list_images
from wildcat.predictor import BATCH_SIZE, Predictor
from wildcat.scale.inputs import find_sources, image_locations
from wildcat.scale.rows import Row, encode_rows, json_line

BILLION = 10**9


def cost(work: Callable[[], object], images: int, rounds: int) -> float:
    """Seconds of processor time per image: the lowest of some rounds, which other programs disturbed least."""
    seconds = []
    for _ in range(rounds):
        began = time.process_time()
        work()
        seconds.append((time.process_time() - began) / images)
    return min(seconds)


def copies(source: Path, count: int, folder: Path) -> tuple[Path, Path]:
    """`count` images of a folder, repeated as needed: as links in a folder, and in a tar shard."""
    found = list_images(source)
    linked, shard = folder / "linked", folder / "s.tar"
    linked.mkdir()
    with tarfile.open(shard, "w") as tar:
        for i in range(count):
            image = found[i % len(found)]
            (linked / f"{i:06d}{image.suffix}").symlink_to(image.resolve())
            tar.add(image, f"{i:06d}{image.suffix}")
    return linked, shard


def stages(predictor: Predictor, linked: Path, shard: Path, count: int, rounds: int) -> tuple[dict[str, float], int]:
    """Seconds per image of each stage, and the bytes of a row."""
    paths = sorted(linked.iterdir())
    prepared = [predictor.prepare(path) for path in paths[: 8 * BATCH_SIZE]]
    batches = [prepared[i : i + BATCH_SIZE] for i in range(0, len(prepared), BATCH_SIZE)]
    predictions = [p for batch in batches for p in predictor.predict_prepared(batch, False)]

    def rows(shard_format: ShardFormat) -> bytes:
        lines = (json_line({"row": i, **prediction.to_dict()}) for i, prediction in enumerate(predictions))
        return encode_rows((Row(i, line) for i, line in enumerate(lines)), shard_format)

    work: dict[str, tuple[Callable[[], object], int]] = {
        "list a folder": (lambda: list(image_locations(find_sources([str(linked)]))), count),
        "list a shard": (lambda: list(image_locations(find_sources([str(shard)]))), count),
        "read": (lambda: [path.read_bytes() for path in paths], count),
        "read, decode and warp": (lambda: [predictor.prepare(path) for path in paths], count),
        "network": (lambda: [predictor.predict_prepared(batch, False) for batch in batches], len(prepared)),
        "row, JSON": (lambda: rows("jsonl"), len(predictions)),
        "row, Parquet": (lambda: rows("parquet"), len(predictions)),
    }
    seconds = {name: round(cost(run, images, rounds), 8) for name, (run, images) in work.items()}
    return seconds, len(rows("jsonl")) // len(predictions)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--run", required=True, help="a run folder")
    parser.add_argument("--images", required=True, help="a folder of images")
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    predictor = wildcat.load(arguments.run, "cpu")
    with tempfile.TemporaryDirectory() as name:
        linked, shard = copies(Path(arguments.images), arguments.count, Path(name))
        seconds, row_bytes = stages(predictor, linked, shard, arguments.count, arguments.rounds)
        kilobytes = shard.stat().st_size / arguments.count / 1000
    results = {
        "seconds an image": seconds,
        "core-hours for a billion": {stage: round(s * BILLION / 3600) for stage, s in seconds.items()},
        "kilobytes an image": round(kilobytes, 1),
        "bytes a row": row_bytes,
    }
    settings = settings_of(arguments) | {"run": Path(arguments.run).name, "images": Path(arguments.images).name}
    settings |= {"backbone": predictor.model.backbone.name, "size": predictor.preprocess.size}
    save_result(arguments, settings, results)


if __name__ == "__main__":
    main()
