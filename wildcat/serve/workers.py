"""The model in processes of their own: passes at the same time do not wait for Python's lock, and one may die."""

from __future__ import annotations

import atexit
import contextlib
import logging
import multiprocessing
import pickle
import queue
import signal
import traceback
import warnings
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any, cast

import torch

from wildcat.errors import WildcatError
from wildcat.prediction import Prediction
from wildcat.predictor import LoadedImage, Predictor
from wildcat.serve.images import decode, open_bytes
from wildcat.serve.limits import Limits, Refused

log = logging.getLogger(__name__)

STOP_SECONDS = 5.0
"""How long a process may take to end by itself."""


@dataclass(frozen=True)
class Job:
    """An image as a client sent it, and what is to be made of its prediction; all of it can be pickled."""

    content: bytes
    name: str
    render: Callable[[Prediction], Any]


@dataclass(frozen=True)
class Outcome:
    """What came of a step: what it made, or the error that ended it."""

    made: Any = None
    error: Exception | None = None

    def get(self) -> Any:
        """What was made; raises the error if there is one."""
        if self.error is not None:
            raise self.error
        return self.made


class Copies:
    """Processes that hold a predictor each and answer jobs; one that dies is started again.

    Args:
        predictor: can be pickled; on a CPU.
        count: how many processes.
        limits: on pixels, and on the images of a pass.
        begin: what each process does first, such as setting its allocator.
    """

    def __init__(
        self, predictor: Predictor, count: int, limits: Limits, begin: Callable[[], object] | None = None
    ) -> None:
        self.copies = [Copy(predictor, limits, begin) for _ in range(count)]
        self.idle: queue.SimpleQueue[Copy] = queue.SimpleQueue()
        for each in self.copies:
            self.idle.put(each)
        atexit.register(self.close)  # before multiprocessing waits for processes that wait for us

    def answer(self, jobs: Sequence[Job], threads: int) -> list[Outcome]:
        """What one process makes of the jobs with so many threads of torch; waits for an idle one.

        Raises:
            Refused: 503, it died of them.
        """
        idle = self.idle.get()
        try:
            return idle.answer(jobs, threads)
        finally:
            self.idle.put(idle)

    def close(self) -> None:
        """Let them end; those that do not are killed."""
        atexit.unregister(self.close)
        for each in self.copies:
            each.close()
        for each in self.copies:
            each.process.join(STOP_SECONDS)
            each.process.kill()


class Copy:
    """One process with a predictor; see `Copies`."""

    def __init__(self, predictor: Predictor, limits: Limits, begin: Callable[[], object] | None) -> None:
        self.predictor, self.limits, self.begin = predictor, limits, begin
        self.closed = False
        self._start()

    def answer(self, jobs: Sequence[Job], threads: int) -> list[Outcome]:
        try:
            self.connection.send((jobs, threads))
        except OSError:  # it has died since its last answer: these images are not to blame
            self._replace()
            self.connection.send((jobs, threads))
        try:
            outcomes: list[Outcome] = self.connection.recv()
        except Exception as error:
            self._replace()
            raise Refused(
                503,
                "the process that looked at this image ended; another one takes its place.",
                "Try again; if that ends as well, leave the image out.",
                retry_after=5,
            ) from error
        return outcomes

    def close(self) -> None:
        """Let it end once it has answered."""
        self.closed = True
        self.connection.close()

    def _replace(self) -> None:
        if self.closed:
            raise Refused(503, "this service is stopping.")
        self.connection.close()
        self.process.kill()
        self.process.join()
        log.warning("a process that held the model ended (exit code %s); another one starts", self.process.exitcode)
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # not forked: a child would inherit the locks of our threads
        self.connection, theirs = context.Pipe()
        arguments = theirs, packed(self.predictor), self.limits, self.begin
        self.process = context.Process(target=serve_jobs, args=arguments, name="wildcat-copy", daemon=True)
        self.process.start()
        theirs.close()
        if self.closed:  # meanwhile
            self.process.kill()


def packed(predictor: Predictor) -> bytes:
    """A predictor on its way to another process, by value: shared memory, multiprocessing's way, may be small.

    Of its engine, torch, only the precision goes along: what it has made of the network is made again.
    """
    engines = [member.engine for member in predictor.members]
    plain = copy(predictor)
    plain.members = tuple(replace(member, engine=None) for member in predictor.members)
    return pickle.dumps((plain, engines[0] and engines[0].precision))


def unpacked(content: bytes) -> Predictor:
    """What `packed` has packed."""
    predictor, precision = pickle.loads(content)  # noqa: S301  # of the process that started this one
    if precision is not None:
        predictor.use_engine("torch", precision)
    return cast(Predictor, predictor)


def serve_jobs(connection: Connection, model: bytes, limits: Limits, begin: Callable[[], object] | None) -> None:
    """Answer jobs until the other end of the connection closes; signals are the service's to heed."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    warnings.filterwarnings("ignore", module="PIL")  # of strangers' images
    if begin is not None:
        begin()
    predictor = unpacked(model)
    del model
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            jobs, threads = connection.recv()
            torch.set_num_threads(threads)
            connection.send(answer_jobs(predictor, limits, jobs))
            del jobs


def answer_jobs(predictor: Predictor, limits: Limits, jobs: Sequence[Job]) -> list[Outcome]:
    """The outcomes of jobs, in their order: their images share a pass, and none pays for another."""

    def read(job: Job) -> LoadedImage:
        return predictor.prepare(decode(open_bytes(job.content, limits.max_pixels), limits.max_pixels))

    def predict(images: list[LoadedImage]) -> list[Prediction]:
        return predictor.predict_prepared(images, batch_size=limits.batch_size) if images else []

    def predict_one(image: LoadedImage) -> Prediction:
        return predict([image])[0]

    images = [attempt(read, job) for job in jobs]
    good = [image.made for image in images if image.error is None]
    together = attempt(predict, good)
    each = (attempt(predict_one, one) for one in good) if together.error else map(Outcome, together.made)
    seen = [image if image.error else next(each) for image in images]
    return [
        one if one.error else attempt(job.render, replace(one.made, path=job.name))
        for job, one in zip(jobs, seen, strict=True)
    ]


def attempt(step: Callable[[Any], Any], given: Any) -> Outcome:
    """What `step` makes of `given`; an error nobody foresaw becomes one that can be pickled, and says where it was."""
    try:
        return Outcome(step(given))
    except (Refused, WildcatError, MemoryError) as error:
        return Outcome(error=error)
    except Exception:
        return Outcome(error=RuntimeError(traceback.format_exc()))
