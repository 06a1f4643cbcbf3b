"""ASGI middleware: checks the host and origin, limits the request body, and adds security headers to responses."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wildcat.serve.limits import RequestError

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}

# After an error the rest of the body is read for this long: if the connection closed at once, a client that still
# sends might never receive the response.
DRAIN_SECONDS = 5.0


def error_response(error: RequestError) -> JSONResponse:
    """JSON with `detail` and `hint`."""
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    return JSONResponse({"detail": error.message, "hint": error.hint}, error.status, headers)


class SecurityMiddleware:
    """See the module.

    Args:
        max_bytes: largest request body, counted while it arrives; reading more raises `RequestError` (413).
        hosts: accepted host names; they protect a local service from web pages whose own host name points to it
            (DNS rebinding). None accepts any.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, hosts: Collection[str] | None = None) -> None:
        self.app, self.max_bytes = app, max_bytes
        self.hosts = None if hosts is None else {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        body = LimitedBody(receive, self.max_bytes, paused=headers.get("expect", "").lower() == "100-continue")

        async def send_secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                if message["status"] >= 400:
                    await body.drain()
                response_headers = MutableHeaders(scope=message)
                response_headers.update(SECURITY_HEADERS)
                response_headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            self._check(headers)
        except RequestError as error:
            await error_response(error)(scope, body.receive, send_secured)
            return
        await self.app(scope, body.receive, send_secured)

    def _check(self, headers: Headers) -> None:
        host = headers.get("host", "")
        if self.hosts is not None and _split(f"//{host}").hostname not in self.hosts:
            raise RequestError(
                400, f"this service does not accept the host name {host[:200]!r}.", "Start it with --names to add it."
            )
        origin = headers.get("origin")
        if origin is not None and _split(origin).netloc.lower() != host.lower():
            raise RequestError(
                403, f"pages of {origin[:200]} may not use this service.", "Use its own page, or a program."
            )
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdecimal()):
            raise RequestError(400, f"Content-Length {length[:200]!r} is not a number of bytes.")
        if len(length) > 18 or int(length) > self.max_bytes:
            raise too_large(self.max_bytes)


class LimitedBody:
    """A request body that is counted, limited, and drained if the response comes before its end.

    Args:
        receive: the server's function.
        paused: whether the client waits for "100 Continue" before it sends the body.
    """

    def __init__(self, receive: Receive, max_bytes: int, paused: bool = False) -> None:
        self.source, self.max_bytes, self.paused = receive, max_bytes, paused
        self.count, self.done = 0, False

    async def receive(self) -> Message:
        """The next message.

        Raises:
            RequestError: 413, the body is larger than `max_bytes`.
        """
        message = await self.source()
        self.paused = False
        self.count += len(message.get("body", b""))
        self.done = message["type"] != "http.request" or not message.get("more_body", False)
        if self.count > self.max_bytes:
            raise too_large(self.max_bytes)
        return message

    async def drain(self) -> None:
        """Read and discard the rest, for at most `DRAIN_SECONDS` and up to four times `max_bytes`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                while not self.done and not self.paused and self.count <= 4 * self.max_bytes:
                    with contextlib.suppress(RequestError):
                        await self.receive()


def too_large(max_bytes: int) -> RequestError:
    """Status 413."""
    return RequestError(413, f"the request is larger than {max_bytes / 1e6:g} MB.", "Send a smaller image.")


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:  # such as "[" without "]"
        return urlsplit("")
