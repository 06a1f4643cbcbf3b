"""Compare methods on any labelled images by cross-validation, and tell differences from noise.

All methods train heads on the same cached features and the same folds. Every fold is a cell of
`wildcat.reproduce.runner`, stored in `OUT/cells/`, so that a second run skips those that are finished.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from wildcat.config import TrainConfig
from wildcat.data.dataset import DataSet, check_learnable, cross_validation, few, label_counts
from wildcat.device import machine
from wildcat.errors import ConfigError, DataError
from wildcat.files import write_json, writing
from wildcat.methods import HEAD_SETTINGS, find_method
from wildcat.metrics import corrected_t_test, holm
from wildcat.nn.backbones import create_backbone
from wildcat.nn.factory import check_fits
from wildcat.progress import SILENT, Progress
from wildcat.reproduce.experiments import METRIC_NAMES, Row
from wildcat.reproduce.heads import check_head_weights, compute_features
from wildcat.reproduce.runner import (
    RECIPE,
    SHARED,
    CellSpec,
    available_metrics,
    changed_settings,
    plain_settings,
    run_cell,
    setting_flags,
)
from wildcat.reproduce.tables import percent, spread
from wildcat.settings import load_recipe, method_settings

LEVEL = 0.05  # of significance
TESTED_FOLDS = 3  # below which no difference is tested: two folds differ equally by chance too often
TESTED = 2  # images of a class per fold, below which no difference is tested
UNBALANCED = 1.5  # times the images of the smallest class, from which the mean over classes is shown beside accuracy
SUMMARY = "comparison.json"

# Settings that a comparison decides, and why.
DECIDED = {
    **dict.fromkeys(HEAD_SETTINGS, "the methods define it"),
    "tune": "methods are compared as heads on cached features",
    "val_split": "no epoch is chosen: every fold is measured after the last one",
}

Records = Mapping[str, Sequence[Mapping[str, Any]]]  # method -> the records of its cells, one per fold


@dataclass(frozen=True)
class Comparison:
    """What to compare.

    Attributes:
        methods: names of `wildcat.methods.METHODS`.
        config: the settings that methods do not define; `train_split` is the split that is divided into folds.
        folds: number of parts of the images, each of which is measured once after training on the others.
    """

    methods: tuple[str, ...]
    config: TrainConfig
    folds: int = 5


def check_comparison(plan: Comparison, data: DataSet) -> list[str]:
    """Refuse what cannot be compared, before any features are computed; returns notes on the labels.

    Raises:
        ConfigError: an unknown method, fewer than two, fewer than two folds, a method that does not fit the data, or a
            setting that a comparison decides.
        DataError: there is nothing to learn, with or without one of the folds, or a class has fewer images than there
            are folds.
    """
    config, folds = plan.config, plan.folds
    for name in plan.methods:
        find_method(name)
    if len(set(plan.methods)) < max(2, len(plan.methods)):
        raise ConfigError(
            f"methods={','.join(plan.methods)}: give at least two methods, each once.", "wildcat methods lists them."
        )
    if folds < 2:
        raise ConfigError(f"folds={folds}: give at least 2; 5 to 10 are customary.")
    default = load_recipe(RECIPE)
    for setting, reason in DECIDED.items():
        if (value := getattr(config, setting)) != getattr(default, setting):
            raise ConfigError(f"{setting}={value}: {reason}.", f"Leave out --{setting.replace('_', '-')}.")
    check_head_weights(config)
    samples = data.split(config.train_split)
    notes = check_learnable(data, config.train_split, samples)
    counts = class_counts(data, config.train_split)
    rare = [name for name, count in counts.items() if count < folds]
    if rare and (data.task == "multiclass" or len(rare) == len(counts)):
        choose = min if data.task == "multiclass" else max
        name = choose(rare, key=lambda rare_name: counts[rare_name])
        remedy = "add images of it, or leave it out with --classes."
        raise DataError(
            f"class {name!r} has {counts[name]} image{'s' * (counts[name] != 1)} in {config.train_split}, fewer than "
            f"the {folds} folds.",
            f"Give --folds {counts[name]}, or {remedy}" if counts[name] > 1 else remedy.capitalize(),
        )
    if rare:
        notes.append(f"{few(rare)}: fewer images than folds, so that a fold without any leaves the class out of mAP.")
    parts = cross_validation(data, config.train_split, folds, config.seed)
    for fold in range(1, folds + 1):
        try:
            check_learnable(data, f"{config.train_split} without fold {fold}", parts.split(f"fold{fold}-train"))
        except DataError as error:
            raise DataError(error.message, f"{error.hint.rstrip('.')}; or give another --folds.") from error
    smallest = len(samples) - -(-len(samples) // folds)
    backbone = create_backbone(config.backbone, "none", config.output_stride, config.image_size)
    for name in plan.methods:
        settings = method_config(config, name)
        settings.validate()
        try:
            check_fits(settings, len(data.classes), backbone, smallest)
        except ConfigError as error:
            raise ConfigError(error.message, f"Leave {name} out of --methods.") from error
    return notes


def class_counts(data: DataSet, split: str) -> dict[str, int]:
    """The number of images that have each class."""
    counts = label_counts(data.split(split))[0]
    return {name: int(count) for name, count in zip(data.classes, counts, strict=True)}


def method_config(config: TrainConfig, name: str) -> TrainConfig:
    """The settings of a method, the others from `config`."""
    return replace(config, **method_settings(name))


def compare(plan: Comparison, data: DataSet, out: Path, progress: Progress = SILENT) -> dict[str, Any]:
    """Cross-validate every method, and write the summary to `OUT/comparison.json`.

    Returns:
        The summary: plain values ready for JSON. `methods` has the best first; of each its `metrics` (mean, standard
        deviation and value of every fold), the `difference` of its mean from that of the best, and the `p` value of
        that, adjusted for the number of methods (None of the best, and where `untested` says why nothing is tested).

    Raises:
        ConfigError, DataError: see `check_comparison`.
        ImageError: an image cannot be read.
        RunError: `out` cannot be written.
    """
    notes = check_comparison(plan, data)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    split, start = plan.config.train_split, time.perf_counter()
    samples = data.split(split)
    compute_features(samples, plan.config, progress)
    seconds = time.perf_counter() - start
    folds = cross_validation(data, split, plan.folds, plan.config.seed)
    records: dict[str, list[dict[str, Any]]] = {name: [] for name in plan.methods}
    progress.start("comparing", len(samples) * len(plan.methods))
    for name in plan.methods:
        row = Row(name, method_settings(name), method=name)
        for fold in range(1, plan.folds + 1):
            config = replace(method_config(plan.config, name), train_split=f"fold{fold}-train")
            records[name].append(run_cell(CellSpec(row, config, folds, f"fold{fold}-test"), out))
            progress.advance(len(folds.split(f"fold{fold}-test")), f"{name}, fold {fold}")
    summary = {**describe(plan, data, records), "features_seconds": round(seconds, 1), "notes": notes}
    summary |= summarize(plan, data, records)
    write_json(out / SUMMARY, summary)
    return summary


def describe(plan: Comparison, data: DataSet, records: Records) -> dict[str, Any]:
    """The part of a summary besides its results: data, date, versions, machine and settings."""
    record = records[plan.methods[0]][0]
    settings = plain_settings(plan.config)
    return {
        "data": data.name,
        "split": plan.config.train_split,
        "images": len(data.split(plan.config.train_split)),
        "folds": plan.folds,
        "date": datetime.now(UTC).date().isoformat(),
        "versions": record["versions"],
        "machine": machine(),
        "settings": {name: settings[name] for name in (*SHARED, "image_size", "seed")},
        "ap_variant": record["ap_variant"],
    }


def summarize(plan: Comparison, data: DataSet, records: Records) -> dict[str, Any]:
    """The results: metrics, tests and what follows from them, see `compare`."""
    shown = shown_metrics(data, plan.config.train_split)
    metric, untested = shown[0], untested_reason(plan, data)
    measured = {
        name: {m: spread([cell["metrics"][m] for cell in cells]) for m in shown if m in cells[0]["metrics"]}
        for name, cells in records.items()
    }
    order = sorted(measured, key=lambda name: -measured[name][metric]["mean"])  # of equal ones the first given
    best, *others = order
    values = {name: np.array([cell["metrics"][metric] for cell in cells]) for name, cells in records.items()}
    differences = {name: values[name] - values[best] for name in others}
    p = dict.fromkeys(order)
    if not untested:
        ratio = 1 / (plan.folds - 1)
        p |= zip(others, holm([corrected_t_test(differences[name], ratio) for name in others]), strict=True)
    methods = {
        name: {
            "metrics": measured[name],
            "difference": round(float(differences[name].mean()), 5) if name != best else None,
            "p": p[name],
            "seconds": round(sum(cell["seconds"] for cell in records[name]), 1),
            "has_maps": find_method(name).has_maps,
        }
        for name in order
    }
    recommended, sentences = recommend(methods, metric, untested)
    return {
        "metrics": shown,
        "methods": methods,
        "untested": untested,
        "recommended": recommended,
        "recommendation": sentences,
    }


def shown_metrics(data: DataSet, split: str) -> list[str]:
    """The metrics of the table; the first is the one that is tested."""
    found = available_metrics(data, split)
    shown = ["accuracy" if data.task == "multiclass" else "map"]
    counts = class_counts(data, split).values()
    if data.task == "multiclass" and max(counts) > UNBALANCED * min(counts):
        shown.append("class_mean_accuracy")
    return [*shown, *(metric for metric in ("point_ap", "miou") if metric in found)]


def untested_reason(plan: Comparison, data: DataSet) -> str:
    """Why differences are not tested, "" if they are.

    Too few folds, or too few images of a class; if images have several classes, of every class.
    """
    if plan.folds < TESTED_FOLDS:
        return f"Too few folds to tell differences from noise: give at least --folds {TESTED_FOLDS}."
    counts, needed = class_counts(data, plan.config.train_split), TESTED * plan.folds
    choose = min if data.task == "multiclass" else max
    name = choose(counts, key=lambda name: counts[name])
    if counts[name] >= needed:
        return ""
    return (
        f"Too few images to tell differences from noise: class {name!r} has {counts[name]}, and {plan.folds} folds "
        f"need {needed}."
    )


def simplicity(name: str) -> tuple[bool, bool, int]:
    """What to sort methods by: class maps, from which points and masks follow, no further layers, fewer maps."""
    method = find_method(name)
    layers = "head" in method.settings or method.settings["pooling"] == "attention"
    return not method.has_maps, layers, method.settings["num_maps"]


def recommend(methods: Mapping[str, Mapping[str, Any]], metric: str, untested: str) -> tuple[str, list[str]]:
    """The method to take and why: the simplest with class maps of those that cannot be told from the best.

    Args:
        methods: those of a summary, the best first.
        untested: see `untested_reason`.
    """
    best, *others = methods
    near = [name for name in others if methods[name]["p"] is None or methods[name]["p"] >= LEVEL]
    chosen = min((best, *near), key=simplicity)  # of equally simple ones the best
    first = f"({METRIC_NAMES[metric]} {percent(methods[best]['metrics'][metric])} %)"
    if untested:
        sentences = [untested, f"{best} is first {first}, perhaps by chance."]
    elif near:
        sentences = [
            f"{best} is best {first}; {joined(near)} {'is' if len(near) == 1 else 'are'} within noise (p >= {LEVEL}): "
            "choose by what else you need."
        ]
    else:
        sentences = [f"{best} is best {first}; the others are worse by more than noise (p < {LEVEL})."]
    if chosen != best:
        reason = "is simpler" if methods[best]["has_maps"] else "gives maps, from which points and masks follow"
        sentences.append(f"{chosen} {reason}.")
    for other in ("point_ap", "miou"):
        measured = {n: methods[n]["metrics"][other] for n in (best, *near) if other in methods[n]["metrics"]}
        top = max(measured, key=lambda name: measured[name]["mean"], default=chosen)
        if top != chosen:
            sentences.append(f"{top} has the highest {METRIC_NAMES[other]} of these ({percent(measured[top])} %).")
    return chosen, sentences


def joined(names: Sequence[str]) -> str:
    """Names as in a sentence.

    >>> joined(["a"]), joined(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def training_words(plan: Comparison, source: str, method: str, folder: Path) -> list[str]:
    """The words of the command that trains a method on all images of the comparison, in the same way."""
    changed = changed_settings(plan.config, load_recipe("head"))
    settings = setting_flags({name: value for name, value in changed.items() if name not in HEAD_SETTINGS})
    return ["wildcat", "train", source, "--out", str(folder), "--recipe", "head", "--method", method, *settings]
