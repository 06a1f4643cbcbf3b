"""Progress of long work: one protocol, and its progress bars on stderr."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Self

from tqdm import tqdm


class Progress:
    """Receives the progress of long work and ignores it; subclasses report it."""

    def start(self, task: str, total: int | None, done: int = 0) -> None:
        """Begin a task of `total` items (None: unknown), of which `done` are finished already."""

    def advance(self, count: int = 1, note: str = "") -> None:
        """`count` more items are finished; `note` is a short text to show beside the bar."""

    def epoch(self, record: dict[str, Any], network: Any = None) -> None:
        """A training epoch has ended; `record` is its line in metrics.jsonl, `network` has its weights."""


class ProgressOf(Progress):
    """Passes the progress of work on to several receivers."""

    def __init__(self, *receivers: Progress) -> None:
        self.receivers = receivers

    def start(self, task: str, total: int | None, done: int = 0) -> None:
        for receiver in self.receivers:
            receiver.start(task, total, done)

    def advance(self, count: int = 1, note: str = "") -> None:
        for receiver in self.receivers:
            receiver.advance(count, note)

    def epoch(self, record: dict[str, Any], network: Any = None) -> None:
        for receiver in self.receivers:
            receiver.epoch(record, network)


SILENT = Progress()


class ProgressBar(Progress):
    """A bar on stderr for each task, with the rate and the time left; in a log, a line every 30 seconds.

    Args:
        unit: of the items: "img", or "B" for bytes.
    """

    def __init__(self, unit: str = "img") -> None:
        self.unit = unit
        self.bar: tqdm[Any] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Finish the current bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def start(self, task: str, total: int | None, done: int = 0) -> None:
        self.close()
        self.bar = tqdm(
            total=total,
            desc=task,
            unit=self.unit,
            unit_scale=self.unit == "B",
            file=sys.stderr,
            mininterval=0.2 if sys.stderr.isatty() else 30.0,
            dynamic_ncols=True,
        )
        self.bar.initial = self.bar.n = done

    def advance(self, count: int = 1, note: str = "") -> None:
        if self.bar is not None:
            if note:
                self.bar.set_postfix_str(note, refresh=False)
            self.bar.update(count)

    def epoch(self, record: dict[str, Any], network: Any = None) -> None:
        if self.bar is not None:
            val = " ".join(f"val {k} {v:.4f}" for k, v in record.get("val", {}).items())
            star = " *" if record["best"] and val else ""
            self.bar.write(f"epoch {record['epoch']}: loss {record['loss']:.4f} {val}{star}", file=sys.stderr)


REPEATED = 0.5  # seconds: torchrun passes a signal on to processes that have received it with their group

_received: list[tuple[int, float]] = []  # the stop signals of this process: number, time


def stop_code() -> int:
    """The exit code of a command that a signal stopped: 143 for SIGTERM, otherwise 130."""
    return 128 + (_received[-1][0] if _received else signal.SIGINT)


def stopped_by_signal() -> bool:
    """Whether the command was asked to stop: errors of its worker processes then follow from the same signal."""
    return bool(_received)


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Raise KeyboardInterrupt at Ctrl-C and SIGTERM, wherever the command is, so that it ends in order."""
    _received.clear()
    with _handling(_interrupt):
        yield


@contextlib.contextmanager
def interruptible() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets; a second one interrupts at once. Former handlers come back at the end."""
    event = threading.Event()
    with _handling(lambda: _interrupt() if event.is_set() else event.set()):
        yield event


def _interrupt() -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def _handling(handle: Callable[[], None]) -> Iterator[None]:
    """Call `handle` for each stop signal, but for repetitions, in the main thread; elsewhere do nothing."""

    def receive(number: int, _: Any) -> None:
        now = time.monotonic()
        repeated = bool(_received) and now - _received[-1][1] < REPEATED
        if not repeated:
            _received.append((number, now))
            handle()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        for s in former:
            signal.signal(s, receive)
        yield
    finally:
        for s, handler in former.items():
            signal.signal(s, handler)
