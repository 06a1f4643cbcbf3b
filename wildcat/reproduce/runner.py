"""Run an experiment of the paper on any data and backbone, cell by cell, and put the paper's numbers beside ours.

A cell is one row of the experiment with one seed. Its figures are kept in `OUT/cells/`, under a name that follows from
everything that decides them: data, labels, split, settings, seed. A killed run goes on with the cell in hand, and
experiments share the cells they have in common. With `tune=head` all cells share one cache of features.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from wildcat.config import TrainConfig, load_recipe, to_dict
from wildcat.data.dataset import DataSet
from wildcat.device import machine
from wildcat.errors import ConfigError, DataError, RunError
from wildcat.evaluation import POINT_TOLERANCE, evaluate
from wildcat.files import write_json
from wildcat.fitting.ensemble import create_ensemble
from wildcat.models.ensemble import Combine
from wildcat.models.run import MANIFEST, RESUMABLE, Run, create_run, open_run, versions
from wildcat.predictor import load
from wildcat.progress import Progress
from wildcat.reproduce.experiments import FIGURES, Experiment, Row, find_experiment
from wildcat.reproduce.heads import train_and_evaluate
from wildcat.reproduce.record import plain_settings
from wildcat.reproduce.tables import row_summaries, slug, write_outputs
from wildcat.train.loop import fingerprint, train

MEASURES = ("classification", "pointing")

RECIPE = "reproduce"
"""What `wildcat reproduce` starts from."""


@dataclass(frozen=True)
class Plan:
    """What to run.

    Attributes:
        experiment: name of a table or figure of the paper, see `wildcat.reproduce.experiments.EXPERIMENTS`.
        config: everything that the rows of the experiment do not decide.
        seeds: how many, from `config.seed` on; on 15-Scene each draws another split, as the protocol says.
        sizes: with several, one network for each input size, combined; none: the config's.
        combine: how the sizes are combined.
        test_split: what is measured; None: the protocol's.
        title: what to call the data in tables, where it is a subset; empty: its name.
    """

    experiment: str
    config: TrainConfig
    seeds: int = 3
    sizes: tuple[int, ...] = ()
    combine: Combine = "linear"
    test_split: str | None = None
    title: str = ""


class Telling:
    """Hears how a reproduction goes; does nothing."""

    def cell(self, name: str, number: int, total: int, figures: Mapping[str, float]) -> None:
        """Cell `number` of `total` is done."""

    def progress(self) -> Progress | None:
        """Who hears of a cell's training."""
        return None


def reproduce(plan: Plan, data: DataSet, out: Path, telling: Telling | None = None) -> dict[str, Any]:
    """Run every cell of an experiment that has not been run yet, and write the tables and plots after each row.

    Writes `OUT/EXPERIMENT-DATA.json`, `.csv`, `.md` and, for figures where matplotlib is installed, `.png`. The last
    epoch is kept in every cell: nothing is chosen on the images that are measured.

    Returns:
        The summary that the `.json` holds: settings, and for each row its figures over the seeds.

    Raises:
        ConfigError: an unknown experiment, or settings out of range.
        DataError: the data lacks what the experiment measures.
    """
    experiment, telling = find_experiment(plan.experiment), telling or Telling()
    check_plan(plan, experiment, data)
    rows = [row for row in experiment.rows if row.settings is not None]
    total, number = len(rows) * plan.seeds, 0
    done: dict[str, list[dict[str, Any]]] = {row.name: [] for row in rows}
    summary: dict[str, Any] = {}
    for row in rows:
        for seed in range(plan.config.seed, plan.config.seed + plan.seeds):
            number += 1
            label = f"{row.name}, seed {seed}"
            done[row.name].append(run_cell(plan, row, seed, data, out, telling))
            telling.cell(label, number, total, done[row.name][-1]["figures"])
        summary = {**description(plan, experiment, data, done), "results": row_summaries(experiment, done)}
        write_outputs(summary, done, out / f"{plan.experiment}-{slug(plan.title or data.name)}")
    return summary


def check_plan(plan: Plan, experiment: Experiment, data: DataSet) -> None:
    """Refuse a plan before hours are spent on it.

    Raises:
        ConfigError: no seed, or a setting that the data set or the way of training does not have.
        DataError: the experiment measures points and the data has no boxes.
    """
    if plan.seeds < 1:
        raise ConfigError(f"seeds={plan.seeds}: give at least 1; 3 show the spread.")
    start = load_recipe(RECIPE)
    for row in experiment.rows:
        if row.settings is not None:
            for name in row.settings:
                if getattr(plan.config, name) != getattr(start, name):
                    raise ConfigError(
                        f"{name}={getattr(plan.config, name)}: the rows of {plan.experiment} decide {name}.",
                        "Leave it out.",
                    )
            cell_config(plan, row, plan.config.seed, data).validate()
    train_split, test_split = protocol(plan, data, plan.config.seed)
    if train_split == test_split:
        raise ConfigError(
            f"the split {train_split!r} is both learned from and measured.",
            "Give another --train-split or --test-split.",
        )
    if not set(available(data, test_split)) & set(experiment.metrics[:1]) and experiment.metrics[0] == "point_ap":
        raise DataError(
            f"{plan.experiment} measures points, and {data.name} has no boxes.", "Give data with boxes: VOC or COCO."
        )


def available(data: DataSet, split: str) -> tuple[str, ...]:
    """The metrics a data set has the ground truth for."""
    found = ["accuracy", "map"] if data.task == "multiclass" else ["map"]
    return (*found, "point_ap") if all(s.boxes is not None for s in data.split(split)) else tuple(found)


def protocol(plan: Plan, data: DataSet, seed: int) -> tuple[str, str]:
    """(training split, measured split) of the paper's protocol, unless the plan names its own.

    15-Scene: a random split of 100 training images a class for each seed. VOC 2007: trainval, test. Otherwise train
    and val, or train and test where there is no val.
    """
    own, default = plan.config.train_split, TrainConfig().train_split
    if data.format == "scenes" and own == default and plan.test_split is None:
        return f"train-seed{seed}", f"test-seed{seed}"
    if {"trainval", "test"} <= set(data.splits) and own == default and plan.test_split is None:
        return "trainval", "test"
    return own, plan.test_split or ("val" if "val" in data.splits else "test")


def cell_config(plan: Plan, row: Row, seed: int, data: DataSet) -> TrainConfig:
    """The settings of one cell."""
    train_split, _ = protocol(plan, data, seed)
    settings = dict(row.settings or {})
    return replace(plan.config, seed=seed, train_split=train_split, val_split="none", **settings)


def run_cell(plan: Plan, row: Row, seed: int, data: DataSet, out: Path, telling: Telling) -> dict[str, Any]:
    """The record of a cell: read where it has been run, otherwise run and kept."""
    config = cell_config(plan, row, seed, data)
    _, split = protocol(plan, data, seed)
    effective = plain_settings(config) | {"lr": config.peak_lr}  # a default may change: what was in force decides
    identity = {
        "data": data.name,
        "images": fingerprint(data.split(config.train_split), data.split(split)),
        "test_split": split,
        "config": {k: v for k, v in effective.items() if k not in RESUMABLE},
        "sizes": list(plan.sizes),
        "combine": plan.combine if len(plan.sizes) > 1 else None,
    }
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    path = out / "cells" / f"{key}.json"
    if path.is_file():
        return _read_cell(path)
    begun = time.perf_counter()
    if config.tune == "head":
        result = train_and_evaluate(data, config, split, telling.progress(), plan.sizes, plan.combine, MEASURES)
    else:
        result = _fine_tune(plan, config, data, split, out / "runs" / key, telling)
    record = {
        **identity,
        "figures": figures_of(result),
        "ap": result["classification"]["ap"],
        "ap_variant": result["classification"]["variant"],
        "seconds": round(time.perf_counter() - begun, 1),
        "versions": versions(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record)
    return record


def _read_cell(path: Path) -> dict[str, Any]:
    try:
        record = dict(json.loads(path.read_text(encoding="utf-8")))
        record["figures"], record["seconds"], record["versions"]
    except (ValueError, TypeError, KeyError) as error:
        raise RunError(f"{path} is damaged ({error}).", "Delete it: the cell is run again.") from error
    return record


def _fine_tune(
    plan: Plan, config: TrainConfig, data: DataSet, split: str, folder: Path, telling: Telling
) -> dict[str, Any]:
    """Train every layer, once for each size, in run folders that a killed cell goes on with; measure on `split`."""
    runs = [
        _trained(replace(config, image_size=size), data, folder / str(size), telling)
        for size in plan.sizes or (config.image_size,)
    ]
    if len(runs) == 1:
        return evaluate(load(runs[0].folder, config.device), data, split, measures=MEASURES)
    together = folder / "ensemble"
    if not together.exists():
        create_ensemble(together, runs, plan.combine, data, config.train_split, device=config.device)
    return evaluate(load(together, config.device), data, split, measures=MEASURES)


def _trained(config: TrainConfig, data: DataSet, folder: Path, telling: Telling) -> Run:
    resume = (folder / MANIFEST).is_file()
    run = open_run(folder) if resume else create_run(folder, config, data)
    outcome = train(run, data, resume=resume, progress=telling.progress())
    if not outcome.finished:
        raise KeyboardInterrupt
    return run


def figures_of(result: Mapping[str, Any]) -> dict[str, float]:
    """The figures of an evaluation that tables show, in [0, 1]."""
    flat = dict(result["classification"])
    if "pointing" in result:
        flat |= {"point_ap": result["pointing"]["map"], "pointing_game": result["pointing"]["pointing_game"]}
    return {name: float(flat[name]) for name in FIGURES if flat.get(name) is not None}


def description(
    plan: Plan, experiment: Experiment, data: DataSet, done: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, Any]:
    """Everything a table says besides its rows: the command, versions, machine and settings, as plain values."""
    cell = next(cells[0] for cells in done.values() if cells)
    train_split, test_split = protocol(plan, data, plan.config.seed)
    return {
        "command": shlex.join(["wildcat", "reproduce", plan.experiment, "--data", data.root.name, *flags_of(plan)]),
        "date": datetime.now(UTC).date().isoformat(),
        "versions": cell["versions"],
        "machine": machine(),
        "settings": {
            "experiment": plan.experiment,
            "title": experiment.title,
            "metrics": [m for m in experiment.metrics if m in available(data, test_split)],
            "x_label": experiment.x_label,
            "data": plan.title or data.name,
            "train": f"{len(data.split(train_split))} images of {_seedless(train_split)}",
            "test": f"{len(data.split(test_split))} images of {_seedless(test_split)}",
            "seeds": plan.seeds,
            "sizes": list(plan.sizes or (plan.config.image_size,)),
            "combine": plan.combine if len(plan.sizes) > 1 else None,
            "ap_variant": cell["ap_variant"],
            "point_tolerance_px": POINT_TOLERANCE,
            **{k: v for k, v in cell["config"].items() if k in SHARED},
        },
    }


SHARED = ("backbone", "tune", "epochs", "flip", "batch_size", "lr", "backbone_lr_scale", "crop_scale", "amp")
"""Settings that a table names and no row changes."""


def flags_of(plan: Plan) -> list[str]:
    """Flags that give this plan again, apart from where the data is."""
    given: dict[str, Any] = {"seeds": plan.seeds}
    given |= {"title": plan.title} if plan.title else {}
    given |= {"test_split": plan.test_split} if plan.test_split else {}
    given |= {"sizes": ",".join(map(str, plan.sizes)), "combine": plan.combine} if len(plan.sizes) > 1 else {}
    default = to_dict(load_recipe(RECIPE))
    given |= {k: v for k, v in to_dict(plan.config).items() if k not in RESUMABLE and v != default[k]}
    flags: list[str] = []
    for name, value in given.items():
        flag = name.replace("_", "-")
        flags += [f"--{flag}" if value else f"--no-{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    return flags


def _seedless(split: str) -> str:
    """`train-seed3` -> `train, a random split for each seed`."""
    name, dash, _ = split.partition("-seed")
    return f"{name}, a random split for each seed" if dash else name
