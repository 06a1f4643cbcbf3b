"""The error tree. Every error a user can mend is a `WildcatError`: one sentence that names the value, and a hint."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable
from typing import Any


class WildcatError(Exception):
    """Base of all errors a user can mend; `hint` says what to do next.

    The command line prints `message` and `hint` without a traceback.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message}\n{hint}" if hint else message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors travel between processes; some are made of other things than a message and a hint."""
        return _remade, (type(self), self.message, self.hint)


def _remade(kind: type[WildcatError], message: str, hint: str) -> WildcatError:
    error = kind.__new__(kind)
    WildcatError.__init__(error, message, hint)
    return error


class ConfigError(WildcatError, ValueError):
    """A setting, flag or argument is out of range or does not fit another."""


class ShapeError(WildcatError, ValueError):
    """An array or tensor has the wrong shape."""


class DataError(WildcatError):
    """A data set, table, list or annotation cannot be used as it is."""


class ImageError(DataError):
    """One image cannot be read."""


class RunError(WildcatError):
    """A run folder or checkpoint cannot be used as it is."""


class TrainingError(WildcatError):
    """Training cannot go on, for example because the loss is not finite."""


class EngineError(WildcatError):
    """What runs a network cannot do so here, or does not give what the network gives."""


class MissingExtra(WildcatError, ImportError):
    """An optional package is not installed; the hint is the exact pip command."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"{package} is needed here and is not installed.",
            f"Type: pip install 'wildcat-vision[{extra}]'",
        )


class OutOfMemory(WildcatError):
    """The machine, or its GPU, has no memory left for what was asked."""


_SHORTAGES = (
    "out of memory",
    "allocate memory",
    "not enough memory",
    "bad_alloc",
    "shared memory",
    "DataLoader worker",
)
"""What torch says where memory ends: a RuntimeError, or a reading process that the system has killed."""


def out_of_memory(error: BaseException) -> OutOfMemory | None:
    """The sentence for an error that means that memory has run out; None for any other.

    >>> out_of_memory(MemoryError()).message
    'there is not enough memory.'
    """
    said = (str(error).splitlines() or [""])[0]
    short = isinstance(error, OSError) and error.errno == errno.ENOMEM
    short = short or (isinstance(error, RuntimeError) and any(words in str(error) for words in _SHORTAGES))
    if not short and not isinstance(error, MemoryError):
        return None
    return OutOfMemory(
        f"there is not enough memory{f' ({said[:200].rstrip(chr(46))})' if said else ''}.",
        "Close other programs, or do less at once: a smaller --batch-size, fewer --workers.",
    )


def did_you_mean(value: str, allowed: Iterable[str]) -> str:
    """`"did you mean X?"` for the nearest allowed names, or an empty string.

    >>> did_you_mean("resnet5", ["resnet50", "lite0"])
    'did you mean resnet50?'
    """
    choices = list(allowed)
    lowered = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(value.lower(), list(lowered), n=3, cutoff=0.6)
    return f"did you mean {' or '.join(lowered[name] for name in near)}?" if near else ""
