"""Workers run batches of jobs, in a thread of the service or in a process of their own.

Worker processes do not share Python's lock, and the service survives if one crashes or hangs.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import math
import multiprocessing
import pickle
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

import torch

from wildcat.config import Limits
from wildcat.data.image_ref import LoadedImage
from wildcat.errors import WildcatError
from wildcat.prediction import Prediction
from wildcat.predictor import Predictor
from wildcat.serve.uploads import RequestError, Upload, try_later

log = logging.getLogger(__name__)

START_SECONDS = 300.0  # for a process to import torch and load the model


class WorkerError(WildcatError):
    """A worker process cannot start."""


@dataclass(frozen=True)
class Job:
    """An uploaded image, and the function that makes the response of its prediction; it can be pickled."""

    content: bytes
    name: str
    render: Callable[[Prediction], Any]


def predict_batch(
    predictor: Predictor, limits: Limits, jobs: Sequence[Job], lock: AbstractContextManager[Any]
) -> list[Any]:
    """Decode the images of all jobs, run them through the network as one batch, and render each prediction.

    Args:
        lock: held during the forward pass.

    Returns:
        for each job what `render` returned, or the exception its image or its rendering raised.

    Raises:
        Exception: the forward pass of the batch failed.
    """

    def load(job: Job) -> LoadedImage:
        return predictor.prepare(Upload(job.content, limits.max_pixels))

    def render(job: Job, prediction: Prediction) -> Any:
        return job.render(replace(prediction, path=job.name))

    loaded = [attempt(load, job) for job in jobs]
    images = [image for image in loaded if not isinstance(image, Exception)]
    with lock:
        predictions = iter(predictor.predict_prepared(images, batch_size=limits.batch_size) if images else [])
    return [
        image if isinstance(image, Exception) else attempt(render, job, next(predictions))
        for job, image in zip(jobs, loaded, strict=True)
    ]


def attempt(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what the function returns, or the exception it raises; an unexpected one as RuntimeError with its trace.

    A RuntimeError can be pickled; other exceptions may not.
    """
    try:
        return function(*arguments)
    except (WildcatError, MemoryError) as error:
        return error
    except Exception:
        return RuntimeError(traceback.format_exc())


class Worker:
    """Runs batches in the thread that calls `run`.

    Args:
        lock: held during the forward pass.

    Attributes:
        threads: of torch, for the next batch.
        restarts: how often the worker was restarted.
    """

    def __init__(self, predictor: Predictor, limits: Limits, lock: AbstractContextManager[Any]) -> None:
        self.predictor, self.limits, self.lock = predictor, limits, lock
        self.threads, self.restarts = 1, 0
        self.deadline = math.inf

    @property
    def alive(self) -> bool:
        """Whether the worker runs no batch for longer than `Limits.worker_timeout`."""
        return time.monotonic() < self.deadline

    def run(self, jobs: Sequence[Job]) -> list[Any]:
        """The results of jobs, or exceptions; see `predict_batch`."""
        self.deadline = time.monotonic() + self.limits.worker_timeout
        try:
            torch.set_num_threads(self.threads)  # of this Python thread only, in torch's OpenMP
            return predict_batch(self.predictor, self.limits, jobs, self.lock)
        finally:
            self.deadline = math.inf

    def restart_if_dead(self) -> None:
        """Restart the worker if it is dead; a thread cannot be restarted."""

    def close(self) -> None:
        """Stop the worker."""


class WorkerProcess(Worker):
    """Runs batches in a process with its own predictor; a process that crashes or hangs is killed and restarted.

    The constructor only starts the process: call `load` before `run`.

    Args:
        predictor: a predictor on the CPU.
        setup: called first in the process.
    """

    def __init__(self, predictor: Predictor, limits: Limits, setup: Callable[[], object] | None = None) -> None:
        super().__init__(predictor, limits, nullcontext())
        self.setup = setup
        self.loaded = self.closed = False
        self._start()
        atexit.register(self.close)  # runs before multiprocessing joins its processes

    @property
    def alive(self) -> bool:
        """Whether the process runs and has loaded the model."""
        return self.loaded and self.process.is_alive()

    def load(self) -> None:
        """Send the model to the process and wait until it is loaded.

        Raises:
            WorkerError: the process ended, or took too long.
        """
        try:
            # by value: the shared memory that multiprocessing would use for tensors may be small
            self._call(pickle.dumps(self.predictor), START_SECONDS)
        except (EOFError, OSError) as error:
            self.kill()
            raise WorkerError(
                f"a worker process cannot start (exit code {self.process.exitcode}).",
                'In a script, call create_app below `if __name__ == "__main__":`, or set processes to 0.',
            ) from error
        self.loaded = True

    def run(self, jobs: Sequence[Job]) -> list[Any]:
        """The results of jobs, or exceptions; see `predict_batch`.

        After a timeout each job gets an error; running them one by one would take the timeout again for each.

        Raises:
            RequestError: 503, the process crashed or cannot start.
            Exception: the forward pass of the batch failed.
        """
        self.restart_if_dead()
        seconds, start = self.limits.worker_timeout, time.monotonic()
        try:
            results: list[Any] | Exception = self._call((jobs, self.threads), seconds)
        except (EOFError, OSError) as error:
            self.kill()
            if self.closed:
                raise RequestError(503, "the service is stopping.") from error
            if time.monotonic() - start >= seconds:
                log.warning("a worker process took longer than %g seconds; restarting it", seconds)
                message = f"the worker did not finish within {seconds:g} seconds; it is restarted."
                return [try_later(message)] * len(jobs)
            log.warning("a worker process ended (exit code %s); restarting it", self.process.exitcode)
            raise RequestError(
                503,
                "the worker process crashed on this image; it is restarted.",
                "Try again; if it crashes again, skip the image.",
                retry_after=5,
            ) from error
        if isinstance(results, Exception):
            raise results
        return results

    def restart_if_dead(self) -> None:
        """Restart the process if it is dead.

        Raises:
            RequestError: 503, it does not start, or the service is stopping.
        """
        if self.alive:
            return
        if self.closed:
            raise RequestError(503, "the service is stopping.")
        self.restarts += 1
        self.kill()
        try:
            self._start()
            self.load()
        except (WorkerError, OSError) as error:
            log.warning("a worker process cannot start: %s", error)
            raise try_later("the worker process cannot start.") from error

    def close(self) -> None:
        """Kill the process."""
        self.closed = True
        atexit.unregister(self.close)
        self.kill()

    def kill(self) -> None:
        """Kill the process and wait for its end; the thread that waits for its response gets an EOFError."""
        self.loaded = False
        self.process.kill()
        self.process.join()

    def _start(self) -> None:
        # Not forked from the service: the process would inherit locks of its threads.
        forks = sys.platform == "linux"
        context = multiprocessing.get_context("forkserver") if forks else multiprocessing.get_context("spawn")
        context.set_forkserver_preload(["wildcat.serve.fork_server"])
        self.connection, connection = context.Pipe()
        self.process = context.Process(
            target=run_worker, args=(connection, self.limits, self.setup), name="wildcat-worker", daemon=True
        )
        self.process.start()
        connection.close()
        if self.closed:  # in the meantime, by another thread
            self.process.kill()

    def _call(self, message: Any, seconds: float) -> Any:
        """Send a message and receive the response; EOFError or OSError if the process ends or needs longer."""
        timer = threading.Timer(seconds, self.process.kill)
        timer.daemon = True
        timer.start()
        try:
            self.connection.send(message)
            return self.connection.recv()
        finally:
            timer.cancel()


def start_processes(
    predictor: Predictor, limits: Limits, setup: Callable[[], object] | None, count: int
) -> list[Worker]:
    """Start worker processes and load the model in all of them at the same time.

    Raises:
        WorkerError: one cannot start.
    """
    workers = [WorkerProcess(predictor, limits, setup) for _ in range(count)]
    try:
        for worker in workers:
            worker.load()
    except BaseException:
        for worker in workers:
            worker.close()
        raise
    return list(workers)


def run_worker(connection: Connection, limits: Limits, setup: Callable[[], object] | None) -> None:
    """Main function of a worker process: load the model, then run batches until the connection closes."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the service handles them and ends its workers
        signal.signal(number, signal.SIG_IGN)
    warnings.filterwarnings("ignore", module="PIL")  # about uploaded images
    if setup is not None:
        setup()
    with contextlib.suppress(EOFError, ConnectionError):
        predictor = pickle.loads(connection.recv())  # noqa: S301  # the parent process sent it
        connection.send("ready")
        while True:
            jobs, threads = connection.recv()
            torch.set_num_threads(threads)
            connection.send(attempt(predict_batch, predictor, limits, jobs, nullcontext()))
            del jobs  # do not hold the images until the next batch
