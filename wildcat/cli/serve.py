"""wildcat serve: an HTTP service for a model, with a demo page."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from wildcat.cli.options import Model, ModelCommand, load_model


@dataclass(frozen=True, kw_only=True)
class Serve(ModelCommand):
    """Serve the model over HTTP, with a demo page."""

    run: Model
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 makes the service available to everyone who can reach this machine."""
    port: int = 8000
    """Port to listen on; 0 selects a free one."""
    names: str = ""
    """Additional host names to accept, separated by commas, such as the name of a reverse proxy."""
    max_mb: float = 20.0
    """Largest request in megabytes."""
    max_pixels: int = 40_000_000
    """Most pixels of an image."""
    queue: int = 32
    """Most requests that run or wait; further requests get status 503."""
    timeout: float = 60.0
    """Seconds to receive a request, and again to compute its response."""
    worker_timeout: float = 60.0
    """Seconds a worker may take for a batch; a worker process is then killed and restarted."""
    batch_size: int = 8
    """Most images per forward pass."""
    processes: int = -1
    """Worker processes; 0 runs the model in this process, -1 uses one per core (at most 4) on a CPU."""


def run_serve(command: Serve) -> int:
    """wildcat serve"""
    import warnings

    from wildcat.cli.allocator import keep_freed_memory
    from wildcat.serve import Limits, create_app
    from wildcat.serve.middleware import LOOPBACK
    from wildcat.serve.server import is_loopback, listen, run, url_of

    warnings.filterwarnings("ignore", module="PIL")  # about uploaded images
    limits = Limits(
        max_mb=command.max_mb,
        max_pixels=command.max_pixels,
        queue=command.queue,
        timeout=command.timeout,
        worker_timeout=command.worker_timeout,
        batch_size=command.batch_size,
    )
    with listen(command.host, command.port) as listener:
        predictor = load_model(command, command.run)
        names = {name.strip() for name in command.names.split(",") if name.strip()}
        hosts = {*LOOPBACK, command.host, *names} if is_loopback(command.host) else None
        app = create_app(predictor, limits, hosts, command.processes, keep_freed_memory)
        print(url_of(command.host, listener), flush=True)
        print(
            f"{predictor.name}: {len(predictor.classes)} classes; device {predictor.device.type}; Ctrl-C stops",
            file=sys.stderr,
            flush=True,
        )
        run(app, listener, limits)
    print("stopped", file=sys.stderr)
    return 0
