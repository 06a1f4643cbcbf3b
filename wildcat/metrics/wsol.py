"""Metrics of heatmaps that depend on no threshold: MaxBoxAccV2 and PxAP (Choe et al., CVPR 2020).

*Evaluating Weakly Supervised Object Localization Methods Right*, and its code (clovaai/wsolevaluation). Every pair of
an image and a class that it shows counts once, whatever the model predicts. The class map is resized to 224 x 224 with
bicubic interpolation and normalised to [0, 1] by its own minimum and maximum, see `normalized_heatmap`; the true boxes
and masks are resized to the same grid. The threshold is one for the whole data set, the best of all:

- MaxBoxAccV2 compares boxes. At each of 255 thresholds (the code has 1,000 on heatmaps of 8 bits, of which 255 differ)
  every connected region above it has a box. A pair is localized if one of these boxes has an intersection over union of
  at least d with a true box of the class. For each d of 0.3, 0.5 and 0.7 the best threshold counts, and the metric is
  the mean over d.
- PxAP compares pixels: the area under the curve of precision and recall of all pixels of all pairs at 1,000 thresholds.

The counts of several images, or of several processes, add up; they have the same size for any number of images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.nn import functional

from wildcat.errors import ConfigError, ShapeError
from wildcat.metrics.classification import check_no_nan

GRID = 224  # side of heatmaps, boxes and masks
IOUS = (0.3, 0.5, 0.7)
LEVELS = 255  # thresholds of heatmaps of 8 bits
BINS = 1000  # thresholds of PxAP
IGNORED = 255  # value of pixels of true masks that do not count (VOC devkit)


class LocalizationCounts(NamedTuple):
    """Counts over pairs of an image and a class that it shows; those of several pairs add up.

    Attributes:
        box_pairs: number of pairs with a true box.
        box_hits: (3, 255) of them that are localized, see `box_hits`.
        pixels: (2, 1001), see `pixel_histogram`.
    """

    box_pairs: int
    box_hits: NDArray[np.int64]
    pixels: NDArray[np.int64]

    def merge(self, other: LocalizationCounts) -> LocalizationCounts:
        """The sum of both."""
        pairs, hits, pixels = other
        return LocalizationCounts(self.box_pairs + pairs, self.box_hits + hits, self.pixels + pixels)

    def metrics(self) -> dict[str, Any]:
        """`max_box_acc_v2`, its parts `max_box_acc` by intersection over union, and `pxap`, where known."""
        found: dict[str, Any] = {}
        if self.box_pairs:
            accuracies = max_box_accuracy(self.box_hits, self.box_pairs)
            found["max_box_acc_v2"] = float(accuracies.mean())
            found["max_box_acc"] = {f"{iou:g}": float(a) for iou, a in zip(IOUS, accuracies, strict=True)}
        if self.pixels[1].any():
            found["pxap"] = pixel_average_precision(self.pixels)
        return found


NO_COUNTS = LocalizationCounts(0, np.zeros((len(IOUS), LEVELS), np.int64), np.zeros((2, BINS + 1), np.int64))


def localization_counts(
    class_maps: ArrayLike, size: tuple[int, int], boxes: Sequence[ArrayLike] | None, mask: ArrayLike | None
) -> LocalizationCounts:
    """The counts of one image, over the classes that have a true box or pixels in the true mask.

    Args:
        class_maps: (C, h, w) raw maps.
        size: (height, width) of the image.
        boxes: of each class (n, 4) true boxes in pixels of the image; None: they are not counted.
        mask: (height, width) true mask, 0 background, i + 1 = class i, 255 ignored; None: it is not counted.
    """
    counts, (height, width) = NO_COUNTS, size
    drawn: set[int] = set()
    if mask is not None:
        rows, columns = (((np.arange(GRID) + 0.5) * side / GRID).astype(np.int64) for side in size)
        mask = np.asarray(mask)[rows[:, None], columns]
        drawn = set(np.unique(mask).tolist()) - {IGNORED}
    for c, class_map in enumerate(np.asarray(class_maps)):
        of_class = np.zeros((0, 4)) if boxes is None else np.asarray(boxes[c], dtype=np.float64)
        if not len(of_class) and c + 1 not in drawn:
            continue
        heatmap = normalized_heatmap(class_map)
        if len(of_class):
            hits = box_hits(heatmap, of_class * (GRID / np.asarray([width, height, width, height])))
            counts = counts.merge(NO_COUNTS._replace(box_pairs=1, box_hits=hits.astype(np.int64)))
        if c + 1 in drawn:
            pixels = pixel_histogram(heatmap, np.where(mask == IGNORED, IGNORED, mask == c + 1))
            counts = counts.merge(NO_COUNTS._replace(pixels=pixels))
    return counts


def normalized_heatmap(class_map: ArrayLike) -> NDArray[np.float32]:
    """(h, w) raw map of a class -> (224, 224) in [0, 1]: resized, then minus its minimum, divided by its maximum.

    A constant map becomes 0.

    Raises:
        ShapeError: not (h, w).
        ConfigError: NaN.
    """
    values = np.asarray(class_map, dtype=np.float64)
    if values.ndim != 2 or values.size == 0:
        raise ShapeError(f"class_map has shape {values.shape}, not (h, w).", "Give the map of one class.")
    check_no_nan("class_map", values)
    tensor = torch.from_numpy(values).float()[None, None]
    heat = functional.interpolate(tensor, (GRID, GRID), mode="bicubic", align_corners=False)[0, 0].numpy()
    if values.min() == values.max():  # rounding would make a pattern of it
        return np.zeros_like(heat)
    heat = heat - heat.min()
    return np.asarray(heat / heat.max())


def box_iou(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """(n, m) intersection over union of boxes (n, 4) and (m, 4), x1 y1 x2 y2 with exclusive edges; 0 for empty boxes.

    >>> box_iou([[0, 0, 2, 2]], [[1, 0, 3, 2], [5, 5, 6, 6]]).round(4).tolist()
    [[0.3333, 0.0]]
    """
    left = np.asarray(a, dtype=np.float64).reshape(-1, 1, 4)
    right = np.asarray(b, dtype=np.float64).reshape(1, -1, 4)
    sides = np.minimum(left[..., 2:], right[..., 2:]) - np.maximum(left[..., :2], right[..., :2])
    intersection = sides.clip(min=0).prod(axis=-1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).prod(axis=-1) for boxes in (left, right)]
    union = areas[0] + areas[1] - intersection
    return np.asarray(np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0))


def box_hits(heatmap: ArrayLike, boxes: ArrayLike, ious: Sequence[float] = IOUS) -> NDArray[np.bool_]:
    """(len(ious), 255) bool: whether a region above each threshold has a box that overlaps a true box enough.

    Args:
        heatmap: (224, 224) in [0, 1], see `normalized_heatmap`.
        boxes: (n, 4) true boxes of the class, in pixels of the heatmap.
        ious: intersection over union that is enough.

    Raises:
        ConfigError: values outside [0, 1].
    """
    best = np.zeros(LEVELS)
    for lowest, found in region_boxes(_checked(heatmap)):
        at_thresholds = best[lowest : lowest + len(found)]
        np.maximum(at_thresholds, box_iou(found, boxes).max(axis=1, initial=0), out=at_thresholds)
    return best >= np.asarray(ious)[:, None]


def region_boxes(heatmap: NDArray[np.floating]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """The boxes of all 8-connected regions above each of 255 thresholds, without labelling the pixels 255 times.

    Each pixel belongs to the hill whose peak the steepest ascent from it reaches. What a hill has above a threshold is
    connected, so regions are sets of hills, joined from the highest saddle between them to the lowest.

    Args:
        heatmap: (H, W) in [0, 1].

    Yields:
        the lowest threshold of a range in which the same hills are a region, and its box (n, 4) at each of them.
    """
    levels = (heatmap * LEVELS).astype(np.int64)
    hills = _hills(heatmap)
    peaks, hill_of = np.unique(hills, return_inverse=True)
    hill_of = hill_of.reshape(levels.shape)
    # corners[i, t]: x1, y1, -x2, -y2 of what hill i has above threshold t; of repeated indices the last one is assigned
    corners = np.full((len(peaks), LEVELS + 1, 4), np.iinfo(np.int16).max, dtype=np.int16)
    flat, cells = corners.reshape(-1, 4), hill_of * (LEVELS + 1) + levels
    for axis, order in ((0, cells.T), (1, cells)):  # pixels column by column, and row by row
        index, position = order.ravel(), np.repeat(np.arange(len(order)), order.shape[1])
        flat[index[::-1], axis] = position[::-1]
        flat[index, axis + 2] = -1 - position
    corners = np.minimum.accumulate(corners[:, ::-1], axis=1)[:, ::-1][:, 1:]
    top = levels.ravel()[peaks].tolist()  # thresholds from here on are done, or above the hill
    region = list(range(len(peaks)))

    def find(hill: int) -> int:
        while region[hill] != hill:
            region[hill] = region[region[hill]]
            hill = region[hill]
        return hill

    def boxes(hill: int, lowest: int) -> NDArray[np.int64]:
        return corners[hill, lowest : top[hill]] * (1, 1, -1, -1)

    for saddle, a, b in _saddles(levels, hill_of):
        first, second = find(a), find(b)
        if first == second:
            continue
        for hill in (first, second):
            if saddle < top[hill]:
                yield saddle, boxes(hill, saddle)
        region[second], top[first] = first, saddle
        corners[first] = np.minimum(corners[first], corners[second])
    for hill in {find(hill) for hill in region}:
        if top[hill]:
            yield 0, boxes(hill, 0)


def _hills(heatmap: NDArray[np.floating]) -> NDArray[np.int64]:
    """(H, W) index of the pixel that the steepest ascent from each pixel ends at.

    Of equally high pixels it takes the first in row-major order, so that a plateau is a few hills, not one per pixel.
    """
    height, width = heatmap.shape
    padded = np.pad(heatmap, 1, constant_values=-1)
    around = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    steepest = np.stack([padded[1 + y : 1 + y + height, 1 + x : 1 + x + width] for y, x in around]).argmax(axis=0)
    ends = np.arange(height * width) + np.asarray([y * width + x for y, x in around])[steepest.ravel()]
    while not np.array_equal(ends, further := ends[ends]):
        ends = further
    return np.asarray(ends.reshape(height, width))


def _saddles(levels: NDArray[np.int64], hill_of: NDArray[np.int64]) -> list[list[int]]:
    """[level, hill, hill] of the highest saddle above 0 between each pair of neighbouring hills, the highest first."""
    height, width = levels.shape
    found = []
    for dy, dx in ((0, 1), (1, -1), (1, 0), (1, 1)):
        near = np.s_[: height - dy, max(0, -dx) : width - max(0, dx)]
        far = np.s_[dy:, max(0, dx) : width - max(0, -dx)]
        saddle, a, b = np.minimum(levels[near], levels[far]), hill_of[near], hill_of[far]
        apart = (a != b) & (saddle > 0)
        found.append(np.stack([saddle[apart], np.minimum(a, b)[apart], np.maximum(a, b)[apart]]))
    rows = np.concatenate(found, axis=1)
    rows = rows[:, np.argsort(-rows[0], kind="stable")]
    highest = np.unique(rows[1] * hill_of.size + rows[2], return_index=True)[1]
    chosen: list[list[int]] = rows[:, np.sort(highest)].T.tolist()
    return chosen


def max_box_accuracy(hits: ArrayLike, pairs: int) -> NDArray[np.float64]:
    """The accuracy at the best threshold for each intersection over union; MaxBoxAccV2 is their mean.

    Args:
        hits: (3, 255) `box_hits`, summed over all pairs of an image and a class.
        pairs: their number; nan for 0.

    >>> max_box_accuracy([[2, 1, 0], [1, 1, 0]], pairs=4).tolist()
    [0.5, 0.25]
    """
    counts = np.asarray(hits)
    return counts.max(axis=-1) / pairs if pairs else np.full(counts.shape[:-1], np.nan)


def pixel_histogram(heatmap: ArrayLike, mask: ArrayLike) -> NDArray[np.int64]:
    """(2, 1001) pixels of the background (row 0) and of the object (row 1) by heat. Sum them over all pairs.

    Args:
        heatmap: (H, W) in [0, 1], see `normalized_heatmap`.
        mask: (H, W), 1 on the object, 0 elsewhere, 255 where the pixel does not count.

    Raises:
        ShapeError: the two differ in shape.
        ConfigError: values outside [0, 1], or others in the mask.
    """
    heat, true = _checked(heatmap), np.asarray(mask)
    if heat.shape != true.shape:
        raise ShapeError(f"heatmap {heat.shape} and mask {true.shape} differ in shape.", "Resize the mask first.")
    counted = true != IGNORED
    if not np.isin(true[counted], (0, 1)).all():
        raise ConfigError("the mask has values other than 0, 1 and 255.", "Give the mask of one class: mask == i.")
    cells = true[counted].astype(np.int64) * (BINS + 1) + (heat[counted] * BINS).astype(np.int64)
    return np.bincount(cells, minlength=2 * (BINS + 1)).reshape(2, BINS + 1).astype(np.int64, copy=False)


def pixel_average_precision(histogram: ArrayLike) -> float:
    """PxAP: the sum of precision times the gain in recall, from the highest threshold down; nan without an object.

    Args:
        histogram: (2, 1001) `pixel_histogram`, summed over all pairs of an image and a class.

    >>> pixel_average_precision(pixel_histogram([[0.9, 0.8, 0.1]], [[1, 0, 1]]))
    0.8333333333333333
    """
    false, true = np.asarray(histogram)[:, ::-1].cumsum(axis=1)
    if not true[-1]:
        return float("nan")
    precision = np.divide(true, true + false, out=np.zeros(len(true)), where=true + false > 0)
    return float(np.diff(true / true[-1], prepend=0.0) @ precision)


def _checked(heatmap: ArrayLike) -> NDArray[np.floating]:
    values = np.asarray(heatmap)
    if values.ndim != 2 or values.size == 0:
        raise ShapeError(f"heatmap has shape {values.shape}, not (H, W).", "Give the heatmap of one class.")
    if not (values.min() >= 0 and values.max() <= 1):  # NaN is not
        raise ConfigError(
            f"heatmap has values from {values.min():g} to {values.max():g}, outside [0, 1].",
            "Normalise each map with normalized_heatmap.",
        )
    return values
