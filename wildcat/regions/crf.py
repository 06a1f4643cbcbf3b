"""Dense CRF: align class maps with the edges of the image, in plain torch, on CPU and GPU.

Mean field for a fully connected CRF with Gaussian edge potentials (Krähenbühl and Koltun, NIPS 2011). Each iteration
adds to the log probability of a class the weighted mean of its probability over nearby pixels (smoothness kernel:
near in position; appearance kernel: near in position and color) and normalises. The smoothness kernel is a separable
convolution. The appearance kernel has five dimensions and is filtered on a permutohedral lattice (permutohedral.py),
all classes at once. Classes that have become weak at every pixel are not filtered any more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wildcat.errors import ConfigError, ShapeError, did_you_mean
from wildcat.regions.permutohedral import build_lattice

Array = TypeVar("Array", Tensor, NDArray[Any])
Normalization = Literal["symmetric", "after", "before", "none"]
Filter = Callable[[Tensor], Tensor]  # (C, N) values of the N pixels -> (C, N) weighted sums over all pixels

LOWEST_PROBABILITY = 1e-18  # floor before the logarithm; has no visible effect and avoids denormals, slow on a CPU
WEAK_PROBABILITY, WEAK_SHARE = 0.02, 0.5  # a class below both, this and this / C, at every pixel is filtered no more
KERNEL_RADIUS = 4.0  # radius of the smoothness kernel in sigmas, where it is 3e-4 of its peak
FEW = 8  # up to this many classes it is faster to add messages in the order (N, C) to others than to transpose them
BLOCK = 32  # rows of a block of the smoothness kernel's matrix


@dataclass(frozen=True)
class CrfParams:
    """The settings of a dense CRF; the defaults are those of pydensecrf's example.

    They correspond to the arguments of pydensecrf, so that published settings can be used:
    `addPairwiseGaussian(sxy=smoothness_sigma, compat=smoothness_weight)`,
    `addPairwiseBilateral(sxy=appearance_sigma_xy, srgb=appearance_sigma_rgb, compat=appearance_weight)`,
    `inference(iterations)`. Published values: appearance weight 4 to 10, sigma_xy 50 to 80, sigma_rgb 3 to 13,
    smoothness weight 3, sigma 1 to 3 (DeepLab: 4, 67, 3, 3, 1); CCNN has smoothness 15 / 19 and appearance 10, 35 / 61.

    Attributes:
        iterations: mean-field iterations; 0 returns the normalised input.
        appearance_weight: weight of the kernel of position and color; 0 switches it off.
        appearance_sigma_xy: its standard deviation in pixels.
        appearance_sigma_rgb: its standard deviation in color levels of 0 to 255.
        smoothness_weight: weight of the kernel of position; 0 switches it off.
        smoothness_sigma: its standard deviation in pixels.
        normalization: what a kernel is divided by: "symmetric" (the root of its row sum on both sides, pydensecrf's
            default), "after" or "before" (the row sum on one side), "none" (weights then multiply plain sums).
        min_probability: a class whose probability is below this, and below 1 / C, at every pixel is left out and
            returned as 0. It could not win at any pixel, and it changes the other classes by at most this much.

    Raises:
        ConfigError: a value is out of range.

    >>> CrfParams(appearance_sigma_xy=67, appearance_sigma_rgb=3, appearance_weight=4).iterations
    10
    """

    iterations: int = 10
    appearance_weight: float = 10.0
    appearance_sigma_xy: float = 80.0
    appearance_sigma_rgb: float = 13.0
    smoothness_weight: float = 3.0
    smoothness_sigma: float = 3.0
    normalization: Normalization = "symmetric"
    min_probability: float = 1e-4

    def __post_init__(self) -> None:
        if isinstance(self.iterations, bool) or not isinstance(self.iterations, int) or self.iterations < 0:
            raise ConfigError(f"iterations={self.iterations!r}: give an integer of 0 or more.", "10 is usual.")
        for name in (field.name for field in fields(self) if "weight" in field.name or "sigma" in field.name):
            value = getattr(self, name)
            positive = "sigma" in name
            if not math.isfinite(value) or value < 0 or (positive and value == 0):
                allowed = "a number above 0" if positive else "a number of 0 or more"
                kernel = name.split("_", maxsplit=1)[0]
                raise ConfigError(f"{name}={value}: give {allowed}.", f"{kernel}_weight=0 switches that kernel off.")
        if self.normalization not in get_args(Normalization):
            choices = get_args(Normalization)
            hint = did_you_mean(str(self.normalization), choices) or f"Choose one of: {', '.join(choices)}."
            raise ConfigError(f"normalization={self.normalization!r} is unknown.", hint)
        if not 0 <= self.min_probability < 1:
            raise ConfigError(
                f"min_probability={self.min_probability}: give a number in [0, 1).", "0 filters every class."
            )


# DeepLab's settings (Chen et al., ICLR 2015), for maps that are sharp already: stronger settings erode them.
MILD_CRF = CrfParams(appearance_weight=4.0, appearance_sigma_xy=67.0, appearance_sigma_rgb=3.0, smoothness_sigma=1.0)


def dense_crf(image: NDArray[np.uint8] | Tensor, probabilities: Array, params: CrfParams | None = None) -> Array:
    """Class probabilities of each pixel after mean field in a fully connected CRF on the image.

    Deterministic; no gradient. Time grows with the number of classes: pass only the classes that are present. As in
    the published code of the NIPS 2011 paper, each pixel is one of its own neighbours.

    Args:
        image: (H, W, 3) uint8 RGB.
        probabilities: (C, H, W), non-negative, with a positive sum at each pixel (they are normalised).
        params: the settings, by default `CrfParams()`.

    Returns:
        (C, H, W) float32 that sum to 1 at each pixel: an array for an array, a tensor on the device of
        `probabilities` for a tensor.

    Raises:
        ShapeError: `image` or `probabilities` has the wrong shape or type, or their sizes differ.
        ConfigError: a probability is NaN, infinite or negative, or all are 0 at a pixel; or the appearance kernel is
            too narrow for the lattice of this image.

    >>> image = np.zeros((4, 6, 3), np.uint8)
    >>> image[:, 3:] = 255
    >>> left = np.full((4, 6), 0.4)
    >>> left[:, :3] = 0.8
    >>> left[1, 1] = 0.4  # one pixel of the left half is wrong
    >>> dense_crf(image, np.stack([left, 1 - left])).argmax(axis=0)[1].tolist()
    [0, 0, 0, 1, 1, 1]
    """
    params = params or CrfParams()
    with torch.no_grad():
        pixels, prior = checked_pair(image, probabilities)
        classes, height, width = prior.shape
        filters: list[Filter] = []
        if params.iterations and params.smoothness_weight:
            filters.append(_smoothness(height, width, params, pixels.device))
        if params.iterations and params.appearance_weight:
            filters.append(_appearance(pixels, params))
        result = prior.reshape(classes, -1)
        if filters:
            highest = result.amax(dim=1)
            # each pixel has a class of at least 1 / C
            present = highest >= highest.max().clamp(max=min(params.min_probability, 1 / classes))
            chosen = result[present]
            result = torch.zeros_like(result)
            result[present] = _mean_field(chosen.div_(chosen.sum(dim=0)), filters, params.iterations)
    return like(result.view(classes, height, width), probabilities)


def as_tensor(values: NDArray[Any] | Tensor) -> Tensor:
    """`values` as a tensor that shares their memory, or a copy where torch cannot share it: read-only or flipped."""
    if isinstance(values, Tensor):
        return values
    array = np.asarray(values)
    shared = array.flags.writeable and all(stride >= 0 for stride in array.strides)
    return torch.from_numpy(array if shared else array.copy())


def like(result: Tensor, given: Array) -> Array:
    """`result` in the type of the caller's argument: a tensor for a tensor, an array for an array."""
    return result if isinstance(given, Tensor) else result.numpy()


def checked_pair(image: NDArray[np.uint8] | Tensor, probabilities: NDArray[Any] | Tensor) -> tuple[Tensor, Tensor]:
    """The image and the normalised float32 probabilities as tensors on one device; raises as `dense_crf` documents."""
    pixels, prior = as_tensor(image), as_tensor(probabilities)
    if pixels.dtype != torch.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.numel():
        raise ShapeError(
            f"image is {tuple(pixels.shape)} {str(pixels.dtype).removeprefix('torch.')}, not (H, W, 3) uint8.",
            "Give the RGB image with levels 0 to 255, for example np.asarray(Image.open(path).convert('RGB')).",
        )
    if prior.ndim != 3 or not prior.shape[0]:
        raise ShapeError(
            f"probabilities are {tuple(prior.shape)}, not (C, H, W) with C of 1 or more.", "Give one map per class."
        )
    if prior.shape[1:] != pixels.shape[:2]:
        raise ShapeError(
            f"probabilities are {prior.shape[1]} x {prior.shape[2]} and the image is "
            f"{pixels.shape[0]} x {pixels.shape[1]} pixels (height x width).",
            "Resize the maps to the image first (regions.upsample_maps).",
        )
    prior = prior.detach()
    prior = prior if prior.dtype in (torch.float32, torch.float64) else prior.float()
    total = prior.sum(dim=0)
    if not bool(torch.isfinite(total).all()):
        raise ConfigError("probabilities contain NaN or infinite values.", "Check the maps they were made from.")
    if (lowest := float(prior.min())) < 0:
        raise ConfigError(
            f"probabilities contain {lowest:.3g}, below 0.", "Give probabilities, not scores: softmax first."
        )
    if not bool((total > 0).all()):
        row, column = (int(i) for i in (total == 0).nonzero()[0])
        raise ConfigError(
            f"all probabilities are 0 at row {row}, column {column}.", "Add a background class or a constant."
        )
    return pixels.to(prior.device), (prior / total).float()


def _mean_field(prior: Tensor, filters: Sequence[Filter], iterations: int) -> Tensor:
    """Algorithm 1 of the paper with the Potts model; `prior` is (C, N), each column sums to 1; returns the same."""

    def send(belief: Tensor) -> Tensor:
        messages = filters[0](belief)
        for message in filters[1:]:
            messages += message(belief)
        return messages

    energy = prior.clamp_min(LOWEST_PROBABILITY).log_()
    result = energy.clone()  # log of all probabilities but for a constant of each pixel
    filtered, belief = torch.arange(len(prior), device=prior.device), prior  # the classes that are filtered
    logits, rest = energy, prior[:0]  # rest: (1, N) evidence for the other classes, if there are any
    total = send(torch.ones_like(prior[:1]))[0]
    weak = min(WEAK_PROBABILITY, WEAK_SHARE / len(prior))
    for _ in range(iterations if len(prior) > 1 else 0):
        if len(rest):
            logits = send(belief).add_(energy)
        else:
            # All classes have the same kernels, so the messages of all sum to those of a class of probability 1, and
            # the last class needs no filter. Saves half of the filtering with two classes, a third with three.
            messages = send(belief[:-1])
            logits = torch.empty_like(energy)
            torch.sub(total + energy[-1], messages.sum(dim=0), out=logits[-1])
            torch.add(messages, energy[:-1], out=logits[:-1])
        belief = torch.softmax(torch.cat([logits, rest]) if len(rest) else logits, dim=0)[: len(filtered)]
        # A class that is weak at every pixel keeps its last messages. Saves a third of the time with 21 classes.
        highest = belief.amax(dim=1)
        kept = highest >= highest.max().clamp(max=weak)
        if not bool(kept.all()):
            result.index_copy_(0, filtered, logits)
            rest = torch.cat([logits[~kept], rest]).logsumexp(dim=0, keepdim=True)
            filtered, belief, energy, logits = (values[kept] for values in (filtered, belief, energy, logits))
    return torch.softmax(result.index_copy_(0, filtered, logits), dim=0)


def _normalizers(row_sums: Tensor, normalization: Normalization) -> tuple[Tensor, Tensor]:
    """The factors of each pixel's value before and after filtering, from the sums of the kernel over all pixels."""
    ones = torch.ones_like(row_sums)
    inverse = 1 / row_sums  # a pixel is its own neighbour, so no sum is 0
    return {
        "symmetric": (inverse.sqrt(), inverse.sqrt()),
        "before": (inverse, ones),
        "after": (ones, inverse),
        "none": (ones, ones),
    }[normalization]


def _smoothness(height: int, width: int, params: CrfParams, device: torch.device) -> Filter:
    """The smoothness kernel times its weight: a Gaussian along y, then along x.

    Products with blocks of banded matrices take a quarter of the time of depthwise convolutions on a CPU. The sums of
    a separable kernel are separable, so the matrices contain the normalisation.
    """
    vertical, horizontal = (_gaussian_blocks(size, params, device) for size in (height, width))

    def convolve(values: Tensor) -> Tensor:
        grid = values.view(-1, height, width)
        between, result = torch.empty_like(grid), torch.empty_like(grid)
        for rows, near, block in vertical:
            torch.matmul(block, grid[:, near], out=between[:, rows])
        lines, smooth = between.view(-1, width), result.view(-1, width)
        for columns, near, block in horizontal:
            torch.mm(lines[:, near], block.t(), out=smooth[:, columns])
        return result.view(len(values), -1).mul_(params.smoothness_weight)

    return convolve


def _gaussian_blocks(size: int, params: CrfParams, device: torch.device) -> list[tuple[slice, slice, Tensor]]:
    """The (size, size) matrix of a normalised Gaussian in blocks: rows, columns that are not 0, and their values."""
    radius = math.ceil(KERNEL_RADIUS * params.smoothness_sigma)
    blocks = []
    for start in range(0, size, BLOCK):
        rows = slice(start, min(size, start + BLOCK))
        near = slice(max(0, start - radius), min(size, start + BLOCK + radius))
        offsets = torch.arange(rows.start, rows.stop)[:, None] - torch.arange(near.start, near.stop)
        block = torch.exp(-0.5 * (offsets / params.smoothness_sigma) ** 2).masked_fill_(offsets.abs() > radius, 0)
        blocks.append((rows, near, block))
    before, after = _normalizers(torch.cat([block.sum(dim=1) for _, _, block in blocks]), params.normalization)
    return [(rows, near, (block * before[near] * after[rows, None]).to(device)) for rows, near, block in blocks]


def _appearance(image: Tensor, params: CrfParams) -> Filter:
    """The appearance kernel times its weight, on the permutohedral lattice of the image."""
    height, width = image.shape[:2]
    features = torch.empty(5, height, width, device=image.device)
    features[0] = torch.arange(width, device=image.device) / params.appearance_sigma_xy
    features[1] = (torch.arange(height, device=image.device) / params.appearance_sigma_xy)[:, None]
    features[2:] = image.permute(2, 0, 1)
    features[2:] /= params.appearance_sigma_rgb
    lattice = build_lattice(features.view(5, -1))
    sums = lattice.filter(torch.ones(height * width, 1, device=image.device))
    before, after = _normalizers(sums, params.normalization)
    lattice = replace(lattice, vertex_weights=lattice.vertex_weights * (after * params.appearance_weight))

    def convolve(values: Tensor) -> Tensor:
        scaled = torch.mul(values.t(), before, out=values.new_empty(len(before), len(values)))
        result = lattice.filter(scaled).t()
        return result if len(values) <= FEW else result.contiguous()

    return convolve
