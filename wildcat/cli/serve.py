"""wildcat serve: an HTTP service for a model, with a demo page."""

from __future__ import annotations

import errno
import ipaddress
import multiprocessing
import signal
import socket
import sys
from dataclasses import dataclass, fields
from functools import partial
from multiprocessing import forkserver
from pathlib import Path
from typing import TYPE_CHECKING

from wildcat.cli.options import Model, ModelCommand, load_model, require_maps
from wildcat.config import Limits
from wildcat.errors import ConfigError, WildcatError

if TYPE_CHECKING:
    from fastapi import FastAPI

BACKLOG = 1024
IDLE_CONNECTIONS = 384  # 64 browsers that keep six connections each
STOP_SECONDS = 10  # for running requests after a signal to stop


@dataclass(frozen=True, kw_only=True)
class Serve(Limits, ModelCommand):
    """Serve the model over HTTP, with a demo page."""

    run: Model
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 makes the service available to everyone who can reach this machine."""
    port: int = 8000
    """Port to listen on; 0 selects a free one."""
    names: str = ""
    """Additional host names to accept, separated by commas, such as the name of a reverse proxy."""
    root_path: str = ""
    """Path prefix of the service at a reverse proxy, such as /wildcat, whether the proxy strips it or not."""
    label_studio: str = ""
    """Address of a Label Studio server, such as http://localhost:8080: be an ML backend for its projects. The access
    token is read from the environment variable LABEL_STUDIO_API_KEY."""
    processes: int = -1
    """Worker processes; 0 runs the model in this process, -1 uses one per core (at most 4) on a CPU."""

    def __post_init__(self) -> None:
        """Leave the check of the limits to `run_serve`: tyro would print its error in another form."""


def run_serve(command: Serve) -> int:
    """wildcat serve"""
    if command.processes and command.engine == "torch":
        start_fork_server(command.device)
    import warnings

    from wildcat.cli.allocator import return_freed_memory
    from wildcat.serve import create_app
    from wildcat.serve.middleware import LOOPBACK
    from wildcat.serve.task_images import connect

    warnings.filterwarnings("ignore", module="PIL")  # about uploaded images
    limits = Limits(**{field.name: getattr(command, field.name) for field in fields(Limits)})
    set_up_process(limits)
    label_studio = connect(command.label_studio, limits) if command.label_studio else None
    with listen(command.host, command.port) as listener:
        predictor = load_model(command, command.run, boundaries=True)
        require_maps(predictor)
        names = command.names.replace(",", " ").split()
        hosts = {*LOOPBACK, command.host} if is_loopback(command.host) else None
        app = create_app(
            predictor,
            limits,
            hosts,
            command.processes,
            partial(set_up_process, limits),
            names=names,
            root_path=command.root_path,
            label_studio=label_studio,
        )
        return_freed_memory()  # of reading and sending the model: with worker processes this one allocates little
        print(url_of(command.host, listener), flush=True)
        print(
            f"{predictor.name}: {len(predictor.classes)} classes; device {predictor.device.type}; Ctrl-C stops",
            file=sys.stderr,
            flush=True,
        )
        if label_studio:
            print(f"Label Studio: connect this address to a project at {label_studio.url}", file=sys.stderr, flush=True)
        serve_until_signal(app, listener, limits)
    print("stopped", file=sys.stderr)
    return 0


def set_up_process(limits: Limits) -> None:
    """Set the allocator, and let Pillow open all images within the limits."""
    from wildcat.cli.allocator import keep_freed_memory
    from wildcat.data.images import PILLOW_PIXELS, limit_pixels

    keep_freed_memory()
    limit_pixels(max(limits.max_pixels, PILLOW_PIXELS))


def start_fork_server(device: str) -> None:
    """Let the process from which worker processes are forked import torch while this one loads the model."""
    if sys.platform == "linux" and (device == "cpu" or (device == "auto" and not Path("/dev/nvidiactl").exists())):
        multiprocessing.set_forkserver_preload(["wildcat.serve.fork_server"])
        forkserver.ensure_running()


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 selects a free port. Early connections wait until `run` accepts them.

    Raises:
        ConfigError: not a port number.
        WildcatError: the port is in use or not permitted, or the host is not an address of this machine.
    """
    if not 0 <= port <= 65_535:
        raise ConfigError(f"--port {port}: give a number from 1 to 65535, or 0 for any free one.")
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


def serve_until_signal(app: FastAPI, listener: socket.socket, limits: Limits) -> None:
    """Serve until SIGINT or SIGTERM, then finish the running requests and return."""
    import uvicorn

    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=limits.queue + IDLE_CONNECTIONS,
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
