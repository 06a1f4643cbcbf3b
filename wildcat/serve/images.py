"""Uploaded images: from a multipart form to a checked and decoded image."""

from __future__ import annotations

import io

from PIL import Image
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from wildcat.data.images import to_rgb
from wildcat.errors import ImageError
from wildcat.serve.limits import RequestError

FIELD = "image"  # name of the file in the form
CURL_HINT = f"Example: curl -F {FIELD}=@dog.jpg"

# Pillow's decoders that uploads may reach; the others are rarely used, or start programs (EPS).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")


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
            files = form.getlist(FIELD)
            if not files:
                fields = ", ".join(repr(name[:40]) for name in form) or "no fields"
                raise RequestError(422, f"the form has no file {FIELD!r}; it has {fields}.", CURL_HINT)
            if len(files) > 1 or not isinstance(files[0], UploadFile):
                raise RequestError(
                    422, f"{FIELD!r} is not one file.", "Send the content of an image; paths and URLs are not opened."
                )
            return await files[0].read(), upload_name(files[0].filename)
    except (RequestError, TimeoutError):
        raise
    except (MemoryError, OSError) as error:  # Starlette stores large uploads in temporary files
        raise RequestError(
            503, "no memory or disk space is left to receive the image.", "Try again later.", 5
        ) from error
    except Exception as error:  # the form parser raises many types for malformed input
        reason = f": {error.detail}" if isinstance(error, HTTPException) else "."
        raise RequestError(400, f"the form cannot be parsed{reason}", CURL_HINT) from error


def upload_name(name: str | None) -> str:
    """Last component of a client's file name, at most 200 characters: used as a label, never as a path.

    >>> upload_name("C:\\\\images/../dog.jpg"), upload_name(None)
    ('dog.jpg', 'image')
    """
    last = (name or "").replace("\\", "/").rsplit("/", 1)[-1].replace("\0", "")
    return last.encode("utf-8", "backslashreplace").decode()[-200:] or "image"


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
        raise RequestError(413, "the image has far too many pixels.", _size_hint(max_pixels)) from error
    except Exception as error:  # Pillow raises a dozen types for broken headers
        raise RequestError(
            415, f"the file is no image in an accepted format ({len(content):,} bytes).", f"Send {', '.join(FORMATS)}."
        ) from error
    _check_pixels(image, max_pixels)
    return image


def decode_image(image: Image.Image, max_pixels: int) -> Image.Image:
    """Decode an opened image to RGB, upright, transparency on white.

    Raises:
        RequestError: 422 broken or truncated, 413 larger than its header says and than `max_pixels`.
    """
    try:
        rgb = to_rgb(image)
    except ImageError as error:
        raise RequestError(422, error.message, "Send the file again, or save it as JPEG or PNG.") from error
    _check_pixels(rgb, max_pixels)
    return rgb


def _check_pixels(image: Image.Image, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        raise RequestError(
            413,
            f"the image has {image.width} x {image.height} = {image.width * image.height:,} pixels.",
            _size_hint(max_pixels),
        )


def _size_hint(max_pixels: int) -> str:
    return f"Resize it to at most {max_pixels:,} pixels."
