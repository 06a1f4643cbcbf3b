"""The error tree. Errors that a user can fix are `WildcatError`s: one sentence that names the value, and a hint."""

from __future__ import annotations

import difflib
import errno
import importlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


class WildcatError(Exception):
    """Base of all errors that a user can fix; the command line prints `message` and `hint` without a traceback."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message}\n{hint}" if hint else message)
        self.message = message
        self.hint = hint

    @property
    def one_line(self) -> str:
        """Message and hint in one line, for lists and rows of errors."""
        return " ".join(f"{self.message} {self.hint}".split())

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by message and hint: subclasses have constructors of their own."""
        return _restore_error, (type(self), self.message, self.hint)


def _restore_error(error_class: type[WildcatError], message: str, hint: str) -> WildcatError:
    error = error_class.__new__(error_class)
    WildcatError.__init__(error, message, hint)
    return error


class ConfigError(WildcatError, ValueError):
    """A setting, flag or argument is out of range or does not fit another."""


class ShapeError(WildcatError, ValueError):
    """An array or tensor has the wrong shape."""


class DataError(WildcatError):
    """A data set, table, list or annotation is invalid."""


class ImageError(DataError):
    """One image cannot be read."""


class RunError(WildcatError):
    """A model folder or checkpoint is invalid, or cannot be written."""


class TrainingError(WildcatError):
    """Training cannot continue, for example because the loss is not finite."""


class EngineError(WildcatError):
    """An engine cannot run a network here, or computes other features than torch."""


class MissingExtra(WildcatError, ImportError):
    """An optional package is not installed; the hint is the exact pip command."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is needed here and is not installed.", f"Type: {install_extra(extra)}")


class MissingDecoder(ImageError, MissingExtra):
    """One image needs an optional package; it is skipped wherever images that cannot be read are skipped."""

    def __init__(self, name: str, image_format: str, package: str, extra: str) -> None:
        message = f"{name} is {image_format}, which cannot be read: {package} is not installed."
        WildcatError.__init__(self, message, f"Type: {install_extra(extra)}")


def import_extra(module: str, package: str, extra: str) -> Any:
    """The module of an optional package.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(package, extra) from error


def install_extra(extra: str) -> str:
    """The command that installs an extra."""
    return f"pip install 'wildcat-vision[{extra}]'"


class OutOfMemory(WildcatError):
    """The machine or its GPU is out of memory."""


MEMORY_HINT = "Close other programs, or use smaller batches or fewer workers."

# Texts in errors of torch: a RuntimeError, or a DataLoader worker that the system killed.
_SHORTAGES = re.compile(
    "out of memory|allocate memory|not enough memory|bad_alloc|shared memory"
    r"|DataLoader worker .*(signal: (Killed|Bus error)|exited unexpectedly)"
)


def unknown_class(name: str, classes: Sequence[str]) -> ConfigError:
    """The error for a class that a model lacks; it names similar classes, or the first twenty."""
    few = ", ".join(classes[:20]) + (", ..." if len(classes) > 20 else "")
    return ConfigError(f"this model has no class {name!r}.", did_you_mean(name, classes) or f"It has: {few}.")


def out_of_memory(error: BaseException) -> OutOfMemory | None:
    """Convert an error that means that memory has run out; None for any other.

    >>> out_of_memory(MemoryError()).message
    'there is not enough memory.'
    """
    short = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    if not short and not (isinstance(error, RuntimeError) and _SHORTAGES.search(str(error))):
        return None
    reason = (str(error).splitlines() or [""])[0][:200].rstrip(".")
    return OutOfMemory(f"there is not enough memory{f' ({reason})' if reason else ''}.", MEMORY_HINT)


def known_error(error: BaseException) -> WildcatError | None:
    """The error that tells a user what to do: `error` itself, or what torch's error means; None for any other."""
    if isinstance(error, WildcatError):
        return error
    if isinstance(error, RuntimeError) and (found := re.search(r"DataLoader worker .*signal: (\w[\w ]*)", str(error))):
        return out_of_memory(error) or WildcatError(
            f"a process that reads images has ended by the signal {found[1]}.",
            "If it was not ended by hand, an image may crash its decoder: look for it by reading with --workers 0.",
        )
    if isinstance(error, PermissionError) and error.filename is not None:
        return WildcatError(f"{error.filename} cannot be opened: {error.strerror}.", "Check its permissions.")
    return out_of_memory(error)


def did_you_mean(value: str, allowed: Iterable[str], folder: Path | None = None) -> str:
    """`"did you mean X?"` for the most similar allowed names, or an empty string.

    Args:
        folder: of files with these names; each is given with its path.

    >>> did_you_mean("resnet5", ["resnet50", "lite0"]), did_you_mean("mien", ["mine"], Path("runs"))
    ('did you mean resnet50?', 'did you mean runs/mine?')
    """
    choices = list(allowed)
    lowered = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(value.lower(), list(lowered), n=3, cutoff=0.6)
    names = [str(folder / lowered[name]) if folder else lowered[name] for name in near]
    return f"did you mean {' or '.join(names)}?" if near else ""
