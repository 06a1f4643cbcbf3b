"""Memory, open files and threads of one process over 50,000 predictions of real images, repeated.

    python benchmarks/long_run.py --run RUN --images FOLDER --out benchmarks/results/long-run.json

Measured for both outputs of `wildcat predict`: shards of 1,000 rows, and the single predictions.jsonl. The network may
be tiny: this measures what remains after an image is finished. Counts are taken every --every images; growth is the
difference between the last and the first, which is taken when all caches are filled.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from script import argument_parser, log, save_result, settings_of

import wildcat
from wildcat.cli.allocator import keep_freed_memory
from wildcat.data.image_ref import ImageLocation
from wildcat.export.predictions import PredictionWriter
from wildcat.predictor import BATCH_SIZE, Predictor
from wildcat.progress import Progress
from wildcat.scale.inputs import find_sources, image_locations
from wildcat.scale.shards import ShardFolder, predict_here, split_shards, write_shards

SHARD_ROWS = 1000


class Counts(Progress):
    """Counts of this process every so many images, as the Linux kernel has them."""

    def __init__(self, every: int, folder: Path) -> None:
        self.every, self.folder, self.done, self.began = every, folder, 0, time.monotonic()
        self.rows: list[dict[str, Any]] = []

    def advance(self, count: int = 1, note: str = "") -> None:
        self.done += count
        if self.done % self.every:
            return
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        written = sum(path.stat().st_size for path in self.folder.iterdir())
        self.rows.append(
            {
                "images": self.done,
                "rss_mb": round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1),
                "open_files": len(list(Path("/proc/self/fd").iterdir())),
                "threads": len(list(Path("/proc/self/task").iterdir())),
                "bytes_a_image": round(written / self.done, 1),
                "seconds": round(time.monotonic() - self.began, 1),
            }
        )
        log(self.rows[-1])


def into_shards(predictor: Predictor, images: Iterator[ImageLocation], counts: Counts) -> None:
    folder = ShardFolder(counts.folder, {"format": "jsonl"}, resume=False)
    write_shards(split_shards(images, SHARD_ROWS), folder, partial(predict_here, predictor, None, BATCH_SIZE), counts)


def into_one_file(predictor: Predictor, images: Iterator[ImageLocation], counts: Counts) -> None:
    with PredictionWriter(counts.folder, ()) as writer:
        for number, prediction in enumerate(predictor.stream(images, modalities=False)):
            writer.add(prediction, f"{number:06d}.jpg")
            counts.advance()


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--run", required=True, help="a run folder")
    parser.add_argument("--images", required=True, help="a folder of images, which are repeated")
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--every", type=int, default=5000)
    arguments = parser.parse_args()
    keep_freed_memory()
    predictor = wildcat.load(arguments.run, "cpu")
    found = list(image_locations(find_sources([arguments.images])))
    results: dict[str, Any] = {}
    outputs: dict[str, Callable[[Predictor, Iterator[ImageLocation], Counts], None]] = {
        "shards": into_shards,
        "one file": into_one_file,
    }
    with tempfile.TemporaryDirectory() as name:
        for output, write in outputs.items():
            counts = Counts(arguments.every, Path(name) / output)
            write(predictor, itertools.islice(itertools.cycle(found), arguments.count), counts)
            first, last = counts.rows[0], counts.rows[-1]
            growth = {key: round(last[key] - first[key], 1) for key in ("rss_mb", "open_files", "threads")}
            results[output] = {"growth": growth, "counts": counts.rows}
    settings = settings_of(arguments) | {"run": Path(arguments.run).name, "images": Path(arguments.images).name}
    save_result(arguments, settings, results)


if __name__ == "__main__":
    main()
