"""Workers in threads and processes give the same results; a process that crashes or hangs is restarted."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import pickle
import signal
import time
from collections.abc import Iterator
from contextlib import nullcontext
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.serve.conftest import SECONDS, Connect, encoded, image
from wildcat.config import Limits
from wildcat.device import cpu_has_bf16
from wildcat.engines import Engine
from wildcat.errors import ConfigError, ImageError, WildcatError
from wildcat.prediction import Prediction
from wildcat.predictor import Predictor, load
from wildcat.serve.service import count_processes
from wildcat.serve.uploads import RequestError
from wildcat.serve.workers import Job, Worker, WorkerError, WorkerProcess, predict_batch, start_processes

LIMITS = Limits(max_pixels=10_000)


def name_and_scores(prediction: Prediction) -> tuple[str, dict[str, float]]:
    return prediction.path, dict(prediction.scores)


def process_id(_: Prediction) -> int:
    return os.getpid()


def die(_: Prediction) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang(_: Prediction) -> None:
    time.sleep(1000)


def exit_at_once() -> None:
    os._exit(3)


def fail(_: Prediction) -> None:
    class Unpicklable(Exception):
        pass

    raise Unpicklable("a bug")


def job(seed: int, render: Any = name_and_scores, content: bytes | None = None) -> Job:
    return Job(encoded(image(seed)) if content is None else content, f"{seed}.png", render)


def run(predictor: Predictor, jobs: list[Job]) -> list[Any]:
    return predict_batch(predictor, LIMITS, jobs, nullcontext())


@pytest.fixture(scope="module")
def worker(predictor: Predictor) -> Iterator[WorkerProcess]:
    (worker,) = start_processes(predictor, LIMITS, None, 1)
    assert isinstance(worker, WorkerProcess) and worker.alive
    yield worker
    worker.close()
    assert not worker.process.is_alive()
    with pytest.raises(RequestError, match="stopping"):
        worker.run([job(0)])


def test_a_bad_image_or_rendering_fails_its_job_only(predictor: Predictor) -> None:
    large = Image.new("RGB", (101, 100))
    jobs = [job(0), job(1, content=b"none"), job(2), job(3, fail), job(4, content=encoded(large)), job(5)]
    results = run(predictor, jobs)
    for seed in (0, 2, 5):
        prediction = predictor.predict(Image.open(io.BytesIO(encoded(image(seed)))))
        assert results[seed] == (f"{seed}.png", prediction.scores)
    assert [results[i].status for i in (1, 4)] == [415, 413]
    assert isinstance(results[3], RuntimeError) and "Unpicklable: a bug" in str(results[3])
    assert [type(each) for each in run(predictor, jobs[1:2])] == [RequestError], "a batch without images"


def test_a_process_gives_the_results_of_a_thread(worker: WorkerProcess, predictor: Predictor) -> None:
    jobs = [job(seed) for seed in range(5)] + [job(6, content=b"none")]
    in_thread = Worker(predictor, LIMITS, nullcontext()).run(jobs)
    in_process = worker.run(jobs)
    assert in_process[:5] == in_thread[:5]
    assert str(in_process[5]) == str(in_thread[5])
    assert worker.run([job(0, process_id)]) == [worker.process.pid] != [os.getpid()]


def test_a_forward_pass_that_fails_raises(predictor: Predictor) -> None:
    broken = copy(predictor)

    def no_memory(*_: Any, **__: Any) -> Any:
        raise MemoryError("none")

    broken.predict_prepared = no_memory  # type: ignore[method-assign]
    with pytest.raises(MemoryError):
        run(broken, [job(0)])


def test_a_process_that_crashes_is_restarted(worker: WorkerProcess, caplog: pytest.LogCaptureFixture) -> None:
    pid, restarts = worker.process.pid, worker.restarts
    with pytest.raises(RequestError, match="crashed") as refused, caplog.at_level(logging.WARNING):
        worker.run([job(0, die)])
    assert refused.value.status == 503 and refused.value.hint
    assert "exit code -9" in caplog.text
    assert not worker.alive
    assert worker.run([job(0, process_id)]) != [pid]
    assert worker.alive and worker.restarts == restarts + 1


def test_a_process_that_hangs_is_killed(worker: WorkerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    process = worker.process
    with monkeypatch.context() as patch:
        patch.setattr(worker, "limits", replace(LIMITS, worker_timeout=0.5))
        results = worker.run([job(0), job(1, hang)])
    assert [(each.status, each.retry_after) for each in results] == [(503, 5)] * 2
    assert all("0.5 seconds" in each.message for each in results)
    assert not process.is_alive()
    assert worker.run([job(2)])[0][0] == "2.png"


def test_a_process_that_died_while_idle_fails_no_request(worker: WorkerProcess) -> None:
    worker.process.kill()
    worker.process.join()
    assert worker.run([job(0)])[0][0] == "0.png"


def test_an_idle_service_restarts_a_dead_process(connect: Connect) -> None:
    async def kill() -> None:
        async with connect(processes=1) as client:
            (worker,) = client.app.state.service.workers  # type: ignore[attr-defined]
            worker.process.kill()
            worker.process.join()
            health = await client.get("/health")
            assert health.status_code == 503 and health.json()["status"] == "down"
            async with asyncio.timeout(SECONDS):
                while (await client.get("/health")).json()["status"] != "ok":
                    await asyncio.sleep(0.05)
            assert (await client.get("/health")).json()["restarts"] == 1

    asyncio.run(kill())


def test_a_process_that_cannot_start_is_one_sentence(predictor: Predictor) -> None:
    with pytest.raises(WorkerError, match=r"cannot start \(exit code 3\)") as error:
        start_processes(predictor, LIMITS, exit_at_once, 2)
    assert "__main__" in error.value.hint


@pytest.mark.parametrize(
    "error", [RequestError(422, "so", "thus", 5), ImageError("so", "thus"), ConfigError("so"), MemoryError("so")]
)
def test_errors_can_be_pickled(error: Exception) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error) and str(again) == str(error)
    for name in ("status", "message", "hint", "retry_after"):
        assert getattr(again, name, None) == getattr(error, name, None)


@pytest.mark.skipif(not cpu_has_bf16(), reason="no bf16 instructions")
def test_a_predictor_is_pickled_with_the_precision_of_its_engine(tiny: Path) -> None:
    here = load(tiny, device="cpu", precision="bf16")
    there = pickle.loads(pickle.dumps(here))
    assert there.members[0].engine is not None and there.members[0].engine.precision == "bf16"
    assert there.predict(image()).scores == here.predict(image()).scores
    assert here.members[0].engine is not None, "unchanged"


def test_a_service_with_processes_gives_the_responses_of_one_without(connect: Connect) -> None:
    async def compare() -> None:
        def send(client: Any, seed: int, content: bytes | None = None) -> Any:
            return client.post("/predict?cells=3", files={"image": ("a.png", content or encoded(image(seed)))})

        async with connect() as here, connect(processes=1) as there:
            plain = [(await send(here, seed)).json() for seed in range(5)]
            together = await asyncio.gather(*[send(there, seed) for seed in range(5)])
            assert [response.json() for response in together] == plain
            bad = await send(there, 0, b"none")
            assert bad.status_code == 415 and bad.json() == (await send(here, 0, b"none")).json()
            for path in ("/map?kind=mask", "/annotations?format=voc"):
                files = {"image": ("a.png", encoded(image()))}
                responses = [await client.post(path, files=files) for client in (here, there)]
                assert responses[0].status_code == responses[1].status_code == 200
                assert responses[0].headers == responses[1].headers
            wrong = await there.post("/map?class=dog", files=files)
            assert wrong.status_code == 422 and "dog" in wrong.json()["detail"]

    asyncio.run(compare())


def test_the_number_of_processes(predictor: Predictor) -> None:
    assert [count_processes(-1, predictor, threads) for threads in (1, 2, 16)] == [0, 2, 4]
    assert [count_processes(count, predictor, 2) for count in (0, 1, 7)] == [0, 1, 7]
    with pytest.raises(WildcatError, match="--processes -2"):
        count_processes(-2, predictor, 2)


def test_processes_need_the_torch_engine(predictor: Predictor) -> None:
    other = copy(predictor)
    engine = Engine("onnx", "fp32", predictor.model.features)
    other.members = tuple(replace(member, engine=engine) for member in predictor.members)
    assert count_processes(-1, other, 16) == 0
    with pytest.raises(ConfigError, match="--processes 2"):
        count_processes(2, other, 16)
