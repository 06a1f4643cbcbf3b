"""Pictures as they are handed to a predictor: paths, PIL pictures, arrays, and what is stored in no file of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wildcat.data.images import Reduced, Spare, as_stored, read_reduced, to_rgb
from wildcat.data.stored import StoredPicture
from wildcat.errors import ConfigError

Picture = str | Path | Image.Image | NDArray[np.uint8] | StoredPicture


def open_reduced(picture: Picture, spare: Spare) -> Reduced:
    """Any kind of picture `Predictor.predict` takes, as `wildcat.data.images.read_reduced` gives it.

    Raises:
        ImageError: it cannot be read.
        ConfigError: an array that is not uint8, or of another shape; or no picture at all.
    """
    if isinstance(picture, (str, Path)):
        return read_reduced(picture, spare)
    if isinstance(picture, StoredPicture):
        return picture.read_reduced(spare)
    image = _in_memory(picture)
    return image, image.size


def open_picture(picture: Picture) -> Image.Image:
    """Any kind of picture `Predictor.predict` takes, in RGB, as large as it is.

    Raises:
        ImageError, ConfigError: as `open_reduced`.
    """
    return open_reduced(picture, as_stored)[0]


def _in_memory(picture: object) -> Image.Image:
    if isinstance(picture, Image.Image):
        return to_rgb(picture)
    if isinstance(picture, np.ndarray):
        fits = picture.ndim == 2 or (picture.ndim == 3 and picture.shape[2] == 3)
        if picture.dtype != np.uint8 or not fits or picture.size == 0:
            raise ConfigError(
                f"an array of shape {picture.shape} and type {picture.dtype} is not a picture.",
                "Give uint8, (height, width, 3) RGB or (height, width) grey.",
            )
        return to_rgb(Image.fromarray(picture))
    raise ConfigError(
        f"a {type(picture).__name__} is not a picture.", "Give a path, a PIL picture or a uint8 RGB array."
    )


def name_of(picture: Picture) -> str:
    """What `Prediction.image` calls it; "" where it has no name."""
    if isinstance(picture, (str, Path)):
        return str(picture)
    return picture.name if isinstance(picture, StoredPicture) else ""
