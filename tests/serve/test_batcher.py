"""Requests that overlap share a pass, wait their turn and are turned away; none of it holds up the event loop."""

from __future__ import annotations

import asyncio
import errno
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import httpx
import pytest

from tests.serve.conftest import Connect, encoded, image
from wildcat.errors import ConfigError
from wildcat.predictor import Predictor
from wildcat.serve import Limits
from wildcat.serve import middleware as guard
from wildcat.serve.batcher import Batcher, Budget, Line
from wildcat.serve.limits import Refused

SOON = 20.0
"""Seconds in which anything here happens even on a busy machine."""


def wait_until(true: Callable[[], bool]) -> None:
    until = time.monotonic() + SOON
    while not true():
        assert time.monotonic() < until, "it never came true"
        time.sleep(0.002)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON):
        while not true():
            await asyncio.sleep(0.002)


class Gate:
    """An answer that is given when the gate opens; it keeps the batches it saw."""

    def __init__(self, answer: Callable[[Sequence[Any]], Sequence[Any]] = list) -> None:
        self.answer, self.open = answer, threading.Event()
        self.batches: list[list[Any]] = []

    def __call__(self, items: Sequence[Any]) -> Sequence[Any]:
        self.batches.append(list(items))
        assert self.open.wait(SOON)
        return self.answer(items)


# --- the worker -------------------------------------------------------------------------------------------------------


def test_what_comes_while_the_network_is_busy_shares_the_next_passes() -> None:
    gate = Gate()
    batcher: Batcher[int, int] = Batcher(gate, batch_size=4)
    first = batcher.submit(0)
    wait_until(lambda: bool(gate.batches))
    rest = [batcher.submit(i) for i in range(1, 8)]
    gate.open.set()
    assert [f.result(SOON) for f in (first, *rest)] == list(range(8))
    assert gate.batches == [[0], [1, 2, 3, 4], [5, 6, 7]]
    batcher.close()


def test_several_workers_answer_batches_at_the_same_time() -> None:
    gate = Gate()
    batcher: Batcher[int, int] = Batcher(gate, batch_size=2, workers=2)
    futures = [batcher.submit(i) for i in range(8)]
    wait_until(lambda: len(gate.batches) == 2)  # while the gate is shut
    assert not any(f.done() for f in futures) and batcher.alive
    gate.open.set()
    assert [f.result(SOON) for f in futures] == list(range(8))
    batcher.close()
    assert not any(worker.is_alive() for worker in batcher.workers)


def test_one_bad_item_does_not_spoil_its_batch() -> None:
    def answer(items: Sequence[int]) -> list[float]:
        return [1 / item for item in items]

    gate = Gate(answer)
    batcher: Batcher[int, float] = Batcher(gate, batch_size=8)
    futures = [batcher.submit(1)]
    wait_until(lambda: bool(gate.batches))
    futures += [batcher.submit(i) for i in (2, 0, 4)]
    gate.open.set()
    assert [futures[i].result(SOON) for i in (0, 1, 3)] == [1, 0.5, 0.25]
    assert isinstance(futures[2].exception(SOON), ZeroDivisionError)
    assert batcher.submit(5).result(SOON) == 0.2
    batcher.close()


def test_an_item_nobody_waits_for_is_left_out_and_a_closed_batcher_finishes() -> None:
    gate = Gate()
    batcher: Batcher[int, int] = Batcher(gate, batch_size=4)
    first = batcher.submit(0)
    wait_until(lambda: bool(gate.batches))
    given_up, kept = batcher.submit(1), batcher.submit(2)
    assert given_up.cancel()
    gate.open.set()
    batcher.close()
    assert (first.result(SOON), kept.result(SOON)) == (0, 2)
    assert gate.batches == [[0], [2]]
    assert not batcher.alive
    with pytest.raises(Refused, match="stopping"):
        batcher.submit(3)


def test_a_line_has_so_many_places() -> None:
    line = Line(2)
    line.enter()
    line.enter()
    with pytest.raises(Refused) as refused:
        line.enter()
    assert (refused.value.status, refused.value.retry_after) == (503, 1)
    line.leave()
    line.enter()


def test_a_budget_is_never_exceeded_and_serves_in_order() -> None:
    async def spend() -> list[int]:
        budget, order, held = Budget(10), [], 0

        async def take(amount: int) -> None:
            nonlocal held
            async with budget.take(amount):
                order.append(amount)
                held += amount
                assert held <= 10
                await asyncio.sleep(0.005)
                held -= amount

        tasks = [asyncio.create_task(take(amount)) for amount in (6, 9, 1, 2, 10, 3)]
        await asyncio.sleep(0)
        tasks[4].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert budget.free == 10
        return order

    assert asyncio.run(spend()) == [6, 9, 1, 2, 3]


@pytest.mark.parametrize("bad", [{"max_mb": 0}, {"seconds": float("nan")}, {"queue": 0}, {"max_pixels": -1}])
def test_limits_are_checked(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        Limits(**bad)


# --- the service ------------------------------------------------------------------------------------------------------


def gated(client: httpx.AsyncClient) -> Gate:
    """Put a gate before the network of a service."""
    batcher = client.app.state.service.batcher  # type: ignore[attr-defined]
    gate = Gate(batcher.answer)
    batcher.answer = gate
    return gate


def send(client: httpx.AsyncClient, seed: int = 0) -> asyncio.Task[httpx.Response]:
    files = {"image": ("a.png", encoded(image(seed)))}
    return asyncio.create_task(client.post("/predict?cells=3", files=files))


def test_batches_of_overlapping_requests_answer_as_single_ones(connect: Connect, predictor: Predictor) -> None:
    async def overlap() -> None:
        async with connect(Limits(batch_size=4)) as client:
            alone = [(await send(client, seed)).json() for seed in range(9)]
            gate = gated(client)
            first = send(client, 0)
            await until(lambda: bool(gate.batches))
            rest = [send(client, seed) for seed in range(1, 9)]
            waiting = client.app.state.service.batcher.waiting  # type: ignore[attr-defined]
            await until(lambda: waiting.qsize() == 8)
            gate.open.set()
            together = [(await task).json() for task in (first, *rest)]
            assert [len(batch) for batch in gate.batches] == [1, 4, 4]
            assert together == alone
            assert len({str(answer["scores"]) for answer in alone}) == 9

    asyncio.run(overlap())


def test_overload_is_turned_away_and_recovers_while_health_answers(connect: Connect) -> None:
    async def overload() -> None:
        async with connect(Limits(queue=3)) as client:
            gate = gated(client)
            inside = [send(client, seed) for seed in range(3)]
            await until(lambda: bool(gate.batches))
            health = await asyncio.wait_for(client.get("/health"), SOON)  # the loop is free while the network works
            assert health.json() == {"status": "ok", "requests": 3, "places": 3}
            for _ in range(5):
                refused = await asyncio.wait_for(send(client), SOON)
                assert refused.status_code == 503
                assert refused.headers["retry-after"] == "1"
                assert "3 requests" in refused.json()["detail"]
            assert not any(task.done() for task in inside)
            gate.open.set()
            assert [(await task).status_code for task in inside] == [200, 200, 200]
            assert (await send(client)).status_code == 200
            assert (await client.get("/health")).json()["requests"] == 0

    asyncio.run(overload())


def test_an_answer_that_takes_too_long_is_given_up_but_keeps_its_place(connect: Connect) -> None:
    async def late() -> None:
        async with connect(Limits(queue=2, seconds=0.5, batch_size=1)) as client:
            gate = gated(client)
            answers = [await task for task in [send(client), send(client)]]
            assert [a.status_code for a in answers] == [503, 503]
            assert "0.5 seconds" in answers[0].json()["detail"]
            line = client.app.state.service.line  # type: ignore[attr-defined]
            await until(lambda: line.taken == 1)  # the other was dropped before it came to the network
            await asyncio.sleep(0.05)
            assert line.taken == 1
            gate.open.set()
            await until(lambda: line.taken == 0)
            assert len(gate.batches) == 1

    asyncio.run(late())


def test_a_body_that_does_not_arrive_is_not_waited_for(connect: Connect) -> None:
    async def dripping() -> AsyncIterator[bytes]:
        yield b'--xyz\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
        while True:
            yield b"-"
            await asyncio.sleep(0.05)

    async def slow() -> None:
        async with connect(Limits(seconds=0.3)) as client:
            headers = {"content-type": "multipart/form-data; boundary=xyz"}
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(guard, "DRAIN_SECONDS", 0.1)
                answer = await asyncio.wait_for(client.post("/predict", content=dripping(), headers=headers), SOON)
            assert answer.status_code == 408
            assert (await client.get("/health")).json()["requests"] == 0

    asyncio.run(slow())


def test_an_unforeseen_failure_is_an_answer_without_its_secrets(connect: Connect) -> None:
    async def fail() -> None:
        async with connect() as client:
            batcher = client.app.state.service.batcher  # type: ignore[attr-defined]
            good, batcher.answer = batcher.answer, lambda items: 1 / 0
            answer = await send(client)
            assert answer.status_code == 500
            assert set(answer.json()) == {"detail", "hint"}
            assert "division" not in answer.text
            batcher.answer = good
            assert (await send(client)).status_code == 200

    asyncio.run(fail())


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_no_memory_for_an_image_is_said_and_the_next_is_answered(connect: Connect, error: Exception) -> None:
    def none_left(_: object) -> list[Any]:
        raise error

    async def fail() -> None:
        async with connect() as client:
            batcher = client.app.state.service.batcher  # type: ignore[attr-defined]
            good, batcher.answer = batcher.answer, none_left
            answer = await send(client)
            assert answer.status_code == 503 and answer.headers["retry-after"] == "5"
            assert "not enough memory" in answer.json()["detail"] and answer.json()["hint"]
            batcher.answer = good
            assert (await send(client)).status_code == 200

    asyncio.run(fail())


def test_no_disk_for_an_upload_or_an_answer_is_the_services_fault(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async def fail() -> None:
        async with connect() as client:
            with monkeypatch.context() as patch:
                patch.setattr("starlette.formparsers.SpooledTemporaryFile", full)
                answer = await send(client)
            assert answer.status_code == 503 and "disk" in answer.json()["detail"]
            with monkeypatch.context() as patch:
                patch.setattr("pathlib.Path.replace", full)
                files = {"image": ("a.png", encoded(image()))}
                answer = await client.post("/annotations?format=voc", files=files)
            assert answer.status_code == 503 and "disk" in answer.json()["detail"]
            assert (await send(client)).status_code == 200

    asyncio.run(fail())
