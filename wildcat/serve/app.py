"""The routes of the service: predictions, drawings, annotations, the model, its health, and a demo page."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import quote

import torch
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from wildcat._version import __version__
from wildcat.config import Limits
from wildcat.errors import ConfigError, RunError, WildcatError
from wildcat.export import ANNOTATION_FORMATS
from wildcat.predictor import Predictor
from wildcat.serve.label_studio import Backend
from wildcat.serve.middleware import SecurityMiddleware, error_response, split_url
from wildcat.serve.responses import AnnotationQuery, MapQuery, PredictQuery, annotation_zip, draw_map, prediction_json
from wildcat.serve.service import Service
from wildcat.serve.task_images import LabelStudio
from wildcat.serve.uploads import FIELD, FORMATS, UNEXPECTED, RequestError, try_later
from wildcat.viz.colors import MARK_COLORS, encode_colormaps

Handler = TypeVar("Handler", bound=Callable[..., Any])

# Name below /static ("" is the page) -> package, path and media type. The HTML report has the same scripts and styles.
ASSETS = {
    "": ("wildcat.serve", "static/index.html", "text/html; charset=utf-8"),
    "page.css": ("wildcat.serve", "static/page.css", "text/css; charset=utf-8"),
    "page.js": ("wildcat.serve", "static/page.js", "text/javascript; charset=utf-8"),
    "maps.js": ("wildcat.viz", "static/maps.js", "text/javascript; charset=utf-8"),
    "report.css": ("wildcat.report", "report.css", "text/css; charset=utf-8"),
}


OWN_PATHS = ("predict", "map", "annotations", "model", "health", "static", "openapi.json", "setup", "webhook")

# The body of a request, and the responses, for /openapi.json.
UPLOAD = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [FIELD],
                    "properties": {FIELD: {"type": "string", "format": "binary", "description": ", ".join(FORMATS)}},
                }
            }
        },
    }
}
ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"description": "The form is malformed."},
    408: {"description": "The body did not arrive within the timeout."},
    413: {"description": "Too many bytes or pixels."},
    415: {"description": "Not a multipart form, or not an image in an accepted format."},
    422: {"description": "No image, a broken image, or an invalid parameter."},
    503: {"description": "Queue full, timeout, or a worker crashed: retry after Retry-After."},
}
EXAMPLE = {
    "image": "dog.jpg",
    "width": 500,
    "height": 375,
    "scores": {"cat": -2.31, "dog": 3.17},
    "probabilities": {"cat": 0.09028, "dog": 0.9597},
    "labels": ["dog"],
    "points": {"cat": [156.25, 23.44], "dog": [281.25, 164.06]},
    "boxes": {"dog": [[151.2, 60.5, 402.7, 301.0, 6.84]]},
    "files": {},
}


def create_app(
    predictor: Predictor,
    limits: Limits | None = None,
    hosts: Collection[str] | None = None,
    processes: int = 0,
    setup: Callable[[], object] | None = None,
    *,
    names: Collection[str] = (),
    root_path: str = "",
    label_studio: LabelStudio | None = None,
) -> FastAPI:
    """An ASGI application that serves a model; `app.state.service` is its `Service`.

    Args:
        hosts: host names that requests may address, such as `middleware.LOOPBACK`; None accepts any.
        processes: number of worker processes; 0 runs the model in threads of this process, -1 uses one process per core
            (at most 4) where that is faster. A script that asks for processes needs `if __name__ == "__main__":`.
        setup: called first in each worker process.
        names: further host names to accept, such as that of a reverse proxy, also in the header Origin of its pages.
        root_path: path prefix at a reverse proxy, such as "/wildcat".
        label_studio: be an ML backend for the projects of this server; see `Backend`.

    Raises:
        ConfigError: processes for a model on a GPU or with an engine other than torch; a root path that is no path, or
            one of the service's own; a name that is no host name.
        WorkerError: a worker process cannot start.
    """
    limits = limits or Limits()
    root_path, names = check_root_path(root_path), [check_name(name) for name in names]
    service = Service(predictor, limits, processes, setup)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.batcher.close()

    app = FastAPI(
        title="wildcat",
        version=__version__,
        summary="Classes, points, boxes and heatmaps from one model trained on image-level labels.",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's pages load scripts from other servers
        redoc_url=None,
        redirect_slashes=False,  # a redirect would name the header Host, which a proxy may have replaced
    )
    app.state.service = service
    app.add_middleware(
        SecurityMiddleware, max_bytes=int(limits.max_mb * 1e6), hosts=hosts, names=names, root_path=root_path
    )
    _add_error_handlers(app)
    description = describe_model(predictor, limits)
    backend = Backend(label_studio, service, predictor.classes, description["name"]) if label_studio else None
    _add_routes(app, service, description, backend)
    if backend:
        app.post("/setup", include_in_schema=False)(backend.setup)
        app.post("/webhook", include_in_schema=False)(backend.webhook)
    _add_page(app)
    return app


def check_root_path(path: str) -> str:
    """A path prefix with a slash before and none after, "" for none.

    Raises:
        ConfigError: no path of plain characters, or the path of a route: a proxy that strips it would hide the route.
    """
    path = "/".join(["", *filter(None, path.strip().split("/"))])
    if not re.fullmatch(r"(/[\w.~-]+)*", path, re.ASCII):
        raise ConfigError(f"--root-path {path!r} is no path prefix.", "Give one such as /wildcat, without a host name.")
    if path[1:] in OWN_PATHS:
        raise ConfigError(f"--root-path {path} is a path of the service itself.", "Give another, such as /wildcat.")
    return path


def check_name(name: str) -> str:
    """The host name in "example.com", "example.com:8443" or "https://example.com/".

    Raises:
        ConfigError: there is none.
    """
    found = split_url(name if "//" in name else f"//{name}").hostname or ""
    if not re.fullmatch(r"[\w.:-]+", found, re.ASCII):
        raise ConfigError(f"--names {name!r} is no host name.", "Give names such as example.com, separated by commas.")
    return found


def _add_routes(app: FastAPI, service: Service, description: dict[str, Any], backend: Backend | None) -> None:
    def post(path: str, media_type: str, text: str, **content: Any) -> Callable[[Handler], Handler]:
        responses = {**ERRORS, 200: {"content": {media_type: content}, "description": text}}
        return app.post(path, responses=responses, response_class=Response, openapi_extra=UPLOAD)

    @post("/predict", "application/json", "The prediction.", example=EXAMPLE)
    async def predict(request: Request, query: Annotated[PredictQuery, Query()]) -> Response:
        """Predict an image: a row of predictions.jsonl, with maps and masks on request.

        Points (x, y) and boxes (x1, y1, x2, y2, score) are in pixels of the image.
        """
        if backend and request.headers.get("content-type", "").startswith("application/json"):
            return JSONResponse(await backend.predict(request))
        render = partial(prediction_json, query=query, max_pixels=service.limits.max_pixels)
        return Response(await service.predict(request, render), media_type="application/json")

    @post("/map", "image/png", "The drawing.")
    async def draw(request: Request, query: Annotated[MapQuery, Query()]) -> Response:
        """Draw one PNG: an overlay, a heatmap, the maps behind a class, or a mask."""
        render = partial(draw_map, query=query, max_pixels=service.limits.max_pixels)
        return Response(await service.predict(request, render), media_type="image/png")

    @post("/annotations", "application/zip", "The data set.")
    async def annotations(request: Request, query: Annotated[AnnotationQuery, Query()]) -> Response:
        """Export the predicted regions of an image as annotations, in a data set of one image."""
        render = partial(annotation_zip, query=query, model=description["name"])
        content, name = await service.predict(request, render)
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        return Response(content, media_type="application/zip", headers=headers)

    @app.get("/model")
    async def model() -> dict[str, Any]:
        """The model: its name, classes and networks, and the limits of the service."""
        return description

    @app.get("/health", responses={503: {"description": "No worker is alive."}})
    async def health(response: Response) -> dict[str, Any]:
        """The state of the workers and of the queue; responds at once, whatever the workers do."""
        content = service.health()
        response.status_code = 503 if content["status"] == "down" else 200
        return content


def describe_model(predictor: Predictor, limits: Limits) -> dict[str, Any]:
    """The response of /model; the path of the model's folder stays private."""
    bounded = any(member.boundaries is not None for member in predictor.members)
    return {
        "name": Path(predictor.name).name,
        "task": predictor.task,
        "classes": list(predictor.classes),
        "members": [
            {"backbone": m.model.backbone.name, "num_maps": m.model.num_maps, "input_size": m.preprocess.size}
            for m in predictor.members
        ],
        "flip": predictor.flip,
        "boundaries": bounded,
        "propagate": bounded and predictor.propagate,
        "crf": predictor.crf,
        "intensity_range": predictor.preprocess.intensity_range,
        "device": str(predictor.device),
        "versions": {"wildcat": __version__, "torch": str(torch.__version__)},
        "limits": {name: value for name, value in vars(limits).items() if name != "batch_size"},
        "annotation_formats": list(ANNOTATION_FORMATS),
    }


def _add_page(app: FastAPI) -> None:
    colors = {"colormaps": encode_colormaps(), "marks": [list(color) for color in MARK_COLORS]}
    assets = {
        name: (files(package).joinpath(path).read_bytes(), media_type)
        for name, (package, path, media_type) in ASSETS.items()
    }
    assets["colors.json"] = (json.dumps(colors).encode(), "application/json")

    @app.get("/", include_in_schema=False)
    @app.get("/static/{name}", include_in_schema=False)
    async def static(request: Request, name: str = "") -> Response:
        if name not in assets:
            raise RequestError(404, "this file does not exist.")
        content, media_type = assets[name]
        if not name and (root := request.scope["root_path"]):  # the address of the page may lack the last slash
            base = f'<base href="{quote(root)}/">'.encode()
            content = content.replace(b"<head>", b"<head>" + base, 1)
        return Response(content, media_type=media_type, headers={"Cache-Control": "no-cache"})


def _add_error_handlers(app: FastAPI) -> None:
    """Every error response is JSON with `detail` and `hint`."""

    @app.exception_handler(WildcatError)
    async def wildcat_error(_: Request, error: WildcatError) -> Response:
        if isinstance(error, RunError):  # a temporary file cannot be written
            error = try_later("no disk space is left for the response.")
        return error_response(error)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        path = request.url.path[:200]
        messages = {404: f"the path {path} does not exist.", 405: f"{path} does not support {request.method}."}
        message = messages.get(error.status_code, str(error.detail))
        hint = f"See {request.scope['root_path']}/openapi.json."
        if error.status_code == 404 and not request.scope["root_path"]:
            hint += " If a proxy passes on a path prefix, start the service with --root-path."
        response = error_response(RequestError(error.status_code, message, hint))
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(RequestValidationError)
    async def invalid_parameters(request: Request, error: RequestValidationError) -> Response:
        faults = [
            f"{fault['loc'][1]}={str(fault.get('input'))[:80]}: {fault['msg'].lower()}" for fault in error.errors()
        ]
        hint = f"See {request.scope['root_path']}/openapi.json for the parameters."
        return error_response(RequestError(422, f"{'; '.join(faults[:5])}.", hint))

    @app.exception_handler(Exception)
    async def unexpected_error(_: Request, __: Exception) -> Response:  # the server logs it
        return error_response(RequestError(500, UNEXPECTED))
