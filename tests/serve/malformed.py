"""Hundreds of malformed requests; a service with limits of 0.2 MB and 100,000 pixels gives each status 4xx."""

from __future__ import annotations

import pickle
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from tests.serve.conftest import encoded, image


def malformed_bodies() -> Iterator[tuple[str, bytes]]:
    """A name and the body of a form with the boundary "xyz"."""
    yield from truncations()
    yield from bombs()
    yield from wrong_kinds()
    yield from broken_forms()


def form(content: bytes, field: str = "image", name: str | None = "a.png") -> bytes:
    filename = "" if name is None else f'; filename="{name}"'
    head = f'--xyz\r\nContent-Disposition: form-data; name="{field}"{filename}\r\n\r\n'
    return head.encode() + content + b"\r\n--xyz--\r\n"


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes with these sides in its header."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(bytes(1000))) + png_chunk(b"IEND", b"")


def truncations() -> Iterator[tuple[str, bytes]]:
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"):
        whole = encoded(image(1), kind)
        for share in np.linspace(0, 0.85, 20):
            yield f"{kind} cut at {share:.2f}", form(whole[: int(share * len(whole))])


def bombs() -> Iterator[tuple[str, bytes]]:
    for side in (317, 1000, 10_000, 65_535, 2**31 - 1):
        yield f"PNG bomb {side}", form(png_bomb(side, side))
    yield "PNG of no width", form(png_bomb(0, 10))
    yield "honest but large", form(encoded(Image.new("L", (400, 251))))
    gif = bytearray(encoded(image(), "GIF"))
    gif[6:10] = b"\xff\xff\xff\xff"
    yield "GIF bomb", form(bytes(gif))
    bmp = bytearray(encoded(image(), "BMP"))
    bmp[18:26] = struct.pack("<ii", 60_000, 60_000)
    yield "BMP bomb", form(bytes(bmp))
    tiff = encoded(image(), "TIFF")
    yield (
        "TIFF bomb",
        form(
            tiff.replace(struct.pack("<HHI", 256, 4, 1) + struct.pack("<I", 96), struct.pack("<HHII", 256, 4, 1, 2**30))
        ),
    )
    yield "PPM bomb", form(b"P6 99999 99999 255 ")
    yield "text bomb", form(
        b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0))
        + png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(80_000_000), 9))
    )  # fmt: skip


def wrong_kinds() -> Iterator[tuple[str, bytes]]:
    for name, content in {
        "text": b"hello", "html": b"<html><script>alert(1)</script>", "zip": b"PK\x03\x04" + bytes(50),
        "pickle": pickle.dumps({"a": 1}), "elf": b"\x7fELF" + bytes(99), "pdf": b"%PDF-1.7 ...",
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "path": b"/etc/passwd", "address": b"http://127.0.0.1/a.png", "npy": b"\x93NUMPY" + bytes(80),
        "ico": encoded(image(), "ICO"), "icns": encoded(Image.new("RGB", (16, 16)), "ICNS"),
        "pcx": encoded(image(), "PCX"), "empty": b"", "nul": bytes(1000),
        "float": encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"),
    }.items():  # fmt: skip
        yield f"a file of {name}", form(content)
        yield f"{name} as a field", form(content, name=None)
    yield "only the header", form(b"\x89PNG\r\n\x1a\n")


def broken_forms() -> Iterator[tuple[str, bytes]]:
    whole, good = form(encoded(image())), encoded(image())
    for i in range(24):
        yield f"form cut at {i}", whole[: i * 5]
    for field in ("picture", "file", "Image", "image[]", "", "image\\", "p" * 5000):
        yield f"field {field[:9]!r}", form(good, field=field)
    yield "nothing", b""
    yield "no form", good
    yield "other boundary", whole.replace(b"--xyz", b"--abc")
    yield "two images", whole.replace(b"--xyz--", whole)
    yield "many fields", b"".join(form(b"1", f"f{i}", None).replace(b"--xyz--\r\n", b"") for i in range(50)) + whole
    yield "no disposition", b"--xyz\r\nContent-Type: image/png\r\n\r\n" + good + b"\r\n--xyz--\r\n"
    yield (
        "huge part header",
        whole.replace(b"\r\n\r\n", b"\r\nX-A: " + b"a" * 100_000 + b"\r\n\r\n", 1) + b"garbage" * 30_000,
    )
    yield "huge field", form(b"a" * 150_000, name=None)
    yield "too large", form(bytes(250_000))
    yield "broken header line", whole.replace(b"Content-Disposition: ", b"Content-Disposition\x00 ", 1)
    rng = np.random.default_rng(5)
    for i in range(20):
        yield f"noise {i}", b"--xyz\r\n" + rng.bytes(200)


def bad_types() -> Iterator[tuple[str, str]]:
    for kind in (
        "", "application/json", "application/x-www-form-urlencoded", "image/png", "multipart/form-data", "text/plain",
        "multipart/form-data; boundary=", "multipart/form-data; boundary=abc", "multipart/mixed; boundary=xyz",
        "multipart/form-data; boundary=" + "x" * 5000, "\xff", "multipart/form-data; charset=utf-99; boundary=\xe9",
    ):  # fmt: skip
        yield f"type {kind[:40]!r}", kind
