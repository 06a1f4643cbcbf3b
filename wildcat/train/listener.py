"""What a training tells while it goes on, and what it hears: progress for whoever listens, and requests to stop."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


class Listener:
    """Hears how training goes; does nothing. The command line draws a progress bar with it."""

    def start(self, total_pictures: int, done: int, what: str) -> None:
        """A stage of `total_pictures` begins, of which `done` are done already."""

    def advance(self, pictures: int, note: str = "") -> None:
        """`pictures` more are done."""

    def epoch(self, record: dict[str, Any]) -> None:
        """An epoch has ended; `record` is its line in metrics.jsonl."""


@contextlib.contextmanager
def interruptible() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets; a second one interrupts at once. Former handlers come back at the end."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    former = {s: signal.getsignal(s) for s in signals}

    def handle(number: int, frame: Any) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    try:
        for s in signals:
            signal.signal(s, handle)
        yield event
    finally:
        for s, handler in former.items():
            signal.signal(s, handler)
