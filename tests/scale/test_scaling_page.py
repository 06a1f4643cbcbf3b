"""The commands of docs/guides/scaling.md run as written."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests.scale.conftest import png, shard
from wildcat.cli import main

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "guides" / "scaling.md").read_text(encoding="utf-8")


def test_the_commands_of_the_page(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    monkeypatch.chdir(tmp_path)
    for name in ("runs", "shards", "tables"):
        (tmp_path / name).mkdir()
    shutil.copytree(tiny, tmp_path / "runs" / "mine")
    for n in range(2):
        shard(tmp_path / "shards" / f"s-00{n}.tar", {f"{i}.png": png(i) for i in range(3)})
    pq.write_table(pa.table({"image": [png(1), png(2)]}), tmp_path / "tables" / "train.parquet")
    (block,) = re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL)
    for command in block.strip().splitlines():
        words = shlex.split(command, comments=True)
        if "ray" in words and importlib.util.find_spec("ray") is None:
            continue
        assert main([*words[1:], "--device", "cpu"]) == 0, command
        summary = json.loads((tmp_path / words[words.index("--out") + 1] / "summary.json").read_text())
        assert summary["rows"] == (2 if "parquet" in command else 6)


def test_the_costs_of_a_billion_images_are_those_in_the_result_file() -> None:
    results = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
    measured = json.loads((results / "billion.json").read_text())["results"]
    for stage, seconds in measured["seconds an image"].items():
        hours = measured["core-hours for a billion"][stage]
        assert re.search(rf"\| [^|]*\b{1000 * seconds:.3f}\b[^|]* \| [^|]*\b{hours:,}\b", PAGE), stage
