"""Images as they are handed to a predictor: paths, PIL images, arrays, and what is stored in no file of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wildcat.data.image_ref import ImageRef
from wildcat.data.images import Reduced, Spare, as_stored, read_reduced, to_rgb
from wildcat.errors import ConfigError

ImageInput = str | Path | Image.Image | NDArray[np.uint8] | ImageRef


def open_reduced(image: ImageInput, spare: Spare) -> Reduced:
    """Any kind of image `Predictor.predict` takes, as `wildcat.data.images.read_reduced` gives it.

    Raises:
        ImageError: it cannot be read.
        ConfigError: an array that is not uint8, or of another shape; or no image at all.
    """
    if isinstance(image, (str, Path)):
        return read_reduced(image, spare)
    if isinstance(image, ImageRef):
        return image.read_reduced(spare)
    rgb = _in_memory(image)
    return rgb, rgb.size


def open_image(image: ImageInput) -> Image.Image:
    """Any kind of image `Predictor.predict` takes, in RGB, as large as it is.

    Raises:
        ImageError, ConfigError: as `open_reduced`.
    """
    return open_reduced(image, as_stored)[0]


def _in_memory(image: object) -> Image.Image:
    if isinstance(image, Image.Image):
        return to_rgb(image)
    if isinstance(image, np.ndarray):
        fits = image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)
        if image.dtype != np.uint8 or not fits or image.size == 0:
            raise ConfigError(
                f"an array of shape {image.shape} and type {image.dtype} is not an image.",
                "Give uint8, (height, width, 3) RGB or (height, width) grey.",
            )
        return to_rgb(Image.fromarray(image))
    raise ConfigError(f"a {type(image).__name__} is not an image.", "Give a path, a PIL image or a uint8 RGB array.")


def name_of(image: ImageInput) -> str:
    """What `Prediction.image` calls it; "" where it has no name."""
    if isinstance(image, (str, Path)):
        return str(image)
    return image.name if isinstance(image, ImageRef) else ""
