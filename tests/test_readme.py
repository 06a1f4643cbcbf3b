"""The commands and examples of the README run as written, and its results table matches the result files."""

from __future__ import annotations

import re
import shlex
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


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
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


def test_commands_and_examples(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("WILDCAT_CACHE", str(workspace / "cache"))
    for command in "".join(blocks("sh")).strip().splitlines():
        words = shlex.split(command, comments=True)
        assert words[0] == "wildcat"
        assert main(words[1:]) == 0, command
    capsys.readouterr()
    assert len((workspace / "out" / "predictions.jsonl").read_text().splitlines()) == 3
    for example in blocks("python"):
        exec(compile(example, "README.md", "exec"), {})
    assert Image.open(workspace / "heatmap.jpg").size == (80, 60)


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
