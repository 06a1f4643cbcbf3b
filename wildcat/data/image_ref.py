"""Images that are not in files of their own: parts of tar shards, cells of tables, objects of stores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from wildcat.data.images import Reduced, Spare, as_stored, decode_reduced, fault_of, read_image, read_reduced
from wildcat.data.remote import is_address, read_bytes, size_of
from wildcat.errors import DataError, ImageError

MAX_BYTES = 1 << 28
"""Of one image's file: 256 MB. What is larger is refused unread."""


class ImageRef(ABC):
    """An image that is not in a file of its own: a member of an archive, a cell of a table, an object of a store."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What `Prediction.image` and errors call it."""

    @abstractmethod
    def read(self) -> Image.Image:
        """The image in RGB, as `wildcat.data.images.read_image` gives it; called in a thread.

        Raises:
            ImageError: it cannot be read.
        """

    def read_reduced(self, spare: Spare) -> Reduced:  # whoever can do with less overrides this
        """As `wildcat.data.images.read_reduced`; an image that came smaller is `read` again to be drawn.

        Raises:
            ImageError: it cannot be read.
        """
        image = self.read()
        return image, image.size

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Listed(ImageRef):
    """An image of a source, not read yet.

    Attributes:
        place: the file it lies in.
        inside: what names it there: a member of a shard, or the number of a table's row; empty: the file itself.
        start, size: where its bytes lie in the file; size -1: they are found by `inside`, or are the whole file.
        fault: why it will not be read; empty: it will.
    """

    place: str
    inside: str = ""
    start: int = 0
    size: int = -1
    fault: str = ""

    @property
    def name(self) -> str:
        """`place`, or `place#inside`."""
        return f"{self.place}#{self.inside}" if self.inside else self.place

    def read(self) -> Image.Image:
        """The image in RGB.

        Raises:
            ImageError: it is refused, gone or broken.
            DataError: what holds it is gone as well.
        """
        return self.read_reduced(as_stored)[0]

    def read_reduced(self, spare: Spare) -> Reduced:
        """As `read`, perhaps smaller.

        Raises:
            ImageError, DataError: as `read`.
        """
        if self.fault:
            raise ImageError(f"{self.name} {self.fault}.", "It is left out; give the image itself instead.")
        if not self.inside and not is_address(self.place):
            try:
                return read_reduced(self.place, spare)
            except ImageError:
                folder = Path(self.place).parent
                if not folder.is_dir():
                    raise DataError(f"{folder} has vanished.", "Bring it back, then go on with --resume.") from None
                raise
        size = size_of(self.place) if self.size < 0 else self.size
        check_size(self.name, size)
        return decode_reduced(read_bytes(self.place, self.start, size), self.name, spare)


def check_size(name: str, size: int) -> None:
    """Refuse the bytes of an image before they are read.

    Raises:
        ImageError: more than `MAX_BYTES`.
    """
    if size > MAX_BYTES:
        raise ImageError(f"{name} has {size:,} bytes; at most {MAX_BYTES:,} are read.", "Save it smaller.")


def read_ref(image: Path | ImageRef) -> Image.Image:
    """The image in RGB, see `read_image`.

    Raises:
        ImageError: it cannot be read.
    """
    return image.read() if isinstance(image, ImageRef) else read_image(image)


def read_ref_reduced(image: Path | ImageRef, spare: Spare) -> Reduced:
    """The image in RGB, perhaps smaller, see `wildcat.data.images.read_reduced`.

    Raises:
        ImageError: it cannot be read.
    """
    return image.read_reduced(spare) if isinstance(image, ImageRef) else read_reduced(image, spare)


def image_fault(image: Path | ImageRef) -> str:
    """Why it is certainly no image, see `fault_of`; of a stored one only what its listing says is known."""
    if isinstance(image, Listed):
        return image.fault or ("0 bytes" if image.size == 0 else "")
    return fault_of(image) if isinstance(image, Path) else ""


def identity(image: Path | ImageRef) -> str:
    """What an image's pixels follow from: its file, the size and the time of change of it, and the place inside.

    Of an object in a store the time is not asked for.

    Raises:
        ImageError: its file is gone.
    """
    inside = f"\0{image.start}+{image.size}" if isinstance(image, Listed) and image.inside else ""
    place = image.place if isinstance(image, Listed) else str(image)
    if is_address(place):
        return f"{place}\0{size_of(place)}{inside}"
    try:
        status = Path(place).stat()
    except OSError as error:
        raise ImageError(
            f"{place} cannot be read: {error.strerror or error}.", "Check the spelling and the folder."
        ) from error
    return f"{Path(place).resolve()}\0{status.st_size}\0{status.st_mtime_ns}{inside}"
