"""Making parts: by this process one after the other, or by whatever is given to make them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wildcat.config import PartFormat
from wildcat.data.image_ref import ImageRef
from wildcat.data.images import Decoded, MaxDownscale, full_size
from wildcat.errors import ImageError
from wildcat.files import write_bytes
from wildcat.predictor import BATCH_SIZE, Predictor
from wildcat.scale.inputs import hold_images
from wildcat.scale.isolated_reader import reading_apart
from wildcat.scale.shards import NAMED, Done, Part, PartFolder, Totals, part_path, rows_of


@dataclass(frozen=True)
class PartMaker:
    """Makes any part of a folder: predicts its images and writes its file.

    Attributes:
        folder: where parts are written.
        part_format: of the files.
        column: of tables, the one with the images.
        batch_size: images that go through the network together.
    """

    folder: Path
    part_format: PartFormat
    column: str | None = None
    batch_size: int = BATCH_SIZE

    def __call__(self, predictor: Predictor, part: Part, careful: bool = False) -> Done:
        """Write a part: a row for each image, in order, with `error` where it cannot be read.

        Args:
            careful: read each image in another process, so that one which breaks its decoder ends that one.

        Raises:
            DataError: what holds the images is gone.
            RunError: the part cannot be written.
            MissingExtra: Parquet, and pyarrow is not installed.
        """
        rows, faults, failed = rows_of(self.part_format), dict[int, ImageError](), list[str]()

        def note(image: Any, error: ImageError) -> None:
            faults[image.number] = error

        def add(number: int, values: dict[str, Any]) -> None:
            rows.add({"row": part.first + number, **values})

        def add_failed(number: int) -> int:
            """Rows of the images from `number` on that failed; the number of the first that did not."""
            while error := faults.pop(number, None):
                add(number, {"image": part.images[number].name, "error": error.message})
                failed.append(error.message)
                number += 1
            return number

        number = 0  # the stream keeps the order, and tells of an image that failed before it gives one that follows
        with reading_apart(hold_images(part.images, self.column), careful) as held:
            images = map(_Numbered, range(len(part.images)), held)
            for prediction in predictor.stream(images, modalities=False, batch_size=self.batch_size, on_error=note):
                number = add_failed(number)
                add(number, prediction.to_dict())
                number += 1
        add_failed(number)
        write_bytes(part_path(self.folder, part.number, self.part_format), rows.content())
        return Done(part.number, len(part.images), len(failed), part.digest, failed[:NAMED])


@dataclass(frozen=True)
class _Numbered(ImageRef):
    """An image of a part and its place in it: names may repeat."""

    number: int
    image: ImageRef

    @property
    def name(self) -> str:
        return self.image.name

    def decode(self, max_downscale: MaxDownscale = full_size) -> Decoded:
        return self.image.decode(max_downscale)


def run_parts(
    parts: Iterable[Part],
    folder: PartFolder,
    make: Callable[[Iterator[Part]], Iterator[Done]],
    heard: Callable[[Done, bool], object] = lambda done, before: None,
) -> Totals:
    """Make all parts that are not finished, and note each when it is.

    Args:
        make: takes parts and gives them finished, in any order.
        heard: called with each part, and whether it was finished before.

    Raises:
        DataError, RunError: as the sources, the maker and the folder do; parts that are finished stay.
    """
    count = 0

    def unfinished() -> Iterator[Part]:
        nonlocal count
        for part in parts:
            count += 1
            if done := folder.finished(part):
                heard(done, True)
            else:
                yield part

    for done in make(unfinished()):
        folder.add(done)
        heard(done, False)
    return folder.complete(count)
