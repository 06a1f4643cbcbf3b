"""Run an experiment of the paper on any data and backbone, and report the paper's numbers beside the measured ones.

An experiment is a grid of cells: one row of the table with one seed. The result of a cell is stored in `OUT/cells/`
under a hash of what decides it: names of images, labels, boxes, splits, settings, seed, file of weights. The content of
images and masks is not read for the hash: after changing them, give another `OUT`. A second run skips finished cells,
and experiments share the cells they have in common. Processes with the same `OUT` share the cells among them. With
`tune=head` all cells use the same cached features.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from wildcat.config import TrainConfig
from wildcat.data.cache import claim
from wildcat.data.dataset import DataSet, Sample, shared_images
from wildcat.device import machine
from wildcat.errors import ConfigError, DataError
from wildcat.evaluation import POINT_TOLERANCE, evaluate
from wildcat.files import reading, refuse_existing, write_json, writing
from wildcat.fitting.config import RefineConfig
from wildcat.fitting.ensemble import create_ensemble
from wildcat.fitting.methods import refine_method
from wildcat.fitting.refine import check_extras, refine
from wildcat.models.folder import Combine, open_model
from wildcat.models.manifest import MANIFEST, versions
from wildcat.models.run import RESUMABLE, Run, create_run, open_run, tidy_run
from wildcat.nn.backbones import create_backbone
from wildcat.nn.factory import check_fits
from wildcat.predictor import load
from wildcat.progress import SILENT, Progress
from wildcat.reproduce.experiments import MEASURED, Experiment, Row, find_experiment
from wildcat.reproduce.heads import check_head_weights, train_and_evaluate
from wildcat.reproduce.tables import slug, summarize_rows, write_tables
from wildcat.settings import load_recipe
from wildcat.train.checkpoint import fingerprint
from wildcat.train.loop import train

MEASURES = ("classification", "pointing", "segmentation")  # each where the data has its ground truth
RECIPE = "reproduce"  # the recipe whose settings are the defaults of `wildcat reproduce`

# Settings that are the same in all rows and printed with each table.
SHARED = ("backbone", "tune", "epochs", "flip", "batch_size", "lr", "backbone_lr_scale", "crop_scale", "amp")


@dataclass(frozen=True)
class Plan:
    """What to run.

    Attributes:
        experiment: name of a table or figure of the paper, see `wildcat.reproduce.experiments.EXPERIMENTS`.
        config: the settings that the rows of the experiment do not define.
        seeds: number of seeds, starting at `config.seed`; on 15-Scene each seed has another random split.
        sizes: several input sizes: one network per size, combined; empty: the size in `config`.
        combine: how the networks of several sizes are combined.
        test_split: the split to measure on; None: that of the paper's protocol.
        title: name of the data in tables; empty: the name of the data set.
    """

    experiment: str
    config: TrainConfig
    seeds: int = 3
    sizes: tuple[int, ...] = ()
    combine: Combine = "linear"
    test_split: str | None = None
    title: str = ""


class CellSpec(NamedTuple):
    """What decides the record of a cell.

    Attributes:
        row: what is trained and how it is measured.
        config: the settings of the training, the seed among them.
        data, split: the networks are trained on the split of `config`, and measured on this one.
        sizes, combine: see `Plan`.
    """

    row: Row
    config: TrainConfig
    data: DataSet
    split: str
    sizes: tuple[int, ...] = ()
    combine: Combine = "linear"

    def network(self) -> dict[str, Any]:
        """What decides the weights."""
        return {
            "data": self.data.name,
            "task": self.data.task,
            "images": fingerprint(self.data.split(self.config.train_split), self.data.split(self.split)),
            "test_split": self.split,
            "weights": _weights_digest(self.config.weights),
            "config": {k: v for k, v in plain_settings(self.config).items() if k not in RESUMABLE},
            "sizes": list(self.sizes),
            "combine": self.combine if len(self.sizes) > 1 else None,
        }

    def identity(self) -> dict[str, Any]:
        """What decides the record."""
        row = self.row
        measured = {"measures": MEASURES, "crf": row.crf, "localize": row.localize, "refine": dict(row.refine)}
        return self.network() | measured | {"boxes": _boxes_digest(self.data.split(self.split))}

    def path(self, out: Path) -> Path:
        """The file of the record."""
        return out / "cells" / f"{_hash(self.identity())}.json"


class Cell(NamedTuple):
    """A finished cell: its row and seed, its position in the experiment, and its record."""

    row: str
    seed: int
    number: int
    total: int
    record: dict[str, Any]


def run_cells(plan: Plan, data: DataSet, out: Path, progress: Progress = SILENT) -> Iterator[Cell]:
    """Run each cell that has no stored result, yield every cell, and write tables and plots after each row.

    Cells whose network another process is training come last, when that process has finished them. A table has every
    row whose cells are stored, whichever process ran them.

    Writes `OUT/EXPERIMENT-DATA.json`, `.csv`, `.md` and, for figures if matplotlib is installed, `.png`. Every cell
    uses the weights of the last epoch: nothing is chosen on the images that are measured.

    Raises:
        ConfigError: an unknown experiment, or settings out of range.
        DataError: the data lacks the ground truth that the experiment needs.
        RunError: `out` cannot be written.
    """
    experiment = find_experiment(plan.experiment)
    check_plan(plan, experiment, data)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    lacking = {row.name: needs(plan, row, data) for row in experiment.rows}
    rows = [row for row in experiment.rows if not lacking[row.name]]
    seeds = range(plan.config.seed, plan.config.seed + plan.seeds)
    path = summary_path(plan, data, out)
    specs = {(row.name, seed): cell_spec(plan, row, seed, data) for row in rows for seed in seeds}
    paths = {key: spec.path(out) for key, spec in specs.items()}
    yielded = set[tuple[str, int]]()
    for wait in (False, True):
        for number, key in enumerate(specs, start=1):
            if key in yielded:
                continue
            try:
                record = run_cell(specs[key], out, progress, wait)
            except BlockingIOError:
                continue
            yielded.add(key)
            yield Cell(*key, number, len(specs), record)
            whole = [row.name for row in rows if all(paths[row.name, seed].is_file() for seed in seeds)]
            if key[0] in whole:
                records = {name: [_read_cell(paths[name, seed]) for seed in seeds] for name in whole}
                results = summarize_rows(experiment, records, lacking)
                summary = {**describe(plan, experiment, data, records), "results": results}
                write_tables(summary, records, path)


def needs(plan: Plan, row: Row, data: DataSet) -> str:
    """What a row would need to be run with this plan on this data, in words; "" if it is run."""
    if row.settings is None:
        return row.needs
    if len(plan.sizes) > 1 and (row.refine or row.localize == "beam-search"):
        return "a single input size"
    if row.refine and data.task == "multiclass" and not refine_method(row.refine["method"]).multiclass:
        return "classes that do not exclude each other"
    train_split, _ = protocol(plan, data, plan.config.seed)
    settings = replace(plan.config, image_size=min(plan.sizes or (plan.config.image_size,)), **row.settings)
    misfit = _misfit(settings, len(data.classes), len(data.split(train_split))) if settings.head else ""
    return misfit and f"more or larger images ({misfit.rstrip('.')})"


@cache  # plans are checked more than once
def _misfit(config: TrainConfig, num_classes: int, images: int) -> str:
    """Why the head of these settings cannot be trained on so few images or cells; "" if it can."""
    backbone = create_backbone(config.backbone, "none", config.output_stride, config.image_size)
    try:
        check_fits(config, num_classes, backbone, images)
    except ConfigError as error:
        return error.message
    return ""


def check_out(out: Path) -> None:
    """Refuse a folder of other files, such as the images, for tables and cells.

    Raises:
        RunError: the folder is not empty and has no cells.
    """
    if not (out / "cells").exists():
        refuse_existing(out)


def summary_path(plan: Plan, data: DataSet, out: Path) -> Path:
    """The `.json` file with the summary of an experiment; the tables and plots lie beside it."""
    return out / f"{plan.experiment}-{slug(plan.title or data.name)}.json"


def check_plan(plan: Plan, experiment: Experiment, data: DataSet) -> None:
    """Refuse a plan that cannot be run, before the first training.

    Raises:
        ConfigError: no seed, splits with common images, or a setting that does not fit the data set or the way of
            training.
        DataError: the data lacks the ground truth that the experiment measures.
        MissingExtra: a row needs a package that is not installed.
    """
    if plan.seeds < 1:
        raise ConfigError(f"seeds={plan.seeds}: give at least 1; with 3 the standard deviation is meaningful.")
    check_head_weights(plan.config)
    train_split, test_split = protocol(plan, data, plan.config.seed)
    for metric, measured, truth, remedy in (
        ("point_ap", "points", "boxes", "data with boxes: VOC or COCO"),
        ("miou", "masks", "masks", "data with masks: VOC or COCO"),
        ("accuracy", "accuracy", "classes that exclude each other", "data with one label per image: 15-Scene"),
    ):
        if experiment.metrics[0] == metric and metric not in available_metrics(data, test_split):
            problem = f"{plan.experiment} measures {measured}, and {data.name} has no {truth}."
            raise DataError(problem, f"Give {remedy}.")
    if shared := shared_images(data.split(train_split), data.split(test_split)):
        raise ConfigError(
            f"the splits {train_split!r} and {test_split!r} share images, such as {shared[0]}: they would be used for "
            "training and for testing.",
            f"Give a --train-split and a --test-split without common images; {data.name} has {', '.join(data.splits)}.",
        )
    default = load_recipe(RECIPE)
    if plan.config.val_split != default.val_split:
        raise ConfigError(
            f"val_split={plan.config.val_split}: no epoch is chosen: every cell is measured after the last one.",
            "Leave out --val-split.",
        )
    for row in (row for row in experiment.rows if not needs(plan, row, data)):
        for name in row.settings or ():
            if getattr(plan.config, name) != getattr(default, name):
                raise ConfigError(
                    f"{name}={getattr(plan.config, name)}: the rows of {plan.experiment} define {name}.",
                    f"Leave out --{name.replace('_', '-')}.",
                )
        cell_spec(plan, row, plan.config.seed, data).config.validate()
        if row.refine:
            check_extras(RefineConfig(**row.refine))


def available_metrics(data: DataSet, split: str) -> tuple[str, ...]:
    """The metrics for which a data set has ground truth."""
    found, samples = ["accuracy", "map"] if data.task == "multiclass" else ["map"], data.split(split)
    found += ["point_ap"] if all(s.boxes is not None for s in samples) else []
    found += ["miou"] if all(s.mask is not None for s in samples) else []
    return tuple(found)


def protocol(plan: Plan, data: DataSet, seed: int) -> tuple[str, str]:
    """(training split, test split) of the paper's protocol, unless the plan names its own.

    15-Scene: a random split of 100 training images per class for each seed. VOC 2007: trainval and test. Otherwise
    train and val, or train and test if there is no val.
    """
    train_split, default = plan.config.train_split, TrainConfig().train_split
    if train_split == default and plan.test_split is None:
        if data.format == "scenes":
            return f"train-seed{seed}", f"test-seed{seed}"
        if {"trainval", "test"} <= set(data.splits):
            return "trainval", "test"
    return train_split, plan.test_split or ("val" if "val" in data.splits else "test")


def cell_spec(plan: Plan, row: Row, seed: int, data: DataSet) -> CellSpec:
    """One cell of a plan."""
    train_split, test_split = protocol(plan, data, seed)
    settings = dict(row.settings or {})
    config = replace(plan.config, seed=seed, train_split=train_split, val_split="none", **settings)
    return CellSpec(row, config, data, test_split, plan.sizes, plan.combine)


def run_cell(spec: CellSpec, out: Path, progress: Progress = SILENT, wait: bool = True) -> dict[str, Any]:
    """The record of a cell: read from its file, or trained, measured and stored.

    Args:
        wait: for another process that trains the same network.

    Raises:
        BlockingIOError: without `wait`, another process trains the same network, or files cannot be locked here.
    """
    path, name = spec.path(out), _hash(spec.network())
    if not path.is_file():
        claimed = claim(path.with_name(name), wait=False)
        if claimed is None and not wait:
            raise BlockingIOError(f"another process trains the network of {path}")
        if claimed is None:
            progress.start("waiting for another process", None)
            claimed = claim(path.with_name(name), wait=True)  # None where files cannot be locked
        with claimed or contextlib.nullcontext():
            if not path.is_file():
                record = _measure(spec, out / "runs" / name, progress)
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, spec.identity() | record)
    return _read_cell(path)


def _measure(spec: CellSpec, folder: Path, progress: Progress) -> dict[str, Any]:
    """What the record of a cell says besides what it is; `folder` is for runs that are trained for it."""
    row, config, data, split, sizes, combine = spec
    start = time.perf_counter()
    if config.tune == "head" and not row.refine:
        result = train_and_evaluate(
            data, config, split, progress, sizes, combine, MEASURES, crf=row.crf, localize=row.localize
        )
    else:
        predictor = load(_trained_model(spec, folder, progress), config.device, localize=row.localize)
        result = evaluate(predictor, data, split, crf=row.crf, progress=progress, measures=MEASURES)
    return {
        "metrics": table_metrics(result),
        "ap": result["classification"]["ap"],
        "ap_variant": result["classification"]["variant"],
        "seconds": round(time.perf_counter() - start, 1),
        "versions": versions(),
    }


def plain_settings(config: TrainConfig) -> dict[str, Any]:
    """The settings as JSON values; infinity, which JSON lacks, becomes the string "inf"."""
    return {name: str(value) if value == math.inf else value for name, value in asdict(config).items()}


def _read_cell(path: Path) -> dict[str, Any]:
    with reading(path, "Delete the file: the cell is run again."):
        record = dict(json.loads(path.read_text(encoding="utf-8")))
        record["metrics"], record["seconds"], record["versions"]
    return record


def _hash(identity: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def _weights_digest(weights: str) -> str | None:
    """SHA-256 of a file of weights; None if `weights` is not a file."""
    path = Path(weights)
    return _file_digest(path, path.stat().st_mtime_ns) if path.is_file() else None


@cache  # all cells have the same file
def _file_digest(path: Path, modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _boxes_digest(samples: Sequence[Sample]) -> str:
    """A digest of the boxes of the images, in order, with their classes and which are difficult."""
    digest = hashlib.sha256()
    for sample in samples:
        for values in (sample.boxes, sample.box_classes, sample.box_difficult):
            digest.update(b"-" if values is None else f"{len(values)}:".encode() + values.tobytes())
    return digest.hexdigest()


def _trained_model(spec: CellSpec, folder: Path, progress: Progress) -> Path:
    """Train once per input size, in run folders that are resumed after a kill, then refine; the model folder."""
    row, config, data, _, sizes, combine = spec
    runs = [
        trained_run(replace(config, image_size=size), data, folder / str(size), progress)
        for size in sizes or (config.image_size,)
    ]
    if row.refine:
        model = folder / f"refined-{row.refine['method']}"
        if not model.exists():
            settings = RefineConfig(**row.refine, seed=config.seed)
            refine(runs[0], data, model, settings, config.train_split, device=config.device, progress=progress)
        return model
    model = runs[0].folder
    if len(runs) > 1:
        model = folder / "ensemble"
        if not model.exists():
            members = [open_model(run.folder) for run in runs]
            create_ensemble(model, members, combine, data, config.train_split, device=config.device)
    return model


def trained_run(config: TrainConfig, data: DataSet, folder: Path, progress: Progress) -> Run:
    """The run in `folder`, trained, or resumed if it is there."""
    tidy_run(folder)
    resume = (folder / MANIFEST).is_file()
    run = open_run(folder) if resume else create_run(folder, config, data)
    if not train(run, data, resume=resume, progress=progress).finished:
        raise KeyboardInterrupt
    return run


def table_metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of an evaluation that tables show, in [0, 1]."""
    flat = dict(result["classification"])
    if "pointing" in result:
        flat |= {"point_ap": result["pointing"]["map"], "pointing_game": result["pointing"]["pointing_game"]}
    if "segmentation" in result:
        flat |= {"miou": result["segmentation"]["miou"]}
    return {name: float(flat[name]) for name in MEASURED if flat.get(name) is not None}


def describe(
    plan: Plan, experiment: Experiment, data: DataSet, records: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, Any]:
    """The part of a summary besides its rows: command, date, versions, machine and settings."""
    record = next(cells[0] for cells in records.values() if cells)
    train_split, test_split = protocol(plan, data, plan.config.seed)
    available = available_metrics(data, test_split)
    source = data.name if data.format == "solar" else data.root.name  # the former is installed, not a folder
    return {
        "command": shlex.join(["wildcat", "reproduce", plan.experiment, "--data", source, *plan_flags(plan)]),
        "date": datetime.now(UTC).date().isoformat(),
        "versions": record["versions"],
        "machine": machine(),
        "settings": {
            "experiment": plan.experiment,
            "title": experiment.title,
            "metrics": [metric for metric in experiment.metrics if metric in available],
            "x_label": experiment.x_label,
            "data": plan.title or data.name,
            "train": f"{len(data.split(train_split))} images of {_split_text(train_split)}",
            "test": f"{len(data.split(test_split))} images of {_split_text(test_split)}",
            "seeds": plan.seeds,
            "sizes": list(plan.sizes or (plan.config.image_size,)),
            "combine": plan.combine if len(plan.sizes) > 1 else None,
            "ap_variant": record["ap_variant"],
            "point_tolerance_px": POINT_TOLERANCE,
            **{k: v for k, v in record["config"].items() if k in SHARED},
        },
    }


def plan_flags(plan: Plan) -> list[str]:
    """The flags of `wildcat reproduce` that give this plan, without --data."""
    given: dict[str, Any] = {"seeds": plan.seeds}
    given |= {"title": plan.title} if plan.title else {}
    given |= {"test_split": plan.test_split} if plan.test_split else {}
    given |= {"sizes": ",".join(map(str, plan.sizes)), "combine": plan.combine} if len(plan.sizes) > 1 else {}
    return setting_flags(given | changed_settings(plan.config, load_recipe(RECIPE)))


def changed_settings(config: TrainConfig, base: TrainConfig) -> dict[str, Any]:
    """The settings that decide a result and differ from those of `base`."""
    default = asdict(base)
    return {k: v for k, v in asdict(config).items() if k not in RESUMABLE and v != default[k]}


def setting_flags(settings: Mapping[str, Any]) -> list[str]:
    """Settings as they are typed: `--image-size 320`, `--no-standardize`."""
    flags: list[str] = []
    for name, value in settings.items():
        flag = name.replace("_", "-")
        flags += [f"--{flag}" if value else f"--no-{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    return flags


def _split_text(split: str) -> str:
    """`train-seed3` -> `train, a random split for each seed`."""
    name, dash, _ = split.partition("-seed")
    return f"{name}, a random split for each seed" if dash else name
