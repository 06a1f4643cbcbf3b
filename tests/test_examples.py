"""The examples run as written on small data and write the files they announce; benchmark scripts can be imported."""

from __future__ import annotations

import json
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wildcat.data.readers.synthetic import write_shapes

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
BENCHMARKS = EXAMPLES.parent / "benchmarks"


Run = Callable[[str, Path], str]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`run(name, data)` returns what the example printed; its files are in `tmp_path / "out"`."""

    def ran(name: str, data: Path) -> str:
        monkeypatch.setenv("WILDCAT_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(sys, "argv", [name, str(data), str(tmp_path / "out")])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return ran


def test_your_own_folder(run: Run, tmp_path: Path) -> None:
    """Bright and dark images, one folder each, are classified, drawn and annotated."""
    rng = np.random.default_rng(0)
    for name, level in (("bright", 200), ("dark", 50)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(12):
            noise = rng.integers(level - 40, level + 40, (60, 80, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / "images" / name / f"{i}.png")
    printed = run("your_own_folder", tmp_path / "images")
    assert "20 + 4 images; bright, dark" in printed
    assert "labels  100.0% mean average precision" in printed and "points" not in printed
    shown = Image.open(tmp_path / "out" / "predictions.png")
    assert shown.width > 3 * shown.height / 2, "four images, three views each, in two rows"
    (written,) = (tmp_path / "out" / "annotations").glob("*.json")
    coco = json.loads(written.read_text(encoding="utf-8"))
    assert len(coco["images"]) == 4 and {c["name"] for c in coco["categories"]} == {"bright", "dark"}


def test_compare_pooling(run: Run, tmp_path: Path) -> None:
    data = write_shapes(tmp_path / "shapes", train=24, val=8)
    printed = run("compare_pooling", data)
    rows = {
        name: (float(labels), float(points))
        for name, labels, points in re.findall(r"\| (\w+) \| (\S+) \| (\S+) \|", printed)
    }
    assert list(rows) == ["max", "average", "weldon", "wildcat"]
    assert len(set(rows.values())) > 1 and all(0 < value <= 100 for row in rows.values() for value in row)
    assert (tmp_path / "out" / "poolings.md").read_text() in printed
    shown = Image.open(tmp_path / "out" / "poolings.png")
    assert shown.width / shown.height == pytest.approx(160 / 128, rel=0.1), "four images of four poolings"


@pytest.mark.parametrize("script", sorted(path.name for path in BENCHMARKS.glob("*.py")))
def test_a_benchmark_finds_what_it_imports(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They run by hand and rarely: what they use of the package may have moved."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    runpy.run_path(str(BENCHMARKS / script), run_name="imported")


@pytest.mark.parametrize(
    ("last", "now", "verdict"),
    [
        ([1.0, 1.1, 1.2], [1.0, 1.1, 1.2], "reached"),  # not measured again
        ([1.0, 1.1, 1.2], [1.1, 1.2, 1.3], "missed"),
        ([1.0, 1.1, 1.2], [1.25, 1.3, 1.4], "missed, slower"),
        (1.0, {"mean": 1.04, "values": [1.03, 1.05]}, "reached"),  # less than 5 %
        (1.0, {"median": 1.1, "quartiles": [1.06, 1.12]}, "reached, slower"),
        (None, {"ratio": 1.1, "lowest": 1.0, "highest": 1.3}, "reached"),
    ],
)
def test_goals_name_what_became_slower(
    last: object, now: object, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import goals

    files = [None if v is None else {"machine": {"flags": "avx2"}, "results": {"ratio": v}} for v in (last, now)]
    cells, slower = goals.judge(goals.Goal("name", "file", ("ratio",), 1.15), *files)
    assert cells[-1] == verdict and slower == verdict.endswith("slower") and len(cells) == 5
    faster = goals.Goal("name", "file", ("ratio",), 0.5, at_most=False)
    assert goals.judge(faster, *files)[0][-1] == "reached", "larger is better there"
