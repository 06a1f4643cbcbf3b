"""Group concurrent requests into batches for the workers, and limit the memory of decoded images."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Any

from wildcat.serve.limits import RequestError
from wildcat.serve.workers import Job, Worker

WAIT_SECONDS = 0.004  # how long the first image of a batch waits for more
CHECK_SECONDS = 1.0  # how often idle workers are checked

Entry = tuple[Job, "Future[Any]"]


class Batcher:
    """A queue of jobs, and a thread for each worker that takes batches from it.

    Jobs whose future is cancelled are skipped. If a batch fails, its jobs run one by one, so that one image cannot fail
    the requests of others.

    Args:
        batch_size: most jobs per batch.
    """

    def __init__(self, workers: Sequence[Worker], batch_size: int) -> None:
        self.workers, self.batch_size = workers, batch_size
        self.queue: queue.SimpleQueue[Entry | None] = queue.SimpleQueue()  # None ends a thread
        self.lock = threading.Lock()
        self.closed = False
        self.threads = [
            threading.Thread(target=self._run, args=(worker,), name=f"wildcat-worker-{i}", daemon=True)
            for i, worker in enumerate(workers)
        ]
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
            self.queue.put((job, future))
        return future

    @property
    def workers_alive(self) -> int:
        """How many workers can run a batch."""
        if self.closed:
            return 0
        return sum(t.is_alive() and w.alive for t, w in zip(self.threads, self.workers, strict=True))

    def close(self, seconds: float = 10.0) -> None:
        """Refuse new jobs, finish the queued ones within `seconds`, and stop the workers."""
        with self.lock:
            if not self.closed:
                self.closed = True
                for _ in self.threads:
                    self.queue.put(None)
        end = time.monotonic() + seconds
        for thread in self.threads:
            thread.join(max(0.0, end - time.monotonic()))
        for worker in self.workers:
            worker.close()

    def _run(self, worker: Worker) -> None:
        more = True
        while more:
            batch, more = self._next_batch()
            running = [(job, future) for job, future in batch if future.set_running_or_notify_cancel()]
            if running:
                self._run_batch(worker, running)
            del batch, running  # do not hold the images until the next batch
            if more:
                with contextlib.suppress(RequestError):  # the next batch tries again
                    worker.restart_if_dead()

    def _next_batch(self) -> tuple[list[Entry], bool]:
        """The next batch, empty after `CHECK_SECONDS` without jobs; and whether more batches may follow."""
        batch: list[Entry] = []
        end = time.monotonic() + CHECK_SECONDS
        while len(batch) < self.batch_size:
            try:
                entry = self.queue.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                break
            if entry is None:
                return batch, False
            if not batch:
                end = time.monotonic() + WAIT_SECONDS
            batch.append(entry)
        return batch, True

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


class Budget:
    """An amount that concurrent tasks share; tasks that wait for their part of it are served in order."""

    def __init__(self, total: int) -> None:
        self.total, self.free = total, total
        self.first, self.changed = asyncio.Lock(), asyncio.Condition()

    @asynccontextmanager
    async def take(self, amount: int) -> AsyncIterator[None]:
        """Wait for `amount`, at most `total`, and hold it during the block."""
        async with self.first, self.changed:
            await self.changed.wait_for(lambda: self.free >= amount)
            self.free -= amount
        try:
            yield
        finally:
            self.free += amount
            await asyncio.shield(self._notify())

    async def _notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()
