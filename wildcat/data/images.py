"""Images from files: RGB as a person sees them, and masks of class indices."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, JpegImagePlugin, UnidentifiedImageError

from wildcat.errors import DataError, ImageError

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm"},
)
"""Suffixes (lower case) that make a file an image when a folder is listed; `read_image` itself goes by content."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what makes the image upright (EXIF 2.3, tag 0x0112)."""

_SIDEWAYS = (5, 6, 7, 8)
"""EXIF orientations that exchange width and height."""

_JPEG_SCALES = (8, 4, 2)
"""How many times smaller a JPEG decoder makes images, sides rounded up."""

_SIXTEEN_BIT_FORMATS = ("PNG", "PPM")
"""Formats whose mode "I" images are 16-bit by definition; elsewhere "I" is 32-bit without a defined white."""

Spare = Callable[[tuple[int, int]], float]
"""Told an image's (width, height), upright: how many times smaller it may come; 1 or less: not at all."""

Reduced = tuple[Image.Image, tuple[int, int]]
"""An image in RGB, upright, perhaps smaller than it is stored; and the (width, height) it is stored with, upright."""


def read_image(path: str | Path) -> Image.Image:
    """The image in file `path` in RGB, upright and on white, as a person sees it.

    See `to_rgb` for what is done to each colour mode. Of an animation the first frame is read. Embedded colour
    profiles are not applied.

    Raises:
        ImageError: the file is missing, a folder, empty, not an image, broken, truncated, too large to be safe
            (above twice `PIL.Image.MAX_IMAGE_PIXELS`), or its values have no defined range (float, 32-bit).
    """
    return read_reduced(path, as_stored)[0]


def read_reduced(path: str | Path, spare: Spare) -> Reduced:
    """As `read_image`, but a JPEG comes at 1/2, 1/4 or 1/8 of its size where `spare` allows it.

    Its decoder makes the small image of the coarse frequencies alone, without the large one, in a fraction of the
    time and memory (Pillow's `draft`, libjpeg's scaled DCT). Other formats come in full.

    Raises:
        ImageError: as `read_image`.
    """
    path = Path(path)
    with _opened(path) as image:
        return _decoded(image, str(path), spare)


def reduced_size(path: str | Path, spare: Spare) -> tuple[tuple[int, int], tuple[int, int]]:
    """(width, height) of what `read_reduced` gives, and of the image as it is stored, from the file's header alone.

    Raises:
        ImageError: the file is missing, empty or not an image; whether it is whole only reading it would tell.
    """
    path = Path(path)
    with _opened(path) as image:
        own = _reduce(image, spare)
        size = _upright_size(image)
        return size, own or size


def decode_image(content: bytes, name: str) -> Image.Image:
    """The image in `content`, the bytes of a file, as `read_image` gives it.

    Args:
        name: what errors call it.

    Raises:
        ImageError: as `read_image`.
    """
    return decode_reduced(content, name, as_stored)[0]


def decode_reduced(content: bytes, name: str, spare: Spare) -> Reduced:
    """The image in `content`, the bytes of a file, as `read_reduced` gives it; `name` is what errors call it.

    Raises:
        ImageError: as `read_image`.
    """
    if not content:
        raise ImageError(f"{name} is empty (0 bytes).", "Copy it again, or take it out of the data set.")
    with _pillow_errors(name, content[:16]), Image.open(io.BytesIO(content)) as image:
        return _decoded(image, name, spare)


def as_stored(_size: tuple[int, int]) -> float:
    """The `Spare` of who needs every pixel."""
    return 1.0


def fault_of(path: Path) -> str:
    """Why a file is certainly no image, judged by its first bytes; empty where it may be one.

    Cheap enough to ask of a whole data set before training; only reading it to the end would prove an image whole.
    """
    try:
        if path.stat().st_size == 0:
            return "0 bytes"
        with _pillow_errors(str(path)), Image.open(path) as image:
            return "" if min(image.size) > 0 else "no pixels"
    except ImageError as error:
        return error.message.removeprefix(str(path)).strip(" :.")
    except OSError as error:
        return error.strerror or str(error)


def to_rgb(image: Image.Image) -> Image.Image:
    """An already opened image in RGB, as `read_image` gives it; the original is left as it is.

    EXIF orientation is applied (and dropped, so that a second call changes nothing); transparency is composited on
    white; 16-bit grey is divided by 257, whatever its values are; CMYK follows the Adobe convention.

    Raises:
        ImageError: float or 32-bit values without a defined range, no pixels, or broken data.

    >>> to_rgb(Image.new("LA", (2, 1), (0, 0))).getpixel((0, 0))
    (255, 255, 255)
    """
    with _pillow_errors("this image"):
        return _to_rgb(image, "this image")


def read_mask(path: str | Path) -> NDArray[np.uint8]:
    """(H, W) class indices of an indexed mask: 0 background, i + 1 = classes[i], 255 ignored.

    Palette images (VOC `SegmentationClass/*.png`) give their indices, grey ones their values.

    Raises:
        ImageError: as `read_image`, or the image is not an indexed one, or holds a value above 255.
    """
    path = Path(path)
    with _opened(path) as image:
        image.load()
        if image.mode not in ("P", "L", "1") and not _is_sixteen_bit(image):
            raise ImageError(
                f"{path} has colour mode {image.mode}: a mask holds one class index a pixel.",
                "Save the mask as a palette or grey PNG without transparency.",
            )
        indices = np.asarray(image)
    if indices.max() > 255:
        raise ImageError(
            f"{path} holds the value {indices.max()}: the highest mask value is 255 (ignored).",
            "Number the classes from 1 and write 255 where a pixel is to be ignored.",
        )
    return indices.astype(np.uint8)


def list_images(folder: str | Path, recursive: bool = True) -> list[Path]:
    """The image files of `folder`, sorted by path; hidden files and folders are skipped, links are followed.

    Raises:
        DataError: `folder` is not a folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder.", "Give a folder that holds images.")
    return [Path(name) for name in sorted(_walk(str(folder), recursive, frozenset()))]


def is_there(path: Path, folder: bool = False) -> bool:
    """Whether a file or a folder is there; a name that none can have is not."""
    try:
        return path.is_dir() if folder else path.is_file()
    except OSError:  # too long
        return False


def holds_images(folder: Path) -> bool:
    """Whether an image lies in `folder` at any depth."""
    return next(_walk(str(folder), True, frozenset()), None) is not None


def _walk(folder: str, recursive: bool, above: frozenset[str]) -> Iterator[str]:
    real = os.path.realpath(folder)
    if real in above:  # a link to a folder above itself
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                if recursive:
                    yield from _walk(entry.path, recursive, above | {real})
            elif Path(entry.name).suffix.lower() in IMAGE_SUFFIXES:
                yield entry.path


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The first frame of `path`, not decoded yet; every failure is an ImageError that names it."""
    if path.is_dir():
        raise ImageError(f"{path} is a folder, not an image.", "Name an image inside it.")
    if not path.exists():
        raise ImageError(f"{path} does not exist.", "Check the spelling and the folder it is relative to.")
    if path.is_file() and path.stat().st_size == 0:
        raise ImageError(f"{path} is empty (0 bytes).", "Copy it again, or take it out of the data set.")
    with _pillow_errors(str(path)), Image.open(path) as image:
        yield image


def _decoded(image: Image.Image, what: str, spare: Spare) -> Reduced:
    """An opened image in RGB, as much smaller as `spare` allows and its decoder offers; and its own size."""
    own = _reduce(image, spare)
    image.load()
    rgb = _to_rgb(image, what)
    return rgb, own or rgb.size


def _reduce(image: Image.Image, spare: Spare) -> tuple[int, int] | None:
    """Have an opened image decoded smaller, where `spare` and its format allow it: its own size, None where not."""
    if not isinstance(image, JpegImagePlugin.JpegImageFile) or min(image.size) < 1:
        return None
    own = _upright_size(image)
    allowed = spare(own)
    scale = next((scale for scale in _JPEG_SCALES if scale <= allowed), None)
    if scale is None:
        return None
    image.draft(None, (image.width // scale, image.height // scale))
    return own


def _upright_size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    return (height, width) if _orientation(image) in _SIDEWAYS else (width, height)


@contextmanager
def _pillow_errors(what: str, beginning: bytes = b"") -> Iterator[None]:
    """Keep Pillow's warnings from the user, and turn whatever its decoders raise into an ImageError.

    Args:
        what: the image's name; where it is a path and the content of no known kind, the file's first bytes are told.
        beginning: the first bytes of an image that is no file.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        try:
            yield
        except (ImageError, MemoryError):
            raise
        except Image.DecompressionBombError as error:
            raise ImageError(
                f"{what} is refused as a decompression bomb: {str(error).split(', could')[0]}.",
                "Cut it into tiles or shrink it; if you trust it, raise PIL.Image.MAX_IMAGE_PIXELS.",
            ) from error
        except UnidentifiedImageError as error:
            raise ImageError(
                f"{what} is not an image: its content is of no known kind or its header is cut"
                f"{_beginning(what, beginning)}.",
                "Convert it to JPEG or PNG, or take it out of the data set.",
            ) from error
        except PermissionError as error:
            raise ImageError(f"{what} may not be read (permission denied).", "Change its permissions.") from error
        except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, zlib.error, IndexError, ...
            reason = "truncated" if "truncated" in str(error).lower() else "broken"
            raise ImageError(
                f"{what} is {reason}: {str(error) or type(error).__name__}.",
                "Copy it again from its source, or take it out of the data set.",
            ) from error


def _beginning(path: str, known: bytes) -> str:
    """What an unknown file begins with, which often tells what it is (an HTML page, a Git LFS pointer)."""
    try:
        if not known:
            with Path(path).open("rb") as file:
                known = file.read(16)
        return f" (it begins with {known!r})"
    except OSError:
        return ""


def _to_rgb(image: Image.Image, what: str) -> Image.Image:
    if 0 in image.size:
        raise ImageError(f"{what} has no pixels ({image.width} x {image.height}).", "Take it out of the data set.")
    orientation = _orientation(image)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        rgb = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    elif _is_sixteen_bit(image):
        values = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        rgb = Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")  # v / 257, rounded
    elif image.mode in ("F", "I"):
        raise ImageError(
            f"{what} holds {'float' if image.mode == 'F' else '32-bit'} values, which have no defined white.",
            "Scale it to 0..255 yourself and save it as an 8-bit or 16-bit PNG.",
        )
    else:
        rgb = image.convert("RGB")
    if orientation in _UPRIGHT:
        rgb = rgb.transpose(_UPRIGHT[orientation])
    rgb.info = {}  # an orientation left here would be applied again
    return rgb


def _is_sixteen_bit(image: Image.Image) -> bool:
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in _SIXTEEN_BIT_FORMATS)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # viewers show an image with broken EXIF as it lies; Pillow raises half a dozen kinds here
        return 1
