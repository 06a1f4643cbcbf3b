"""wildcat predict --shard-rows N: predict any number of images into shards of rows, with resume."""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from wildcat.cli.images import check_amounts, note_skipped, samples_of_split
from wildcat.cli.options import (
    BoxCommand,
    DataCommand,
    Model,
    Switch,
    limit_pixels_of,
    load_model,
    parse_sizes,
    resume_hint,
)
from wildcat.config import ShardFormat
from wildcat.errors import ConfigError

if TYPE_CHECKING:
    from wildcat.data.image_ref import ImageLocation
    from wildcat.predictor import Predictor

SHARD_ROWS = 1000  # rows of a shard with --engine ray and without --shard-rows


@dataclass(frozen=True, kw_only=True)
class ShardedCommand(BoxCommand, DataCommand):
    """The arguments of wildcat predict that also apply to output in shards."""

    run: Model
    paths: Positional[Annotated[tuple[str, ...], arg(metavar="PATH...", help_behavior_hint="(required)")]]
    """Images, folders of images, or globs; with --split, one data set. With --shard-rows also tar shards, Parquet
    tables and addresses such as s3://bucket/shard-{000..099}.tar."""
    out: Annotated[Path | None, arg(metavar="PATH")] = None
    """Folder to create for predictions.jsonl and images, or for shards; without it, results are only printed."""
    split: Annotated[str | None, arg(metavar="NAME")] = None
    """Predict this split of a data set."""
    limit: int = 0
    """Stop after this many images; 0: predict all."""
    batch_size: int = 8
    """Images per forward pass."""
    top_k: Annotated[int, arg(metavar="K")] = 0
    """Write the values and labels of the K likeliest classes only; 0: of all. For models of thousands of classes."""
    shard_rows: Annotated[int | None, arg(metavar="N")] = None
    """For any number of images: write shards of N rows (shard-00000.jsonl, ...), each atomically, that --resume
    continues."""
    shard_format: ShardFormat = "jsonl"
    """Write shards as JSON lines or as Parquet."""
    resume: Switch = False
    """Continue the shards of --out after a stopped or killed command; images with a row are left out."""
    image_column: Annotated[str | None, arg(metavar="NAME")] = None
    """The column with the images: of a table read with --split, or of Parquet tables if several columns hold bytes."""
    engine: Literal["torch", "compile", "onnx", "openvino", "ray"] = "torch"  # type: ignore[assignment]  # one more
    """Library that runs the network; compile: torch.compile, ready after some minutes; ray: torch in several processes
    of Ray Data, with output in shards. An image that crashes its decoder ends the command; with ray it gets an error
    row."""
    workers: int = 0
    """Processes of --engine ray; 0: one per GPU, or per core."""


def run_sharded(command: ShardedCommand) -> int:
    """wildcat predict with --shard-rows or --engine ray"""
    from wildcat.device import available_cores, choose_device
    from wildcat.progress import ProgressBar
    from wildcat.scale.shards import ShardFolder, predict_here, split_shards, write_shards

    out = check_sharded_flags(command)
    device = choose_device(command.device).type
    skipped: Counter[str] = Counter()
    images = find_listed(command, skipped)
    rows = command.shard_rows or SHARD_ROWS
    predictor = None if command.engine == "ray" else load_model(command, command.run)
    folder = ShardFolder(out, plan_of(command, rows), command.resume)
    source = command.paths[0] + (f" and {len(command.paths) - 1} more" if len(command.paths) > 1 else "")
    print(f"{command.run}: images of {source}; device {device}; shards of {rows} rows in {out}", flush=True)

    shards = split_shards(images, rows)

    def hint() -> str:
        if folder.started:
            return "Then give the same command with --resume; shards that are written stay."
        return "Nothing was written: give the same command again."

    with resume_hint(hint), ProgressBar() as progress:
        if predictor is not None:
            predict = partial(predict_here, predictor, command.image_column, command.batch_size, command.top_k)
            summary = write_shards(shards, folder, predict, progress)
        else:
            import torch

            from wildcat.scale.ray_backend import RayOptions, predict_with_ray, ray_started

            workers = command.workers or (torch.cuda.device_count() if device == "cuda" else available_cores())
            model = replace(command, run=absolute_run(command.run), device=device, engine="torch")
            load = partial(load_in_worker, model)
            options = RayOptions(
                load, workers, device == "cuda", command.image_column, command.batch_size, command.top_k
            )
            with ray_started(workers):
                summary = write_shards(shards, folder, partial(predict_with_ray, options=options), progress)
    note_skipped(skipped)
    if summary.failed:
        first = f" The first {len(summary.errors)}:" if summary.failed > len(summary.errors) else ""
        print(
            f"{summary.failed} of {summary.rows} images could not be read; their rows have the error.{first}",
            *(f"  {error}" for error in summary.errors),
            sep="\n",
            file=sys.stderr,
        )
    print(f"{summary.rows} rows in {summary.shards} shards in {out}: {summary.rows - summary.failed} predictions")
    return 0 if summary.rows > summary.failed else 1


def check_sharded_flags(command: ShardedCommand) -> Path:
    """The output folder, after checking that the flags fit together."""
    check_amounts(command.batch_size, command.limit, command.top_k)
    if command.out is None:
        raise ConfigError("shards are written into a folder.", "Add --out DIR.")
    if command.shard_rows is not None and command.shard_rows < 1:
        raise ConfigError(f"--shard-rows {command.shard_rows}: give at least 1.", "1000 is usual.")
    if command.workers < 0:
        raise ConfigError(f"--workers {command.workers}: give at least 1.")
    if command.engine == "ray" and command.precision == "int8":
        raise ConfigError("--engine ray runs torch, which has no int8.", "Give --precision fp32 or bf16.")
    return command.out


def find_listed(command: ShardedCommand, skipped: Counter[str]) -> Iterator[ImageLocation]:
    """The images of the sources; the first is listed at once, so that errors come early. Counts what is skipped."""
    from wildcat.data.image_ref import ImageLocation
    from wildcat.scale.inputs import find_sources, image_locations

    images: Iterator[ImageLocation]
    if command.split is not None:
        samples = samples_of_split(command.paths, command.split, command, command.run)
        images = (s.path if isinstance(s.path, ImageLocation) else ImageLocation(str(s.path)) for s in samples)
    else:
        images = image_locations(find_sources(command.paths), command.image_column, skipped)
    first = list(itertools.islice(images, 1))
    if not first:
        raise ConfigError(f"{command.paths[0]} holds no images.", "Name other sources.")
    images = itertools.chain(first, images)
    return itertools.islice(images, command.limit) if command.limit else images


def plan_of(command: ShardedCommand, rows: int) -> dict[str, Any]:
    """Everything that decides the rows; a resumed command must have the same."""
    from wildcat.models.calibration import read_calibration, weights_digest
    from wildcat.models.folder import open_model
    from wildcat.models.hub import model_folder

    run = model_folder(command.run)
    calibration = read_calibration(run, open_model(run).classes) if run.is_dir() else None
    return {
        "run": absolute_run(command.run),
        "weights": weights_digest(run) if run.is_dir() else command.run,
        "thresholds": calibration and calibration.record["gate"],  # they decide the labels and boxes of the rows
        "sources": list(command.paths),
        "split": command.split,
        "limit": command.limit,
        "image_column": command.image_column,
        "shard_rows": rows,
        "format": command.shard_format,
        "top_k": command.top_k,
        "max_pixels": command.max_pixels,
        "settings": {
            "flip": command.flip,
            "sizes": list(parse_sizes(command.sizes)),
            "output_stride": command.output_stride,
            "tile": command.tile,
            "engine": "torch" if command.engine == "ray" else command.engine,
            "precision": command.precision,
            "localize": command.localize,
        },
    }


def absolute_run(name: str) -> str:
    """The absolute path of a model folder, or the name of a packaged model."""
    run = Path(name).expanduser()
    return str(run.absolute()) if run.is_dir() else name


def load_in_worker(command: ShardedCommand) -> Predictor:
    """Load the model in a worker process, with the allocator settings of the command line."""
    from wildcat.cli.allocator import keep_freed_memory

    keep_freed_memory()
    limit_pixels_of(command)
    return load_model(command, command.run)
