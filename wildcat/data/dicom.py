"""DICOM files as images that Pillow opens: grey values through the window of the file, and colour, frame by frame.

`wildcat.data.formats.load_plugin` imports this module when it meets such a file; it needs pydicom.
"""

from __future__ import annotations

from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pydicom import Dataset, dcmread
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi, apply_windowing, get_decoder, pixel_array

from wildcat.data.formats import FormatError, RangedImageFile

_RANGE_HINT = "Train with their range, --intensity-range LOW,HIGH, in the units of the file (for CT, Hounsfield units)."
_DECODER_HINT = "Type: pip install python-gdcm; or convert it, for example with dcmdjpeg of DCMTK."


class DicomImageFile(RangedImageFile):
    """A DICOM file, one of its frames at a time; `displayed` gives 8 bits. The pixels are not read on opening."""

    format = "DICOM"
    format_description = "Digital Imaging and Communications in Medicine"

    def _open(self) -> None:
        self.file = cast(BinaryIO, self.fp)
        self.file.seek(128)
        if self.file.read(4) != b"DICM":
            raise SyntaxError("not a DICOM file")
        self.file.seek(0)
        self.dataset = dcmread(self.file, stop_before_pixels=True)
        if "Rows" not in self.dataset or "Columns" not in self.dataset:
            kind = self.dataset.file_meta.get("MediaStorageSOPClassUID")
            raise FormatError(
                f"is a DICOM file without pixels ({kind.name if kind else 'of unknown class'})", "Leave it out."
            )
        self._size = (int(self.dataset.Columns), int(self.dataset.Rows))
        self._mode = "RGB" if self.dataset.get("SamplesPerPixel", 1) == 3 else "L"
        self.n_frames = int(self.dataset.get("NumberOfFrames") or 1)
        self.is_animated = self.n_frames > 1
        self.frame = 0

    def seek(self, frame: int) -> None:
        """Go to a frame, from 0."""
        if self._seek_check(frame):
            self.frame, self._im = frame, None

    def tell(self) -> int:
        """The current frame."""
        return self.frame

    def displayed(self, intensity: tuple[float, float] | None) -> Image.Image:
        """The frame in grey or RGB.

        Grey values become visible by `intensity`, in the units of the file (after its rescale slope and intercept),
        otherwise by its VOI LUT or first window, otherwise from 0 to the highest value of its bits. MONOCHROME1 is
        inverted: high values are bright in all files.
        """
        values = self._stored_values()
        if self.dataset.PhotometricInterpretation == "PALETTE COLOR":
            values = apply_color_lut(values, self.dataset)
            return _scaled(values, 0, np.iinfo(values.dtype).max)
        if values.ndim == 3:
            return _scaled(values, 0, 2**self.dataset.BitsStored - 1)
        attributes = self._frame_attributes()
        shown = _grey(values, attributes, intensity)
        return ImageOps.invert(shown) if attributes.PhotometricInterpretation == "MONOCHROME1" else shown

    def _stored_values(self) -> NDArray[Any]:
        """(H, W), or (H, W, 3) RGB."""
        syntax = self.dataset.file_meta.TransferSyntaxUID
        if syntax.is_encapsulated and not get_decoder(syntax).is_available:
            raise FormatError(f"is compressed as {syntax.name}, which pydicom alone cannot decode", _DECODER_HINT)
        self.file.seek(0)
        try:
            values: NDArray[Any] = pixel_array(
                dcmread(self.file) if syntax.is_deflated else self.file, index=self.frame
            )
        except AttributeError as error:  # an element that describes the pixels, or the pixels themselves
            raise FormatError(f"is a DICOM file without pixels ({error})", "Leave it out.") from error
        except RuntimeError as error:  # from the decoders of compressed pixels
            hint = f"If it is not damaged, another decoder may read it. {_DECODER_HINT}"
            raise FormatError(f"cannot be decoded ({error})", hint) from error
        return values

    def _frame_attributes(self) -> Dataset:
        """The elements of the file, with those that an enhanced file states for all frames, or for this one."""
        merged = Dataset()
        merged.update(self.dataset)
        shared = self.dataset.get("SharedFunctionalGroupsSequence") or []
        of_frames = self.dataset.get("PerFrameFunctionalGroupsSequence") or []
        for groups in [*shared[:1], *of_frames[self.frame : self.frame + 1]]:
            for element in groups:
                if element.VR == "SQ" and element.value:
                    merged.update(element.value[0])
        return merged


def _grey(values: NDArray[Any], attributes: Dataset, intensity: tuple[float, float] | None) -> Image.Image:
    """(H, W) stored values as 8 bits, see `DicomImageFile.displayed`."""
    same = attributes.get("RescaleSlope") == 1 and attributes.get("RescaleIntercept") == 0
    if not same or attributes.get("ModalityLUTSequence"):  # the rescaled values would be floats
        values = apply_modality_lut(values, attributes)
    if intensity is not None:
        return _scaled(values, *intensity)
    if attributes.get("VOILUTSequence"):
        highest = 2 ** attributes.VOILUTSequence[0].LUTDescriptor[2] - 1
        return _scaled(apply_voi(values.astype(np.int64), attributes), 0, highest)
    if (window := _window(attributes)) is not None:
        return _scaled(apply_windowing(values, window), 0, 255)
    stored_bits = int(attributes.BitsStored)
    if np.issubdtype(values.dtype, np.unsignedinteger) and stored_bits <= 16:
        return _scaled(values, 0, 2**stored_bits - 1)
    raise FormatError(f"has no window for its values ({values.min():g} to {values.max():g})", _RANGE_HINT)


def _window(attributes: Dataset) -> Dataset | None:
    """The first window, stated so that pydicom maps it to 0..255; None if there is none, or an impossible one."""
    centers, widths = (
        np.atleast_1d(
            np.asarray(() if attributes.get(name) in (None, "") else attributes[name].value, dtype=np.float64)
        )
        for name in ("WindowCenter", "WindowWidth")
    )
    function = str(attributes.get("VOILUTFunction") or "LINEAR")
    if not (centers.size and widths.size) or widths[0] < (1 if function == "LINEAR" else 1e-9):
        return None
    window = Dataset()
    window.PhotometricInterpretation, window.PixelRepresentation, window.BitsStored = "MONOCHROME2", 0, 8
    window.WindowCenter, window.WindowWidth, window.VOILUTFunction = float(centers[0]), float(widths[0]), function
    return window


def _scaled(values: NDArray[Any], low: float, high: float) -> Image.Image:
    """Values of which `low` becomes 0 and `high` 255."""
    scaled = (np.nan_to_num(values.astype(np.float64), nan=low) - low) * (255 / (high - low))
    return Image.fromarray(scaled.clip(0, 255).round().astype(np.uint8))


def register_dicom_opener() -> None:
    """Make Pillow open DICOM files."""
    Image.register_open(DicomImageFile.format, DicomImageFile, lambda _: True)  # the signature follows 128 free bytes
