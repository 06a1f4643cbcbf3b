"""Image inputs: paths, PIL images, arrays, and references to images inside other files or remote stores."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from wildcat.data.images import (
    Decoded,
    IntensityRange,
    MaxDownscale,
    decode_bytes,
    decode_file,
    full_size,
    header_error,
    page_numbers,
    shown,
    to_rgb,
)
from wildcat.data.remote import file_size, is_url, read_range
from wildcat.errors import ConfigError, DataError, ImageError

READERS = 4  # threads that read images ahead
MAX_BYTES = 1 << 28  # an image file larger than 256 MB is refused without reading it


class ImageRef(ABC):
    """An image that is not a file of its own: a member of a tar shard, a cell of a table, an object in a store."""

    holds_pixels: ClassVar[bool] = False  # whether `decode` need not read a file: a prediction then keeps the reference

    @property
    @abstractmethod
    def name(self) -> str:
        """The name in `Prediction.path` and in errors."""

    @abstractmethod
    def decode(self, max_downscale: MaxDownscale = full_size, intensity: IntensityRange | None = None) -> Decoded:
        """The image as `wildcat.data.images.decode_bytes` returns it; called in threads.

        Raises:
            ImageError: it cannot be read.
        """

    def __str__(self) -> str:
        return self.name


ImageInput = str | Path | Image.Image | NDArray[np.uint8] | ImageRef
Part = tuple[float, float, float, float]
"""A part of an image: left, top, right, bottom as fractions of its width and height."""
FileInput = IO[bytes] | bytes
"""An open binary file, or its content; `read_open_file` turns them into an `ImageRef`."""
OnError = Callable[[ImageInput, ImageError], object]


@dataclass(frozen=True, slots=True)
class ImageLocation(ImageRef):
    """The location of an image: small and picklable, so that any process can read the image.

    Attributes:
        file: the path or URL that holds it.
        member: its name in that file: a member of a shard, or the row number of a table; empty: the whole file.
        start, size: its byte range in the file; size -1: the whole file, or a table row.
        error: why it must not be read; empty: it may be.
        page: its number in a TIFF or DICOM file of several, from 1; 0: the first.
    """

    file: str
    member: str = ""
    start: int = 0
    size: int = -1
    error: str = ""
    page: int = 0

    @property
    def name(self) -> str:
        """`file`, `file#member` or `file#page=2`."""
        member = self.member or (f"page={self.page}" if self.page else "")
        return f"{self.file}#{member}" if member else self.file

    def decode(self, max_downscale: MaxDownscale = full_size, intensity: IntensityRange | None = None) -> Decoded:
        """As `ImageRef.decode`; a DataError if its folder or store is gone."""
        if self.error:
            raise ImageError(f"{self.name} {self.error}.", "It is skipped; give the image itself instead.")
        if not self.member and not is_url(self.file):
            try:
                return decode_file(self.file, max_downscale, intensity, self.page)
            except ImageError:
                folder = Path(self.file).parent
                if not folder.is_dir():
                    raise DataError(f"{folder} has vanished.", "Restore it, then continue with --resume.") from None
                raise
        size = file_size(self.file) if self.size < 0 else self.size
        check_size(self.name, size or 0)
        content = read_range(self.file, self.start, MAX_BYTES + 1 if size is None else size)
        check_size(self.name, len(content))
        return decode_bytes(content, self.name, max_downscale, intensity, page=self.page)


def list_pages(path: str | Path) -> list[ImageLocation]:
    """The pages of a TIFF file, or the frames of a DICOM file, as images; one image for any other file.

    Thumbnails, overviews and masks of a TIFF are left out. Each is an image for `Predictor.predict`.
    """
    pages = page_numbers(str(path))
    return [ImageLocation(str(path), page=page if len(pages) > 1 else 0) for page in pages]


def named_page(text: str) -> ImageLocation | None:
    """The page that `scan.tif#page=2` names; None if the text does not name a page of a local file."""
    file, _, number = text.rpartition("#page=")
    if not file or not number.isdecimal() or int(number) < 1 or Path(text).exists() or not Path(file).is_file():
        return None
    return ImageLocation(file, page=int(number))


@dataclass(frozen=True, slots=True)
class EncodedImage(ImageRef):
    """An image file whose bytes are in memory, such as a cell of a table; None: `fault` says why there are none."""

    location: ImageLocation
    content: bytes | None
    fault: str = ""

    @property
    def name(self) -> str:
        return self.location.name

    def decode(self, max_downscale: MaxDownscale = full_size, intensity: IntensityRange | None = None) -> Decoded:
        if self.content is None:
            raise ImageError(f"{self.name} {self.fault}.", "Write the bytes of its image into the table.")
        check_size(self.name, len(self.content))
        return decode_bytes(self.content, self.name or "an image in memory", max_downscale, intensity)


@dataclass(frozen=True, slots=True)
class ImageCrop(ImageRef):
    """A part of another image."""

    image: Path | ImageRef
    part: Part

    @property
    def name(self) -> str:
        return str(self.image)

    def decode(self, max_downscale: MaxDownscale = full_size, intensity: IntensityRange | None = None) -> Decoded:
        left, top, right, bottom = self.part

        def of_crop(size: tuple[int, int]) -> float:
            return max_downscale((max(1, round((right - left) * size[0])), max(1, round((bottom - top) * size[1]))))

        crop = cropped(decode_image(self.image, of_crop, intensity)[0], self.part)
        return crop, crop.size


def cropped(image: Image.Image, part: Part) -> Image.Image:
    """The part of an image, to the nearest pixels and at least one.

    >>> cropped(Image.new("RGB", (40, 20)), (0.25, 0.0, 0.75, 0.5)).size
    (20, 10)
    """
    left, top, right, bottom = part
    x, y = min(round(left * image.width), image.width - 1), min(round(top * image.height), image.height - 1)
    return image.crop((x, y, max(x + 1, round(right * image.width)), max(y + 1, round(bottom * image.height))))


@dataclass(frozen=True, eq=False)
class LoadedImage:
    """An image that has been read and resized for the networks.

    Attributes:
        name: its path, or "".
        size: (width, height) of the original image.
        source: the original image, or its location if it can be read again: predictions then hold no pixels.
        inputs: for each member (3, S, S) uint8; empty for an image that will be cut into tiles.
        pixels: the image to cut into tiles, or None.
    """

    name: str
    size: tuple[int, int]
    source: Image.Image | Path | ImageRef
    inputs: Sequence[Tensor] = ()
    pixels: Image.Image | None = None


def check_is_image(image: object, where: str = "") -> None:
    """Refuse an object that can be no image, judged by its type alone; `where` follows its type in the error.

    Raises:
        ConfigError: names the type, and what to give instead.
    """
    if isinstance(image, io.TextIOBase):
        raise ConfigError(
            f"a file opened as text{where} is not an image.", "Open it with mode 'rb', or give its lines as a list."
        )
    kind = type(image).__name__
    if not isinstance(image, (str, os.PathLike, bytes, Image.Image, np.ndarray, ImageRef)) and not hasattr(
        image, "read"
    ):
        raise ConfigError(
            f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}{where} is not an image.",
            "Give a path, an open binary file, a PIL image or a uint8 RGB array; or a list or an iterator of them.",
        )


def read_open_file(image: ImageInput | FileInput) -> ImageInput:
    """An open binary file, from its beginning, or its content, as an `ImageRef`; other images as they are.

    Raises:
        ImageError: the file cannot be read.
        ConfigError: not an image.
    """
    check_is_image(image)
    if isinstance(image, os.PathLike):
        return Path(image)
    if isinstance(image, str):
        return named_page(image) or image
    if isinstance(image, (Image.Image, np.ndarray, ImageRef)):
        return image
    name, content = getattr(image, "name", ""), image
    name = name if isinstance(name, str) else ""  # of a file without one it is None, or its number
    if not isinstance(image, bytes):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # a stream is read from where it is
            image.seek(0)
        try:
            content = image.read(MAX_BYTES + 1)
        except (OSError, ValueError) as error:  # ValueError: it is closed
            raise ImageError(f"the file {name or 'given as image'} cannot be read: {error}.") from error
    if not isinstance(content, bytes):
        raise ConfigError(f"a {type(image).__name__} whose read() gives {type(content).__name__} is not an image.")
    return EncodedImage(ImageLocation(name), content)


def check_size(name: str, size: int) -> None:
    """Refuse an image file of more than `MAX_BYTES` bytes."""
    if size > MAX_BYTES:
        raise ImageError(f"{name} has {size:,} bytes; the limit is {MAX_BYTES:,} bytes.", "Save a smaller image.")


def decode_image(
    image: ImageInput, max_downscale: MaxDownscale = full_size, intensity: IntensityRange | None = None
) -> Decoded:
    """Any image input as RGB; a file or reference may be downscaled, see `wildcat.data.images.decode_file`.

    Args:
        intensity: see `wildcat.data.images.to_rgb`.

    Raises:
        ImageError: it cannot be read.
        ConfigError: an array that is not uint8 of shape (H, W, 3) or (H, W).
    """
    if isinstance(image, (str, Path)):
        return decode_file(image, max_downscale, intensity)
    if isinstance(image, ImageRef):
        return image.decode(max_downscale, intensity)
    if isinstance(image, np.ndarray):
        fits = image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)
        if image.dtype != np.uint8 or not fits or image.size == 0:
            raise ConfigError(
                f"an array of shape {image.shape} and type {image.dtype} is not an image.",
                "Give uint8, (height, width, 3) RGB or (height, width) grey.",
            )
        image = Image.fromarray(image)
    rgb = to_rgb(image, intensity)
    return rgb, rgb.size


def read_ahead(
    images: Iterable[ImageInput | FileInput],
    prepare: Callable[[ImageInput], LoadedImage],
    batch_size: int,
    on_error: OnError | None,
) -> Iterator[list[LoadedImage]]:
    """Batches of prepared images in order, without unreadable ones; threads prepare at most two batches ahead.

    Args:
        on_error: called with an image that cannot be read and the reason; without it the error is raised.
    """
    source = iter(images)
    with ThreadPoolExecutor(READERS) as pool:
        pending: list[tuple[ImageInput, Future[LoadedImage]]] = []
        while True:
            for image in map(read_open_file, itertools.islice(source, 2 * batch_size - len(pending))):
                pending.append((image, pool.submit(prepare, image)))
            if not pending:
                return
            batch, pending = pending[:batch_size], pending[batch_size:]
            loaded: list[LoadedImage] = []
            for image, future in batch:
                try:
                    loaded.append(future.result())
                except ImageError as error:
                    if on_error is None:
                        raise
                    on_error(image, error)
            if loaded:
                yield loaded


def load_image(image: ImageInput | FileInput, intensity: IntensityRange | None = None) -> Image.Image:
    """Any image input as RGB in full size. Arguments and errors as for `decode_image` and `read_open_file`."""
    return decode_image(read_open_file(image), intensity=intensity)[0]


def input_name(image: ImageInput) -> str:
    """The file name in `Prediction.path`; empty for an image in memory."""
    return "" if isinstance(image, (Image.Image, np.ndarray)) else str(image)


def input_error(image: ImageInput) -> ImageError | None:
    """Why an image cannot be read, judged by its header or location alone; None if nothing is known against it."""
    if isinstance(image, ImageLocation):
        reason = image.error or ("is empty (0 bytes)" if image.size == 0 else "")
        return ImageError(f"{shown(image.name)} {reason}.", "Give the image itself instead.") if reason else None
    return header_error(Path(image)) if isinstance(image, (str, Path)) else None


def fingerprint(image: Path | ImageRef) -> str:
    """A text that changes with the image's pixels: its file with size and modification time, and its byte range.

    For a remote file, the size alone. Raises an ImageError if the file is missing.
    """
    if isinstance(image, ImageCrop):
        return f"{fingerprint(image.image)}\0{image.part}"
    part = f"\0{image.start}+{image.size}" if isinstance(image, ImageLocation) and image.member else ""
    part += f"\0page {image.page}" if isinstance(image, ImageLocation) and image.page else ""
    file = image.file if isinstance(image, ImageLocation) else str(image)
    if is_url(file):
        return f"{file}\0{file_size(file)}{part}"
    try:
        status = Path(file).stat()
    except OSError as error:
        raise ImageError(f"{file} cannot be read: {error.strerror or error}.", "Check the path.") from error
    return f"{Path(file).resolve()}\0{status.st_size}\0{status.st_mtime_ns}{part}"
