"""The service's routes: a page, predictions, single maps, annotations, the model and its health."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import torch
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from wildcat._version import __version__
from wildcat.errors import RunError, WildcatError
from wildcat.export import ANNOTATION_FORMATS
from wildcat.predictor import Predictor
from wildcat.serve.limits import Limits, Refused
from wildcat.serve.middleware import Guard, refusal
from wildcat.serve.responses import annotation_zip, drawing, prediction_json
from wildcat.serve.schemas import (
    EXAMPLE,
    REFUSALS,
    UPLOAD,
    AnnotationQuery,
    HealthAnswer,
    MapQuery,
    ModelAnswer,
    PredictionAnswer,
    PredictQuery,
)
from wildcat.serve.service import LATER, Service
from wildcat.viz.colors import MARK_COLORS, colormap_table

ASSETS = {
    "page.css": ("wildcat.serve", "static/page.css", "text/css; charset=utf-8"),
    "page.js": ("wildcat.serve", "static/page.js", "text/javascript; charset=utf-8"),
    "maps.js": ("wildcat.viz", "static/maps.js", "text/javascript; charset=utf-8"),
    "look.css": ("wildcat.report", "report.css", "text/css; charset=utf-8"),
}
"""Name -> package, file and media type; the page has the look of a report."""

COLORMAPS = ("inferno", "viridis", "cividis")


def create_app(
    predictor: Predictor,
    limits: Limits | None = None,
    hosts: Collection[str] | None = None,
    processes: int = 0,
    begin: Callable[[], object] | None = None,
) -> FastAPI:
    """The service for a model, an ASGI application; `app.state.service` does the work.

    Args:
        limits: on size, pixels, queue and time.
        hosts: names it may be addressed by, such as `LOOPBACK` of the guard; None: any.
        processes: that hold the model and answer, besides this one; 0: none, -1: as many as help. They are started
            anew, so a script that asks for them needs its `if __name__ == "__main__":`.
        begin: what each of them calls first.

    Raises:
        ConfigError: processes for a model that does not gain by them.
    """
    limits = limits or Limits()
    service = Service(predictor, limits, processes, begin)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(
        title="wildcat",
        version=__version__,
        summary="Classes, points, boxes and heatmaps from one model trained on image-level tags.",
        lifespan=lifespan,
        docs_url=None,  # they load scripts from other servers
        redoc_url=None,
    )
    app.state.service = service
    app.add_middleware(Guard, max_bytes=limits.max_bytes, hosts=hosts)
    _answer_errors(app)
    _add_predictions(app, predictor, service)
    _add_facts(app, predictor, service)
    _add_page(app)
    return app


def _add_predictions(app: FastAPI, predictor: Predictor, service: Service) -> None:
    upload = {"requestBody": UPLOAD}
    example = {"application/json": {"example": EXAMPLE}}

    @app.post(
        "/predict",
        responses={**REFUSALS, 200: {"model": PredictionAnswer, "content": example, "description": "The prediction."}},
        openapi_extra=upload,
    )
    async def predict(request: Request, query: Annotated[PredictQuery, Query()]) -> Response:
        """What the model says of an image: a row of predictions.jsonl, with maps and masks where asked for."""
        content = await service.answer(request, partial(prediction_json, query=query, limits=service.limits))
        return Response(content, media_type="application/json")

    @app.post(
        "/map",
        responses={**REFUSALS, 200: {"content": {"image/png": {}}, "description": "The drawing."}},
        response_class=Response,
        openapi_extra=upload,
    )
    async def draw(request: Request, query: Annotated[MapQuery, Query()]) -> Response:
        """One drawing of an image: an overlay, a heatmap, the maps behind a class, or a mask."""
        return Response(await service.answer(request, partial(drawing, query=query)), media_type="image/png")

    @app.post(
        "/annotations",
        responses={**REFUSALS, 200: {"content": {"application/zip": {}}, "description": "The data set."}},
        response_class=Response,
        openapi_extra=upload,
    )
    async def annotations(request: Request, query: Annotated[AnnotationQuery, Query()]) -> Response:
        """The image as a data set of one, with its regions as annotations to correct or to train on."""
        make = partial(annotation_zip, query=query, model=Path(predictor.name).name)
        content, name = await service.answer(request, make)
        return Response(
            content, media_type="application/zip", headers={"Content-Disposition": f'attachment; filename="{name}"'}
        )


def _add_facts(app: FastAPI, predictor: Predictor, service: Service) -> None:
    facts = model_facts(predictor, service.limits)

    @app.get("/model", response_model=ModelAnswer)
    async def model() -> Response:
        """The model that is served: its name, classes and networks, and the limits of this service."""
        return JSONResponse(facts)

    @app.get("/health", response_model=HealthAnswer, responses={503: {"model": HealthAnswer}})
    async def health() -> Response:
        """Whether the service can answer; at once, whatever it is doing."""
        alive = service.batcher.alive
        content = {"status": "ok" if alive else "down", "requests": service.line.taken, "places": service.line.places}
        return JSONResponse(content, 200 if alive else 503)


def model_facts(predictor: Predictor, limits: Limits) -> dict[str, Any]:
    """See `ModelAnswer`; of the model's folder only the name is told."""
    return {
        "name": Path(predictor.name).name,
        "task": predictor.task,
        "classes": list(predictor.classes),
        "members": [
            {"backbone": m.model.backbone.name, "num_maps": m.model.num_maps, "input_size": m.preprocess.size}
            for m in predictor.members
        ],
        "flip": predictor.flip,
        "device": str(predictor.device),
        "versions": {"wildcat": __version__, "torch": str(torch.__version__)},
        "limits": {
            "max_mb": limits.max_mb,
            "max_pixels": limits.max_pixels,
            "queue": limits.queue,
            "seconds": limits.seconds,
        },
        "annotation_formats": list(ANNOTATION_FORMATS),
    }


def _add_page(app: FastAPI) -> None:
    page = files("wildcat.serve").joinpath("static/index.html").read_text(encoding="utf-8")
    assets = {name: (files(room).joinpath(path).read_bytes(), kind) for name, (room, path, kind) in ASSETS.items()}
    assets["colors.json"] = (json.dumps(display_colors()).encode(), "application/json")

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return Response(page, media_type="text/html; charset=utf-8", headers={"Cache-Control": "no-cache"})

    @app.get("/static/{name}", include_in_schema=False)
    async def static(name: str) -> Response:
        if name not in assets:
            raise Refused(404, "there is no such file.")
        content, kind = assets[name]
        return Response(content, media_type=kind, headers={"Cache-Control": "no-cache"})


def display_colors() -> dict[str, Any]:
    """What the page colours with: base64 of 256 RGB triples of each colour map, and the colours of marks."""
    maps = {name: base64.b64encode(colormap_table(name).tobytes()).decode() for name in COLORMAPS}
    return {"colormaps": maps, "marks": [list(color) for color in MARK_COLORS]}


def _answer_errors(app: FastAPI) -> None:
    """Every error is answered with a sentence: `detail` and `hint`."""

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> Response:
        return refusal(error)

    @app.exception_handler(WildcatError)
    async def mendable(_: Request, error: WildcatError) -> Response:
        if isinstance(error, RunError):  # a file of this machine could not be written
            return refusal(Refused(503, "there is no disk left to make the answer.", *LATER))
        return refusal(Refused(422, error.message, error.hint))

    @app.exception_handler(HTTPException)
    async def unroutable(request: Request, error: HTTPException) -> Response:
        said = {404: f"there is nothing at {request.url.path[:200]}.", 405: f"{request.method} is not answered here."}
        answer = refusal(Refused(error.status_code, said.get(error.status_code, str(error.detail))))
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(RequestValidationError)
    async def unfitting(_: Request, error: RequestValidationError) -> Response:
        faults = [
            f"{fault['loc'][1]}={str(fault.get('input'))[:80]}: {fault['msg'].lower()}" for fault in error.errors()
        ]
        return refusal(Refused(422, f"{'; '.join(faults[:5])}.", "See /openapi.json for the parameters."))

    @app.exception_handler(Exception)
    async def unforeseen(_: Request, __: Exception) -> Response:
        return refusal(Refused(500, "something failed here; the log of the service says what."))  # the server logs it
