"""Uploaded images: from a multipart form to a checked and decoded image."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

from PIL import Image
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from wildcat.data.image_ref import ImageRef
from wildcat.data.images import Decoded, IntensityRange, MaxDownscale, decode_bytes, full_size
from wildcat.errors import ImageError, WildcatError

FIELD = "image"  # name of the file in the form
UNEXPECTED = "an unexpected error occurred; the log of the service has the details."
CURL_HINT = f"Example: curl -F {FIELD}=@dog.jpg"

# Pillow's decoders that uploads may reach; the others are rarely used, or start programs (EPS).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")


class RequestError(WildcatError):
    """A request fails with this HTTP status; `retry_after` is in seconds."""

    def __init__(self, status: int, message: str, hint: str = "", retry_after: int | None = None) -> None:
        super().__init__(message, hint)
        self.status, self.retry_after = status, retry_after

    def __reduce__(self) -> tuple[Any, ...]:  # worker processes send these errors to the service
        return RequestError, (self.status, self.message, self.hint, self.retry_after)


def try_later(message: str) -> RequestError:
    """Status 503 of a fault that may pass."""
    return RequestError(503, message, "Try again later.", retry_after=5)


async def read_form(request: Request) -> tuple[bytes, str]:
    """Content and name of the one file `FIELD` of a multipart form.

    Raises:
        RequestError: 400 broken form, 415 not a form, 422 not exactly one image, 503 no memory or disk left.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "multipart/form-data":
        raise RequestError(
            415, f"the content type is {content_type[:100] or 'missing'}, not multipart/form-data.", CURL_HINT
        )
    try:
        async with request.form(max_files=1, max_fields=8) as form:
            file = form.get(FIELD)
            if not isinstance(file, UploadFile):
                fields = ", ".join(repr(name[:40]) for name in form) or "no fields"
                problem = f"{FIELD!r} is not one file"
                if FIELD not in form:
                    problem = f"the form has no file {FIELD!r}; it has {fields}"
                raise RequestError(422, f"{problem}.", CURL_HINT)
            return await file.read(), upload_name(file.filename)
    except RequestError:
        raise
    except (MemoryError, OSError) as error:  # Starlette stores large uploads in temporary files
        raise try_later("no memory or disk space is left to receive the image.") from error
    except Exception as error:  # the form parser raises many types for malformed input
        reason = f": {error.detail}" if isinstance(error, HTTPException) else "."
        raise RequestError(400, f"the form cannot be parsed{reason}", CURL_HINT) from error


def upload_name(name: str | None) -> str:
    """Last component of a client's file name, at most 200 characters: used as a label, never as a path.

    >>> upload_name("C:\\\\images/../dog.jpg"), upload_name(None), upload_name(".")
    ('dog.jpg', 'image', 'image')
    """
    last = (name or "").replace("\\", "/").rsplit("/", 1)[-1].replace("\0", "")
    return last.encode("utf-8", "backslashreplace").decode()[-200:] if last.strip(".") else "image"


def open_image(content: bytes, max_pixels: int) -> Image.Image:
    """Open an image and check its header; its pixels are not decoded.

    Raises:
        RequestError: 422 empty, 415 not an accepted format, 413 more than `max_pixels`.
    """
    if not content:
        raise RequestError(422, "the image is empty (0 bytes).", "Send the content of an image file.")
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise RequestError(413, "the image has far too many pixels.", f"Send at most {max_pixels:,}.") from error
    except Exception as error:  # Pillow raises a dozen types for broken headers
        raise RequestError(
            415, f"the file is no image in an accepted format ({len(content):,} bytes).", f"Send {', '.join(FORMATS)}."
        ) from error
    _check_pixels(image, max_pixels)
    return image


@dataclass(frozen=True)
class Upload(ImageRef):
    """An uploaded image file."""

    content: bytes
    max_pixels: int
    name: str = "this image"

    def decode(self, max_downscale: MaxDownscale = full_size, intensity: IntensityRange | None = None) -> Decoded:
        """As `ImageRef.decode`.

        Raises:
            RequestError: as `open_image`; 422 broken or truncated, 413 larger than `max_pixels` although its header
                says less.
        """
        open_image(self.content, self.max_pixels)
        try:
            rgb, size = decode_bytes(self.content, self.name, max_downscale, intensity, FORMATS)
        except ImageError as error:
            raise RequestError(422, error.message, "Send the file again, or save it as JPEG or PNG.") from error
        _check_pixels(rgb, self.max_pixels)
        return rgb, size


def _check_pixels(image: Image.Image, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        count = f"{image.width} x {image.height} = {image.width * image.height:,}"
        raise RequestError(413, f"the image has {count} pixels.", f"Resize it to at most {max_pixels:,} pixels.")
