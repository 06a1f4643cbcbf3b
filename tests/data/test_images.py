"""Decoding to RGB as viewers show it, masks, and one sentence for every broken file."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wildcat.data.images import decode_bytes, decode_file, full_size, limit_pixels, read_image, read_mask, to_rgb
from wildcat.data.listing import list_images
from wildcat.errors import DataError, ImageError

# EXIF 2.3, table for tag 0x0112: where the stored row 0 and column 0 are in the upright image.
ROW_0_COLUMN_0 = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


def stored_pixels(seen: np.ndarray, orientation: int) -> np.ndarray:
    """The pixels that a camera stores for the upright image `seen`, by the table of the standard."""
    row_side, column_side = ROW_0_COLUMN_0[orientation]
    height, width = seen.shape[:2]
    swapped = row_side in ("left", "right")
    stored = np.zeros((width, height, 3) if swapped else (height, width, 3), np.uint8)
    place = {
        "top": lambda i: ("y", i),
        "bottom": lambda i: ("y", height - 1 - i),
        "left": lambda i: ("x", i),
        "right": lambda i: ("x", width - 1 - i),
    }
    for row in range(stored.shape[0]):
        for column in range(stored.shape[1]):
            at = dict([place[row_side](row), place[column_side](column)])
            stored[row, column] = seen[at["y"], at["x"]]
    return stored


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    seen = np.random.default_rng(0).integers(0, 256, (3, 5, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == "webp" else {}
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(stored_pixels(seen, orientation)).save(path, exif=exif, **options)
    image = read_image(path)
    assert np.array_equal(np.asarray(image), seen)
    assert np.array_equal(np.asarray(to_rgb(image)), seen), "a second call must not turn the image again"
    with Image.open(path) as opened:
        assert np.array_equal(np.asarray(to_rgb(opened)), seen)


def test_jpeg_orientation(tmp_path: Path) -> None:
    seen = np.zeros((16, 48, 3), np.uint8)
    seen[:, :16] = 255  # white on the left
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(stored_pixels(seen, 6)).save(tmp_path / "a.jpg", exif=exif)
    result = np.asarray(read_image(tmp_path / "a.jpg"))
    assert result.shape == (16, 48, 3)
    assert result[:, :8].min() > 240
    assert result[:, 24:].max() < 15


def test_broken_exif_is_ignored(tmp_path: Path) -> None:
    Image.new("RGB", (4, 2), (9, 8, 7)).save(tmp_path / "a.png", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert read_image(tmp_path / "a.png").size == (4, 2)


def test_transparency_is_on_white(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    rgba = rng.integers(0, 256, (6, 7, 4), dtype=np.uint8)
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    alpha = rgba[..., 3:] / 255
    expected = rgba[..., :3] * alpha + 255 * (1 - alpha)
    assert np.abs(np.asarray(read_image(tmp_path / "rgba.png")) - expected).max() <= 1

    la = rgba[..., [0, 3]]
    Image.fromarray(la).save(tmp_path / "la.png")
    grey = (la[..., :1] * alpha + 255 * (1 - alpha)).repeat(3, axis=2)
    assert np.abs(np.asarray(read_image(tmp_path / "la.png")) - grey).max() <= 1


def test_palette_with_transparency(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.save(tmp_path / "opaque.png")
    assert np.asarray(read_image(tmp_path / "opaque.png")).tolist() == [[[10, 20, 30], [40, 50, 60], [70, 80, 90]]]
    image.save(tmp_path / "one.png", transparency=1)
    image.save(tmp_path / "bytes.png", transparency=b"\xff\x00\xff")
    for name in ("one.png", "bytes.png"):
        assert np.asarray(read_image(tmp_path / name)).tolist() == [[[10, 20, 30], [255] * 3, [70, 80, 90]]]


def test_grey_and_one_bit(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 7, 255]], np.uint8)).save(tmp_path / "grey.png")
    assert np.asarray(read_image(tmp_path / "grey.png")).tolist() == [[[0] * 3, [7] * 3, [255] * 3]]
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "bit.png")
    assert np.asarray(read_image(tmp_path / "bit.png")).tolist() == [[[255] * 3, [0] * 3]]


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bit_grey_has_a_fixed_scale(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 128, 129, 257, 40 * 257, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    expected = [round(int(v) / 257) for v in values[0]]
    assert np.asarray(read_image(tmp_path / f"a.{suffix}"))[0, :, 0].tolist() == expected
    dark = values[:, :4]  # the scale must not follow the brightest pixel
    Image.fromarray(dark).save(tmp_path / f"dark.{suffix}")
    assert np.asarray(read_image(tmp_path / f"dark.{suffix}"))[0, :, 0].tolist() == expected[:4]


def test_a_transparent_value_of_sixteen_bit_grey_is_white(tmp_path: Path) -> None:
    values = np.array([[0, 1000, 2000, 4095]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png", transparency=0)
    assert Image.open(tmp_path / "a.png").info["transparency"] == 0
    assert np.asarray(read_image(tmp_path / "a.png"))[0, :, 0].tolist() == [255, 4, 8, 16]
    ranged = decode_file(tmp_path / "a.png", full_size, (0.0, 4095.0))[0]
    assert np.asarray(ranged)[0, :, 0].tolist() == [255, 62, 125, 255]


def test_big_endian_sixteen_bit() -> None:
    image = Image.frombytes("I;16B", (2, 1), struct.pack(">2H", 0, 200 * 257))
    assert np.asarray(to_rgb(image))[0, :, 1].tolist() == [0, 200]


def test_adobe_cmyk_is_not_a_negative(tmp_path: Path) -> None:
    # No ink is white, full black ink is black, full cyan is cyan; in the file, Adobe stores 255 minus the ink.
    inks = np.zeros((8, 24, 4), np.uint8)
    inks[:, 8:16, 3] = 255
    inks[:, 16:, 0] = 255
    Image.fromarray(inks, "CMYK").save(tmp_path / "a.jpg", quality=100)
    assert b"Adobe" in (tmp_path / "a.jpg").read_bytes()
    row = np.asarray(read_image(tmp_path / "a.jpg"))[4].astype(int)
    for column, colour in ((4, (255, 255, 255)), (12, (0, 0, 0)), (20, (0, 255, 255))):
        assert np.abs(row[column] - colour).max() < 12


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (3, 2), colour) for colour in ("red", "blue", "lime")]
    for name in ("a.gif", "a.webp", "a.png", "a.tif"):
        options = {"lossless": True} if name.endswith("webp") else {}
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
        assert read_image(tmp_path / name).getpixel((2, 1)) == (255, 0, 0)


@pytest.mark.parametrize("size", [(1, 1), (20000, 50), (50, 20000)])
def test_extreme_sizes(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("L", size, 3).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.size == size
    assert image.getpixel((size[0] - 1, size[1] - 1)) == (3, 3, 3)


def test_to_rgb_does_not_change_the_original() -> None:
    original = Image.new("RGB", (2, 2), "red")
    original.info["dpi"] = (72, 72)
    copy = to_rgb(original)
    copy.putpixel((0, 0), (0, 0, 0))
    assert original.getpixel((0, 0)) == (255, 0, 0)
    assert original.info == {"dpi": (72, 72)}


def test_warnings_stay_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (20, 20)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)  # 400 pixels: above the limit, below twice the limit
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        filters = list(warnings.filters)
        read_image(tmp_path / "a.png")
        assert list(warnings.filters) == filters


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


def bad_files(folder: Path) -> dict[str, tuple[Path, str, str]]:
    """Kind -> (path, what the message says, what the hint says)."""
    (folder / "folder.jpg").mkdir()
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("version https://git-lfs.github.com/spec/v1")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for name in ("cut.jpg", "cut.png"):
        noise.save(folder / name)
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])
    (folder / "bomb.png").write_bytes(png_header(30000, 30000) + struct.pack(">I", 9) + b"IDAT" + bytes(9))
    Image.fromarray(np.array([[0.5, 3.0]], np.float32)).save(folder / "float.tif")
    Image.fromarray(np.array([[5, 70000]], np.int32)).save(folder / "wide.tif")
    return {
        "missing": (folder / "no.jpg", "does not exist", "spelling"),
        "folder": (folder / "folder.jpg", "is a folder", "inside it"),
        "empty": (folder / "empty.jpg", "0 bytes", "Copy it again"),
        "text": (folder / "text.jpg", "begins with b'version https://", "Convert it"),
        "cut jpg": (folder / "cut.jpg", "truncated", "Copy it again"),
        "cut png": (folder / "cut.png", "truncated", "Copy it again"),
        "bomb": (folder / "bomb.png", "900000000 pixels", "--max-pixels 900000000"),
        "float": (folder / "float.tif", "float values", "--intensity-range LOW,HIGH"),
        "32 bit": (folder / "wide.tif", "32-bit values", "--intensity-range LOW,HIGH"),
    }


@pytest.mark.parametrize(
    "kind", ["missing", "folder", "empty", "text", "cut jpg", "cut png", "bomb", "float", "32 bit"]
)
def test_broken_files_are_refused(tmp_path: Path, kind: str) -> None:
    path, reason, remedy = bad_files(tmp_path)[kind]
    with pytest.raises(ImageError) as caught:
        read_image(path)
    assert str(path) in caught.value.message
    assert reason in caught.value.message
    assert "\n" not in caught.value.message
    assert remedy in caught.value.hint


def test_a_name_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="too long for the path of a file"):
        read_image(tmp_path / ("a.b" * 100))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data:image/png;base64,iVBORw0KGgo" + 5000 * "A", "is a data URL"),
        ("https://example.com/a.jpg", "is a URL; this needs a file"),
        (5000 * "iVBORw0KGgo/", "looks like the base64 content of an image"),
        (900 * "a photo of a cat. ", "too long for the path of a file"),
        ("a\nb.jpg", r"a\\nb.jpg does not exist"),
        ("nul\0.jpg", r"nul\\x00.jpg does not exist"),
    ],
)
def test_a_text_that_is_no_path_gets_one_sentence(text: str, said: str) -> None:
    with pytest.raises(ImageError, match=said) as caught:
        read_image(text)
    assert len(caught.value.message) < 400
    assert caught.value.message.count("\n") == 0
    assert caught.value.hint


@pytest.mark.parametrize("kind", ["png", "tif"])
def test_twelve_bit_data_in_sixteen_bits(tmp_path: Path, kind: str) -> None:
    values = np.array([[0, 100, 2048, 4095, 4096, 60000]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{kind}")
    scaled = decode_file(tmp_path / f"a.{kind}", intensity=(100, 4095))[0]
    assert np.asarray(scaled)[0, :, 1].tolist() == [0, 0, round(1948 * 255 / 3995), 255, 255, 255]


def test_an_intensity_range_reads_floats_and_leaves_eight_bits(tmp_path: Path) -> None:
    values = np.array([[-2.0, -1.0, 0.0, 3.0, 9.0, np.nan, np.inf]], np.float32)
    Image.fromarray(values).save(tmp_path / "a.tif")
    scaled = decode_file(tmp_path / "a.tif", intensity=(-1, 3))[0]
    assert np.asarray(scaled)[0, :, 2].tolist() == [0, 0, 64, 255, 255, 0, 255]
    Image.fromarray(np.array([[-5, 0, 70000]], np.int32)).save(tmp_path / "b.tif")
    assert np.asarray(decode_file(tmp_path / "b.tif", intensity=(0, 70000))[0])[0, :, 0].tolist() == [0, 0, 255]
    Image.fromarray(np.array([[0, 7, 255]], np.uint8)).save(tmp_path / "c.png")
    assert np.asarray(decode_file(tmp_path / "c.png", intensity=(0, 4095))[0])[0, :, 0].tolist() == [0, 7, 255]


def test_sixteen_bit_colour_is_not_scaled() -> None:
    rows = b"".join(b"\0" + struct.pack(">6H", *range(0, 4096, 700)) for _ in range(2))
    header = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    content = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    assert decode_bytes(content, "a.png")[0].size == (2, 2)
    with pytest.raises(ImageError, match="16-bit colour"):
        decode_bytes(content, "a.png", intensity=(0, 4095))


def test_the_limit_of_pixels_can_be_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # restored after the test
    Image.new("L", (30, 30)).save(tmp_path / "a.png")
    limit_pixels(800)
    with pytest.raises(ImageError, match=r"900 pixels.* limit of 800 pixels") as caught:
        read_image(tmp_path / "a.png")
    assert "--max-pixels 900 " in caught.value.hint
    limit_pixels(900)
    assert read_image(tmp_path / "a.png").size == (30, 30)


def test_to_rgb_refuses_too() -> None:
    with pytest.raises(ImageError, match="no pixels"):
        to_rgb(Image.new("RGB", (0, 4)))
    with pytest.raises(ImageError, match="float values"):
        to_rgb(Image.new("F", (2, 2)))


@pytest.mark.parametrize("byte", range(0, 300, 7))
def test_damage_anywhere_is_an_image_error_or_an_image(tmp_path: Path, byte: int) -> None:
    Image.effect_noise((32, 32), 50).save(tmp_path / "a.png")
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[byte] ^= 0xFF
    (tmp_path / "a.png").write_bytes(data)
    try:
        assert read_image(tmp_path / "a.png").mode == "RGB"
    except ImageError as error:
        assert str(tmp_path / "a.png") in error.message


def gradient(width: int, height: int) -> Image.Image:
    """Red increases to the right, green downwards: a pixel's colour encodes its position."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, np.full_like(x, 90)], axis=-1).astype(np.uint8))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("factor", "scale"), [(1.99, 1), (2.0, 2), (3.9, 2), (4.1, 4), (8, 8), (100, 8)])
def test_a_jpeg_is_downscaled_as_far_as_allowed(tmp_path: Path, orientation: int, factor: float, scale: int) -> None:
    seen = gradient(320, 240)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.jpg"
    Image.fromarray(stored_pixels(np.asarray(seen), orientation)).save(path, exif=exif, quality=95)
    asked: list[tuple[int, int]] = []
    allow = lambda size: asked.append(size) or factor  # noqa: E731
    for image, size in (decode_file(path, allow), decode_bytes(path.read_bytes(), "a", allow)):
        assert (size, image.size) == ((320, 240), (320 // scale, 240 // scale))
        expected = np.asarray(seen.resize(image.size, Image.Resampling.BOX)).astype(int)
        assert np.abs(np.asarray(image) - expected).max() <= 6
    assert set(asked) == {(320, 240)}, "the upright size"


def test_sides_of_a_downscaled_jpeg_are_rounded_up_and_other_formats_are_full_size(tmp_path: Path) -> None:
    for name, expected in (("a.jpg", (26, 19)), ("a.png", (101, 75)), ("a.webp", (101, 75))):
        gradient(101, 75).save(tmp_path / name)
        image, size = decode_file(tmp_path / name, lambda _: 4.0)
        assert (image.size, size) == (expected, (101, 75))
    assert read_image(tmp_path / "a.jpg").size == (101, 75)


def test_a_cut_jpeg_is_refused_at_any_size(tmp_path: Path) -> None:
    gradient(320, 240).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:2000])
    for factor in (1.0, 8.0):
        with pytest.raises(ImageError, match=r"a\.jpg is truncated"):
            decode_file(tmp_path / "a.jpg", lambda _, factor=factor: factor)


def test_mask_indices(tmp_path: Path) -> None:
    indices = np.array([[0, 1, 20], [255, 3, 0]], np.uint8)
    image = Image.fromarray(indices)
    image.save(tmp_path / "grey.png")
    Image.fromarray(indices.astype(np.uint16)).save(tmp_path / "wide.png")
    image.putpalette(list(range(256)) * 3)
    image.save(tmp_path / "palette.png")
    for name in ("grey.png", "palette.png", "wide.png"):
        mask = read_mask(tmp_path / name)
        assert mask.dtype == np.uint8
        assert np.array_equal(mask, indices)


def test_invalid_masks_are_refused(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "rgb.png")
    with pytest.raises(ImageError, match="colour mode RGB") as caught:
        read_mask(tmp_path / "rgb.png")
    assert "palette or grey PNG" in caught.value.hint
    Image.fromarray(np.array([[300]], np.uint16)).save(tmp_path / "wide.png")
    with pytest.raises(ImageError, match="value 300"):
        read_mask(tmp_path / "wide.png")


def test_list_images(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", ".hidden.jpg", "notes.txt", "sub/c.webp", ".git/d.jpg", "sub/deep/e.tiff"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    names = [p.relative_to(tmp_path).as_posix() for p in list_images(tmp_path)]
    assert names == ["a.png", "b.JPG", "sub/c.webp", "sub/deep/e.tiff"]
    assert [p.name for p in list_images(tmp_path, recursive=False)] == ["a.png", "b.JPG"]
    with pytest.raises(DataError, match="not a folder"):
        list_images(tmp_path / "a.png")
