"""From a request to its result: receive the image, queue it for a worker, and enforce the limits."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar

from starlette.requests import Request

from wildcat.engines.threads import Shares, engine_threads
from wildcat.errors import ConfigError, WildcatError, out_of_memory
from wildcat.prediction import Prediction
from wildcat.predictor import Predictor
from wildcat.serve.batcher import Batcher, Budget
from wildcat.serve.images import open_image, read_form
from wildcat.serve.limits import Limits, RequestError
from wildcat.serve.workers import Job, Worker, start_processes

log = logging.getLogger(__name__)

Result = TypeVar("Result")

MAX_WORKERS = 4  # each needs memory for a batch
SMALL_BATCH = 2  # images per batch of workers that share the cores; larger batches are no faster (serve_load.py)


class Service:
    """Predicts uploaded images within the limits; see `create_app` for the arguments.

    Attributes:
        requests: how many run or wait.
    """

    def __init__(
        self, predictor: Predictor, limits: Limits, processes: int = 0, setup: Callable[[], object] | None = None
    ) -> None:
        self.limits, self.requests = limits, 0
        self.workers, batch_size = create_workers(predictor, limits, processes, setup)
        self.batcher = Batcher(self.workers, batch_size)
        self.budget = Budget(limits.max_decoded_pixels)

    async def predict(self, request: Request, render: Callable[[Prediction], Result]) -> Result:
        """What `render` returns for the prediction of the image in the form of `request`; a worker calls it.

        A request is counted until its worker is done with it, even if its client got a timeout before.

        Raises:
            RequestError: the queue is full (503), the image cannot be used (4xx), or a timeout (408, 503).
        """
        if self.requests >= self.limits.queue:
            raise RequestError(
                503, f"the queue is full ({self.requests} requests).", "Try again in a second.", retry_after=1
            )
        self.requests += 1
        try:
            content, name = await self._receive(request)
        except BaseException:
            self.requests -= 1
            raise
        task = asyncio.create_task(self._predict(content, name, render))
        task.add_done_callback(self._done)
        del content
        try:
            done, _ = await asyncio.wait({task}, timeout=self.limits.timeout)
        except asyncio.CancelledError as error:  # the server stops
            task.cancel()
            raise RequestError(503, "the service is stopping.") from error
        if not done:
            task.cancel()
            raise RequestError(
                503, f"no result within {self.limits.timeout:g} seconds.", "Try again later.", retry_after=5
            )
        try:
            return task.result()
        except (RequestError, WildcatError):
            raise
        except Exception as error:
            if out_of_memory(error):
                raise RequestError(
                    503,
                    "there is not enough memory for this image.",
                    "Try again later, or send a smaller image.",
                    retry_after=5,
                ) from error
            log.exception("an unexpected error in a request")
            raise RequestError(500, "an unexpected error occurred; the log of the service has the details.") from error

    def health(self) -> dict[str, Any]:
        """See `schemas.HealthResponse`."""
        alive = self.batcher.workers_alive
        return {
            "status": "down" if alive == 0 else "ok" if alive == len(self.workers) else "degraded",
            "workers": len(self.workers),
            "workers_alive": alive,
            "restarts": sum(worker.restarts for worker in self.workers),
            "requests": self.requests,
            "queue": self.limits.queue,
        }

    def close(self) -> None:
        """Finish the queued requests and stop the workers."""
        self.batcher.close()

    def _done(self, task: asyncio.Task[Result]) -> None:
        self.requests -= 1
        if not task.cancelled():
            task.exception()  # asyncio logs exceptions that nobody has retrieved

    async def _receive(self, request: Request) -> tuple[bytes, str]:
        try:
            async with asyncio.timeout(self.limits.timeout):
                return await read_form(request)
        except TimeoutError as error:
            raise RequestError(408, f"the image did not arrive within {self.limits.timeout:g} seconds.") from error

    async def _predict(self, content: bytes, name: str, render: Callable[[Prediction], Result]) -> Result:
        header = await asyncio.to_thread(open_image, content, self.limits.max_pixels)
        async with self.budget.take(header.width * header.height):
            future = self.batcher.submit(Job(content, name, render))
            del content, header
            waiting = asyncio.wrap_future(future)
            try:
                result: Result = await asyncio.shield(waiting)
                return result
            except asyncio.CancelledError:
                if not future.cancel():  # it runs already: hold the budget until it ends
                    await asyncio.wait({waiting})
                raise


def create_workers(
    predictor: Predictor, limits: Limits, processes: int, setup: Callable[[], object] | None
) -> tuple[Sequence[Worker], int]:
    """The workers of a service, and their batch size.

    Raises:
        ConfigError: see `count_processes`.
        WorkerError: a worker process cannot start.
    """
    threads = Shares(engine_threads())
    count = count_processes(processes, predictor, threads.total)
    if not shares_cores(predictor):  # one forward pass at a time, while the other worker decodes and renders
        lock = threading.Lock()
        return [Worker(predictor, limits, threads, lock) for _ in range(2)], limits.batch_size
    workers: list[Worker] = (
        start_processes(predictor, limits, threads, setup, count)
        if count
        else [Worker(predictor, limits, threads, nullcontext()) for _ in range(min(MAX_WORKERS, threads.total))]
    )
    return workers, limits.batch_size if len(workers) == 1 else min(SMALL_BATCH, limits.batch_size)


def shares_cores(predictor: Predictor) -> bool:
    """Whether forward passes can run side by side with a part of the cores each: with torch on a CPU.

    A GPU runs one after the other, and the other engines manage their own threads.
    """
    return predictor.device.type == "cpu" and all(
        member.engine is None or member.engine.name == "torch" for member in predictor.members
    )


def count_processes(processes: int, predictor: Predictor, threads: int) -> int:
    """Number of worker processes: `processes`, or for -1 one per core up to `MAX_WORKERS` where that is faster.

    Raises:
        ConfigError: below -1, or more than 0 for a model on a GPU or with an engine that has its own threads.
    """
    if processes < -1:
        raise ConfigError(f"processes={processes}: give a number, 0 for none, or -1 for the default.")
    if processes > 0 and not shares_cores(predictor):
        raise ConfigError(
            f"processes={processes}: worker processes need the torch engine on a CPU.",
            "Omit --processes, or add --device cpu --engine torch.",
        )
    if processes >= 0:
        return processes
    return min(MAX_WORKERS, threads) if threads > 1 and shares_cores(predictor) else 0
