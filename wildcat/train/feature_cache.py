"""Features of a frozen backbone, computed once and cached on disk, so that training the head takes seconds.

A cache folder belongs to one backbone with its weights, one preprocessing and one set of mirrored views. It holds
shards of a few hundred images: `NAME.f16` with the features of all views and `NAME.json` with the keys of the images,
which is written last. Later runs read the images that are there and compute the others.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wildcat.config import FLIP_VIEWS, Flip
from wildcat.data.cache import cache_folder, cache_limit, hold, make_room
from wildcat.data.dataset import Sample
from wildcat.data.image_ref import fingerprint
from wildcat.data.loader import ImageDataset, batch_indices, load_batches, suggested_workers
from wildcat.data.transforms import Preprocess
from wildcat.device import bf16_is_native, map_batches
from wildcat.engines.torch_backend import fold
from wildcat.errors import RunError
from wildcat.files import LEFT_ALONE, PART, write_json, writing
from wildcat.nn.backbones import Backbone
from wildcat.progress import SILENT, Progress
from wildcat.train.distributed import gather, local_size, rank, share_of, shared_errors, world_size

LAYOUT = 7  # part of every folder's key: raise it when the bytes of a shard change meaning
SHARD = 256  # images per shard, the most that an interruption loses

Location = tuple[Tensor, int]  # a memory-mapped shard (n, V, h, w, D) float16, and a row of it


@dataclass(frozen=True)
class Features:
    """Features of N images in V views, memory-mapped.

    Attributes:
        locations: of each image.
        views: V.
        shape: (D, h, w) of an image's features.
        locks: keep the folders from being removed.
    """

    locations: tuple[Location, ...]
    views: int
    shape: tuple[int, int, int]
    locks: tuple[IO[bytes] | None, ...] = ()

    def __len__(self) -> int:
        return len(self.locations)

    def batch(self, indices: Sequence[int], views: Sequence[int] | None = None) -> Tensor:
        """(B, D, h, w) float32 features of images `indices`, each in its view of `views` (None: not mirrored)."""
        batch = torch.empty(len(indices), *self.shape[1:], self.shape[0])
        for k, index in enumerate(indices):
            shard, row = self.locations[index]
            batch[k] = shard[row, 0 if views is None else views[k]]  # reads and widens in one pass
        return batch.permute(0, 3, 1, 2)  # (B, h, w, D) -> (B, D, h, w), channels last in memory


def cached_features(
    backbone: Backbone,
    samples: Sequence[Sample],
    preprocess: Preprocess,
    flip: Flip,
    folder: Path | None = None,
    workers: int = -1,
    batch_size: int = 16,
    progress: Progress = SILENT,
    amp: bool = False,
) -> Features:
    """Features of `samples` from the cache; those that are missing are computed first.

    An image is identified by its path, size and time of change. Of several processes each computes its share of what is
    missing. When the cache is larger than WILDCAT_CACHE_GB, the folders unused for longest are removed, except those in
    use.

    Args:
        backbone: in evaluation mode, on the device that computes.
        flip: the mirrored views to store beside each image.
        folder: of the cache; None: `features` in the cache folder.
        workers: processes that read; with 0 a CPU reads and computes several batches at once; -1: 0 on a CPU, otherwise
            as many as the machine suggests.
        progress: advanced by the number of views of images.
        amp: compute in bfloat16 if the device has instructions for it; stored apart from features computed in float32.

    Raises:
        ImageError: an image cannot be read.
        RunError: the cache cannot be written, or the features exceed the range of half precision.
        ConfigError: WILDCAT_CACHE_GB is not a number.
    """
    limit, views, device = cache_limit(), FLIP_VIEWS[flip], _device_of(backbone)
    folder = folder or cache_folder() / "features"
    if workers < 0:
        workers = 0 if device.type == "cpu" else suggested_workers(device.type, local_size())
    amp = amp and bf16_is_native(device)
    with shared_errors():
        keys = [
            hashlib.sha256(fingerprint(sample.path).encode(errors="surrogateescape")).hexdigest()[:24]
            for sample in samples
        ]
    with torch.no_grad():  # not inference mode: some networks keep tensors for a size, and may be trained later
        example = backbone(torch.zeros(1, 3, preprocess.size, preprocess.size, device=device))
    channels, height, width = example.shape[1:]
    # The views of a setting of flip begin with those of a smaller one, whose features can be read from its folder.
    supersets = [name for name, others in FLIP_VIEWS.items() if others[: len(views)] == views]
    shapes = {name: (len(FLIP_VIEWS[name]), height, width, channels) for name in supersets}
    weights = _weights_digest(backbone)
    places = {name: folder / _folder_key(backbone, weights, preprocess, name, shapes[name], amp) for name in supersets}
    with shared_errors(), writing(folder):
        locks = tuple(hold(place) for place in places.values())
    _remove_unfinished(places[flip])
    found = {k: v for name in supersets for k, v in _read_shards(places[name], shapes[name]).items()}
    progress.advance(len(views) * sum(key in found for key in keys))
    index_of = {key: i for i, key in enumerate(keys)}  # an image that is listed twice is computed once
    missing = gather([i for key, i in index_of.items() if key not in found])[0]  # the first process decides
    if missing:
        with shared_errors():
            mine = [missing[k] for k in share_of(len(missing))]
            compute = partial(_compute_views, fold(backbone, preprocess.size), flip, amp)
            _compute_shards(
                compute, samples, keys, mine, preprocess, places[flip], shapes[flip], workers, batch_size, progress
            )
        found |= _read_shards(places[flip], shapes[flip])
    with shared_errors():
        if lost := [key for key in keys if key not in found]:
            raise RunError(
                f"{folder} does not hold the features of {samples[keys.index(lost[0])].path}, which another process "
                "has computed.",
                "Set WILDCAT_CACHE to a folder that all machines share.",
            )
    if missing and rank() == 0:
        make_room(folder, limit)
    return Features(tuple(found[key] for key in keys), len(views), (channels, height, width), locks)


def _compute_shards(
    compute: partial[NDArray[np.float16]],
    samples: Sequence[Sample],
    keys: Sequence[str],
    indices: Sequence[int],
    preprocess: Preprocess,
    place: Path,
    row_shape: tuple[int, ...],
    workers: int,
    batch_size: int,
    progress: Progress,
) -> None:
    """Compute the features of images `indices` and write them in shards."""
    shards = [indices[start : start + SHARD] for start in range(0, len(indices), SHARD)]
    batches = [batch_indices(shard, batch_size) for shard in shards]
    dataset = ImageDataset(samples, preprocess)
    # one stream for all shards, so that computing does not pause between them
    blocks = _stream(compute, dataset, [batch for part in batches for batch in part], workers)
    with ThreadPoolExecutor(1, "wildcat-shard") as writer:  # writes a batch while the next one is computed
        for shard, part in zip(shards, batches, strict=True):
            with _new_shard(place, [keys[i] for i in shard], row_shape) as file:
                written: Future[int] | None = None
                try:
                    for _ in part:
                        block = next(blocks)
                        if written is not None:
                            written.result()
                        written = writer.submit(file.write, block.data.cast("B"))
                        progress.advance(block.shape[0] * block.shape[1] * world_size())
                finally:
                    if written is not None:
                        written.result()


def _stream(
    compute: partial[NDArray[np.float16]], dataset: ImageDataset, batches: Sequence[Sequence[int]], workers: int
) -> Iterator[NDArray[np.float16]]:
    """The features of each batch, in order; without reading processes, a thread that computes on a CPU also reads."""
    if workers or _device_of(compute.args[0]).type != "cpu":
        return (compute(images) for images, _ in load_batches(dataset, batches, workers=workers))
    return map_batches(lambda batch: compute(next(load_batches(dataset, [batch]))[0]), batches)


@torch.no_grad()
def _compute_views(backbone: Backbone, flip: Flip, amp: bool, images: Tensor) -> NDArray[np.float16]:
    """(B, 3, S, S) -> (B, V, h, w, D) features of each view."""
    device = _device_of(backbone)
    images = images.to(device).contiguous(memory_format=torch.channels_last)
    views = []
    for axes in FLIP_VIEWS[flip]:
        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
            features = backbone(images.flip(axes) if axes else images).to(torch.float16)
        if not bool(features.isfinite().all()):
            raise RunError(
                f"{backbone.name} gives features outside the range of half precision.", "Train with --tune all instead."
            )
        views.append(features.permute(0, 2, 3, 1).cpu().numpy())
    return np.stack(views, axis=1)


@contextlib.contextmanager
def _new_shard(folder: Path, keys: Sequence[str], row_shape: tuple[int, ...]) -> Iterator[IO[bytes]]:
    """A file for the features of some images; it becomes a shard when the block ends, or is removed if that fails."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder, prefix="shard-", suffix=PART)
    part = Path(name)
    try:
        with writing(part), os.fdopen(handle, "wb") as file:
            yield file
        with writing(part):
            part.replace(part.with_suffix(".f16"))
        write_json(part.with_suffix(".json"), {"images": list(keys), "shape": [len(keys), *row_shape]})
    except BaseException:
        for suffix in (".json", ".f16", PART):  # the record first: it makes the file a shard
            part.with_suffix(suffix).unlink(missing_ok=True)
        raise


def _read_shards(folder: Path, row_shape: tuple[int, ...]) -> dict[str, Location]:
    """The location of every image in a folder's shards; a shard that is damaged or not complete is skipped."""
    found: dict[str, Location] = {}
    for record in sorted(folder.glob("*.json")):
        data = record.with_suffix(".f16")
        try:
            content: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
            keys, shape = [str(key) for key in content["images"]], (len(content["images"]), *row_shape)
            size = int(np.prod(shape))
            if tuple(content["shape"]) != shape or data.stat().st_size != 2 * size:
                continue
            # np.memmap would keep a file descriptor per shard, of which systems allow as few as 256
            name: Any = os.fsencode(data)  # torch refuses a str that is not Unicode
            shard = torch.from_file(name, shared=False, size=size, dtype=torch.float16).view(shape)
        except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
            if any(os.strerror(code) in str(error) for code in (errno.EMFILE, errno.ENFILE, errno.ENOMEM)):
                raise  # a shortage, not damage
            continue
        found.update((key, (shard, row)) for row, key in enumerate(keys))
    return found


def _remove_unfinished(folder: Path) -> None:
    """Remove files that killed processes left unfinished; those changed within the hour may be in use."""
    for path in folder.glob("*"):
        unfinished = path.suffix == PART or (path.suffix == ".f16" and not path.with_suffix(".json").is_file())
        with contextlib.suppress(OSError):  # another process was quicker
            if unfinished and time.time() - path.stat().st_mtime > LEFT_ALONE:
                path.unlink()


def _folder_key(
    backbone: Backbone, weights: str, preprocess: Preprocess, flip: Flip, row_shape: tuple[int, ...], amp: bool
) -> str:
    """A digest of everything that decides the features; the shape stands for the output stride."""
    text = json.dumps([LAYOUT, backbone.name, weights, asdict(preprocess), flip, row_shape, amp])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _weights_digest(backbone: Backbone) -> str:
    digest = hashlib.sha256()
    for name, value in backbone.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _device_of(backbone: Backbone) -> torch.device:
    return next(backbone.parameters()).device
