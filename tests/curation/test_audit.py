"""The audit finds what was made wrong on purpose: flipped labels, altered copies, broken files."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from tests.cli.conftest import command
from wildcat.curation.audit import Audit
from wildcat.curation.copies import near_duplicates, read_images
from wildcat.curation.labels import Judgement, judge_labels, label_quality
from wildcat.data.dataset import DataSet, Sample
from wildcat.data.readers.synthetic import write_shapes

pytestmark = pytest.mark.usefixtures("cache")


def scene(seed: int, size: tuple[int, int] = (96, 72)) -> Image.Image:
    """A smooth random image."""
    noise = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(1))


# --- copies and unreadable files --------------------------------------------------------------------------------------


def test_altered_copies_are_found_and_other_images_are_not(tmp_path: Path) -> None:
    original = scene(0)
    altered = {
        "half.png": original.resize((48, 36)),
        "compressed.jpg": original,
        "mirrored.png": original.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        "brighter.png": ImageEnhance.Brightness(original).enhance(1.3),
        "grey.png": original.convert("L"),
        "trimmed.png": original.crop((2, 1, 94, 71)),
    }
    images = {"original.png": original, **{f"other-{i}.png": scene(i) for i in range(1, 9)}, **altered}
    for name, image in images.items():
        image.save(tmp_path / name, **({"quality": 20} if name.endswith("jpg") else {}))
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "compressed.jpg").read_bytes()[:600])
    names = [*images, "cut.jpg", "missing.png"]
    samples = [Sample(name, tmp_path / name, np.ones(1, np.int8)) for name in names]
    differences, errors = read_images(samples)
    assert [names[i] for i in errors] == ["cut.jpg", "missing.png"]
    splits = ["train"] * (len(images) - len(altered)) + ["val"] * len(altered) + ["train"] * 2
    pairs = near_duplicates(differences, splits)
    across = {names[p.image]: names[p.original] for p in pairs if splits[p.image] != splits[p.original]}
    assert across == dict.fromkeys(altered, "original.png")
    assert {names[i] for p in pairs for i in p[:2]} == {"original.png", *altered}
    assert [p.similarity for p in pairs] == sorted((p.similarity for p in pairs), reverse=True)


def test_equal_images_have_a_similarity_of_1_even_without_any_detail(tmp_path: Path) -> None:
    images = [scene(i) for i in range(20)] + [Image.new("RGB", (9, 9), "black"), Image.linear_gradient("L")]
    samples = []
    for name in (f"{copy}{i}.png" for copy in "ab" for i in range(len(images))):
        images[int(name[1:-4])].save(tmp_path / name)
        samples.append(Sample(name, tmp_path / name, np.ones(1, np.int8)))
    samples.append(Sample("missing.png", tmp_path / "missing.png", np.ones(1, np.int8)))
    pairs = near_duplicates(read_images(samples)[0], ["all"] * len(samples), 1)
    assert sorted(pair[:2] for pair in pairs) == [(i + len(images), i) for i in range(len(images))]


def test_near_duplicates_match_a_loop_over_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wildcat.curation.copies.BLOCK", 7)
    rng = np.random.default_rng(0)
    values = rng.normal(size=(30, 2, 6)).astype(np.float32)
    values /= np.linalg.norm(values, axis=2, keepdims=True)
    groups = rng.integers(0, 2, 30).tolist()
    expected = set()
    for i in range(30):
        for same in (True, False):
            before = [j for j in range(i) if (groups[i] == groups[j]) == same]
            alike = {j: max(float(values[i, v] @ values[j, 0]) for v in (0, 1)) for j in before}
            best = max(alike, key=lambda j: alike[j], default=-1)
            if best >= 0 and alike[best] >= 0.7:
                expected.add((i, best))
    assert {pair[:2] for pair in near_duplicates(values, groups, 0.7)} == expected and len(expected) > 5


# --- suspect labels ---------------------------------------------------------------------------------------------------


def test_flipped_labels_come_first_and_ignored_ones_never() -> None:
    pytest.importorskip("cleanlab", reason="needs cleanlab (the extra audit)")
    rng = np.random.default_rng(0)
    truth = np.where(rng.random((200, 3)) < 0.4, 1, -1).astype(np.int8)
    probs = np.clip(np.where(truth == 1, 0.9, 0.1) + rng.normal(scale=0.05, size=truth.shape), 0.01, 0.99)
    given = truth.copy()
    flipped = rng.permutation(200)[:20]
    given[flipped, 1] *= -1
    given[~np.isin(np.arange(200), flipped), 2] = rng.choice([-1, 0, 1], 180, p=[0.0, 1.0, 0.0])
    found = judge_labels(given, probs.astype(np.float32), "multilabel")
    assert set(found.ranking()[:20]) == set(flipped)
    assert not found.suspect[given == 0].any() and (found.quality[given == 0] == 1).all()
    exclusive = rng.integers(0, 3, 200)
    wrong = exclusive.copy()
    wrong[flipped] = (exclusive[flipped] + 1) % 3
    labels = np.where(np.arange(4) == wrong[:, None], 1, -1).astype(np.int8)  # no image has the fourth class
    shares = np.full((200, 4), 0.02, np.float32)
    shares[np.arange(200), exclusive] = 0.94
    found = judge_labels(labels, shares, "multiclass")
    assert set(found.ranking()[:20]) == set(flipped)
    assert [np.flatnonzero(row).tolist() for row in found.suspect[flipped]] == [
        sorted((int(exclusive[i]), int(wrong[i]))) for i in flipped
    ]


def test_quality_worked_by_hand() -> None:
    labels = np.asarray([[1], [-1], [-1], [0], [-1]], np.int8)  # one label is present, three are absent
    probs = np.asarray([[0.2], [0.5], [0.75], [0.9], [0.0]], np.float32)
    odds_of_wrong = [(1 / 3) * 0.8 / 0.2, 1.0, 3.0, 0.0, 0.0]
    assert label_quality(labels, probs, "multilabel")[:, 0] == pytest.approx(
        [1 / (1 + w) for w in odds_of_wrong], abs=1e-6
    )
    exclusive = label_quality(np.asarray([[1, -1]], np.int8), np.asarray([[0.3, 0.7]], np.float32), "multiclass")
    assert exclusive[0] == pytest.approx([0.3, 1.0])


def test_an_image_without_known_labels_gets_no_advice() -> None:
    labels = np.asarray([[0, 0], [1, 0]], np.int8)
    samples = tuple(Sample(name, Path(name), row) for name, row in zip("ab", labels, strict=True))
    probs = np.asarray([[0.9, 0.9], [0.1, 0.5]], np.float32)
    judgement = Judgement(label_quality(labels, probs, "multilabel"), np.zeros((2, 2), bool))
    data = DataSet("d", "csv", Path(), ("x", "y"), "multilabel", {})
    audit = Audit(data, samples, ("all", "all"), {}, [], (0, 1), probs, judgement, [])
    assert [audit.doubtful(i) for i in (0, 1)] == [([], []), ([0], [])]
    assert [row["image"] for row in audit.suspects()] == ["b", "a"]


@pytest.fixture(scope="module")
def devkit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 and 10 images; one of val is a copy of one of train, one is cut off."""
    folder = write_shapes(tmp_path_factory.mktemp("data") / "shapes", train=30, val=10, size=(64, 64))
    images = folder / "JPEGImages"
    copied, cut = (images / f"{number:06}.jpg" for number in (35, 36))
    copied.write_bytes((images / "000003.jpg").read_bytes())
    cut.write_bytes(cut.read_bytes()[:700])
    return folder


def small(weights: str) -> tuple[str, ...]:
    """Flags of a head that trains in a moment."""
    return ("--backbone", "test_resnet", "--weights", weights, "--image-size", "64", "--epochs", "2", "--folds", "3")


def test_the_command_writes_tables_and_a_page(
    devkit: Path, weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("cleanlab", reason="needs cleanlab (the extra audit)")
    out = tmp_path / "audit"
    assert command("audit", devkit, "--json", "--out", out, *small(weights)) == 0
    written = capsys.readouterr()
    found: dict[str, Any] = json.loads(written.out)
    assert "judging labels" in written.err and "loss" not in written.err, "no line for each epoch of each fold"
    assert found["images"] == {"train": 30, "val": 10}
    assert [row["image"] for row in found["unreadable"]] == ["000036"]
    first = found["duplicates"][0]
    assert (first["image"], first["copy_of"], first["split"], first["copy_of_split"]) == (
        "000035",
        "000003",
        "val",
        "train",
    )
    assert first["similarity"] == 1
    assert len({row["image"] for row in found["suspects"]}) == len(found["suspects"]) == 39
    assert all(row["remove"] or row["add"] for row in found["suspects"])
    assert all(
        set(row["remove"]) <= set(row["labels"]) and not set(row["add"]) & set(row["labels"])
        for row in found["suspects"]
    )
    flags = [row["suspect"] for row in found["suspects"]]
    assert flags == sorted(flags, reverse=True)
    for name in ("suspects", "duplicates", "unreadable", "classes"):
        rows = list(csv.DictReader((out / f"{name}.csv").open(encoding="utf-8")))
        key = "class" if name == "classes" else "image"
        assert [row[key] for row in rows] == [row[key] for row in found[name]]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "000036" in page and "Similar images" in page
    assert command("audit", devkit, "--out", out, *small(weights)) == 1
    assert "exists and is never overwritten" in capsys.readouterr().err


def test_a_method_without_class_maps_writes_the_tables(
    devkit: Path, weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("cleanlab", reason="needs cleanlab (the extra audit)")
    out = tmp_path / "audit"
    head = ("--head", "netvlad", "--num-maps", "1", "--head-size", "4")
    assert command("audit", devkit, "--json", "--out", out, *small(weights), *head) == 0
    suspects = sum(row["suspect"] for row in json.loads(capsys.readouterr().out)["suspects"])
    assert len(list(csv.DictReader((out / "suspects.csv").open(encoding="utf-8")))) == 39
    assert f"40, {suspects} with a suspect label" in (out / "report.html").read_text(encoding="utf-8")


def test_exclusive_classes_and_hostile_names(weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("cleanlab", reason="needs cleanlab (the extra audit)")
    for number, name in enumerate(("a&<b>", "c;d", "e")):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        for i in range(8):
            scene(100 * number + i).save(folder / f"<i>{i}.png")
    out = tmp_path / "audit"
    assert command("audit", tmp_path / "data", "--splits", "all", "--json", "--out", out, *small(weights)) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["task"] == "multiclass" and found["images"] == {"all": 24}
    for row in found["suspects"]:
        assert len(row["labels"]) == 1 and list(row["remove"]) == row["labels"]
        assert len(row["add"]) == 1 and [*row["add"]] != row["labels"]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "a&amp;&lt;b&gt;" in page and "<i>" not in page and "<b>" not in page.split("<script")[0]


# --- bad input --------------------------------------------------------------------------------------------------------


def test_without_cleanlab_it_says_what_to_install(
    devkit: Path, weights: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "cleanlab.filter", None)
    assert command("audit", devkit, *small(weights)) == 1
    assert "pip install 'wildcat-vision[audit]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (("--similarity", "0"), 2, "--similarity 0.0: give a number above 0 and up to 1."),
        (("--folds", "1"), 2, "--folds 1: 39 of 40 images can be read; give 2 to that number."),
        (("--folds", "40"), 2, "--folds 40: 39 of 40 images can be read"),
        (("--splits", "train,vla"), 1, "has no split 'vla'"),
        (("--out", "new", "--max-mb", "600"), 2, "--max-mb 600: give megabytes above 0 and up to 500."),
        (("--out", "new", "--examples", "-1"), 2, "--examples -1: give 0 or more."),
        (("--limit", "-1"), 2, "--limit -1: give at least 0."),
        (("--tune", "all"), 2, "--tune all: an audit trains heads on cached features."),
        (("--train-split", "val"), 2, "--train-split val: an audit divides its images into folds."),
        (("--weights", "hf://ann/tiny"), 2, "--weights hf://ann/tiny: a run has a head already."),
    ],
)
def test_wrong_settings_are_refused(
    devkit: Path,
    weights: str,
    flags: tuple[str, ...],
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("wildcat.curation.audit.require_cleanlab", lambda: None)
    assert command("audit", devkit, *small(weights), *flags) == code
    said = capsys.readouterr()
    assert message in said.err and "pairs of similar images" not in said.out
