"""A progress that counts, for tests."""

from __future__ import annotations

from wildcat.progress import Progress


class CountingProgress(Progress):
    """Counts what was announced and done of each task.

    Attributes:
        totals: task -> announced number of items.
        counts: task -> finished items.
    """

    def __init__(self) -> None:
        self.totals: dict[str, int | None] = {}
        self.counts: dict[str, int] = {}

    def start(self, task: str, total: int | None, done: int = 0) -> None:
        self.task = task
        self.totals[task], self.counts[task] = total, done

    def advance(self, count: int = 1, note: str = "") -> None:
        self.counts[self.task] += count
