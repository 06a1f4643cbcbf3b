"""Reading images in a process of its own, which an image that breaks its decoder may end: the row says so."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass

from PIL import Image

from wildcat.data.image_ref import ImageRef
from wildcat.data.images import Decoded, MaxDownscale, full_size
from wildcat.errors import ImageError


class Reader:
    """One process that reads one image at a time, and is started again where it dies."""

    def __init__(self) -> None:
        self.turn = threading.Lock()
        self.pool = self._start()

    def read(self, image: ImageRef) -> Image.Image:
        """As the image's own `read`.

        Raises:
            ImageError: also where the process died of it.
        """
        with self.turn:
            try:
                return self.pool.submit(_read, image).result()
            except BrokenProcessPool as error:
                self.pool = self._start()
                raise ImageError(
                    f"{image.name} ended the process that read it.", "It breaks its decoder: leave it out."
                ) from error

    def close(self) -> None:
        """End the process."""
        self.pool.shutdown()

    @staticmethod
    def _start() -> ProcessPoolExecutor:
        # Not forked: this process has threads, whose locks a child would inherit.
        return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


@dataclass(frozen=True)
class Apart(ImageRef):
    """An image that is read by a `Reader`, always in full: its scores may differ in the last digits."""

    image: ImageRef
    reader: Reader

    @property
    def name(self) -> str:
        return self.image.name

    def decode(self, max_downscale: MaxDownscale = full_size) -> Decoded:
        image = self.reader.read(self.image)
        return image, image.size


@contextmanager
def reading_apart(images: Iterable[ImageRef], apart: bool) -> Iterator[Iterator[ImageRef]]:
    """The same images; `apart`: each is read in another process, for the length of the block."""
    if not apart:
        yield iter(images)
        return
    reader = Reader()
    try:
        yield (Apart(image, reader) for image in images)
    finally:
        reader.close()


def _read(image: ImageRef) -> Image.Image:
    return image.read()
