"""The routes of the service: predictions, drawings, annotations, the model, its health, and a demo page."""

from __future__ import annotations

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
from wildcat.serve.limits import Limits, RequestError
from wildcat.serve.middleware import SecurityMiddleware, error_response
from wildcat.serve.responses import annotation_zip, draw_map, prediction_json
from wildcat.serve.schemas import (
    ERROR_RESPONSES,
    EXAMPLE,
    UPLOAD,
    AnnotationQuery,
    HealthResponse,
    MapQuery,
    ModelResponse,
    PredictionResponse,
    PredictQuery,
)
from wildcat.serve.service import Service
from wildcat.viz.colors import MARK_COLORS, encode_colormaps

# File name -> package, path and media type; the page shares scripts and styles with the HTML report.
ASSETS = {
    "page.css": ("wildcat.serve", "static/page.css", "text/css; charset=utf-8"),
    "page.js": ("wildcat.serve", "static/page.js", "text/javascript; charset=utf-8"),
    "maps.js": ("wildcat.viz", "static/maps.js", "text/javascript; charset=utf-8"),
    "report.css": ("wildcat.report", "report.css", "text/css; charset=utf-8"),
}


def create_app(
    predictor: Predictor,
    limits: Limits | None = None,
    hosts: Collection[str] | None = None,
    processes: int = 0,
    setup: Callable[[], object] | None = None,
) -> FastAPI:
    """An ASGI application that serves a model; `app.state.service` is its `Service`.

    Args:
        hosts: host names that requests may address, such as `middleware.LOOPBACK`; None accepts any.
        processes: number of worker processes; 0 runs the model in threads of this process, -1 uses one process per core
            (at most 4) where that is faster. A script that asks for processes needs `if __name__ == "__main__":`.
        setup: called first in each worker process.

    Raises:
        ConfigError: processes for a model on a GPU or with an engine other than torch.
        WorkerError: a worker process cannot start.
    """
    limits = limits or Limits()
    service = Service(predictor, limits, processes, setup)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(
        title="wildcat",
        version=__version__,
        summary="Classes, points, boxes and heatmaps from one model trained on image-level labels.",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's pages load scripts from other servers
        redoc_url=None,
    )
    app.state.service = service
    app.add_middleware(SecurityMiddleware, max_bytes=limits.max_bytes, hosts=hosts)
    _add_error_handlers(app)
    _add_prediction_routes(app, service, Path(predictor.name).name)
    _add_info_routes(app, service, describe_model(predictor, limits))
    _add_page(app)
    return app


def _add_prediction_routes(app: FastAPI, service: Service, model: str) -> None:
    upload = {"requestBody": UPLOAD}
    prediction = {
        "model": PredictionResponse,
        "content": {"application/json": {"example": EXAMPLE}},
        "description": "The prediction.",
    }

    @app.post("/predict", responses={**ERROR_RESPONSES, 200: prediction}, openapi_extra=upload)
    async def predict(request: Request, query: Annotated[PredictQuery, Query()]) -> Response:
        """Predict an image: a row of predictions.jsonl, with maps and masks on request."""
        content = await service.predict(request, partial(prediction_json, query=query, limits=service.limits))
        return Response(content, media_type="application/json")

    @app.post(
        "/map",
        responses={**ERROR_RESPONSES, 200: {"content": {"image/png": {}}, "description": "The drawing."}},
        response_class=Response,
        openapi_extra=upload,
    )
    async def draw(request: Request, query: Annotated[MapQuery, Query()]) -> Response:
        """Draw one PNG: an overlay, a heatmap, the maps behind a class, or a mask."""
        return Response(await service.predict(request, partial(draw_map, query=query)), media_type="image/png")

    @app.post(
        "/annotations",
        responses={**ERROR_RESPONSES, 200: {"content": {"application/zip": {}}, "description": "The data set."}},
        response_class=Response,
        openapi_extra=upload,
    )
    async def annotations(request: Request, query: Annotated[AnnotationQuery, Query()]) -> Response:
        """Export the predicted regions of an image as annotations, in a data set of one image."""
        content, name = await service.predict(request, partial(annotation_zip, query=query, model=model))
        return Response(
            content, media_type="application/zip", headers={"Content-Disposition": f'attachment; filename="{name}"'}
        )


def _add_info_routes(app: FastAPI, service: Service, description: dict[str, Any]) -> None:
    @app.get("/model", response_model=ModelResponse)
    async def model() -> Response:
        """The model: its name, classes and networks, and the limits of the service."""
        return JSONResponse(description)

    @app.get("/health", response_model=HealthResponse, responses={503: {"model": HealthResponse}})
    async def health() -> Response:
        """The state of the workers and of the queue; responds at once, whatever the workers do."""
        content = service.health()
        return JSONResponse(content, 503 if content["status"] == "down" else 200)


def describe_model(predictor: Predictor, limits: Limits) -> dict[str, Any]:
    """See `schemas.ModelResponse`; the path of the model's folder stays private."""
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
            "timeout": limits.timeout,
            "worker_timeout": limits.worker_timeout,
        },
        "annotation_formats": list(ANNOTATION_FORMATS),
    }


def _add_page(app: FastAPI) -> None:
    page = files("wildcat.serve").joinpath("static/index.html").read_text(encoding="utf-8")
    assets = {
        name: (files(package).joinpath(path).read_bytes(), media_type)
        for name, (package, path, media_type) in ASSETS.items()
    }
    assets["colors.json"] = (json.dumps(page_colors()).encode(), "application/json")
    no_cache = {"Cache-Control": "no-cache"}

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return Response(page, media_type="text/html; charset=utf-8", headers=no_cache)

    @app.get("/static/{name}", include_in_schema=False)
    async def static(name: str) -> Response:
        if name not in assets:
            raise RequestError(404, "this file does not exist.")
        content, media_type = assets[name]
        return Response(content, media_type=media_type, headers=no_cache)


def page_colors() -> dict[str, Any]:
    """Colours of the page: each colour map as base64 of 256 RGB triples, and the colours of the mask's classes."""
    return {"colormaps": encode_colormaps(), "marks": [list(color) for color in MARK_COLORS]}


def _add_error_handlers(app: FastAPI) -> None:
    """Every error response is JSON with `detail` and `hint`."""

    @app.exception_handler(RequestError)
    async def request_error(_: Request, error: RequestError) -> Response:
        return error_response(error)

    @app.exception_handler(WildcatError)
    async def wildcat_error(_: Request, error: WildcatError) -> Response:
        if isinstance(error, RunError):  # a temporary file cannot be written
            return error_response(RequestError(503, "no disk space is left for the response.", "Try again later.", 5))
        return error_response(RequestError(422, error.message, error.hint))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        messages = {
            404: f"the path {request.url.path[:200]} does not exist.",
            405: f"{request.url.path[:200]} does not support {request.method}.",
        }
        response = error_response(
            RequestError(error.status_code, messages.get(error.status_code, str(error.detail)), "See /openapi.json.")
        )
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(RequestValidationError)
    async def invalid_parameters(_: Request, error: RequestValidationError) -> Response:
        faults = [
            f"{fault['loc'][1]}={str(fault.get('input'))[:80]}: {fault['msg'].lower()}" for fault in error.errors()
        ]
        return error_response(RequestError(422, f"{'; '.join(faults[:5])}.", "See /openapi.json for the parameters."))

    @app.exception_handler(Exception)
    async def unexpected_error(_: Request, __: Exception) -> Response:  # the server logs it
        message = "an unexpected error occurred; the log of the service has the details."
        return error_response(RequestError(500, message))
