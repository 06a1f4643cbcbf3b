"""What is an image: by content in every place that lists images, and one line that counts the rest."""

from __future__ import annotations

import io
import pickle
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wildcat.data import open_dataset
from wildcat.data.formats import skipped_note
from wildcat.data.images import read_image
from wildcat.data.listing import list_images
from wildcat.errors import DataError, ImageError, MissingExtra
from wildcat.scale import inputs

DICOM = bytes(128) + b"DICM" + bytes(64)
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64)


def encoded(kind: str, value: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (value, 9, 9)).save(buffer, kind)
    return buffer.getvalue()


VIDEO = "video (name the file in wildcat predict, or give the frames of wildcat.data.video_frames)"

# Files of a user's folder -> the type they are counted as; empty: an image.
FILES = {
    "a.jpg": (encoded("JPEG"), ""),
    "b.JFIF": (encoded("JPEG"), ""),
    "c.jpe": (encoded("JPEG"), ""),
    "d.avif": (encoded("AVIF"), ""),
    "e.jp2": (encoded("JPEG2000"), ""),
    "f": (encoded("PNG"), ""),
    "g.jpg_large": (encoded("JPEG"), ""),
    "h.dat": (encoded("TIFF"), ""),
    "i.ico": (encoded("ICO"), ""),
    "j.heic": (encoded("JPEG"), ""),  # phones and messengers convert files and keep their names
    "k.tga": (encoded("TGA"), ""),
    "README.txt": (b"Notes", ".txt"),
    "README": (b"BMW and P5 notes", "without suffix"),
    "Thumbs.db": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(504), "Thumbs.db"),
    ".DS_Store": (b"\0\0\0\x01Bud1", ".DS_Store"),
    "._a.jpg": (b"\0\5\x16\7", "hidden file"),
    "IMG_1.HEIC": (HEIC, "HEIC (pip install 'wildcat-vision[heif]')"),
    "scan": (DICOM, "DICOM (pip install 'wildcat-vision[dicom]')"),
    "x.NEF": (encoded("TIFF"), "camera raw (develop to JPEG, PNG or TIFF)"),
    "clip.mp4": (b"\0\0\0\x18ftypisom" + bytes(64), VIDEO),
    "map.svg": (b"<svg/>", "SVG (render to PNG)"),
    "model.h5": (b"\x89HDF\r\n\x1a\n" + bytes(64), ".h5"),
    "page.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", ".eps"),
    "empty": (b"", "without suffix"),
}
IMAGES = {name for name, (_, kind) in FILES.items() if not kind}
TYPES = Counter(kind for _, kind in FILES.values() if kind)


PLUGINS = ("pillow_heif", "pydicom", "wildcat.data.dicom")  # the last imports the second


@pytest.fixture
def no_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the optional packages are not installed."""
    for name in PLUGINS:
        monkeypatch.setitem(sys.modules, name, None)


def fill(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, (content, _) in FILES.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.usefixtures("no_plugins")
@pytest.mark.parametrize("recursive", [True, False])
def test_a_folder_lists_what_pillow_opens(tmp_path: Path, recursive: bool) -> None:
    skipped: Counter[str] = Counter()
    found = list_images(fill(tmp_path / "x"), recursive, skipped)
    assert {path.name for path in found} == IMAGES
    assert skipped == TYPES
    for path in found:
        assert read_image(path).size[0] >= 8


@pytest.mark.usefixtures("no_plugins")
def test_predict_and_shards_use_the_same_rule(tmp_path: Path) -> None:
    folder, skipped = fill(tmp_path / "x"), Counter[str]()
    found = list(inputs.image_locations(inputs.find_sources([str(folder)]), skipped=skipped))
    assert {Path(one.file).name for one in found} == IMAGES
    assert skipped == TYPES
    with tarfile.open(tmp_path / "a.tar", "w") as shard:
        shard.add(folder, "x")
    skipped = Counter()
    found = list(inputs.image_locations(inputs.find_sources([str(tmp_path / "a.tar")]), skipped=skipped))
    assert {one.member.removeprefix("x/") for one in found} == IMAGES
    assert skipped == {**{kind: n for kind, n in TYPES.items() if kind != ".DS_Store"}, "hidden file": 2}
    for one in found:
        assert one.decode()[1][0] >= 8


@pytest.mark.usefixtures("no_plugins")
def test_the_folder_reader_counts_what_it_skips(tmp_path: Path) -> None:
    for name in ("box", "disc"):
        fill(tmp_path / name)
    for name in ("@eaDir/box", "__MACOSX", "box/@eaDir"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "SYNOPHOTO_THUMB_M.jpg").write_bytes(encoded("JPEG"))
    data = open_dataset(tmp_path)
    assert data.classes == ("box", "disc")
    assert len(data.split("all")) == 2 * len(IMAGES)
    (note,) = data.notes
    total = 2 * sum(TYPES.values()) + 3
    assert note.startswith(f"{tmp_path}: skipped {total} entries that are no images: ")
    for text in ("2 @eaDir", "1 __MACOSX", "2 HEIC (pip install 'wildcat-vision[heif]')", "2 Thumbs.db", "2 .DS_Store"):
        assert text in note


@pytest.mark.usefixtures("no_plugins")
def test_a_folder_of_other_formats_names_what_to_install(tmp_path: Path) -> None:
    for name in ("box", "disc"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.HEIC").write_bytes(HEIC)
    with pytest.raises(DataError, match="has no images that can be read") as caught:
        open_dataset(tmp_path)
    assert "2 HEIC (pip install 'wildcat-vision[heif]')" in caught.value.hint
    with pytest.raises(DataError, match="holds no images") as caught:
        list(inputs.image_locations(inputs.find_sources([str(tmp_path)])))
    assert "2 HEIC (pip install 'wildcat-vision[heif]')" in caught.value.hint
    (tmp_path / "box" / "0.jpg").write_bytes(encoded("JPEG"))
    with pytest.raises(
        DataError, match=r"disc holds no images; skipped .* 1 HEIC \(pip install 'wildcat-vision\[heif\]'\)"
    ):
        open_dataset(tmp_path)


@pytest.mark.usefixtures("no_plugins")
@pytest.mark.parametrize(("content", "package"), [(HEIC, "pillow-heif"), (DICOM, "pydicom")])
def test_an_image_that_needs_an_extra_names_it(tmp_path: Path, content: bytes, package: str) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(ImageError, match=f"a.jpg is .*, which cannot be read: {package} is not installed") as caught:
        read_image(tmp_path / "a.jpg")
    assert isinstance(caught.value, MissingExtra)
    extra = {"pillow-heif": "heif", "pydicom": "dicom"}[package]
    assert caught.value.hint == f"Type: pip install 'wildcat-vision[{extra}]'"
    assert isinstance(pickle.loads(pickle.dumps(caught.value)), MissingExtra)


def test_a_format_without_an_extra_of_ours(tmp_path: Path) -> None:
    (tmp_path / "a.jxl").write_bytes(b"\xff\x0a")
    with pytest.raises(ImageError, match=r"a\.jxl is JPEG XL, which cannot be read") as caught:
        read_image(tmp_path / "a.jxl")
    assert caught.value.hint == "Type: pip install pillow-jxl-plugin"


def test_heic(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    image = Image.fromarray(np.repeat(np.uint8([[[200, 30, 40]], [[20, 60, 220]]]), 48, axis=1).repeat(32, axis=0))
    exif = Image.Exif()
    exif[0x0112] = 6  # a phone held upright
    heif.from_pillow(image).save(tmp_path / "IMG_1.HEIC", exif=exif.tobytes(), quality=90)
    (tmp_path / "cut.heic").write_bytes(HEIC)
    skipped: Counter[str] = Counter()
    assert [path.name for path in list_images(tmp_path, skipped=skipped)] == ["IMG_1.HEIC"]
    assert skipped == {"HEIC without pixels, or damaged": 1}
    shown = np.asarray(read_image(tmp_path / "IMG_1.HEIC")).astype(int)
    assert shown.shape == (48, 64, 3), "upright"
    assert abs(shown[24, 50] - [200, 30, 40]).max() < 12, "the upper half is on the right"
    assert abs(shown[24, 10] - [20, 60, 220]).max() < 12
    content = (tmp_path / "IMG_1.HEIC").read_bytes()
    (tmp_path / "IMG_1.HEIC").write_bytes(content[: len(content) - 40])
    with pytest.raises(ImageError, match=r"IMG_1\.HEIC is broken"):
        read_image(tmp_path / "IMG_1.HEIC")


def test_the_note_is_one_line_of_counts() -> None:
    assert skipped_note("x", Counter()) == ""
    assert skipped_note("", Counter({".txt": 1})) == "skipped 1 entry that is no image: 1 .txt."
    many = Counter({f".{i}": 1 for i in range(18)})
    assert skipped_note("x", many).endswith(", 2 other types.")
