"""Select the example images of a report while predictions stream by, and reduce each to a few kilobytes."""

from __future__ import annotations

import base64
import heapq
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wildcat.data.dataset import ABSENT, PRESENT, Sample, Task
from wildcat.errors import ConfigError
from wildcat.evaluation import POINT_TOLERANCE
from wildcat.metrics import point_hits
from wildcat.prediction import OPACITY, Prediction
from wildcat.regions.masks import HIGHEST_PNG_LABEL
from wildcat.viz.colors import MARK_COLORS, unit_range

# hit: the class is present, highest scores first. miss: present, lowest scores first. false positive: absent, highest
# scores first. unlabelled: a predicted class of an image without ground truth. remove, add: a label that is probably
# wrong because it is present, lowest scores first, or absent, highest scores first; see `wildcat.curation`.
Kind = Literal["hit", "miss", "false positive", "unlabelled", "remove", "add"]

THUMBNAIL_SIDE, MASK_SIDE, GRID_SIDE = 384, 240, 32  # longest side of stored images and masks (pixels), maps (cells)
MIN_EXAMPLE_BYTES = 6_000  # smallest size of an example in the page: bounds how many are held in memory
IGNORED_COLOR = (160, 160, 160)


@dataclass(frozen=True, eq=False)
class Thumbnail:
    """A reduced image, shared by the examples of all its classes. The page stores its attributes as JSON.

    Attributes:
        name: unique within its data set, or the file name.
        size: (width, height) of the original image.
        src: data URL of the image, at most `THUMBNAIL_SIDE` pixels a side.
        mask: data URL of an indexed PNG of `Prediction.mask`; None if it is all background.
        truth: the same of the ground-truth mask; None if there is none.
        legend: (class, "#rrggbb") of the classes in both masks.
        predicted: (class, probability) of at most 12 predicted classes, most likely first.
        present: ground-truth classes; None if unknown.
    """

    name: str
    size: tuple[int, int]
    src: str
    mask: str | None
    truth: str | None
    legend: tuple[tuple[str, str], ...]
    predicted: tuple[tuple[str, float], ...]
    present: tuple[str, ...] | None


@dataclass(frozen=True, eq=False)
class Example:
    """One class of one image. The page stores its attributes as JSON; coordinates are pixels of the original image.

    Attributes:
        verdict: whether the model is right about the class, in words.
        correct: whether it is right; without ground truth, whether the class is predicted.
        grid: (rows, columns) of `heat` and `modalities`.
        heat: base64 of uint8, the class map scaled from its minimum to its maximum.
        modalities: base64 of uint8, the M maps on one common scale, their mean alone if they are alike; empty if they
            were not computed.
        num_maps: M.
        shares: of the maps in percent, see `Prediction.map_shares`; None if they are alike.
        opacity: of the heat in [0, 1]; 1 if the class is predicted.
        point_inside: whether the point lies in a ground-truth box grown by the tolerance; None without boxes.
        boxes: predicted x1 y1 x2 y2.
        truth_boxes: ground-truth x1 y1 x2 y2 and 1 if difficult, else 0; None if boxes are unknown.
    """

    image: Thumbnail
    class_name: str
    kind: Kind
    score: float
    probability: float
    verdict: str
    correct: bool
    grid: tuple[int, int]
    heat: str
    modalities: tuple[str, ...]
    num_maps: int
    shares: tuple[int, ...] | None
    opacity: float
    point: tuple[float, float]
    point_inside: bool | None
    boxes: tuple[tuple[float, ...], ...]
    truth_boxes: tuple[tuple[float, ...], ...] | None

    @property
    def description(self) -> str:
        """The example in words, for screen readers."""
        place = {True: ", inside a true box", False: ", outside the true boxes", None: ""}[self.point_inside]
        count = f"; predicted boxes: {len(self.boxes)}" if self.boxes else ""
        return (
            f"{self.image.name}, {self.image.size[0]} by {self.image.size[1]} pixels; {self.class_name}: "
            f"{self.verdict}, probability {100 * self.probability:.0f} percent, score {self.score:.2f}; "
            f"point at x {self.point[0]:.0f}, y {self.point[1]:.0f}{place}{count}"
        )


class Gallery:
    """The best and worst examples of each class, selected from any number of predictions in bounded memory.

    Args:
        classes: names in the order of the samples' labels; without samples, the model's.
        examples: maximum number of images per kind and class.
        max_mb: size of the report in megabytes; with many classes it lowers `examples`.

    Attributes:
        images: number of predictions added.
        counts: (class, kind) and (class, kind + " predicted") -> number of images.

    Raises:
        ConfigError: `examples` is negative, or `max_mb` is not in (0, 500].
    """

    def __init__(self, classes: Sequence[str], task: Task, examples: int = 8, max_mb: float = 20) -> None:
        if examples < 0:
            raise ConfigError(f"--examples {examples}: give 0 or more.", "8 is usual.")
        if not 0 < max_mb <= 500:
            raise ConfigError(f"--max-mb {max_mb:g}: give megabytes above 0 and up to 500.", "20 is usual.")
        self.max_mb = max_mb
        self.classes, self.task = tuple(classes), task
        affordable = int(max_mb * 1e6 / MIN_EXAMPLE_BYTES / max(1, len(self.classes)))
        self.examples = min(examples, max(1, affordable))
        self.images = 0
        self.counts: Counter[tuple[str, str]] = Counter()
        self._heaps: dict[tuple[str, Kind], list[tuple[float, int, Example]]] = {}

    def add(
        self,
        prediction: Prediction,
        sample: Sample | None = None,
        shown: Sequence[tuple[str, Kind]] | None = None,
    ) -> None:
        """Count a prediction and keep it as an example if it ranks high enough; `sample` holds its ground truth.

        Args:
            shown: (class, kind) to keep it for; None: as the ground truth has it.

        Raises:
            ImageError: the image or its ground-truth mask cannot be read.
        """
        self.images += 1
        ranks = prediction.class_probs if self.task == "multiclass" else prediction.class_scores
        column = {name: i for i, name in enumerate(prediction.classes)}
        thumbnail: Thumbnail | None = None
        for name, kind in self._candidates(prediction, sample) if shown is None else shown:
            self.counts[name, kind] += 1
            self.counts[name, f"{kind} predicted"] += name in prediction.labels
            heap = self._heaps.setdefault((name, kind), [])
            rank = float(ranks[column[name]])
            key = (-rank if kind in ("miss", "remove") else rank, -self.images)  # of equal ranks the earlier stays
            if self.examples == 0 or (len(heap) == self.examples and key <= heap[0][:2]):
                continue
            thumbnail = thumbnail or make_thumbnail(prediction, sample, self.classes)
            entry = (*key, make_example(prediction, self._truth_boxes(sample, name), thumbnail, name, kind))
            if len(heap) < self.examples:
                heapq.heappush(heap, entry)
            else:
                heapq.heapreplace(heap, entry)

    def shown_without_truth(self, name: str) -> int:
        """Number of images that a class was shown for, of kinds that need no metrics."""
        return sum(self.counts[name, kind] for kind in ("unlabelled", "remove", "add"))

    def examples_of(self, name: str, kind: Kind) -> list[Example]:
        """The examples of a class, highest rank first; an image listed as a hit is not listed again as a miss."""
        heap = sorted(self._heaps.get((name, kind), []), key=lambda entry: entry[:2], reverse=True)
        hits = {id(example.image) for example in self.examples_of(name, "hit")} if kind == "miss" else set()
        return [example for *_, example in heap if id(example.image) not in hits]

    def _candidates(self, prediction: Prediction, sample: Sample | None) -> Iterator[tuple[str, Kind]]:
        if sample is None:
            for name in prediction.labels or (prediction.top,):
                yield name, "unlabelled"
            return
        for name, label in zip(self.classes, sample.labels.tolist(), strict=True):
            if label == PRESENT:
                yield name, "hit"
                yield name, "miss"
            elif label == ABSENT:
                yield name, "false positive"

    def _truth_boxes(self, sample: Sample | None, name: str) -> tuple[tuple[float, ...], ...] | None:
        if sample is None or sample.boxes is None or sample.box_classes is None:
            return None
        indices = np.flatnonzero(sample.box_classes == self.classes.index(name))
        difficult = np.zeros(len(sample.boxes), bool) if sample.box_difficult is None else sample.box_difficult
        return tuple((*_tenths(sample.boxes[i]), int(difficult[i])) for i in indices)


def printable(value: str) -> str:
    """Text without lone surrogates (escaped) and control characters (replaced), which HTML cannot hold."""
    text = value.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def make_thumbnail(prediction: Prediction, sample: Sample | None, classes: Sequence[str]) -> Thumbnail:
    """Reduce an image, its masks and its labels; `classes` are in the order of the sample's labels."""
    mask = _shrink_mask(prediction.mask())
    true_mask = None if sample is None else sample.read_mask()
    truth = None if true_mask is None else _shrink_mask(true_mask.astype(np.int64))
    in_mask = {prediction.classes[i - 1] for i in np.unique(mask).tolist() if i > 0}
    labels = () if truth is None else np.unique(truth).tolist()
    in_truth = {classes[i - 1] for i in labels if 0 < i <= len(classes) and i != 255}
    names = [name for name in classes if name in in_mask | in_truth][:HIGHEST_PNG_LABEL]
    colors = {name: MARK_COLORS[i % len(MARK_COLORS)] for i, name in enumerate(names)}
    name, present = Path(prediction.path).name or "unnamed image", None
    if sample is not None:
        name = sample.name
        labels = zip(classes, sample.labels.tolist(), strict=True)
        present = tuple(printable(c) for c, label in labels if label == PRESENT)
    return Thumbnail(
        name=printable(name),
        size=(prediction.width, prediction.height),
        src=encode_image(prediction.load_image()),
        mask=_encode_mask(mask, prediction.classes, colors) if in_mask else None,
        truth=None if truth is None else _encode_mask(truth, classes, colors, is_truth=True),
        legend=tuple((printable(c), f"#{bytes(color).hex()}") for c, color in colors.items()),
        predicted=tuple((printable(c), round(prediction.probabilities[c], 3)) for c in prediction.labels[:12]),
        present=present,
    )


def make_example(
    prediction: Prediction, truth_boxes: tuple[tuple[float, ...], ...] | None, image: Thumbnail, name: str, kind: Kind
) -> Example:
    """Collect what the report shows of the class `name` in one image."""
    i = prediction.classes.index(name)
    predicted = name in prediction.labels
    verdicts = {
        "unlabelled": ("predicted", "most likely, not predicted"),
        "false positive": ("false positive", "correctly rejected"),
        "remove": ("labelled and predicted", "labelled, not predicted"),
        "add": ("predicted, not labelled", "not labelled, not predicted"),
    }
    heat = _map_levels(prediction.class_maps[i][None])
    num_maps, shares, levels = 0, None, heat[:0]
    if prediction.modality_maps is not None:
        maps = prediction.modality_maps[i]
        num_maps, shares = len(maps), prediction.map_shares(name)
        levels = _map_levels(maps if shares else maps.mean(axis=0, keepdims=True))
    easy = [box[:4] for box in truth_boxes or () if not box[4]]
    return Example(
        image=image,
        class_name=printable(name),
        kind=kind,
        score=round(float(prediction.class_scores[i]), 3),
        probability=round(float(prediction.class_probs[i]), 4),
        verdict=verdicts.get(kind, ("found", "missed"))[not predicted],
        correct=predicted != (kind in ("false positive", "add")),
        grid=(heat.shape[1], heat.shape[2]),
        heat=_base64(heat[0]),
        modalities=tuple(_base64(m) for m in levels),
        num_maps=num_maps,
        shares=None if shares is None else tuple(round(100 * share) for share in shares),
        opacity=round(prediction.opacity(name) / OPACITY, 3),
        point=(round(prediction.points[name][0], 1), round(prediction.points[name][1], 1)),
        point_inside=bool(point_hits([prediction.points[name]], [easy], POINT_TOLERANCE)[0]) if easy else None,
        boxes=tuple(_tenths(box[:4]) for box in prediction.boxes.get(name, [])),
        truth_boxes=truth_boxes,
    )


def _map_levels(maps: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(M, h, w) raw maps -> uint8 from their common minimum to their common maximum, on at most 32 x 32 cells."""
    levels = [Image.fromarray(m) for m in (unit_range(maps) * 255).round().astype(np.uint8)]
    for image in levels:
        image.thumbnail((GRID_SIDE, GRID_SIDE), Image.Resampling.BOX)
    return np.stack([np.asarray(image) for image in levels])


def encode_image(image: Image.Image, side: int = THUMBNAIL_SIDE) -> str:
    """Data URL of a copy in WebP, reduced to `side` pixels at its longest side."""
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "webp", quality=72)
    return f"data:image/webp;base64,{_base64(buffer.getvalue())}"


def _shrink_mask(mask: NDArray[np.integer]) -> NDArray[np.integer]:
    """A mask of at most `MASK_SIDE` pixels a side: nearest neighbour at cell centres, so that classes never mix."""
    small = Image.fromarray(mask.astype(np.int32))
    small.thumbnail((MASK_SIDE, MASK_SIDE), Image.Resampling.NEAREST, reducing_gap=None)
    return np.asarray(small)


def _encode_mask(
    mask: NDArray[np.integer], classes: Sequence[str], colors: dict[str, tuple[int, int, int]], is_truth: bool = False
) -> str:
    """Data URL of a PNG of a mask (0 background, i + 1 = classes[i], in a true mask 255 ignored).

    The background and classes without a color are transparent.
    """
    index_of, palette = np.zeros(max(256, len(classes) + 1), np.uint8), np.zeros((256, 3), np.uint8)
    for index, (name, color) in enumerate(colors.items(), 1):
        index_of[classes.index(name) + 1], palette[index] = index, color
    if is_truth:
        index_of[255], palette[255] = 255, IGNORED_COLOR
    image = Image.fromarray(index_of[mask])
    image.putpalette(palette.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=0, optimize=True)
    return f"data:image/png;base64,{_base64(buffer.getvalue())}"


def _base64(content: bytes | NDArray[np.uint8]) -> str:
    return base64.b64encode(content if isinstance(content, bytes) else content.tobytes()).decode()


def _tenths(values: NDArray[np.float32] | Sequence[float]) -> tuple[float, ...]:
    return tuple(round(float(v), 1) for v in values)
