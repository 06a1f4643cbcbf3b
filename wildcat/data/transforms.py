"""From a picture to the tensor a network reads, and back: warping, normalisation, random crops and flips."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transform

from wildcat.config import Flip


@dataclass(frozen=True)
class Preprocess:
    """How a network wants its pictures; travels with the weights.

    Attributes:
        size: side in pixels of the square the whole picture is warped to (the paper's release does the same).
        mean, std: per-channel normalisation of pictures in [0, 1].
        interpolation: "bicubic" or "bilinear".
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"

    def __call__(self, image: Image.Image) -> Tensor:
        """RGB picture of any size -> (3, size, size) float32."""
        return self._normalise(transform.resize(image, [self.size, self.size], self._mode(), antialias=True))

    def augmented(self, image: Image.Image, rng: np.random.Generator, crop_scale: float, flip: Flip) -> Tensor:
        """A random crop of at least `crop_scale` of the area, warped to the square and perhaps mirrored.

        Only `rng` decides: the same generator state gives the same tensor in any process.
        """
        left, top, width, height = random_crop(image.size, rng, crop_scale)
        mirrored, upended = rng.random(2) < 0.5
        crop = transform.resized_crop(
            image, top, left, height, width, [self.size, self.size], self._mode(), antialias=True
        )
        if mirrored and flip != "none":
            crop = transform.horizontal_flip(crop)
        if upended and flip == "both":
            crop = transform.vertical_flip(crop)
        return self._normalise(crop)

    def _mode(self) -> InterpolationMode:
        return InterpolationMode.BILINEAR if self.interpolation == "bilinear" else InterpolationMode.BICUBIC

    def _normalise(self, image: Image.Image) -> Tensor:
        tensor = transform.to_dtype(transform.to_image(image), torch.float32, scale=True)
        normalised: Tensor = transform.normalize(tensor, list(self.mean), list(self.std), inplace=True)
        return normalised


def random_crop(size: tuple[int, int], rng: np.random.Generator, smallest: float) -> tuple[int, int, int, int]:
    """A random rectangle (left, top, width, height) inside a picture of `size` (width, height).

    Its area is uniform in [smallest, 1] of the picture's (never less than `smallest`); its aspect is log-uniform
    within 3/4 to 4/3 of the picture's own, as far as a crop of that area fits.
    """
    if smallest >= 1:
        return 0, 0, *size
    width, height = size
    area = rng.uniform(smallest, 1)
    widest = min(math.log(4 / 3), math.log(1 / area))  # at aspect 1 / area the crop is as wide as the picture
    aspect = math.exp(rng.uniform(-widest, widest))
    crop_width = min(width, math.ceil(width * math.sqrt(area * aspect)))
    crop_height = min(height, math.ceil(height * math.sqrt(area / aspect)))
    left = int(rng.integers(0, width - crop_width + 1))
    top = int(rng.integers(0, height - crop_height + 1))
    return left, top, crop_width, crop_height
