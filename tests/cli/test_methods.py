"""`wildcat methods` lists the registry; a model without class maps says so wherever maps are needed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import command
from tests.conftest import TINY
from wildcat.methods import METHODS


@pytest.fixture(scope="module")
def scores_only(tmp_path_factory: pytest.TempPathFactory, shapes: Path) -> Path:
    """A run of a method without class maps; read only."""
    folder = tmp_path_factory.mktemp("runs") / "netvlad"
    flags = ("--method", "netvlad", "--head-size", "4", "--epochs", "1", *TINY)
    assert command("train", shapes, "--out", folder, *flags) == 0
    return folder


def test_methods_are_listed_with_what_they_give(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("methods") == 0
    lines = capsys.readouterr().out.splitlines()
    first = {line.split()[0]: line for line in lines if line and not line.startswith(" ")}
    assert [*first][: len(METHODS)] == [*METHODS]
    assert "scores, maps, masks" in first["weldon"] and "mAP" in first["weldon"]
    assert "maps" not in first["netvlad"]
    assert any("Arandjelovi" in line for line in lines)
    assert "masks" in first["ccnn"] and "Pathak" in lines[lines.index(first["ccnn"]) + 1]
    cascade = first["pronet-cascade"]
    assert "scores, points, boxes" in cascade and "Sun et al." in lines[lines.index(cascade) + 1]
    assert "VOC 2012 mini" in lines[-1]


def test_one_method_is_shown_with_its_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("methods", "weldon") == 0
    assert "pooling: weldon, num_maps: 1, kmax: 0.2" in capsys.readouterr().out
    assert command("methods", "pronet-cascade") == 0
    assert "crops, crop_weight" in capsys.readouterr().out
    assert command("methods", "wildcat") == 0
    both = capsys.readouterr().out
    assert "pooling: wildcat" in both and "label_sizes" in both, "a method of both commands"
    assert command("methods", "weldn") == 2
    assert "there is no method 'weldn'.\n  Did you mean weldon" in capsys.readouterr().err


def test_scores_need_no_maps(
    scores_only: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    image = next((shapes / "VOCdevkit").rglob("*.jpg"), None) or next(shapes.rglob("*.png"))
    assert command("predict", scores_only, image, "--out", tmp_path / "out", "--device", "cpu") == 0
    assert " at (" not in capsys.readouterr().out
    row = json.loads((tmp_path / "out" / "predictions.jsonl").read_text())
    assert row["scores"] and "points" not in row and "boxes" not in row
    assert command("evaluate", scores_only, shapes, "--json", "--device", "cpu") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["classification"]["map"] and not {"pointing", "localization", "segmentation"} & result.keys()
    assert "has no class maps" in result["notes"][-1]


@pytest.mark.parametrize(
    "words",
    [
        ("predict", "RUN", "IMAGE", "--out", "OUT", "--save", "overlays"),
        ("predict", "RUN", "IMAGE", "--out", "OUT", "--report"),
        ("evaluate", "RUN", "DATA", "--crf"),
        ("calibrate", "RUN", "DATA"),
        ("refine", "RUN", "DATA", "--out", "OUT"),
        ("export", "RUN", "IMAGE", "--format", "coco", "--out", "OUT"),
        ("report", "RUN", "DATA", "--out", "OUT.html"),
        ("serve", "RUN", "--port", "0", "--processes", "0"),
    ],
    ids=lambda words: words[0],
)
def test_maps_are_refused_in_one_sentence(
    words: tuple[str, ...],
    scores_only: Path,
    shapes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    image = next(shapes.rglob("*.jpg"), None) or next(shapes.rglob("*.png"))
    places = {
        "RUN": scores_only,
        "DATA": shapes,
        "IMAGE": image,
        "OUT": tmp_path / "o",
        "OUT.html": tmp_path / "o.html",
    }
    capsys.readouterr()
    assert command(*(places.get(word, word) for word in words), "--device", "cpu") == 2
    said = capsys.readouterr().err
    assert f"wildcat: {scores_only} gives class scores only: its method has no class maps, so no points" in said
    assert "wildcat methods lists what each gives" in said
    assert not (tmp_path / "o").exists() and not (tmp_path / "o.html").exists()


def test_a_head_that_does_not_fit_is_misuse(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("train", shapes, "--out", tmp_path / "run", "--method", "netvlad", *TINY) == 2
    assert "netvlad computes 64 clusters, and there are 22 training images.\n  Give --head-size 22" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "run").exists()
