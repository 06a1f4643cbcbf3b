"""wildcat evaluate: compute the metrics of a model on labelled images."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from wildcat.cli.options import MetricsCommand, Switch, describe, evaluation_split, load_model, open_data, require_maps
from wildcat.errors import ConfigError

if TYPE_CHECKING:
    from wildcat.data import DataSet
    from wildcat.evaluation import Tally


@dataclass(frozen=True, kw_only=True)
class Evaluate(MetricsCommand):
    """Evaluate a model on labelled images."""

    json: Switch = False
    """Print one JSON object instead of a table."""
    curves: Annotated[Path | None, arg(metavar="PATH")] = None
    """Write the precision-recall curve of each class to this .csv, or plot them in this .png, .svg or .pdf."""


def run_evaluate(command: Evaluate) -> int:
    """wildcat evaluate; under torchrun the processes share the images, and the first one prints the result."""
    from wildcat.evaluation import match_classes, measure, summarize
    from wildcat.files import make_parent
    from wildcat.progress import SILENT, ProgressBar
    from wildcat.train.distributed import process_group, rank, world_size
    from wildcat.viz.curves import SUFFIXES

    if command.curves is not None and command.curves.suffix not in (".csv", *SUFFIXES):
        drawn = ", ".join(SUFFIXES)
        raise ConfigError(f"{command.curves}: curves are written as .csv, or drawn as {drawn}.")
    data = open_data(command, command.data, command.run)
    split = evaluation_split(command.split, data)
    if command.curves is not None:
        make_parent(command.curves)
    with process_group():
        predictor = load_model(command, command.run)
        if command.crf:
            require_maps(predictor)
        read_notes = len(data.notes)
        data = match_classes(predictor, data)
        if first := rank() == 0:
            device = predictor.device.type + (f" on {world_size()} processes" if world_size() > 1 else "")
            describe(data, f"{len(data.split(split))} images of {split}", device, quiet=command.json)
        with ProgressBar() if first else nullcontext(SILENT) as progress:
            tally = measure(predictor, data, split, progress=progress)
    if first:
        notes = data.notes[read_notes:] if command.json else ()  # `describe` printed them above the table
        result = summarize(tally, data, split, command.ap, notes=notes)
        print(json.dumps(result, ensure_ascii=False) if command.json else evaluation_table(result), flush=True)
        if command.curves is not None:
            save_curves(command.curves, tally, data, split)
    return 0


def save_curves(path: Path, tally: Tally, data: DataSet, split: str) -> None:
    """Write the precision-recall curve of each class as a table (.csv) or a plot (.png, .svg, .pdf)."""
    from wildcat.data.dataset import label_matrix
    from wildcat.evaluation import ranked_scores
    from wildcat.files import write_bytes
    from wildcat.metrics import precision_recall_curve
    from wildcat.viz.curves import draw_precision_recall
    from wildcat.viz.fonts import drawn_texts

    labels = label_matrix(data.split(split))
    scores = tally.score_matrix()
    ranked = ranked_scores(scores, tally.task, data)
    curves = {c: precision_recall_curve(ranked[:, i], labels[:, i]) for i, c in enumerate(data.classes)}
    if path.suffix == ".csv":
        from scipy.special import expit

        rows = [
            f"{json.dumps(c, ensure_ascii=False)},{r:.6f},{p:.6f},{t:.6g}"
            for c, curve in curves.items()
            for r, p, t in zip(
                curve.recall,
                curve.precision,
                curve.thresholds if ranked is scores else expit(curve.thresholds),
                strict=True,
            )
        ]
        write_bytes(path, "\n".join(["class,recall,precision,threshold", *rows, ""]).encode())
        return
    title = f"{data.name} {split}, {len(labels)} images"
    numbers = [f"{shown} is {c}" for shown, c in zip(drawn_texts(list(curves)), curves, strict=True) if shown != c]
    if numbers:
        print(f"note: no font for the names of some classes; in the plot {', '.join(numbers)}.", file=sys.stderr)
    drawn = {c: (curve.recall, curve.precision) for c, curve in curves.items()}
    write_bytes(path, draw_precision_recall(drawn, title, path.suffix))


def evaluation_table(result: dict[str, Any]) -> str:
    """Format the metrics of an evaluation as a table."""
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
    lines += [f"note: {note}" for note in result.get("notes", ())]
    if pointing:
        lines.append(f"{'pointing game':20}{_percent(pointing['pointing_game'])}")
    lines += _localization_lines(result.get("localization", {}))
    if "segmentation" in result:
        lines += _mask_lines(result["segmentation"])
    return "\n".join(line.rstrip() for line in lines)


def _localization_lines(found: dict[str, Any]) -> list[str]:
    lines = []
    if "max_box_acc_v2" in found:
        each = ", ".join(f"{100 * value:.1f} at {iou}" for iou, value in found["max_box_acc"].items())
        lines.append(f"{'MaxBoxAccV2':20}{_percent(found['max_box_acc_v2'])}   (IoU: {each}; best threshold)")
    if "pxap" in found:
        lines.append(f"{'PxAP':20}{_percent(found['pxap'])}   (all thresholds)")
    return lines


def _mask_lines(masks: dict[str, Any]) -> list[str]:
    fitted = masks["calibration"]
    sharpened = "".join([", propagated" * masks["propagated"], ", CRF" * masks["crf"]])
    source = "the default"
    if fitted:
        source = f"fitted on {fitted['images']} images of {fitted['data']} {fitted['split']}"
        source += f", {fitted['masks']} with masks" if fitted["masks"] else ", labels only: default background"
    background = f"background {masks['rule']}" + ("" if masks["threshold"] is None else f" {masks['threshold']:.2f}")
    lines = [f"{'mean IoU':20}{_percent(masks['miou'])}   ({background}{sharpened}; {source})"]
    if fitted and fitted["measured"]:
        lines.append(
            f"note: masks were fitted on {fitted['measured']} of the images evaluated here: the IoU is optimistic"
        )
    if best := masks.get("hindsight"):
        text = f"best background in hindsight, {masks['rule']} {best['threshold']:.2f}; not deployable"
        lines.append(f"{'':20}{_percent(best['miou'])}   ({text})")
    return lines


def _percent(value: float | None, width: int = 8) -> str:
    return f"{'-':>{width}}" if value is None else f"{100 * value:>{width}.1f}"
