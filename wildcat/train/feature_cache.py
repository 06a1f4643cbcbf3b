"""Features of a frozen backbone, computed once and kept on disk, so that training the head takes seconds.

A cache folder belongs to one backbone with its weights, one preprocessing and one view (plain or mirrored). It holds
shards of a few hundred images, `NAME.f16` with the bytes and `NAME.json` with a checksum and the images in it. Any
split of the same images, and any later run, takes what is there and computes only what is not.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import tempfile
import time
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wildcat.config import FLIP_VIEWS, Flip
from wildcat.data.cache import cache_limit, hold, make_room
from wildcat.data.dataset import Sample
from wildcat.data.image_ref import fingerprint
from wildcat.data.loader import ImageDataset, batch_indices, load_batch, load_batches, suggested_workers
from wildcat.data.transforms import Preprocess
from wildcat.engines.torch_backend import fold
from wildcat.errors import RunError
from wildcat.files import LEFT_ALONE, PART, write_json, writing
from wildcat.nn.backbones import Backbone
from wildcat.train.distributed import gather, rank, share_of, together, world_size

LAYOUT = 5
"""Part of every key: raise it when the bytes of a cache change meaning."""

SHARD = 256
"""Images in a shard: what an interruption loses at most."""

STATISTICS_BATCH = 16
"""Images whose features are added up at once, in double precision."""

PASSES = 4
"""Batches that a CPU computes at the same time, at most: each takes its memory."""

Axes = tuple[int, ...]

Block = list[NDArray[np.float16]]
"""(B, h, w, D) features of a batch, in each view."""

Place = tuple[Tensor, int]
"""Where the features of an image lie: a memory-mapped shard (n, h, w, D) float16 and the row in it."""


@dataclass(frozen=True)
class Features:
    """Features of N images in V views, memory-mapped.

    Attributes:
        places: for each view, for each image, where its features lie.
        shape: (D, h, w) of an image's features.
        held: what keeps their folders from being removed.
    """

    places: tuple[tuple[Place, ...], ...]
    shape: tuple[int, int, int]
    held: tuple[IO[bytes] | None, ...] = ()

    def __len__(self) -> int:
        return len(self.places[0])

    @property
    def views(self) -> int:
        """V."""
        return len(self.places)

    def batch(self, indices: Sequence[int], views: Sequence[int] | None = None) -> Tensor:
        """(B, D, h, w) float32 features of images `indices`, each in its view of `views` (plain where None)."""
        batch = torch.empty(len(indices), *self.shape[1:], self.shape[0])
        for k, index in enumerate(indices):
            shard, row = self.places[0 if views is None else views[k]][index]
            batch[k] = shard[row]  # read and widened in one pass
        return batch.permute(0, 3, 1, 2)  # (B, h, w, D) -> (B, D, h, w), channels last

    def channel_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel over images, views and places: two (D,) float32."""
        total = torch.zeros(2, self.shape[0], dtype=torch.float64)
        for view in range(self.views):
            for batch in batch_indices(range(len(self)), STATISTICS_BATCH):
                values = self.batch(batch, [view] * len(batch)).permute(0, 2, 3, 1).flatten(0, 2)  # (B*h*w, D)
                sums = values.sum(dim=0, dtype=total.dtype), values.square_().sum(dim=0, dtype=total.dtype)
                total += torch.stack(sums)
        mean, square = total / (self.views * len(self) * self.shape[1] * self.shape[2])
        return mean.float(), (square - mean.square()).clamp(min=0).sqrt().float()


def feature_workers(device_type: str, processes: int = 1) -> int:
    """Reading processes that `cached_features` should have: on a CPU none, see there."""
    return 0 if device_type == "cpu" else suggested_workers(device_type, processes)


def cached_features(
    backbone: Backbone,
    samples: Sequence[Sample],
    preprocess: Preprocess,
    flip: Flip,
    folder: Path,
    workers: int = 0,
    batch_size: int = 16,
    progress: Callable[[int], object] = lambda images: None,
    amp: bool = False,
) -> Features:
    """Features of `samples` from the cache in `folder`, computed first where they are missing, stale or damaged.

    An image is known by its path, size and time of change; a shard whose checksum differs from its record is passed
    over and its images are computed again. Of several processes each computes its share of what is missing. Where the
    cache has grown beyond WILDCAT_CACHE_GB, what was not used for longest is removed, but nothing that is in use.

    Args:
        backbone: in evaluation mode, on the device that computes.
        flip: which mirrored views to keep beside each image.
        workers: processes that read; with 0 a CPU reads and computes several batches at once.
        progress: called with the number of images, in any view, done since the last call.
        amp: compute them in bfloat16 where that is safe; kept apart from those computed in full.

    Raises:
        ImageError: an image cannot be read.
        RunError: the cache cannot be written.
        ConfigError: WILDCAT_CACHE_GB is no number.
    """
    views, limit, device = FLIP_VIEWS[flip], cache_limit(), _device_of(backbone)
    with together():
        images = [_image_key(s) for s in samples]
    with torch.inference_mode():
        probe = backbone(torch.zeros(1, 3, preprocess.size, preprocess.size, device=device))
    shape = (int(probe.shape[1]), int(probe.shape[2]), int(probe.shape[3]))
    weights = _weights_digest(backbone)
    folders = [folder / _view_key(backbone, weights, preprocess, axes, shape, amp) for axes in views]
    with together(), writing(folder):
        held = tuple(hold(place) for place in folders)
    for place in folders:
        _remove_unfinished(place)
    found = [_read_shards(place, shape, set(images)) for place in folders]
    progress(sum(key in known for known in found for key in images))

    by_need: dict[tuple[int, ...], list[int]] = {}
    for i in {key: i for i, key in enumerate(images)}.values():  # an image listed twice is computed once
        if need := tuple(v for v in range(len(views)) if images[i] not in found[v]):
            by_need.setdefault(need, []).append(i)
    by_need = gather(by_need)[0]  # the first process decides: another may look after one has begun to write
    network = fold(backbone, preprocess.size) if by_need else backbone
    with together():
        for need, missing in by_need.items():
            mine = [missing[k] for k in share_of(len(missing))]
            parts = [mine[start : start + SHARD] for start in range(0, len(mine), SHARD)]
            batches = [batch_indices(part, batch_size) for part in parts]
            views_of = partial(_views_of, network, [views[v] for v in need], amp)
            # One stream for all parts: it goes on while a part ends and the next one begins.
            stream = _computed(
                views_of, ImageDataset(samples, preprocess), list(itertools.chain(*batches)), workers, device
            )
            for part, in_part in zip(parts, batches, strict=True):
                blocks = _reporting(itertools.islice(stream, len(in_part)), progress)
                made = _write_shards(blocks, [folders[v] for v in need], [images[i] for i in part], shape)
                for v, places in zip(need, made, strict=True):
                    found[v].update(places)
    if by_need and world_size() > 1:  # what the others have written
        found = [_read_shards(place, shape, set(images)) for place in folders]
    with together():
        if lost := next((key for known in found for key in images if key not in known), None):
            image = samples[images.index(lost)].path
            raise RunError(
                f"{folder} does not hold the features of {image}, which another process has computed.",
                "Set WILDCAT_CACHE to a folder that all machines share.",
            )
    if by_need and rank() == 0:
        make_room(folder, limit)
    return Features(tuple(tuple(known[key] for key in images) for known in found), shape, held)


def _computed(
    views_of: Callable[[Tensor], Block],
    dataset: ImageDataset,
    batches: Sequence[Sequence[int]],
    workers: int,
    device: torch.device,
) -> Iterator[Block]:
    """What `views_of` makes of each batch, in order.

    A CPU without reading processes takes several batches at once, each with a share of the cores: one is read while
    another is computed, and no layer waits for a core that is busy with something else.
    """
    threads = torch.get_num_threads()
    passes = min(threads, PASSES, len(batches))
    if workers or device.type != "cpu" or passes < 2:
        yield from (views_of(images) for images, _ in load_batches(dataset, batches, workers=workers))
        return

    def read_and_compute(batch: Sequence[int]) -> Block:
        return views_of(load_batch(dataset, batch)[0])

    waiting: deque[Future[Block]] = deque()
    with ThreadPoolExecutor(passes, "wildcat-features", torch.set_num_threads, (threads // passes,)) as pool:
        try:
            for batch in batches:
                waiting.append(pool.submit(read_and_compute, batch))
                if len(waiting) > passes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
            torch.set_num_threads(threads)  # threads to come would take over the share


def _reporting(blocks: Iterator[Block], progress: Callable[[int], object]) -> Iterator[Block]:
    for views in blocks:
        progress(sum(len(view) for view in views) * world_size())
        yield views


@torch.inference_mode()
def _views_of(backbone: Backbone, views: Sequence[Axes], amp: bool, images: Tensor) -> Block:
    """(B, 3, S, S) -> (B, h, w, D) for each view: channels last, as backbones make them."""
    device = _device_of(backbone)
    images = images.to(device).contiguous(memory_format=torch.channels_last)
    made = []
    for axes in views:
        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
            features = backbone(images.flip(axes) if axes else images).to(torch.float16)
        if not bool(features.isfinite().all()):
            raise RunError(
                f"{backbone.name} gives features outside the range of half precision.", "Train with --tune all instead."
            )
        made.append(np.ascontiguousarray(features.permute(0, 2, 3, 1).cpu().numpy()))
    return made


def _write_shards(
    blocks: Iterator[Block],
    folders: Sequence[Path],
    images: Sequence[str],
    shape: tuple[int, ...],
) -> list[dict[str, Place]]:
    """Write one shard of the same images into the folder of each view; nothing is left where one fails.

    A thread writes a batch while the next one is computed.

    Returns:
        For each view, where each image's features lie.
    """
    with contextlib.ExitStack() as stack:
        shards = [_ShardFile(folder, stack) for folder in folders]
        # Left, and so at rest, before what is unfinished is removed.
        writer = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="wildcat-shard"))

        def write(views: Block) -> None:
            for shard, block in zip(shards, views, strict=True):
                shard.add(block)

        written: Future[None] | None = None
        for views in blocks:
            if written is not None:
                written.result()
            written = writer.submit(write, views)
        if written is not None:
            written.result()
        return [shard.finish(images, shape) for shard in shards]


class _ShardFile:
    """A shard that grows; its record, which makes it one, comes last. Where `stack` fails, no file of it is left."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=folder, prefix="shard-", suffix=PART)
        self.part, self.checksum = Path(name), 0
        stack.enter_context(_removed_on_failure(self.part))
        self.file = stack.enter_context(os.fdopen(handle, "wb"))

    def add(self, block: NDArray[np.float16]) -> None:
        content = block.data.cast("B")
        self.checksum = zlib.crc32(content, self.checksum)
        with writing(self.part):
            self.file.write(content)

    def finish(self, images: Sequence[str], shape: tuple[int, ...]) -> dict[str, Place]:
        """Give the shard its name and record; where the features of its images lie."""
        data, full = self.part.with_suffix(".f16"), (len(images), *_stored(shape))
        with writing(data):
            self.file.close()
            self.part.replace(data)
        record = {"layout": LAYOUT, "shape": full, "crc32": self.checksum, "images": list(images)}
        write_json(data.with_suffix(".json"), record)
        shard = _mapped(data, full)
        return {key: (shard, row) for row, key in enumerate(images)}


def _read_shards(folder: Path, shape: tuple[int, ...], wanted: set[str]) -> dict[str, Place]:
    """Where each wanted image's features lie, among the sound shards of a view."""
    places: dict[str, Place] = {}
    for record in sorted(folder.glob("*.json")):
        data = record.with_suffix(".f16")
        try:
            said = json.loads(record.read_text(encoding="utf-8"))
            images = [str(key) for key in said["images"]]
            full = (len(images), *_stored(shape))
            useful = not wanted.isdisjoint(images)
            sound = tuple(said["shape"]) == full and said["layout"] == LAYOUT
            if not (
                useful and sound and data.stat().st_size == 2 * int(np.prod(full)) and said["crc32"] == _checksum(data)
            ):
                continue
        except (OSError, ValueError, KeyError, TypeError):
            continue
        shard = _mapped(data, full)
        places.update({key: (shard, row) for row, key in enumerate(images) if key in wanted})
    return places


def _mapped(data: Path, shape: tuple[int, ...]) -> Tensor:
    """The features in a shard, read from the file as they are asked for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nobody writes to it
        return torch.from_numpy(np.memmap(data, dtype=np.float16, mode="r", shape=shape))


def _remove_unfinished(folder: Path) -> None:
    """Remove what trainings that were killed have left; what has changed within the hour may be another's at work."""
    for path in folder.glob("*"):
        unfinished = path.suffix == PART or (path.suffix == ".f16" and not path.with_suffix(".json").is_file())
        with contextlib.suppress(OSError):  # another training was quicker
            if unfinished and time.time() - path.stat().st_mtime > LEFT_ALONE:
                path.unlink()


def _stored(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(D, h, w) of an image -> (h, w, D), as it lies in a shard."""
    return (*shape[1:], shape[0])


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _view_key(
    backbone: Backbone, weights: str, preprocess: Preprocess, axes: Axes, shape: tuple[int, ...], amp: bool
) -> str:
    """The shape of the map is part of the key because the output stride changes it and nothing else here."""
    precision = ["bfloat16"] if amp else []
    text = json.dumps([LAYOUT, backbone.name, weights, asdict(preprocess), axes, shape, *precision])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _weights_digest(backbone: Backbone) -> str:
    digest = hashlib.sha256()
    for name, value in backbone.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _image_key(sample: Sample) -> str:
    return hashlib.sha256(fingerprint(sample.path).encode()).hexdigest()[:24]


def _device_of(backbone: Backbone) -> torch.device:
    return next(backbone.parameters()).device


@contextlib.contextmanager
def _removed_on_failure(part: Path) -> Iterator[None]:
    """Remove a shard in whatever state it is: its record first, which makes it a shard."""
    try:
        yield
    except BaseException:
        for suffix in (".json", ".f16", PART):
            part.with_suffix(suffix).unlink(missing_ok=True)
        raise
