"""From a request to its result: receive the image, queue it, and run batches of queued images on the workers."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, nullcontext
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.types import Message

from wildcat.config import Limits
from wildcat.device import engine_threads
from wildcat.errors import ConfigError, out_of_memory
from wildcat.prediction import Prediction
from wildcat.predictor import Predictor
from wildcat.serve.uploads import RequestError, open_image, read_form, try_later
from wildcat.serve.workers import Job, Worker, start_processes

Result = TypeVar("Result")
Entry = tuple[Job, "Future[Any]"]

MAX_WORKERS = 4  # each needs memory for a batch
LARGE_IMAGES = 3  # images above `max_pixels` / LARGE_SHARE that are decoded at the same time, to bound the memory
LARGE_SHARE = 10
CHECK_SECONDS = 1.0  # how often idle workers are checked
ROOM_SECONDS = 0.1  # how often uploads check whether there is room in memory


class Service:
    """Predicts uploaded images within the limits; see `create_app` for the arguments.

    Attributes:
        requests: how many are received, wait or run.
        bytes: of their bodies, as far as they have arrived.
        receiving: those whose bodies have not arrived, by their timeouts, in the order of their start.
    """

    def __init__(
        self, predictor: Predictor, limits: Limits, processes: int = 0, setup: Callable[[], object] | None = None
    ) -> None:
        self.limits, self.requests, self.bytes = limits, 0, 0
        self.receiving: dict[asyncio.Timeout, None] = {}
        self.workers = create_workers(predictor, limits, processes, setup)
        self.batcher = Batcher(self.workers, limits.batch_size, engine_threads())
        self.large = asyncio.Semaphore(LARGE_IMAGES)

    async def predict(self, request: Request, render: Callable[[Prediction], Result]) -> Result:
        """What `render` returns for the prediction of the image in the form of `request`; a worker calls it.

        A request is counted until its worker is done with it, even if its client got a timeout before.

        Raises:
            RequestError: the queue is full (503), the image cannot be used (4xx), or a timeout (408, 503).
        """
        self._refuse_if_full()
        with ExitStack() as held:  # released when the worker is done, or earlier after an error
            content, name = await self._receive(request, held)
            return await until_disconnect(request, self._run(content, name, render, held))

    async def predict_file(self, content: bytes, name: str, render: Callable[[Prediction], Result]) -> Result:
        """As `predict`, of an image file that the service has fetched itself."""
        self._refuse_if_full()
        size = len(content)

        def forget() -> None:
            self.requests -= 1
            self.bytes -= size

        self.requests += 1
        self.bytes += size
        with ExitStack() as held:
            held.callback(forget)
            return await self._run(content, name, render, held)

    def _refuse_if_full(self) -> None:
        if self.requests >= self.limits.queue:
            raise RequestError(
                503, f"the queue is full ({self.requests} requests).", "Try again in a second.", retry_after=1
            )

    async def _run(self, content: bytes, name: str, render: Callable[[Prediction], Result], held: ExitStack) -> Result:
        """What `render` returns for the prediction of an image; `held` is closed when the worker is done."""
        wait = self.limits.wait
        try:
            async with asyncio.timeout(wait):
                header = await asyncio.to_thread(open_image, content, self.limits.max_pixels)
                if header.width * header.height > self.limits.max_pixels / LARGE_SHARE:
                    await self.large.acquire()
                    held.callback(self.large.release)
                future = self.batcher.submit(Job(content, name, render))
                del content, header
                loop, release = asyncio.get_running_loop(), held.pop_all().close
                future.add_done_callback(lambda _: loop.call_soon_threadsafe(release))
                result: Result = await asyncio.wrap_future(future)  # a timeout cancels it: a job that waits is skipped
                return result
        except TimeoutError as error:
            raise try_later(f"no result within {wait:g} seconds.") from error
        except Exception as error:
            if out_of_memory(error):
                raise try_later("there is not enough memory for this image.") from error
            raise

    def health(self) -> dict[str, Any]:
        """State of the workers and of the queue."""
        alive = self.batcher.workers_alive
        return {
            # ok: all workers are alive; degraded: some are not; down: none is
            "status": "down" if alive == 0 else "ok" if alive == len(self.workers) else "degraded",
            "workers": len(self.workers),
            "workers_alive": alive,
            "restarts": sum(worker.restarts for worker in self.workers),
            "requests": self.requests,
            "queue": self.limits.queue,
        }

    async def _receive(self, request: Request, held: ExitStack) -> tuple[bytes, str]:
        """Content and name of the image in a form; the request and its bytes count until `held` is closed.

        Raises:
            RequestError: see `read_form`; 408 timeout, 503 no room in memory.
        """
        arrived, seconds = 0, self.limits.timeout

        def forget() -> None:
            self.requests -= 1
            self.bytes -= arrived

        async def receive() -> Message:
            nonlocal arrived
            await self._wait_for_room(timeout)
            message = await request.receive()
            size = len(message.get("body", b""))
            arrived += size
            self.bytes += size
            return message

        self.requests += 1
        held.callback(forget)
        try:
            async with asyncio.timeout(seconds) as timeout:
                self.receiving[timeout] = None
                return await read_form(Request(request.scope, receive))
        except TimeoutError as error:
            raise RequestError(408, f"the image did not arrive within {seconds:g} seconds.") from error
        finally:
            self.receiving.pop(timeout)

    async def _wait_for_room(self, timeout: asyncio.Timeout) -> None:
        """Read no more of a body while `Limits.queue_mb` are in memory; the timeout of the request stands still.

        If only bodies that have not arrived yet fill the memory, the oldest of them may arrive.

        Raises:
            RequestError: 503, no room within `Limits.wait`.
        """
        start, end = time.monotonic(), timeout.when()
        while self.bytes > self.limits.queue_mb * 1e6 and (
            self.requests > len(self.receiving) or timeout is not next(iter(self.receiving))
        ):
            timeout.reschedule(None)
            if time.monotonic() - start > self.limits.wait:
                raise try_later(f"the queue is full ({self.bytes / 1e6:.1f} MB in {self.requests} requests).")
            await asyncio.sleep(ROOM_SECONDS)
        if end is not None:
            timeout.reschedule(end + time.monotonic() - start)


async def until_disconnect(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, which is cancelled if the client of `request`, whose body has arrived, disconnects."""
    task, disconnected = asyncio.ensure_future(work), asyncio.ensure_future(request.receive())
    disconnected.add_done_callback(lambda _: task.cancel())
    try:
        return await task
    except asyncio.CancelledError as error:  # the server stops, or the client is gone
        raise RequestError(503, "the service is stopping.") from error
    finally:
        disconnected.cancel()


class Batcher:
    """A queue of jobs, and a thread for each worker that takes batches from it.

    Jobs whose future is cancelled are skipped. If a batch fails, its jobs run one by one, so that one image cannot fail
    the requests of others.

    Args:
        batch_size: most jobs per batch.
        threads: of torch, for all workers together. A forward pass on all cores waits at every layer for the slowest
            core; several passes with a part of the cores each do not. A job that is alone gets all.
    """

    def __init__(self, workers: Sequence[Worker], batch_size: int, threads: int = 1) -> None:
        self.workers, self.batch_size, self.cores = workers, batch_size, threads
        self.pending = 0  # jobs that wait or run
        self.queue: queue.SimpleQueue[Entry | None] = queue.SimpleQueue()  # None ends a thread
        self.lock = threading.Lock()
        self.closed = False
        self.threads = [threading.Thread(target=self._run, args=(worker,), daemon=True) for worker in workers]
        for thread in self.threads:
            thread.start()

    def submit(self, job: Job) -> Future[Any]:
        """Queue a job; the future gives what the job's `render` returns.

        Raises:
            RequestError: 503, the service is stopping.
        """
        future: Future[Any] = Future()
        with self.lock:
            if self.closed:
                raise RequestError(503, "the service is stopping.")
            self.pending += 1
            future.add_done_callback(self._done)
            self.queue.put((job, future))
        return future

    def _done(self, _: Future[Any]) -> None:
        with self.lock:
            self.pending -= 1

    @property
    def workers_alive(self) -> int:
        """How many workers can run a batch."""
        return 0 if self.closed else sum(worker.alive for worker in self.workers)

    def close(self, seconds: float = 10.0) -> None:
        """Refuse new jobs, finish the queued ones within `seconds`, and stop the workers."""
        with self.lock:
            self.closed = True
        for _ in self.threads:
            self.queue.put(None)
        end = time.monotonic() + seconds
        for thread in self.threads:
            thread.join(max(0.0, end - time.monotonic()))
        for worker in self.workers:
            worker.close()

    def _run(self, worker: Worker) -> None:
        while True:
            batch: list[Entry] = []
            with contextlib.suppress(queue.Empty):
                while len(batch) < min(self.batch_size, max(1, -(-self.pending // len(self.workers)))):
                    entry = self.queue.get(timeout=0 if batch else CHECK_SECONDS)
                    if entry is None and not batch:
                        return
                    if entry is None:  # run the batch first
                        self.queue.put(None)
                        break
                    batch.append(entry)
            running = [(job, future) for job, future in batch if future.set_running_or_notify_cancel()]
            if running:
                worker.threads = self.cores if self.pending == 1 else max(1, self.cores // len(self.workers))
                self._run_batch(worker, running)
            del batch, running  # do not hold the images until the next batch
            with contextlib.suppress(RequestError):  # the next batch tries again
                worker.restart_if_dead()

    def _run_batch(self, worker: Worker, batch: Sequence[Entry]) -> None:
        try:
            results = worker.run([job for job, _ in batch])
        except Exception as error:
            if len(batch) > 1:
                for entry in batch:
                    self._run_batch(worker, [entry])
                return
            results = [error]
        for (_, future), result in zip(batch, results, strict=True):
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)


def create_workers(
    predictor: Predictor, limits: Limits, processes: int, setup: Callable[[], object] | None
) -> Sequence[Worker]:
    """The workers of a service.

    Raises:
        ConfigError: see `count_processes`.
        WorkerError: a worker process cannot start.
    """
    count = count_processes(processes, predictor, engine_threads())
    if not predictor.shares_cores:  # one forward pass at a time, while the other worker decodes and renders
        lock = threading.Lock()
        return [Worker(predictor, limits, lock) for _ in range(2)]
    if count:
        return start_processes(predictor, limits, setup, count)
    return [Worker(predictor, limits, nullcontext()) for _ in range(min(MAX_WORKERS, engine_threads()))]


def count_processes(processes: int, predictor: Predictor, threads: int) -> int:
    """Number of worker processes: `processes`, or for -1 one per core up to `MAX_WORKERS` where that is faster.

    Raises:
        ConfigError: below -1, or more than 0 for a model on a GPU or with an engine that has its own threads.
    """
    if processes < -1:
        raise ConfigError(f"--processes {processes}: give a number, 0 for none, or -1 for the default.")
    if processes > 0 and not predictor.shares_cores:
        raise ConfigError(
            f"--processes {processes}: worker processes need the torch engine on a CPU.",
            "Omit --processes, or add --device cpu --engine torch.",
        )
    if processes >= 0:
        return processes
    return min(MAX_WORKERS, threads) if threads > 1 and predictor.shares_cores else 0
