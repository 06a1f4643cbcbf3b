"""MkDocs hook: writes the tables of reference/cli.md from the dataclasses that define the command line."""

from __future__ import annotations

import argparse
import html
import re
import warnings
from collections.abc import Iterator
from typing import Any

import tyro

from wildcat.cli import GROUPS


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    if page.file.src_uri != "reference/cli.md":
        return markdown
    return markdown.replace("<!-- commands -->", "\n".join(command_reference()))


def command_reference() -> Iterator[str]:
    """Markdown lines: a section per command with a table of its arguments."""
    for group, commands in GROUPS.items():
        yield f"## {group.capitalize()}\n"
        for name, (kind, _) in commands.items():
            yield f"### wildcat {name}\n"
            yield " ".join((kind.__doc__ or "").split()) + "\n"
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # get_parser has no successor yet
                parser = tyro.extras.get_parser(kind, prog=f"wildcat {name}")
            yield "| argument | default | description |"
            yield "| --- | --- | --- |"
            actions = [action for action in parser._actions if action.dest != "help"]
            for action in sorted(actions, key=lambda action: bool(action.option_strings)):  # positional ones first
                yield argument_row(action)
            yield ""


def argument_row(action: argparse.Action) -> str:
    """One table row from an argument of the parser."""
    text, default = " ".join(str(action.help or "").split()), ""
    if found := re.search(r" ?\((default: (.*)|required|repeatable)\)$", text):
        text, default = text[: found.start()], found[2] if found[2] is not None else found[1]
    metavar = str(action.metavar or "").replace("{None}|", "")
    flag = " ".join([*action.option_strings, metavar] if action.option_strings else [metavar or action.dest])
    if default in ("None", "False", "", "''"):
        default = ""
    elif default not in ("required", "repeatable"):
        default = f"`{default}`"
    return f"| {code(flag.strip())} | {default.replace('|', '&#124;')} | {html.escape(text).replace('|', '&#124;')} |"


def code(text: str) -> str:
    """Inline code that may hold a pipe inside a table."""
    return f"<code>{html.escape(text).replace('|', '&#124;')}</code>"
