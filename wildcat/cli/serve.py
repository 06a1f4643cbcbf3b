"""wildcat serve: a model as an HTTP service, with a page to try it on."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from wildcat.cli.options import ModelCommand, load_model


@dataclass(frozen=True, kw_only=True)
class Serve(ModelCommand):
    """Answer images over HTTP, and show a page to drop them on."""

    run: Positional[Annotated[str, arg(metavar="RUN")]]
    """A run folder, or a packaged model such as imagenet-lite0."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines in: anybody who reaches it may use it."""
    port: int = 8000
    """Port to listen on; 0: any free one."""
    names: str = ""
    """Further names the service may be addressed by, separated by commas, such as that of a proxy before it."""
    max_mb: float = 20.0
    """Largest request in megabytes."""
    max_pixels: int = 40_000_000
    """Most pixels of an image."""
    queue: int = 32
    """Most requests that are answered or wait; more are told to come back."""
    timeout: float = 60.0
    """Seconds for an image to arrive, and again for its answer."""
    batch_size: int = 8
    """Most images that go through the network together."""
    processes: int = -1
    """Processes that hold the model and answer side by side; 0: only this one, -1: as many as help (a CPU: up to 4)."""


def run_serve(command: Serve) -> int:
    """wildcat serve"""
    import warnings

    from wildcat.cli.allocator import keep_freed_memory
    from wildcat.serve import Limits, create_app
    from wildcat.serve.middleware import LOOPBACK
    from wildcat.serve.server import address_of, is_loopback, listen, run

    warnings.filterwarnings("ignore", module="PIL")  # of strangers' images: they are refused, or read all the same
    limits = Limits(command.max_mb, command.max_pixels, command.queue, command.timeout, command.batch_size)
    listener = listen(command.host, command.port)
    with listener:
        predictor = load_model(command, command.run)
        names = {name.strip() for name in command.names.split(",") if name.strip()}
        hosts = {*LOOPBACK, command.host, *names} if is_loopback(command.host) else None
        app = create_app(predictor, limits, hosts, command.processes, keep_freed_memory)
        print(address_of(command.host, listener), flush=True)
        print(
            f"{predictor.name}: {len(predictor.classes)} classes; device {predictor.device.type}; Ctrl-C stops",
            file=sys.stderr,
            flush=True,
        )
        run(app, listener, limits)
    print("stopped", file=sys.stderr)
    return 0
