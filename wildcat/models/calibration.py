"""calibration.json in the folder of a run or an ensemble: how its masks are drawn, fitted on training images.

data, split, images, masks   what it was fitted on: so many images with tags, of which so many with masks
weights                        digest of the weights it was fitted for: others need another calibration
gate, prior, f1                of each class: see `wildcat.fitting.calibrate.fit_gates`
crf_settings                   of `wildcat.regions.CrfParams`, where the model's maps ask for other than the defaults
background                     rule, score, constant and exponent of `wildcat.regions.MaskParams`
tried                          mean IoU of each background tried, on those masks; empty where there were none
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from wildcat.data.dataset import DataSet, Sample
from wildcat.errors import ConfigError, RunError
from wildcat.files import read_json, remove_leftovers, write_json
from wildcat.models.ensemble import COMBINATION
from wildcat.models.refined import BASE, SEGMENTER
from wildcat.models.run import WEIGHTS, versions
from wildcat.regions.crf import CrfParams
from wildcat.regions.masks import MaskParams

SCHEMA = 2
"""Version of the file's layout."""

CALIBRATION = "calibration.json"


@dataclass(frozen=True, eq=False)
class Calibration:
    """How a model's masks are drawn, and what that was fitted on.

    Attributes:
        params: with one gate a class, in the order of the model's classes.
        crf: settings of the dense CRF that go with the model's maps; None for the defaults.
        record: what calibration.json holds.
    """

    params: MaskParams
    record: Mapping[str, Any]
    crf: CrfParams | None = None


def write_calibration(
    folder: Path,
    classes: Sequence[str],
    params: MaskParams,
    record: Mapping[str, Any],
    crf: CrfParams | None = None,
) -> Calibration:
    """Write calibration.json into the folder of a run or an ensemble, in place of an earlier one; atomic.

    Args:
        params: with one gate a class.
        record: data, split, images, masks, and what else there is to say; plain values.
        crf: settings of the dense CRF for this model; None leaves them at their defaults.

    Raises:
        RunError: the file cannot be written.
    """
    gates = params.gate if isinstance(params.gate, tuple) else (params.gate,) * len(classes)
    background = {name: getattr(params, name) for name in ("rule", "score", "constant", "exponent")}
    content = {
        "schema": SCHEMA,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **record,
        "gate": dict(zip(classes, gates, strict=True)),
        "background": background,
        "crf_settings": None if crf is None else asdict(crf),
        "weights": weights_digest(folder),
        "versions": versions(),
    }
    remove_leftovers(folder / CALIBRATION)
    write_json(folder / CALIBRATION, content)
    return Calibration(params, content, crf)


def read_calibration(folder: Path, classes: Sequence[str]) -> Calibration | None:
    """The calibration of the model in `folder`, or None where it has none.

    Raises:
        RunError: the file is damaged, or was fitted for other classes or weights.
    """
    path = folder / CALIBRATION
    if not path.is_file():
        return None
    again = f"Type: wildcat calibrate {folder} DATA, or delete the file for masks at the default settings."
    try:
        record = read_json(path, again)
        schema = record["schema"]
        if schema != SCHEMA:
            raise RunError(f"{path} has layout version {schema!r}; this version reads {SCHEMA}.", again)
        gates, background = dict(record["gate"]), record["background"]
        crf = None if record["crf_settings"] is None else CrfParams(**record["crf_settings"])
        fitted = str(record["data"]), str(record["split"]), int(record["images"]), int(record["masks"])
        if set(gates) == set(classes):
            params = MaskParams(
                gate=tuple(float(gates[name]) for name in classes),
                rule=background["rule"],
                score=float(background["score"]),
                constant=float(background["constant"]),
                exponent=float(background["exponent"]),
            )
    except (ValueError, KeyError, TypeError, OverflowError, ConfigError) as error:
        reason = error.message if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}."
        raise RunError(f"{path} is damaged: {reason}", again) from error
    if set(gates) != set(classes):
        raise RunError(f"{path} is of a model with other classes ({len(gates)}; here {len(classes)}).", again)
    if record.get("weights") != weights_digest(folder):
        raise RunError(f"{path} was fitted for other weights than those now in {folder}.", again)
    data, split, images, masks = fitted
    return Calibration(params, {**record, "data": data, "split": split, "images": images, "masks": masks}, crf)


def fitted_samples(data: DataSet, split: str) -> tuple[Sample, ...]:
    """The images to fit on: those of `split`; of `train`, without those that stand in for a `val` there is not."""
    if split == "train" and "val" not in data.readers:
        return data.training_split("train", "val")[0]
    return data.split(split)


def measured_again(record: Mapping[str, Any], data: DataSet, split: str) -> int:
    """How many images of a split a calibration was fitted on: figures of its masks there flatter the model."""
    if record["data"] != data.name or record["split"] not in (*data.readers, "val"):
        return 0
    fitted = {sample.name for sample in fitted_samples(data, record["split"])}
    return sum(sample.name in fitted for sample in data.split(split))


def weights_digest(folder: Path) -> str:
    """SHA-256 over the weights of a run, of an ensemble's members and combination, or of a refined model."""
    refined = [folder / BASE / WEIGHTS, folder / SEGMENTER]
    files = [folder / WEIGHTS, folder / COMBINATION, *refined, *sorted((folder / "members").glob(f"*/{WEIGHTS}"))]
    digests = []
    for path in files:
        if path.is_file():
            with path.open("rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()
