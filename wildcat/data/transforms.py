"""From an image to the input tensor of a network: resizing, normalisation, random crops and flips."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from wildcat.config import Distortion, Flip
from wildcat.errors import ConfigError

DETAIL = 2  # image pixels per input pixel and side that decoding keeps: with more, the input hardly changes

Size = tuple[int, int]  # (width, height)


@dataclass(frozen=True)
class Preprocess:
    """The preprocessing that a network was trained with.

    Attributes:
        size: side in pixels of the square that the whole image is resized to (as in the paper's release).
        mean, std: per-channel normalisation of images in [0, 1].
        interpolation: "bicubic" or "bilinear".
        intensity_range: the values of grey images of more than 8 bits that become black and white, see
            `wildcat.data.images.to_rgb`.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    intensity_range: tuple[float, float] | None = None

    def __call__(self, image: Image.Image) -> Tensor:
        """RGB image of any size -> (3, size, size) float32."""
        return self.normalise(self.warp(image)[None])[0]

    def max_downscale(self, size: Size, crop_scale: float = 1.0) -> float:
        """Maximum downscale factor when decoding an image of (width, height) that keeps `DETAIL`.

        Args:
            crop_scale: smallest area of the crops that will be drawn from it, as a fraction of the image.
        """
        return min(size) * smallest_side(crop_scale) / (DETAIL * self.size)

    def augmented(
        self,
        image: Image.Image,
        rng: np.random.Generator,
        crop_scale: float,
        flip: Flip,
        size: Size | None = None,
        distortion: Distortion = "none",
    ) -> Tensor:
        """A random crop of at least `crop_scale` of the area, resized to the square, distorted and perhaps flipped.

        The same state of `rng` gives the same tensor in any process.

        Args:
            size: (width, height) of the stored image, if `image` is a downscaled copy; the crop is that of the stored
                image, to the nearest pixels.
        """
        size = size or image.size
        left, top, width, height = random_crop(size, rng, crop_scale)
        mirrored, upended = rng.random(2) < 0.5
        x, y = image.width / size[0], image.height / size[1]
        corner = round(left * x), round(top * y)
        opposite = max(corner[0] + 1, round((left + width) * x)), max(corner[1] + 1, round((top + height) * y))
        crop = self.warp(image.crop((*corner, *opposite)))
        if distortion != "none":
            crop = distort(crop, rng, distortion)
        axes = [-1] * bool(mirrored and flip != "none") + [-2] * bool(upended and flip == "both")
        return self.normalise(crop.flip(axes)[None])[0]

    def warp(self, image: Image.Image) -> Tensor:
        """RGB image of any size -> (3, size, size) uint8, antialiased, channels last in memory.

        As Pillow's, but for the rounding of a level, in a third of its time.
        """
        pixels = torch.from_numpy(np.array(image))[None].permute(0, 3, 1, 2)
        mode = "bilinear" if self.interpolation == "bilinear" else "bicubic"
        return F.interpolate(pixels, (self.size, self.size), mode=mode, antialias=True)[0]

    def normalise(self, pixels: Tensor) -> Tensor:
        """(B, 3, size, size) uint8 -> normalised float32, channels last in memory."""
        std = np.asarray(self.std)
        # A row of pixels is r g b r g b ... in memory: scaling it by repeated factors needs no strides.
        scale, offset = (
            torch.from_numpy(np.tile(values, self.size).astype(np.float32)).to(pixels.device)
            for values in (1 / (255 * std), -np.asarray(self.mean) / std)
        )
        rows = pixels.permute(0, 2, 3, 1).reshape(len(pixels), self.size, 3 * self.size)
        scaled = rows.float().mul_(scale).add_(offset)
        return scaled.reshape(len(pixels), self.size, self.size, 3).permute(0, 3, 1, 2)


def stack_images(images: Sequence[Tensor]) -> Tensor:
    """B images (3, S, S) as `Preprocess` returns them -> (B, 3, S, S), channels last in memory like them.

    `torch.stack` by itself would lay out each channel as a plane, and the layers after it would undo that.
    """
    return torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)


def parse_range(text: str) -> tuple[float, float] | None:
    """LOW and HIGH of --intensity-range; None if it is empty. Raises a ConfigError if they are no range.

    >>> parse_range("0,4095"), parse_range("")
    ((0.0, 4095.0), None)
    """
    try:
        low, high = map(float, text.split(",")) if text else (0.0, 1.0)
    except ValueError:
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError(f"--intensity-range {text}: give two numbers, the lower first.", "For 12-bit data: 0,4095.")
    return (low, high) if text else None


def distort(pixels: Tensor, rng: np.random.Generator, distortion: Distortion) -> Tensor:
    """(3, H, W) uint8 -> the same shape, with random changes of colour and shape, see `TrainConfig.augment`."""
    from torchvision.transforms import v2  # noqa: PLC0415  # slow to import, and only needed here

    transform = v2.TrivialAugmentWide() if distortion == "trivial" else v2.RandAugment()
    with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
        torch.manual_seed(int(rng.integers(2**63)))
        changed: Tensor = transform(pixels)
    return changed


def smallest_side(smallest: float) -> float:
    """Smallest fraction of the image's width, or height, of a `random_crop`.

    >>> smallest_side(1.0), smallest_side(0.48)
    (1.0, 0.6)
    """
    return math.sqrt(smallest * max(3 / 4, smallest))


def random_crop(size: tuple[int, int], rng: np.random.Generator, smallest: float) -> tuple[int, int, int, int]:
    """A random rectangle (left, top, width, height) inside an image of `size` (width, height).

    Its area is uniform in [smallest, 1] of the image's (never less than `smallest`); its aspect is log-uniform
    within 3/4 to 4/3 of the image's own, as far as a crop of that area fits.
    """
    if smallest >= 1:
        return 0, 0, *size
    width, height = size
    area = rng.uniform(smallest, 1)
    widest = min(math.log(4 / 3), math.log(1 / area))  # at aspect 1 / area the crop is as wide as the image
    aspect = math.exp(rng.uniform(-widest, widest))
    crop_width = min(width, math.ceil(width * math.sqrt(area * aspect)))
    crop_height = min(height, math.ceil(height * math.sqrt(area / aspect)))
    left = int(rng.integers(0, width - crop_width + 1))
    top = int(rng.integers(0, height - crop_height + 1))
    return left, top, crop_width, crop_height
