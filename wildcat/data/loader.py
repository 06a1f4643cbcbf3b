"""Batches of images: the same images, order and crops for any number of worker processes."""

from __future__ import annotations

import atexit
import signal
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from wildcat.config import Distortion, Flip
from wildcat.data.dataset import Sample
from wildcat.data.image_ref import decode_image
from wildcat.data.transforms import Preprocess, stack_images
from wildcat.device import available_cores
from wildcat.errors import WildcatError
from wildcat.progress import REPEATED


@dataclass(frozen=True)
class Augment:
    """Random augmentation of training images, determined by (seed, epoch, index)."""

    seed: int
    crop_scale: float = 0.5
    flip: Flip = "horizontal"
    distortion: Distortion = "none"


Item = tuple[Tensor, Tensor]


class ImageDataset(Dataset[Item | WildcatError]):
    """Samples as (image (3, S, S) float32, labels (C,) int8), looked up by (epoch, index).

    What keeps an image from being read is returned: an error raised in a worker process would lose its message.
    """

    def __init__(self, samples: Sequence[Sample], preprocess: Preprocess, augment: Augment | None = None) -> None:
        self.samples = samples
        self.preprocess = preprocess
        self.augment = augment

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> Item | WildcatError:
        epoch, index = key
        sample = self.samples[index]
        crop_scale = 1.0 if self.augment is None else self.augment.crop_scale
        try:
            max_downscale = partial(self.preprocess.max_downscale, crop_scale=crop_scale)
            image, size = decode_image(sample.path, max_downscale, self.preprocess.intensity_range)
        except WildcatError as error:
            return error
        if self.augment is None:
            tensor = self.preprocess(image)
        else:
            rng = np.random.default_rng([self.augment.seed, epoch, index])
            augment = self.augment
            tensor = self.preprocess.augmented(image, rng, crop_scale, augment.flip, size, augment.distortion)
        return tensor, torch.tensor(sample.labels)


def epoch_order(count: int, seed: int, epoch: int) -> list[int]:
    """The order of `count` samples in an epoch: a permutation determined by (seed, epoch) alone."""
    return [int(i) for i in np.random.default_rng([seed, epoch]).permutation(count)]


def batch_indices(order: Sequence[int], batch_size: int) -> list[list[int]]:
    """`order` cut into batches; a last batch of one joins the one before it (batch normalisation needs two)."""
    batches = [list(order[i : i + batch_size]) for i in range(0, len(order), batch_size)]
    if len(batches) > 1 and len(batches[-1]) == 1 and batch_size > 1:
        batches[-2].extend(batches.pop())
    return batches


class BatchLoader:
    """Batches of an `ImageDataset`, read by worker processes that stay alive from epoch to epoch.

    The workers start with the first batch and end with this object. They hold the data set as it was then.

    Args:
        workers: processes that read; with 0 the caller's own thread reads.
        pin_memory: copy batches to page-locked memory, for a GPU.
    """

    def __init__(self, images: ImageDataset, workers: int = 0, pin_memory: bool = False) -> None:
        self._keys: list[list[tuple[int, int]]] = []  # (epoch, index) of each image of each batch
        self._loader: DataLoader[Any] = DataLoader(
            images,
            batch_sampler=self._keys,  # read again at each `iter(self._loader)`
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=partial(_start_worker, Image.MAX_IMAGE_PIXELS),
            collate_fn=_collate,
            # A loader draws a seed for its workers: from the global generator it would change what dropout draws.
            generator=torch.Generator(),
            pin_memory=pin_memory,
        )
        _loaders.add(self)

    def batches(self, batches: Sequence[Sequence[int]], epoch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images (B, 3, S, S), labels (B, C)) of each batch of indices, in order.

        A new iteration ends the one before it, which may be unfinished.

        Raises:
            ImageError, DataError: an image, or the shard that holds it, cannot be read.
        """
        self._keys[:] = [[(epoch, index) for index in batch] for batch in batches]
        for batch in self._loader:
            if isinstance(batch, WildcatError):
                raise batch
            yield batch


_loaders: weakref.WeakSet[BatchLoader] = weakref.WeakSet()


@atexit.register
def _end_workers() -> None:
    """End the workers of loaders that something refers to at exit, such as the traceback of an uncaught error.

    Otherwise `multiprocessing` waits forever: it asks each by one SIGTERM, see `_start_worker`. Registered after it, so
    called before.
    """
    for loader in _loaders:
        if (iterator := loader._loader._iterator) is not None:  # the workers are private in torch
            cast(Any, iterator)._shutdown_workers()


def load_batches(
    images: ImageDataset, batches: Sequence[Sequence[int]], epoch: int = 0, workers: int = 0, pin_memory: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of `BatchLoader.batches` once; the workers end with the last one."""
    return BatchLoader(images, min(workers, len(batches)), pin_memory).batches(batches, epoch)


def _collate(items: list[Item | WildcatError]) -> Item | WildcatError:
    images, labels = [], []
    for item in items:
        if isinstance(item, WildcatError):
            return item
        images.append(item[0])
        labels.append(item[1])
    return stack_images(images), torch.stack(labels)


def _start_worker(max_pixels: int | None, _worker: int) -> None:
    """Ignore Ctrl-C and SIGTERM, which reach every process of a group: only the trainer handles them, after its step.

    A later SIGTERM ends the worker: torch ends workers by it that do not stop when asked.
    """
    Image.MAX_IMAGE_PIXELS = max_pixels  # a process that is not forked has Pillow's own limit
    first: list[float] = []

    def terminate(number: int, _: object) -> None:
        first.append(time.monotonic())
        if first[-1] - first[0] > REPEATED:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, terminate)


def suggested_workers(device_type: str, processes: int = 1) -> int:
    """Worker processes for each of `processes` on this machine: half of their cores, at most 4; up to 8 with a GPU."""
    cores = max(1, available_cores() // processes)
    return min(8, cores) if device_type == "cuda" else max(1, min(4, cores // 2))
