"""TIFF files that Pillow does not read as images that it opens: several bands of more than 8 bits or of floats.

`wildcat.data.formats.load_plugin` imports this module when it meets such a file; it needs rasterio, which reads with
GDAL.
"""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import rasterio
from numpy.typing import NDArray
from PIL import Image
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from wildcat.data.formats import TIFF, FormatError, RangedImageFile

_COLOURS = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
_BANDS_HINT = "Name three bands: gdal_translate -b 4 -b 3 -b 2 -colorinterp red,green,blue IN.tif OUT.tif"


class BandsImageFile(RangedImageFile):
    """A TIFF with one band, three bands, or bands that it marks as red, green and blue."""

    format = "TIFF-BANDS"
    format_description = "TIFF with the bands of a satellite image"

    def _open(self) -> None:
        self.file = cast(BinaryIO, self.fp)
        try:
            with self._dataset() as dataset:
                self._size = (dataset.width, dataset.height)
                colours = dataset.colorinterp
                self.dtype, self.nodata, count = np.dtype(dataset.dtypes[0]), dataset.nodata, dataset.count
        except RasterioError as error:
            raise SyntaxError(str(error)) from error
        if all(colour in colours for colour in _COLOURS):
            self.bands = [colours.index(colour) + 1 for colour in _COLOURS]
        elif count in (1, 3):
            self.bands = list(range(1, count + 1))
        else:
            raise FormatError(f"has {count} bands of {self.dtype}, of which none are marked as colours", _BANDS_HINT)
        self._mode = "RGB" if len(self.bands) == 3 else "L"

    def displayed(self, intensity: tuple[float, float] | None) -> Image.Image:
        """The bands in grey or RGB; pixels without data are black.

        16 bits are read as 0 to 65535 without `intensity`, other values have no defined white.
        """
        if intensity is None and self.dtype not in (np.uint8, np.uint16):
            hint = "Train with their range, --intensity-range LOW,HIGH."
            raise FormatError(f"holds {self.dtype} values, which have no defined white", hint)
        low, high = (0, np.iinfo(self.dtype).max) if intensity is None or self.dtype == np.uint8 else intensity
        try:
            with self._dataset() as dataset:
                bands = [self._eight_bits(dataset.read(band), low, high) for band in self.bands]
        except RasterioError as error:
            raise FormatError(f"is broken: {error}", "Copy it again from its source.") from error
        return Image.fromarray(bands[0] if len(bands) == 1 else np.stack(bands, axis=2))

    def _eight_bits(self, values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
        scaled = (values.astype(np.float32) - low) * (255 / (high - low))
        if self.nodata is not None:
            scaled[values == self.nodata] = 0
        shown: NDArray[np.uint8] = np.nan_to_num(scaled, nan=0.0).clip(0, 255).round().astype(np.uint8)
        return shown

    def _dataset(self) -> AbstractContextManager[Any]:
        """The file, opened with GDAL: by its path, or from memory."""
        name = getattr(self.file, "name", None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            if isinstance(name, str) and Path(name).is_file():
                return cast(AbstractContextManager[Any], rasterio.open(name, driver="GTiff"))
            self.file.seek(0)
            return cast(AbstractContextManager[Any], rasterio.open(self.file, driver="GTiff"))


def register_bands_opener() -> None:
    """Make Pillow open these files, after its own reader of TIFF has refused them."""
    Image.register_open(BandsImageFile.format, BandsImageFile, lambda head: head[:4] in TIFF)
