"""wildcat calibrate: fit per-class and background thresholds."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from wildcat.cli.options import Data, DataCommand, ModelCommand, Switch, describe, load_model, mask_steps, open_data
from wildcat.errors import RunError


@dataclass(frozen=True, kw_only=True)
class Calibrate(ModelCommand, DataCommand):
    """Fit the thresholds of classes and background on training images, and choose how masks are sharpened.

    Both are stored in the model folder. With --crf, --propagate or --plain they are fitted for such masks, without a
    choice.
    """

    run: Positional[Annotated[str, arg(metavar="RUN")]]
    """A model folder; its earlier calibration is replaced."""
    data: Data
    split: str = "train"
    """Split to fit on; never a split to evaluate on."""
    json: Switch = False
    """Print calibration.json instead of a table."""


def run_calibrate(command: Calibrate) -> int:
    """wildcat calibrate"""
    from wildcat.evaluation import match_classes
    from wildcat.fitting.calibrate import calibrate
    from wildcat.models.calibration import earlier_calibration, fitted_samples, write_calibration
    from wildcat.models.hub import is_hub
    from wildcat.models.packaged import PACKAGED
    from wildcat.progress import ProgressBar

    if command.run in PACKAGED:
        raise RunError(f"{command.run} is a packaged model.", "Give a model folder: the thresholds are stored there.")
    if is_hub(command.run):
        raise RunError(
            f"{command.run} is a model of the hub.",
            "Thresholds are stored in a model folder: get one with hf download.",
        )
    predictor = load_model(command, command.run, calibrated=False, boundaries=True)
    data = open_data(command, command.data, command.run)
    data = match_classes(predictor, data)
    samples = fitted_samples(data, command.split)
    describe(data, f"{len(samples)} images of {command.split} to fit on", predictor.device.type, quiet=command.json)
    folder, (crf, propagate) = Path(command.run).expanduser(), mask_steps(command)
    earlier = earlier_calibration(folder, predictor.classes)
    crf_params, superpixels = (earlier.crf, earlier.params.superpixels) if earlier else (None, False)
    with ProgressBar() as progress:
        params, record = calibrate(predictor, data, command.split, crf, progress, propagate, crf_params, superpixels)
    content = write_calibration(folder, predictor.classes, params, record, crf_params).record
    print(json.dumps(content, ensure_ascii=False) if command.json else calibration_table(content, folder, command.data))
    return 0


def calibration_table(record: Mapping[str, Any], folder: Path, source: str) -> str:
    """Format a calibration as a table."""
    lines = [f"{'':20}{'images':>10}{'threshold':>11}{'F1':>8}"]
    for name, gate in record["gate"].items():
        f1 = f"{100 * record['f1'][name]:.1f}"
        lines.append(f"{name[:20]:20}{record['prior'][name] * record['images']:>10.0f}{gate:>11.2f}{f1:>8}")
    background = record["background"]
    value = background[{"score": "score", "constant": "constant", "power": "exponent"}[background["rule"]]]
    if tried := record["tried"]:
        best = max(row["miou"] for row in tried)
        where = f"mean IoU {100 * best:.1f} on the {record['masks']} masks of {record['split']}"
        lines.append(f"background: {background['rule']} {value:.2f} ({where})")
    else:
        why = f"the default: no image of {record['split']} has a mask to fit it on"
        lines.append(f"background: {background['rule']} {value:.2f} ({why})")
    if record["choice"]:
        lines += choice_lines(record)
    lines.append(f"Next: {shlex.join(['wildcat', 'evaluate', str(folder), source])}")
    return "\n".join(lines)


def choice_lines(record: Mapping[str, Any]) -> list[str]:
    """How masks are drawn, and the gain of each option over the choice before it."""
    choice = record["choice"]
    where = f"the {choice['measure']} on {choice['images']} images of {record['split']}"
    lines = [f"masks: {steps_name(record)} (gain in {where} over the choice before, ± standard error)"]
    for row in choice["tried"]:
        error = "-" if row["error"] is None else f"{100 * row['error']:.1f}"
        lines.append(f"{'':7}{steps_name(row):25}{100 * row['gain']:>+6.1f} ± {error}")
    return lines


def steps_name(row: Mapping[str, Any]) -> str:
    """The steps by which masks are drawn, in words."""
    return " and ".join(["propagated"] * row["propagate"] + ["with CRF"] * row["crf"]) or "plain"
