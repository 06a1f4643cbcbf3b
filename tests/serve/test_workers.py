"""Processes that hold the model: they answer as this one does, and may die without the service."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import pickle
import signal
from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.serve.conftest import Connect, encoded, image
from wildcat.config import TrainConfig
from wildcat.data import open_dataset, write_shapes
from wildcat.engines import Engine
from wildcat.errors import ConfigError, ImageError, WildcatError
from wildcat.models.run import create_run
from wildcat.prediction import Prediction
from wildcat.predictor import Predictor, load
from wildcat.serve.limits import Limits, Refused
from wildcat.serve.service import how_many
from wildcat.serve.workers import Copies, Job, Outcome, answer_jobs, packed, unpacked
from wildcat.train.loop import train

LIMITS = Limits(max_pixels=10_000)


def name_and_scores(prediction: Prediction) -> tuple[str, dict[str, float]]:
    return prediction.path, dict(prediction.scores)


def process_of(_: Prediction) -> int:
    return os.getpid()


def die(_: Prediction) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail(_: Prediction) -> None:
    class Unpicklable(Exception):
        pass

    raise Unpicklable("a bug")


def job(seed: int, render: Any = name_and_scores, content: bytes | None = None) -> Job:
    return Job(encoded(image(seed)) if content is None else content, f"{seed}.png", render)


@pytest.fixture(scope="module")
def copies(predictor: Predictor) -> Iterator[Copies]:
    made = Copies(predictor, 2, LIMITS)
    yield made
    made.close()
    assert not any(each.process.is_alive() for each in made.copies)
    with pytest.raises(Refused, match="stopping"):
        made.answer([job(0)], 1)


def test_no_job_pays_for_another(predictor: Predictor) -> None:
    large = Image.new("RGB", (101, 100))
    jobs = [job(0), job(1, content=b"none"), job(2), job(3, fail), job(4, content=encoded(large)), job(5)]
    outcomes = answer_jobs(predictor, LIMITS, jobs)
    for seed in (0, 2, 5):
        said = predictor.predict(Image.open(io.BytesIO(encoded(image(seed)))))
        assert outcomes[seed].get() == (f"{seed}.png", said.scores)
    for i, status in ((1, 415), (4, 413)):
        with pytest.raises(Refused) as refusal:
            outcomes[i].get()
        assert refusal.value.status == status
    with pytest.raises(RuntimeError, match="Unpicklable: a bug"):
        outcomes[3].get()
    assert [type(each.error) for each in answer_jobs(predictor, LIMITS, jobs[1:2])] == [Refused], "none is left"


def test_a_pass_that_fails_is_tried_image_by_image(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = predictor.predict_prepared

    def small(images: Any, **options: Any) -> Any:
        if len(images) > 1:
            raise MemoryError
        return whole(images, **options)

    jobs = [job(seed) for seed in range(3)]
    expected = answer_jobs(predictor, LIMITS, jobs)
    monkeypatch.setattr(predictor, "predict_prepared", small)
    assert answer_jobs(predictor, LIMITS, jobs) == expected
    assert not any(each.error for each in expected)


def test_they_answer_as_this_process_does(copies: Copies, predictor: Predictor) -> None:
    jobs = [job(seed) for seed in range(5)] + [job(6, content=b"none")]
    here, there = answer_jobs(predictor, LIMITS, jobs), copies.answer(jobs, 1)
    assert [each.made for each in there] == [each.made for each in here]
    assert str(there[-1].error) == str(here[-1].error)
    assert copies.answer([job(0, process_of)], 1)[0].get() != os.getpid()


def test_one_that_dies_of_an_image_is_replaced(copies: Copies, caplog: pytest.LogCaptureFixture) -> None:
    before = {each.process.pid for each in copies.copies}
    with pytest.raises(Refused, match="ended") as refusal, caplog.at_level(logging.WARNING):
        copies.answer([job(0, die)], 1)
    assert refusal.value.status == 503 and refusal.value.hint
    assert "exit code -9" in caplog.text
    assert len({each.process.pid for each in copies.copies} & before) == 1
    pids = {copies.answer([job(0, process_of)], 1)[0].get() for _ in range(2)}
    assert pids == {each.process.pid for each in copies.copies}


def test_an_image_is_not_blamed_for_one_that_was_dead_before(copies: Copies) -> None:
    for each in copies.copies:
        each.process.kill()
        each.process.join()
    assert all(copies.answer([job(seed)], 1)[0].made for seed in range(2))


@pytest.mark.parametrize(
    "error", [Refused(422, "so", "thus", 5), ImageError("so", "thus"), ConfigError("so"), MemoryError("so")]
)
def test_errors_arrive_as_they_were(error: Exception) -> None:
    again = pickle.loads(pickle.dumps(Outcome(error=error))).error
    assert type(again) is type(error) and str(again) == str(error)
    for name in ("status", "message", "hint", "retry_after"):
        assert getattr(again, name, None) == getattr(error, name, None)


def test_a_run_arrives_with_its_engine(tmp_path: Path) -> None:
    data = open_dataset(write_shapes(tmp_path / "shapes", train=8, val=4, size=(48, 64)))
    config = TrainConfig(backbone="test_resnet", weights="none", image_size=64, epochs=1, batch_size=4, workers=0)
    run = create_run(tmp_path / "run", config, data)
    train(run, data)
    here = load(str(run.folder), device="cpu", precision="bf16")
    there = unpacked(packed(here))
    assert there.members[0].engine is not None and there.members[0].engine.precision == "bf16"
    assert there.predict(image()).scores == here.predict(image()).scores
    assert here.members[0].engine is not None, "it is left as it was"


def test_the_service_answers_by_them(connect: Connect) -> None:
    async def ask() -> None:
        def send(client: Any, seed: int, content: bytes | None = None) -> Any:
            return client.post("/predict?cells=3", files={"image": ("a.png", content or encoded(image(seed)))})

        async with connect() as here, connect(processes=1) as there:
            plain = [(await send(here, seed)).json() for seed in range(5)]
            together = await asyncio.gather(*[send(there, seed) for seed in range(5)])
            assert [answer.json() for answer in together] == plain
            bad = await send(there, 0, b"none")
            assert bad.status_code == 415 and bad.json() == (await send(here, 0, b"none")).json()
            for path in ("/map?kind=mask", "/annotations?format=voc"):
                files = {"image": ("a.png", encoded(image()))}
                answers = [await client.post(path, files=files) for client in (here, there)]
                assert answers[0].status_code == answers[1].status_code == 200
                assert answers[0].headers == answers[1].headers
            wrong = await there.post("/map?class=dog", files=files)
            assert wrong.status_code == 422 and "dog" in wrong.json()["detail"]

    asyncio.run(ask())


def test_how_many_there_are(predictor: Predictor) -> None:
    assert [how_many(-1, predictor, threads) for threads in (1, 2, 16)] == [0, 2, 4]
    assert [how_many(count, predictor, 2) for count in (0, 1, 7)] == [0, 1, 7]
    with pytest.raises(WildcatError, match="processes=-2"):
        how_many(-2, predictor, 2)


def test_engines_with_threads_of_their_own_take_none(predictor: Predictor) -> None:
    other = copy(predictor)
    engine = Engine("onnx", "fp32", predictor.model.features)
    other.members = tuple(replace(member, engine=engine) for member in predictor.members)
    assert how_many(-1, other, 16) == 0
    with pytest.raises(ConfigError, match="processes=2"):
        how_many(2, other, 16)
