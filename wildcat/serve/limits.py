"""What a client may ask for, and the refusal of what is more."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from wildcat.errors import ConfigError


@dataclass(frozen=True)
class Limits:
    """The bounds of a service.

    Attributes:
        max_mb: largest request body in megabytes of 1,000,000 bytes.
        max_pixels: most pixels of an image, read from its header before anything is decoded.
        queue: most requests that are answered or wait; more are told to come back (503).
        seconds: for the body to arrive, and again for the answer to be made.
        batch_size: most images that go through the network together.

    Raises:
        ConfigError: a value is out of range.
    """

    max_mb: float = 20.0
    max_pixels: int = 40_000_000
    queue: int = 32
    seconds: float = 60.0
    batch_size: int = 8

    def __post_init__(self) -> None:
        for name in ("max_mb", "seconds"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"{name}={value}: give a number above 0.")
        for name in ("max_pixels", "queue", "batch_size"):
            value = getattr(self, name)
            if value < 1:
                raise ConfigError(f"{name}={value}: give a whole number of at least 1.")

    @property
    def max_bytes(self) -> int:
        """Of a request body."""
        return int(self.max_mb * 1e6)

    @property
    def pixels_at_once(self) -> int:
        """Of all images that are decoded at a time: what bounds the memory."""
        return 3 * self.max_pixels


class Refused(Exception):
    """A request that is not answered: the HTTP status, a sentence and what to do instead."""

    def __init__(self, status: int, message: str, hint: str = "", retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.hint, self.retry_after = status, message, hint, retry_after

    def __reduce__(self) -> tuple[Any, ...]:
        """Refusals travel between processes."""
        return Refused, (self.status, self.message, self.hint, self.retry_after)
