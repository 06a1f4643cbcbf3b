"""Progress on the terminal: bars on stderr with the rate and the time left."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

from wildcat.train.listener import Listener


def progress_bar(total: int | None, what: str) -> tqdm[Any]:
    """A bar over `total` pictures, None: as many as come; in a log it prints a line now and then."""
    interval = 0.2 if sys.stderr.isatty() else 30.0
    return tqdm(total=total, desc=what, unit="img", file=sys.stderr, mininterval=interval, dynamic_ncols=True)


class TerminalListener(Listener):
    """Shows how training goes."""

    def __init__(self) -> None:
        self.bar: tqdm[Any] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.close()

    def start(self, total_pictures: int, done: int, what: str) -> None:
        if self.bar is not None:
            self.bar.close()
        self.bar = progress_bar(total_pictures, what)
        self.bar.initial = self.bar.n = done

    def advance(self, pictures: int, note: str = "") -> None:
        if self.bar is not None:
            if note:
                self.bar.set_postfix_str(note, refresh=False)
            self.bar.update(pictures)

    def epoch(self, record: dict[str, Any]) -> None:
        if self.bar is not None:
            val = " ".join(f"val {k} {v:.4f}" for k, v in record.get("val", {}).items())
            star = " *" if record["best"] and val else ""
            self.bar.write(f"epoch {record['epoch']}: loss {record['loss']:.4f} {val}{star}", file=sys.stderr)
