"""The bytes a client sent -> an image: kinds and pixels are looked at before anything is decoded."""

from __future__ import annotations

import io

from PIL import Image

from wildcat.data.images import to_rgb
from wildcat.errors import ImageError
from wildcat.serve.limits import Refused

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Pillow's decoders that bytes of a stranger may reach; others are rarely used, or start programs (EPS)."""


def open_bytes(content: bytes, max_pixels: int) -> Image.Image:
    """The image in `content`, its header read, its pixels not.

    Raises:
        Refused: 422 empty, 415 of no accepted kind, 413 more than `max_pixels`.
    """
    if not content:
        raise Refused(422, "the image is empty (0 bytes).", "Send the bytes of an image.")
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise Refused(413, "the image has far too many pixels.", _smaller(max_pixels)) from error
    except Exception as error:  # a broken header: Pillow's readers raise a dozen kinds
        kinds = ", ".join(FORMATS)
        raise Refused(
            415, f"this is no image of a kind that is read here ({len(content):,} bytes).", f"Send one of: {kinds}."
        ) from error
    check_pixels(image, max_pixels)
    return image


def decode(image: Image.Image, max_pixels: int) -> Image.Image:
    """An opened image in RGB, upright, on white.

    Raises:
        Refused: 422 broken or truncated, or 413 it turned out to be larger than its header said.
    """
    try:
        rgb = to_rgb(image)
    except ImageError as error:
        raise Refused(422, error.message, "Send the file again, or save it anew as JPEG or PNG.") from error
    check_pixels(rgb, max_pixels)
    return rgb


def check_pixels(image: Image.Image, max_pixels: int) -> None:
    """Refuse, with 413, more than `max_pixels`."""
    if image.width * image.height > max_pixels:
        size = f"{image.width} x {image.height}"
        raise Refused(413, f"the image has {size} = {image.width * image.height:,} pixels.", _smaller(max_pixels))


def _smaller(max_pixels: int) -> str:
    return f"At most {max_pixels:,} are read here: make it smaller."
