"""wildcat predict --part-rows N: any number of images, in parts that are each written once."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from wildcat.cli.images import check_amounts
from wildcat.cli.options import DataCommand, ModelCommand, open_data, parse_sizes, resume_hint
from wildcat.config import PartFormat
from wildcat.errors import ConfigError

if TYPE_CHECKING:
    from wildcat.data.image_ref import ImageLocation
    from wildcat.predictor import Predictor
    from wildcat.scale.shards import Done

PART_ROWS = 1000
"""Rows of a part where --engine ray is given and nothing is said."""


@dataclass(frozen=True, kw_only=True)
class PartsCommand(ModelCommand, DataCommand):
    """What wildcat predict takes where it writes parts, and also where it does not."""

    run: Positional[Annotated[str, arg(metavar="RUN")]]
    """A run folder, or a packaged model such as imagenet-lite0."""
    paths: Positional[Annotated[tuple[str, ...], arg(metavar="PATH...")]]
    """Images, folders of images, or globs; with --split, one data set. With --part-rows also tar shards, Parquet
    tables and addresses such as s3://bucket/shard-{000..099}.tar."""
    out: Path | None = None
    """Folder to make for predictions.jsonl and images, or for parts; without it, results are only printed."""
    split: str | None = None
    """Predict this split of a data set."""
    limit: int = 0
    """Stop after so many images; 0: all."""
    batch_size: int = 8
    """Images that go through the network together."""
    part_rows: Annotated[int | None, arg(metavar="N")] = None
    """For any number of images: write parts of N rows, part-00000.jsonl and on, each whole or not there."""
    part_format: PartFormat = "jsonl"
    """Write parts as JSON lines or as Parquet."""
    resume: bool = False
    """Go on with the parts of --out that a command which was stopped has left to do."""
    image_column: Annotated[str | None, arg(metavar="NAME")] = None
    """The column of Parquet tables with the images, where several hold bytes."""
    engine: Literal["torch", "compile", "onnx", "openvino", "ray"] = "torch"  # type: ignore[assignment]  # one more
    """What runs the network; compile: torch.compile, ready after some minutes; auto: the one wildcat bench --pick found
    fastest here; ray: torch in several processes of Ray, which write parts."""
    workers: int = 0
    """Processes of --engine ray; 0: one for each GPU, or for each core."""

    @property
    def in_parts(self) -> bool:
        """Whether parts are asked for."""
        return self.part_rows is not None or self.engine == "ray"


def run_parts_command(command: PartsCommand) -> int:
    """wildcat predict, in parts"""
    from wildcat.device import choose_device
    from wildcat.progress import progress_bar
    from wildcat.scale.shards import PartFolder, split_parts
    from wildcat.scale.worker import PartMaker, run_parts

    out = check_parts_flags(command)
    device = choose_device(command.device)
    sources, images = find_listed(command)
    load = loader(command, device.type)
    rows = command.part_rows or PART_ROWS
    maker = PartMaker(out.absolute(), command.part_format, command.image_column, command.batch_size)
    predictor = load() if command.engine != "ray" else None  # a model that cannot be used is found before anything else
    folder = PartFolder(out, plan_of(command, rows), command.resume)
    print(f"{command.run}: images of {sources}; device {device.type}; parts of {rows} rows in {out}", flush=True)

    how = "Then give the same command with --resume; finished parts stay."
    with resume_hint(lambda: how), progress_bar(None, "predicting") as bar:

        def heard(done: Done, before: bool) -> None:
            if before:  # not counted into the rate
                bar.initial += done.rows
            bar.update(done.rows)
            for fault in () if before else done.faults:
                bar.write(f"skipped {fault.rstrip('.')}.", file=sys.stderr)

        parts = split_parts(images, rows)
        if predictor is not None:
            totals = run_parts(parts, folder, partial(map, partial(maker, predictor)), heard)
        else:
            from wildcat.scale.ray_backend import RayPool

            with RayPool(load, maker, workers_of(command, device.type), device.type == "cuda") as pool:
                totals = run_parts(parts, folder, pool.make_all, heard)
    if totals.failed:
        more = totals.failed - len(totals.faults)
        print(
            f"{totals.failed} of {totals.rows} images could not be read; their rows say why"
            f"{f'. The first {len(totals.faults)}' if more else ''}:",
            *(f"  {fault}" for fault in totals.faults),
            sep="\n",
            file=sys.stderr,
        )
    print(f"{totals.rows} rows in {totals.parts} parts in {out}: {totals.rows - totals.failed} predictions")
    return 0 if totals.rows > totals.failed else 1


def check_parts_flags(command: PartsCommand) -> Path:
    """The output folder of a command whose flags fit together.

    Raises:
        ConfigError: no --out, or an amount out of range.
    """
    check_amounts(command.batch_size, command.limit)
    if command.out is None:
        raise ConfigError("parts are written into a folder.", "Add --out DIR.")
    if command.part_rows is not None and command.part_rows < 1:
        raise ConfigError(f"--part-rows {command.part_rows}: give at least 1.", "1000 is usual.")
    if command.engine == "ray":
        if command.workers < 0:
            raise ConfigError(f"--workers {command.workers}: give at least 1.")
        if command.precision == "int8":
            raise ConfigError("--engine ray runs torch, which has no int8.", "Give --precision fp32 or bf16.")
    elif command.workers:
        raise ConfigError(f"--workers {command.workers} is for --engine ray.", "Add --engine ray.")
    return command.out


def refuse_parts_flags(command: PartsCommand) -> None:
    """Refuse what only parts can do where none are asked for.

    Raises:
        ConfigError: names the flag, or the source.
    """
    wanted = {
        "--resume": command.resume,
        f"--part-format {command.part_format}": command.part_format != "jsonl",
        f"--image-column {command.image_column}": command.image_column is not None,
    }
    if command.split is None:
        wanted |= {path: "://" in path or path.endswith((".tar", ".parquet")) for path in command.paths}
    if flag := next((flag for flag, given in wanted.items() if given), None):
        raise ConfigError(f"{flag} is for predictions in parts.", "Add --part-rows 1000 --out DIR.")
    if command.workers:
        raise ConfigError(f"--workers {command.workers} is for --engine ray.", "Add --engine ray.")


def find_listed(command: PartsCommand) -> tuple[str, Iterator[ImageLocation]]:
    """What the sources are called, and their images; the first is looked for at once, so that errors come early."""
    from wildcat.data.image_ref import ImageLocation
    from wildcat.scale.inputs import find_sources, list_images

    images: Iterator[ImageLocation]
    if command.split is not None:
        if len(command.paths) != 1:
            raise ConfigError(f"--split {command.split}: give one data set, not {len(command.paths)} paths.")
        samples = open_data(command, command.paths[0]).split(command.split)
        images = (s.path if isinstance(s.path, ImageLocation) else ImageLocation(str(s.path)) for s in samples)
    else:
        images = list_images(find_sources(command.paths), command.image_column)
    first = list(itertools.islice(images, 1))
    if not first:
        raise ConfigError(f"{command.paths[0]} holds no images.", "Name other sources.")
    images = itertools.chain(first, images)
    name = command.paths[0] + (f" and {len(command.paths) - 1} more" if len(command.paths) > 1 else "")
    return name, itertools.islice(images, command.limit) if command.limit else images


def plan_of(command: PartsCommand, rows: int) -> dict[str, Any]:
    """What decides the rows: a command that goes on must have the same."""
    from wildcat.models.calibration import weights_digest

    run = Path(command.run).expanduser()
    return {
        "run": str(run.absolute()) if run.is_dir() else command.run,
        "weights": weights_digest(run) if run.is_dir() else command.run,
        "sources": list(command.paths),
        "split": command.split,
        "limit": command.limit,
        "image_column": command.image_column,
        "part_rows": rows,
        "format": command.part_format,
        "settings": {
            "flip": command.flip,
            "sizes": list(parse_sizes(command.sizes)),
            "output_stride": command.output_stride,
            "tile": command.tile,
            "engine": "torch" if command.engine == "ray" else command.engine,
            "precision": command.precision,
        },
    }


def loader(command: PartsCommand, device: str) -> partial[Predictor]:
    """Loads the model as the flags say, in this process or another."""
    from wildcat.predictor import load

    folder = Path(command.run).expanduser()
    return partial(
        load_in_worker if command.engine == "ray" else load,
        str(folder.absolute()) if folder.is_dir() else command.run,
        command.device if command.engine != "ray" else device,
        command.flip,
        parse_sizes(command.sizes),
        output_stride=command.output_stride,
        tile=command.tile,
        engine="torch" if command.engine == "ray" else command.engine,
        precision=command.precision,
    )


def load_in_worker(*arguments: Any, **options: Any) -> Predictor:
    """`wildcat.load` in a process of its own, which keeps the memory it frees as the command itself does."""
    from wildcat.cli.allocator import keep_freed_memory
    from wildcat.predictor import load

    keep_freed_memory()
    return load(*arguments, **options)


def workers_of(command: PartsCommand, device: str) -> int:
    """Processes for Ray: as asked for, or one a GPU, or one a core."""
    if command.workers:
        return command.workers
    if device == "cuda":
        import torch

        return torch.cuda.device_count()
    from wildcat.device import available_cores

    return available_cores()
