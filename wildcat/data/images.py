"""Decode image files to RGB, and read masks of class indices."""

from __future__ import annotations

import io
import itertools
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, JpegImagePlugin, UnidentifiedImageError

from wildcat.data.formats import (
    HEAD_BYTES,
    IMAGE_SUFFIXES,
    TIFF,
    TIFF_BANDS,
    FormatError,
    RangedImageFile,
    load_plugin,
    other_format,
)
from wildcat.data.remote import file_suffix, is_url
from wildcat.errors import ImageError, MissingDecoder

# EXIF orientation (EXIF 2.3, tag 0x0112) -> the operation that turns the image upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_SUBFILE_TYPE = 254  # TIFF tag: what a page is
_BITS = 258  # TIFF tag: bits of each band
_NO_DATA = 42113  # TIFF tag of GDAL: the value of pixels without data, as text
_NO_IMAGE = 0b101  # its bits for a reduced copy and for a transparency mask; the other says that a page is one of many

_JPEG_FACTORS = (8, 4, 2)  # downscale factors of the JPEG decoder (libjpeg's scaled DCT)

# (width, height) of an upright image -> maximum downscale factor when decoding; 1 or less: decode every pixel.
MaxDownscale = Callable[[tuple[int, int]], float]

PILLOW_PIXELS = 178_956_970  # Pillow refuses images of more

IntensityRange = tuple[float, float]  # values of grey images of more than 8 bits that become black and white

# An upright RGB image, perhaps downscaled, and the (width, height) of the stored image, upright.
Decoded = tuple[Image.Image, tuple[int, int]]


def full_size(_size: tuple[int, int]) -> float:
    """The `MaxDownscale` that decodes every pixel."""
    return 1.0


def read_image(path: str | Path) -> Image.Image:
    """The image in file `path` as RGB, upright, transparency on white.

    Raises:
        ImageError: the file is missing, a folder, empty, not an image, broken, truncated, above twice
            `PIL.Image.MAX_IMAGE_PIXELS`, or its values have no defined range (float, 32-bit).
    """
    return decode_file(path)[0]


def decode_file(
    path: str | Path, max_downscale: MaxDownscale = full_size, intensity: IntensityRange | None = None, page: int = 0
) -> Decoded:
    """As `read_image`, but a JPEG is decoded at 1/2, 1/4 or 1/8 of its size where `max_downscale` allows it.

    The decoder then computes the small image from the low frequencies, in a fraction of the time and memory.
    Other formats are decoded in full. Raises as `read_image`.

    Args:
        intensity: see `to_rgb`.
        page: of a TIFF or DICOM file of several, from 1; 0: the first.
    """
    with _open_file(Path(path), page) as image:
        return _decode(image, _page_name(path, page), max_downscale, intensity)


def decode_bytes(
    content: bytes,
    name: str,
    max_downscale: MaxDownscale = full_size,
    intensity: IntensityRange | None = None,
    formats: tuple[str, ...] | None = None,
    page: int = 0,
) -> Decoded:
    """As `decode_file`, from the bytes of an image file; errors call it `name`; `formats`: as Pillow names them."""
    with _open(io.BytesIO(content), shown(name), page, formats) as image:
        return _decode(image, shown(name), max_downscale, intensity)


def page_numbers(path: str) -> list[int]:
    """The pages of a local TIFF file, or frames of a DICOM file, that are images, from 1; [1] for any other file.

    The first page counts, and of the others those that are not marked as thumbnails, overviews or masks. The last may
    be one that cannot be read, so that decoding it raises its error.
    """
    if is_url(path) or file_suffix(path) in IMAGE_SUFFIXES - {".tif", ".tiff"}:
        return [1]
    found, number = [1], 1
    try:
        with _open_file(Path(path)) as image, suppress(EOFError):
            for number in itertools.count(2) if image.format in ("TIFF", "DICOM") else ():
                image.seek(number - 1)
                if not getattr(image, "tag_v2", {}).get(_SUBFILE_TYPE, 0) & _NO_IMAGE:
                    found.append(number)
    except ImageError:
        found += [number] if number > 1 else []
    return found


def header_error(path: Path) -> ImageError | None:
    """Why a file is no image, judged by its header alone; None if the header is sound."""
    try:
        with _open_file(path) as image:
            return None if min(image.size) > 0 else ImageError(f"{shown(path)} has no pixels.", "Remove it.")
    except ImageError as error:
        return error


def highest_grey(path: Path) -> int:
    """The highest value of a 16-bit grey image; 0 for any other file. Raises an ImageError if it is broken."""
    with _open_file(path) as image:
        return int(np.asarray(image).max()) if _is_sixteen_bit(image) and min(image.size) > 0 else 0


def limit_pixels(pixels: int) -> None:
    """Set the most pixels of an image that this process reads, instead of `PILLOW_PIXELS`."""
    Image.MAX_IMAGE_PIXELS = (pixels + 1) // 2  # Pillow raises at twice its limit


def shown(name: object) -> str:
    r"""A file name for a message: control characters escaped, cut in the middle if it is longer than 250 characters.

    >>> shown("a\nb.jpg")
    'a\\nb.jpg'
    """
    text = str(name)
    if not text.isprintable():
        text = "".join(c if c.isprintable() or 0xD800 <= ord(c) < 0xE000 else repr(c)[1:-1] for c in text)
    return text if len(text) <= 250 else f"{text[:120]}...{text[-120:]}"


def to_rgb(image: Image.Image, intensity: IntensityRange | None = None) -> Image.Image:
    """An opened image as RGB, as `read_image` returns it; the original is unchanged.

    Applies and drops the EXIF orientation, so that a second call changes nothing; puts transparency on white;
    divides 16-bit grey by 257; reads CMYK by the Adobe convention.

    Args:
        intensity: (low, high), the values of grey images of 16 bits, 32 bits or floats that become 0 and 255. Images
            of 8 bits do not change.

    Raises:
        ImageError: float or 32-bit values without `intensity`, no pixels, or broken data.

    >>> to_rgb(Image.new("LA", (2, 1), (0, 0))).getpixel((0, 0))
    (255, 255, 255)
    """
    with _pillow_errors("this image"):
        return _to_rgb(image, "this image", intensity)


def read_mask(path: str | Path) -> NDArray[np.uint8]:
    """(H, W) class indices of a mask: 0 background, i + 1 = classes[i], 255 ignored.

    Palette images (VOC `SegmentationClass/*.png`) give their indices, grey ones their values.

    Raises:
        ImageError: as `read_image`, or the image has several channels or a value above 255.
    """
    path = Path(path)
    with _open_file(path) as image:
        image.load()
        if image.mode not in ("P", "L", "1") and not _is_sixteen_bit(image):
            raise ImageError(
                f"{path} has colour mode {image.mode}: a mask holds one class index per pixel.",
                "Save the mask as a palette or grey PNG without transparency.",
            )
        indices = np.asarray(image)
    if indices.max() > 255:
        raise ImageError(
            f"{path} holds the value {indices.max()}: the highest mask value is 255 (ignored).",
            "Number the classes from 1 and write 255 for pixels to ignore.",
        )
    return indices.astype(np.uint8)


def _page_name(path: str | Path, page: int) -> str:
    return f"{shown(path)}#page={page}" if page else shown(path)


@contextmanager
def _open_file(path: Path, page: int = 0) -> Iterator[Image.Image]:
    name = _page_name(path, page)
    try:
        file = path.open("rb")
    except IsADirectoryError as error:
        raise ImageError(f"{name} is a folder, not an image.", "Name an image inside it.") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        if problem := not_a_path(str(path)):
            raise ImageError(*problem) from error
        if isinstance(error, (FileNotFoundError, NotADirectoryError, ValueError)):
            hint = "Check the spelling and the folder it is relative to."
            raise ImageError(f"{name} does not exist.", hint) from error
        raise ImageError(f"{name} cannot be read: {error.strerror or error}.", "Check its permissions.") from error
    with file, _open(file, name, page) as image:
        yield image


def not_a_path(text: str) -> tuple[str, str] | None:
    """Message and hint for a text that is given as the path of an image and holds something else; None: a path."""
    start = shown(text[:60]) + ("..." if len(text) > 60 else "")
    if text.startswith("data:"):
        return f"{start} is a data URL, not the path of an image.", "Decode it: base64.b64decode(text.split(',')[1])."
    if url := re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/", text):
        return (
            f"{shown(text)} is a URL; this needs a file.",
            f"Download it first; wildcat predict --shard-rows N reads {url[1]}:// addresses.",
        )
    longest = max(map(len, text.encode(errors="replace").split(b"/")))
    if len(text) > 200 and re.fullmatch(r"[A-Za-z0-9+/=_\s-]+", text):
        return (
            f"{start} ({len(text):,} characters) looks like the base64 content of an image, not its path.",
            "Decode it with base64.b64decode and write it to a file, or open it with PIL.Image.open(io.BytesIO(...)).",
        )
    if longest > 255 or len(text) > 4096:
        return f"{start} ({len(text):,} characters) is too long for the path of a file.", "Give the path of an image."
    return None


@contextmanager
def _open(file: IO[bytes], name: str, page: int = 0, formats: tuple[str, ...] | None = None) -> Iterator[Image.Image]:
    """A page of an image file, not decoded yet; any failure in the block is an ImageError that names it."""
    with _pillow_errors(name):
        head = file.read(HEAD_BYTES)
        file.seek(0)
        if not head:
            raise ImageError(f"{name} is empty (0 bytes).", "Copy it again, or remove it from the data set.")
        other = other_format(head, name)
        if other is not None and not load_plugin(other):
            if other.extra:
                raise MissingDecoder(name, other.name, other.package, other.extra)
            raise ImageError(f"{name} is {other.name}, which cannot be read.", other.hint)
        try:
            image = _open_tiff(file, name) if head[:4] in TIFF and not formats else Image.open(file, formats=formats)
        except UnidentifiedImageError as error:
            if other is not None:
                raise ImageError(f"{name} is broken: it begins as {other.name}.", "Copy it again.") from error
            raise ImageError(
                f"{name} is not an image: its format is unknown or its header is cut (it begins with {head[:16]!r}).",
                "Convert it to JPEG or PNG, or remove it from the data set.",
            ) from error
        with image:
            if page > 1:
                pages = getattr(image, "n_frames", 1)
                if page > pages:
                    raise ImageError(f"{name} does not exist: the file has {pages} pages.", "Name one of them.")
                image.seek(page - 1)
            yield image


def _open_tiff(file: IO[bytes], name: str, bands: bool = False) -> Image.Image:
    """A TIFF, with Pillow where it reads the file and `bands` does not ask for all bits of its colours."""
    with suppress(UnidentifiedImageError):
        if not bands:
            return Image.open(file)
    if not load_plugin(TIFF_BANDS):
        raise MissingDecoder(name, TIFF_BANDS.name, TIFF_BANDS.package, TIFF_BANDS.extra)
    file.seek(0)
    return Image.open(file, formats=["TIFF-BANDS"])


@contextmanager
def _pillow_errors(name: str) -> Iterator[None]:
    """Silence Pillow's warnings and turn what its decoders raise into an ImageError about `name`."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL|pydicom")
        try:
            yield
        except (ImageError, MemoryError):
            raise
        except FormatError as error:
            raise ImageError(f"{name} {error}.", error.hint) from error
        except Image.DecompressionBombError as error:
            raise ImageError(
                f"{name} is refused as a decompression bomb: {str(error).split(', could')[0]}.",
                "Cut it into tiles or shrink it; if you trust it, add "
                f"--max-pixels {next(iter(re.findall(r'[0-9]+', str(error))), 'N')} (in Python, raise "
                "PIL.Image.MAX_IMAGE_PIXELS).",
            ) from error
        except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, zlib.error, IndexError, ...
            problem = "truncated" if "truncated" in str(error).lower() else "broken"
            raise ImageError(
                f"{name} is {problem}: {str(error) or type(error).__name__}.",
                "Copy it again from its source, or remove it from the data set.",
            ) from error


def _decode(image: Image.Image, name: str, max_downscale: MaxDownscale, intensity: IntensityRange | None) -> Decoded:
    size = None
    if isinstance(image, JpegImagePlugin.JpegImageFile) and min(image.size) > 0:
        width, height = image.size
        size = (height, width) if orientation_of(image) in (5, 6, 7, 8) else (width, height)
        allowed = max_downscale(size)
        factor = next((factor for factor in _JPEG_FACTORS if factor <= allowed), 1)
        image.draft(None, (width // factor, height // factor))
    # The other reader knows neither pages nor the orientation.
    plain = image.format == "TIFF" and image.tell() == 0 and orientation_of(image) == 1
    if intensity and _is_sixteen_bit_colour(image) and plain:
        image = _open_tiff(cast(Any, image).fp, name, bands=True)
    rgb = _to_rgb(image, name, intensity)
    return rgb, size or rgb.size


def _to_rgb(image: Image.Image, name: str, intensity: IntensityRange | None) -> Image.Image:
    if intensity and _is_sixteen_bit_colour(image):
        raise ImageError(
            f"{name} holds 16-bit colour, of which the upper 8 bits are read; --intensity-range is for grey images.",
            "Scale it to 0..255 yourself and save it as an 8-bit PNG.",
        )
    if 0 in image.size:
        raise ImageError(f"{name} has no pixels ({image.width} x {image.height}).", "Remove it from the data set.")
    if not isinstance(image, RangedImageFile):
        image.load()  # first: Pillow turns a TIFF upright in it
    orientation = orientation_of(image)
    if isinstance(image, RangedImageFile):
        rgb = image.displayed(intensity).convert("RGB")
    elif image.has_transparency_data and not _is_sixteen_bit(image):
        white = Image.new("RGBA", image.size, "white")
        rgb = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    elif intensity and (_is_sixteen_bit(image) or image.mode in ("F", "I")):
        low, high = intensity
        values = np.nan_to_num(np.asarray(image, dtype=np.float64), nan=low, posinf=high, neginf=low)
        scaled = ((values - low) * (255 / (high - low))).clip(0, 255)
        rgb = _from_grey(scaled.round(), image)
    elif _is_sixteen_bit(image):
        values = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        rgb = _from_grey((values + 128) // 257, image)  # v / 257, rounded
    elif image.mode in ("F", "I"):
        raise ImageError(
            f"{name} holds {'float' if image.mode == 'F' else '32-bit'} values, which have no defined white.",
            "Train with their range, --intensity-range LOW,HIGH, or scale it to 0..255 and save it as an 8-bit PNG.",
        )
    else:
        rgb = image.convert("RGB")
    if (empty := _without_data(image)) is not None:
        rgb.paste((0, 0, 0), mask=Image.fromarray(empty))
    if orientation in _UPRIGHT:
        rgb = rgb.transpose(_UPRIGHT[orientation])
    rgb.info = {}  # an orientation left here would be applied again
    return rgb


def _without_data(image: Image.Image) -> NDArray[np.bool_] | None:
    """(H, W): the pixels of a GeoTIFF that have its value for no data, in all bands; None if it has no such value."""
    text = getattr(image, "tag_v2", {}).get(_NO_DATA, "")
    try:
        value = float(str(text).strip(" \0"))
    except ValueError:
        return None
    if image.mode not in ("L", "RGB", "F", "I") and not _is_sixteen_bit(image):
        return None
    if image.mode == "RGB" and 16 in np.atleast_1d(getattr(image, "tag_v2", {}).get(_BITS, 8)):
        value = value // 256  # Pillow reads the upper 8 bits
    values = np.asarray(image)
    equal: NDArray[np.bool_] = values == (np.float32(value) if values.dtype == np.float32 else value)
    return np.asarray(equal.all(axis=2) if equal.ndim == 3 else equal)


def _from_grey(values: NDArray[Any], image: Image.Image) -> Image.Image:
    """Values in 0..255 as RGB; the value of the image that is transparent becomes white."""
    grey = values.astype(np.uint8)
    if (transparent := image.info.get("transparency")) is not None:
        grey[np.asarray(image) == transparent] = 255
    return Image.fromarray(grey).convert("RGB")


def _is_sixteen_bit_colour(image: Image.Image) -> bool:
    """Whether an image, not decoded yet, has 16-bit colours, of which Pillow reads the upper 8 bits."""
    return image.mode.startswith("RGB") and any(";16" in str(tile) for tile in getattr(image, "tile", ()))


def _is_sixteen_bit(image: Image.Image) -> bool:
    # Mode "I" is 16-bit by definition in PNG and PPM; in other formats it is 32-bit without a defined white.
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def orientation_of(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow raises half a dozen types here; viewers show an image with broken EXIF as stored
        return 1
