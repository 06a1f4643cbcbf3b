"""Requests share batches, wait in the queue, time out and fail; the event loop never blocks."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable
from copy import copy
from dataclasses import replace
from typing import Any

import httpx
import pytest

from tests.serve.conftest import SECONDS, Connect, Gate, encoded, image
from tests.serve.malformed import form
from wildcat.errors import ConfigError
from wildcat.prediction import Prediction
from wildcat.predictor import Predictor
from wildcat.serve import Limits, middleware
from wildcat.serve.service import LARGE_IMAGES, Service


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(0.002)


def service_of(client: httpx.AsyncClient) -> Service:
    service: Service = client.app.state.service  # type: ignore[attr-defined]
    return service


@pytest.mark.parametrize(
    "bad", [{"max_mb": 0}, {"timeout": float("nan")}, {"worker_timeout": -1}, {"queue": 0}, {"max_pixels": -1}]
)
def test_limits_are_checked(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        Limits(**bad)


def gated(client: httpx.AsyncClient) -> Gate:
    """Put a gate before the only worker of a service."""
    (worker,) = service_of(client).workers
    gate = Gate(worker.run)
    worker.run = gate  # type: ignore[method-assign]
    return gate


def send(client: httpx.AsyncClient, seed: int = 0) -> asyncio.Task[httpx.Response]:
    files = {"image": ("a.png", encoded(image(seed)))}
    return asyncio.create_task(client.post("/predict?cells=3", files=files))


def test_batches_of_concurrent_requests_equal_single_requests(connect: Connect, predictor: Predictor) -> None:
    async def overlap() -> None:
        async with connect(Limits(batch_size=4)) as client:
            alone = [(await send(client, seed)).json() for seed in range(9)]
            gate = gated(client)
            first = send(client, 0)
            await until(lambda: bool(gate.batches))
            rest = [send(client, seed) for seed in range(1, 9)]
            await until(lambda: service_of(client).batcher.queue.qsize() == 8)
            gate.open.set()
            together = [(await task).json() for task in (first, *rest)]
            assert [len(batch) for batch in gate.batches] == [1, 4, 4]
            assert together == alone
            assert len({str(each["scores"]) for each in alone}) == 9

    asyncio.run(overlap())


def test_a_full_queue_refuses_requests_and_recovers_while_health_responds(connect: Connect) -> None:
    async def overload() -> None:
        async with connect(Limits(queue=3)) as client:
            gate = gated(client)
            inside = [send(client, seed) for seed in range(3)]
            await until(lambda: bool(gate.batches))
            health = await asyncio.wait_for(client.get("/health"), SECONDS)  # the loop is free while the network works
            assert health.json() == {
                "status": "ok", "workers": 1, "workers_alive": 1, "restarts": 0, "requests": 3, "queue": 3
            }  # fmt: skip
            for _ in range(5):
                refused = await asyncio.wait_for(send(client), SECONDS)
                assert refused.status_code == 503
                assert refused.headers["retry-after"] == "1"
                assert "3 requests" in refused.json()["detail"]
            assert not any(task.done() for task in inside)
            gate.open.set()
            assert [(await task).status_code for task in inside] == [200, 200, 200]
            assert (await send(client)).status_code == 200
            assert (await client.get("/health")).json()["requests"] == 0

    asyncio.run(overload())


def test_64_clients_wait_at_default_settings(connect: Connect) -> None:
    async def crowd() -> None:
        async with connect() as client:
            gate = gated(client)
            waiting = [send(client, seed) for seed in range(64)]
            await until(lambda: sum(map(len, gate.batches)) + service_of(client).batcher.queue.qsize() == 64)
            gate.open.set()
            assert [(await task).status_code for task in waiting] == [200] * 64
            assert (service_of(client).requests, service_of(client).bytes) == (0, 0)

    asyncio.run(crowd())


async def chunks(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), 10_000):
        yield body[start : start + 10_000]
        await asyncio.sleep(0)


def test_uploads_wait_while_the_memory_for_them_is_full(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bodies in chunks, whose header does not say how long they are, count as they arrive."""
    monkeypatch.setattr("wildcat.serve.service.ROOM_SECONDS", 0.01)
    body = form(encoded(image()) + bytes(100_000))  # Pillow ignores bytes after the image

    async def flood() -> None:
        async with connect(Limits(max_mb=0.2, queue_mb=0.25, timeout=0.2, batch_size=1)) as client:
            gate, service = gated(client), service_of(client)

            def upload() -> asyncio.Task[httpx.Response]:
                headers = {"content-type": "multipart/form-data; boundary=xyz"}
                return asyncio.create_task(client.post("/predict", content=chunks(body), headers=headers))

            inside = [upload(), upload()]
            await until(lambda: len(gate.batches) + service.batcher.queue.qsize() == 2)
            waiting = [upload() for _ in range(6)]
            await until(lambda: service.requests == 8)
            await asyncio.sleep(0.5)  # more than the timeout, which stands still
            assert 250_000 < service.bytes <= 250_000 + 6 * 10_000
            service.limits = replace(service.limits, wait=1e-6)
            refused = [await task for task in waiting]
            assert {each.status_code for each in refused} == {503}
            assert all(each.headers["retry-after"] and "MB" in each.json()["detail"] for each in refused)
            service.limits = replace(service.limits, wait=SECONDS)
            waiting = [upload() for _ in range(6)]
            gate.open.set()
            assert [(await task).status_code for task in inside + waiting] == [200] * 8
            await until(lambda: (service.requests, service.bytes, len(service.receiving)) == (0, 0, 0))

    asyncio.run(flood())


def test_uploads_that_fill_the_memory_together_arrive_one_after_the_other(connect: Connect) -> None:
    body = form(encoded(image()) + bytes(150_000))

    async def flood() -> None:
        async with connect(Limits(max_mb=0.2, queue_mb=0.1)) as client:
            headers = {"content-type": "multipart/form-data; boundary=xyz"}
            tasks = [client.post("/predict", content=chunks(body), headers=headers) for _ in range(4)]
            assert [each.status_code for each in await asyncio.gather(*tasks)] == [200] * 4

    asyncio.run(flood())


def test_the_job_of_a_client_that_is_gone_is_skipped(connect: Connect) -> None:
    async def leave() -> None:
        async with connect() as client:
            gate, service = gated(client), service_of(client)
            first = send(client)
            await until(lambda: bool(gate.batches))
            left, left_later = (
                asyncio.Event(),
                [{"type": "http.request", "body": form(encoded(image())), "more_body": False}],
            )

            async def receive() -> dict[str, Any]:
                if left_later:
                    return left_later.pop()
                await left.wait()
                return {"type": "http.disconnect"}

            async def send_nothing(_: object) -> None: ...

            headers = [(b"content-type", b"multipart/form-data; boundary=xyz")]
            scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b"", "headers": headers}
            gone = asyncio.create_task(client.app(scope, receive, send_nothing))  # type: ignore[attr-defined]
            await until(lambda: service.batcher.queue.qsize() == 1)
            left.set()
            await until(lambda: service.requests == 1)
            await gone
            gate.open.set()
            assert (await first).status_code == 200
            assert (await send(client)).status_code == 200
            assert [len(batch) for batch in gate.batches] == [1, 1]

    asyncio.run(leave())


def test_a_request_that_times_out_is_counted_until_its_worker_is_done(connect: Connect) -> None:
    async def late() -> None:
        async with connect(Limits(queue=2, wait=0.5, batch_size=1)) as client:
            gate = gated(client)
            responses = [await task for task in [send(client), send(client)]]
            assert [each.status_code for each in responses] == [503, 503]
            assert "0.5 seconds" in responses[0].json()["detail"]
            service = service_of(client)
            await until(lambda: service.requests == 1)  # the other was still in the queue and is dropped
            await asyncio.sleep(0.05)
            assert service.requests == 1
            gate.open.set()
            await until(lambda: service.requests == 0)
            assert len(gate.batches) == 1

    asyncio.run(late())


def test_a_body_that_does_not_arrive_times_out(connect: Connect) -> None:
    async def dripping() -> AsyncIterator[bytes]:
        yield b'--xyz\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
        while True:
            yield b"-"
            await asyncio.sleep(0.05)

    async def slow() -> None:
        async with connect(Limits(timeout=0.3)) as client:
            headers = {"content-type": "multipart/form-data; boundary=xyz"}
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(middleware, "DRAIN_SECONDS", 0.1)
                response = await asyncio.wait_for(client.post("/predict", content=dripping(), headers=headers), SECONDS)
            assert response.status_code == 408
            assert (await client.get("/health")).json()["requests"] == 0

    asyncio.run(slow())


def test_the_response_to_an_unexpected_error_hides_its_details(connect: Connect) -> None:
    async def fail() -> None:
        async with connect() as client:
            (worker,) = service_of(client).workers
            good, worker.run = worker.run, lambda jobs: 1 / 0  # type: ignore[method-assign]
            response = await send(client)
            assert response.status_code == 500
            assert set(response.json()) == {"detail", "hint"}
            assert "division" not in response.text
            worker.run = good  # type: ignore[method-assign]
            assert (await send(client)).status_code == 200

    asyncio.run(fail())


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_out_of_memory_fails_one_request_only(connect: Connect, error: Exception) -> None:
    def none_left(_: object) -> list[Any]:
        raise error

    async def fail() -> None:
        async with connect() as client:
            (worker,) = service_of(client).workers
            good, worker.run = worker.run, none_left  # type: ignore[method-assign]
            response = await send(client)
            assert response.status_code == 503 and response.headers["retry-after"] == "5"
            assert "not enough memory" in response.json()["detail"] and response.json()["hint"]
            worker.run = good  # type: ignore[method-assign]
            assert (await send(client)).status_code == 200

    asyncio.run(fail())


def test_a_full_disk_is_status_503(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async def fail() -> None:
        async with connect() as client:
            with monkeypatch.context() as patch:
                patch.setattr("starlette.formparsers.SpooledTemporaryFile", full)
                response = await send(client)
            assert response.status_code == 503 and "disk" in response.json()["detail"]
            with monkeypatch.context() as patch:
                patch.setattr("pathlib.Path.replace", full)
                files = {"image": ("a.png", encoded(image()))}
                response = await client.post("/annotations?format=voc", files=files)
            assert response.status_code == 503 and "disk" in response.json()["detail"]
            assert (await send(client)).status_code == 200

    asyncio.run(fail())


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGSTOP")
def test_a_hung_worker_process_times_out_and_is_restarted(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    """The upload is larger than the buffer of the pipe, so that sending it blocks too."""

    async def hang() -> None:
        padded = encoded(image()) + bytes(1_000_000)  # Pillow ignores bytes after the image
        files = {"image": ("a.png", padded)}
        async with connect(processes=1) as client:
            (worker,) = service_of(client).workers
            before = (await client.post("/predict", files=files)).json()
            worker.limits = Limits(worker_timeout=1.0)
            os.kill(worker.process.pid, signal.SIGSTOP)  # type: ignore[attr-defined]
            assert (await client.get("/health")).json()["workers_alive"] == 1, "nobody can know yet"
            response = await asyncio.wait_for(client.post("/predict", files=files), SECONDS)
            assert response.status_code == 503
            assert response.headers["retry-after"] == "5"
            assert "did not finish within 1 seconds" in response.json()["detail"] and response.json()["hint"]
            health = await client.get("/health")
            assert health.json()["restarts"] == 1 or health.json()["status"] == "down"
            worker.limits = Limits()  # the first batch of a new process may be slow on a busy machine
            after = await client.post("/predict", files=files)
            assert after.json() == before
            health = await client.get("/health")
            assert (health.status_code, health.json()) == (
                200,
                {"status": "ok", "workers": 1, "workers_alive": 1, "restarts": 1, "requests": 0, "queue": 512},
            )

    with caplog.at_level(logging.WARNING):
        asyncio.run(hang())
    assert "longer than 1 seconds" in caplog.text


def test_health_reports_a_thread_that_hangs(connect: Connect, predictor: Predictor) -> None:
    async def hang() -> None:
        slow, opened = copy(predictor), threading.Event()

        def predict_prepared(*arguments: Any, **options: Any) -> list[Prediction]:
            assert opened.wait(SECONDS)
            return predictor.predict_prepared(*arguments, **options)

        slow.predict_prepared = predict_prepared  # type: ignore[method-assign]
        async with connect(Limits(worker_timeout=0.2), slow) as client:
            request = send(client)
            await until(lambda: service_of(client).health()["status"] == "down")
            health = await client.get("/health")
            assert health.status_code == 503 and health.json()["workers_alive"] == 0
            opened.set()
            assert (await request).status_code == 200
            assert (await client.get("/health")).json()["status"] == "ok"

    asyncio.run(hang())


def test_few_large_images_are_decoded_at_the_same_time(connect: Connect) -> None:
    async def overlap() -> None:
        async with connect(Limits(max_pixels=96 * 48, batch_size=1)) as client:
            gate = gated(client)
            tasks = [send(client, seed) for seed in range(5)]
            waiting = service_of(client).batcher.queue
            await until(lambda: waiting.qsize() == LARGE_IMAGES - 1)  # the worker has the first
            await asyncio.sleep(0.1)
            assert waiting.qsize() == LARGE_IMAGES - 1
            gate.open.set()
            assert [(await task).status_code for task in tasks] == [200] * 5
            assert not service_of(client).large.locked()

    asyncio.run(overlap())
