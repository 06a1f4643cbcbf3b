"""calibration.json in a model folder: per-class thresholds and mask settings, fitted on training images.

data, split, images, masks   what they were fitted on: the number of labelled images, and of those with masks
weights                      digest of the weights they were fitted for
propagate, crf               whether masks are spread up to boundaries, and sharpened by a dense CRF
choice                       how that was chosen, see `wildcat.fitting.choice`; null if a flag decided
gate, prior, f1              per class: threshold, share of the images, F1; see `wildcat.fitting.calibrate`
background                   rule, score, constant, exponent and superpixels of `wildcat.regions.MaskParams`
crf_settings                 of `wildcat.regions.CrfParams`, or null for the defaults
tried                        mean IoU of each background tried; empty without masks
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wildcat.data.dataset import DataSet, Sample
from wildcat.errors import ConfigError, DataError, RunError
from wildcat.files import read_json, remove_leftovers, write_json
from wildcat.models.manifest import SCHEMA, timestamp, versions
from wildcat.regions.crf import CrfParams
from wildcat.regions.masks import MaskParams

CALIBRATION = "calibration.json"
BACKGROUND_SETTINGS = ("rule", "score", "constant", "exponent", "superpixels")
WEIGHT_FILES = ("model", "combination", "segmenter", "boundaries", "verifier")  # names of .safetensors files


@dataclass(frozen=True, eq=False)
class Calibration:
    """Fitted thresholds and mask settings of a model.

    Attributes:
        params: with one threshold (`gate`) per class, in the order of the model's classes.
        record: the content of calibration.json.
        crf: settings of the dense CRF for this model; None for the defaults.
    """

    params: MaskParams
    record: Mapping[str, Any]
    crf: CrfParams | None = None

    @property
    def propagate(self) -> bool:
        """Whether masks are spread up to the boundaries of the model, unless a flag says otherwise."""
        return bool(self.record.get("propagate"))

    @property
    def with_crf(self) -> bool:
        """Whether masks are sharpened by a dense CRF, unless a flag says otherwise."""
        return bool(self.record.get("crf"))


def write_calibration(
    folder: Path,
    classes: Sequence[str],
    params: MaskParams,
    record: Mapping[str, Any],
    crf: CrfParams | None = None,
) -> Calibration:
    """Write calibration.json into a model folder, atomically; it replaces an earlier one.

    Args:
        params: with one threshold per class, or one for all.
        record: data, split, images, masks and other entries; plain values.
        crf: settings of the dense CRF for this model; None for the defaults.

    Raises:
        RunError: the file cannot be written.
    """
    content = {
        "schema": SCHEMA,
        "created": timestamp(),
        **record,
        "gate": dict(zip(classes, params.gates(len(classes)), strict=True)),
        "background": {name: getattr(params, name) for name in BACKGROUND_SETTINGS},
        "crf_settings": None if crf is None else asdict(crf),
        "weights": weights_digest(folder),
        "versions": versions(),
    }
    remove_leftovers(folder / CALIBRATION)
    write_json(folder / CALIBRATION, content)
    return Calibration(params, content, crf)


def read_calibration(folder: Path, classes: Sequence[str]) -> Calibration | None:
    """Read the calibration of a model folder; None if it has none.

    Raises:
        RunError: the file is damaged, or was fitted for other classes or weights.
    """
    path = folder / CALIBRATION
    if not path.is_file():
        return None
    again = f"Type: wildcat calibrate {folder} DATA, or delete the file for the default thresholds and masks."
    try:
        record = read_json(path, again)
        if record["schema"] != SCHEMA:
            raise RunError(f"{path} has layout version {record['schema']!r}; this version reads {SCHEMA}.", again)
        gates, background = dict(record["gate"]), record["background"]
        crf = None if record["crf_settings"] is None else CrfParams(**record["crf_settings"])
        fitted = {"data": str(record["data"]), "split": str(record["split"])}
        counts = {"images": int(record["images"]), "masks": int(record["masks"])}
        if set(gates) == set(classes):
            params = MaskParams(
                gate=tuple(float(gates[name]) for name in classes),
                rule=background["rule"],
                score=float(background["score"]),
                constant=float(background["constant"]),
                exponent=float(background["exponent"]),
                superpixels=bool(background.get("superpixels", False)),
            )
    except (ValueError, KeyError, TypeError, OverflowError, ConfigError) as error:
        reason = error.message if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}."
        raise RunError(f"{path} is damaged: {reason}", again) from error
    if set(gates) != set(classes):
        raise RunError(f"{path} is of a model with other classes ({len(gates)}; here {len(classes)}).", again)
    if record.get("weights") != weights_digest(folder):
        raise RunError(f"{path} was fitted for other weights than those now in {folder}.", again)
    return Calibration(params, {**record, **fitted, **counts}, crf)


def earlier_calibration(folder: Path, classes: Sequence[str]) -> Calibration | None:
    """The calibration that a new one replaces, which keeps its CRF and superpixels; None if there is none to read."""
    try:
        return read_calibration(folder, classes)
    except RunError:
        return None


def fitted_samples(data: DataSet, split: str) -> tuple[Sample, ...]:
    """The images of `split` to fit on; of a `train` without a `val` split, those that are not held out for `val`."""
    if split == "train" and "val" not in data.readers:
        return data.training_split("train", "val")[0]
    return data.split(split)


def measured_again(record: Mapping[str, Any], data: DataSet, split: str) -> int:
    """How many images of a split a calibration was fitted on: mask metrics on them are optimistic.

    0 if the data has no such split: it is another data set of the same name.
    """
    if record["data"] != data.name:
        return 0
    try:
        fitted = {sample.name for sample in fitted_samples(data, record["split"])}
    except DataError:
        return 0
    return sum(sample.name in fitted for sample in data.split(split))


def weights_digest(folder: Path) -> str:
    """SHA-256 over all weights of a model, with its members and bases, without other models inside its folder."""
    parts = (".", "base", "members/*", "members/*/base")
    digests = []
    for path in sorted(path for part in parts for path in folder.glob(f"{part}/*.safetensors")):
        if path.stem not in WEIGHT_FILES:
            continue
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()
