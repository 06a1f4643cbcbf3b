"""From class maps to label masks: gate the classes, weigh the background, upsample, and write an indexed PNG.

No rule here sees a true label: the classes of a picture are those the model predicts.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from wildcat.errors import ConfigError, ShapeError, did_you_mean
from wildcat.regions.crf import CrfParams, as_tensor, dense_crf

Array = TypeVar("Array", Tensor, NDArray[np.floating])
BackgroundRule = Literal["constant", "power", "trained"]

HIGHEST_PNG_LABEL = 254
"""A PNG mask holds one byte a pixel, and 255 means "ignored" (VOC devkit)."""


@dataclass(frozen=True)
class MaskParams:
    """How class maps become a mask. The paper does not say how it finds the background; these rules are in use.

    Attributes:
        gate: a class is drawn only if its predicted probability is at least this.
        rule: "constant": the background scores `constant` against class maps divided by their maximum; "power": it
            scores (1 - highest class map)^`exponent` (Ahn and Kwak, CVPR 2018); "trained": it is one more class of
            the model, whose image label was always on, compared by softmax of the raw maps.
        constant: between 0 and 1; 0.15 to 0.3 in print. Higher draws less.
        exponent: above 0. Higher draws more.

    Raises:
        ConfigError: a value is out of range.
    """

    gate: float = 0.5
    rule: BackgroundRule = "constant"
    constant: float = 0.2
    exponent: float = 4.0

    def __post_init__(self) -> None:
        if not 0 <= self.gate <= 1:
            raise ConfigError(f"gate={self.gate}: give a probability in [0, 1].", "0 draws every class.")
        if self.rule not in get_args(BackgroundRule):
            choices = get_args(BackgroundRule)
            hint = did_you_mean(str(self.rule), choices) or f"Choose one of: {', '.join(choices)}."
            raise ConfigError(f"rule={self.rule!r} is unknown.", hint)
        if not 0 < self.constant < 1:
            raise ConfigError(f"constant={self.constant}: give a number between 0 and 1.", "0.2 is usual.")
        if not 0 < self.exponent < float("inf"):
            raise ConfigError(f"exponent={self.exponent}: give a number above 0.", "4 is usual.")


def gate_classes(class_prob: Array, gate: float = 0.5) -> Array:
    """Indices, ascending int64, of the classes whose predicted probability in `class_prob` (C,) is at least `gate`.

    Raises:
        ShapeError: `class_prob` is not one value a class.
        ConfigError: a probability is outside [0, 1] or NaN.

    >>> gate_classes(np.array([0.9, 0.1, 0.5])).tolist()
    [0, 2]
    """
    prob = as_tensor(class_prob)
    if prob.ndim != 1:
        raise ShapeError(f"class_prob is {tuple(prob.shape)}, not (C,).", "Give one picture's probabilities.")
    if not bool(((prob >= 0) & (prob <= 1)).all()):
        raise ConfigError("class_prob holds values outside [0, 1].", "Give probabilities, not scores: sigmoid first.")
    return _like((prob >= gate).nonzero()[:, 0], class_prob)


def upsample_maps(maps: Array, size: tuple[int, int]) -> Array:
    """(C, h, w) maps -> (C, H, W) float32 at `size` = (height, width): bilinear, `align_corners=False`.

    Cell centres land where `peak_points` puts them; beyond the outermost centres the edge value holds.

    Raises:
        ShapeError: the maps are not (C, h, w), or a side is 0.

    >>> upsample_maps(np.array([[[0.0, 1.0]]]), (1, 4)).tolist()
    [[[0.0, 0.25, 0.75, 1.0]]]
    """
    tensor = _maps(maps)
    if len(size) != 2 or min(size) < 1:
        raise ShapeError(f"size={tuple(size)} is not a picture's (height, width).", "Both are 1 or more.")
    if not len(tensor):
        return _like(tensor.new_zeros(0, *size), maps)
    resized = functional.interpolate(tensor[None], size=tuple(size), mode="bilinear", align_corners=False)
    return _like(resized[0], maps)


def normalize_maps(maps: Array) -> Array:
    """(C, h, w) maps -> float32 in [0, 1]: negative evidence to 0, then each map divided by its maximum.

    A map without a positive value becomes 0 everywhere.

    >>> normalize_maps(np.array([[[-1.0, 2.0, 4.0]], [[-3.0, -2.0, -1.0]]])).tolist()
    [[[0.0, 0.5, 1.0]], [[0.0, 0.0, 0.0]]]
    """
    positive = _maps(maps).clamp_min(0)
    highest = positive.flatten(1).amax(dim=1)[:, None, None] if len(positive) else positive
    return _like(positive / highest.clamp_min(torch.finfo(torch.float32).tiny), maps)


def class_probabilities_with_background(
    maps: Array, params: MaskParams | None = None, background_map: Array | None = None
) -> Array:
    """(K, H, W) raw class maps -> float32 (K + 1, H, W) probabilities, the background first, by `params.rule`.

    At each pixel they are non-negative and sum to 1: the scores of "constant" and "power" are divided by their sum,
    "trained" is a softmax. The arg-max is that of the scores. With K = 0 all is background.

    Args:
        maps: the maps of the classes to draw.
        params: `rule`, `constant` and `exponent` are used; `gate` is not.
        background_map: (H, W) the raw map of the trained background class; needed by, and only by, "trained".

    Raises:
        ShapeError: `maps` is not (K, H, W), or `background_map` has another size.
        ConfigError: NaN or infinite maps, or `background_map` does not go with the rule.

    >>> class_probabilities_with_background(np.array([[[0.0, 0.4, 0.8]]])).argmax(axis=0).tolist()
    [[0, 1, 1]]
    """
    params = params or MaskParams()
    if (params.rule == "trained") != (background_map is not None):
        stance = "needs a background_map" if background_map is None else "takes no background_map"
        raise ConfigError(
            f"rule={params.rule!r} {stance}.", "rule='trained' goes with a model that has a background class."
        )
    tensor = _maps(maps)
    if background_map is not None:
        extra = as_tensor(background_map).to(tensor)
        if extra.shape != tensor.shape[1:]:
            raise ShapeError(
                f"background_map is {tuple(extra.shape)} and the maps are {tuple(tensor.shape)}.",
                "Give both at the same (H, W).",
            )
        return _like(torch.softmax(torch.cat([_maps(extra[None]), tensor]), dim=0), maps)
    scores = normalize_maps(tensor)
    if params.rule == "constant":
        background = torch.full_like(tensor[:1], params.constant) if len(tensor) else tensor.new_ones(_one(tensor))
    else:
        highest = scores.amax(dim=0, keepdim=True) if len(tensor) else tensor.new_zeros(_one(tensor))
        background = (1 - highest) ** params.exponent
    scores = torch.cat([background, scores])
    return _like(scores / scores.sum(dim=0), maps)


def maps_to_mask(
    maps: Array,
    class_prob: Array,
    size: tuple[int, int],
    params: MaskParams | None = None,
    *,
    background_map: Array | None = None,
    image: NDArray[np.uint8] | Tensor | None = None,
    crf: CrfParams | None = None,
) -> Array:
    """The label mask of a picture: (H, W) int64, 0 background, i + 1 = class i.

    Classes are gated by `class_prob`, their maps upsampled to `size`, weighed against the background and, where `crf`
    is given, sharpened to the edges of `image` with the gated classes only. No class gated: all 0.

    Args:
        maps: (C, h, w) raw class maps.
        class_prob: (C,) predicted probabilities of the picture, on the device of `maps`.
        size: (height, width) of the original picture.
        params: the gate and the background rule.
        background_map: (h, w) raw map of the trained background class, for `rule="trained"`.
        image: (H, W, 3) uint8 RGB, the original picture; needed by `crf`.
        crf: settings of the dense CRF; None leaves it out.

    Raises:
        ShapeError: sizes do not fit each other.
        ConfigError: a value is out of range, NaN or infinite, or `crf` is given without `image`.

    >>> maps = np.array([[[4.0, 0.0]], [[0.0, 9.0]]])
    >>> maps_to_mask(maps, np.array([0.9, 0.2]), (1, 4)).tolist()
    [[1, 1, 1, 0]]
    """
    params = params or MaskParams()
    tensor = _maps(maps)
    prob = as_tensor(class_prob)
    chosen = gate_classes(prob, params.gate)
    if len(prob) != len(tensor):
        raise ShapeError(f"{len(prob)} class probabilities for {len(tensor)} maps.", "Give one a map.")
    if crf is not None and image is None:
        raise ConfigError("crf needs the picture.", "Give image, the (H, W, 3) uint8 picture at its original size.")
    background = None
    if background_map is not None:
        background = upsample_maps(as_tensor(background_map).to(tensor)[None], size)[0]
    probabilities = class_probabilities_with_background(upsample_maps(tensor[chosen], size), params, background)
    if crf is not None and image is not None and len(chosen):
        probabilities = dense_crf(image, probabilities, crf)
    labels = torch.cat([chosen.new_zeros(1), chosen + 1])
    return _like(labels[probabilities.argmax(dim=0)], maps)


def write_mask(
    path: str | Path, mask: NDArray[Any] | Tensor, palette: NDArray[np.uint8] | Sequence[Sequence[int]]
) -> None:
    """Write an (H, W) mask of labels 0 to 254 as an indexed PNG, like those of the VOC devkit; atomic.

    `palette` is (n, 3) RGB, one row a label, at least up to the highest label of the mask.

    Raises:
        ShapeError: the mask is not (H, W), or the palette is not (n, 3) with a row for each label.
        ConfigError: the mask is not of integers, or a label is outside 0 to 254.
    """
    labels, colours = np.asarray(as_tensor(mask).cpu()), np.asarray(palette)
    if labels.ndim != 2 or not labels.size:
        raise ShapeError(f"a mask of shape {labels.shape} is not (H, W).", "Give one picture's mask.")
    if labels.dtype.kind not in "iu":
        raise ConfigError(f"a mask of {labels.dtype} holds no labels.", "Give integers, 0 for the background.")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high > HIGHEST_PNG_LABEL:
        raise ConfigError(
            f"the mask holds label {low if low < 0 else high}; a PNG mask holds 0 to {HIGHEST_PNG_LABEL}.",
            "255 means ignored. With more than 254 classes, save the array itself: numpy.save.",
        )
    if colours.ndim != 2 or colours.shape[1] != 3 or not high < len(colours) <= 256:
        raise ShapeError(
            f"a palette of shape {colours.shape} does not colour labels up to {high}.",
            f"Give (n, 3) RGB rows with n from {high + 1} to 256.",
        )
    picture = Image.fromarray(labels.astype(np.uint8))
    picture.putpalette(colours.astype(np.uint8).tobytes())
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        picture.save(temporary, format="PNG")
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _maps(maps: Tensor | NDArray[np.floating]) -> Tensor:
    """The maps as a float32 tensor (C, h, w); C may be 0."""
    tensor = as_tensor(maps).detach().float()
    if tensor.ndim != 3 or 0 in tensor.shape[1:]:
        raise ShapeError(f"maps are {tuple(tensor.shape)}, not (C, h, w) with at least one cell.", "Give class maps.")
    if not bool(torch.isfinite(tensor).all()):
        raise ConfigError("the maps hold NaN or infinite values.", "Find where the model first gives NaN.")
    return tensor


def _one(tensor: Tensor) -> tuple[int, int, int]:
    return (1, tensor.shape[1], tensor.shape[2])


def _like(result: Tensor, given: Array) -> Array:
    """`result` as what the caller gave: a tensor for a tensor, an array for an array."""
    return result if isinstance(given, Tensor) else result.numpy()
