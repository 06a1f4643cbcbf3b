"""ASGI middleware: path prefix, checks of host and origin, limit of the request body, security headers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Collection
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wildcat.errors import WildcatError
from wildcat.serve.uploads import RequestError

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
DEFAULT_PORTS = {"http": 80, "https": 443}  # browsers leave them out of Origin, proxies may add them to Host

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "base-uri 'self'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}

# After an error the rest of the body is read for this long: if the connection closed at once, a client that still
# sends might never receive the response.
DRAIN_SECONDS = 5.0


def error_response(error: WildcatError) -> Response:
    """JSON with `detail` and `hint`; status 422 unless the error has its own."""
    status, retry_after = (error.status, error.retry_after) if isinstance(error, RequestError) else (422, None)
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    content = json.dumps({"detail": error.message, "hint": error.hint})  # escapes lone surrogates, unlike JSONResponse
    return Response(content, status, headers, "application/json")


class SecurityMiddleware:
    """See the module.

    Args:
        max_bytes: largest request body, counted while it arrives; reading more raises `RequestError` (413).
        hosts: accepted host names; they protect a local service from web pages whose own host name points to it
            (DNS rebinding). None accepts any.
        names: further accepted host names, also of pages behind a proxy that replaces the header Host.
        root_path: path prefix of the service behind a proxy, such as "/wildcat", whether the proxy strips it or not.
    """

    def __init__(
        self,
        app: ASGIApp,
        max_bytes: int,
        hosts: Collection[str] | None = None,
        names: Collection[str] = (),
        root_path: str = "",
    ) -> None:
        self.app, self.max_bytes, self.root_path = app, max_bytes, root_path
        self.names = {name.lower() for name in names}
        self.hosts = None if hosts is None else {host.lower() for host in hosts} | self.names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        root = scope.get("root_path") or self.root_path  # an ASGI server or an outer application may set it
        path = "/" + scope["path"].lstrip("/")  # nginx with `location /x` and `proxy_pass http://host/` sends //predict
        scope = {**scope, "root_path": root, "path": f"{root}/" if path == root else path}
        count, done = 0, False  # bytes of the body that have arrived; whether all have

        async def read() -> Message:
            nonlocal count, done
            message = await receive()
            count += len(message.get("body", b""))
            done = not message.get("more_body", False)
            return message

        async def read_limited() -> Message:
            message = await read()
            if count > self.max_bytes:
                raise self._too_large()
            return message

        async def send_secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                if message["status"] >= 400:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(DRAIN_SECONDS):
                            while not done and count <= 4 * self.max_bytes:
                                await read()
                headers = MutableHeaders(scope=message)
                headers.update(SECURITY_HEADERS)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        error = self._check(Headers(scope=scope))
        await (error_response(error) if error else self.app)(scope, read_limited, send_secured)

    def _check(self, headers: Headers) -> RequestError | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        name = split_url(f"//{host}").hostname or ""
        if self.hosts is not None and name not in self.hosts:
            return RequestError(
                400,
                f"the header Host is {host[:200]!r}; this service accepts {', '.join(sorted(self.hosts))}.",
                f"Start it with --names {_typed(name)}.",
            )
        page = split_url(origin or "")
        same = {page.netloc.lower(), f"{page.netloc}:{DEFAULT_PORTS.get(page.scheme)}".lower()}
        if origin is not None and host.lower() not in same and page.hostname not in self.names:
            return RequestError(
                403,
                f"the header Origin is {origin[:200]!r}, but the header Host is {host[:200]!r}: pages of other sites "
                "may not use this service.",
                f"For its own page behind a proxy, start it with --names {_typed(page.hostname or '')}, or let the "
                "proxy keep the header Host.",
            )
        length = headers.get("content-length", "0")
        return self._too_large() if length.isdecimal() and int(length) > self.max_bytes else None

    def _too_large(self) -> RequestError:
        return RequestError(413, f"the request is larger than {self.max_bytes / 1e6:g} MB.", "Send a smaller image.")


def _typed(name: str) -> str:
    """A host name of a client as it is typed in a shell; a placeholder for anything else."""
    return name if re.fullmatch(r"[\w.-]{1,253}", name, re.ASCII) else "NAME"


def split_url(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:  # such as "[" without "]"
        return urlsplit("")
