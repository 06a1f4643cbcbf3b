"""Batches of concurrent jobs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tests.serve.conftest import SECONDS, Gate, wait_until
from wildcat.serve.service import Batcher
from wildcat.serve.uploads import RequestError


class FakeWorker:
    """A worker for jobs of any type."""

    alive, closed, threads = True, False, 1

    def __init__(self, run: Callable[[Sequence[Any]], Any]) -> None:
        self.run = run

    def restart_if_dead(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


def batcher_of(run: Callable[[Sequence[Any]], Any], batch_size: int, workers: int = 1) -> Any:
    return Batcher([FakeWorker(run) for _ in range(workers)], batch_size)  # type: ignore[misc]


def test_jobs_that_arrive_while_the_worker_is_busy_share_the_next_batches() -> None:
    gate = Gate()
    batcher = batcher_of(gate, batch_size=4)
    first = batcher.submit(0)
    wait_until(lambda: bool(gate.batches))
    rest = [batcher.submit(i) for i in range(1, 8)]
    gate.open.set()
    assert [f.result(SECONDS) for f in (first, *rest)] == list(range(8))
    assert gate.batches == [[0], [1, 2, 3, 4], [5, 6, 7]]
    batcher.close()


def test_several_workers_run_batches_at_the_same_time() -> None:
    gate = Gate()
    batcher = batcher_of(gate, batch_size=2, workers=2)
    futures = [batcher.submit(i) for i in range(8)]
    wait_until(lambda: len(gate.batches) == 2)  # while the gate is shut
    assert not any(f.done() for f in futures) and batcher.workers_alive == 2
    gate.open.set()
    assert [f.result(SECONDS) for f in futures] == list(range(8))
    batcher.close()
    assert not any(thread.is_alive() for thread in batcher.threads)
    assert all(worker.closed for worker in batcher.workers)


def test_a_failed_batch_runs_again_job_by_job() -> None:
    gate = Gate(lambda jobs: [1 / job for job in jobs])
    batcher = batcher_of(gate, batch_size=8)
    futures = [batcher.submit(1)]
    wait_until(lambda: bool(gate.batches))
    futures += [batcher.submit(i) for i in (2, 0, 4)]
    gate.open.set()
    assert [futures[i].result(SECONDS) for i in (0, 1, 3)] == [1, 0.5, 0.25]
    assert isinstance(futures[2].exception(SECONDS), ZeroDivisionError)
    assert gate.batches == [[1], [2, 0, 4], [2], [0], [4]]
    assert batcher.submit(5).result(SECONDS) == 0.2
    batcher.close()


def test_an_exception_among_the_results_fails_its_job_only() -> None:
    batcher = batcher_of(lambda jobs: [KeyError() if job == 1 else job for job in jobs], batch_size=4)
    futures = [batcher.submit(i) for i in range(3)]
    assert [futures[i].result(SECONDS) for i in (0, 2)] == [0, 2]
    assert isinstance(futures[1].exception(SECONDS), KeyError)
    batcher.close()


def test_cancelled_jobs_are_skipped_and_a_closed_batcher_finishes_its_queue() -> None:
    gate = Gate()
    batcher = batcher_of(gate, batch_size=4)
    first = batcher.submit(0)
    wait_until(lambda: bool(gate.batches))
    cancelled, other = batcher.submit(1), batcher.submit(2)
    assert cancelled.cancel()
    gate.open.set()
    batcher.close()
    assert (first.result(SECONDS), other.result(SECONDS)) == (0, 2)
    assert gate.batches == [[0], [2]]
    assert batcher.workers_alive == 0
    with pytest.raises(RequestError, match="stopping"):
        batcher.submit(3)


def test_a_job_that_is_alone_gets_all_threads_and_others_equal_batches_and_shares() -> None:
    threads: list[tuple[int, int]] = []
    gates = [Gate(), Gate()]
    workers = [FakeWorker(gate) for gate in gates]
    for worker, gate in zip(workers, gates, strict=True):
        gate.run = lambda jobs, worker=worker: threads.append((len(jobs), worker.threads)) or jobs  # type: ignore[misc]
    batcher = Batcher(workers, 8, threads=4)  # type: ignore[arg-type]
    first = batcher.submit(0)
    wait_until(lambda: any(gate.batches for gate in gates))
    second = batcher.submit(1)
    wait_until(lambda: all(gate.batches for gate in gates))
    rest = [batcher.submit(i) for i in range(2, 8)]
    for gate in gates:
        gate.open.set()
    assert [future.result(SECONDS) for future in (first, second, *rest)] == list(range(8))
    assert {(1, 4), (1, 2)} <= set(threads) and max(count for count, _ in threads) <= 4
    wait_until(lambda: batcher.pending == 0)
    threads.clear()
    batcher.submit(8).result(SECONDS)
    assert threads == [(1, 4)]
    batcher.close()
