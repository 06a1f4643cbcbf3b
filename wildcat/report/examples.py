"""Which images of a stream a report shows, and all that is kept of them: a few kilobytes each, the rest is let go."""

from __future__ import annotations

import heapq
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

from wildcat.data.dataset import ABSENT, PRESENT, Sample, Task
from wildcat.data.images import read_mask
from wildcat.errors import ConfigError
from wildcat.evaluation import POINT_TOLERANCE
from wildcat.metrics import point_hits
from wildcat.prediction import OPACITY, Prediction
from wildcat.viz.colors import MARK_COLORS, unit_range

Kind = Literal["hit", "miss", "alarm", "found"]
"""hit: present, the highest scores. miss: present, the lowest. alarm: absent, the highest. found: predicted, where
nothing is known of the truth."""

TrueBoxes = tuple[tuple[tuple[float, ...], bool], ...]
"""The true boxes of a class in an image, x1 y1 x2 y2 in original pixels, and whether each is difficult."""

SIDE, MASK_SIDE, GRID_SIDE = 384, 240, 32
"""Longest sides in pixels, or cells, of the images, masks and maps that are kept."""

LEAST_BYTES = 6_000
"""What an example takes of a file at the least: more than a budget's worth of them is never held."""

IGNORED_COLOR = (160, 160, 160)


@dataclass(frozen=True, eq=False)
class Photo:
    """One image, made small; shared by the examples of all its classes.

    Attributes:
        name: unique within its data set, or the file's name.
        width, height: of the original.
        image: an encoded image of at most `SIDE` pixels.
        media_type: of `image`.
        mask: an indexed PNG of the classes `Prediction.mask` draws on nothing, None where it draws none.
        truth_mask: the same of the true ones, None where it is unknown.
        legend: class name -> RGB in the two masks.
        predicted: (class, probability) of the predicted ones, likeliest first.
        present: the true classes, None where they are unknown.
    """

    name: str
    width: int
    height: int
    image: bytes
    media_type: str
    mask: bytes | None
    truth_mask: bytes | None
    legend: dict[str, tuple[int, int, int]]
    predicted: tuple[tuple[str, float], ...]
    present: tuple[str, ...] | None


@dataclass(frozen=True, eq=False)
class Example:
    """What is shown of one class in one image. Coordinates are (x, y) in pixels of the original.

    Attributes:
        rank: what images are sorted by: the score, or the probability where classes exclude each other.
        heat: (h, w) uint8, the class map from its lowest to its highest value.
        opacity: of the heat, in [0, 1]: 1 where the class is predicted.
        modalities: (M, h, w) uint8, all M maps on one scale; None where they were not asked for.
        point_inside: whether the point lies in a true box grown by the tolerance; None without boxes.
        truth_boxes: (n, 4) and whether each is difficult; None where boxes are unknown.
    """

    photo: Photo
    class_name: str
    kind: Kind
    rank: float
    score: float
    probability: float
    is_predicted: bool
    heat: NDArray[np.uint8]
    opacity: float
    modalities: NDArray[np.uint8] | None
    point: tuple[float, float]
    point_inside: bool | None
    boxes: tuple[tuple[float, ...], ...]
    truth_boxes: TrueBoxes | None

    @property
    def verdict(self) -> str:
        """In two words, whether the model was right about the class."""
        if self.kind == "found":
            return "predicted" if self.is_predicted else "likeliest, not predicted"
        if self.kind == "alarm":
            return "false alarm" if self.is_predicted else "rightly rejected"
        return "found" if self.is_predicted else "missed"


class Gallery:
    """The most telling images of each class, of any number of predictions in bounded memory.

    Args:
        classes: names in the order of the samples' labels; without samples, the model's.
        examples: at most so many images of each kind and class.
        crf: sharpen masks with a dense CRF.
        max_mb: of the file they are for; of many classes fewer images are held.

    Attributes:
        images: how many were added.
        counts: (class, kind or verdict) -> how many images there were of it.
    """

    def __init__(
        self, classes: Sequence[str], task: Task, examples: int = 8, crf: bool = False, max_mb: float = 20
    ) -> None:
        if examples < 0:
            raise ConfigError(f"examples={examples}: give how many images of a kind to show, or 0 for none.")
        self.classes, self.task, self.crf = tuple(classes), task, crf
        affordable = int(max_mb * 1e6 / LEAST_BYTES / max(1, len(self.classes)))
        self.examples = min(examples, max(1, affordable))
        self.images = 0
        self.counts: Counter[tuple[str, str]] = Counter()
        self._shelves: dict[tuple[str, Kind], list[tuple[float, int, Example]]] = {}

    def add(self, prediction: Prediction, sample: Sample | None = None) -> None:
        """Look at one prediction, and keep of it what is more telling than what is held; `sample` is its truth.

        Raises:
            ImageError: the image or its true mask cannot be read.
        """
        self.images += 1
        ranks = prediction.class_probs if self.task == "multiclass" else prediction.class_scores
        column = {name: i for i, name in enumerate(prediction.classes)}
        predicted = set(prediction.labels)
        photo: Photo | None = None
        for name, kind in self._candidates(prediction, sample):
            rank = float(ranks[column[name]])
            self.counts[name, kind] += 1
            self.counts[name, f"{kind} predicted"] += name in predicted
            shelf = self._shelves.setdefault((name, kind), [])
            key = (-rank if kind == "miss" else rank, -self.images)  # of equals the earlier image stays
            if self.examples == 0 or (len(shelf) >= self.examples and key <= shelf[0][:2]):
                continue
            photo = photo or make_photo(prediction, sample, self.classes, self.crf)
            example = make_example(prediction, self._true_boxes(sample, name), photo, name, kind, rank)
            if len(shelf) < self.examples:
                heapq.heappush(shelf, (*key, example))
            else:
                heapq.heapreplace(shelf, (*key, example))

    def _candidates(self, prediction: Prediction, sample: Sample | None) -> Iterator[tuple[str, Kind]]:
        if sample is None:
            for name in prediction.labels or (prediction.top,):
                yield name, "found"
            return
        for name, label in zip(self.classes, sample.labels.tolist(), strict=True):
            if label == PRESENT:
                yield name, "hit"
                yield name, "miss"
            elif label == ABSENT:
                yield name, "alarm"

    def _true_boxes(self, sample: Sample | None, name: str) -> TrueBoxes | None:
        if sample is None or sample.boxes is None or sample.box_classes is None:
            return None
        mine = np.flatnonzero(sample.box_classes == self.classes.index(name))
        difficult = np.zeros(len(sample.boxes), dtype=bool) if sample.box_difficult is None else sample.box_difficult
        return tuple((tuple(map(float, sample.boxes[i])), bool(difficult[i])) for i in mine)

    def shelf(self, name: str, kind: Kind) -> list[Example]:
        """The examples of a class, the most telling first; what is a hit is not shown again among the misses."""
        examples = [e for *_, e in sorted(self._shelves.get((name, kind), []), key=lambda row: row[:2], reverse=True)]
        if kind != "miss":
            return examples
        shown = {id(e.photo) for e in self.shelf(name, "hit")}
        return [e for e in examples if id(e.photo) not in shown]


def make_photo(prediction: Prediction, sample: Sample | None, classes: Sequence[str], crf: bool) -> Photo:
    """The image, its masks and its labels, made small."""
    encoded, media_type = _encoded(prediction.load_image())
    labels = _small(prediction.mask(crf))
    truth = None if sample is None or sample.mask is None else _small(read_mask(sample.mask).astype(np.int64))
    drawn = {prediction.classes[i - 1] for i in np.unique(labels).tolist() if i > 0}
    true = set() if truth is None else {classes[i - 1] for i in np.unique(truth).tolist() if 0 < i <= len(classes)}
    named = [name for name in classes if name in drawn | true]
    legend = {name: MARK_COLORS[i % len(MARK_COLORS)] for i, name in enumerate(named)}
    present = None
    if sample is not None:
        present = tuple(c for c, label in zip(classes, sample.labels.tolist(), strict=True) if label == PRESENT)
    return Photo(
        name=(Path(prediction.path).name or "unnamed image") if sample is None else sample.name,
        width=prediction.width,
        height=prediction.height,
        image=encoded,
        media_type=media_type,
        mask=_indexed(labels, prediction.classes, legend) if drawn else None,
        truth_mask=None if truth is None else _indexed(truth, classes, legend),
        legend=legend,
        predicted=tuple((c, prediction.probabilities[c]) for c in prediction.labels[:12]),
        present=present,
    )


def make_example(
    prediction: Prediction, truth_boxes: TrueBoxes | None, photo: Photo, name: str, kind: Kind, rank: float
) -> Example:
    """What is shown of the class `name` in an image."""
    i = prediction.classes.index(name)
    maps = None if prediction.modality_maps is None else prediction.modality_maps[i]
    easy = [box for box, difficult in truth_boxes or () if not difficult]
    return Example(
        photo=photo,
        class_name=name,
        kind=kind,
        rank=rank,
        score=float(prediction.class_scores[i]),
        probability=float(prediction.class_probs[i]),
        is_predicted=name in prediction.labels,
        heat=_levels(prediction.class_maps[i][None])[0],
        opacity=prediction.opacity(name) / OPACITY,
        modalities=None if maps is None else _levels(maps),
        point=prediction.points[name],
        point_inside=bool(point_hits([prediction.points[name]], [easy], POINT_TOLERANCE)[0]) if easy else None,
        boxes=tuple(tuple(map(float, box[:4])) for box in prediction.boxes.get(name, [])),
        truth_boxes=truth_boxes,
    )


def _levels(maps: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(M, h, w) raw maps -> uint8 from their common minimum to their common maximum, on at most 32 x 32 cells."""
    levels = (unit_range(maps) * 255).round().astype(np.uint8)
    height, width = levels.shape[1:]
    scale = GRID_SIDE / max(height, width)
    if scale >= 1:
        return levels
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.stack([np.asarray(Image.fromarray(m).resize(size, Image.Resampling.BOX)) for m in levels])


def _encoded(image: Image.Image) -> tuple[bytes, str]:
    """A small copy as WebP, or JPEG where Pillow was built without it; and its media type."""
    small = image.copy()
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    kind = "WEBP" if features.check("webp") else "JPEG"
    buffer = io.BytesIO()
    small.save(buffer, kind, quality=72)
    return buffer.getvalue(), f"image/{kind.lower()}"


def _small(mask: NDArray[np.integer]) -> NDArray[np.integer]:
    """A mask on at most `MASK_SIDE` pixels a side: the middle pixel of each cell, classes never mix."""
    height, width = mask.shape
    scale = min(1.0, MASK_SIDE / max(height, width))
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    y = ((np.arange(rows) + 0.5) * height / rows).astype(int)
    x = ((np.arange(columns) + 0.5) * width / columns).astype(int)
    small: NDArray[np.integer] = mask[y[:, None], x[None]]
    return small


def _indexed(mask: NDArray[np.integer], classes: Sequence[str], legend: dict[str, tuple[int, int, int]]) -> bytes:
    """A mask of 0, i + 1 = classes[i], 255 ignored, as a PNG in the colours of the legend; the background is clear."""
    names = list(legend)
    indices = np.zeros(mask.shape, dtype=np.uint8)
    for value in np.unique(mask).tolist():
        if 0 < value <= len(classes) and classes[value - 1] in legend:
            indices[mask == value] = 1 + names.index(classes[value - 1])
        elif value == 255:
            indices[mask == value] = 255
    palette = np.zeros((256, 3), dtype=np.uint8)
    palette[1 : len(names) + 1] = list(legend.values()) or palette[1:1]
    palette[255] = IGNORED_COLOR
    image = Image.fromarray(indices)
    image.putpalette(palette.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=0, optimize=True)
    return buffer.getvalue()
