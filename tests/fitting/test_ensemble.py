"""Ensembles: scores combined by a linear layer or averaged, maps averaged, a model folder like any other."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional

import wildcat
from wildcat.cli import main
from wildcat.config import TrainConfig
from wildcat.data import DataSet
from wildcat.errors import ConfigError, DataError, RunError
from wildcat.evaluation import evaluate
from wildcat.fitting.ensemble import create_ensemble, fit_combination
from wildcat.models.folder import COMBINATION, Combination, Model, open_model
from wildcat.models.manifest import MANIFEST
from wildcat.models.member import Member, on_finest_grid
from wildcat.models.run import WEIGHTS, create_run, open_run, save_weights
from wildcat.nn.factory import model_from_config
from wildcat.prediction import score_probabilities
from wildcat.predictor import Predictor


@pytest.fixture(scope="module")
def runs(shapes: DataSet, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Model]:
    """A trained and a random network, of two input sizes."""
    config = TrainConfig(backbone="test_resnet", weights="none", image_size=96)
    other = create_run(tmp_path_factory.mktemp("runs") / "96", config, shapes, "shapes")
    torch.manual_seed(0)
    save_weights(model_from_config(config, 5), other.folder / WEIGHTS)
    return [open_model(tiny), open_model(other.folder)]


def image(seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (70, 110, 3), dtype=np.uint8)


# --- merging scores and maps ------------------------------------------------------------------------------------------


def test_averaged_scores_and_maps_are_those_of_the_members(runs: list[Model], tmp_path: Path) -> None:
    create_ensemble(tmp_path / "both", runs, "average")
    together = wildcat.load(tmp_path / "both", "cpu").predict(image())
    alone = [wildcat.load(run.folder, "cpu").predict(image()) for run in runs]
    np.testing.assert_allclose(together.class_scores, np.mean([p.class_scores for p in alone], axis=0), atol=1e-5)
    size = alone[1].class_maps.shape[-2:]
    assert alone[0].class_maps.shape[-2:] != size, "the members see the image on grids of their own"
    coarse = functional.interpolate(torch.from_numpy(alone[0].class_maps)[None], size, mode="bilinear")[0].numpy()
    np.testing.assert_allclose(together.class_maps, (coarse + alone[1].class_maps) / 2, atol=1e-5)
    assert together.modality_maps is not None
    np.testing.assert_allclose(together.modality_maps[:, 0], coarse, atol=1e-5)
    np.testing.assert_allclose(together.modality_maps.mean(axis=1), together.class_maps, atol=1e-5)


def test_a_combination_multiplies_all_scores_of_all_members() -> None:
    rng = np.random.default_rng(1)
    weight, bias, scores = rng.normal(size=(2, 6)), rng.normal(size=2), rng.normal(size=(5, 3, 2))
    combined = Combination(weight.astype(np.float32), bias.astype(np.float32))(scores.astype(np.float32))
    for b in range(5):
        for c in range(2):
            expected = bias[c] + sum(weight[c, s * 2 + k] * scores[b, s, k] for s in range(3) for k in range(2))
            assert combined[b, c] == pytest.approx(expected, abs=1e-4)


def test_the_modality_maps_of_the_only_member_with_maps_are_kept(
    runs: list[Model], shapes: DataSet, tmp_path: Path
) -> None:
    config = replace(runs[1].runs[0].config, head="netvlad", head_size=4, num_maps=1)
    other = create_run(tmp_path / "netvlad", config, shapes, "shapes")
    save_weights(model_from_config(config, 5), other.folder / WEIGHTS)
    create_ensemble(tmp_path / "both", [open_model(other.folder), runs[0]], "average")
    found = wildcat.load(tmp_path / "both", "cpu").predict(image(), modalities=True)
    alone = wildcat.load(runs[0].folder, "cpu").predict(image(), modalities=True)
    name = found.classes[0]
    np.testing.assert_allclose(found.modalities(name), alone.modalities(name), atol=1e-5)


def test_images_held_out_for_val_do_not_train_the_combination(
    runs: list[Model], shapes: DataSet, tmp_path: Path
) -> None:
    data = replace(shapes, readers={"train": shapes.readers["train"]}, _cache={})
    create_ensemble(tmp_path / "linear", runs, "linear", data, device="cpu")
    fitted = json.loads((tmp_path / "linear" / MANIFEST).read_text())["fitted"]
    assert fitted["images"] == len(data.split("train")) - len(data.split("val")) < len(data.split("train"))
    for model in runs:
        shutil.copytree(model.folder, tmp_path / model.folder.name)
        config = tmp_path / model.folder.name / "config.yaml"
        config.write_text(config.read_text().replace("val_split: val", "val_split: none"))
    whole = [open_model(tmp_path / model.folder.name) for model in runs]
    create_ensemble(tmp_path / "whole", whole, "linear", data, device="cpu")
    assert json.loads((tmp_path / "whole" / MANIFEST).read_text())["fitted"]["images"] == len(data.split("train"))


def test_finest_grid_leaves_the_finest_maps_alone() -> None:
    fine, coarse = torch.rand(1, 2, 6, 4), torch.rand(1, 2, 3, 2)
    resized = on_finest_grid([coarse, fine])
    assert resized[1] is fine
    assert resized[0].shape == fine.shape


def test_sizes_average_one_network_over_input_sizes(runs: list[Model]) -> None:
    both = wildcat.load(runs[0].folder, "cpu", sizes=(64, 128)).predict(image())
    alone = [wildcat.load(runs[0].folder, "cpu", sizes=(size,)).predict(image()) for size in (64, 128)]
    np.testing.assert_allclose(both.class_scores, np.mean([p.class_scores for p in alone], axis=0), atol=1e-5)
    assert both.class_maps.shape == alone[1].class_maps.shape


# --- the linear classifier --------------------------------------------------------------------------------------------


def noisy_members(count: int = 400) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """Scores of a good member and of a random one, for three classes."""
    rng = np.random.default_rng(3)
    labels = np.where(rng.random((count, 3)) < 0.4, 1, -1).astype(np.int8)
    good = labels + rng.normal(size=labels.shape)
    return np.stack([good, 2 * rng.normal(size=labels.shape)], axis=1).astype(np.float32), labels


def test_the_linear_classifier_equals_logistic_regression() -> None:
    """Without regularisation it equals scikit-learn's, one class at a time."""
    from sklearn.linear_model import LogisticRegression

    scores, labels = noisy_members()
    fitted = fit_combination(scores, labels, "multilabel", strength=0)
    flat = scores.reshape(len(scores), -1)
    for c in range(3):
        oracle = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000).fit(flat, labels[:, c] > 0)
        np.testing.assert_allclose(fitted.weight[c], oracle.coef_[0], atol=2e-3)
        assert fitted.bias[c] == pytest.approx(oracle.intercept_[0], abs=2e-3)


def test_it_weights_the_better_member_and_strong_regularisation_averages() -> None:
    scores, labels = noisy_members()
    fitted = fit_combination(scores, labels, "multilabel", strength=0.01)
    for c in range(3):
        assert fitted.weight[c, c] > 5 * abs(fitted.weight[c, 3 + c])
    pulled = fit_combination(scores, labels, "multilabel", strength=1e6)
    np.testing.assert_allclose(pulled.weight, np.tile(np.eye(3), 2) / 2, atol=1e-3)


def test_ignored_labels_have_no_effect() -> None:
    scores, labels = noisy_members()
    labels[:100] = 0
    all_of_it = fit_combination(scores, labels, "multilabel")
    known = fit_combination(scores[100:], labels[100:], "multilabel")
    np.testing.assert_allclose(all_of_it.weight, known.weight, atol=1e-4)


def test_exclusive_classes_are_fitted_by_cross_entropy() -> None:
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 3, 300)
    labels = np.where(np.eye(3)[classes] > 0, 1, -1).astype(np.int8)
    scores = (labels[:, None] + rng.normal(size=(300, 2, 3))).astype(np.float32)
    fitted = fit_combination(scores, labels, "multiclass", strength=0.001)

    def loss(combined: NDArray[np.float32]) -> float:
        return float(-np.log(score_probabilities(combined, "multiclass")[np.arange(300), classes]).mean())

    assert loss(fitted(scores)) < loss(scores.mean(axis=1))


@pytest.mark.parametrize("strength", [-1.0, float("nan"), float("inf")])
def test_strength_out_of_range(strength: float) -> None:
    scores, labels = noisy_members(10)
    with pytest.raises(ConfigError, match="strength"):
        fit_combination(scores, labels, "multilabel", strength)


# --- the folder -------------------------------------------------------------------------------------------------------


def test_an_ensemble_is_a_model_for_every_command(
    runs: list[Model], shapes: DataSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = str(shapes.root)
    members = [str(run.folder) for run in runs]
    assert main(["ensemble", *members, "--data", data, "--out", str(tmp_path / "both"), "--device", "cpu"]) == 0
    assert "test_resnet 64, test_resnet 96" in capsys.readouterr().out
    assert main(["evaluate", str(tmp_path / "both"), data, "--json", "--device", "cpu"]) == 0
    said = json.loads(capsys.readouterr().out)
    combination = open_model(tmp_path / "both").combination
    assert combination is not None
    networks = [Member(run.runs[0].load_model(), run.preprocess) for run in runs]
    by_hand = Predictor("x", networks, shapes.classes, "multilabel", "cpu", combination=combination)
    assert said["classification"]["map"] == pytest.approx(
        evaluate(by_hand, shapes, "val")["classification"]["map"], abs=1e-6
    )
    Image.fromarray(image()).save(tmp_path / "a.png")
    assert main(["predict", str(tmp_path / "both"), str(tmp_path / "a.png"), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "predictions.jsonl").is_file()


def test_it_does_not_need_the_original_runs(runs: list[Model], tmp_path: Path) -> None:
    copies = [open_model(Path(shutil.copytree(run.folder, tmp_path / run.folder.name))) for run in runs]
    create_ensemble(tmp_path / "both", copies, "average")
    before = wildcat.load(tmp_path / "both", "cpu").predict(image()).class_scores
    for copy in copies:
        shutil.rmtree(copy.folder)
    np.testing.assert_array_equal(wildcat.load(tmp_path / "both", "cpu").predict(image()).class_scores, before)


def test_a_failed_ensemble_leaves_nothing_behind(runs: list[Model], tmp_path: Path, monkeypatch: Any) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("wildcat.models.run.shutil.copyfile", full)
    with pytest.raises(RunError, match="No space left"):
        create_ensemble(tmp_path / "both", runs, "average")
    assert list(tmp_path.iterdir()) == []


def test_runs_that_cannot_be_combined(runs: list[Model], shapes: DataSet, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="at least two"):
        create_ensemble(tmp_path / "a", runs[:1], "average")
    with pytest.raises(ConfigError, match="--data"):
        create_ensemble(tmp_path / "a", runs, "linear")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").touch()
    with pytest.raises(RunError, match="never overwritten"):
        create_ensemble(tmp_path / "taken", runs, "average")
    other = replace(runs[1], classes=("x", "y"))
    with pytest.raises(RunError, match="different classes"):
        create_ensemble(tmp_path / "a", [runs[0], other], "average")
    others = DataSet("other", "folder", tmp_path, ("x",), "multilabel", {})
    with pytest.raises(DataError, match="other classes"):
        create_ensemble(tmp_path / "a", runs, "linear", others)
    unknown = [replace(s, labels=np.zeros(5, np.int8)) for s in shapes.split("val")]
    nothing = replace(shapes, readers={"val": lambda: unknown}, _cache={})
    with pytest.raises(DataError, match="all labels of val of shapes are ignored"):
        create_ensemble(tmp_path / "a", runs, "linear", nothing, "val", device="cpu")
    assert not (tmp_path / "a").exists()


def change_manifest(folder: Path, **entries: Any) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | entries))


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (lambda d: (d / MANIFEST).write_text("{"), "damaged"),
        (lambda d: change_manifest(d, schema=9), "layout version 9"),
        (lambda d: change_manifest(d, members=7), "damaged"),
        (lambda d: change_manifest(d, combine="Linear"), "damaged .*'Linear' is none of linear, average"),
        (lambda d: change_manifest(d, classes=["x", "y"]), "names other classes"),
        (lambda d: (d / COMBINATION).write_bytes(b"half"), "damaged or missing"),
        (lambda d: (d / COMBINATION).unlink(), "damaged or missing"),
        (lambda d: shutil.rmtree(d / "members" / "2"), "no model folder"),
    ],
)
def test_a_damaged_ensemble(runs: list[Model], shapes: DataSet, tmp_path: Path, harm: Any, sentence: str) -> None:
    create_ensemble(tmp_path / "both", runs, "linear", shapes, "val", device="cpu")
    harm(tmp_path / "both")
    with pytest.raises(RunError, match=sentence):
        wildcat.load(tmp_path / "both", "cpu")


def test_an_ensemble_is_not_a_run_and_has_its_own_sizes(runs: list[Model], tmp_path: Path) -> None:
    create_ensemble(tmp_path / "both", runs, "average")
    with pytest.raises(RunError, match="is an ensemble"):
        open_run(tmp_path / "both")
    with pytest.raises(ConfigError, match="sizes=64: each member of the ensemble"):
        wildcat.load(tmp_path / "both", "cpu", sizes=(64,))
    with pytest.raises(ConfigError, match="sizes=8"):
        wildcat.load(runs[0].folder, "cpu", sizes=(8,))
    assert main(["predict", str(runs[0].folder), "x.jpg", "--sizes", "64,big"]) in (1, 2)
