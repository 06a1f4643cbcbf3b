"""Pixel-adaptive mask refinement (Araslanov and Roth, CVPR 2020): a fast local alternative to the dense CRF."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from wildcat.errors import ConfigError
from wildcat.regions.crf import Array, checked_pair, like

DILATIONS = (1, 2, 4, 8, 12, 24)  # pixels to the 8 neighbours, one ring for each
ITERATIONS = 10
SHARPNESS = 0.1  # color differences are divided by this times their local standard deviation
SMALLEST = 1e-8  # added to the divisor, which is 0 in an image of one color

OFFSETS = tuple((d * y, d * x) for d in DILATIONS for y in (-1, 0, 1) for x in (-1, 0, 1) if y or x)


def pamr(image: NDArray[np.uint8] | Tensor, probabilities: Array, iterations: int = ITERATIONS) -> Array:
    """Class probabilities of each pixel after averaging them over neighbours of similar color.

    Each iteration replaces a pixel by the weighted mean of its 48 neighbours. The weights are the softmax, over these,
    of -|color difference| / (0.1 sigma), with sigma the standard deviation of the neighbours, averaged over the color
    channels. Beyond the edge of the image its outermost pixels are repeated.

    Args:
        image: (H, W, 3) uint8 RGB.
        probabilities: (C, H, W), non-negative, with a positive sum at each pixel (they are normalised).
        iterations: of the averaging; 0 returns the normalised input.

    Returns:
        (C, H, W) float32 that sum to 1 at each pixel.

    Raises:
        ShapeError, ConfigError: see `wildcat.regions.dense_crf`; or a negative number of iterations.

    >>> image = np.zeros((4, 6, 3), np.uint8)
    >>> image[:, 3:] = 255
    >>> left = np.full((4, 6), 0.4)
    >>> left[:, :3] = 0.8
    >>> left[1, 1] = 0.4  # one pixel of the left half is wrong
    >>> pamr(image, np.stack([left, 1 - left])).argmax(axis=0)[1].tolist()
    [0, 0, 0, 1, 1, 1]
    """
    if iterations < 0:
        raise ConfigError(f"iterations={iterations}: give an integer of 0 or more.", "10 is usual.")
    with torch.no_grad():
        pixels, values = checked_pair(image, probabilities)
        weights = _weights(pixels.permute(2, 0, 1).float())
        for _ in range(iterations):
            padded = _padded(values)
            total = torch.zeros_like(values)
            for weight, offset in zip(weights, OFFSETS, strict=True):
                total.addcmul_(weight, _shifted(padded, offset, values))
            values = total
    return like(values, probabilities)


def _weights(colors: Tensor) -> Tensor:
    """(3, H, W) colors -> (48, H, W) weights of the neighbours of each pixel."""
    padded = _padded(colors)
    near = torch.stack([_shifted(padded, offset, colors) for offset in OFFSETS])  # (48, 3, H, W)
    ring = torch.cat([near, colors.expand(len(DILATIONS), *colors.shape)])  # a pixel counts once for each ring
    scale = SHARPNESS * ring.std(dim=0) + SMALLEST
    return torch.softmax((-(near - colors).abs() / scale).mean(dim=1), dim=0)


def _padded(values: Tensor) -> Tensor:
    """(C, H, W) with its outermost pixels repeated on all sides."""
    margin = max(DILATIONS)
    return functional.pad(values[None], (margin,) * 4, mode="replicate")[0]


def _shifted(padded: Tensor, offset: tuple[int, int], like_this: Tensor) -> Tensor:
    """The window of `_padded` whose pixel (y, x) is the neighbour of (y, x) at `offset`."""
    top, left = (max(DILATIONS) + o for o in offset)
    height, width = like_this.shape[-2:]
    return padded[..., top : top + height, left : left + width]
