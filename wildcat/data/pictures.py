"""Pictures as they are handed to a predictor: paths, PIL pictures, arrays, and what is stored in no file of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wildcat.data.images import Reduced, Spare, read_reduced, to_rgb
from wildcat.errors import ConfigError


class StoredPicture(ABC):
    """A picture that is not in a file of its own: a member of an archive, a cell of a table, an object of a store."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What `Prediction.image` and errors call it."""

    @abstractmethod
    def read(self) -> Image.Image:
        """The picture in RGB, as `wildcat.data.images.read_image` gives it; called in a thread.

        Raises:
            ImageError: it cannot be read.
        """

    def read_reduced(self, spare: Spare) -> Reduced:  # whoever can do with less overrides this
        """As `wildcat.data.images.read_reduced`; a picture that came smaller is `read` again to be drawn.

        Raises:
            ImageError: it cannot be read.
        """
        image = self.read()
        return image, image.size


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
