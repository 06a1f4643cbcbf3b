"""Dense CRF: align class maps with the edges of the image, in plain torch, on CPU and GPU.

Mean field for a fully connected CRF with Gaussian edge potentials (Krähenbühl and Koltun, NIPS 2011). Each iteration
adds to the log probability of a class the weighted mean of its probability over nearby pixels (smoothness kernel:
near in position; appearance kernel: near in position and color) and normalises. The smoothness kernel is a separable
convolution. The appearance kernel has five dimensions and is filtered on a permutohedral lattice (permutohedral.py),
all classes at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from wildcat.errors import ConfigError, ShapeError, did_you_mean
from wildcat.regions.permutohedral import build_lattice

Array = TypeVar("Array", Tensor, NDArray[Any])
Normalization = Literal["symmetric", "after", "before", "none"]
Filter = Callable[[Tensor], Tensor]  # (N, C) values of the N pixels -> (N, C) weighted sums over all pixels

LOWEST_PROBABILITY = 1e-18  # floor before the logarithm; has no visible effect and avoids denormals, slow on a CPU
LARGEST_EXPONENT = 80.0  # larger messages are shifted before the exponential, which overflows float32 at 88
KERNEL_RADIUS = 4.0  # radius of the smoothness kernel in sigmas, where it is 3e-4 of its peak


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
        min_probability: a class whose probability is below this at every pixel is left out and returned as 0. It
            could not win at any pixel, and it changes the other classes by at most this much.

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
MILD_CRF = CrfParams(
    appearance_weight=4.0,
    appearance_sigma_xy=67.0,
    appearance_sigma_rgb=3.0,
    smoothness_weight=3.0,
    smoothness_sigma=1.0,
)


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
        flat = prior.reshape(classes, -1)
        highest = flat.amax(dim=1)
        active = highest >= torch.clamp(highest.max(), max=params.min_probability)
        filters: list[Filter] = []
        if params.iterations and params.smoothness_weight:
            filters.append(_smoothness(height, width, params, pixels.device))
        if params.iterations and params.appearance_weight:
            filters.append(_appearance(pixels, params))
        active_prior = flat[active].t().contiguous()  # (N, C)
        active_prior /= active_prior.sum(dim=1, keepdim=True)
        result = torch.zeros_like(flat)
        result[active] = _mean_field(active_prior, filters, params.iterations).t()
        result = result.view(classes, height, width)
    return like(result, probabilities)


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
    """Algorithm 1 of the paper with the Potts model; `prior` is (N, C), each row sums to 1; returns the same."""
    belief = prior
    prior = prior.clamp_min(LOWEST_PROBABILITY)
    for _ in range(iterations if filters else 0):
        messages = filters[0](belief)
        for message in filters[1:]:
            messages += message(belief)
        if messages.max() > LARGEST_EXPONENT:
            messages -= messages.amax(dim=1, keepdim=True)
        # softmax(log prior + messages) without the logarithm; messages are non-negative, rarely above the weights
        belief = messages.exp_().mul_(prior)
        belief /= belief.sum(dim=1, keepdim=True)
    return belief


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
    """The smoothness kernel times its weight: a Gaussian along y, then along x."""

    def taps(size: int) -> Tensor:
        radius = min(math.ceil(KERNEL_RADIUS * params.smoothness_sigma), size - 1)
        offset = torch.arange(-radius, radius + 1, device=device, dtype=torch.float32)
        return torch.exp(-0.5 * (offset / params.smoothness_sigma) ** 2)

    vertical, horizontal = taps(height)[:, None], taps(width)[None, :]

    def convolve(values: Tensor) -> Tensor:
        channels = values.shape[1]
        grid = values.view(1, height, width, channels).permute(0, 3, 1, 2)
        for kernel in (vertical, horizontal):
            padding = (kernel.shape[0] // 2, kernel.shape[1] // 2)
            grid = functional.conv2d(grid, kernel.repeat(channels, 1, 1, 1), padding=padding, groups=channels)
        return grid.permute(0, 2, 3, 1).reshape(-1, channels)

    sums = convolve(torch.ones(height * width, 1, device=device))
    before, after = _normalizers(sums, params.normalization)
    after = after * params.smoothness_weight
    return lambda values: convolve(values * before).mul_(after)


def _appearance(image: Tensor, params: CrfParams) -> Filter:
    """The appearance kernel times its weight, on the permutohedral lattice of the image."""
    height, width = image.shape[:2]
    y, x = torch.arange(height, device=image.device).float(), torch.arange(width, device=image.device).float()
    positions = torch.stack([x.repeat(height), y.repeat_interleave(width)], dim=1) / params.appearance_sigma_xy
    colors = image.reshape(-1, 3).float() / params.appearance_sigma_rgb
    lattice = build_lattice(torch.cat([positions, colors], dim=1).t().contiguous())
    sums = lattice.filter(torch.ones(height * width, 1, device=image.device))[:, 0]
    before, after = _normalizers(sums, params.normalization)
    return lattice.scaled(before, after * params.appearance_weight).filter
