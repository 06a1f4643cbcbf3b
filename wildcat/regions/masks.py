"""From class maps to label masks: select the classes, compare them with the background, upsample, write a PNG.

True labels are never used: the classes of an image are those the model predicts. Large images are processed in strips
of rows, and the dense CRF runs on a reduced image, so that little memory is needed besides the image and its mask.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from wildcat.errors import ConfigError, ShapeError, did_you_mean
from wildcat.files import write_bytes
from wildcat.regions.crf import Array, CrfParams, as_tensor, dense_crf, like
from wildcat.regions.propagation import propagate
from wildcat.regions.superpixels import average_over, superpixels

BackgroundRule = Literal["score", "constant", "power", "trained"]

RAW_RULES = ("score", "trained")  # these compare raw maps; the other rules divide each map by its maximum first
HIGHEST_PNG_LABEL = 254  # a PNG mask has one byte per pixel, and 255 means "ignored" (VOC devkit)
STRIP_VALUES = 1 << 24  # upsampled values (classes x pixels) in memory at a time

# Maximum number of pixels for the dense CRF and superpixels; larger images are reduced to it. Published settings are in
# pixels of images a fifth of this size; a photograph of 12 megapixels would take minutes and several gigabytes.
CRF_PIXELS = 1 << 20


@dataclass(frozen=True)
class MaskParams:
    """How class maps become a mask. The paper does not define its background; these rules are common.

    Attributes:
        gate: a class is drawn only if its predicted probability is at least this; one value, or one per class.
        rule: "score": the background has the score `score`, compared with the raw maps; for independent classes the
            model is undecided where a raw map is 0. "constant": the background has the score `constant`, compared
            with class maps divided by their maximum. "power": its score is (1 - highest class map)^`exponent` (Ahn
            and Kwak, CVPR 2018), which differs from a constant only under a CRF. "trained": the background is a class
            that was present in every training image, compared by softmax of the raw maps (Pinheiro, CVPR 2015).
        score: any number from -1e30 to 1e30, in the unit of the maps; higher draws less.
        constant: between 0 and 1, in the literature 0.15 to 0.3; higher draws less.
        exponent: above 0, in the literature 4 and more; higher draws more.
        superpixels: average the probabilities over superpixels of the image first, see `wildcat.regions.superpixels`.

    Raises:
        ConfigError: a value is out of range.
    """

    gate: float | tuple[float, ...] = 0.5
    rule: BackgroundRule = "constant"
    score: float = 0.0
    constant: float = 0.2
    exponent: float = 4.0
    superpixels: bool = False

    def __post_init__(self) -> None:
        if np.ndim(self.gate):
            object.__setattr__(self, "gate", tuple(map(float, np.asarray(self.gate))))
        if not all(0 <= gate <= 1 for gate in np.atleast_1d(self.gate)):
            raise ConfigError(f"gate={self.gate}: give probabilities in [0, 1].", "0 draws every class.")
        if self.rule not in get_args(BackgroundRule):
            choices = get_args(BackgroundRule)
            hint = did_you_mean(str(self.rule), choices) or f"Choose one of: {', '.join(choices)}."
            raise ConfigError(f"rule={self.rule!r} is unknown.", hint)
        if not abs(self.score) <= 1e30:  # maps are float32; true of NaN as well
            raise ConfigError(f"score={self.score}: give a number between -1e30 and 1e30.", "0 is usual.")
        if not 0 < self.constant < 1:
            raise ConfigError(f"constant={self.constant}: give a number between 0 and 1.", "0.2 is usual.")
        if not 0 < self.exponent < float("inf"):
            raise ConfigError(f"exponent={self.exponent}: give a number above 0.", "4 is usual.")

    def gates(self, count: int) -> tuple[float, ...]:
        """The gate of each of `count` classes; a ShapeError if there are gates for another number of classes."""
        if not isinstance(self.gate, tuple):
            return (self.gate,) * count
        if len(self.gate) != count:
            raise ShapeError(f"{len(self.gate)} gates for {count} classes.", "Give one value, or one per class.")
        return self.gate

    def with_threshold(self, threshold: float) -> MaskParams:
        """The same gates and rule with another `threshold`.

        Raises:
            ConfigError: the rule divides each map by its maximum, and the threshold is not in (0, 1).
        """
        if self.rule == "score":
            return replace(self, score=threshold)
        if not 0 < threshold < 1:
            raise ConfigError(
                f"threshold={threshold:g}: this model divides each class map by its maximum.",
                "Give a number between 0 and 1.",
            )
        if self.rule == "power":  # the threshold s is where s = (1 - s)^exponent
            return replace(self, exponent=math.log(threshold) / math.log1p(-threshold))
        return replace(self, constant=threshold)

    @property
    def threshold(self) -> float | None:
        """The strength (see `strongest_class`) above which a class is drawn; None for "trained", which has none.

        In the unit of the raw maps for "score"; for "power" the solution s of s = (1 - s)^exponent.

        >>> round(MaskParams(rule="power", exponent=4.0).threshold, 4)
        0.2755
        """
        if self.rule != "power":
            return {"score": self.score, "constant": self.constant, "trained": None}[self.rule]
        low, high = 0.0, 1.0
        for _ in range(60):  # bisection to the precision of a float
            middle = (low + high) / 2
            low, high = (low, middle) if middle > (1 - middle) ** self.exponent else (middle, high)
        return high


def upsample_maps(maps: Array, size: tuple[int, int]) -> Array:
    """(C, h, w) maps -> (C, H, W) float32 at `size` = (height, width): bilinear, `align_corners=False`.

    The centres of the cells are where `peak_points` places them; beyond the outermost centres the edge value is used.

    Raises:
        ShapeError: the maps are not (C, h, w), or a side is 0.

    >>> upsample_maps(np.array([[[0.0, 1.0]]]), (1, 4)).tolist()
    [[[0.0, 0.25, 0.75, 1.0]]]
    """
    tensor = _checked_maps(maps)
    if not len(tensor):
        return like(tensor.new_zeros(0, *size), maps)
    resized = functional.interpolate(tensor[None], size=tuple(size), mode="bilinear", align_corners=False)
    return like(resized[0], maps)


def class_probabilities_with_background(
    maps: Array, params: MaskParams | None = None, background_map: Array | None = None
) -> Array:
    """(K, H, W) raw class maps -> float32 (K + 1, H, W) probabilities, background first, by `params.rule`.

    They sum to 1 at each pixel: the scores of "constant" and "power" are divided by their sum, those of "score" and
    "trained" pass through a softmax. With K = 0 all pixels are background.

    Args:
        maps: the maps of the classes to draw.
        params: the rule and its value; `gate` is not used.
        background_map: (H, W) raw map of the background class, for "trained" alone.

    Raises:
        ShapeError: `maps` is not (K, H, W).
        ConfigError: NaN or infinite maps.

    >>> class_probabilities_with_background(np.array([[[0.0, 0.4, 0.8]]])).argmax(axis=0).tolist()
    [[0, 1, 1]]
    """
    params = params or MaskParams()
    tensor: Tensor = _checked_maps(maps)
    if background_map is not None:
        background = as_tensor(background_map).to(tensor)
    else:
        if params.rule not in RAW_RULES and len(tensor):
            tensor = _normalize(tensor, tensor.flatten(1).amax(dim=1))
        strength = tensor.amax(dim=0) if len(tensor) else tensor.new_zeros(tensor.shape[1:])
        background = _background_score(strength, params)
    scores = torch.cat([background[None], tensor])
    return like(torch.softmax(scores, dim=0) if params.rule in RAW_RULES else scores / scores.sum(dim=0), maps)


def strongest_class(
    maps: Array,
    class_prob: Array,
    size: tuple[int, int],
    gate: float | Sequence[float] = 0.5,
    rule: BackgroundRule = "constant",
) -> tuple[Array, Array]:
    """The strongest of the gated classes at each pixel, and its strength, before any comparison with the background.

    A mask at any threshold follows cheaply: a class is drawn where its strength exceeds the threshold.

    Args:
        maps: (C, h, w) raw class maps.
        class_prob: (C,) predicted probabilities of the image.
        size: (height, width) of the original image.
        gate: draw a class if its probability is at least this; one value, or one per class.
        rule: the unit of the strength: raw maps for "score" and "trained", normalised maps for the other rules.

    Returns:
        (H, W) float32, the maximum over the upsampled maps, and (H, W) int64, i + 1 for class i, the first of equal
        classes. Both are 0 where no class is gated.

    Raises:
        ShapeError, ConfigError: as `maps_to_mask`.

    >>> strength, labels = strongest_class(np.array([[[2.0, 1.0]], [[0.0, 4.0]]]), np.array([0.9, 0.8]), (1, 2))
    >>> strength.tolist(), labels.tolist()
    ([[1.0, 1.0]], [[1, 2]])
    """
    classes, gated = select_classes(maps, class_prob, gate)
    strength, labels = gated.new_zeros(size), classes.new_zeros(size)
    if len(classes):
        for rows, strip in _upsampled_strips(gated, size, normalized=rule not in RAW_RULES):
            strength[rows], labels[rows] = _strongest(strip, classes)
    return like(strength, maps), like(labels, maps)


def maps_to_mask(
    maps: Array,
    class_prob: Array,
    size: tuple[int, int],
    params: MaskParams | None = None,
    *,
    background_map: Array | None = None,
    boundaries: Array | None = None,
    image: NDArray[np.uint8] | None = None,
    crf: CrfParams | None = None,
) -> Array:
    """The label mask of an image: (H, W) int64, 0 background, i + 1 = class i. Ties go to the lowest label.

    The gated classes are upsampled and compared with the background; `crf` aligns the mask with the edges of `image`.

    Args:
        maps: (C, h, w) raw class maps.
        class_prob: (C,) predicted probabilities of the image, on the device of `maps`.
        size: (height, width) of the original image.
        params: the gate and the background rule.
        background_map: (h, w) raw map of the background class, for `rule="trained"`.
        boundaries: (h, w) probabilities of a boundary, up to which a random walk spreads the classes first.
        image: (H, W, 3) uint8 RGB, the original image; required by `crf` and superpixels.
        crf: settings of the dense CRF; None: no CRF.

    Raises:
        ShapeError: sizes do not match.
        ConfigError: a value is out of range, NaN or infinite, or `crf` or superpixels are given without `image`.

    >>> maps = np.array([[[4.0, 0.0]], [[0.0, 9.0]]])
    >>> maps_to_mask(maps, np.array([0.9, 0.2]), (1, 4)).tolist()
    [[1, 1, 1, 0]]
    """
    params = params or MaskParams()
    classes, gated = select_classes(maps, class_prob, params.gate)
    if (params.rule == "trained") != (background_map is not None):
        problem = "needs a background_map" if background_map is None else "takes no background_map"
        raise ConfigError(
            f"rule={params.rule!r} {problem}.", "rule='trained' goes with a model that has a background class."
        )
    background = None if background_map is None else _checked_maps(as_tensor(background_map).to(gated)[None])
    mask = classes.new_zeros(size)
    if image is None and (crf is not None or params.superpixels):
        needs = "crf needs" if crf is not None else "superpixels=True needs"
        raise ConfigError(f"{needs} the image.", "Give image, the (H, W, 3) uint8 image at its original size.")
    if not len(classes):
        return like(mask, maps)

    def probabilities(grid: tuple[int, int]) -> Tensor:
        """Of the background and the gated classes, on a grid."""
        fine = None if background is None else upsample_maps(background, grid)[0]
        return class_probabilities_with_background(upsample_maps(gated, grid), params, fine)

    walked = None
    if boundaries is not None:
        walls = as_tensor(boundaries).to(gated)
        walked = propagate(probabilities((walls.shape[0], walls.shape[1])), walls)
    if image is not None and (crf is not None or params.superpixels):
        reduced = _reduce_for_crf(image, size)
        grid = (reduced.shape[0], reduced.shape[1])
        drawn = probabilities(grid) if walked is None else upsample_maps(walked, grid)
        drawn = average_over(drawn, superpixels(reduced)) if params.superpixels else drawn
        drawn = drawn if crf is None else dense_crf(reduced, drawn, crf)
    elif walked is not None:
        drawn = walked
    else:
        drawn = gated if background is None else torch.cat([background, gated])
    first = len(drawn) - len(classes)  # 1 if drawn[0] is the background
    normalized = not first and params.rule not in RAW_RULES
    for rows, strip in _upsampled_strips(drawn, size, normalized):
        strength, mask[rows] = _strongest(strip[first:], classes)
        mask[rows].masked_fill_(strength <= (strip[0] if first else _background_score(strength, params)), 0)
    return like(mask, maps)


def write_mask(path: str | Path, mask: NDArray[Any], palette: NDArray[np.uint8] | Sequence[Sequence[int]]) -> None:
    """Write an (H, W) mask of labels 0 to 254 as an indexed PNG, as in the VOC devkit; atomic.

    `palette` is (n, 3) RGB, one row per label, at least up to the highest label of the mask.

    Raises:
        ConfigError: a label is outside 0 to 254.
    """
    labels, colors = np.asarray(mask), np.asarray(palette)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high > HIGHEST_PNG_LABEL:
        raise ConfigError(
            f"the mask has label {low if low < 0 else high}; a PNG mask has labels 0 to {HIGHEST_PNG_LABEL}.",
            "255 means ignored. With more than 254 classes, save the array itself: numpy.save.",
        )
    image, buffer = Image.fromarray(labels.astype(np.uint8)), io.BytesIO()
    image.putpalette(colors.astype(np.uint8).tobytes())
    image.save(buffer, format="PNG")
    write_bytes(Path(path), buffer.getvalue())


def _strongest(maps: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """The maximum of the maps (K, H, W) at each pixel, and its class + 1; the first of equal classes.

    A loop over the classes, because an arg-max over the first axis takes 10 times as long on a CPU.
    """
    strength, labels = maps[0], torch.full_like(maps[0], int(classes[0]) + 1, dtype=torch.int64)
    for index, heat in zip(classes[1:].tolist(), maps[1:], strict=True):
        labels.masked_fill_(heat > strength, index + 1)
        strength = torch.maximum(strength, heat)
    return strength, labels


def _background_score(strength: Tensor, params: MaskParams) -> Tensor:
    """(H, W) score of the background where the strongest class has `strength`, for any rule but "trained"."""
    if params.rule == "power":
        return (1 - strength) ** params.exponent
    return torch.full_like(strength, params.score if params.rule == "score" else params.constant)


def _normalize(maps: Tensor, highest: Tensor) -> Tensor:
    """Maps (K, H, W) with negative values set to 0, divided by their maxima (K,); 0 where a maximum is not positive."""
    return maps.clamp_min(0) / highest.clamp_min(torch.finfo(torch.float32).tiny)[:, None, None]


def _upsampled_strips(maps: Tensor, size: tuple[int, int], normalized: bool = False) -> Iterator[tuple[slice, Tensor]]:
    """Maps (K, h, w) upsampled like `upsample_maps`, as strips (K, rows, W); `normalized`: as `_normalize`."""
    height, width = size
    last = maps.shape[1] - 1
    wide = upsample_maps(maps, (last + 1, width))
    position = ((torch.arange(height, device=maps.device) + 0.5) * ((last + 1) / height) - 0.5).clamp(0, last)
    above = position.long()
    below, weight = (above + 1).clamp_max(last), (position - above)[:, None]
    step = max(1, STRIP_VALUES // (len(maps) * width))
    strips = [slice(top, min(top + step, height)) for top in range(0, height, step)]

    def upsampled(rows: slice) -> Tensor:
        return torch.lerp(wide[:, above[rows]], wide[:, below[rows]], weight[rows])

    if normalized:  # by the maximum over all strips
        highest = torch.stack([upsampled(rows).amax(dim=(1, 2)) for rows in strips]).amax(dim=0)
    for rows in strips:
        yield rows, _normalize(upsampled(rows), highest) if normalized else upsampled(rows)


def _reduce_for_crf(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """The image itself, or reduced to `CRF_PIXELS` pixels if it has more."""
    height, width = size
    if image.shape[:2] != tuple(size):
        raise ShapeError(
            f"the mask is {height} x {width} and the image is {' x '.join(map(str, image.shape[:2]))}.",
            "Give the image at its original size.",
        )
    scale = math.sqrt(CRF_PIXELS / (height * width))
    if scale >= 1:
        return image
    small = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(image).resize(small, Image.Resampling.BOX))


def select_classes(maps: Array, class_prob: Array, gate: float | Sequence[float]) -> tuple[Tensor, Tensor]:
    """Indices (K,) of the classes whose probability in `class_prob` (C,) reaches `gate`, and their maps (K, h, w)."""
    tensor, prob = _checked_maps(maps), as_tensor(class_prob)
    if prob.shape != tensor.shape[:1]:
        raise ShapeError(f"class_prob is {tuple(prob.shape)} for {len(tensor)} maps.", "Give one probability per map.")
    if not bool(((prob >= 0) & (prob <= 1)).all()):
        raise ConfigError("class_prob has values outside [0, 1].", "Give probabilities, not scores: sigmoid first.")
    limit = torch.as_tensor(gate).to(prob)
    if limit.ndim and limit.shape != prob.shape:
        raise ShapeError(f"{len(limit)} gates for {len(prob)} classes.", "Give one value, or one per class.")
    classes = (prob >= limit).nonzero()[:, 0]
    return classes, tensor[classes]


def _checked_maps(maps: Tensor | NDArray[np.floating]) -> Tensor:
    """The maps as a float32 tensor (C, h, w); C may be 0."""
    tensor = as_tensor(maps).detach().float()
    if tensor.ndim != 3 or 0 in tensor.shape[1:]:
        raise ShapeError(f"maps are {tuple(tensor.shape)}, not (C, h, w) with at least one cell.", "Give class maps.")
    if not bool(torch.isfinite(tensor).all()):
        raise ConfigError("the maps contain NaN or infinities.", "Check the model: did its outputs become NaN?")
    return tensor
