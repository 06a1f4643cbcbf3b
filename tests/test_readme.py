"""The commands and examples of the README run as written, and its results table matches the result files."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from wildcat.cli import main

REPOSITORY = Path(__file__).resolve().parent.parent
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
QUICKSTART = (REPOSITORY / "docs" / "quickstart.md").read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, flags=re.DOTALL)


def run_page(page: str) -> None:
    """Run the commands and then the Python examples of a page in the current folder."""
    for command in "".join(blocks(page, "sh")).strip().splitlines():
        if command:
            words = shlex.split(command, comments=True)
            assert words[0] == "wildcat"
            assert main(words[1:]) == 0, command
    for example in blocks(page, "python"):
        exec(compile(example, "page", "exec"), {})


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of labelled images (bright cats, dark dogs) as the README assumes it."""
    folder = tmp_path_factory.mktemp("readme")
    rng = np.random.default_rng(0)
    for name, level in (("cat", 200), ("dog", 60)):
        (folder / "images" / name).mkdir(parents=True)
        for i in range(6):
            noise = rng.integers(level - 40, level + 40, (90, 120, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / "images" / name / f"{i}.jpg")
    (folder / "more").mkdir()
    for path in ("photo.jpg", "more/a.jpg", "more/b.jpg"):
        Image.fromarray(rng.integers(160, 240, (60, 80, 3), dtype=np.uint8)).save(folder / path)
    return folder


@pytest.fixture
def workspace(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder with the labelled images."""
    shutil.copytree(images, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WILDCAT_CACHE", str(images / "cache"))
    return tmp_path


def test_commands_and_examples(workspace: Path) -> None:
    run_page(README)
    assert len((workspace / "out" / "predictions.jsonl").read_text().splitlines()) == 3
    assert Image.open(workspace / "heatmap.jpg").size == (80, 60)


def test_quickstart(workspace: Path) -> None:
    run_page(QUICKSTART)
    assert len((workspace / "first" / "predictions.jsonl").read_text().splitlines()) == 3
    assert (workspace / "report.html").is_file() and (workspace / "pr.csv").is_file()
    assert Image.open(workspace / "cat.jpg").size == (80, 60)


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"^make ([a-z]+)", README, flags=re.MULTILINE))
    assert {"demo", "test"} <= named <= targets


def test_links_point_to_files() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (REPOSITORY / target).exists(), target


def test_results_match_the_result_files() -> None:
    check = [sys.executable, str(REPOSITORY / "benchmarks" / "tables.py"), "--check"]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 120


def test_citation_file() -> None:
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "title", "message", "authors"} <= citation.keys()
    assert citation["preferred-citation"]["authors"][0]["family-names"] == "Durand"
