"""What is an image: the formats that Pillow decodes, by content, and the names of those that it does not."""

from __future__ import annotations

import contextlib
import importlib
from collections import Counter
from typing import IO, Any, NamedTuple

from PIL import Image, ImageFile

from wildcat.data.remote import file_name, file_suffix
from wildcat.errors import install_extra

# Files with these suffixes (lower case) are images; a damaged one is an error. Files with other suffixes are opened.
# fmt: off
IMAGE_SUFFIXES = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".webp", ".avif",
    ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".tga",
))

# Files that lie beside images by the thousand: never opened to see whether they are images.
_DATA_SUFFIXES = frozenset((
    ".txt", ".json", ".jsonl", ".xml", ".csv", ".tsv", ".yaml", ".yml", ".md", ".html", ".tar", ".zip", ".gz",
    ".parquet", ".npy", ".npz", ".pt", ".cls", ".mat", ".pdf",
))

# TIFF files whose first image is a thumbnail.
_RAW_SUFFIXES = (
    ".nef", ".nrw", ".cr2", ".cr3", ".crw", ".arw", ".srf", ".sr2", ".dng", ".orf", ".rw2", ".raf", ".pef", ".srw",
    ".3fr", ".iiq",
)
# fmt: on

# Pillow only identifies these, decodes them by starting another program, or takes any text for them.
_NOT_DECODED = frozenset({"BUFR", "GRIB", "HDF5", "MPEG", "WMF", "EPS", "MCIDAS", "XVTHUMB", "IPTC", "XBM"})

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the first bytes of TIFF and BigTIFF
HEAD_BYTES = 256  # of a file that show its format
SNIFFED_BYTES = 1 << 16  # of a remote file or member of a shard that are read to see whether it is an image


class OtherFormat(NamedTuple):
    """A format of images that Pillow does not open by itself.

    Attributes:
        name: for messages.
        remedy: what to install or to do.
        module: the module that makes Pillow open it; it is imported when such a file is met. Empty: there is none.
        package, extra: the package that the module needs, and our extra that installs it; empty: we have none.
    """

    name: str
    remedy: str
    module: str = ""
    package: str = ""
    extra: str = ""

    @property
    def hint(self) -> str:
        """The remedy as a sentence."""
        sentence = f"{self.remedy[0].upper()}{self.remedy[1:]}."
        return f"Type: {self.remedy}" if self.remedy.startswith("pip") else sentence


class FormatError(Exception):
    """What is wrong with an image of a `RangedImageFile`: a predicate, to which its name is added, and a hint."""

    def __init__(self, problem: str, hint: str) -> None:
        super().__init__(problem)
        self.hint = hint


class RangedImageFile(ImageFile.ImageFile):
    """An image of Pillow whose values become visible by a range: one that the file states, or that the user gives."""

    def displayed(self, intensity: tuple[float, float] | None) -> Image.Image:
        """The image in grey or RGB of 8 bits; `intensity`: the values that become black and white, if given.

        Raises:
            FormatError: its values have no defined black and white, or cannot be decoded.
        """
        raise NotImplementedError

    def load(self) -> Any:
        """Decode the pixels, as all of Pillow's images do."""
        if self._im is None:
            shown = self.displayed(None)
            self._mode, self.im = shown.mode, shown.im
        return super().load()


_HEIC = OtherFormat("HEIC", install_extra("heif"), "pillow_heif", "pillow-heif", "heif")
_JPEG_XL = OtherFormat("JPEG XL", "pip install pillow-jxl-plugin", "pillow_jxl")
_DICOM = OtherFormat("DICOM", install_extra("dicom"), "wildcat.data.dicom", "pydicom", "dicom")
TIFF_BANDS = OtherFormat(  # or damaged, which only shows when they are opened
    "a TIFF of several bands, or damaged", install_extra("geo"), "wildcat.data.bands", "rasterio", "geo"
)
_RAW = OtherFormat("camera raw", "develop to JPEG, PNG or TIFF")
_SVG = OtherFormat("SVG", "render to PNG")
_VIDEO = OtherFormat("video", "name the file in wildcat predict, or give the frames of wildcat.data.video_frames")
VIDEO_SUFFIXES = frozenset((".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".mts", ".wmv"))
_BY_SUFFIX = {
    **dict.fromkeys((".heic", ".heif", ".hif"), _HEIC),
    ".jxl": _JPEG_XL,
    **dict.fromkeys((".dcm", ".dicom"), _DICOM),
    **dict.fromkeys(_RAW_SUFFIXES, _RAW),
    **dict.fromkeys((".svg", ".svgz"), _SVG),
    **dict.fromkeys(VIDEO_SUFFIXES, _VIDEO),
}
_PLUGIN_SUFFIXES = frozenset(suffix for suffix, other in _BY_SUFFIX.items() if other.module)
NAMED_SUFFIXES = IMAGE_SUFFIXES | _PLUGIN_SUFFIXES  # that a table may leave out of the name of an image
_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")  # of HEIC; that of AVIF is "avif"


def other_format(head: bytes, name: str) -> OtherFormat | None:
    """The format of a file by its first bytes, if Pillow does not open it by itself, or only a thumbnail; else None."""
    if head[128:132] == b"DICM":
        return _DICOM
    if head[4:8] == b"ftyp" and b"avif" not in head[8:64]:
        return _HEIC if head[8:12] in _BRANDS else _RAW if head[8:12] == b"crx " else _VIDEO
    if head.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):
        return _JPEG_XL
    is_raw = head.startswith((b"II", b"MM")) and _BY_SUFFIX.get(file_suffix(name)) is _RAW
    return _RAW if is_raw else None


def load_plugin(other: OtherFormat) -> bool:
    """Import the module that makes Pillow open a format; False if there is none, or it is not installed."""
    if not other.module:
        return False
    try:
        module = importlib.import_module(other.module)
    except ImportError:
        return False
    for name, register in vars(module).items():
        if name.startswith("register_") and name.endswith("_opener"):  # of HEIF, AVIF, DICOM, ...
            register()
    return True


def skipped_type(path: str, file: IO[bytes] | None) -> str:
    """The type of a file that is no image, for `skipped_note`; empty for an image.

    Args:
        file: the file, or its beginning, if `needs_content`; None: it cannot be read, and its suffix decides.
    """
    suffix = file_suffix(path)
    if suffix in IMAGE_SUFFIXES:
        return ""
    other = None
    if file is not None and needs_content(path):
        head = file.read(HEAD_BYTES)
        other = other_format(head, path)
        if (other is None or load_plugin(other)) and _opens(file, head):
            return ""
    other = other or _BY_SUFFIX.get(suffix)
    if other is not None:
        return f"{other.name} without pixels, or damaged" if load_plugin(other) else f"{other.name} ({other.remedy})"
    name = file_name(path)
    return name if name.lower() in ("thumbs.db", "desktop.ini") else suffix or "without suffix"


def _opens(file: IO[bytes], head: bytes) -> bool:
    """Whether Pillow decodes the file, judged by its header."""
    Image.init()
    for name in Image.ID:
        accept = Image.OPEN[name][1]
        if accept is None or name in _NOT_DECODED:  # formats without a signature (TGA) are known by their suffix alone
            continue
        with contextlib.suppress(Exception):  # decoders raise a dozen types for files that are not theirs
            accepted = accept(head[:16])
            if accepted and not isinstance(accepted, str):  # a text means that a decoder is missing
                file.seek(0)
                with Image.open(file, formats=[name]):
                    return True
    return False


def needs_content(path: str) -> bool:
    """Whether the content of a file decides if it is an image, see `skipped_type`."""
    return file_suffix(path) not in IMAGE_SUFFIXES | _DATA_SUFFIXES


def skipped_note(place: object, skipped: Counter[str]) -> str:
    """One sentence that counts what was skipped in a place ("": not named) by type; empty if nothing was.

    >>> skipped_note("photos", Counter({".txt": 2, "HEIC (pip install pillow-heif)": 1}))
    'photos: skipped 3 entries that are no images: 2 .txt, 1 HEIC (pip install pillow-heif).'
    """
    if not skipped:
        return ""
    plural = {kind: "s" for kind, count in skipped.items() if count > 1 and kind.endswith((" file", " folder"))}
    listed = ", ".join(f"{count:,} {kind}{plural.get(kind, '')}" for kind, count in skipped.most_common(16))
    more = f", {len(skipped) - 16} other types" if len(skipped) > 16 else ""
    total = sum(skipped.values())
    noun = "entry that is no image" if total == 1 else "entries that are no images"
    return f"{place}{': ' if place else ''}skipped {total:,} {noun}: {listed}{more}."
