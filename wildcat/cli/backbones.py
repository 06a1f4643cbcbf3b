"""wildcat backbones: list the backbones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from wildcat.cli.options import Command
from wildcat.errors import ConfigError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class Backbones(Command):
    """List the backbones that `train --backbone` accepts."""

    pattern: Positional[Annotated[str, arg(metavar="TEXT")]] = ""
    """Show only names that contain this text; * matches any text."""


def run_backbones(command: Backbones) -> int:
    """Print one backbone per line."""
    from wildcat.nn import list_backbones

    names = list_backbones(command.pattern)
    if not names:
        raise ConfigError(
            f"no backbone has {command.pattern!r} in its name.", did_you_mean(command.pattern, list_backbones())
        )
    print("\n".join(names))
    return 0
