"""Features of a frozen backbone, computed once and kept on disk, so that training the head takes seconds."""

from __future__ import annotations

import contextlib
import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wildcat.config import Flip
from wildcat.data.loader import Pictures, batch_indices, load_batches
from wildcat.data.sample import Sample
from wildcat.data.transforms import Preprocess
from wildcat.errors import RunError
from wildcat.nn.backbones import Backbone
from wildcat.train.runs import write_json, writing

LAYOUT = 1
"""Part of every key: raise it when the bytes of a cache change meaning."""

VIEWS: dict[Flip, tuple[tuple[int, ...], ...]] = {
    "none": ((),),
    "horizontal": ((), (-1,)),
    "both": ((), (-1,), (-2,), (-2, -1)),
}
"""The views of a picture each setting of `flip` keeps, as the axes that are mirrored; the first is the picture itself."""


@dataclass(frozen=True)
class Features:
    """Features of N pictures, memory-mapped.

    Attributes:
        array: (N, V, D, h, w) float16; the views are those of `VIEWS`, the first is the picture as it is.
    """

    array: NDArray[np.float16]

    @property
    def views(self) -> int:
        """V."""
        return int(self.array.shape[1])

    def batch(self, indices: Sequence[int], views: Sequence[int]) -> Tensor:
        """(B, D, h, w) float32 features of pictures `indices` in views `views`."""
        return torch.from_numpy(self.array[list(indices), list(views)].astype(np.float32))

    def channel_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel over pictures, views and places: two (D,) float32."""
        total = np.zeros(self.array.shape[2])
        squares = np.zeros_like(total)
        for block in np.array_split(self.array, max(1, len(self.array) // 64)):
            values = block.astype(np.float32)
            total += values.sum(axis=(0, 1, 3, 4), dtype=np.float64)
            squares += np.square(values, out=values).sum(axis=(0, 1, 3, 4), dtype=np.float64)
        count = self.array.size / self.array.shape[2]
        mean = total / count
        std = np.sqrt(np.maximum(squares / count - mean**2, 0))
        return torch.from_numpy(mean).float(), torch.from_numpy(std).float()


def cached_features(
    backbone: Backbone,
    samples: Sequence[Sample],
    preprocess: Preprocess,
    flip: Flip,
    folder: Path,
    workers: int = 0,
    batch_size: int = 16,
    progress: Callable[[int], object] = lambda pictures: None,
) -> Features:
    """Features of `samples` from the cache in `folder`, computed first where they are missing, stale or damaged.

    The key covers the weights, the preprocessing, the output stride (it changes the map's size) and each picture's
    path, size and time of change. A cache whose checksum differs from its record is computed again.

    Args:
        backbone: in evaluation mode, on the device that computes.
        flip: which mirrored views to keep beside each picture.
        progress: called with the number of pictures done since the last call.

    Raises:
        ImageError: a picture cannot be read.
        RunError: the cache cannot be written.
    """
    views = len(VIEWS[flip])
    size = (preprocess.size, preprocess.size)
    with torch.inference_mode():
        probe = backbone(torch.zeros(1, 3, *size, device=_device_of(backbone)))
    shape = (len(samples), views, *probe.shape[1:])
    key = _key(backbone, samples, preprocess, shape)
    data, record = folder / f"{key}.f16", folder / f"{key}.json"
    if _is_sound(data, record, shape):
        progress(len(samples) * views)
    else:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            _compute(backbone, samples, preprocess, flip, shape, data, record, workers, batch_size, progress)
    return Features(np.memmap(data, dtype=np.float16, mode="r", shape=shape))


def _compute(
    backbone: Backbone,
    samples: Sequence[Sample],
    preprocess: Preprocess,
    flip: Flip,
    shape: tuple[int, ...],
    data: Path,
    record: Path,
    workers: int,
    batch_size: int,
    progress: Callable[[int], object],
) -> None:
    part = data.with_suffix(".part")
    batches = batch_indices(range(len(samples)), batch_size)
    loaded = load_batches(Pictures(samples, preprocess), batches, workers=workers)
    with _removed_on_failure(part):
        checksum = 0
        with part.open("wb") as file:
            for images, _ in loaded:
                block = _views_of(backbone, images, flip)
                content = np.ascontiguousarray(block).tobytes()
                checksum = zlib.crc32(content, checksum)
                file.write(content)
                progress(len(images) * shape[1])
        part.replace(data)
    write_json(record, {"layout": LAYOUT, "shape": shape, "crc32": checksum, "preprocess": asdict(preprocess)})


@torch.inference_mode()
def _views_of(backbone: Backbone, images: Tensor, flip: Flip) -> NDArray[np.float16]:
    """(B, 3, S, S) -> (B, V, D, h, w) float16."""
    images = images.to(_device_of(backbone)).contiguous(memory_format=torch.channels_last)
    made = [backbone(images.flip(axes) if axes else images) for axes in VIEWS[flip]]
    features = torch.stack(made, dim=1).to(torch.float16).cpu().numpy()
    if not np.isfinite(features).all():
        raise RunError(
            f"{backbone.name} gives features outside the range of half precision.", "Train with --tune all instead."
        )
    return features


def _is_sound(data: Path, record: Path, shape: tuple[int, ...]) -> bool:
    """Whether the cache is complete and its bytes are those that were written."""
    try:
        said = json.loads(record.read_text(encoding="utf-8"))
        if said["layout"] != LAYOUT or tuple(said["shape"]) != shape:
            return False
        if data.stat().st_size != 2 * int(np.prod(shape)):
            return False
        return bool(said["crc32"] == _checksum(data))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _key(backbone: Backbone, samples: Sequence[Sample], preprocess: Preprocess, shape: tuple[int, ...]) -> str:
    digest = hashlib.sha256(json.dumps([LAYOUT, backbone.name, asdict(preprocess), shape]).encode())
    for name, value in backbone.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    for sample in samples:
        status = sample.path.stat()
        digest.update(f"{sample.path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return digest.hexdigest()[:32]


def _device_of(backbone: Backbone) -> torch.device:
    return next(backbone.parameters()).device


@contextlib.contextmanager
def _removed_on_failure(path: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise
