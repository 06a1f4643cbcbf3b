"""Image inputs: paths, PIL images, arrays, and references to images inside other files or remote stores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wildcat.data.images import Decoded, MaxDownscale, decode_bytes, decode_file, full_size, header_error, to_rgb
from wildcat.data.remote import file_size, is_url, read_range
from wildcat.errors import ConfigError, DataError, ImageError

MAX_BYTES = 1 << 28  # an image file larger than 256 MB is refused without reading it


class ImageRef(ABC):
    """An image that is not a file of its own: a member of a tar shard, a cell of a table, an object in a store."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The name in `Prediction.path` and in errors."""

    @abstractmethod
    def decode(self, max_downscale: MaxDownscale = full_size) -> Decoded:
        """The image as `wildcat.data.images.decode_bytes` returns it; called in threads.

        Raises:
            ImageError: it cannot be read.
        """

    def __str__(self) -> str:
        return self.name


ImageInput = str | Path | Image.Image | NDArray[np.uint8] | ImageRef


@dataclass(frozen=True, slots=True)
class ImageLocation(ImageRef):
    """The location of an image: small and picklable, so that any process can read the image.

    Attributes:
        file: the path or URL that holds it.
        member: its name in that file: a member of a shard, or the row number of a table; empty: the whole file.
        start, size: its byte range in the file; size -1: the whole file, or a table row.
        error: why it must not be read; empty: it may be.
    """

    file: str
    member: str = ""
    start: int = 0
    size: int = -1
    error: str = ""

    @property
    def name(self) -> str:
        """`file`, or `file#member`."""
        return f"{self.file}#{self.member}" if self.member else self.file

    def decode(self, max_downscale: MaxDownscale = full_size) -> Decoded:
        """As `ImageRef.decode`; a DataError if its folder or store is gone."""
        if self.error:
            raise ImageError(f"{self.name} {self.error}.", "It is skipped; give the image itself instead.")
        if not self.member and not is_url(self.file):
            try:
                return decode_file(self.file, max_downscale)
            except ImageError:
                folder = Path(self.file).parent
                if not folder.is_dir():
                    raise DataError(f"{folder} has vanished.", "Restore it, then continue with --resume.") from None
                raise
        size = file_size(self.file) if self.size < 0 else self.size
        check_size(self.name, size)
        return decode_bytes(read_range(self.file, self.start, size), self.name, max_downscale)


def check_size(name: str, size: int) -> None:
    """Refuse an image file of more than `MAX_BYTES` bytes before reading it."""
    if size > MAX_BYTES:
        raise ImageError(f"{name} has {size:,} bytes; the limit is {MAX_BYTES:,} bytes.", "Save a smaller image.")


def decode_image(image: ImageInput, max_downscale: MaxDownscale = full_size) -> Decoded:
    """Any image input as RGB; a file or reference may be downscaled, see `wildcat.data.images.decode_file`.

    Raises:
        ImageError: it cannot be read.
        ConfigError: an array that is not uint8 of shape (H, W, 3) or (H, W), or an object of another type.
    """
    if isinstance(image, (str, Path)):
        return decode_file(image, max_downscale)
    if isinstance(image, ImageRef):
        return image.decode(max_downscale)
    if isinstance(image, np.ndarray):
        fits = image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)
        if image.dtype != np.uint8 or not fits or image.size == 0:
            raise ConfigError(
                f"an array of shape {image.shape} and type {image.dtype} is not an image.",
                "Give uint8, (height, width, 3) RGB or (height, width) grey.",
            )
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise ConfigError(
            f"a {type(image).__name__} is not an image.", "Give a path, a PIL image or a uint8 RGB array."
        )
    rgb = to_rgb(image)
    return rgb, rgb.size


def load_image(image: ImageInput) -> Image.Image:
    """Any image input as RGB in full size. Raises as `decode_image`."""
    return decode_image(image)[0]


def input_name(image: ImageInput) -> str:
    """The file name in `Prediction.path`; empty for an image in memory."""
    return "" if isinstance(image, (Image.Image, np.ndarray)) else str(image)


def input_error(image: ImageInput) -> str:
    """Why an image cannot be read, judged by its header or location alone; empty if nothing is known against it."""
    if isinstance(image, ImageLocation):
        return image.error or ("is empty (0 bytes)" if image.size == 0 else "")
    return header_error(Path(image)) if isinstance(image, (str, Path)) else ""


def fingerprint(image: Path | ImageRef) -> str:
    """A text that changes with the image's pixels: its file with size and modification time, and its byte range.

    For a remote file, the size alone. Raises an ImageError if the file is missing.
    """
    part = f"\0{image.start}+{image.size}" if isinstance(image, ImageLocation) and image.member else ""
    file = image.file if isinstance(image, ImageLocation) else str(image)
    if is_url(file):
        return f"{file}\0{file_size(file)}{part}"
    try:
        status = Path(file).stat()
    except OSError as error:
        raise ImageError(f"{file} cannot be read: {error.strerror or error}.", "Check the path.") from error
    return f"{Path(file).resolve()}\0{status.st_size}\0{status.st_mtime_ns}{part}"
