"""Memory, open files and threads of one process over 50,000 predictions of real images, repeated.

    python benchmarks/long_run.py RUN IMAGES --out benchmarks/results/long-run.json

Both sinks of `wildcat predict`: parts of 1,000 rows, and the one predictions.jsonl. The network may be tiny: what is
looked at is what stays after an image is done with. Figures are taken every --every images; growth is what the last
has over the first, which is taken when all caches are warm.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import wildcat
from wildcat.cli.allocator import keep_freed_memory
from wildcat.data.image_ref import ImageLocation, ImageRef
from wildcat.export.predictions import PredictionWriter
from wildcat.predictor import Predictor
from wildcat.reproduce.record import write_result
from wildcat.scale.inputs import find_sources, list_images
from wildcat.scale.shards import Done, PartFolder, split_parts
from wildcat.scale.worker import PartMaker, run_parts

PART_ROWS = 1000


def repeated(source: str, count: int) -> Iterator[ImageLocation]:
    """`count` images: those of a source, over and over."""
    return itertools.islice(itertools.cycle(list(list_images(find_sources([source])))), count)


def figures(done: int, written: int, begun: float) -> dict[str, Any]:
    """Of this process, as the kernel of Linux has them."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "images": done,
        "rss_mb": round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1),
        "open_files": len(list(Path("/proc/self/fd").iterdir())),
        "threads": len(list(Path("/proc/self/task").iterdir())),
        "bytes_a_image": round(written / done, 1),
        "seconds": round(time.monotonic() - begun, 1),
    }


def in_parts(predictor: Predictor, images: Iterator[ImageRef], folder: Path, every: int) -> list[dict[str, Any]]:
    """Figures while parts are written."""
    rows: list[dict[str, Any]] = []
    begun, done = time.monotonic(), 0

    def heard(part: Done, _: bool) -> None:
        nonlocal done
        done += part.rows
        if done % every == 0:
            rows.append(figures(done, sum(path.stat().st_size for path in folder.iterdir()), begun))
            print("parts", rows[-1], file=sys.stderr, flush=True)

    make = partial(map, partial(PartMaker(folder, "jsonl"), predictor))
    run_parts(split_parts(images, PART_ROWS), PartFolder(folder, {"format": "jsonl"}, resume=False), make, heard)
    return rows


def in_one_file(predictor: Predictor, images: Iterator[ImageRef], folder: Path, every: int) -> list[dict[str, Any]]:
    """Figures while predictions.jsonl is written."""
    rows: list[dict[str, Any]] = []
    begun = time.monotonic()
    with PredictionWriter(folder, ()) as writer:
        for done, prediction in enumerate(predictor.stream(images, modalities=False), 1):
            writer.add(prediction, f"{done:06d}.jpg")
            if done % every == 0:
                rows.append(figures(done, sum(path.stat().st_size for path in folder.iterdir()), begun))
                print("one file", rows[-1], file=sys.stderr, flush=True)
    return rows


def growth(rows: list[dict[str, Any]]) -> dict[str, float]:
    """What the last figures have over the first."""
    names = ("rss_mb", "open_files", "threads")
    return {name: round(rows[-1][name] - rows[0][name], 1) for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("images")
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--every", type=int, default=5000)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    keep_freed_memory()
    predictor = wildcat.load(arguments.run, "cpu")
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        for sink, write in (("parts", in_parts), ("one file", in_one_file)):
            images = repeated(arguments.images, arguments.count)
            rows = write(predictor, images, Path(name) / sink, arguments.every)
            results[sink] = {"growth": growth(rows), "figures": rows}
    settings = {k: v for k, v in vars(arguments).items() if k not in ("out", "run", "images")}
    settings |= {"run": Path(arguments.run).name, "images": Path(arguments.images).name}
    write_result(
        arguments.out, f"python benchmarks/long_run.py RUN IMAGES --out {arguments.out.name}", settings, results
    )


if __name__ == "__main__":
    main()
