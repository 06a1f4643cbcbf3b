"""wildcat datasets: the data that can be read, and fetching what is public."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from wildcat.cli.options import Command
from wildcat.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True)
class Datasets(Command):
    """List the data that can be read, and where it is expected; or fetch a public data set."""

    action: Positional[Literal["list", "fetch"]] = "list"
    """What to do."""
    name: Positional[Annotated[str, arg(metavar="NAME")]] = ""
    """The data set to fetch, such as VOC2007."""
    to: Path | None = None
    """Folder to fetch into; it may hold other data sets."""
    accept_licence: bool = False
    """Agree to the terms of use of the data set, instead of being asked."""


def run_datasets(command: Datasets) -> int:
    """wildcat datasets"""
    from wildcat.data import list_datasets

    if command.action == "fetch":
        return run_fetch(command)
    for info in list_datasets():
        print(f"{info.name:15} {info.format:11} {info.description}\n{'':28}{info.where}")
    return 0


def run_fetch(command: Datasets) -> int:
    """wildcat datasets fetch"""
    from tqdm import tqdm

    from wildcat.data import fetch_dataset, find_source, is_fetched

    source = find_source(command.name)
    if command.to is None:
        raise ConfigError(f"fetch {source.name}: name the folder to fetch into.", "Add --to DIR.")
    if is_fetched(source, command.to):
        print(f"{command.to / source.opens} is there already; nothing was done.")
        return 0
    print(f"{source.name}, from {source.homepage}\n{source.licence}", flush=True)
    if not command.accept_licence and not (sys.stdin.isatty() and _agrees("Do you agree to these terms?")):
        raise DataError(
            f"{source.name} is not fetched: its terms of use were not agreed to.", "Add --accept-licence to agree."
        )
    with tqdm(unit="B", unit_scale=True, file=sys.stderr, mininterval=0.5, dynamic_ncols=True) as bar:

        def show(what: str, done: int, total: int | None) -> None:
            if bar.desc != f"{what}: ":
                bar.reset(total)
                bar.set_description(what, refresh=False)
                bar.unit = "B" if total else " files"
                bar.initial = bar.n = done
            bar.update(done - bar.n)

        result = fetch_dataset(source, command.to, show)
    for note in result.notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"{result.path} is ready; everything that came is recorded in {command.to / 'fetched.json'}.")
    return 0


def _agrees(question: str) -> bool:
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False
