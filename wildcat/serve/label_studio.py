"""Label Studio's ML backend API: predictions for the control tags of a project."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from starlette.requests import Request

from wildcat.data.images import shown
from wildcat.errors import WildcatError
from wildcat.export.label_studio import Control, annotate, read_controls, task_score, unmatched_labels
from wildcat.serve.middleware import split_url
from wildcat.serve.service import Service, until_disconnect
from wildcat.serve.task_images import LabelStudio
from wildcat.serve.uploads import UNEXPECTED, RequestError, upload_name

log = logging.getLogger(__name__)

MOST_IMAGES = 8  # that are fetched or predicted at the same time, to bound the memory
GRACE_SECONDS = 1.0  # after the timeout of a fetch, before its thread is left alone
API_HINT = "Send what Label Studio sends to an ML backend."


class Backend:
    """Answers the requests of Label Studio's ML backend API; errors are logged, as Label Studio shows only a status.

    Args:
        model: name of the model, which predictions carry as their version.
    """

    def __init__(self, server: LabelStudio, service: Service, classes: Sequence[str], model: str) -> None:
        self.server, self.service, self.classes, self.model = server, service, classes, model
        self.images = asyncio.Semaphore(min(MOST_IMAGES, service.limits.queue))
        self.warned: set[str] = set()

    async def setup(self, request: Request) -> dict[str, Any]:
        """Check the labelling interface of a project when Label Studio connects, and before predictions.

        Raises:
            RequestError: none of its labels is a class of the model (422).
        """
        with logged():
            body = await self._body(request)
            controls = self._controls(body.get("schema"))
        unmatched = ", ".join(shown(label[:100]) for label in unmatched_labels(controls)[:20])
        if unmatched and unmatched not in self.warned:
            self.warned.add(unmatched)
            log.warning("Label Studio: the model has no class for %s; it predicts the other labels.", unmatched)
        return {"model_version": self.model}

    async def predict(self, request: Request) -> dict[str, Any]:
        """Predict the images of tasks.

        A task that fails has no prediction, and Label Studio asks for it again; if all fail, the first error is raised.
        """
        with logged():
            body = await self._body(request)
            controls, tasks = self._controls(body.get("label_config")), body.get("tasks")
            if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
                raise RequestError(422, "`tasks` is no list of tasks.", API_HINT)
            params = body.get("params")
            if isinstance(params, dict) and params.get("context"):
                raise RequestError(
                    422,
                    "wildcat does not predict from what an annotator draws.",
                    "Switch off interactive preannotations in the settings of the model in Label Studio.",
                )
            results = await until_disconnect(request, self._predict_tasks(tasks, controls))
            errors = [result for result in results if isinstance(result, WildcatError)]
            for error in errors[1:] if len(errors) == len(results) else errors:
                log.warning("Label Studio: %s", error.one_line)
            if errors and len(errors) == len(results):
                raise errors[0]
        return {
            "results": [[] if isinstance(result, WildcatError) else result for result in results],
            "model_version": self.model,
        }

    async def webhook(self, request: Request) -> dict[str, Any]:
        """Accept events of a project, and refuse to train.

        Raises:
            RequestError: 501, the button Start Training.
        """
        with logged():
            if (await self._body(request)).get("action") == "START_TRAINING":
                raise RequestError(
                    501,
                    "wildcat does not train from Label Studio's button.",
                    "Export the annotations, train with `wildcat train`, and serve the new model.",
                )
        return {}

    def _controls(self, config: object) -> tuple[Control, ...]:
        if not isinstance(config, str):
            raise RequestError(422, "the labelling interface is missing.", API_HINT)
        return read_controls(config, self.classes)

    async def _body(self, request: Request) -> dict[str, Any]:
        """The JSON object of a request.

        Raises:
            RequestError: 400 something else, 408 a timeout.
        """
        seconds = self.service.limits.timeout
        try:
            async with asyncio.timeout(seconds):
                body = await request.json()
        except TimeoutError as error:
            raise RequestError(408, f"the request did not arrive within {seconds:g} seconds.") from error
        except (ValueError, RecursionError) as error:
            raise RequestError(400, "the request is not valid JSON.") from error
        if not isinstance(body, dict):
            raise RequestError(400, "the request is no JSON object.")
        return body

    async def _predict_tasks(
        self, tasks: Sequence[dict[str, Any]], controls: Sequence[Control]
    ) -> list[dict[str, Any] | WildcatError]:
        async def attempt(task: dict[str, Any]) -> dict[str, Any] | WildcatError:
            number = task.get("id")
            try:
                return await self._predict_task(number if isinstance(number, int) else 0, task.get("data"), controls)
            except WildcatError as error:
                status = error.status if isinstance(error, RequestError) else 422
                return RequestError(status, f"task {shown(number)}: {error.message}", error.hint)
            except Exception:  # the group would cancel the other tasks
                log.exception("Label Studio: task %s", shown(number))
                return RequestError(500, f"task {shown(number)}: {UNEXPECTED}")

        async with asyncio.TaskGroup() as group:
            running = [group.create_task(attempt(task)) for task in tasks]
        return [task.result() for task in running]

    async def _predict_task(self, number: int, data: object, controls: Sequence[Control]) -> dict[str, Any]:
        results: list[dict[str, Any]] = []
        for key in dict.fromkeys(control.key for control in controls):
            address = data.get(key) if isinstance(data, dict) else None
            if not isinstance(address, str) or not address:
                raise RequestError(
                    422, f"it has no image {shown(key)!r}.", "Check the labelling interface: <Image value>."
                )
            async with self.images:
                content = await self._fetch(address, number)
                render = partial(annotate, controls=[control for control in controls if control.key == key])
                results += await self.service.predict_file(content, upload_name(split_url(address).path), render)
        return {"result": results, "score": task_score(results), "model_version": self.model}

    async def _fetch(self, address: str, task: int) -> bytes:
        future: Future[bytes] = Future()

        def fetch() -> None:
            future.set_running_or_notify_cancel()
            try:
                future.set_result(self.server.fetch(address, task))
            except Exception as error:
                future.set_exception(error)

        # Not in an executor, whose end would wait for a server that sends a byte at a time.
        threading.Thread(target=fetch, daemon=True).start()
        try:
            async with asyncio.timeout(self.server.limits.timeout + GRACE_SECONDS):
                return await asyncio.wrap_future(future)
        except TimeoutError as error:
            raise self.server.timed_out() from error


@contextlib.contextmanager
def logged() -> Iterator[None]:
    """Log an error of a request."""
    try:
        yield
    except WildcatError as error:
        log.warning("Label Studio: %s", error.one_line)
        raise
