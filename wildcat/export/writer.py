"""The base class of all annotation formats: an atomic output folder with a uniquely named copy of each image."""

from __future__ import annotations

import contextlib
import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar, Literal, Self, get_args

from PIL import Image

from wildcat.data.images import orientation_of
from wildcat.errors import ConfigError, ImageError
from wildcat.export.instances import Instance, InstanceParams, find_instances
from wildcat.export.polygons import check_tolerance
from wildcat.files import file_name, free_name, making, refuse_existing, writing
from wildcat.prediction import Prediction
from wildcat.viz.overlay import image_suffix

ImageMode = Literal["copy", "link"]

BROWSER_FORMATS = frozenset({"JPEG", "PNG", "BMP", "WEBP"})  # of images that browsers show
SUFFIXES = {
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "BMP": (".bmp",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
}


@dataclass(frozen=True)
class ExportedImage:
    """An image in the output folder.

    Attributes:
        stem: unique base name of its files: letters, digits, dots, dashes and underscores.
        file: name of the image file in the writer's image folder.
        width, height: with the EXIF orientation applied, as in the file.
        source: the path it was read from, as given.
    """

    stem: str
    file: str
    width: int
    height: int
    source: str


class AnnotationWriter(ABC):
    """A context manager that writes the instances of predictions into a new folder, one prediction at a time.

    Everything is written into a temporary folder first, see `wildcat.files.making`. Images are copied unchanged, except
    that images with an EXIF orientation (which readers treat differently) and of types that not every reader opens are
    converted.

    Args:
        folder: must not exist, or be empty.
        classes: of the model; predictions must have the same classes.
        params: which regions become instances.
        images: "copy" the images, or "link" to them with symbolic links.
        model: name of the model, for the formats that store it.
        simplify: tolerance of outlines in pixels, see `simplify_outline`; None: the default of the format.
        scores: YOLO only, see `YoloWriter`.

    Attributes:
        image_folder: name of the folder with the images.
        portable: the formats of images that every reader opens; others are converted.
        options: names of the arguments above that only some formats take.
        default_simplify: tolerance of outlines if `simplify` is None.

    Raises:
        RunError: the folder exists and is not empty, or cannot be written.
        ConfigError: an argument is out of range, or the format cannot hold the classes.
    """

    image_folder: ClassVar[str] = "images"
    portable: ClassVar[frozenset[str]] = BROWSER_FORMATS | {"TIFF"}
    options: ClassVar[tuple[str, ...]] = ()
    default_simplify: ClassVar[float] = 1.0

    def __init__(
        self,
        folder: Path,
        classes: Sequence[str],
        params: InstanceParams | None = None,
        *,
        images: ImageMode = "copy",
        model: str = "",
        simplify: float | None = None,
        scores: bool = False,
    ) -> None:
        if images not in get_args(ImageMode):
            raise ConfigError(f"images={images!r}: give {' or '.join(get_args(ImageMode))}.")
        refuse_existing(folder)
        self.folder, self.classes, self.params = folder, tuple(classes), params or InstanceParams()
        self.images, self.model, self.scores = images, model, scores
        self.simplify = check_tolerance(self.default_simplify if simplify is None else simplify)
        self.partial: Path  # the temporary folder, while the context is open
        self.open_files = contextlib.ExitStack()
        self._context: contextlib.AbstractContextManager[None]
        self._names: dict[str, int] = {}

    def __enter__(self) -> Self:
        self._context = self._open()
        self._context.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)

    @contextlib.contextmanager
    def _open(self) -> Iterator[None]:
        with making(self.folder) as self.partial:
            try:
                with writing(self.folder):
                    (self.partial / self.image_folder).mkdir(parents=True)
                    self._begin()
                yield
                with writing(self.folder):
                    self._finish()
                    self.open_files.close()
            finally:
                with contextlib.suppress(OSError):  # a full disk; the files are about to be removed
                    self.open_files.close()

    def add(self, prediction: Prediction, name: str) -> list[Instance]:
        """Write one prediction and return its instances; `name` is the relative path of the image and names its files.

        Raises:
            RunError: the folder cannot be written.
            ImageError: the image file no longer exists.
        """
        if prediction.classes != self.classes:
            raise ConfigError("this prediction is of a model with other classes.", "Give each model a folder.")
        instances = find_instances(prediction, self.params)
        stem = free_name(file_name(str(Path(name).with_suffix(""))), self._names)
        with writing(self.folder):
            file = self._write_image(prediction, stem)
            self._write(ExportedImage(stem, file, prediction.width, prediction.height, prediction.path), instances)
        return instances

    @abstractmethod
    def _begin(self) -> None:
        """Create files and folders in `self.partial` before the first image."""

    @abstractmethod
    def _write(self, image: ExportedImage, instances: Sequence[Instance]) -> None:
        """Write the annotations of one image."""

    @abstractmethod
    def _finish(self) -> None:
        """Complete the files after the last image."""

    def _open_text(self, name: str) -> IO[str]:
        """Open a file for JSON until the writer is closed; lone surrogates in file names become JSON escapes."""
        path = self.partial / name
        return self.open_files.enter_context(path.open("w", encoding="utf-8", errors="backslashreplace", newline="\n"))

    def _write_image(self, prediction: Prediction, stem: str) -> str:
        """Copy, link or convert the image into the image folder; returns the file name."""
        folder, source = self.partial / self.image_folder, prediction.image
        if isinstance(source, Path):
            if not source.is_file():
                raise ImageError(f"{source} does not exist any more.", "Restore it and export again.")
            if suffix := self._unchanged_suffix(source):
                target = folder / f"{stem}{suffix}"
                if self.images == "link":
                    target.symlink_to(source.resolve())
                else:
                    shutil.copyfile(source, target)
                return target.name
        image = prediction.load_image()
        is_jpeg = isinstance(source, Path) and source.suffix.lower() in (".jpg", ".jpeg")
        file = f"{stem}.{image_suffix(image) if is_jpeg else 'png'}"
        image.save(folder / file, quality=95)
        return file

    def _unchanged_suffix(self, path: Path) -> str:
        """The suffix for an unchanged copy of an image file, or "" if the file must be converted."""
        with Image.open(path) as image:
            kind = "JPEG" if image.format == "MPO" else image.format  # a JPEG with several views
            if kind not in self.portable or orientation_of(image) != 1:
                return ""
            suffix = path.suffix.lower()
            return suffix if suffix in SUFFIXES[kind] else SUFFIXES[kind][0]


class JsonList:
    """A JSON list in an open text file, written one item at a time."""

    def __init__(self, file: IO[str]) -> None:
        self.file, self.count = file, 0
        file.write("[")

    def add(self, value: Any) -> None:
        """Append an item."""
        self.file.write(f"{',' if self.count else ''}\n{json.dumps(value, ensure_ascii=False)}")
        self.count += 1

    def end(self, following: str) -> None:
        """Close the list; `following` is the text behind it."""
        self.file.write(f"\n]{following}")
