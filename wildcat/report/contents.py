"""What a report is made of, before it is a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wildcat.metrics import PrecisionRecall
from wildcat.report.examples import Gallery


@dataclass(frozen=True)
class Contents:
    """What a report is made of; what is empty is left out.

    Attributes:
        title: the first line.
        gallery: the images.
        facts: name -> value, about the model and the data.
        notes: sentences a reader should know before believing a number.
        figures: what `wildcat.evaluation.evaluate` returned.
        curves: class name -> its precision-recall curve.
        confusion: (C, C) images, rows true, columns predicted, where classes exclude each other.
        history: the lines of a run's metrics.jsonl.
    """

    title: str
    gallery: Gallery
    facts: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    figures: Mapping[str, Any] | None = None
    curves: Mapping[str, PrecisionRecall] = field(default_factory=dict)
    confusion: NDArray[np.int64] | None = None
    history: Sequence[Mapping[str, Any]] = ()
