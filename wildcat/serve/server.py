"""Run the service on a socket of this machine."""

from __future__ import annotations

import errno
import ipaddress
import signal
import socket

import uvicorn
from fastapi import FastAPI

from wildcat.errors import ConfigError, WildcatError
from wildcat.serve.uploads import Limits

BACKLOG = 128
STOP_SECONDS = 10  # for running requests after a signal to stop


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 selects a free port. Early connections wait until `run` accepts them.

    Raises:
        ConfigError: not a port number.
        WildcatError: the port is in use or not permitted, or the host is not an address of this machine.
    """
    if not 0 <= port <= 65_535:
        raise ConfigError(f"port={port}: give a number from 1 to 65535, or 0 for any free one.")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise WildcatError(f"port {port} of {host} is in use.", "Give another --port, or 0 for any.") from error
        raise WildcatError(
            f"{host} port {port}: {error.strerror or error}.",
            "Give an address of this machine as --host, and a --port of 1024 or more.",
        ) from error


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address.

    >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0")
    (True, True, False)
    """
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def url_of(host: str, listener: socket.socket) -> str:
    """The URL of the service for a browser on this machine."""
    port = listener.getsockname()[1]
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # all addresses include loopback
    return f"http://{f'[{name}]' if ':' in name else name}:{port}"


def run(app: FastAPI, listener: socket.socket, limits: Limits) -> None:
    """Serve until SIGINT or SIGTERM, then finish the running requests and return."""
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=4 * limits.queue + 64,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=STOP_SECONDS,
    )
    # uvicorn sends itself the signal again after it has stopped: ignore that one.
    previous = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, previous)
        listener.close()
