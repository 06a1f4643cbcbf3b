"""Files of several images: pages of a TIFF, frames of a DICOM; what is predicted for each, and their names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from tests.data.test_dicom import VALUES, greys, linear, write_dicom
from tests.test_predictor import colour_finder
from wildcat.cli import images as cli_images
from wildcat.cli import main
from wildcat.cli.options import DataCommand
from wildcat.data import list_pages
from wildcat.data.image_ref import ImageLocation, fingerprint, load_image, named_page
from wildcat.errors import DataError, ImageError

COLOURS = ["red", "lime", "blue"]


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    first, *others = (Image.new("RGB", (20 + i, 10), colour) for i, colour in enumerate(COLOURS))
    first.save(tmp_path / "scan.tif", save_all=True, append_images=others)
    return tmp_path / "scan.tif"


def test_each_page_is_an_image(pages: Path) -> None:
    found = list_pages(pages)
    assert [one.name for one in found] == [f"{pages}#page={n}" for n in (1, 2, 3)]
    for page, colour in zip(found, COLOURS, strict=True):
        assert load_image(page).getpixel((0, 0)) == Image.new("RGB", (1, 1), colour).getpixel((0, 0))
    assert len({fingerprint(page) for page in found} | {fingerprint(pages)}) == 4
    assert load_image(pages).getpixel((0, 0)) == (255, 0, 0), "the file itself is its first page"


def test_the_predictor_takes_pages_by_name(pages: Path) -> None:
    predictor = colour_finder()
    listed = predictor.predict(list_pages(pages))
    assert [(p.path, p.width) for p in listed] == [(f"{pages}#page={n}", 19 + n) for n in (1, 2, 3)]
    named = predictor.predict(f"{pages}#page=3")
    assert named.class_scores.tolist() == listed[2].class_scores.tolist()
    with pytest.raises(ImageError, match=r"scan\.tif#page=4 does not exist: the file has 3 pages"):
        predictor.predict(f"{pages}#page=4")
    with pytest.raises(ImageError, match=r"other\.tif#page=1 does not exist"):
        predictor.predict(f"{pages.parent / 'other.tif'}#page=1")


def test_a_file_may_be_called_like_a_page(pages: Path) -> None:
    name = pages.with_name("scan.tif#page=2")
    Image.new("RGB", (3, 3)).save(name, "TIFF")
    assert named_page(str(name)) is None
    assert load_image(str(name)).size == (3, 3)


def test_overviews_thumbnails_and_masks_are_no_pages(tmp_path: Path) -> None:
    whole, small = Image.new("RGB", (40, 40), "red"), Image.new("RGB", (20, 20), "red")
    with TiffImagePlugin.AppendingTiffWriter(str(tmp_path / "a.tif"), new=True) as file:
        for image, kind in ((whole, 0), (small, 1), (small, 4), (whole, 2)):
            image.save(file, "TIFF", tiffinfo={254: kind})
            file.newFrame()
    assert [page.page for page in list_pages(tmp_path / "a.tif")] == [1, 4]
    with TiffImagePlugin.AppendingTiffWriter(str(tmp_path / "b.tif"), new=True) as file:
        for image, kind in ((whole, 0), (small, 1)):
            image.save(file, "TIFF", tiffinfo={254: kind})
            file.newFrame()
    assert list_pages(tmp_path / "b.tif") == [ImageLocation(str(tmp_path / "b.tif"))]


def test_other_files_are_one_image(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in COLOURS]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    (tmp_path / "text.tif").write_text("nothing")
    for name in ("a.gif", "text.tif", "missing.tif"):
        assert list_pages(tmp_path / name) == [ImageLocation(str(tmp_path / name))]


@pytest.mark.parametrize("cut", [60, 700, 800, 1000])
def test_a_page_that_is_cut_is_reported(pages: Path, cut: int) -> None:
    content = pages.read_bytes()
    pages.write_bytes(content[: len(content) - cut])
    found = list_pages(pages)
    assert found[0].page == 1
    errors = 0
    for page in found:
        try:
            load_image(page)
        except ImageError as error:
            assert f"{pages}#page={page.page} is" in error.message
            errors += 1
    assert 1 <= errors < len(found)


def test_frames_of_dicom(tmp_path: Path) -> None:
    frames = np.stack([VALUES, VALUES[:, ::-1]])
    path = write_dicom(tmp_path / "a.dcm", frames, NumberOfFrames=2, WindowCenter=500, WindowWidth=800)
    expected = linear(VALUES[0].astype(float), 500, 800)
    found = list_pages(path)
    assert [page.name for page in found] == [f"{path}#page=1", f"{path}#page=2"]
    shown = [np.asarray(load_image(page))[0, :, 0].tolist() for page in found]
    assert shown == [expected, expected[::-1]]
    assert greys(path) == expected


def test_predict_writes_a_row_and_files_for_each_page(pages: Path, tmp_path: Path) -> None:
    images = cli_images.find_images([str(pages.parent)], None, 0, DataCommand())
    assert [(str(image), name) for image, name in images] == [
        (f"{pages}#page={n}", f"scan-page{n}.tif") for n in (1, 2, 3)
    ]
    images = cli_images.find_images([f"{pages}#page=2"], None, 0, DataCommand())
    assert [(str(image), name) for image, name in images] == [(f"{pages}#page=2", "scan-page2.tif")]
    with pytest.raises(DataError, match=r"scan\.tif#page=x does not exist"):
        cli_images.find_images([f"{pages}#page=x"], None, 0, DataCommand())
    command = ["predict", "imagenet-lite0", str(pages), "--device", "cpu", "--out"]
    assert main([*command, str(tmp_path / "out"), "--save", "overlays"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert [row["image"] for row in rows] == [f"{pages}#page={n}" for n in (1, 2, 3)]
    assert sorted(path.name for path in (tmp_path / "out" / "overlays").iterdir()) == [
        f"scan-page{n}" for n in (1, 2, 3)
    ]
    assert main([*command, str(tmp_path / "rows"), "--shard-rows", "2"]) == 0
    rows = [json.loads(line) for path in sorted((tmp_path / "rows").glob("*.jsonl")) for line in path.open()]
    assert [row["image"] for row in rows] == [f"{pages}#page={n}" for n in (1, 2, 3)]
