"""From class maps to label masks: gate the classes, weigh the background, upsample, and write an indexed PNG.

No rule here sees a true label: the classes of an image are those the model predicts.

Where a mask is made without a CRF, "constant" and "power" are one family: a pixel is drawn where its strongest class is
above a threshold (`MaskParams.threshold`), and the exponent only moves it. With a CRF they differ, in how sure it is
of each pixel before it looks at the image.

A large image is done in strips of rows, and what the dense CRF sees of it is shrunk: beside the image and its mask
little memory is needed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
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
BackgroundRule = Literal["score", "constant", "power", "trained"]

HIGHEST_PNG_LABEL = 254
"""A PNG mask holds one byte a pixel, and 255 means "ignored" (VOC devkit)."""


RAW_RULES = ("score", "trained")
"""Rules that compare the maps as they are; the others divide each by its maximum first."""

STRIP_VALUES = 1 << 24
"""Values of upsampled maps, classes times pixels, that are held at once."""

CRF_PIXELS = 1 << 20
"""Pixels a dense CRF sees at most: larger images are shrunk to as many for it. Published settings are in pixels of
images of a fifth of that; a photograph of 12 million would take minutes and several gigabytes."""


@dataclass(frozen=True)
class MaskParams:
    """How class maps become a mask. The paper does not say how it finds the background; these rules are in use.

    Attributes:
        gate: a class is drawn only if its predicted probability is at least this; one for all classes, or one a class.
        rule: "score": the background scores `score` against the raw maps, all classes alike; with independent classes a
            raw map of 0 is where the model itself is undecided, whatever the highest score of the image is.
            "constant": the background scores `constant` against class maps divided by their maximum; "power": it
            scores (1 - highest class map)^`exponent` (Ahn and Kwak, CVPR 2018); "trained": it is one more class of
            the model, whose image label was always on, compared by softmax of the raw maps (Pinheiro and Collobert,
            CVPR 2015).
        score: in the unit of the maps, any number; higher draws less.
        constant: between 0 and 1; 0.15 to 0.3 in print. Higher draws less.
        exponent: above 0; 4 and up in print. Higher draws more.

    Raises:
        ConfigError: a value is out of range.
    """

    gate: float | tuple[float, ...] = 0.5
    rule: BackgroundRule = "constant"
    score: float = 0.0
    constant: float = 0.2
    exponent: float = 4.0

    def __post_init__(self) -> None:
        gates = self.gate if isinstance(self.gate, tuple) else (self.gate,)
        if not all(0 <= gate <= 1 for gate in gates):
            raise ConfigError(f"gate={self.gate}: give probabilities in [0, 1].", "0 draws every class.")
        if self.rule not in get_args(BackgroundRule):
            choices = get_args(BackgroundRule)
            hint = did_you_mean(str(self.rule), choices) or f"Choose one of: {', '.join(choices)}."
            raise ConfigError(f"rule={self.rule!r} is unknown.", hint)
        if not math.isfinite(self.score):
            raise ConfigError(f"score={self.score}: give a number.", "0 is usual.")
        if not 0 < self.constant < 1:
            raise ConfigError(f"constant={self.constant}: give a number between 0 and 1.", "0.2 is usual.")
        if not 0 < self.exponent < float("inf"):
            raise ConfigError(f"exponent={self.exponent}: give a number above 0.", "4 is usual.")

    @property
    def threshold(self) -> float | None:
        """The strength, see `strongest_class`, above which a class is drawn; None for "trained", which has none.

        In the unit of the raw maps for "score"; for "power" it is where s = (1 - s)^exponent.

        >>> round(MaskParams(rule="power", exponent=4.0).threshold, 4)
        0.2755
        """
        if self.rule != "power":
            return {"score": self.score, "constant": self.constant, "trained": None}[self.rule]
        low, high = 0.0, 1.0
        for _ in range(60):  # halving 60 times is as exact as a float is
            middle = (low + high) / 2
            low, high = (low, middle) if middle > (1 - middle) ** self.exponent else (middle, high)
        return high


def gate_classes(class_prob: Array, gate: float | Sequence[float] = 0.5) -> Array:
    """Indices, ascending int64, of the classes whose predicted probability in `class_prob` (C,) is at least `gate`.

    Args:
        gate: one for all classes, or C of them.

    Raises:
        ShapeError: `class_prob` is not one value a class, or there is another number of gates.
        ConfigError: a probability is outside [0, 1] or NaN.

    >>> gate_classes(np.array([0.9, 0.1, 0.5])).tolist()
    [0, 2]
    """
    prob = as_tensor(class_prob)
    if prob.ndim != 1:
        raise ShapeError(f"class_prob is {tuple(prob.shape)}, not (C,).", "Give one image's probabilities.")
    if not bool(((prob >= 0) & (prob <= 1)).all()):
        raise ConfigError("class_prob holds values outside [0, 1].", "Give probabilities, not scores: sigmoid first.")
    limit = torch.as_tensor(gate).to(prob)
    if limit.ndim and limit.shape != prob.shape:
        raise ShapeError(f"{len(limit)} gates for {len(prob)} classes.", "Give one for all, or one a class.")
    return _like((prob >= limit).nonzero()[:, 0], class_prob)


def upsample_maps(maps: Array, size: tuple[int, int]) -> Array:
    """(C, h, w) maps -> (C, H, W) float32 at `size` = (height, width): bilinear, `align_corners=False`.

    Cell centres land where `peak_points` puts them; beyond the outermost centres the edge value holds.

    Raises:
        ShapeError: the maps are not (C, h, w), or a side is 0.

    >>> upsample_maps(np.array([[[0.0, 1.0]]]), (1, 4)).tolist()
    [[[0.0, 0.25, 0.75, 1.0]]]
    """
    tensor = _maps(maps)
    _check_size(size)
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
    tensor = _maps(maps)
    return _like(_divided(tensor, tensor.flatten(1).amax(dim=1)) if len(tensor) else tensor, maps)


def class_probabilities_with_background(
    maps: Array, params: MaskParams | None = None, background_map: Array | None = None
) -> Array:
    """(K, H, W) raw class maps -> float32 (K + 1, H, W) probabilities, the background first, by `params.rule`.

    At each pixel they are non-negative and sum to 1: the scores of "constant" and "power" are divided by their sum,
    "score" and "trained" are a softmax. The arg-max is that of the scores. With K = 0 all is background.

    Args:
        maps: the maps of the classes to draw.
        params: the rule and its setting are used; `gate` is not.
        background_map: (H, W) the raw map of the trained background class; needed by, and only by, "trained".

    Raises:
        ShapeError: `maps` is not (K, H, W), or `background_map` has another size.
        ConfigError: NaN or infinite maps, or `background_map` does not go with the rule.

    >>> class_probabilities_with_background(np.array([[[0.0, 0.4, 0.8]]])).argmax(axis=0).tolist()
    [[0, 1, 1]]
    """
    params = params or MaskParams()
    _check_rule(params, background_map)
    tensor: Tensor = _maps(maps)
    if background_map is not None:
        extra = as_tensor(background_map).to(tensor)
        if extra.shape != tensor.shape[1:]:
            raise ShapeError(
                f"background_map is {tuple(extra.shape)} and the maps are {tuple(tensor.shape)}.",
                "Give both at the same (H, W).",
            )
        return _like(torch.softmax(torch.cat([_maps(extra[None]), tensor]), dim=0), maps)
    if params.rule == "score":
        level = tensor.new_full((1, *tensor.shape[1:]), params.score)
        return _like(torch.softmax(torch.cat([level, tensor]), dim=0), maps)
    scores = normalize_maps(tensor)
    strength = scores.amax(dim=0) if len(scores) else scores.new_zeros(scores.shape[1:])
    scores = torch.cat([_background_score(strength, params)[None], scores])
    return _like(scores / scores.sum(dim=0), maps)


def strongest_class(
    maps: Array,
    class_prob: Array,
    size: tuple[int, int],
    gate: float | Sequence[float] = 0.5,
    rule: BackgroundRule = "constant",
) -> tuple[Array, Array]:
    """What is drawn where anything is: the strongest of the gated classes at each pixel, and how strong it is.

    Masks at many thresholds cost little more than one: at each, a class is drawn where its strength is above it.

    Args:
        maps, class_prob, size: as for `maps_to_mask`.
        gate: see `gate_classes`.
        rule: whose strength is asked for: that of the raw maps ("score", "trained") or of normalised ones (the others).

    Returns:
        (H, W) float32, the highest of the upsampled maps, raw or normalised to [0, 1]; and (H, W) int64, i + 1 = class
        i. Both are 0 everywhere where no class is gated.

    Raises:
        ShapeError, ConfigError: as `maps_to_mask`.

    >>> strength, labels = strongest_class(np.array([[[2.0, 1.0]], [[0.0, 4.0]]]), np.array([0.9, 0.8]), (1, 2))
    >>> strength.tolist(), labels.tolist()
    ([[1.0, 1.0]], [[1, 2]])
    """
    chosen, drawn = _gated(maps, class_prob, gate)
    _check_size(size)
    strength, labels = drawn.new_zeros(size), chosen.new_zeros(size)
    for rows, strip in _strips(drawn, size, normalized=rule not in RAW_RULES):
        strength[rows], labels[rows] = _strongest(strip, chosen)
    return _like(strength, maps), _like(labels, maps)


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
    """The label mask of an image: (H, W) int64, 0 background, i + 1 = class i.

    Classes are gated by `class_prob`, their maps upsampled to `size`, weighed against the background and, where `crf`
    is given, sharpened to the edges of `image` with the gated classes only. No class gated: all 0.

    Args:
        maps: (C, h, w) raw class maps.
        class_prob: (C,) predicted probabilities of the image, on the device of `maps`.
        size: (height, width) of the original image.
        params: the gate and the background rule.
        background_map: (h, w) raw map of the trained background class, for `rule="trained"`.
        image: (H, W, 3) uint8 RGB, the original image; needed by `crf`.
        crf: settings of the dense CRF; None leaves it out.

    Raises:
        ShapeError: sizes do not fit each other.
        ConfigError: a value is out of range, NaN or infinite, or `crf` is given without `image`.

    >>> maps = np.array([[[4.0, 0.0]], [[0.0, 9.0]]])
    >>> maps_to_mask(maps, np.array([0.9, 0.2]), (1, 4)).tolist()
    [[1, 1, 1, 0]]
    """
    params = params or MaskParams()
    chosen, drawn = _gated(maps, class_prob, params.gate)
    if crf is not None and image is None:
        raise ConfigError("crf needs the image.", "Give image, the (H, W, 3) uint8 image at its original size.")
    _check_rule(params, background_map)
    _check_size(size)
    mask = chosen.new_zeros(size)
    if not len(chosen):
        return _like(mask, maps)
    raw_background = None if background_map is None else _maps(as_tensor(background_map).to(drawn)[None])
    if crf is not None and image is not None:
        seen = _shrunk(image, size)
        own = (int(seen.shape[0]), int(seen.shape[1]))
        background = None if raw_background is None else upsample_maps(raw_background, own)[0]
        unary = class_probabilities_with_background(upsample_maps(drawn, own), params, background)
        labels = torch.cat([chosen.new_zeros(1), chosen + 1])
        for rows, strip in _strips(dense_crf(seen, unary, crf), size):
            mask[rows] = labels[strip.argmax(dim=0)]
        return _like(mask, maps)
    if raw_background is not None:
        for rows, strip in _strips(torch.cat([raw_background, drawn]), size):
            strength, mask[rows] = _strongest(strip[1:], chosen)
            mask[rows].masked_fill_(strength <= strip[0], 0)
        return _like(mask, maps)
    for rows, strip in _strips(drawn, size, normalized=params.rule not in RAW_RULES):
        strength, mask[rows] = _strongest(strip, chosen)
        mask[rows].masked_fill_(strength <= _background_score(strength, params), 0)
    return _like(mask, maps)


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
        raise ShapeError(f"a mask of shape {labels.shape} is not (H, W).", "Give one image's mask.")
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
    image = Image.fromarray(labels.astype(np.uint8))
    image.putpalette(colours.astype(np.uint8).tobytes())
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        image.save(temporary, format="PNG")
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _check_size(size: tuple[int, int]) -> None:
    if len(size) != 2 or min(size) < 1:
        raise ShapeError(f"size={tuple(size)} is not an image's (height, width).", "Both are 1 or more.")


def _check_rule(params: MaskParams, background_map: object) -> None:
    if (params.rule == "trained") != (background_map is not None):
        stance = "needs a background_map" if background_map is None else "takes no background_map"
        raise ConfigError(
            f"rule={params.rule!r} {stance}.", "rule='trained' goes with a model that has a background class."
        )


def _gated(maps: Array, class_prob: Array, gate: float | Sequence[float]) -> tuple[Tensor, Tensor]:
    """Indices (K,) of the classes to draw, and their maps (K, h, w)."""
    tensor, prob = _maps(maps), as_tensor(class_prob)
    chosen = gate_classes(prob, gate)
    if len(prob) != len(tensor):
        raise ShapeError(f"{len(prob)} class probabilities for {len(tensor)} maps.", "Give one a map.")
    return chosen, tensor[chosen]


def _strips(maps: Tensor, size: tuple[int, int], normalized: bool = False) -> Iterator[tuple[slice, Tensor]]:
    """Maps (K, h, w) upsampled to an image's size, (K, rows, W) at a time; an image of ordinary size all at once."""
    height, width = size
    if len(maps) * height * width <= STRIP_VALUES:
        whole = upsample_maps(maps, size)
        yield slice(0, height), normalize_maps(whole) if normalized else whole
        return
    wide = upsample_maps(maps, (maps.shape[1], width))
    place = ((torch.arange(height, device=maps.device) + 0.5) * (maps.shape[1] / height) - 0.5).clamp(
        0, maps.shape[1] - 1
    )
    above = place.long()
    below, part = (above + 1).clamp_max(maps.shape[1] - 1), (place - above)[:, None]
    step = max(1, STRIP_VALUES // (len(maps) * width))
    strips = [slice(top, min(top + step, height)) for top in range(0, height, step)]

    def upsampled(rows: slice) -> Tensor:
        return torch.lerp(wide[:, above[rows]], wide[:, below[rows]], part[rows])

    highest = None
    if normalized:  # which takes the maximum over the whole image
        highest = torch.stack([upsampled(rows).amax(dim=(1, 2)) for rows in strips]).amax(dim=0)
    for rows in strips:
        yield rows, upsampled(rows) if highest is None else _divided(upsampled(rows), highest)


def _divided(maps: Tensor, highest: Tensor) -> Tensor:
    """Maps (K, H, W) without their negative values, divided by (K,) maxima; 0 where a maximum is not positive."""
    return maps.clamp_min(0) / highest.clamp_min(torch.finfo(torch.float32).tiny)[:, None, None]


def _shrunk(image: NDArray[np.uint8] | Tensor, size: tuple[int, int]) -> NDArray[np.uint8] | Tensor:
    """The image for a dense CRF: as it is, or of `CRF_PIXELS` where it has more."""
    height, width = size
    if tuple(image.shape[:2]) != tuple(size):
        raise ShapeError(
            f"the mask is {height} x {width} and the image is {' x '.join(map(str, image.shape[:2]))}.",
            "Give the image at its original size.",
        )
    scale = math.sqrt(CRF_PIXELS / (height * width))
    if scale >= 1:
        return image
    small = (max(1, round(width * scale)), max(1, round(height * scale)))
    array = np.asarray(image.cpu() if isinstance(image, Tensor) else image)
    reduced = np.asarray(Image.fromarray(array).resize(small, Image.Resampling.BOX))
    return torch.from_numpy(reduced).to(image.device) if isinstance(image, Tensor) else reduced


def _strongest(maps: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """The highest of the maps (K, H, W) at each pixel, and its class + 1; the first of equal ones; 0 and 0 for none.

    Class after class: an arg-max over the first axis takes ten times as long.
    """
    if not len(maps):
        return maps.new_zeros(maps.shape[1:]), chosen.new_zeros(maps.shape[1:])
    strength, labels = maps[0], torch.full_like(maps[0], int(chosen[0]) + 1, dtype=torch.int64)
    for index, heat in zip(chosen[1:].tolist(), maps[1:], strict=True):
        labels.masked_fill_(heat > strength, index + 1)
        strength = torch.maximum(strength, heat)
    return strength, labels


def _background_score(strength: Tensor, params: MaskParams) -> Tensor:
    """(H, W) score of the background where the strongest class is so strong, by any rule but "trained"."""
    if params.rule != "power":
        return torch.full_like(strength, params.score if params.rule == "score" else params.constant)
    return (1 - strength) ** params.exponent


def _maps(maps: Tensor | NDArray[np.floating]) -> Tensor:
    """The maps as a float32 tensor (C, h, w); C may be 0."""
    tensor = as_tensor(maps).detach().float()
    if tensor.ndim != 3 or 0 in tensor.shape[1:]:
        raise ShapeError(f"maps are {tuple(tensor.shape)}, not (C, h, w) with at least one cell.", "Give class maps.")
    if not bool(torch.isfinite(tensor).all()):
        raise ConfigError("the maps hold NaN or infinite values.", "Find where the model first gives NaN.")
    return tensor


def _like(result: Tensor, given: Array) -> Array:
    """`result` as what the caller gave: a tensor for a tensor, an array for an array."""
    return result if isinstance(given, Tensor) else result.numpy()
