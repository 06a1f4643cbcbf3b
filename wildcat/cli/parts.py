"""wildcat predict --part-rows N: any number of pictures, in parts that are each written once."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wildcat.cli.options import open_data, parse_sizes
from wildcat.cli.pictures import check_amounts
from wildcat.errors import ConfigError

if TYPE_CHECKING:
    from wildcat.bulk.parts import Done
    from wildcat.bulk.sources import Listed
    from wildcat.cli.predict import Predict
    from wildcat.predictor import Predictor

PART_ROWS = 1000
"""Rows of a part where --engine ray is given and nothing is said."""


def run_predict_parts(command: Predict) -> int:
    """wildcat predict, in parts"""
    from wildcat.bulk.parts import PartFolder, split_parts
    from wildcat.bulk.work import PartMaker, run_parts
    from wildcat.progress import progress_bar
    from wildcat.train.loop import choose_device

    out = check_parts_flags(command)
    device = choose_device(command.device)
    sources, pictures = find_listed(command)
    load = loader(command, device.type)
    rows = command.part_rows or PART_ROWS
    maker = PartMaker(out.absolute(), command.part_format, command.image_column, command.batch_size)
    predictor = load() if command.engine != "ray" else None  # a model that cannot be used is found before anything else
    folder = PartFolder(out, plan_of(command, rows), command.resume)
    print(f"{command.run}: pictures of {sources}; device {device.type}; parts of {rows} rows in {out}", flush=True)

    with progress_bar(None, "predicting") as bar:

        def heard(done: Done, before: bool) -> None:
            if before:  # not counted into the rate
                bar.initial += done.rows
            bar.update(done.rows)
            for fault in () if before else done.faults:
                bar.write(f"skipped {fault.rstrip('.')}.", file=sys.stderr)

        parts = split_parts(pictures, rows)
        if predictor is not None:
            totals = run_parts(parts, folder, partial(map, partial(maker, predictor)), heard)
        else:
            from wildcat.bulk.rays import RayPool

            with RayPool(load, maker, workers_of(command, device.type), device.type == "cuda") as pool:
                totals = run_parts(parts, folder, pool.make_all, heard)
    if totals.failed:
        more = totals.failed - len(totals.faults)
        print(
            f"{totals.failed} of {totals.rows} pictures could not be read; their rows say why"
            f"{f'. The first {len(totals.faults)}' if more else ''}:",
            *(f"  {fault}" for fault in totals.faults),
            sep="\n",
            file=sys.stderr,
        )
    print(f"{totals.rows} rows in {totals.parts} parts in {out}: {totals.rows - totals.failed} predictions")
    return 0 if totals.rows > totals.failed else 1


def check_parts_flags(command: Predict) -> Path:
    """The output folder of a command whose flags fit together.

    Raises:
        ConfigError: no --out, an amount out of range, or something that parts do not hold.
    """
    check_amounts(command.batch_size, command.limit)
    if command.out is None:
        raise ConfigError("parts are written into a folder.", "Add --out DIR.")
    if command.part_rows is not None and command.part_rows < 1:
        raise ConfigError(f"--part-rows {command.part_rows}: give at least 1.", "1000 is usual.")
    drawn = {
        "--report": command.report,
        "--crf": command.crf,
        "--classes": bool(command.classes),
        f"--save {command.save}": command.save not in (None, "", "none"),
    }
    if flag := next((flag for flag, given in drawn.items() if given), None):
        raise ConfigError(f"{flag} draws pictures; parts hold rows.", "Leave it out, or leave --part-rows out.")
    if command.engine == "ray":
        if command.workers < 0:
            raise ConfigError(f"--workers {command.workers}: give at least 1.")
        if command.precision == "int8":
            raise ConfigError("--engine ray runs torch, which has no int8.", "Give --precision fp32 or bf16.")
    elif command.workers:
        raise ConfigError(f"--workers {command.workers} is for --engine ray.", "Add --engine ray.")
    return command.out


def find_listed(command: Predict) -> tuple[str, Iterator[Listed]]:
    """What the sources are called, and their pictures; the first is looked for at once, so that errors come early."""
    from wildcat.bulk.sources import Listed, find_sources, list_pictures

    pictures: Iterator[Listed]
    if command.split is not None:
        if len(command.paths) != 1:
            raise ConfigError(f"--split {command.split}: give one data set, not {len(command.paths)} paths.")
        samples = open_data(command, command.paths[0]).split(command.split)
        pictures = (Listed(str(sample.path)) for sample in samples)
    else:
        pictures = list_pictures(find_sources(command.paths), command.image_column)
    first = list(itertools.islice(pictures, 1))
    if not first:
        raise ConfigError(f"{command.paths[0]} holds no pictures.", "Name other sources.")
    pictures = itertools.chain(first, pictures)
    name = command.paths[0] + (f" and {len(command.paths) - 1} more" if len(command.paths) > 1 else "")
    return name, itertools.islice(pictures, command.limit) if command.limit else pictures


def plan_of(command: Predict, rows: int) -> dict[str, Any]:
    """What decides the rows: a command that goes on must have the same."""
    from wildcat.train.calibrations import weights_digest

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


def loader(command: Predict, device: str) -> partial[Predictor]:
    """Loads the model as the flags say, in this process or another."""
    from wildcat.predictor import load

    folder = Path(command.run).expanduser()
    return partial(
        load,
        str(folder.absolute()) if folder.is_dir() else command.run,
        command.device if command.engine != "ray" else device,
        command.flip,
        parse_sizes(command.sizes),
        output_stride=command.output_stride,
        tile=command.tile,
        engine="torch" if command.engine == "ray" else command.engine,
        precision=command.precision,
    )


def workers_of(command: Predict, device: str) -> int:
    """Processes for Ray: as asked for, or one a GPU, or one a core."""
    if command.workers:
        return command.workers
    if device == "cuda":
        import torch

        return torch.cuda.device_count()
    from wildcat.bulk.rays import usable_cores

    return usable_cores()
