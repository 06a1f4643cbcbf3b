"""From a prediction to instances: the connected regions of each predicted class, with a score, a box and a mask."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from wildcat.errors import ConfigError, did_you_mean
from wildcat.export.polygons import simplify_outline, trace_outline
from wildcat.prediction import Prediction
from wildcat.regions.boxes import connected_regions

Which = Literal["all", "largest"]


@dataclass(frozen=True)
class InstanceParams:
    """Which regions of a prediction are written.

    Attributes:
        min_score: write the classes whose probability is at least this, in [0, 1]; None: the predicted classes, see
            `Prediction.labels`.
        min_area: in [0, 1), the share of the image a region must at least cover; 0 keeps every speck.
        which: "all" regions of a class, or the "largest" alone.
        crf: sharpen the masks with a dense CRF first.

    Raises:
        ConfigError: a value is out of range.
    """

    min_score: float | None = None
    min_area: float = 0.001
    which: Which = "all"
    crf: bool = False

    def __post_init__(self) -> None:
        if self.min_score is not None and not 0 <= self.min_score <= 1:
            raise ConfigError(
                f"min_score={self.min_score}: give a probability in [0, 1].",
                "Leave it out for the model's own thresholds.",
            )
        if not 0 <= self.min_area < 1:
            raise ConfigError(
                f"min_area={self.min_area} is not in [0, 1).", "It is a share of the image; 0 keeps every speck."
            )
        if self.which not in get_args(Which):
            hint = did_you_mean(str(self.which), get_args(Which)) or f"Choose one of: {', '.join(get_args(Which))}."
            raise ConfigError(f"boxes={self.which!r} is unknown.", hint)


@dataclass(frozen=True, eq=False)
class Instance:
    """One region of one class.

    Attributes:
        class_index: of the model's classes.
        name: of the class.
        score: the probability of the class in the whole image, so that all regions of a class share it: it ranks
            images, not the regions of one.
        box: x1 y1 x2 y2 in whole pixels of the original image, x2 and y2 exclusive.
        mask: (y2 - y1, x2 - x1), the region within its box.
    """

    class_index: int
    name: str
    score: float
    box: tuple[int, int, int, int]
    mask: NDArray[np.bool_]

    @property
    def area(self) -> int:
        """In pixels."""
        return int(np.count_nonzero(self.mask))

    def outline(self, simplify: float = 0.0) -> NDArray[np.int64]:
        """Its outer edge as a polygon (n, 2) in pixels of the image; see `trace_outline` and `simplify_outline`."""
        outline = simplify_outline(trace_outline(self.mask), simplify)
        shifted: NDArray[np.int64] = outline + np.array(self.box[:2])
        return shifted

    def paint(self, target: NDArray[np.uint8], value: int) -> None:
        """Set the region to `value` in the (H, W) image `target`."""
        x1, y1, x2, y2 = self.box
        target[y1:y2, x1:x2][self.mask] = value


def find_instances(prediction: Prediction, params: InstanceParams | None = None) -> list[Instance]:
    """The regions of the predicted classes, the likeliest class first and its largest region first.

    A region is an 8-connected component of `Prediction.mask`: regions never overlap, and with `min_area=0` and all of
    them kept, they make up the mask. Empty if no class reaches `min_score`.
    """
    params = params or InstanceParams()
    probs, mask_params = prediction.class_probs, prediction.mask_params()
    if params.min_score is not None:
        if float(probs.max()) < params.min_score:
            return []
        mask_params = replace(mask_params, gate=params.min_score)
    mask = prediction.mask(params.crf, mask_params)
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
