"""Result files of experiments and benchmarks: results with everything needed to repeat them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from wildcat.config import TrainConfig
from wildcat.device import machine
from wildcat.files import write_json
from wildcat.models.manifest import versions


def write_result(path: Path, command: str, settings: Mapping[str, Any], results: Any) -> None:
    """Write a result file (JSON): command, date, versions, machine (with CPU flags), settings and results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "command": command,
        "date": datetime.now(UTC).date().isoformat(),
        "versions": versions(),
        "machine": machine(),
        "settings": dict(settings),
        "results": results,
    }
    write_json(path, content)


def plain_settings(config: TrainConfig) -> dict[str, Any]:
    """The settings as JSON values; infinity, which JSON lacks, becomes the string "inf"."""
    return {name: str(value) if value == math.inf else value for name, value in asdict(config).items()}


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, sample standard deviation and the values, rounded to five digits."""
    array = np.asarray(values, dtype=np.float64)
    deviation = float(array.std(ddof=1)) if len(array) > 1 else None
    return {
        "mean": round(float(array.mean()), 5),
        "std": None if deviation is None else round(deviation, 5),
        "values": [round(float(v), 5) for v in array],
    }
