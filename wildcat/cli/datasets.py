"""wildcat datasets: list data sets and layouts, download public data sets."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from wildcat.cli.options import Command, Switch
from wildcat.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True)
class Datasets(Command):
    """List the data sets and layouts that can be read, or download a public data set."""

    action: Positional[Literal["list", "fetch"]] = "list"
    """list, or fetch a public data set."""
    name: Positional[Annotated[str, arg(metavar="[NAME]", help_behavior_hint="")]] = ""
    """Data set to download, such as VOC2007."""
    to: Annotated[Path | None, arg(metavar="PATH")] = None
    """Target folder; it may hold other data sets."""
    accept_licence: Switch = False
    """Accept the terms of use of the data set without a prompt."""


def run_datasets(command: Datasets) -> int:
    """wildcat datasets"""
    from wildcat.data import fetch_dataset, find_source, is_fetched, list_datasets
    from wildcat.progress import ProgressBar

    if command.action == "list":
        for info in list_datasets():
            print(f"{info.name:15} {info.format:11} {info.description}\n{'':28}{info.where}")
        return 0
    source = find_source(command.name)
    if command.to is None:
        raise ConfigError(f"fetch {source.name}: name the target folder.", "Add --to DIR.")
    if is_fetched(source, command.to):
        print(f"{command.to / source.opens} exists already; nothing to do.")
        return 0
    print(f"{source.name}, from {source.homepage}\n{source.licence}", flush=True)
    if not command.accept_licence and not (sys.stdin.isatty() and _agrees()):
        raise DataError(
            f"{source.name} was not downloaded: its terms of use were not accepted.", "Add --accept-licence to agree."
        )
    with ProgressBar(unit="B") as progress:
        path = fetch_dataset(source, command.to, progress)
    print(f"{path} is ready.")
    return 0


def _agrees() -> bool:
    try:
        return input("Do you agree to these terms? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False
