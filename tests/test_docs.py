"""The documentation builds without warnings or outside resources, and its commands and code are valid."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from wildcat.cli import COMMANDS, parse

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = sorted((REPOSITORY / "docs").rglob("*.md"))


def command_lines(page: Path) -> list[list[str]]:
    """The words of each `wildcat` command in the shell blocks of a page, without the launcher before it."""
    lines = []
    for block in re.findall(r"```(?:sh|bash)\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if "wildcat" in words and words[0] != "pip":
                lines.append(words[words.index("wildcat") + 1 :])
    return lines


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_of_the_pages_parse(page: Path) -> None:
    for words in command_lines(page):
        parse(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_of_the_pages_compiles(page: Path) -> None:
    for example in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
        compile(example, page.name, "exec")


def test_the_site_builds_without_warnings_and_without_other_servers(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(build, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for page in (tmp_path / "site").rglob("*.html"):
        html = page.read_text(encoding="utf-8")
        assert not re.search(r'<(?:script|img|iframe)[^>]*\ssrc="https?:', html), page.name
        assert not re.search(r'<link[^>]*rel="(?:stylesheet|preconnect)"[^>]*href="https?:', html), page.name
    reference = (tmp_path / "site" / "reference" / "cli.html").read_text(encoding="utf-8")
    for name in COMMANDS:
        assert f"wildcat {name}" in reference
    assert "--num-maps INT" in reference
