"""Progress of long work: one protocol, and its progress bars on stderr."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm


class Progress:
    """Receives the progress of long work and ignores it; subclasses report it."""

    def start(self, task: str, total: int | None, done: int = 0) -> None:
        """Begin a task of `total` items (None: unknown), of which `done` are finished already."""

    def advance(self, count: int = 1, note: str = "") -> None:
        """`count` more items are finished; `note` is a short text to show beside the bar."""

    def epoch(self, record: dict[str, Any]) -> None:
        """A training epoch has ended; `record` is its line in metrics.jsonl."""


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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Finish the current bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def start(self, task: str, total: int | None, done: int = 0) -> None:
        self.close()
        self.bar = progress_bar(total, task, self.unit)
        self.bar.initial = self.bar.n = done

    def advance(self, count: int = 1, note: str = "") -> None:
        if self.bar is not None:
            if note:
                self.bar.set_postfix_str(note, refresh=False)
            self.bar.update(count)

    def epoch(self, record: dict[str, Any]) -> None:
        if self.bar is not None:
            val = " ".join(f"val {k} {v:.4f}" for k, v in record.get("val", {}).items())
            star = " *" if record["best"] and val else ""
            self.bar.write(f"epoch {record['epoch']}: loss {record['loss']:.4f} {val}{star}", file=sys.stderr)


def progress_bar(total: int | None, task: str, unit: str = "img") -> tqdm[Any]:
    """A tqdm bar over `total` items (None: unknown) on stderr; in a log it prints a line every 30 seconds."""
    return tqdm(
        total=total,
        desc=task,
        unit=unit,
        unit_scale=unit == "B",
        file=sys.stderr,
        mininterval=0.2 if sys.stderr.isatty() else 30.0,
        dynamic_ncols=True,
    )


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
