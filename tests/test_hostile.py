"""Hundreds of broken images: every reader returns an image or one sentence, never a traceback, hang or crash.

The corpus is made of small crops of real photographs, by mutations that follow from a seed.
"""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from PIL import Image, ImageCms

from wildcat.cli import main
from wildcat.scale.rows import read_rows

REPOSITORY = Path(__file__).resolve().parents[1]

Mutation = Callable[[bytes, np.random.Generator], bytes]


# --- sound images, one of each kind ---------------------------------------------------------------------------------


def sound() -> dict[str, bytes]:
    """Small real images in every format, plain and with features that break readers."""
    photo = Image.fromarray(skimage.data.astronaut()[40:104, 190:270])
    other = Image.fromarray(skimage.data.coffee()[100:164, 200:280])
    grey16 = Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "x" * 500
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    clear = photo.copy()
    clear.putalpha(other.convert("L"))
    frames: dict[str, Any] = {"save_all": True, "append_images": [other, photo], "duration": 40}
    kinds: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "plain.jpg": (photo, "JPEG", {}),
        "progressive.jpg": (photo, "JPEG", {"progressive": True, "exif": exif, "icc_profile": profile}),
        "cmyk.jpg": (photo.convert("CMYK"), "JPEG", {}),
        "grey.jpg": (photo.convert("L"), "JPEG", {}),
        "plain.png": (photo, "PNG", {"icc_profile": profile, "exif": exif}),
        "deep.png": (grey16, "PNG", {}),
        "palette.png": (photo.quantize(16), "PNG", {"transparency": 3}),
        "clear.png": (clear, "PNG", {}),
        "animated.png": (photo, "PNG", frames),
        "animated.gif": (photo, "GIF", frames),
        "lossy.webp": (photo, "WEBP", {"exif": exif}),
        "lossless.webp": (clear, "WEBP", {"lossless": True}),
        "animated.webp": (photo, "WEBP", frames),
        "plain.tif": (photo, "TIFF", {"exif": exif}),
        "lzw.tif": (photo, "TIFF", {"compression": "tiff_lzw"}),
        "jpeg.tif": (photo, "TIFF", {"compression": "jpeg"}),
        "deep.tif": (grey16, "TIFF", {"compression": "tiff_adobe_deflate"}),
        "float.tif": (photo.convert("F"), "TIFF", {}),
        "pages.tif": (photo, "TIFF", {"save_all": True, "append_images": [other]}),
        "plain.bmp": (photo, "BMP", {}),
        "palette.bmp": (photo.quantize(16), "BMP", {}),
        "plain.ppm": (photo, "PPM", {}),
    }
    made = {}
    for name, (image, kind, options) in kinds.items():
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        made[name] = buffer.getvalue()
    return made


# --- what is done to them ---------------------------------------------------------------------------------------------


def cut(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: int(rng.integers(1, len(content)))]


def cut_header(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: int(rng.integers(1, 64))]


def flip_bits(content: bytes, rng: np.random.Generator) -> bytes:
    spoiled = bytearray(content)
    for place in rng.integers(0, len(content), int(rng.choice([1, 8, 64]))):
        spoiled[place] ^= 1 << int(rng.integers(8))
    return bytes(spoiled)


def spoil_header(content: bytes, rng: np.random.Generator) -> bytes:
    """Bytes after the signature take extreme values: sizes, counts, offsets."""
    spoiled = bytearray(content)
    for place in rng.integers(4, min(120, len(content)), 3):
        spoiled[place] = int(rng.choice([0, 1, 127, 128, 255]))
    return bytes(spoiled)


def drop(content: bytes, rng: np.random.Generator) -> bytes:
    start = int(rng.integers(8, len(content)))
    return content[:start] + content[start + int(rng.integers(1, 200)) :]


def repeat(content: bytes, rng: np.random.Generator) -> bytes:
    start, length = int(rng.integers(8, len(content))), int(rng.integers(1, 400))
    part = content[start : start + length]
    return content[:start] + part * int(rng.integers(2, 10)) + content[start + length :]


def blank(content: bytes, rng: np.random.Generator) -> bytes:
    start, length = int(rng.integers(0, len(content))), int(rng.integers(8, 300))
    return content[:start] + bytes([int(rng.choice([0, 255]))]) * length + content[start + length :]


MUTATIONS: tuple[Mutation, ...] = (cut, cut_header, flip_bits, flip_bits, spoil_header, drop, repeat, blank)


def with_size(name: str, content: bytes, width: int, height: int) -> bytes:
    """The same image with another size in its header."""
    kind = name.rpartition(".")[2]
    spoiled = bytearray(content)
    if kind == "png":
        spoiled[16:24] = struct.pack(">II", width, height)
        spoiled[29:33] = struct.pack(">I", zlib.crc32(spoiled[12:29]))
    elif kind == "gif":
        spoiled[6:10] = struct.pack("<HH", width & 0xFFFF, height & 0xFFFF)
    elif kind == "bmp":
        spoiled[18:26] = struct.pack("<ii", width, height)
    elif kind == "jpg":
        frame = max(content.find(b"\xff\xc0"), content.find(b"\xff\xc2"))
        spoiled[frame + 5 : frame + 9] = struct.pack(">HH", height & 0xFFFF, width & 0xFFFF)
    elif kind == "tif":
        order = "<" if content[:2] == b"II" else ">"
        first = struct.unpack(f"{order}I", content[4:8])[0] + 2
        for entry, value in ((first, width), (first + 12, height)):  # ImageWidth and ImageLength come first
            spoiled[entry + 2 : entry + 12] = struct.pack(f"{order}HII", 4, 1, value)
    elif kind == "webp" and content[12:16] == b"VP8X":
        spoiled[24:30] = b"".join(struct.pack("<i", side - 1)[:3] for side in (width, height))
    elif kind == "ppm":
        return b"P6 %d %d 255\n" % (width, height) + content[-100:]
    return bytes(spoiled)


def bombs() -> dict[str, bytes]:
    """Small files that would expand: pixels, text, frames."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    def png(width: int, height: int, bits: int, colour: int, *chunks: bytes) -> bytes:
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
        return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")

    zeros = zlib.compress(bytes(80_000_000), 9)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" + bytes(8)))
    return {
        "pixels.png": png(60_000, 60_000, 1, 0, chunk(b"IDAT", zeros)),
        "text.png": png(8, 1, 8, 0, chunk(b"zTXt", b"a\0\0" + zeros), pixels),
        "profile.png": png(8, 1, 8, 0, chunk(b"iCCP", b"a\0\0" + zeros), pixels),
        "surplus.png": png(8, 1, 8, 0, chunk(b"IDAT", zeros)),
        "chunks.png": png(8, 1, 8, 0, *[chunk(b"tEXt", b"a\0b")] * 50_000, pixels),
        "frames.gif": sound()["animated.gif"][:-1] + sound()["animated.gif"][800:-1] * 30,
        "giant.svg.png": b'<svg width="1000000" height="1000000"></svg>',
        "giant.eps.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99999 99999\n",
    }


def corpus() -> dict[str, bytes]:
    """Name -> content of more than 500 broken files."""
    made: dict[str, bytes] = {}
    images = sound()
    for k, (name, content) in enumerate(images.items()):
        stem, _, suffix = name.rpartition(".")
        for i in range(24):
            mutation = MUTATIONS[i % len(MUTATIONS)]
            rng = np.random.default_rng([k, i])
            made[f"{suffix}-{stem}-{mutation.__name__}-{i}.{suffix}"] = mutation(content, rng)
        for width, height in ((0, 0), (1, 1), (65_535, 65_535), (12_000, 3), (3, 60_000), (2**31 - 1, 2**31 - 1)):
            made[f"{suffix}-{stem}-claims-{width}x{height}.{suffix}"] = with_size(name, content, width, height)
        made[f"{suffix}-{stem}-called.{'png' if suffix == 'jpg' else 'jpg'}"] = content[: len(content) // 2]
    return made | {f"bomb-{name}": content for name, content in bombs().items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    for name, content in corpus().items():
        (folder / name).write_bytes(content)
    return folder


READERS = """
import faulthandler, json, sys, traceback
from pathlib import Path
import numpy as np, torch
from wildcat.data.images import decode_bytes, header_error, read_image
from wildcat.data.loader import Augment, ImageDataset
from wildcat.data.dataset import Sample
from wildcat.data.transforms import Preprocess
from wildcat.errors import ImageError
from wildcat.serve.uploads import RequestError, Upload

preprocess = Preprocess(32, (0.5,) * 3, (0.5,) * 3, "bilinear")
paths = sorted(Path(sys.argv[1]).iterdir())
samples = [Sample(path.name, path, np.asarray([1], np.int8)) for path in paths]
training = ImageDataset(samples, preprocess, Augment(0))
answers = {}
for i, path in enumerate(paths):
    print(path.name, file=sys.stderr, flush=True)
    faulthandler.dump_traceback_later(10, exit=True)  # a decoder that hangs cannot be interrupted otherwise
    try:
        said = ["image"] * 4
        try:
            read_image(path)
        except ImageError as error:
            said[0] = error.message
        try:
            decode_bytes(path.read_bytes(), str(path))
        except ImageError as error:
            said[1] = error.message
        item = training[0, i]
        said[2] = item.message if isinstance(item, ImageError) else "image"
        try:
            Upload(path.read_bytes(), 50_000_000).decode()
        except RequestError as refused:
            said[3] = str(refused)
        header_error(path)
        answers[path.name] = said
    except BaseException:
        answers[path.name] = traceback.format_exc()
faulthandler.cancel_dump_traceback_later()
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers(folder: Path) -> dict[str, list[str]]:
    """The message of each reader for each file: `read_image`, `decode_bytes`, training and the service."""
    read = subprocess.run(
        [sys.executable, "-c", READERS, str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert read.returncode == 0, read.stderr[-3000:]  # crashed or hung; the last name is the file
    return dict(json.loads(read.stdout))


def test_every_reader_returns_an_image_or_one_sentence_that_names_the_file(
    folder: Path, answers: dict[str, list[str]]
) -> None:
    assert len(answers) == len(list(folder.iterdir())) >= 500
    failures = {name: said for name, said in answers.items() if isinstance(said, str)}
    assert not failures, list(failures.items())[:3]
    refused = {name for name, said in answers.items() if said[0] != "image"}
    assert 200 < len(refused) < len(answers) - 50  # some damaged files are still images; most are not
    for name, (file, content, training, _) in answers.items():
        assert file == content == training, name
        if name in refused:
            assert str(folder / name) in file and file.endswith(".") and "\n" not in file and len(file) < 500, file
    assert {f"bomb-{name}" for name in ("pixels.png", "giant.svg.png", "giant.eps.jpg")} <= refused
    # The frames of a GIF and the pixels of a lossless WebP have sizes of their own.
    sized = [name for name in answers if not name.startswith(("gif", "webp"))]
    assert {name for name in sized if "claims-0x0" in name or "claims-65535" in name} <= refused


def test_one_stream_reads_all_of_them_and_names_each(
    tiny: Path, folder: Path, answers: dict[str, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["predict", str(tiny), str(folder), "--device", "cpu"]
    assert main([*line, "--out", str(tmp_path / "rows"), "--shard-rows", "100"]) == 0
    rows = [row for path in sorted((tmp_path / "rows").glob("shard-*")) for row in read_rows(path)]
    assert list(dict.fromkeys(Path(row["image"]).name.partition("#")[0] for row in rows)) == sorted(answers)
    for row in rows:
        name, _, page = Path(row["image"]).name.partition("#page=")
        if page in ("", "1"):  # of each file the answers have the first page
            message = row.get("error", "image").replace("#page=1", "")
            assert message.startswith(answers[name][0])  # the row has the hint too
    capsys.readouterr()
    assert main([*line, "--out", str(tmp_path / "stream"), "--save", "none"]) == 0
    told = capsys.readouterr().err
    assert "Traceback" not in told
    refused = [row["image"] for row in rows if "error" in row]
    assert all(f"skipped {name}" in told for name in refused)
    assert f"{len(refused)} of {len(rows)} images could not be read" in told
    predicted = (tmp_path / "stream" / "predictions.jsonl").read_text().splitlines()
    assert len(predicted) == len(rows) - len(refused)


def test_training_on_them_is_refused_in_one_sentence(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i, path in enumerate(sorted(folder.iterdir())):
        link = tmp_path / "data" / ("cat", "dog")[i % 2] / path.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    assert main(["train", str(tmp_path / "data"), "--out", str(tmp_path / "run"), "--device", "cpu"]) == 1
    told = capsys.readouterr().err
    assert "images cannot be read: " in told and "Traceback" not in told
    assert not (tmp_path / "run").exists()
