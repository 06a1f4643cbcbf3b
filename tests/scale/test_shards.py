"""Parts: one row for each image, whatever is broken, killed, lost or tried again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import wildcat
from tests.killing import record, soak_kills
from tests.scale.conftest import png, shard
from wildcat.cli import main
from wildcat.scale.shards import read_part

REPOSITORY = Path(__file__).resolve().parents[2]


def predict(*arguments: object) -> int:
    try:
        return main(["predict", *map(str, arguments), "--device", "cpu"])
    except SystemExit as stop:
        return int(stop.code or 0)


def rows_in(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.glob("part-*")) for row in read_part(path)]


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("part-*")}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 images, some broken: in a folder, in two shards, and beside them."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "in").mkdir()
    for i in range(9):
        (folder / "in" / f"{i}.png").write_bytes(png(i)[: 200 if i in (0, 4, 8) else None])
    shard(folder / "s-0.tar", {f"{i}.png": png(i) for i in range(7)} | {"0.json": b"{}"})
    shard(folder / "s-1.tar", {f"{i}.png": b"no image" for i in range(7)})
    return folder


def sources(folder: Path) -> list[Path]:
    return [folder / "in", folder / "s-{0..1}.tar"]


def names(folder: Path) -> list[str]:
    found = [str(folder / "in" / f"{i}.png") for i in range(9)]
    return found + [f"{folder}/s-{s}.tar#{i}.png" for s in (0, 1) for i in range(7)]


BROKEN = [0, 4, 8, *range(16, 23)]


@pytest.mark.parametrize(
    ("kind", "rows"), [("jsonl", 4), ("parquet", 4), ("jsonl", 1), ("jsonl", 23), ("parquet", 1000)]
)
def test_each_image_has_one_row_and_what_is_broken_says_why(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, rows: int
) -> None:
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    out = tmp_path / "out"
    assert predict(run, *sources(images), "--out", out, "--part-rows", rows, "--part-format", kind) == 0
    told = capsys.readouterr()
    parts = [read_part(path) for path in sorted(out.glob("part-*"))]
    assert [len(part) for part in parts[:-1]] == [rows] * (-(-23 // rows) - 1)
    found = [row for part in parts for row in part]
    assert [row["row"] for row in found] == list(range(23))
    assert [row["image"] for row in found] == names(images)
    assert [row["row"] for row in found if "error" in row] == BROKEN
    assert all(row["image"] in row["error"] for row in found if "error" in row)
    predictor = wildcat.load(run, "cpu")
    for row in found:
        if "error" not in row and "#" not in row["image"]:
            expected = predictor.predict(row["image"]).to_dict()
            assert row["labels"] == expected["labels"] and (row["width"], row["height"]) == (24, 16)
            assert row["scores"] == pytest.approx(expected["scores"], abs=1e-4)
            assert row["points"] == expected["points"]
    assert "10 of 23 images could not be read" in told.err
    assert all(f"{names(images)[i]} is " in told.err for i in BROKEN)
    assert f"23 rows in {len(parts)} parts" in told.out


def test_an_image_has_the_row_it_has_alone_whatever_is_broken_before_it(run: Path, tmp_path: Path) -> None:
    contents = {f"{i}.png": png(i) if i % 3 else b"broken" for i in range(12)}
    shard(tmp_path / "s.tar", contents | {"1.png": png(1)})
    assert predict(run, tmp_path / "s.tar", "--out", tmp_path / "out", "--part-rows", 5, "--batch-size", 2) == 0
    predictor = wildcat.load(run, "cpu")
    for row in rows_in(tmp_path / "out"):
        assert ("error" in row) == (row["row"] % 3 == 0)
        if "error" not in row:
            (tmp_path / "one.png").write_bytes(contents[f"{row['row']}.png"])
            alone = predictor.predict(tmp_path / "one.png").to_dict()
            assert row["scores"] == pytest.approx(alone["scores"], abs=1e-4)


def test_finished_parts_are_not_made_again_and_lost_ones_are(run: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    line = (run, *sources(images), "--out", out, "--part-rows", 4)
    assert predict(*line) == 0
    before, times = files_in(out), {p: p.stat().st_mtime_ns for p in out.glob("part-*")}
    (out / "part-00002.jsonl").unlink()
    with (out / "done.jsonl").open("ab") as file:
        file.write(b'{"part": 9, "ro')  # killed while it was writing
    (out / ".part-00003.jsonl.x7").write_bytes(b"half of it")
    (out / "summary.json").unlink()
    assert predict(*line, "--resume") == 0
    assert files_in(out) == before
    assert not list(out.glob(".part-*")) and (out / "summary.json").is_file()
    assert [p.name for p, t in times.items() if p.stat().st_mtime_ns != t] == ["part-00002.jsonl"]


Change = Callable[[Path], Sequence[object]]


def _add(folder: Path) -> Sequence[object]:
    (folder / "in" / "1a.png").write_bytes(png(1))
    return ()


def _append(folder: Path) -> Sequence[object]:
    shard(folder / "s-1.tar", {f"{i}.png": b"no image" for i in range(8)})
    return ()


def _remove(folder: Path) -> Sequence[object]:
    shard(folder / "s-1.tar", {f"{i}.png": b"no image" for i in range(2)})
    return ()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_add, "other images: those of part-00000"),
        (_append, "other images: "),
        (_remove, "other images: "),
        (lambda _: ("--part-rows", 5), "other settings: part_rows (part_rows 4 -> 5)"),
        (lambda _: ("--flip", "both"), "other settings: settings"),
        (lambda _: ("--limit", 3), "other settings: limit"),
    ],
)
def test_what_would_mix_two_sets_of_rows_is_refused(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Change, says: str
) -> None:
    folder = Path(shutil.copytree(images, tmp_path / "images"))
    line = (run, *sources(folder), "--out", tmp_path / "out", "--part-rows", 4)
    assert predict(*line) == 0
    before = files_in(tmp_path / "out")
    assert predict(*line) == 1
    assert "Add --resume to go on" in capsys.readouterr().err
    assert predict(*line, *change(folder), "--resume") == 1
    assert says in capsys.readouterr().err
    assert files_in(tmp_path / "out") == before


def test_another_model_is_refused(run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    line = (copy, images / "in", "--out", tmp_path / "out", "--part-rows", 4)
    assert predict(*line) == 0
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-2] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert predict(*line, "--resume") == 1
    assert "other settings: weights" in capsys.readouterr().err


def test_a_cut_shard_stops_the_command_and_costs_nothing_that_is_finished(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(images, tmp_path / "images"))
    line = (run, *sources(folder), "--out", tmp_path / "out", "--part-rows", 4)
    whole = (folder / "s-1.tar").read_bytes()
    (folder / "s-1.tar").write_bytes(whole[:3000])
    assert predict(*line) == 1
    told = capsys.readouterr().err
    assert "s-1.tar (3,000 bytes) is cut or damaged" in told and "--resume" in told and "Traceback" not in told
    assert len(rows_in(tmp_path / "out")) == 16  # the parts before the one it breaks
    (folder / "s-1.tar").write_bytes(whole)
    assert predict(*line, "--resume") == 0
    assert [row["image"] for row in rows_in(tmp_path / "out")] == names(folder)


@pytest.mark.parametrize(
    ("flags", "says", "code"),
    [
        (("--part-rows", 4), "Add --out DIR", 2),
        (("--part-rows", 0, "--out", "o"), "--part-rows 0: give at least 1", 2),
        (("--part-rows", 4, "--out", "o", "--save", "masks"), "parts hold rows", 2),
        (("--part-rows", 4, "--out", "o", "--report"), "parts hold rows", 2),
        (("--out", "o", "--resume"), "Add --part-rows 1000", 2),
        (("--out", "o", "--part-format", "parquet"), "Add --part-rows 1000", 2),
        (("--out", "o", "--workers", 2), "Add --engine ray", 2),
        (("--out", "o", "--part-rows", 4, "--workers", 2), "Add --engine ray", 2),
        (("--out", "o", "--engine", "ray", "--precision", "int8"), "Give --precision fp32", 2),
        (("s.tar", "--out", "o"), "s.tar is for predictions in parts", 2),
        (("gone.tar", "--out", "o", "--part-rows", 4), "gone.tar does not exist", 1),
        (("s3x://a/b.tar", "--out", "o", "--part-rows", 4), "no kind of store", 2),
    ],
)
def test_misuse_is_one_sentence(
    run: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: Sequence[object],
    says: str,
    code: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = [] if not str(flags[0]).startswith("-") else [images / "in"]
    assert predict(run, *paths, *flags) == code
    told = capsys.readouterr().err
    assert says in told and "Traceback" not in told
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("package", ["pyarrow", "fsspec", "ray"])
def test_an_extra_that_is_missing_is_named(
    run: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    package: str,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "t.parquet").write_bytes(b"x")
    source, extra, flags = {
        "pyarrow": (tmp_path / "t.parquet", "scale", ()),
        "fsspec": ("memory://a.tar", "scale", ()),
        "ray": (images / "in", "ray", ("--engine", "ray")),
    }[package]
    assert predict(run, source, "--out", tmp_path / "o", "--part-rows", 4, *flags) == 1
    assert f"pip install 'wildcat-vision[{extra}]'" in capsys.readouterr().err
    assert predict(run, images / "in", "--out", tmp_path / "p", "--part-rows", 4, "--part-format", "parquet") == (
        1 if package == "pyarrow" else 0
    )


# --- killed at any moment ---------------------------------------------------------------------------------------------

KILLER = """
import os, random, signal, sys, time
import torch, wildcat.cli
import wildcat.scale.worker, wildcat.cli.predict_sharded, wildcat.predictor, wildcat.progress, wildcat.export
line, kills, seed = sys.argv[3:], int(sys.argv[1]), int(sys.argv[2])
random.seed(seed)
span, done, midway, out = 1.0, 0, 0, 0
while done < kills:
    folder = f"{out}"
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os._exit(wildcat.cli.main([*line, "--out", folder, "--resume"]))
    time.sleep(random.uniform(0, span))
    gone, status = os.waitpid(child, os.WNOHANG)
    if gone:
        assert status == 0, status
        out, span = out + 1, span / 2
        continue
    os.kill(child, signal.SIGKILL)
    midway += os.path.exists(f"{folder}/part-00000.jsonl") and not os.path.exists(f"{folder}/summary.json")
    done += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    span *= 1.02
for n in range(out + 1):
    assert wildcat.cli.main([*line, "--out", f"{n}", "--resume"]) == 0
print("kills", done, "midway", midway, "folders", out + 1)
"""
"""Starts the command again and again by forking a process that has imported torch but used nothing of it, which takes
milliseconds, and kills it after a random time; when it ends before, it begins another folder and waits less."""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_any_moment_every_row_is_there_once(run: Path, images: Path, tmp_path: Path) -> None:
    kills = soak_kills("KILLS", 24)
    shard(tmp_path / "s.tar", {f"{i:03}.png": png(i) if i % 10 else b"no image" for i in range(200)})
    line = ["predict", run, *sources(images), tmp_path / "s.tar", "--part-rows", 3, "--device", "cpu"]
    told = subprocess.run(
        [sys.executable, "-c", KILLER, str(kills), "0", *map(str, line)],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=100 + 20 * kills,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    killed, midway, folders = (int(word) for word in told.stdout.splitlines()[-1].split()[1::2])
    assert killed == kills and midway > 4
    assert predict(*line[1:], "--out", tmp_path / "undisturbed") == 0
    expected = names(images) + [f"{tmp_path}/s.tar#{i:03}.png" for i in range(200)]
    for folder in [tmp_path / str(n) for n in range(folders)]:
        rows = rows_in(folder)
        assert Counter(row["image"] for row in rows) == Counter(expected)
        assert [row["row"] for row in rows] == list(range(223))
        assert files_in(folder) == files_in(tmp_path / "undisturbed")
        assert json.loads((folder / "summary.json").read_text())["rows"] == 223
        assert not list(folder.glob(".*"))
    record("prediction", kills=killed, midway=midway, folders=folders, rows=223 * folders, missing=0, twice=0, half=0)
