"""wildcat evaluate: how good a model is on labelled images."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from wildcat.cli.options import DataCommand, ModelCommand, describe, load_model, measured_split, open_data


@dataclass(frozen=True, kw_only=True)
class Evaluate(ModelCommand, DataCommand):
    """Measure a model on labelled images."""

    run: Positional[Annotated[str, arg(metavar="RUN")]]
    """A run folder, or a packaged model such as imagenet-lite0."""
    data: Positional[Annotated[str, arg(metavar="DATA")]]
    """A folder, a .csv, or the name of a packaged data set."""
    split: str | None = None
    """Part of the data to measure on; val where the data has one, otherwise test."""
    ap: Literal["voc07", "voc10", "plain"] = "voc10"
    """Variant of average precision."""
    crf: bool = False
    """Sharpen masks with a dense CRF before they are measured."""
    json: bool = False
    """Print one JSON object instead of a table."""
    curves: Path | None = None
    """Write the precision-recall curve of each class to this .csv, or draw them in this .png, .svg or .pdf."""


def run_evaluate(command: Evaluate) -> int:
    """wildcat evaluate; under torchrun the processes share the images, and the first one speaks."""
    from wildcat.evaluation import check_curves, class_order, measure, report, save_curves
    from wildcat.progress import progress_bar
    from wildcat.train.distributed import process_group, rank, world_size

    if command.curves is not None:
        check_curves(command.curves)
    data = open_data(command, command.data)
    split = measured_split(command.split, data)
    with process_group():
        predictor = load_model(command, command.run)
        order = class_order(predictor, data)
        samples = data.split(split)
        if first := rank() == 0:
            processes = f" on {world_size()} processes" if world_size() > 1 else ""
            where = f"{predictor.device.type}{processes}"
            describe(data, f"{len(samples)} images of {split}", where, quiet=command.json)
        with progress_bar(len(samples), "evaluating") if first else nullcontext() as bar:
            tally = measure(predictor, data, split, command.crf, lambda n: bar and bar.update(n * world_size()))
    if first:
        result = report(tally, data, split, order, command.ap, command.crf)
        if command.curves is not None:
            save_curves(command.curves, tally, data, split, order)
        print(json.dumps(result, ensure_ascii=False) if command.json else evaluation_table(result))
    return 0


def evaluation_table(result: dict[str, Any]) -> str:
    """The figures of an evaluation for a person."""
    classification, pointing = result["classification"], result.get("pointing")
    head = f"{'':20}{'AP':>8}{'point AP' if pointing else '':>10}"
    lines = [f"{result['data']} {result['split']}, {result['images']} images", head]
    for name, value in classification["ap"].items():
        lines.append(f"{name[:20]:20}{_percent(value)}{_percent(pointing['ap'][name], 10) if pointing else ''}")
    mean = f"{'mean':20}{_percent(classification['map'])}{_percent(pointing['map'], 10) if pointing else ''}"
    lines.append(f"{mean}   ({classification['variant']} AP, %)")
    for key in ("accuracy", "class_mean_accuracy", "roc_auc"):
        if key in classification:
            lines.append(f"{key.replace('_', ' '):20}{_percent(classification[key])}")
    if pointing:
        lines.append(f"{'pointing game':20}{_percent(pointing['pointing_game'])}")
    if "segmentation" in result:
        lines += _mask_lines(result["segmentation"])
    return "\n".join(line.rstrip() for line in lines)


def _mask_lines(masks: dict[str, Any]) -> list[str]:
    fitted, sharpened = masks["calibration"], ", CRF" if masks["crf"] else ""
    source = "the default"
    if fitted:
        source = f"fitted on {fitted['images']} images of {fitted['data']} {fitted['split']}"
        source += f", {fitted['masks']} with masks" if fitted["masks"] else ", tags only: the background is the default"
    background = f"background {masks['rule']}" + ("" if masks["threshold"] is None else f" {masks['threshold']:.2f}")
    lines = [f"{'mean IoU':20}{_percent(masks['miou'])}   ({background}{sharpened}; {source})"]
    if fitted and fitted["measured"]:
        lines.append(f"note: masks were fitted on {fitted['measured']} of the images measured here: they flatter it")
    if best := masks.get("hindsight"):
        marked = f"best background in hindsight, {masks['rule']} {best['threshold']:.2f}; not deployable"
        lines.append(f"{'':20}{_percent(best['miou'])}   ({marked})")
    return lines


def _percent(value: float | None, width: int = 8) -> str:
    return f"{'-':>{width}}" if value is None else f"{100 * value:>{width}.1f}"
