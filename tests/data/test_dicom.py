"""DICOM: grey values as the file says, against the formulas of PS3.3 C.11 by hand; colour, files without pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from wildcat.data.image_ref import decode_image, read_open_file
from wildcat.data.images import decode_file, header_error, read_image
from wildcat.data.listing import list_images
from wildcat.errors import ImageError

pydicom = pytest.importorskip("pydicom")


def write_dicom(path: Path, pixels: NDArray[Any] | None, photometric: str = "MONOCHROME2", **elements: Any) -> Path:
    """A DICOM file of (H, W), (H, W, 3) or with NumberOfFrames (N, H, W) pixels; elements by their keyword."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    if pixels is not None:
        colours = 3 if pixels.shape[-1] == 3 and photometric == "RGB" else 1
        data.Rows, data.Columns = pixels.shape[:-1][-2:] if colours == 3 else pixels.shape[-2:]
        data.SamplesPerPixel, data.PhotometricInterpretation = colours, photometric
        if colours == 3:
            data.PlanarConfiguration = 0
        bits = 8 * pixels.itemsize
        data.BitsAllocated = data.BitsStored = bits
        data.HighBit, data.PixelRepresentation = bits - 1, int(np.issubdtype(pixels.dtype, np.signedinteger))
        data.PixelData = pixels.tobytes()
    for name, value in elements.items():
        setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)
    return path


VALUES = np.array([[0, 100, 500, 900, 1000, 3000]], np.uint16)


def greys(path: Path, intensity: tuple[float, float] | None = None) -> list[int]:
    shown = np.asarray(decode_file(path, intensity=intensity)[0])
    assert (shown[..., 0] == shown[..., 2]).all()
    return shown[0, :, 0].tolist()  # type: ignore[no-any-return]


def linear(values: NDArray[Any], center: float, width: float) -> list[int]:
    """PS3.3 C.11.2.1.2.1."""
    shown = ((values - (center - 0.5)) / (width - 1) + 0.5) * 255
    return np.clip(shown, 0, 255).round().astype(int).tolist()  # type: ignore[no-any-return]


def test_the_window_of_the_file(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", VALUES, WindowCenter=500, WindowWidth=800)
    assert greys(path) == linear(VALUES[0].astype(float), 500, 800)
    path = write_dicom(tmp_path / "b.dcm", VALUES, WindowCenter=["500", "40"], WindowWidth=["800", "80"])
    assert greys(path) == linear(VALUES[0].astype(float), 500, 800), "the first of several windows"
    exact = ((VALUES[0] - 500.0) / 800 + 0.5).clip(0, 1) * 255
    path = write_dicom(tmp_path / "zero.dcm", VALUES, WindowCenter=0, WindowWidth=800)
    assert greys(path) == linear(VALUES[0].astype(float), 0, 800), "0 is a center"
    path = write_dicom(tmp_path / "empty.dcm", VALUES, WindowCenter=None, WindowWidth=None)
    assert greys(path) == (VALUES[0] / 65535 * 255).round().astype(int).tolist(), "no window"
    path = write_dicom(tmp_path / "c.dcm", VALUES, WindowCenter=500, WindowWidth=800, VOILUTFunction="LINEAR_EXACT")
    assert greys(path) == exact.round().astype(int).tolist()
    sigmoid = 255 / (1 + np.exp(-4 * (VALUES[0] - 500.0) / 800))
    path = write_dicom(tmp_path / "d.dcm", VALUES, WindowCenter=500, WindowWidth=800, VOILUTFunction="SIGMOID")
    assert greys(path) == sigmoid.round().astype(int).tolist()


def test_rescaled_values_and_an_intensity_range_in_their_units(tmp_path: Path) -> None:
    stored, units = np.array([[0, 924, 1064, 3000]], np.int16), np.array([-1024, -100, 40, 1976.0])
    ct = {"RescaleSlope": 1, "RescaleIntercept": -1024}
    path = write_dicom(tmp_path / "a.dcm", stored, WindowCenter=40, WindowWidth=400, **ct)
    assert greys(path) == linear(units, 40, 400)
    assert greys(path, (-1024, 1976)) == ((units + 1024) / 3000 * 255).round().astype(int).tolist(), "the user's range"
    path = write_dicom(tmp_path / "b.dcm", stored, **ct)
    with pytest.raises(ImageError, match=r"b\.dcm has no window for its values \(-1024 to 1976\)") as caught:
        read_image(path)
    assert "--intensity-range LOW,HIGH" in caught.value.hint
    assert greys(path, (-1024, 1976)) == [0, 79, 90, 255]
    assert header_error(path) is None


def test_without_a_window_the_bits_of_the_file_count(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", VALUES, BitsStored=12, HighBit=11)
    assert greys(path) == (VALUES[0] / 4095 * 255).round().astype(int).tolist()
    path = write_dicom(tmp_path / "b.dcm", VALUES, BitsStored=12, HighBit=11, WindowCenter=0, WindowWidth=0)
    assert greys(path) == (VALUES[0] / 4095 * 255).round().astype(int).tolist(), "no window has a width of 0"
    eight = np.array([[0, 7, 255]], np.uint8)
    assert greys(write_dicom(tmp_path / "c.dcm", eight)) == [0, 7, 255]


def test_monochrome1_is_inverted(tmp_path: Path) -> None:
    window = {"WindowCenter": 500, "WindowWidth": 800}
    path = write_dicom(tmp_path / "a.dcm", VALUES, "MONOCHROME1", **window)
    assert greys(path) == [255 - value for value in linear(VALUES[0].astype(float), 500, 800)]
    assert greys(path, (0, 1000)) == [255 - round(min(value, 1000) * 0.255) for value in VALUES[0].tolist()]


def test_a_voi_lut(tmp_path: Path) -> None:
    table = pydicom.Dataset()
    table.LUTDescriptor, table.LUTData = [4, 1, 8], [10, 200, 30, 250]
    table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
    path = write_dicom(tmp_path / "a.dcm", np.array([[0, 1, 2, 3, 4, 9]], np.uint16), VOILUTSequence=[table])
    assert greys(path) == [10, 10, 200, 30, 250, 250]


def test_frames_with_windows_of_their_own(tmp_path: Path) -> None:
    frames = np.stack([VALUES, VALUES[:, ::-1]])
    groups = []
    for center in (500, 1000):
        window, group = pydicom.Dataset(), pydicom.Dataset()
        window.WindowCenter, window.WindowWidth = center, 800
        group.FrameVOILUTSequence = [window]
        groups.append(group)
    path = write_dicom(
        tmp_path / "a.dcm", frames, NumberOfFrames=2, PerFrameFunctionalGroupsSequence=groups, RescaleSlope=1
    )
    assert greys(path) == linear(VALUES[0].astype(float), 500, 800), "the first frame"


def test_colour(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    path = write_dicom(tmp_path / "a.dcm", pixels, "RGB")
    assert np.array_equal(np.asarray(read_image(path)), pixels)
    assert np.array_equal(np.asarray(decode_file(path, intensity=(0, 10))[0]), pixels), "a range is for grey images"
    assert decode_image(read_open_file(path.read_bytes()))[1] == (4, 5), "from memory"


def test_files_without_pixels_and_damaged_ones(tmp_path: Path) -> None:
    report = write_dicom(tmp_path / "report.dcm", None)
    with pytest.raises(ImageError, match=r"report\.dcm is a DICOM file without pixels \(Secondary Capture") as caught:
        read_image(report)
    assert caught.value.hint == "Leave it out."
    whole = write_dicom(tmp_path / "whole", np.zeros((9, 9), np.uint8))  # no suffix: the content decides
    empty = write_dicom(tmp_path / "empty.dcm", np.zeros((9, 9), np.uint8))
    data = pydicom.dcmread(empty)
    del data.PixelData
    data.save_as(empty)
    with pytest.raises(ImageError, match=r"empty\.dcm is a DICOM file without pixels"):
        read_image(empty)
    cut = tmp_path / "cut.dcm"
    cut.write_bytes(whole.read_bytes()[:-30])
    with pytest.raises(ImageError, match=r"cut\.dcm is broken"):
        read_image(cut)
    assert list_images(tmp_path) == sorted([whole, empty, cut])  # judged by their headers


def test_compressed_pixels(tmp_path: Path) -> None:
    """RLE is decoded; what no installed decoder reads names one."""
    from pydicom.uid import JPEGLosslessSV1, RLELossless

    pixels = np.random.default_rng(0).integers(0, 256, (6, 5), dtype=np.uint8)
    path = write_dicom(tmp_path / "a.dcm", pixels)
    data = pydicom.dcmread(path)
    data.compress(RLELossless)
    data.save_as(path)
    assert np.array_equal(np.asarray(read_image(path))[..., 0], pixels)
    data.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    data.save_as(path)
    with pytest.raises(ImageError, match=r"a\.dcm is compressed as JPEG Lossless.*, which pydicom alone") as caught:
        read_image(path)
    assert "pip install python-gdcm" in caught.value.hint


def test_damage_anywhere_is_an_image_error_or_an_image(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", VALUES, WindowCenter=500, WindowWidth=800, NumberOfFrames=1)
    content, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(content)
        for place in rng.integers(128, len(content), 3):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            assert read_image(path).mode == "RGB"
        except ImageError as error:
            assert str(path) in error.message


def test_a_rescale_that_changes_nothing(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", VALUES, BitsStored=12, HighBit=11, RescaleSlope=1, RescaleIntercept=0)
    assert greys(path) == (VALUES[0] * (255 / 4095)).round().tolist()
