"""Limits of the service, and the error of a request that is refused."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from wildcat.errors import ConfigError


@dataclass(frozen=True)
class Limits:
    """Limits of the service.

    Attributes:
        max_mb: largest request body in megabytes of 1,000,000 bytes.
        max_pixels: most pixels of an image, checked in its header before it is decoded.
        queue: most requests that run or wait; further requests get status 503.
        timeout: seconds to receive a request, and again to compute its response.
        worker_timeout: seconds a worker may take for a batch; a worker process is then killed and restarted.
        batch_size: most images per forward pass.

    Raises:
        ConfigError: a value is out of range.
    """

    max_mb: float = 20.0
    max_pixels: int = 40_000_000
    queue: int = 32
    timeout: float = 60.0
    worker_timeout: float = 60.0
    batch_size: int = 8

    def __post_init__(self) -> None:
        for name in ("max_mb", "timeout", "worker_timeout"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"{name}={value}: give a number above 0.")
        for name in ("max_pixels", "queue", "batch_size"):
            value = getattr(self, name)
            if value < 1:
                raise ConfigError(f"{name}={value}: give a whole number of at least 1.")

    @property
    def max_bytes(self) -> int:
        """Largest request body in bytes."""
        return int(self.max_mb * 1e6)

    @property
    def max_decoded_pixels(self) -> int:
        """Most pixels of all images that are decoded at the same time; this bounds the memory of the service."""
        return 3 * self.max_pixels


class RequestError(Exception):
    """A request fails with this HTTP status, message and hint; `retry_after` is in seconds."""

    def __init__(self, status: int, message: str, hint: str = "", retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.hint, self.retry_after = status, message, hint, retry_after

    def __reduce__(self) -> tuple[Any, ...]:  # worker processes send these errors to the service
        return RequestError, (self.status, self.message, self.hint, self.retry_after)
