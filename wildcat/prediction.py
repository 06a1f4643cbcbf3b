"""The result for one image: scores, labels, points, boxes, heatmaps, masks; frozen, on the CPU, ready to save."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from wildcat.data.dataset import Task
from wildcat.data.image_ref import ImageRef, load_image
from wildcat.data.images import IntensityRange
from wildcat.errors import ConfigError, ImageError, unknown_class
from wildcat.files import file_names, making
from wildcat.methods import no_maps
from wildcat.metrics.modalities import map_shares, maps_differ
from wildcat.models.calibration import Calibration
from wildcat.regions.boxes import Box, map_to_boxes
from wildcat.regions.crf import CrfParams
from wildcat.regions.masks import (
    MaskParams,
    maps_to_mask,
    upsample_maps,
)
from wildcat.regions.points import peak_points
from wildcat.viz.fonts import drawable
from wildcat.viz.overlay import draw_boxes, draw_point, image_suffix, overlay_heatmap

SCHEMA = 1  # version of the rows of predictions.jsonl and of the folder that `Prediction.save` writes
OPACITY = 0.75  # of an overlay where the map of a predicted class is highest
DRAWN_PIXELS = 1 << 24  # drawings of larger images are downscaled to this many pixels: they would take gigabytes
NOTEBOOK_SIDE = 640  # longest side of the image in a notebook, which stores every image in its file
BOX_SIDE = 128  # longest side of the grid for finding boxes, unless the map is finer: a finer grid moves no edge
BOX_AREA = 0.005  # of the image; smaller regions have no box, unless they are half a cell of the map

CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """Scores and maps of one image, and what follows from them. Coordinates are (x, y) in pixels of the original image.

    Attributes:
        path: the image's path, or "" for an image in memory.
        width, height: of the original image, with its EXIF orientation applied.
        classes: names, in the order of the arrays.
        task: "multilabel" or "multiclass".
        class_scores: (C,) raw scores (logits).
        class_maps: (C, h, w) raw class maps; the h x w grid covers the whole image. (C, 0, 0) of a method without maps.
        modality_maps: (C, M, h, w) raw modality maps, or None where they were not requested.
        image: the RGB image, or its location, from which it is read when needed.
        calibration: thresholds fitted by `wildcat calibrate`, or None.
        device: where `mask` runs the dense CRF.
        intensity_range: with which `image` is read, see `wildcat.data.images.to_rgb`.
        boundaries: (h, w) probabilities of an object boundary, up to which `mask` can spread the maps; None without.
        located, pointed: box and point (x, y) of classes found otherwise than by their maps, as in a beam search.
        propagate, crf: whether `mask` spreads the maps, and runs a dense CRF, unless told otherwise.
    """

    path: str
    width: int
    height: int
    classes: tuple[str, ...]
    task: Task
    class_scores: NDArray[np.float32]
    class_maps: NDArray[np.float32]
    modality_maps: NDArray[np.float32] | None
    image: Image.Image | Path | ImageRef
    calibration: Calibration | None = None
    device: torch.device = CPU
    intensity_range: IntensityRange | None = None
    boundaries: NDArray[np.float32] | None = None
    located: Mapping[str, Box] = field(default_factory=dict)
    pointed: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    propagate: bool = True
    crf: bool = False

    def __repr__(self) -> str:
        found = ", ".join(f"{name!r}: {self.probabilities[name]:.0%}" for name in (self.labels or (self.top,))[:3])
        return f"Prediction({self.path!r}, {self.width} x {self.height}, {{{found}}})"

    @cached_property
    def scores(self) -> Mapping[str, float]:
        """Raw score (logit) of each class."""
        return self._by_class(self.class_scores)

    @cached_property
    def probabilities(self) -> Mapping[str, float]:
        """Probability of each class: the sigmoid of its score; in a multi-class model the softmax over all scores."""
        return self._by_class(self.class_probs)

    @cached_property
    def class_probs(self) -> NDArray[np.float32]:
        """(C,) probabilities, see `probabilities`."""
        return score_probabilities(self.class_scores, self.task)

    @cached_property
    def thresholds(self) -> NDArray[np.float32]:
        """(C,) probability from which each class is predicted: in `labels`, `boxes`, `mask` and exported annotations.

        Fitted by `wildcat calibrate`, otherwise 0.5. In a multi-class model the likeliest class is always predicted;
        others only if they reach a fitted threshold.
        """
        return np.asarray(self.mask_params().gates(len(self.classes)), dtype=np.float32)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Predicted classes, those whose probability reaches their threshold, likeliest first; see `thresholds`."""
        order = np.argsort(-self.class_probs, kind="stable")
        return tuple(self.classes[i] for i in order if self.class_probs[i] >= self.thresholds[i])

    @property
    def has_maps(self) -> bool:
        """Whether there are class maps. Without, points, boxes, heatmaps and masks raise a ConfigError."""
        return self.class_maps.size > 0

    @property
    def maps(self) -> NDArray[np.float32]:
        """`class_maps`; a ConfigError where the model's method has none."""
        if not self.has_maps:
            raise no_maps("this model")
        return self.class_maps

    @cached_property
    def points(self) -> Mapping[str, tuple[float, float]]:
        """(x, y) of each class: the centre of the highest cell of its map, or as in `pointed`."""
        peaks = zip(self.classes, peak_points(self.maps, (self.height, self.width)), strict=True)
        return {c: (float(x), float(y)) for c, (x, y) in peaks} | dict(self.pointed)

    @cached_property
    def boxes(self) -> Mapping[str, list[Box]]:
        """Boxes x1 y1 x2 y2 of each predicted class, the largest first, with the peak of the map as score.

        A box encloses a connected region in which the class map is above the middle of its range, of at least half a
        cell of the map or 0.5 % of the image, whichever is smaller; for a class in `located` it is that box.
        """
        return {c: self.find_boxes(c) for c in self.labels}

    def find_boxes(self, name: str, threshold: float = 0.5) -> list[Box]:
        """Boxes of any class; `threshold` is a fraction of the range of its map, not used for a class in `located`."""
        if name in self.located:
            return [self.located[name]]
        class_map = self.maps[self.index_of(name)]
        rows, columns = class_map.shape
        scale = min(1.0, BOX_SIDE / max(self.width, self.height))
        grid = (max(rows, round(self.height * scale)), max(columns, round(self.width * scale)))
        least = min(BOX_AREA, 0.5 / (rows * columns))  # half of a cell of a fine map
        return map_to_boxes(
            upsample_maps(class_map[None], grid)[0], threshold, size=(self.height, self.width), min_area=least
        )

    def heatmap(self, name: str, size: tuple[int, int] | None = None) -> NDArray[np.float32]:
        """(H, W) raw class map at the size of the original image, interpolated bilinearly.

        Args:
            size: (height, width) to use instead, such as `drawn_size`.
        """
        class_map = self.maps[[self.index_of(name)]]
        heatmap: NDArray[np.float32] = upsample_maps(class_map, size or (self.height, self.width))[0]
        return heatmap

    def modalities(self, name: str, size: tuple[int, int] | None = None) -> NDArray[np.float32]:
        """(M, H, W) modality maps of a class at the size of the original image; pooled (eq. 1) they are the heatmap.

        Args:
            size: (height, width) to use instead, such as `drawn_size`.

        Raises:
            ConfigError: the prediction was made without them.
        """
        return upsample_maps(self._maps_of(name), size or (self.height, self.width))

    def map_shares(self, name: str) -> list[float] | None:
        """The share of each of the M maps in the regions that decide on a class, see `wildcat.metrics.map_shares`.

        None if the maps are alike, as those of a model with class_pool=mean are, or if there is only one.

        Raises:
            ConfigError: the prediction was made without modality maps.
        """
        maps = self._maps_of(name)
        return map_shares(maps, self.class_maps[self.index_of(name)]).tolist() if maps_differ(maps) else None

    def _maps_of(self, name: str) -> NDArray[np.float32]:
        if not self.maps.size or self.modality_maps is None:
            raise ConfigError("this prediction was made without modalities.", "Predict with modalities=True.")
        return np.asarray(self.modality_maps[self.index_of(name)])

    def mask(
        self,
        crf: bool | CrfParams | None = None,
        params: MaskParams | None = None,
        background: str | None = None,
        propagate: bool | None = None,
    ) -> NDArray[np.int64]:
        """(H, W) label mask: 0 background, i + 1 = classes[i]; only predicted classes are drawn.

        Args:
            crf: sharpen the mask to the edges of the image with a dense CRF, on the predictor's device. True uses the
                settings stored with the model, or the defaults; None: as the prediction has it in `crf`.
            params: per-class thresholds (`gate`) and the background rule, instead of the model's own. In a multi-class
                model the likeliest class is always drawn.
            background: a class of the model that stands for the background, for example one that every training image
                was labelled with: its map is the background's score (rule "trained"), and its label is 0.
            propagate: spread the maps up to `boundaries` first; None: as the prediction has it in `propagate`.

        Raises:
            ConfigError: no such class, NaN or infinite maps or scores, or `propagate` without boundaries.
            ShapeError: `params` has gates for another number of classes.
        """
        params, class_maps = self.mask_params(params), self.maps
        gates = params.gates(len(self.classes))
        settings, walls = self.crf_settings(crf), self.walls(propagate)
        light = settings is None and walls is None
        device = CPU if light or self.device.type == "mps" else self.device  # MPS has no sparse products

        def tensor(values: NDArray[np.float32]) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(values)).to(device)

        drawn, background_map = list(range(len(self.classes))), None
        if background is not None:
            params = replace(params, rule="trained")
            background_map = tensor(class_maps[drawn.pop(self.index_of(background))])
        mask = maps_to_mask(
            tensor(class_maps[drawn]),
            tensor(self.class_probs[drawn]),
            (self.height, self.width),
            replace(params, gate=tuple(gates[i] for i in drawn)),
            background_map=background_map,
            boundaries=None if walls is None else tensor(walls),
            image=np.asarray(self.load_image()) if settings or params.superpixels else None,
            crf=settings,
        )
        labels = np.asarray([0, *(i + 1 for i in drawn)], dtype=np.int64)
        return np.asarray(labels[mask.cpu().numpy()])

    def crf_settings(self, crf: bool | CrfParams | None = None) -> CrfParams | None:
        """The settings of the CRF that `mask(crf)` runs; None if it runs none."""
        if crf is True or (crf is None and self.crf):
            return (self.calibration.crf if self.calibration else None) or CrfParams()
        return crf or None

    def walls(self, propagate: bool | None = None) -> NDArray[np.float32] | None:
        """The boundaries up to which `mask(propagate=propagate)` spreads the maps; None if it does not."""
        if propagate and self.boundaries is None:
            raise ConfigError(
                "propagate=True: this model has no boundaries, or was loaded without them.",
                "Train them with wildcat refine --propagate, and load the model with boundaries=True.",
            )
        return self.boundaries if (self.propagate if propagate is None else propagate) else None

    def mask_params(self, params: MaskParams | None = None) -> MaskParams:
        """The thresholds and background rule of `mask`: `params`, otherwise the calibrated or the default ones."""
        params = params or (self.calibration.params if self.calibration else default_mask_params(self.task))
        if self.task == "multilabel":
            return params
        gates = list(params.gates(len(self.classes)))
        likeliest = int(self.class_probs.argmax())
        gates[likeliest] = min(gates[likeliest], float(self.class_probs[likeliest]))
        return replace(params, gate=tuple(gates))

    def load_image(self) -> Image.Image:
        """The original image in RGB."""
        return self.image if isinstance(self.image, Image.Image) else load_image(self.image, self.intensity_range)

    @property
    def drawn_size(self) -> tuple[int, int]:
        """(height, width) of drawings: that of the image, downscaled to at most 16 million pixels."""
        scale = min(1.0, math.sqrt(DRAWN_PIXELS / (self.width * self.height)))
        return max(1, round(self.height * scale)), max(1, round(self.width * scale))

    def load_drawn(self) -> Image.Image:
        """The original image in RGB at `drawn_size`."""
        image, (height, width) = self.load_image(), self.drawn_size
        return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BOX)

    def plot(self, name: str | None = None, *, boxes: bool = False) -> Image.Image:
        """Draw the heatmap and point (and boxes) of a class on the image; by default of the likeliest class.

        The colours span the range of each map, so an absent class would look as hot as a present one: the overlay of
        a class that is not predicted is more transparent the less probable it is. The drawing has `drawn_size`.
        """
        name = self.top if name is None else name
        image = self.load_drawn()
        scale = np.asarray([image.width / self.width, image.height / self.height])
        drawn = overlay_heatmap(image, self.heatmap(name, self.drawn_size), alpha=self.opacity(name))
        if boxes:
            drawn = draw_boxes(drawn, [np.tile(scale, 2) * box[:4] for box in self.find_boxes(name)])
        label = f"{self.drawn_name(name)} {self.probabilities[name]:.0%}"
        return draw_point(drawn, scale * self.points[name], label)

    def drawn_name(self, name: str) -> str:
        """The name of a class on drawings: `#i` (i = 1 for the first) if no font of the system has its characters."""
        return name if drawable(name) else f"#{self.index_of(name) + 1}"

    @property
    def legend(self) -> dict[str, str]:
        """`drawn_name` -> name, for the classes whose name cannot be drawn."""
        return {self.drawn_name(name): name for name in self.classes if not drawable(name)}

    def _repr_png_(self) -> bytes | None:
        """Show `plot` of the likeliest class in a notebook, at most 640 pixels a side; nothing if the file is gone."""
        try:
            shown = self.plot() if self.has_maps else self.load_drawn()
        except ImageError:
            return None
        shown.thumbnail((NOTEBOOK_SIDE, NOTEBOOK_SIDE))
        buffer = io.BytesIO()
        shown.save(buffer, "PNG")
        return buffer.getvalue()

    def opacity(self, name: str) -> float:
        """Opacity of the overlay of a class, in [0, 0.75]: full for a predicted class."""
        return OPACITY * (1.0 if name in self.labels else min(1.0, 2 * self.probabilities[name]))

    @property
    def top(self) -> str:
        """The likeliest class."""
        return self.classes[int(np.argmax(self.class_scores))]

    def to_dict(self, top_k: int = 0) -> dict[str, Any]:
        """Plain values: image, width, height, scores, probabilities, labels; points and boxes, if there are maps.

        Args:
            top_k: only the values of this many classes, the likeliest first; 0: of all, in the order of `classes`.
        """
        names: Sequence[str] = self.classes
        if top_k:
            names = [self.classes[i] for i in np.argsort(-self.class_scores, kind="stable")[:top_k]]
        kept = set(names)
        labels = [c for c in self.labels if c in kept]
        row = {
            "image": self.path,
            "width": self.width,
            "height": self.height,
            "scores": {c: float(f"{self.scores[c]:.6g}") for c in names},
            "probabilities": {c: float(f"{self.probabilities[c]:.4g}") for c in names},
            "labels": labels,
        }
        if self.has_maps:
            row["points"] = {c: [round(v, 2) for v in self.points[c]] for c in names}
            row["boxes"] = {c: [[round(float(v), 2) for v in box] for box in self.boxes[c]] for c in labels}
        return row

    def save(self, folder: str | Path) -> Path:
        """Write prediction.json, maps.npz (raw arrays) and an overlay of each predicted class into a new folder.

        The folder is written atomically: it is complete or absent.

        Raises:
            RunError: the folder exists, or cannot be written.
        """
        folder = Path(folder)
        with making(folder) as unfinished:
            arrays = {"scores": self.class_scores, "class_maps": self.class_maps}
            if self.modality_maps is not None:
                arrays["modality_maps"] = self.modality_maps
            np.savez_compressed(unfinished / "maps.npz", allow_pickle=False, **arrays)
            safe = file_names(self.classes)
            overlays = {}
            for name in (self.labels or (self.top,)) if self.has_maps else ():
                overlay = self.plot(name)
                overlays[name] = f"{safe[name]}.{image_suffix(overlay)}"
                overlay.save(unfinished / overlays[name], quality=92)
            row = {"schema": SCHEMA, **self.to_dict(), "files": {"maps": "maps.npz", "overlays": overlays}}
            if self.legend:
                row["legend"] = self.legend
            text = json.dumps(row, indent=2, ensure_ascii=False)
            (unfinished / "prediction.json").write_text(text, encoding="utf-8", errors="backslashreplace")
        return folder

    def index_of(self, name: str) -> int:
        """Index of a class in `classes`.

        Raises:
            ConfigError: this model has no such class.
        """
        if name not in self.classes:
            raise unknown_class(name, self.classes)
        return self.classes.index(name)

    def _by_class(self, values: NDArray[np.float32]) -> Mapping[str, float]:
        return {c: float(v) for c, v in zip(self.classes, values, strict=True)}


def default_mask_params(task: Task) -> MaskParams:
    """Thresholds and background rule of a model without calibration.

    The map of an independent class is above 0 where the class is and below 0 elsewhere. Maps of a multi-class model
    only rank the classes, so each is compared with its own maximum, and only the likeliest class is predicted.
    """
    return MaskParams(gate=1.0, rule="constant") if task == "multiclass" else MaskParams(rule="score")


def score_probabilities(scores: NDArray[np.float32], task: Task) -> NDArray[np.float32]:
    """(..., C) scores -> probabilities: softmax over C for "multiclass", otherwise a sigmoid each."""
    tensor = torch.from_numpy(np.asarray(scores, dtype=np.float32))
    probs = tensor.softmax(dim=-1) if task == "multiclass" else tensor.sigmoid()
    return np.asarray(probs.numpy())
