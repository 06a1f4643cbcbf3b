"""What all annotation formats share: a folder that appears whole or not at all, and a unique name for each image."""

from __future__ import annotations

import contextlib
import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, ClassVar, Literal, Self, get_args

from PIL import ExifTags, Image

from wildcat.errors import ConfigError, ImageError, did_you_mean
from wildcat.export.instances import Instance, InstanceParams, find_instances
from wildcat.files import making, refuse_existing, writing
from wildcat.prediction import Prediction, file_name, free_name, image_suffix

ImageMode = Literal["copy", "link"]

PORTABLE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})
"""Files that every reader of these formats opens; images of other kinds are written anew."""


@dataclass(frozen=True)
class ExportedImage:
    """An image as the annotations know it.

    Attributes:
        stem: unique, letters, digits, dots and dashes; what its files are called.
        file: name of the image's file in the writer's image folder.
        width, height: as a person sees it; the file has no EXIF orientation that would turn it.
        source: where it came from, as it was given.
    """

    stem: str
    file: str
    width: int
    height: int
    source: str


class AnnotationWriter(ABC):
    """Writes the annotations of predictions into a new folder, one at a time; a context manager.

    All is written into a hidden folder beside `folder`, see `wildcat.files.making`. Images are there too, since
    the formats are data sets: as they are, but for those with an EXIF orientation (readers disagree on it) and of kinds
    that not every reader opens, which are written anew, upright.

    Args:
        folder: must not exist, or be empty.
        classes: of the model; predictions must have the same.
        params: which regions are written.
        images: "copy", or "link" for symbolic links to the originals, which must then stay where they are.
        model: what made the predictions, for the formats that name it.

    Raises:
        RunError: the folder exists and is not empty, or cannot be written.
        ConfigError: an unknown value of `images`, or classes that the format cannot hold.
    """

    image_folder: ClassVar[str] = "images"

    def __init__(
        self,
        folder: Path,
        classes: Sequence[str],
        params: InstanceParams | None = None,
        *,
        images: ImageMode = "copy",
        model: str = "",
    ) -> None:
        if images not in get_args(ImageMode):
            hint = did_you_mean(str(images), get_args(ImageMode)) or f"Choose one of: {', '.join(get_args(ImageMode))}."
            raise ConfigError(f"images={images!r} is unknown.", hint)
        refuse_existing(folder)
        self.folder, self.classes, self.params = folder, tuple(classes), params or InstanceParams()
        self.images, self.model = images, model
        self.partial: Path  # while the block lasts
        self.stack, self.open_files = contextlib.ExitStack(), contextlib.ExitStack()
        self.taken: dict[str, int] = {}

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self.partial = stack.enter_context(making(self.folder))
            stack.callback(self._close)
            with writing(self.folder):
                (self.partial / self.image_folder).mkdir(parents=True)
                self._begin()
            self.stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.stack.__exit__(kind, error, trace)
            return
        with self.stack, writing(self.folder):
            self._finish()
            self.open_files.close()

    def add(self, prediction: Prediction, name: str) -> list[Instance]:
        """Write one prediction; `name` is the image's relative path and names its files. Returns what was written.

        Raises:
            RunError: it cannot be written.
            ImageError: the image has vanished since it was read.
        """
        if prediction.classes != self.classes:
            raise ConfigError("this prediction is of a model with other classes.", "Give each model a folder.")
        instances = find_instances(prediction, self.params)
        stem = free_name(file_name(str(Path(name).with_suffix(""))), self.taken)
        with writing(self.folder):
            file = self._place(prediction, stem)
            image = ExportedImage(stem, file, prediction.width, prediction.height, prediction.path)
            self._write(image, instances)
        return instances

    @abstractmethod
    def _begin(self) -> None:
        """Make what the format needs in `self.partial` before the first image."""

    @abstractmethod
    def _write(self, image: ExportedImage, instances: Sequence[Instance]) -> None:
        """Write the annotations of one image."""

    @abstractmethod
    def _finish(self) -> None:
        """Write what the format needs after the last image."""

    def _close(self) -> None:
        with contextlib.suppress(OSError):  # a full disk, of files that are about to be removed
            self.open_files.close()

    def _place(self, prediction: Prediction, stem: str) -> str:
        """Bring the image into the folder; returns its file's name."""
        folder, source = self.partial / self.image_folder, prediction.image
        if isinstance(source, Path) and not source.is_file():
            raise ImageError(f"{source} does not exist any more.", "Bring it back and export again.")
        suffix = portable_suffix(source) if isinstance(source, Path) else ""
        if isinstance(source, Path) and suffix:
            target = folder / f"{stem}{suffix}"
            if self.images == "link":
                target.symlink_to(source.resolve())
            else:
                shutil.copyfile(source, target)
            return target.name
        image = prediction.load_image()
        lossy = isinstance(source, Path) and source.suffix.lower() in (".jpg", ".jpeg")
        file = f"{stem}.{image_suffix(image) if lossy else 'png'}"
        image.save(folder / file, quality=95)
        return file


def portable_suffix(path: Path) -> str:
    """The suffix under which a copy of the file opens upright in every reader, or "" where there is none."""
    with Image.open(path) as image:
        kind = path.suffix.lower()
        if kind not in PORTABLE_SUFFIXES:
            kind = f".{(image.format or '').lower()}"
        return kind if kind in PORTABLE_SUFFIXES and not _is_turned(image) else ""


def _is_turned(image: Image.Image) -> bool:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
    except Exception:  # broken EXIF, of which Pillow raises many kinds: shown as it lies, as `read_image` does
        return False


class JsonRows:
    """A JSON list in a text file, written an item a line, so that it is never in memory as a whole."""

    def __init__(self, file: IO[str]) -> None:
        self.file, self.count = file, 0
        file.write("[")

    def add(self, value: object) -> None:
        self.file.write(f"{',' if self.count else ''}\n{json.dumps(value, ensure_ascii=False)}")
        self.count += 1

    def end(self) -> None:
        self.file.write("\n]")


def open_text(path: Path) -> IO[str]:
    """A new UTF-8 file for JSON; what is not Unicode in a file name is written as JSON's own escapes."""
    return path.open("w", encoding="utf-8", errors="backslashreplace", newline="\n")
