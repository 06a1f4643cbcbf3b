"""`wildcat report` as a user meets it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import command


def test_a_report_is_one_file_that_is_never_overwritten(
    tiny: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "r.html"
    line = ("report", tiny, shapes, "--out", out, "--examples", 2, "--flip", "horizontal", "--crf", "--device", "cpu")
    assert command(*line) == 0
    printed = capsys.readouterr().out
    assert str(out) in printed and f"{out.stat().st_size / 1e6:.1f} MB" in printed
    page = out.read_text(encoding="utf-8")
    assert [p.name for p in out.parent.iterdir()] == ["r.html"]
    for words in ("tiny: test_resnet, 64 px", "flipped, horizontal", "with CRF", "chosen on val", 'id="training"'):
        assert words in page
    assert str(tmp_path) not in page and str(shapes) not in page
    assert command(*line) == 1
    said = capsys.readouterr()
    assert "never overwritten" in said.err and "r-2.html" in said.err and said.out == ""
    assert out.read_text(encoding="utf-8") == page


def test_without_out_the_file_is_named_for_what_it_shows(
    tiny: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command("report", tiny, shapes, "--split", "train", "--device", "cpu", "--max-mb", "0.2") == 0
    (written,) = tmp_path.iterdir()
    assert written.name.startswith("report-tiny-") and written.name.endswith("-train.html")
    assert written.stat().st_size <= 200_000
    assert "was trained on train" in written.read_text(encoding="utf-8")


def test_misuse_is_told_before_the_work(
    tiny: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("report", tiny, shapes, "--max-mb", "0", "--out", tmp_path / "a.html") == 2
    assert command("report", tiny, shapes, "--examples", "-1", "--out", tmp_path / "a.html") == 2
    assert command("report", tiny, shapes, "--split", "tset", "--out", tmp_path / "a.html") == 1
    assert "max-mb" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_predictions_can_have_a_report_too(
    tiny: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ("predict", tiny, shapes / "JPEGImages", "--limit", 3, "--save", "none", "--device", "cpu", "--report")
    assert command(*line) == 2
    assert "Add --out DIR" in capsys.readouterr().err
    assert command(*line, "--out", tmp_path / "out") == 0
    assert "report.html" in capsys.readouterr().out
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "tiny on" in page and page.count("data:image/") >= 3
