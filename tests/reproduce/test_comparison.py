"""Comparing methods by cross-validation: the folds, the test of differences, and what is recommended."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

import wildcat.train.feature_cache
from wildcat.cli import main
from wildcat.config import TrainConfig
from wildcat.data import DataSet, Sample, open_dataset
from wildcat.data.cache import cache_folder
from wildcat.data.dataset import cross_validation, one_label
from wildcat.errors import ConfigError, DataError
from wildcat.reproduce import runner
from wildcat.reproduce.comparison import Comparison, check_comparison, compare, method_config, summarize
from wildcat.reproduce.experiments import Row
from wildcat.reproduce.heads import compute_features, train_head
from wildcat.reproduce.runner import CellSpec, run_cell
from wildcat.settings import load_recipe
from wildcat.train.feature_cache import cached_features

pytestmark = pytest.mark.usefixtures("cache")

SIDE = 128  # pixels: maps of 4 x 4 cells
METHODS, FOLDS = ("deepmil", "gap-a", "gap-b"), 3


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with few or many equal squares: the average tells them apart, the highest region cannot."""
    root, rng = tmp_path_factory.mktemp("data") / "squares", np.random.default_rng(0)
    for name, count in (("few", (1, 3)), ("many", (9, 16))):
        (root / "train" / name).mkdir(parents=True)
        for i in range(15):
            image = np.full((SIDE, SIDE, 3), 40, np.uint8)
            for cell in rng.permutation(16)[: rng.integers(*count)]:
                y, x = divmod(int(cell), 4)
                image[32 * y + 4 : 32 * y + 28, 32 * x + 4 : 32 * x + 28] = 220
            Image.fromarray(image).save(root / "train" / name / f"{i}.png")
    return root


def small(weights: str, **settings: Any) -> TrainConfig:
    settings = {"backbone": "test_resnet", "image_size": SIDE, "epochs": 2, "workers": 0, "device": "cpu"} | settings
    return dataclasses.replace(load_recipe("reproduce"), weights=weights, **settings)


@pytest.fixture(scope="module")
def compared(
    squares: Path, weights: str, cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path]:
    """The summary of `METHODS` on `squares`, and its folder; read only."""
    out = tmp_path_factory.mktemp("out")
    return compare(Comparison(METHODS, small(weights), FOLDS), open_dataset(squares), out), out


# --- measured ---------------------------------------------------------------------------------------------------------


def test_a_method_that_is_worse_is_found_and_equal_ones_are_not(compared: tuple[dict[str, Any], Path]) -> None:
    """Averaging, then classifying is the same model as classifying, then averaging."""
    summary, out = compared
    best, equal, worse = summary["methods"].values()
    assert [*summary["methods"]] == ["gap-a", "gap-b", "deepmil"]
    assert best["p"] is None and equal["p"] == 1 and equal["metrics"] == best["metrics"]
    assert worse["p"] < 0.05 and worse["difference"] < -0.2
    assert summary["recommended"] == "gap-a"
    assert "gap-b is within noise (p >= 0.05)" in summary["recommendation"][0]
    assert summary["metrics"] == ["accuracy"], "no class mean of balanced classes, no points without boxes"
    assert json.loads((out / "comparison.json").read_text()) == summary


def test_all_methods_have_the_same_folds(compared: tuple[dict[str, Any], Path]) -> None:
    cells = [json.loads(path.read_text()) for path in (compared[1] / "cells").glob("*.json")]
    assert len(cells) == len(METHODS) * FOLDS
    images = Counter(cell["images"] for cell in cells)
    assert len(images) == FOLDS and set(images.values()) == {len(METHODS)}


def test_a_second_run_measures_nothing_and_prints_a_table(
    compared: tuple[dict[str, Any], Path],
    squares: Path,
    weights: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a finished fold was run again")

    monkeypatch.setattr(runner, "train_and_evaluate", never)
    flags = ["--methods", ",".join(METHODS), "--folds", str(FOLDS), "--backbone", "test_resnet", "--weights", weights]
    flags += ["--image-size", str(SIDE), "--epochs", "2", "--workers", "0", "--device", "cpu", "--classes", "few,many"]
    line = ["compare", str(squares), "--out", str(compared[1]), *flags]
    assert main(line) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "squares (folder, multiclass): 2 classes, 30 images of train in 3 folds; device cpu"
    assert printed[1].split()[:4] == ["method", "accuracy", "%", "difference"]
    assert [line.split()[0] for line in printed[2:5]] == ["gap-a", "gap-b", "deepmil"]
    assert printed[-1].startswith(f"Next: wildcat train {squares} --out runs/gap-a --recipe head --method gap-a ")
    assert "--val-split none" in printed[-1] and printed[-1].endswith("--classes few,many")
    assert main([*line, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["methods"] == compared[0]["methods"]
    assert summary["command"] == printed[-1].removeprefix("Next: ")


def test_features_are_computed_once_and_standardised_by_the_training_folds(
    squares: Path, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WILDCAT_CACHE", str(tmp_path / "cache"))
    data, config = open_dataset(squares), method_config(small(weights, epochs=1), "gap-a")
    compute_features(data.split("train"), config)

    def never(*_: Any) -> None:
        raise AssertionError("features were computed again")

    monkeypatch.setattr(wildcat.train.feature_cache, "_compute_shards", never)
    folds = cross_validation(data, "train", 2)
    config = dataclasses.replace(config, train_split="fold1-train")
    assert run_cell(CellSpec(Row("a", {}), config, folds, "fold1-test"), tmp_path)["metrics"]["accuracy"] >= 0
    predictor = train_head(folds, config)

    def mean(split: str) -> torch.Tensor:
        samples, cached = folds.split(split), cache_folder() / "features"
        features = cached_features(predictor.model.backbone, samples, predictor.preprocess, config.flip, cached)
        views = [features.batch(range(len(samples)), [view] * len(samples)) for view in range(2)]
        return torch.cat(views).mean(dim=(0, 2, 3))

    torch.testing.assert_close(predictor.model.transfer.mean.flatten(), mean("fold1-train"))
    assert not torch.allclose(mean("fold1-test"), mean("fold1-train"), rtol=1e-3)


def test_points_and_masks_are_measured_where_the_data_has_them(
    shapes: DataSet, shapes_folder: Path, weights: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["compare", str(shapes_folder), "--methods", "gap-a,netvlad", "--folds", "2", "--weights", weights, "--json"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wildcat.nn.heads.netvlad.SIZE", 4)
        flags = ["--backbone", "test_resnet", "--image-size", "64", "--epochs", "1", "--workers", "0"]
        assert main([*line, *flags, "--device", "cpu"]) == 0
    shown = capsys.readouterr()
    summary = json.loads(shown.out)
    assert summary["metrics"] == ["map", "point_ap", "miou"]
    assert {*summary["methods"]["gap-a"]["metrics"]} == {"map", "point_ap", "miou"}
    assert {*summary["methods"]["netvlad"]["metrics"]} == {"map"}
    assert "note: val is left untouched: evaluate the model that you train on it." in shown.err


# --- what follows from the values of the folds ------------------------------------------------------------------------


def multiclass(*counts: int) -> DataSet:
    """Data with so many images of each class."""
    labels = [one_label(c, len(counts)) for c, count in enumerate(counts) for _ in range(count)]
    samples = [Sample(str(i), Path(str(i)), row) for i, row in enumerate(labels)]
    names = tuple("abcdefgh"[: len(counts)])
    return DataSet("toy", "folder", Path("toy"), names, "multiclass", {"train": lambda: samples})


def summary_of(values: dict[str, list[float]], data: DataSet | None = None, **others: list[float]) -> dict[str, Any]:
    """`summarize` of accuracies per method and fold; `others`: another metric of the methods with maps."""
    folds = len(next(iter(values.values())))
    records = {
        name: [
            {"metrics": {"accuracy": a, "class_mean_accuracy": a} | {m: v[i] for m, v in others.items()}, "seconds": 1}
            for i, a in enumerate(row)
        ]
        for name, row in values.items()
    }
    plan = Comparison(tuple(values), load_recipe("reproduce"), folds)
    return summarize(plan, data or multiclass(30, 30), records)


BEST, NEAR, FAR = [0.90, 0.92, 0.91, 0.93, 0.90], [0.91, 0.90, 0.92, 0.91, 0.90], [0.80, 0.83, 0.80, 0.84, 0.80]


def test_p_values_are_those_of_the_corrected_test_with_holm() -> None:
    summary = summary_of({"weldon": BEST, "gap-a": NEAR, "deepmil": FAR})

    def p(values: list[float]) -> float:
        d = np.subtract(values, BEST)
        t = d.mean() / (d.std(ddof=1) * math.sqrt(1 / 5 + 1 / 4))  # a fold tests a quarter of what it trains on
        return float(2 * stats.t.sf(abs(t), df=4))

    found = {name: row["p"] for name, row in summary["methods"].items()}
    assert found == {"weldon": None, "gap-a": pytest.approx(p(NEAR)), "deepmil": pytest.approx(2 * p(FAR))}
    assert summary["recommendation"] == [
        "weldon is best (accuracy 91.2 ± 1.3 %); gap-a is within noise (p >= 0.05): choose by what else you need."
    ]
    assert summary["methods"]["deepmil"]["difference"] == pytest.approx(-0.098)


@pytest.mark.parametrize(
    ("values", "chosen", "says"),
    [
        ({"netvlad": BEST, "wildcat": NEAR}, "wildcat", "wildcat gives maps, from which points and masks follow."),
        ({"wildcat": BEST, "weldon": NEAR}, "weldon", "weldon is simpler."),
        ({"weldon": BEST, "deepmil": NEAR}, "weldon", "deepmil is within noise"),
        ({"netvlad": BEST, "gap-a": FAR}, "netvlad", "the others are worse by more than noise (p < 0.05)."),
    ],
)
def test_the_simplest_with_maps_of_those_within_noise_is_recommended(
    values: dict[str, list[float]], chosen: str, says: str
) -> None:
    summary = summary_of(values)
    assert summary["recommended"] == chosen
    assert says in " ".join(summary["recommendation"])


def test_few_images_are_not_tested() -> None:
    summary = summary_of({"weldon": BEST, "deepmil": FAR}, multiclass(30, 9))
    assert summary["methods"]["deepmil"]["p"] is None
    assert summary["recommendation"][0] == (
        "Too few images to tell differences from noise: class 'b' has 9, and 5 folds need 10."
    )
    assert summary["metrics"] == ["accuracy", "class_mean_accuracy"], "the classes are not balanced"


def test_two_folds_are_not_tested() -> None:
    """Equal differences in both folds would give p = 0, and accuracies of few images are often equal."""
    summary = summary_of({"weldon": [0.9, 0.8], "deepmil": [0.8, 0.7]})
    assert summary["methods"]["deepmil"]["p"] is None
    assert summary["recommendation"][0] == "Too few folds to tell differences from noise: give at least --folds 3."


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("methods", "folds", "settings", "says"),
    [
        (("weldn", "gap-a"), 5, {}, "no method 'weldn'.\ndid you mean weldon"),
        (("weldon",), 5, {}, "methods=weldon: give at least two methods, each once."),
        (("weldon", "weldon"), 5, {}, "methods=weldon,weldon: give at least two methods, each once."),
        (("weldon", "gap-a"), 1, {}, "folds=1: give at least 2"),
        (("weldon", "gap-a"), 5, {"num_maps": 8}, "num_maps=8: the methods define it.\nLeave out --num-maps."),
        (("weldon", "gap-a"), 5, {"tune": "all"}, "tune=all: methods are compared as heads on cached features."),
        (("weldon", "gap-a"), 5, {"val_split": "val"}, "val_split=val: no epoch is chosen"),
        (("weldon", "netvlad"), 3, {}, "netvlad computes 64 clusters, and there are 40 .*\nLeave netvlad out of --met"),
        (("weldon", "mop-cnn"), 3, {"image_size": 64}, "mop-cnn .*\nLeave mop-cnn out of --methods."),
    ],
)
def test_what_cannot_be_compared(methods: tuple[str, ...], folds: int, settings: dict[str, Any], says: str) -> None:
    config = dataclasses.replace(load_recipe("reproduce"), backbone="test_resnet", **({"image_size": 64} | settings))
    with pytest.raises(ConfigError, match=says):
        check_comparison(Comparison(methods, config, folds), multiclass(30, 30))


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        ((30, 4), "class 'b' has 4 images in train, fewer than the 5 folds.\nGive --folds 4, or add images of it"),
        ((30, 1), "class 'b' has 1 image in train, fewer than the 5 folds.\nAdd images of it, or leave it out"),
        ((30, 30, 0), "class 'c' has 0 images in train"),
        ((30,), "have the same label"),
        ((), "none of the 4 images of train of toy has a label"),
    ],
)
def test_labels_that_cannot_be_divided(counts: tuple[int, ...], says: str) -> None:
    data = multiclass(*counts)
    if not counts:
        samples = [Sample(str(i), Path(str(i)), np.array([-1], np.int8)) for i in range(4)]
        data = dataclasses.replace(data, classes=("a",), task="multilabel", readers={"train": lambda: samples})
    config = dataclasses.replace(load_recipe("reproduce"), backbone="test_resnet", image_size=64)
    with pytest.raises(DataError, match=says):
        check_comparison(Comparison(("weldon", "gap-a"), config), data)


def test_rare_labels_of_multi_label_data_are_noted() -> None:
    labels = np.array([[1, -1, -1]] * 20 + [[-1, 1, -1]] * 20 + [[-1, 1, 1]] * 3, np.int8)
    samples = [Sample(str(i), Path(str(i)), row) for i, row in enumerate(labels)]
    data = DataSet("toy", "csv", Path("toy"), ("a", "b", "c"), "multilabel", {"train": lambda: samples})
    config = dataclasses.replace(load_recipe("reproduce"), backbone="test_resnet", image_size=64)
    notes = check_comparison(Comparison(("weldon", "gap-a"), config), data)
    assert any(note.startswith("'c': fewer images than folds") for note in notes)
    only_rare = dataclasses.replace(data, readers={"train": lambda: samples[-6:]}, _cache={})
    with pytest.raises(DataError, match="class 'b' has 6 images in train, fewer than the 7 folds"):
        check_comparison(Comparison(("weldon", "gap-a"), config, 7), only_rare)


def test_a_fold_that_has_all_images_without_the_label_is_named() -> None:
    samples = [Sample(str(i), Path(str(i)), np.array([1 if i else -1], np.int8)) for i in range(11)]
    data = DataSet("toy", "csv", Path("toy"), ("dog",), "multilabel", {"train": lambda: samples})
    config = dataclasses.replace(load_recipe("reproduce"), backbone="test_resnet", image_size=64)
    says = r"all 8 images of train without fold 1 of toy have the same label .*\nAdd images without.*; or .* --folds\."
    with pytest.raises(DataError, match=says):
        check_comparison(Comparison(("weldon", "gap-a"), config), data)


def test_an_interrupted_comparison_says_how_to_continue(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("wildcat.reproduce.comparison.compute_features", stopped)
    line = ["compare", str(squares), "--backbone", "test_resnet", "--image-size", "64", "--device", "cpu"]
    assert main([*line, "--out", str(tmp_path / "out")]) == 130
    assert "interrupted. Give the same command again: it continues where it was." in capsys.readouterr().err
    assert main(line) == 130
    assert "Give the same command" not in capsys.readouterr().err
    assert main([*line, "--out", str(squares)]) == 1, "a folder of other files"
    assert f"{squares} exists and is never overwritten." in capsys.readouterr().err
