"""A killed command leaves either the old or the new content of the file or folder it writes, never a part of it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.killing import Job, Killed, kill_commands, record, soak_kills
from wildcat.cli import main
from wildcat.data import write_shapes

KILLS = soak_kills("COMMAND_KILLS", 3)

JOBS = {
    name: Job(name, [*line.split(), "--device", "cpu"], target, KILLS, keep=keep, seed=seed)
    for seed, (name, line, target, keep) in enumerate(
        [
            ("calibrate", "calibrate c data --split val", "c", "calibration.json"),
            ("refine", "refine a data --out refined --rounds 1 --epochs 1 --batch-size 4", "refined", ""),
            ("ensemble", "ensemble a b --data data --out together", "together", ""),
            ("report", "report a data --out page.html", "page.html", ""),
            ("export", "export a data/JPEGImages --format coco --out coco", "coco", ""),
        ]
    )
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[Path]:
    """A folder with `data`, the runs `a`, `b` and `c`, and `before`, a copy of the calibration of `c`."""
    place = tmp_path_factory.mktemp("killed")
    data = write_shapes(place / "data", train=8, val=4, size=(40, 60))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WILDCAT_CACHE", str(place / "cache"))
        for name in "ab":
            shutil.copytree(tiny, place / name)
            raise_scores(place / name / "model.safetensors")
        shutil.copytree(place / "a", place / "c")
        assert main(["calibrate", str(place / "c"), str(data), "--device", "cpu"]) == 0
        shutil.copyfile(place / "c" / "calibration.json", place / "before")
        yield place


def raise_scores(weights: Path) -> None:
    """After two epochs all maps are negative and nothing is predicted: raise the bias of all classes."""
    values = load_file(weights)
    values["transfer.bias"] += 3
    save_file(values, weights)


@pytest.fixture(scope="module")
def killed(place: Path) -> dict[str, Killed]:
    return {done.name: done for done in kill_commands(list(JOBS.values()), place, timeout=100 + 60 * KILLS)}


def contents(path: Path) -> dict[str, object]:
    """The content of a file or the files of a folder, without hidden files and without times in JSON."""
    files = [p for p in path.rglob("[!.]*") if p.is_file()] if path.is_dir() else [path] if path.exists() else []
    return {str(p.relative_to(path)): without_time(p) if p.suffix == ".json" else p.read_bytes() for p in files}


def without_time(path: Path) -> Any:
    found = json.loads(path.read_text(encoding="utf-8"))
    return {k: v for k, v in found.items() if k != "created"} if isinstance(found, dict) else found


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("name", JOBS)
def test_killed_at_any_moment_a_command_leaves_the_old_or_the_new(
    place: Path, killed: dict[str, Killed], name: str
) -> None:
    job, done = JOBS[name], killed[name]
    assert done.kills == KILLS and done.operations > 2
    new = contents(place / job.target)
    old = {**new, job.keep: without_time(place / "before")} if job.keep else {}
    assert old != new and new
    lefts = [contents(place / left) for left in done.lefts]
    assert all(left in (old, new) for left in lefts)
    record(f"command, {name}", kills=done.kills, old=lefts.count(old), new=lefts.count(new), half=0)
