"""Output in shards: one row per image, whatever is broken, killed, lost or repeated."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

import wildcat
from tests.killing import Job, kill_commands, record, soak_kills
from tests.scale.conftest import png, shard
from wildcat.cli import main
from wildcat.models.calibration import CALIBRATION, write_calibration
from wildcat.models.run import open_run
from wildcat.predictor import Predictor
from wildcat.regions.masks import MaskParams
from wildcat.scale.rows import read_rows


def predict(*arguments: object) -> int:
    try:
        return main(["predict", *map(str, arguments), "--device", "cpu"])
    except SystemExit as stop:
        return int(stop.code or 0)


def rows_in(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.glob("shard-*")) for row in read_rows(path)]


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("shard-*")}


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
def test_each_image_has_one_row_and_unreadable_ones_have_an_error(
    tiny: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, rows: int
) -> None:
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    out = tmp_path / "out"
    assert predict(tiny, *sources(images), "--out", out, "--shard-rows", rows, "--shard-format", kind) == 0
    output = capsys.readouterr()
    shards = [read_rows(path) for path in sorted(out.glob("shard-*"))]
    assert [len(shard_rows) for shard_rows in shards[:-1]] == [rows] * (-(-23 // rows) - 1)
    found = [row for shard_rows in shards for row in shard_rows]
    assert [row["row"] for row in found] == list(range(23))
    assert [row["image"] for row in found] == names(images)
    assert [row["row"] for row in found if "error" in row] == BROKEN
    assert all(row["image"] in row["error"] for row in found if "error" in row)
    predictor = wildcat.load(tiny, "cpu")
    for row in found:
        if "error" not in row and "#" not in row["image"]:
            expected = predictor.predict(row["image"]).to_dict()
            assert row["labels"] == expected["labels"] and (row["width"], row["height"]) == (24, 16)
            assert row["scores"] == pytest.approx(expected["scores"], abs=1e-4)
            assert row["points"] == expected["points"]
    assert "10 of 23 images could not be read" in output.err
    assert all(f"{names(images)[i]} is " in output.err for i in BROKEN)
    assert f"23 rows in {len(shards)} shards" in output.out


def test_rows_of_the_likeliest_classes(tiny: Path, images: Path, tmp_path: Path) -> None:
    lines = {"all": (), "few": ("--top-k", 2)}
    for name, flags in lines.items():
        assert predict(tiny, *sources(images), "--out", tmp_path / name, "--shard-rows", 9, *flags) == 0
    for whole, few in zip(rows_in(tmp_path / "all"), rows_in(tmp_path / "few"), strict=True):
        if "error" in whole:
            assert few == whole
        else:
            likeliest = sorted(whole["scores"], key=lambda c: -whole["scores"][c])[:2]
            assert list(few["scores"]) == list(few["points"]) == likeliest
    assert predict(tiny, *sources(images), "--out", tmp_path / "few", "--shard-rows", 9, "--resume") == 1, (
        "rows of another kind are not appended"
    )
    assert predict(tiny, *sources(images), "--out", tmp_path / "no", "--shard-rows", 9, "--top-k", -1) == 2


def test_rows_equal_single_predictions_whatever_is_broken_before_them(tiny: Path, tmp_path: Path) -> None:
    contents = {f"{i}.png": png(i) if i % 3 else b"broken" for i in range(12)}
    shard(tmp_path / "s.tar", contents | {"1.png": png(1)})
    assert predict(tiny, tmp_path / "s.tar", "--out", tmp_path / "out", "--shard-rows", 5, "--batch-size", 2) == 0
    predictor = wildcat.load(tiny, "cpu")
    for row in rows_in(tmp_path / "out"):
        assert ("error" in row) == (row["row"] % 3 == 0)
        if "error" not in row:
            (tmp_path / "one.png").write_bytes(contents[f"{row['row']}.png"])
            alone = predictor.predict(tmp_path / "one.png").to_dict()
            assert row["scores"] == pytest.approx(alone["scores"], abs=1e-4)


def test_existing_shards_are_not_written_again_and_lost_ones_are(tiny: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    line = (tiny, *sources(images), "--out", out, "--shard-rows", 4)
    assert predict(*line) == 0
    before, times = files_in(out), {p: p.stat().st_mtime_ns for p in out.glob("shard-*")}
    (out / "shard-00002.jsonl").unlink()
    (out / ".shard-00003.jsonl.x7.part").write_bytes(b"half of it")  # killed while it was writing
    (out / "summary.json").unlink()
    assert predict(*line, "--resume") == 0
    assert files_in(out) == before
    assert not list(out.glob(".shard-*")) and (out / "summary.json").is_file()
    assert [p.name for p, t in times.items() if p.stat().st_mtime_ns != t] == ["shard-00002.jsonl"]


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
        (_add, "other images: shard-00000"),
        (_append, "other images: "),
        (_remove, "other images: "),
        (lambda _: ("--shard-rows", 5), "other settings: shard_rows (shard_rows 4 -> 5)"),
        (lambda _: ("--flip", "both"), "other settings: settings"),
        (lambda _: ("--limit", 3), "other settings: limit"),
        (lambda _: ("--max-pixels", 10_000_000), "other settings: max_pixels"),
    ],
)
def test_resume_refuses_what_would_mix_two_sets_of_rows(
    tiny: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Change, says: str
) -> None:
    folder = Path(shutil.copytree(images, tmp_path / "images"))
    line = (tiny, *sources(folder), "--out", tmp_path / "out", "--shard-rows", 4)
    assert predict(*line) == 0
    before = files_in(tmp_path / "out")
    assert predict(*line) == 1
    assert "Add --resume to continue" in capsys.readouterr().err
    assert predict(*line, *change(folder), "--resume") == 1
    assert says in capsys.readouterr().err
    assert files_in(tmp_path / "out") == before


def test_a_complete_folder_refuses_added_images_and_stays_complete(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for i in range(4):
        (folder / f"{i}.png").write_bytes(png(i))
    line = (tiny, folder, "--out", out, "--shard-rows", 2)
    assert predict(*line) == 0
    before = files_in(out)
    (folder / "4.png").write_bytes(png(4))
    assert predict(*line, "--resume") == 1
    output = capsys.readouterr().err
    assert "complete with 4 rows, and the sources have more" in output and "restore the sources" in output
    assert files_in(out) == before
    (folder / "4.png").unlink()
    (out / "shard-00001.jsonl").unlink()
    assert predict(*line, "--resume") == 0
    assert files_in(out) == before


@pytest.mark.parametrize("resume", [(), ("--resume",)])
def test_a_command_that_fails_before_its_first_shard_can_be_corrected(
    tiny: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], resume: Sequence[str]
) -> None:
    (tmp_path / "v.mp4").touch()
    flags = ("--out", tmp_path / "out", "--shard-rows", 100, *resume)
    assert predict(tiny, images / "in", tmp_path / "v.mp4", *flags) == 2
    assert "v.mp4 is a video" in capsys.readouterr().err
    assert predict(tiny, images / "in", *flags) == 0


def test_an_interruption_before_the_first_shard_leaves_a_linked_folder_empty(
    tiny: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to("disk")
    line = (tiny, images / "in", "--out", tmp_path / "out", "--shard-rows", 4)
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "forward", Mock(side_effect=KeyboardInterrupt))
        assert predict(*line) == 130
    assert "Nothing was written: give the same command again." in capsys.readouterr().err
    assert not list((tmp_path / "disk").iterdir())
    assert predict(*line) == 0


def test_a_damaged_calibration_is_one_sentence_before_ray_starts(
    tiny: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(tiny, tmp_path / "run"))
    (run / CALIBRATION).write_text("{")
    assert predict(run, images / "in", "--out", tmp_path / "out", "--engine", "ray") == 1
    output = capsys.readouterr().err
    assert f"{CALIBRATION} is damaged" in output and "wildcat calibrate" in output and "Traceback" not in output
    assert not (tmp_path / "out").exists()


def test_resume_refuses_other_thresholds(
    tiny: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(tiny, tmp_path / "run"))
    line = (run, images / "in", "--out", tmp_path / "out", "--shard-rows", 4)
    assert predict(*line) == 0
    classes = open_run(run).classes
    write_calibration(run, classes, MaskParams(gate=0.9), {"data": "d", "split": "train", "images": 1, "masks": 0})
    assert predict(*line, "--resume") == 1
    assert "other settings: thresholds" in capsys.readouterr().err


def test_another_model_is_refused(tiny: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = Path(shutil.copytree(tiny, tmp_path / "run"))
    line = (copy, images / "in", "--out", tmp_path / "out", "--shard-rows", 4)
    assert predict(*line) == 0
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-2] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert predict(*line, "--resume") == 1
    assert "other settings: weights" in capsys.readouterr().err


def test_a_truncated_tar_stops_the_command_and_finished_shards_stay(
    tiny: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(images, tmp_path / "images"))
    line = (tiny, *sources(folder), "--out", tmp_path / "out", "--shard-rows", 4)
    whole = (folder / "s-1.tar").read_bytes()
    (folder / "s-1.tar").write_bytes(whole[:3000])
    assert predict(*line) == 1
    output = capsys.readouterr().err
    assert "s-1.tar (3,000 bytes) is cut or damaged" in output and "--resume" in output and "Traceback" not in output
    assert len(rows_in(tmp_path / "out")) == 16  # the output shards before the truncation
    (folder / "s-1.tar").write_bytes(whole)
    assert predict(*line, "--resume") == 0
    assert [row["image"] for row in rows_in(tmp_path / "out")] == names(folder)


@pytest.mark.parametrize(
    ("flags", "says", "code"),
    [
        (("--shard-rows", 4), "Add --out DIR", 2),
        (("--shard-rows", 0, "--out", "o"), "--shard-rows 0: give at least 1", 2),
        (("--shard-rows", 4, "--out", "o", "--save", "masks"), "shards hold rows", 2),
        (("--shard-rows", 4, "--out", "o", "--report"), "shards hold rows", 2),
        (("--out", "o", "--resume"), "Add --shard-rows 1000", 2),
        (("--out", "o", "--shard-format", "parquet"), "Add --shard-rows 1000", 2),
        (("--out", "o", "--workers", 2), "Add --engine ray", 2),
        (("--out", "o", "--shard-rows", 4, "--workers", 2), "Add --engine ray", 2),
        (("--out", "o", "--engine", "ray", "--precision", "int8"), "Give --precision fp32", 2),
        (("s.tar", "--out", "o"), "s.tar needs output in shards", 2),
        (("gone.tar", "--out", "o", "--shard-rows", 4), "gone.tar does not exist", 1),
        (("s3x://a/b.tar", "--out", "o", "--shard-rows", 4), "unknown scheme s3x", 2),
    ],
)
def test_misuse_is_one_sentence(
    tiny: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: Sequence[object],
    says: str,
    code: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.tar").touch()
    paths = [] if not str(flags[0]).startswith("-") else [images / "in"]
    assert predict(tiny, *paths, *flags) == code
    output = capsys.readouterr().err
    assert says in output and "Traceback" not in output
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("package", ["pyarrow", "ray"])
def test_an_extra_that_is_missing_is_named(
    tiny: Path,
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
        "ray": (images / "in", "ray", ("--engine", "ray")),
    }[package]
    assert predict(tiny, source, "--out", tmp_path / "o", "--shard-rows", 4, *flags) == 1
    assert f"pip install 'wildcat-vision[{extra}]'" in capsys.readouterr().err
    assert predict(tiny, images / "in", "--out", tmp_path / "p", "--shard-rows", 4, "--shard-format", "parquet") == (
        1 if package == "pyarrow" else 0
    )


# --- killed at any moment ---------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_any_moment_every_image_has_one_row(tiny: Path, images: Path, tmp_path: Path) -> None:
    kills = soak_kills("KILLS", 24)
    shard(tmp_path / "s.tar", {f"{i:03}.png": png(i) if i % 10 else b"no image" for i in range(200)})
    line = ["predict", tiny, *sources(images), tmp_path / "s.tar", "--shard-rows", 3, "--device", "cpu"]
    job = Job("predict", [*map(str, line), "--out", "rows-{n}", "--resume"], "rows-{n}", kills, resume=True)
    (killed,) = kill_commands([job], tmp_path, timeout=100 + 20 * kills)
    assert killed.kills == kills and killed.started > 4
    expected = names(images) + [f"{tmp_path}/s.tar#{i:03}.png" for i in range(200)]
    for folder in [tmp_path / f"rows-{n}" for n in range(killed.targets)]:
        rows = rows_in(folder)
        assert Counter(row["image"] for row in rows) == Counter(expected)
        assert [row["row"] for row in rows] == list(range(223))
        assert files_in(folder) == files_in(tmp_path / "rows-0")  # target 0 was not killed
        assert json.loads((folder / "summary.json").read_text())["rows"] == 223
        assert not list(folder.glob(".*"))
    counts = {"kills": killed.kills, "midway": killed.started, "folders": killed.targets}
    record("prediction", **counts, rows=223 * killed.targets, missing=0, twice=0, half=0)
