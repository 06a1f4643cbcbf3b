"""Beam search: against an exhaustive search of all windows, and from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import wildcat
from wildcat.cli import main
from wildcat.errors import ConfigError
from wildcat.models.beam_search import Window, beam_search, located, window_scores
from wildcat.models.calibration import Calibration
from wildcat.predictor import load
from wildcat.regions import MaskParams

GRID = (4, 5)


def all_windows() -> list[Window]:
    rows = [(a, b) for a in range(GRID[0]) for b in range(a + 1, GRID[0] + 1)]
    columns = [(a, b) for a in range(GRID[1]) for b in range(a + 1, GRID[1] + 1)]
    return [Window(top, left, bottom, right) for top, bottom in rows for left, right in columns]


@pytest.mark.parametrize("seed", range(5))
def test_a_wide_beam_finds_the_best_of_all_windows(seed: int) -> None:
    scores = dict(zip(all_windows(), np.random.default_rng(seed).normal(size=150), strict=True))
    calls: list[int] = []

    def score(windows: list[Window]) -> list[float]:
        calls.append(len(windows))
        assert len(set(windows)) == len(windows)
        return [scores[window] for window in windows]

    assert len(scores) == 150
    window, highest = beam_search(score, GRID, beam=150)
    assert highest == max(scores.values()) and scores[window] == highest
    assert sum(calls) == 150 and len(calls) == 4 + 5 - 1, "each window once; a step for each row and column"
    narrow, found = beam_search(score, GRID, beam=2)
    assert scores[narrow] == found <= highest and max(calls[8:]) <= 8


def test_of_equal_windows_the_smallest() -> None:
    inside = Window(1, 2, 3, 4)

    def score(windows: list[Window]) -> list[float]:
        return [float(w.top <= 1 and w.left <= 2 and w.bottom >= 3 and w.right >= 4) for w in windows]

    assert beam_search(score, GRID) == (inside, 1.0)


@pytest.mark.parametrize(
    "head", [{}, {"architecture": "b"}, {"pooling": "attention"}, {"head": "netvlad", "head_size": 4}]
)
def test_windows_are_scored_by_the_head(head: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = wildcat.create_model("test_resnet", num_classes=3, pretrained=False, **head).eval()
    features = torch.rand(model.backbone.num_features, *GRID)
    model.standardize(features.mean(dim=(1, 2)), features.std(dim=(1, 2)))
    windows = all_windows()[::7]
    with torch.no_grad():
        for task in ("multilabel", "multiclass"):
            found = window_scores(model, features, windows, task)  # type: ignore[arg-type]
            for window, scores in zip(windows, found, strict=True):
                masked = features.mean(dim=(1, 2), keepdim=True).expand_as(features).clone()
                part = (slice(None), slice(window.top, window.bottom), slice(window.left, window.right))
                masked[part] = features[part]
                expected = model.head(masked[None]).scores[0]
                expected = expected.log_softmax(dim=0) if task == "multiclass" else expected
                torch.testing.assert_close(scores, expected)


def test_boxes_of_a_prediction_are_the_best_windows(tiny: Path, shapes_folder: Path) -> None:
    predictor, path = load(tiny, "cpu", output_stride=8, calibrated=False), next(shapes_folder.rglob("*.jpg"))
    predictor.calibration = Calibration(MaskParams(gate=(0.0, 0.0, 1.0, 1.0, 1.0)), {})  # two classes are predicted
    image, plain = predictor._batch([predictor.prepare(path).inputs])[0], predictor.predict(path)
    head = predictor.members[0].fused
    with torch.inference_mode():
        features = predictor.members[0].features(image)[0][0][:, :4, :5]
    assert sorted(plain.labels) == sorted(plain.classes[:2])
    found = located(plain, head, features, beam=1000)
    scores = window_scores(head, features, all_windows(), "multilabel")
    for name in plain.labels:
        (box,) = found.boxes[name]
        best = scores[:, plain.index_of(name)]
        assert box.score == pytest.approx(float(best.max()), abs=1e-5)
        x, y = plain.width / 5, plain.height / 4
        window = Window(*(round(v) for v in (box.y1 / y, box.x1 / x, box.y2 / y, box.x2 / x)))
        assert float(best[all_windows().index(window)]) == pytest.approx(box.score, abs=1e-5)
        assert found.points[name] == ((box.x1 + box.x2) / 2, (box.y1 + box.y2) / 2)
    absent = set(plain.classes) - set(plain.labels)
    assert all(found.points[name] == plain.points[name] for name in absent), "as the class map says"


def test_the_commands(
    tiny: Path, shapes_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], cache: Path
) -> None:
    flags = ["--device", "cpu", "--localize", "beam-search"]
    predict = ["predict", str(tiny), str(shapes_folder), "--split", "val", "--save", "none"]
    assert main([*predict, "--out", str(tmp_path / "found"), *flags]) == 0
    assert main([*predict, "--out", str(tmp_path / "maps"), "--device", "cpu"]) == 0
    rows, plain = (
        [json.loads(line) for line in (tmp_path / name / "predictions.jsonl").read_text().splitlines()]
        for name in ("found", "maps")
    )
    assert [row["scores"] for row in rows] == [row["scores"] for row in plain]
    assert any(row["labels"] for row in rows) and [row["boxes"] for row in rows] != [row["boxes"] for row in plain]
    for row in rows:
        for (box,) in row["boxes"].values():
            assert 0 <= box[0] < box[2] <= row["width"] and 0 <= box[1] < box[3] <= row["height"]
    capsys.readouterr()
    pointing = []
    for more in (flags, flags[:2]):
        assert main(["evaluate", str(tiny), str(shapes_folder), "--json", *more]) == 0
        pointing.append(json.loads(capsys.readouterr().out)["pointing"]["map"])
    assert all(0 <= one <= 1 for one in pointing)
    assert main([*predict, *flags, "--tile", "64"]) == 2
    assert "--localize beam-search searches one grid of features and does not take --tile 64" in capsys.readouterr().err
    assert main([*predict, *flags, "--sizes", "64,96"]) == 2
    assert "does not take 2 networks" in capsys.readouterr().err


def test_an_unknown_way(tiny: Path) -> None:
    with pytest.raises(ConfigError, match="localize='beam': give maps or beam-search"):
        load(tiny, "cpu", localize="beam")  # type: ignore[arg-type]
