"""What a network says of one image: scores, labels, points, boxes, heatmaps; on the CPU, frozen, ready to save."""

from __future__ import annotations

import io
import json
import math
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional

from wildcat.data.dataset import Task
from wildcat.data.image_ref import ImageRef, read_ref
from wildcat.errors import ConfigError, ImageError, RunError, did_you_mean
from wildcat.models.calibration import Calibration
from wildcat.regions.boxes import Box, map_to_boxes
from wildcat.regions.crf import CrfParams
from wildcat.regions.masks import MaskParams, maps_to_mask
from wildcat.regions.points import peak_points
from wildcat.viz.overlay import draw_boxes, draw_points, overlay_heatmap

SCHEMA = 1
"""Version of the rows of predictions.jsonl and of the folder `Prediction.save` writes."""

OPACITY = 0.75
"""Of the hottest place of a predicted class's overlay."""

DRAWN_PIXELS = 1 << 24
"""Pixels of a drawing: larger images are shrunk to as many. Nobody looks at more, and it takes gigabytes."""

NOTEBOOK_SIDE = 640
"""Longest side of the image a notebook shows: it stores every one in its file."""

BOX_SIDE = 128
"""Longest side of the grid boxes are found on: class maps are smooth, a finer grid moves no edge noticeably."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """Everything the network says of one image. Coordinates are (x, y) in pixels of the original image.

    Attributes:
        path: the image's path, or "" where it had none.
        width, height: of the original image, as a person sees it (EXIF orientation applied).
        classes: names, in the order of the arrays.
        task: "multilabel" or "multiclass".
        class_scores: (C,) raw scores (logits).
        class_maps: (C, h, w) raw class maps, the whole image on an h x w grid.
        modality_maps: (C, M, h, w) raw modality maps, or None where they were not asked for.
        image: the RGB image, or where it is, read when needed.
        calibration: how masks are drawn where nothing else is said, fitted by `wildcat calibrate`; or None.
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

    @cached_property
    def scores(self) -> Mapping[str, float]:
        """Raw score (logit) of each class."""
        return self._by_class(self.class_scores)

    @cached_property
    def probabilities(self) -> Mapping[str, float]:
        """Probability of each class: sigmoid of its score, or softmax over all where classes exclude each other."""
        return self._by_class(self.class_probs)

    @cached_property
    def class_probs(self) -> NDArray[np.float32]:
        """(C,) probabilities, see `probabilities`."""
        return score_probabilities(self.class_scores, self.task)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Predicted classes, likeliest first: one where classes exclude each other, otherwise all of at least 0.5."""
        order = np.argsort(-self.class_probs, kind="stable")
        if self.task == "multiclass":
            return (self.classes[order[0]],)
        return tuple(self.classes[i] for i in order if self.class_probs[i] >= 0.5)

    @cached_property
    def points(self) -> Mapping[str, tuple[float, float]]:
        """(x, y) of each class: the centre of the highest cell of its map."""
        points = peak_points(self.class_maps, (self.height, self.width))
        return MappingProxyType({c: (float(x), float(y)) for c, (x, y) in zip(self.classes, points, strict=True)})

    @cached_property
    def boxes(self) -> Mapping[str, list[Box]]:
        """Boxes x1 y1 x2 y2 with the map's peak as score, for each predicted class, the largest first.

        The connected regions where the class map is above the middle of its range.
        """
        return MappingProxyType({c: self.find_boxes(c) for c in self.labels})

    def find_boxes(self, name: str, threshold: float = 0.5) -> list[Box]:
        """Boxes of any class, at a threshold given as a part of the map's range."""
        scale = BOX_SIDE / max(self.width, self.height)
        grid = (max(1, round(self.height * min(1.0, scale))), max(1, round(self.width * min(1.0, scale))))
        heatmap = _resized(self.class_maps[self.index_of(name)], grid)
        return map_to_boxes(heatmap, threshold, which="all", size=(self.height, self.width), min_area=0.005)

    def heatmap(self, name: str, size: tuple[int, int] | None = None) -> NDArray[np.float32]:
        """(H, W) class map in the resolution of the original image, raw values, bilinear between cells.

        Args:
            size: (height, width) to have it in instead, such as `drawn_size`.
        """
        return _resized(self.class_maps[self.index_of(name)], size or (self.height, self.width))

    def modalities(self, name: str, size: tuple[int, int] | None = None) -> NDArray[np.float32]:
        """(M, H, W) maps behind a class in the resolution of the original image; their mean is the heatmap.

        Args:
            size: (height, width) to have them in instead, such as `drawn_size`.

        Raises:
            ConfigError: the prediction was made without them.
        """
        if self.modality_maps is None:
            raise ConfigError("this prediction was made without modalities.", "Predict with modalities=True.")
        return _resized(self.modality_maps[self.index_of(name)], size or (self.height, self.width))

    def mask(
        self, crf: bool | CrfParams = False, params: MaskParams | None = None, background: str | None = None
    ) -> NDArray[np.int64]:
        """(H, W) label mask: 0 background, i + 1 = classes[i]; only predicted classes are drawn.

        Args:
            crf: sharpen the mask to the edges of the image with a dense CRF: True for the settings that were stored
                for the model, the defaults where there are none; or settings of your own.
            params: the gate and the background rule; those the model was calibrated to, or `default_mask_params`, where
                not given. Of classes that exclude each other the likeliest is always drawn.
            background: a class of the model that stands for the background, such as one that every image of the
                training data was tagged with: its map is the background's score (rule "trained"), and it is 0.

        Raises:
            ConfigError: no such class, or NaN or infinite maps or scores.
        """
        params = self.mask_params(params)
        gates = params.gate if isinstance(params.gate, tuple) else (params.gate,) * len(self.classes)
        drawn, background_map = list(range(len(self.classes))), None
        if background is not None:
            params = replace(params, rule="trained")
            background_map = self.class_maps[drawn.pop(self.index_of(background))]
        params = replace(params, gate=tuple(gates[i] for i in drawn))
        stored = self.calibration.crf if self.calibration else None
        settings = (stored or CrfParams() if crf is True else crf) or None
        mask = maps_to_mask(
            self.class_maps[drawn],
            self.class_probs[drawn],
            (self.height, self.width),
            params,
            background_map=background_map,
            image=np.asarray(self.load_image()) if settings else None,
            crf=settings,
        )
        labels = np.asarray([0, *(i + 1 for i in drawn)], dtype=np.int64)
        return labels[mask] if background is not None else np.asarray(mask, dtype=np.int64)

    def mask_params(self, params: MaskParams | None = None) -> MaskParams:
        """The settings `mask` uses where it is given `params`, or none."""
        params = params or (self.calibration.params if self.calibration else default_mask_params(self.task))
        if self.task == "multilabel":
            return params
        likeliest, highest = int(self.class_probs.argmax()), float(self.class_probs.max())
        if not isinstance(params.gate, tuple):
            return replace(params, gate=min(params.gate, highest))
        gates = list(params.gate)
        gates[likeliest] = min(gates[likeliest], highest)
        return replace(params, gate=tuple(gates))

    def load_image(self) -> Image.Image:
        """The original image in RGB."""
        return self.image if isinstance(self.image, Image.Image) else read_ref(self.image)

    @property
    def drawn_size(self) -> tuple[int, int]:
        """(height, width) of drawings: the image's own, or those of 16 million pixels where it has more."""
        scale = min(1.0, math.sqrt(DRAWN_PIXELS / (self.width * self.height)))
        return max(1, round(self.height * scale)), max(1, round(self.width * scale))

    def load_drawn(self) -> Image.Image:
        """The original image in RGB at `drawn_size`."""
        image, (height, width) = self.load_image(), self.drawn_size
        return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BOX)

    def plot(self, name: str | None = None, *, boxes: bool = False) -> Image.Image:
        """The image with a class's heatmap and point (and boxes) on it; without a name, of the likeliest class.

        The heat of a class that is not predicted fades with its probability: each map is drawn from its own lowest to
        its highest value, and would otherwise glow as brightly where there is nothing. Large images are drawn
        reduced, see `drawn_size`.
        """
        name = self.top if name is None else name
        image = self.load_drawn()
        scale = np.asarray([image.width / self.width, image.height / self.height])
        drawn = overlay_heatmap(image, self.heatmap(name, self.drawn_size), alpha=self.opacity(name))
        if boxes:
            drawn = draw_boxes(drawn, [np.tile(scale, 2) * box[:4] for box in self.find_boxes(name)])
        return draw_points(drawn, [scale * self.points[name]], [f"{name} {self.probabilities[name]:.0%}"])

    def _repr_png_(self) -> bytes | None:
        """What a notebook shows: `plot` of the likeliest class in at most 640 pixels a side; nothing of a lost file."""
        try:
            shown = self.plot()
        except ImageError:
            return None
        shown.thumbnail((NOTEBOOK_SIDE, NOTEBOOK_SIDE))
        buffer = io.BytesIO()
        shown.save(buffer, "PNG")
        return buffer.getvalue()

    def opacity(self, name: str) -> float:
        """How strongly the heat of a class is drawn, in [0, 0.75]: in full where it is predicted."""
        return OPACITY * (1.0 if name in self.labels else min(1.0, 2 * self.probabilities[name]))

    @property
    def top(self) -> str:
        """The likeliest class."""
        return self.classes[int(np.argmax(self.class_scores))]

    def to_dict(self) -> dict[str, Any]:
        """Plain values: image, width, height, scores, probabilities, labels, points, boxes."""
        return {
            "image": self.path,
            "width": self.width,
            "height": self.height,
            "scores": {c: float(f"{v:.6g}") for c, v in self.scores.items()},
            "probabilities": {c: float(f"{v:.4g}") for c, v in self.probabilities.items()},
            "labels": list(self.labels),
            "points": {c: [round(x, 2), round(y, 2)] for c, (x, y) in self.points.items()},
            "boxes": {c: [[round(float(v), 2) for v in box] for box in found] for c, found in self.boxes.items()},
        }

    def save(self, folder: str | Path) -> Path:
        """Write prediction.json, maps.npz (raw) and an overlay per predicted class into a new folder.

        The folder is removed again if anything fails.

        Raises:
            RunError: the folder exists.
        """
        folder = Path(folder)
        if folder.exists():
            raise RunError(f"{folder} exists and is never overwritten.", "Give a folder that does not exist yet.")
        folder.mkdir(parents=True)
        try:
            arrays = {"scores": self.class_scores, "class_maps": self.class_maps}
            if self.modality_maps is not None:
                arrays["modality_maps"] = self.modality_maps
            np.savez_compressed(folder / "maps.npz", allow_pickle=False, **arrays)
            safe = file_names(self.classes)
            files = {}
            for name in self.labels or (self.top,):
                overlay = self.plot(name)
                files[name] = f"{safe[name]}.{image_suffix(overlay)}"
                overlay.save(folder / files[name], quality=92)
            row = {"schema": SCHEMA, **self.to_dict(), "files": {"maps": "maps.npz", "overlays": files}}
            text = json.dumps(row, indent=2, ensure_ascii=False)
            (folder / "prediction.json").write_text(text, encoding="utf-8", errors="backslashreplace")
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return folder

    def index_of(self, name: str) -> int:
        """Where a class is among `classes`.

        Raises:
            ConfigError: this model has no such class.
        """
        if name not in self.classes:
            raise ConfigError(
                f"this model has no class {name!r}.",
                did_you_mean(name, self.classes) or f"It has: {', '.join(self.classes[:20])}.",
            )
        return self.classes.index(name)

    def _by_class(self, values: NDArray[np.float32]) -> Mapping[str, float]:
        return MappingProxyType({c: float(v) for c, v in zip(self.classes, values, strict=True)})


def default_mask_params(task: Task) -> MaskParams:
    """How masks are drawn where nothing was fitted and nothing is said.

    The map of an independent class says where the class is (above 0) and where it is not. Maps of classes that exclude
    each other only say which is likelier, so there each is measured by its own maximum.
    """
    return MaskParams(rule="constant" if task == "multiclass" else "score")


def score_probabilities(scores: NDArray[np.float32], task: Task) -> NDArray[np.float32]:
    """(..., C) scores -> probabilities: softmax over C for "multiclass", otherwise a sigmoid each."""
    tensor = torch.from_numpy(np.asarray(scores, dtype=np.float32))
    probs = tensor.softmax(dim=-1) if task == "multiclass" else tensor.sigmoid()
    return np.asarray(probs.numpy())


def file_name(name: str) -> str:
    """A class name as part of a file name: letters, digits, dots, dashes; the rest becomes an underscore.

    Cut at 120 bytes: file systems take 255, and a suffix and a number may follow.

    >>> file_name("Bernese mountain dog / puppy")
    'Bernese_mountain_dog___puppy'
    """
    safe = "".join(c if c.isalnum() or c in "-." else "_" for c in name).lstrip(".")
    return safe.encode()[:120].decode(errors="ignore") or "_"


def file_names(names: Iterable[str]) -> dict[str, str]:
    """Name -> `file_name`, numbered where two would be one file, also on disks that take A for a.

    >>> file_names(["a/b", "a_b"])
    {'a/b': 'a_b', 'a_b': 'a_b-2'}
    """
    taken: dict[str, int] = {}
    made = {}
    for name in names:
        made[name] = free_name(file_name(name), taken)
    return made


def free_name(base: str, taken: dict[str, int]) -> str:
    """`base`, or `base-2`, `base-3`, ... where it is taken; the name is taken from now on.

    Args:
        taken: names and the last number of each, so that the millionth `frame` is found as soon as the second.
    """
    candidate, number = base, taken.get(base.casefold(), 1)
    while candidate.casefold() in taken:
        number += 1
        candidate = f"{base}-{number}"
    taken[base.casefold()] = number
    taken.setdefault(candidate.casefold(), 1)
    return candidate


def image_suffix(image: Image.Image) -> Literal["jpg", "png"]:
    """JPEG, or PNG for images with a side longer than a JPEG can have (65,500 pixels)."""
    return "jpg" if max(image.size) <= 65_500 else "png"


def _resized(maps: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """(..., h, w) -> (..., height, width): bilinear between the centres of the cells."""
    tensor = torch.from_numpy(np.ascontiguousarray(maps))
    flat = tensor.reshape(1, -1, *tensor.shape[-2:])
    resized = functional.interpolate(flat, size, mode="bilinear", align_corners=False)
    return np.asarray(resized.reshape(*maps.shape[:-2], *size).numpy())
