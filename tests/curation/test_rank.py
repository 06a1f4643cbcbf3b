"""What to label next: the criteria against values worked out otherwise, and the command on real files."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.cli.conftest import command
from wildcat.curation.rank import disagreement, entropy, k_center_greedy, rank_images
from wildcat.errors import ConfigError
from wildcat.models.cascade import Cascade
from wildcat.models.member import Outputs
from wildcat.predictor import load

NOTHING = np.zeros((1, 1, 0, 0), np.float32)


def outputs(member_scores: list[list[float]]) -> Outputs:
    """The outputs of S networks for one image."""
    scores = np.asarray([member_scores], np.float32)
    return Outputs(scores.mean(axis=1), NOTHING, None, scores)


def test_entropy_is_relative_to_the_highest() -> None:
    assert entropy(np.full((1, 4), 0.25, np.float32), "multiclass") == pytest.approx([1])
    assert entropy(np.asarray([[0.9, 0.1]], np.float32), "multiclass") == pytest.approx([0.468996], abs=1e-5)
    assert entropy(np.asarray([[0.9, 0.5]], np.float32), "multilabel") == pytest.approx([(0.468996 + 1) / 2], abs=1e-5)
    assert entropy(np.asarray([[1.0, 0.0]], np.float32), "multilabel") == pytest.approx([0], abs=1e-9)


def test_disagreement_is_the_mutual_information() -> None:
    certain = 40.0
    assert disagreement(outputs([[certain], [-certain]]), "multilabel") == pytest.approx([1])  # contradiction
    assert disagreement(outputs([[0.0], [0.0]]), "multilabel") == pytest.approx([0])  # unsure, but of one opinion
    assert disagreement(outputs([[certain, 0], [0, certain]]), "multiclass") == pytest.approx([1])

    def h(p: float) -> float:
        return -p * math.log2(p) - (1 - p) * math.log2(1 - p)

    p, q = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(2))
    assert disagreement(outputs([[1.0], [-2.0]]), "multilabel") == pytest.approx([h((p + q) / 2) - (h(p) + h(q)) / 2])


def test_k_center_greedy_matches_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wildcat.curation.rank.BLOCK", 7)
    rng = np.random.default_rng(0)
    features, labelled = (rng.normal(size=(n, 5)).astype(np.float32) for n in (30, 4))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    labelled /= np.linalg.norm(labelled, axis=1, keepdims=True)
    known, remaining, expected = [*labelled], list(range(30)), []
    for _ in range(12):
        distance = {i: min(1 - float(features[i] @ row) for row in known) for i in remaining}
        best = max(remaining, key=lambda i: distance[i])
        expected.append((best, pytest.approx(distance[best], abs=1e-5)))
        known.append(features[best])
        remaining.remove(best)
    assert list(k_center_greedy(features, labelled, 12)) == expected
    alone = list(k_center_greedy(features, labelled[:0], 99))
    assert sorted(i for i, _ in alone) == list(range(30))
    assert alone[0][0] == int((features @ features.mean(axis=0)).argmax()) and alone[0][1] == 2
    assert [d for _, d in alone] == sorted((d for _, d in alone), reverse=True)


@pytest.fixture(scope="module")
def images(shapes_folder: Path) -> list[Path]:
    return sorted((shapes_folder / "JPEGImages").glob("*.jpg"))


def test_uncertainty_and_disagreement_of_a_run(tiny: Path, images: list[Path]) -> None:
    predictor = load(tiny, "cpu")
    ranked = rank_images(predictor, images)
    scores = {p.path: entropy(p.class_probs[None], "multilabel")[0] for p in predictor.predict(images)}
    assert [one.image for one in ranked] == sorted(scores, key=lambda name: -scores[name])
    assert [one.score for one in ranked] == pytest.approx([scores[one.image] for one in ranked], abs=1e-6)
    best = rank_images(predictor, images, "disagreement", count=1)[0]
    with torch.inference_mode():
        pixels = predictor.preprocess.normalise(predictor.prepare(best.image).inputs[0][None])
        views = [torch.sigmoid(predictor.model(view)).numpy() for view in (pixels, pixels.flip(-1))]
    expected = entropy((views[0] + views[1]) / 2, "multilabel") - sum(entropy(v, "multilabel") for v in views) / 2
    assert best.score == pytest.approx(expected[0], abs=1e-6) and best.score > 0


def test_the_second_stage_of_a_cascade_is_not_ignored(tiny: Path, images: list[Path]) -> None:
    predictor = load(tiny, "cpu")
    predictor.cascade = Cascade((None,), crops=2, weight=0.7)
    with pytest.raises(ConfigError, match=f"{tiny} is a cascade; by='uncertainty' looks at one stage") as caught:
        rank_images(predictor, images)
    assert f"{tiny}/base" in caught.value.hint
    assert len(rank_images(predictor, images[:3], "novelty")) == 3


def test_novelty_leaves_copies_for_the_end(tiny: Path, images: list[Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy.jpg"
    copy.write_bytes(images[0].read_bytes())
    ranked = rank_images(load(tiny, "cpu"), [*images[1:6], copy], "novelty", labelled=[images[0]])
    assert ranked[-1].image == str(copy) and ranked[-1].score == pytest.approx(0, abs=2e-3)
    assert ranked[0].score > 0.001


def test_the_command_prints_and_writes_a_ranking(
    tiny: Path, images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.jpg").write_bytes(images[0].read_bytes()[:500])
    files = [*images[:5], tmp_path / "broken.jpg"]
    assert command("rank", tiny, *files, "--count", 2, "--json") == 0
    printed = capsys.readouterr()
    rows = [json.loads(line) for line in printed.out.splitlines()]
    assert [row["rank"] for row in rows] == [1, 2] and rows[0]["uncertainty"] >= rows[1]["uncertainty"]
    assert "1 of 6 images could not be read" in printed.err
    assert command("rank", tiny, *files, "--count", 2, "--out", tmp_path / "next.csv") == 0
    with (tmp_path / "next.csv").open(encoding="utf-8") as file:
        assert [row["file"] for row in csv.DictReader(file)] == [row["file"] for row in rows]
    novel = ("--by", "novelty", "--labelled", images[0], "--labelled", images[1])
    assert command("rank", tiny, *images[:5], *novel, "--out", tmp_path / "next.jsonl") == 0
    named = {json.loads(line)["image"] for line in (tmp_path / "next.jsonl").read_text(encoding="utf-8").splitlines()}
    assert named == {path.name for path in images[2:5]}


def test_labelled_images_are_recognised_by_any_path_and_not_counted(
    tiny: Path, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(images[0].parent)
    (tmp_path / "link.jpg").symlink_to(images[1])
    known = ("--by", "novelty", "--labelled", images[0].name, "--labelled", tmp_path / "link.jpg")
    out = tmp_path / "new" / "next.jsonl"
    assert command("rank", tiny, *images[:6], *known, "--limit", 2, "--out", out) == 0
    files = {json.loads(line)["file"] for line in out.read_text(encoding="utf-8").splitlines()}
    assert files == {str(path) for path in images[2:4]}


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (("--count", "-1"), 2, "--count -1: give at least 0."),
        (("--labelled", "IMAGE"), 2, "--by uncertainty does not compare images with labelled ones."),
        (("--out", "next.txt"), 2, "next.txt: a ranking is written as .csv or .jsonl."),
        (("--out", "IMAGE.csv"), 1, "exists and is never overwritten"),
    ],
)
def test_wrong_settings_are_refused(
    tiny: Path,
    images: list[Path],
    tmp_path: Path,
    flags: tuple[str, str],
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    taken = tmp_path / "taken.csv"
    taken.write_text("", encoding="utf-8")
    given = [{"IMAGE": images[0], "IMAGE.csv": taken}.get(word, word) for word in flags]
    assert command("rank", tiny, images[1], *given) == code
    assert message in capsys.readouterr().err
    with pytest.raises(ConfigError, match="by='novel': give uncertainty, disagreement or novelty"):
        rank_images(load(tiny, "cpu"), [images[0]], "novel")  # type: ignore[arg-type]
