"""One request from its bytes to its answer: read, decoded, through the network, drawn; none of it on the event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar, cast

from PIL import Image
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from wildcat.engines.threads import Shares, engine_threads
from wildcat.errors import ConfigError, WildcatError, out_of_memory
from wildcat.prediction import Prediction
from wildcat.predictor import LoadedImage, Predictor
from wildcat.serve.batcher import Batcher, Budget, Line
from wildcat.serve.images import decode, open_bytes
from wildcat.serve.limits import Limits, Refused
from wildcat.serve.responses import sent_name
from wildcat.serve.workers import Copies, Job, Outcome

log = logging.getLogger(__name__)

Result = TypeVar("Result")

FIELD = "image"

LATER = "Try again later, or send a smaller one.", 5
"""Hint, and seconds, where the machine has no room."""

THREADS = 2
"""That decode and draw."""


PASSES = 4
"""Passes through the network at the same time, at most: each takes memory for a batch."""


SMALL = 2
"""Images of a pass that shares the cores: more do not make it faster (benchmarks/serve_load.py), they only wait."""


class Service:
    """Answers images with what `render` makes of their predictions, within `limits`."""

    def __init__(
        self, predictor: Predictor, limits: Limits, processes: int = 0, begin: Callable[[], object] | None = None
    ) -> None:
        self.predictor, self.limits = predictor, limits
        self.shares = Shares(engine_threads())
        count = how_many(processes, predictor, self.shares.total)
        passes = count or min(passes_at_once(predictor, self.shares.total), limits.batch_size)
        together = limits.batch_size if passes == 1 else min(SMALL, limits.batch_size)
        self.copies = Copies(predictor, count, limits, begin) if count else None
        answer = partial(self._ask, self.copies) if self.copies else self._predict
        self.batcher: Batcher[Any, Any] = Batcher(answer, together, passes)
        self.pool = ThreadPoolExecutor(THREADS, thread_name_prefix="wildcat-image")
        self.line, self.budget = Line(limits.queue), Budget(limits.pixels_at_once)

    async def answer(self, request: Request, render: Callable[[Prediction], Result]) -> Result:
        """What `render`, run in a thread, makes of the prediction for the image in the form of `request`.

        A request keeps its place in the line until the last thread that works for it is done, also where its client
        has been told that it took too long: the place says what the machine does, not who waits.

        Raises:
            Refused: the line is full (503), the image is not to be read (4xx), or time is up (408, 503).
        """
        self.line.enter()
        try:
            content, name = await self._receive(request)
        except BaseException:
            self.line.leave()
            raise
        task = asyncio.create_task(self._work(content, name, render))
        task.add_done_callback(self._leave)
        del content
        try:
            done, _ = await asyncio.wait({task}, timeout=self.limits.seconds)
        except asyncio.CancelledError as error:  # the server stops, and gives begun answers no more time
            task.cancel()
            raise Refused(503, "this service is stopping.") from error
        if not done:
            task.cancel()
            raise Refused(503, f"no answer after {self.limits.seconds:g} seconds.", "Try again later.", retry_after=5)
        try:
            return task.result()
        except (Refused, WildcatError):
            raise
        except Exception as error:
            if out_of_memory(error):
                raise Refused(503, "there is not enough memory for this image.", *LATER) from error
            log.exception("an image could not be answered")
            raise Refused(500, "something failed here; the log of the service says what.") from error

    def close(self) -> None:
        """Finish what was begun."""
        self.batcher.close()
        if self.copies is not None:
            self.copies.close()
        self.pool.shutdown(wait=False, cancel_futures=True)

    def _leave(self, task: asyncio.Task[Result]) -> None:
        self.line.leave()
        if not task.cancelled():
            task.exception()  # it is raised where the answer is waited for, if anybody still does

    async def _receive(self, request: Request) -> tuple[bytes, str]:
        try:
            async with asyncio.timeout(self.limits.seconds):
                return await read_form(request)
        except TimeoutError as error:
            raise Refused(408, f"the image did not arrive in {self.limits.seconds:g} seconds.") from error

    async def _work(self, content: bytes, name: str, render: Callable[[Prediction], Result]) -> Result:
        most = self.limits.max_pixels
        opened = await finished(self.pool.submit(open_bytes, content, most))
        async with self.budget.take(opened.width * opened.height):
            if self.copies is not None:
                outcome: Outcome = await finished(self.batcher.submit(Job(content, name, render)))
                return cast(Result, outcome.get())
            waiting = self.batcher.submit(await finished(self.pool.submit(self._prepare, opened)))
            del content, opened  # the prediction holds the image from here on
            prediction = await finished(waiting)
            return await finished(self.pool.submit(self._render, render, replace(prediction, path=name)))

    def _ask(self, copies: Copies, jobs: Sequence[Job]) -> Sequence[Outcome]:
        with self.shares.take() as threads:
            return copies.answer(jobs, threads)

    def _prepare(self, opened: Image.Image) -> LoadedImage:
        with self.shares.take():
            return self.predictor.prepare(decode(opened, self.limits.max_pixels))

    def _predict(self, images: Sequence[LoadedImage]) -> Sequence[Prediction]:
        with self.shares.take():
            return self.predictor.predict_prepared(images, batch_size=self.limits.batch_size)

    def _render(self, render: Callable[[Prediction], Result], prediction: Prediction) -> Result:
        with self.shares.take():
            return render(prediction)


def passes_at_once(predictor: Predictor, threads: int) -> int:
    """How many batches go through the network at the same time: on a CPU several, each with a share of the cores."""
    return min(PASSES, threads) if shares_cores(predictor) else 1


def shares_cores(predictor: Predictor) -> bool:
    """Whether passes can be given cores: a GPU takes one after the other, and other engines than torch have threads."""
    return predictor.device.type == "cpu" and all(
        m.engine is None or m.engine.name == "torch" for m in predictor.members
    )


def how_many(processes: int, predictor: Predictor, threads: int) -> int:
    """Processes of their own for a predictor; see `create_app`.

    Raises:
        ConfigError: fewer than -1, or any where passes have cores or a GPU for themselves.
    """
    if processes < -1:
        raise ConfigError(f"processes={processes}: give a number, 0 for none, or -1 for as many as help.")
    if processes > 0 and not shares_cores(predictor):
        raise ConfigError(
            f"processes={processes}: this model runs on a GPU or an engine that has threads of its own.",
            "Leave --processes out, or serve it with --device cpu --engine torch.",
        )
    if processes >= 0:
        return processes
    passes = passes_at_once(predictor, threads)
    return passes if passes > 1 else 0  # one that had all cores would gain nothing


async def finished(future: Future[Result]) -> Result:
    """The result of a thread's work. Cancelled, work that has not begun is dropped, and other work waited for."""
    try:
        return await asyncio.shield(asyncio.wrap_future(future))
    except asyncio.CancelledError:
        if not future.cancel():
            await asyncio.wait({asyncio.wrap_future(future)})
        raise


async def read_form(request: Request) -> tuple[bytes, str]:
    """The bytes and the name of the one file called "image" of a multipart form.

    Raises:
        Refused: there is none, or the form cannot be read.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise Refused(
            415, f"the request is {kind[:100] or 'of no kind'}, not multipart/form-data.", f"curl -F {FIELD}=@dog.jpg"
        )
    try:
        async with request.form(max_files=1, max_fields=8) as form:
            sent = form.getlist(FIELD)
            if not sent:
                others = ", ".join(repr(name[:40]) for name in form) or "nothing"
                raise Refused(422, f"the form has no file {FIELD!r}; it has {others}.", f"curl -F {FIELD}=@dog.jpg")
            if len(sent) > 1 or not isinstance(sent[0], UploadFile):
                raise Refused(
                    422,
                    f"{FIELD!r} is not one file.",
                    "Send the image's bytes; paths and addresses are never opened.",
                )
            return await sent[0].read(), sent_name(sent[0].filename)
    except (Refused, TimeoutError):
        raise
    except (MemoryError, OSError) as error:  # large uploads go through a file
        raise Refused(503, "there is no memory or disk left to take the image in.", *LATER) from error
    except ClientDisconnect as error:
        raise Refused(400, "the request was broken off.") from error
    except HTTPException as error:
        raise Refused(400, f"the form cannot be read: {error.detail}", f"curl -F {FIELD}=@dog.jpg") from error
    except Exception as error:  # the parser of forms raises kinds of its own for what is no form
        raise Refused(400, "the form cannot be read.", f"curl -F {FIELD}=@dog.jpg") from error
