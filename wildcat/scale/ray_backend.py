"""Prediction by Ray Data: the images of the shards -> map_batches(worker) -> their rows, on this machine or a cluster.

Each worker process holds the network; image references go to the workers, and rows come back. If a worker dies, Ray
restarts it and repeats its task, now image by image: an image that ends its process two more times gets an error row.
On a cluster, the model, the sources and the working folder must have the same paths on every machine; only the driver
writes the output.
"""

from __future__ import annotations

import itertools
import logging
import os
import pickle
import signal
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wildcat.device import available_cores
from wildcat.errors import RunError, WildcatError, import_extra, known_error
from wildcat.predictor import BATCH_SIZE, Predictor
from wildcat.scale.rows import NumberedImage, Row, error_row, predict_rows
from wildcat.scale.shards import Shard

TASK_IMAGES = 128  # images of one task, the unit that Ray repeats if a worker dies; at least one batch
DATASET_IMAGES = 500_000  # images of one Ray dataset: bounds the driver's memory; each dataset loads the model again
IMAGE_ATTEMPTS = 2  # at an image that is predicted alone; after these, it gets an error row
MAX_DEADLY = 3  # images in a row that end their worker: more likely the fault of the machine


@dataclass(frozen=True)
class RayOptions:
    """How Ray predicts.

    Attributes:
        load: returns the predictor; called in each worker.
        workers: processes; each gets its share of this machine's cores.
        gpu: reserve a GPU for each worker.
        column: the column of Parquet tables with the images; None: the only possible one.
        batch_size: images per forward pass.
        top_k: see `Prediction.to_dict`.
    """

    load: Callable[[], Predictor]
    workers: int
    gpu: bool = False
    column: str | None = None
    batch_size: int = BATCH_SIZE
    top_k: int = 0

    @property
    def threads(self) -> int:
        """Cores for each worker."""
        return max(1, available_cores() // self.workers)


class Attempts:
    """A Ray actor that counts how often tasks and images were started but not finished, because their worker died."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def start(self, key: str) -> int:
        """Count an attempt; the number of this one, from 1."""
        self.counts[key] += 1
        return self.counts[key]

    def finish(self, key: str) -> None:
        """Forget the attempts."""
        del self.counts[key]


class Worker:
    """The callable class that Ray Data runs in each process.

    Errors are returned as a row with number -1: Ray would wrap them.
    """

    def __init__(self, options: RayOptions, attempts: Any, folder: str) -> None:
        import torch  # noqa: PLC0415  # in the process that uses it

        os.chdir(folder)  # sources may be relative to the folder of the command
        torch.set_num_threads(options.threads)
        self.ray, self.options, self.attempts = import_ray(), options, attempts
        self.predictor: Predictor | None = None
        self.deadly = 0

    def __call__(self, batch: Any) -> Any:
        """A table with one pickled task -> a table with the fields of `Row`."""
        import pyarrow as pa  # noqa: PLC0415  # an extra

        try:
            rows = self.predict_task(pickle.loads(batch["task"][0].as_py()))  # noqa: S301  # from the driver
        except Exception as error:
            known = known_error(error)
            raised = known or RuntimeError(traceback.format_exc())  # not every exception can be pickled
            rows = [Row(-1, pickle.dumps(raised))]
        return pa.table(dict(zip(Row._fields, map(list, zip(*rows, strict=True)), strict=True)))

    def predict_task(self, images: Sequence[NumberedImage]) -> list[Row]:
        """The rows of the images, predicted one by one if a worker has died in this task before."""
        task = f"task {images[0].number}"
        one_by_one = self.start(task) > 1
        rows = [self.predict_alone(image) for image in images] if one_by_one else self.predict(images)
        self.finish(task)
        return rows

    def predict_alone(self, image: NumberedImage) -> Row:
        """The row of an image, with an error if the image has ended its worker twice.

        Raises:
            RunError: the last `MAX_DEADLY` images have all done so.
        """
        key = f"image {image.number}"
        if self.start(key) <= IMAGE_ATTEMPTS:
            (row,) = self.predict([image])
            self.finish(key)
            self.deadly = 0
            return row
        self.deadly += 1  # and no finish: if the task is repeated, the image is skipped at once
        if self.deadly == MAX_DEADLY:
            raise RunError(
                f"the workers die on every image, such as {image.image.name}.",
                "Check the memory or give fewer --workers, then continue with --resume.",
            )
        return error_row(*image, f"{image.image.name} ended the process that read it.")

    def predict(self, images: Sequence[NumberedImage]) -> list[Row]:
        """The rows of the images in one stream."""
        if self.predictor is None:
            self.predictor = self.options.load()
        options = self.options
        return list(predict_rows(self.predictor, images, options.column, options.batch_size, options.top_k))

    def start(self, key: str) -> int:
        """Count an attempt at a task or an image; its number, from 1."""
        return int(self.ray.get(self.attempts.start.remote(key)))

    def finish(self, key: str) -> None:
        """Forget the attempts, which a worker that dies does not do."""
        self.ray.get(self.attempts.finish.remote(key))


@contextmanager
def ray_started(workers: int) -> Iterator[None]:
    """Connect to the cluster of `RAY_ADDRESS`, or start Ray here and stop it at the end, unless it runs already.

    Raises:
        MissingExtra: Ray is not installed.
    """
    ray = import_ray()
    if ray.is_initialized():
        yield
        return
    local = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": max(available_cores(), workers)}
    handler = signal.getsignal(signal.SIGTERM)
    try:
        try:
            ray.init(log_to_driver=False, logging_level="ERROR", include_dashboard=False if local else None, **local)
        except SystemExit:  # from the handler of SIGTERM that Ray sets
            signal.signal(signal.SIGTERM, handler)
            signal.raise_signal(signal.SIGTERM)
            raise
        if threading.current_thread() is threading.main_thread():  # Ray's would exit
            signal.signal(signal.SIGTERM, handler)
        yield
    finally:
        ray.shutdown()


def predict_with_ray(shards: Iterator[Shard], options: RayOptions) -> Iterator[tuple[Shard, list[Row]]]:
    """The rows of each shard, predicted by Ray's workers; within `ray_started`.

    Raises:
        WildcatError: from the sources or a worker; the shards before it have been returned.
        RunError: Ray fails.
    """
    ray = import_ray()
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    attempts = ray.remote(Attempts).options(num_cpus=0).remote()
    try:
        for chunk in _chunks(shards):
            dataset = ray.data.from_arrow(_task_tables(chunk, options.batch_size)).map_batches(
                Worker,
                fn_constructor_args=(options, attempts, str(Path.cwd())),
                compute=ray.data.ActorPoolStrategy(size=options.workers, max_tasks_in_flight_per_actor=1),
                batch_size=1,
                batch_format="pyarrow",
                num_cpus=options.threads,
                num_gpus=int(options.gpu),
            )
            rows = _rows_of(dataset.iter_batches(batch_size=None, batch_format="pyarrow"))
            for shard in chunk:
                yield shard, list(itertools.islice(rows, len(shard.images)))
    except ray.exceptions.RayError as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise RunError(f"Ray failed: {reason}.", "Its logs are in /tmp/ray; continue with --resume.") from error


def _chunks(shards: Iterator[Shard]) -> Iterator[list[Shard]]:
    """Lists of shards with about `DATASET_IMAGES` images; what was listed before an error comes before the error."""
    chunk: list[Shard] = []
    images = 0
    try:
        for shard in shards:
            chunk.append(shard)
            images += len(shard.images)
            if images >= DATASET_IMAGES:
                yield chunk
                chunk, images = [], 0
    except WildcatError:
        if chunk:
            yield chunk
        raise
    if chunk:
        yield chunk


def _task_tables(shards: Sequence[Shard], batch_size: int) -> list[Any]:
    """The tasks for the shards, each in a table of its own and thus a block of the dataset.

    Tasks divide the images of a shard into the same batches as one process does, so scores agree to the last digit.
    """
    import pyarrow as pa  # noqa: PLC0415  # an extra

    size = max(1, TASK_IMAGES // batch_size) * batch_size
    tasks = (shard.images[i : i + size] for shard in shards for i in range(0, len(shard.images), size))
    return [pa.table({"task": [pickle.dumps(task)]}) for task in tasks]


def _rows_of(batches: Iterable[Any]) -> Iterator[Row]:
    for batch in batches:
        for values in batch.to_pylist():
            row = Row(**values)
            if row.number < 0:
                raise pickle.loads(row.line)  # noqa: S301  # from a worker
            yield row


def import_ray() -> Any:
    """Ray, without its usage reports, and with workers at normal priority (its default is niceness 15).

    Variables that the environment sets already are left as they are.

    Raises:
        MissingExtra: Ray, or what Ray Data needs, is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")
    import_extra("ray.data", "ray", "ray")
    return import_extra("ray", "ray", "ray")
