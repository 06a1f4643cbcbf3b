"""Instances of a prediction: the connected regions of each predicted class, with a score, a box and a mask."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from wildcat.errors import ConfigError
from wildcat.export.polygons import simplify_outline, trace_outline
from wildcat.prediction import Prediction
from wildcat.regions.boxes import connected_regions

Which = Literal["all", "largest"]


@dataclass(frozen=True)
class InstanceParams:
    """Settings of `find_instances`.

    Attributes:
        min_score: minimum probability of a class, in [0, 1]; None: the predicted classes, see `Prediction.labels`.
        min_area: minimum area of a region, as a fraction of the image in [0, 1); 0 keeps all regions.
        which: "all" regions of a class, or only the "largest".
        crf: refine the masks with a dense CRF first; None: as the prediction does, see `Prediction.mask`.
        propagate: spread the masks up to boundaries before; None: likewise.
        threshold: of the background, in the unit of `MaskParams.threshold`; None: the model's own.

    Raises:
        ConfigError: a value is out of range.
    """

    min_score: float | None = None
    min_area: float = 0.001
    which: Which = "all"
    crf: bool | None = None
    propagate: bool | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        if self.min_score is not None and not 0 <= self.min_score <= 1:
            raise ConfigError(f"min_score={self.min_score}: give a probability in [0, 1], or omit it.")
        if not 0 <= self.min_area < 1:
            raise ConfigError(f"min_area={self.min_area}: give a fraction of the image in [0, 1).")
        if self.which not in get_args(Which):
            raise ConfigError(f"boxes={self.which!r}: give {' or '.join(get_args(Which))}.")


@dataclass(frozen=True, eq=False)
class Instance:
    """One region of one class.

    Attributes:
        class_index: index in the model's classes.
        name: of the class.
        score: probability of the class in the whole image, equal for all its regions in the image.
        box: x1 y1 x2 y2 in pixels of the original image, x2 and y2 exclusive.
        mask: (y2 - y1, x2 - x1), the region cropped to its box.
    """

    class_index: int
    name: str
    score: float
    box: tuple[int, int, int, int]
    mask: NDArray[np.bool_]

    @property
    def area(self) -> int:
        """Number of pixels."""
        return int(np.count_nonzero(self.mask))

    def outline(self, simplify: float = 0.0) -> NDArray[np.int64]:
        """The outer boundary as a polygon (n, 2) of (x, y) in pixels of the image, simplified by at most `simplify`."""
        outline = simplify_outline(trace_outline(self.mask), simplify)
        shifted: NDArray[np.int64] = outline + np.array(self.box[:2])
        return shifted

    def paint(self, target: NDArray[np.uint8], value: int) -> None:
        """Set the region to `value` in the (H, W) array `target`."""
        x1, y1, x2, y2 = self.box
        target[y1:y2, x1:x2][self.mask] = value


def find_instances(prediction: Prediction, params: InstanceParams | None = None) -> list[Instance]:
    """The instances of the predicted classes, most likely class first, largest region first.

    Each is an 8-connected component of `Prediction.mask`; they do not overlap, and with `min_area=0` they cover the
    mask. The list is empty if no class reaches `min_score`.
    """
    params = params or InstanceParams()
    probs, mask_params = prediction.class_probs, prediction.mask_params()
    if params.min_score is not None:
        if float(probs.max()) < params.min_score:
            return []
        mask_params = replace(mask_params, gate=params.min_score)
    if params.threshold is not None:
        mask_params = mask_params.with_threshold(params.threshold)
    mask = prediction.mask(params.crf, mask_params, propagate=params.propagate)
    drawn = set(np.unique(mask).tolist())
    found = []
    for index in np.argsort(-probs, kind="stable").tolist():
        if index + 1 in drawn:
            name, score = prediction.classes[index], float(probs[index])
            regions = connected_regions(mask == index + 1, params.min_area)
            for rows, columns, inside in regions[:1] if params.which == "largest" else regions:
                box = (columns.start, rows.start, columns.stop, rows.stop)
                found.append(Instance(index, name, score, box, inside))
    return found


def predicted_classes(prediction: Prediction, min_score: float | None = None) -> list[str]:
    """The classes of which `find_instances` looks for regions, likeliest first.

    Args:
        min_score: minimum probability; None: the predicted classes, see `Prediction.labels`.
    """
    if min_score is None:
        return list(prediction.labels)
    ranked = sorted(prediction.probabilities.items(), key=lambda item: -item[1])
    return [name for name, probability in ranked if probability >= min_score]
