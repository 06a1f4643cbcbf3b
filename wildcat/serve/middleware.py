"""Around every request: who may ask, how much a body may hold, and what browsers are told about the answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wildcat.serve.limits import Refused

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

SECURITY = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}

DRAIN_SECONDS = 5.0
"""How long what a refused client still sends is read and forgotten: closed at once, it might never see the answer."""


def refusal(error: Refused) -> JSONResponse:
    """The answer to a request that is refused: `detail` and `hint`."""
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    return JSONResponse({"detail": error.message, "hint": error.hint}, error.status, headers)


class Guard:
    """ASGI middleware.

    Args:
        app: what is guarded.
        max_bytes: of a body, counted as it comes; above it, reading raises `Refused` (413).
        hosts: names under which the service may be addressed, so that a page of a stranger whose name points here
            (DNS rebinding) gets nothing; None: any.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, hosts: Collection[str] | None = None) -> None:
        self.app, self.max_bytes = app, max_bytes
        self.hosts = None if hosts is None else {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        body = Body(receive, self.max_bytes, held_back=headers.get("expect", "").lower() == "100-continue")

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                if message["status"] >= 400:
                    await body.drain()
                answer = MutableHeaders(scope=message)
                for name, value in SECURITY.items():
                    answer[name] = value
                answer.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            self._check(headers)
        except Refused as error:
            await refusal(error)(scope, body.receive, send_guarded)
            return
        await self.app(scope, body.receive, send_guarded)

    def _check(self, headers: Headers) -> None:
        host = headers.get("host", "")
        if self.hosts is not None and (_hostname(f"//{host}") or "") not in self.hosts:
            raise Refused(400, f"this service is not called {host[:200]!r}.", "Start it with --names to add a name.")
        origin = headers.get("origin")
        if origin is not None and _netloc(origin) != host.lower():
            raise Refused(403, f"pages of {origin[:200]} may not use this service.", "Use its own page, or a program.")
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdecimal()):
            raise Refused(400, f"Content-Length {length[:200]!r} is no number of bytes.")
        if len(length) > 18 or int(length) > self.max_bytes:
            raise too_large(self.max_bytes)


class Body:
    """A request's body: counted, bounded, and read to its end where the answer comes before it.

    Args:
        receive: the server's.
        held_back: the client sends nothing before it is asked to.
    """

    def __init__(self, receive: Receive, max_bytes: int, held_back: bool = False) -> None:
        self.source, self.max_bytes, self.held_back = receive, max_bytes, held_back
        self.count, self.done = 0, False

    async def receive(self) -> Message:
        """The next message.

        Raises:
            Refused: 413, the body is larger than it may be.
        """
        message = await self.source()
        self.held_back = False
        self.count += len(message.get("body", b""))
        self.done = message["type"] != "http.request" or not message.get("more_body", False)
        if self.count > self.max_bytes:
            raise too_large(self.max_bytes)
        return message

    async def drain(self) -> None:
        """Read and forget the rest, for a few seconds and a few times `max_bytes` at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                while not self.done and not self.held_back and self.count <= 4 * self.max_bytes:
                    with contextlib.suppress(Refused):
                        await self.receive()


def too_large(max_bytes: int) -> Refused:
    """The refusal of a body above `max_bytes`."""
    return Refused(413, f"the request is larger than {max_bytes / 1e6:g} MB.", "Send a smaller image.")


def _hostname(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None


def _netloc(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None
