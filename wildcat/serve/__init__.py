"""HTTP service and demo page for one model (`wildcat serve RUN`); needs the extra `serve`."""

from __future__ import annotations

from wildcat.config import Limits
from wildcat.errors import MissingExtra

try:
    import fastapi as _fastapi  # noqa: F401
    import python_multipart as _multipart  # noqa: F401  # Starlette parses forms with it
    import uvicorn as _uvicorn  # noqa: F401

    from wildcat.serve.app import create_app
except ModuleNotFoundError as error:
    package = (error.name or "").partition(".")[0]
    if package not in ("fastapi", "python_multipart", "uvicorn"):
        raise
    raise MissingExtra(package.replace("_", "-"), "serve") from error

__all__ = ["Limits", "create_app"]
