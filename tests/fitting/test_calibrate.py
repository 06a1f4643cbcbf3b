"""Gates and backgrounds against loops; calibration.json from the command to the mask."""

from __future__ import annotations

import codecs
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.counting import CountingProgress
from wildcat.cli import main
from wildcat.cli.calibrate import calibration_table, choice_lines
from wildcat.data import DataSet
from wildcat.data.dataset import Sample, Task
from wildcat.data.images import read_mask
from wildcat.errors import ConfigError, DataError, RunError, ShapeError
from wildcat.evaluation import SCORES, THRESHOLDS
from wildcat.fitting.calibrate import CRF_SCORES, CRF_THRESHOLDS, GATES, PRIOR_IMAGES, calibrate, fit_gates
from wildcat.models.calibration import (
    Calibration,
    fitted_samples,
    measured_again,
    read_calibration,
    weights_digest,
    write_calibration,
)
from wildcat.models.folder import open_model, write_ensemble
from wildcat.models.manifest import kind_of, recorded_data
from wildcat.models.run import open_run
from wildcat.prediction import Prediction
from wildcat.predictor import load
from wildcat.regions import CrfParams, MaskParams


@pytest.fixture
def run(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "run"))


class Knows:
    """Stands in for a predictor: the truth, coarse and with noise, its classes in another order than the data's."""

    name, flip, has_maps, task = "knows", "none", True, "multilabel"

    def __init__(self, data: DataSet, order: tuple[int, ...] = (3, 0, 4, 1, 2)) -> None:
        self.order = order
        self.classes = tuple(data.classes[i] for i in order)
        self.samples = {s.path: s for name in data.splits for s in data.split(name)}

    def stream(self, images: Iterable[Path], **_: Any) -> Iterator[Prediction]:
        for path in images:
            sample = self.samples[path]
            rng = np.random.default_rng(len(path.name) + int(path.stem[-3:], 36))
            maps = rng.normal(0, 0.3, (5, 6, 8))
            scores = 2.0 * sample.labels + rng.normal(0, 2, 5)
            if sample.mask is not None:
                maps += (read_mask(sample.mask)[4::8, 4::8] == np.arange(1, 6)[:, None, None]) - 0.1
            order = list(self.order)
            parts = (scores[order].astype(np.float32), maps[order].astype(np.float32))
            yield Prediction(str(path), 64, 48, self.classes, "multilabel", *parts, None, path)


# --- thresholds -----------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), images=st.integers(1, 40))
def test_gates_against_the_loop(seed: int, images: int) -> None:
    rng = np.random.default_rng(seed)
    probs = rng.uniform(0, 1, (images, 3)).round(3).astype(np.float32)
    labels = rng.choice(np.array([-1, 0, 1], np.int8), (images, 3), p=[0.6, 0.1, 0.3])
    labels[:, 2] = -1  # never there
    gates, f1 = fit_gates(probs, labels)

    def counts(c: int, gate: float) -> np.ndarray[Any, Any]:
        """True positives, false positives, false negatives."""
        made = np.zeros(3)
        for p, label in zip(probs[:, c], labels[:, c], strict=True):
            said = p >= np.float32(gate)
            made += (said and label == 1, said and label == -1, not said and label == 1)
        return made

    positives = (labels == 1).sum()
    for c in range(3):
        figures = []
        for gate in GATES:
            everyone = np.sum([counts(k, gate) for k in range(3)], axis=0)
            tp, fp, fn = counts(c, gate) + everyone * PRIOR_IMAGES / max(1, positives)
            figures.append(2 * tp / (2 * tp + fp + fn) if tp else 0.0)
        best = [gate for gate, figure in zip(GATES, figures, strict=True) if figure >= max(figures) - 1e-9]
        assert min(abs(gates[c] - gate) for gate in best) < 1e-9
        assert abs(gates[c] - 0.5) == pytest.approx(min(abs(gate - 0.5) for gate in best))
        tp, fp, fn = counts(c, gates[c])
        assert f1[c] == pytest.approx(2 * tp / (2 * tp + fp + fn) if tp else 0.0)


def test_a_class_with_one_image_has_the_threshold_of_all() -> None:
    """On its own the image of class b would lower its threshold to 0.05; all others suggest 0.6."""
    probs, labels = np.full((100, 2), 0.02, np.float32), np.full((100, 2), -1, np.int8)
    labels[:40, 0], probs[:40, 0], probs[40:, 0] = 1, 0.62, 0.58
    labels[99, 1], probs[99, 1] = 1, 0.05
    gates, f1 = fit_gates(probs, labels)
    assert gates.tolist() == [0.59, 0.59]  # of those between 0.58 and 0.62, the nearest to 0.5
    assert f1.tolist() == [1.0, 0.0]


# --- the background -------------------------------------------------------------------------------------------------


def loop_miou(model: Knows, samples: Iterable[Sample], params: MaskParams, crf: bool) -> float:
    both, either = np.zeros(6), np.zeros(6)
    label_of = {model.order[i] + 1: i + 1 for i in range(5)} | {0: 0}  # the data's -> the model's
    for sample in samples:
        assert sample.mask is not None
        (prediction,) = model.stream([sample.path])
        truth, mask = read_mask(sample.mask), prediction.mask(crf, params)
        for c in range(6):
            is_true, is_drawn, counts = truth == c, mask == label_of[c], truth != 255
            both[c] += (is_true & is_drawn & counts).sum()
            either[c] += ((is_true | is_drawn) & counts).sum()
    return float(np.mean(both[either > 0] / either[either > 0]))


def test_the_background_is_the_best_on_the_available_masks(shapes: DataSet) -> None:
    """Half of the images have no mask; the loop draws every mask at every threshold."""
    some = [s if i % 2 else dataclasses.replace(s, mask=None) for i, s in enumerate(shapes.split("train"))]
    data = dataclasses.replace(shapes, readers={"train": lambda: some, "val": shapes.readers["val"]}, _cache={})
    progress = CountingProgress()
    model = Knows(data)
    params, record = calibrate(model, data, "train", False, progress)  # type: ignore[arg-type]
    masked = [s for s in some if s.mask is not None]
    backgrounds = [dataclasses.replace(params, rule="score", score=t) for t in SCORES]
    backgrounds += [dataclasses.replace(params, rule="constant", constant=t) for t in THRESHOLDS]
    expected = [loop_miou(model, masked, background, False) for background in backgrounds]
    assert loop_miou(model, masked, params, False) == pytest.approx(max(expected))
    assert max(expected) > min(expected) + 0.05
    assert [row["miou"] for row in record["tried"]] == pytest.approx(expected, abs=1e-6)
    assert (record["images"], record["masks"], record["split"], record["crf"]) == (22, 11, "train", False)
    assert progress.counts == progress.totals == {"predicting": 22, "fitting the background": 2 * 11}
    probs = np.stack([p.class_probs for p in model.stream([s.path for s in some])])
    gates, f1 = fit_gates(probs, np.stack([s.labels for s in some])[:, list(model.order)])
    assert params.gate == tuple(gates.tolist())  # in the order of the model's classes
    assert [record["f1"][c] for c in model.classes] == pytest.approx(f1, abs=1e-4)
    for c, name in enumerate(data.classes):
        assert record["prior"][name] == pytest.approx(np.mean([s.labels[c] == 1 for s in some]), abs=1e-4)


def test_under_a_crf_all_rules_are_tried(shapes: DataSet) -> None:
    some = shapes.split("train")[:3]
    data = dataclasses.replace(shapes, readers={"train": lambda: some, "val": shapes.readers["val"]}, _cache={})
    progress = CountingProgress()
    model = Knows(data)
    params, record = calibrate(model, data, "train", True, progress)  # type: ignore[arg-type]
    assert [row["rule"] for row in record["tried"]] == ["score"] * 7 + ["constant"] * 4 + ["power"] * 4
    assert [row["threshold"] for row in record["tried"]] == pytest.approx([*CRF_SCORES, *CRF_THRESHOLDS * 2])
    assert loop_miou(model, some, params, True) == pytest.approx(max(r["miou"] for r in record["tried"]), abs=1e-6)
    assert progress.counts == progress.totals == {"predicting": 3, "fitting the background": 3}


def test_with_superpixels_the_masks_that_are_drawn_are_measured(shapes: DataSet) -> None:
    some = shapes.split("train")[:3]
    data = dataclasses.replace(shapes, readers={"train": lambda: some, "val": shapes.readers["val"]}, _cache={})
    model = Knows(data)
    params, record = calibrate(model, data, "train", False, propagate=False, superpixels=True)  # type: ignore[arg-type]
    assert params.superpixels
    assert loop_miou(model, some, params, False) == pytest.approx(max(r["miou"] for r in record["tried"]), abs=1e-6)


def test_without_masks_the_background_is_the_default(shapes: DataSet) -> None:
    bare = [dataclasses.replace(s, mask=None) for s in shapes.split("train")]
    data = dataclasses.replace(shapes, readers={"train": lambda: bare, "val": shapes.readers["val"]}, _cache={})
    params, record = calibrate(Knows(data), data)  # type: ignore[arg-type]
    assert (params.rule, params.score) == ("score", 0.0)
    assert record["masks"] == 0 and record["tried"] == []
    assert (record["choice"]["measure"], record["choice"]["images"]) == ("F1 of labels", 22)
    assert [(row["propagate"], row["crf"]) for row in record["choice"]["tried"]] == [(False, True)]


def test_masks_without_a_known_pixel_leave_the_default_background(shapes: DataSet, tmp_path: Path) -> None:
    Image.new("L", (64, 48), 255).save(tmp_path / "unknown.png")
    some = [dataclasses.replace(s, mask=tmp_path / "unknown.png") for s in shapes.split("train")[:2]]
    data = dataclasses.replace(shapes, readers={"train": lambda: some, "val": shapes.readers["val"]}, _cache={})
    for crf in (False, None):
        params, record = calibrate(Knows(data), data, crf=crf)  # type: ignore[arg-type]
        assert (params.rule, params.score, record["tried"], record["crf"]) == ("score", 0.0, [], False)
        json.dumps(record, allow_nan=False)


def test_the_default_background_suits_the_task_of_the_model(shapes: DataSet) -> None:
    bare = [dataclasses.replace(s, mask=None) for s in shapes.split("train")]
    data = dataclasses.replace(shapes, readers={"train": lambda: bare, "val": shapes.readers["val"]}, _cache={})
    model = Knows(data)
    model.task = "multiclass"
    params, _ = calibrate(model, data, crf=False)  # type: ignore[arg-type]
    assert params.rule == "constant"


def test_one_image_without_a_mask_gives_no_error(shapes: DataSet) -> None:
    bare = [dataclasses.replace(next(s for s in shapes.split("train") if 1 in s.labels), mask=None)]
    data = dataclasses.replace(shapes, readers={"train": lambda: bare, "val": shapes.readers["val"]}, _cache={})
    _, record = calibrate(Knows(data), data)  # type: ignore[arg-type]
    json.dumps(record, allow_nan=False)
    assert record["choice"]["tried"][0]["error"] is None
    assert choice_lines(record)[1].endswith("± -")


def test_the_table_counts_the_images_of_large_data() -> None:
    """One image in 30,000 has the class: less than 1e-4 of them."""
    labels = np.full((30_000, 1), -1, np.int8)
    labels[0] = 1
    samples = [Sample(str(i), Path(str(i)), row) for i, row in enumerate(labels)]
    data = DataSet("large", "csv", Path(), ("a",), "multilabel", {"train": lambda: samples, "val": lambda: samples})
    _, record = calibrate(Certain(), data, crf=False)  # type: ignore[arg-type]
    content = {**record, "gate": {"a": 0.5}, "background": {"rule": "score", "score": 0.0}}
    assert calibration_table(content, Path("run"), "large").splitlines()[1].split()[:2] == ["a", "1"]


class Certain:
    """Stands in for a predictor of one class."""

    name, flip, has_maps, task, classes = "certain", "none", True, "multilabel", ("a",)

    def stream(self, images: Iterable[Path], **_: Any) -> Iterator[Prediction]:
        one = Prediction(
            "", 1, 1, ("a",), "multilabel", np.ones(1, np.float32), np.ones((1, 1, 1), np.float32), None, Path()
        )
        for _image in images:
            yield one


class KnowsBoundaries(Knows):
    """Also knows where the mask changes."""

    def stream(self, images: Iterable[Path], **_: Any) -> Iterator[Prediction]:
        for prediction in super().stream(images):
            sample = self.samples[Path(prediction.path)]
            assert sample.mask is not None
            mask = read_mask(sample.mask)[::4, ::4].astype(int)
            walls = np.zeros(mask.shape, np.float32)
            walls[1:] += mask[1:] != mask[:-1]
            walls[:, 1:] += mask[:, 1:] != mask[:, :-1]
            yield dataclasses.replace(prediction, boundaries=walls.clip(max=0.98), propagate=False)


@pytest.fixture
def dozen(shapes: DataSet) -> DataSet:
    """12 images to train with."""
    some = shapes.split("train")[:12]
    return dataclasses.replace(shapes, readers={"train": lambda: some, "val": shapes.readers["val"]}, _cache={})


def test_a_crf_that_helps_is_chosen(dozen: DataSet) -> None:
    """The maps are coarse and noisy; the colours of the images show the shapes."""
    model, samples, progress = Knows(dozen), dozen.split("train"), CountingProgress()
    params, record = calibrate(model, dozen, progress=progress)  # type: ignore[arg-type]
    (row,) = record["choice"]["tried"]
    assert record["choice"]["measure"] == "mean IoU" and record["choice"]["images"] == 12
    assert (record["propagate"], record["crf"]) == (row["propagate"], row["crf"]) == (False, True)
    assert row["gain"] > 2 * row["error"]
    assert progress.counts == progress.totals
    plain, alone = calibrate(model, dozen, crf=False)  # type: ignore[arg-type]
    assert alone["choice"] is None and alone["crf"] is False
    gain = loop_miou(model, samples, params, True) - loop_miou(model, samples, plain, False)
    assert row["gain"] == pytest.approx(gain, abs=1e-6)
    smooth = CrfParams(smoothness_weight=300, smoothness_sigma=20)  # leaves one label per image
    params, record = calibrate(model, dozen, crf_params=smooth)  # type: ignore[arg-type]
    assert record["crf"] is False and params == plain
    assert record["choice"]["tried"][0]["gain"] < 0


def test_propagation_that_helps_is_chosen(dozen: DataSet) -> None:
    _, record = calibrate(KnowsBoundaries(dozen), dozen, crf=False)  # type: ignore[arg-type]
    (row,) = record["choice"]["tried"]
    assert (record["propagate"], record["crf"]) == (True, False) and row["gain"] > 2 * row["error"]


def test_images_without_labels(shapes: DataSet) -> None:
    bare = [dataclasses.replace(s, mask=None, labels=-np.abs(s.labels)) for s in shapes.split("train")]
    data = dataclasses.replace(shapes, readers={"train": lambda: bare, "val": shapes.readers["val"]}, _cache={})
    with pytest.raises(DataError, match="no image of train of shapes has a label"):
        calibrate(Knows(data), data)  # type: ignore[arg-type]


def test_images_held_out_for_val_are_not_fitted_on(shapes: DataSet) -> None:
    data = dataclasses.replace(shapes, readers={"train": shapes.readers["train"]}, _cache={})
    fitted, held = {s.name for s in fitted_samples(data, "train")}, {s.name for s in data.split("val")}
    assert held and not fitted & held
    assert len(fitted_samples(shapes, "train")) == 22


# --- the file -------------------------------------------------------------------------------------------------------

FITTED = {"data": "shapes", "split": "train", "images": 22, "masks": 0}


def test_a_written_calibration_is_read_and_used(run: Path, shapes: DataSet) -> None:
    path = shapes.split("val")[0].path
    before = load(run, "cpu").predict(path)
    classes = before.classes
    params = MaskParams(gate=(0.0, 1.0, 1.0, 0.0, 1.0), constant=0.7)
    write_calibration(run, classes, params, FITTED)
    predictor = load(run, "cpu")
    assert predictor.calibration is not None and predictor.calibration.params == params
    after = predictor.predict(path)
    np.testing.assert_array_equal(after.mask(), before.mask(params=params))
    assert set(np.unique(after.mask())) <= {0, 1, 4}
    assert load(run, "cpu", calibrated=False).calibration is None
    np.testing.assert_array_equal(after.mask(params=MaskParams(rule="score")), before.mask())
    assert set(after.labels) >= {classes[0], classes[3]}, "a threshold of 0 predicts the class"
    record = json.loads((run / "calibration.json").read_text())
    assert record["schema"] == 2 and record["versions"]["wildcat"] and record["created"]


def test_the_chosen_masks_are_drawn_unless_told_otherwise(run: Path, shapes: DataSet, capsys: Any) -> None:
    path, classes = shapes.split("val")[0].path, open_run(run).classes
    crf = CrfParams(iterations=2, smoothness_weight=30)
    maps = load(run, "cpu").predict(path).class_maps
    params = MaskParams(gate=0.0, rule="score", score=float(np.median(maps.max(axis=0))))
    write_calibration(run, classes, params, {**FITTED, "crf": True}, crf)
    chosen, plain = (load(run, "cpu", crf=choice).predict(path) for choice in (None, False))
    assert (chosen.mask() != plain.mask()).any()
    np.testing.assert_array_equal(chosen.mask(), plain.mask(crf=True))
    np.testing.assert_array_equal(chosen.mask(), plain.mask(crf=crf))
    np.testing.assert_array_equal(chosen.mask(crf=False), plain.mask())
    assert not load(run, "cpu", calibrated=False).crf
    command = ["evaluate", str(run), str(shapes.root), "--device", "cpu", "--json"]
    found = []
    for flags in ([], ["--plain"], ["--crf"]):
        assert main([*command, *flags]) == 0
        found.append(json.loads(capsys.readouterr().out)["segmentation"])
    assert [masks["crf"] for masks in found] == [True, False, True] and found[0]["miou"] == found[2]["miou"]
    assert "hindsight" in found[1] and "hindsight" not in found[0]
    assert main([*command, "--plain", "--crf"]) == 2
    assert "--plain excludes --crf" in capsys.readouterr().err
    assert main(["calibrate", str(run), str(shapes.root), "--device", "cpu", "--plain", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["crf"] is False and record["choice"] is None
    assert record["crf_settings"]["iterations"] == 2, "kept from the earlier calibration"


def spoilt(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        record = json.loads(path.read_text())
        change(record)
        path.write_text(json.dumps(record))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.write_text('{"schema": 2, "gate'), r"damaged \(JSONDecodeError"),
        (lambda path: path.write_text("[]"), "damaged: TypeError"),
        (lambda path: path.write_bytes(b"\xff\xfe"), r"damaged \(UnicodeDecodeError"),
        (spoilt(lambda r: r.pop("background")), "damaged: KeyError: 'background'"),
        (spoilt(lambda r: r["gate"].update(disc=1.5)), "damaged: gate="),
        (spoilt(lambda r: r["gate"].update(disc=float("nan"))), "damaged: gate="),
        (spoilt(lambda r: r["background"].update(rule="guess")), "damaged: rule='guess' is unknown"),
        (spoilt(lambda r: r.update(schema=9)), "layout version 9"),
        (spoilt(lambda r: r["gate"].pop("disc")), "other classes"),
        (spoilt(lambda r: r.update(weights="0")), "other weights"),
    ],
)
def test_a_damaged_file_is_one_sentence(run: Path, spoil: Callable[[Path], object], words: str) -> None:
    classes = open_run(run).classes
    write_calibration(run, classes, MaskParams(), FITTED)
    spoil(run / "calibration.json")
    with pytest.raises(RunError, match=words) as caught:
        load(run, "cpu")
    assert "wildcat calibrate" in caught.value.hint and "\n" not in caught.value.message
    assert load(run, "cpu", calibrated=False).classes == classes


def test_files_that_an_editor_saved_with_a_byte_order_mark_are_read(run: Path) -> None:
    write_calibration(run, open_run(run).classes, MaskParams(gate=0.25), FITTED)
    data = recorded_data(run)
    for name in ("calibration.json", "model.json"):
        (run / name).write_bytes(codecs.BOM_UTF8 + (run / name).read_bytes())
    calibration = load(run, "cpu").calibration
    assert calibration is not None and calibration.params.gates(5) == (0.25,) * 5
    assert (kind_of(run), recorded_data(run)) == ("run", data) and data.source


def test_other_weights_need_another_calibration(run: Path) -> None:
    classes = open_run(run).classes
    write_calibration(run, classes, MaskParams(), FITTED)
    weights = bytearray((run / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (run / "model.safetensors").write_bytes(weights)
    with pytest.raises(RunError, match="was fitted for other weights"):
        read_calibration(run, classes)


def test_models_written_inside_a_model_folder_leave_it_calibrated(run: Path, tmp_path: Path) -> None:
    both = tmp_path / "both"
    write_ensemble(both, [open_model(run), open_model(run)], None, {})
    for folder in (run, both):
        classes = open_model(folder).classes
        write_calibration(folder, classes, MaskParams(), FITTED)
        digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("model.safetensors"))]
        assert weights_digest(folder) == hashlib.sha256(" ".join(digests).encode()).hexdigest()
        for inside in ("backup", ".refined.abcdefgh.part/base", "members/1/refined", "refined/base"):
            (folder / inside).mkdir(parents=True)
            (folder / inside / "model.safetensors").write_bytes(b"other")
        assert read_calibration(folder, classes) is not None


def test_an_ensemble_can_be_calibrated(run: Path, shapes: DataSet, tmp_path: Path) -> None:
    folder = tmp_path / "both"
    write_ensemble(folder, [open_model(run), open_model(run)], None, {})
    assert main(["calibrate", str(folder), str(shapes.root), "--device", "cpu", "--plain"]) == 0
    calibration = load(folder, "cpu").calibration
    assert calibration is not None and calibration.record["images"] == 22
    (folder / "members" / "2" / "model.safetensors").write_bytes(b"other")
    with pytest.raises(RunError):
        load(folder, "cpu")


# --- the command ----------------------------------------------------------------------------------------------------


def test_calibrate_then_evaluate(run: Path, shapes: DataSet, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run), str(shapes.root), "--device", "cpu"]) == 0
    assert "(background score 0.00; the default)" in capsys.readouterr().out
    assert main(["calibrate", str(run), str(shapes.root), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "22 images of train to fit on" in said and "on the 22 masks of train" in said
    assert all(name in said for name in shapes.classes) and "Next: wildcat evaluate" in said
    assert "(gain in the mean IoU on 22 images of train" in said and "with CRF" in said
    assert main(["evaluate", str(run), str(shapes.root), "--device", "cpu", "--json"]) == 0
    masks = json.loads(capsys.readouterr().out)["segmentation"]
    stored = json.loads((run / "calibration.json").read_text())
    assert masks["threshold"] == stored["background"][masks["rule"]]
    assert masks["calibration"] == {"data": "shapes", "split": "train", "images": 22, "masks": 22, "measured": 0}
    assert masks["hindsight"]["miou"] >= masks["miou"]  # the constant is one of those tried
    assert main(["evaluate", str(run), str(shapes.root), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "fitted on 22 images of shapes train, 22 with masks" in said
    assert "best background in hindsight" in said and "not deployable" in said and "note:" not in said


def test_evaluating_fitted_images_prints_a_note(run: Path, shapes: DataSet, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["calibrate", str(run), str(shapes.root), "--device", "cpu", "--split", "val", "--json", "--plain"]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["split"] == "val"
    assert main(["evaluate", str(run), str(shapes.root), "--device", "cpu"]) == 0
    assert "masks were fitted on 10 of the images evaluated here" in capsys.readouterr().out


def test_the_split_of_a_calibration_may_lack_in_other_data_of_the_same_name(shapes: DataSet) -> None:
    other = dataclasses.replace(shapes, readers={"test": shapes.readers["val"]}, _cache={})
    for split in ("val", "train", "fold1"):
        assert measured_again({"data": "shapes", "split": split}, other, "test") == 0
    assert measured_again({"data": "shapes", "split": "test"}, other, "test") == len(other.split("test"))


def test_a_missing_train_split_is_an_error(run: Path, shapes: DataSet, capsys: pytest.CaptureFixture[str]) -> None:
    listing = run.parent / "only_test.csv"
    sample = shapes.split("val")[0]
    labels = ";".join(c for i, c in enumerate(shapes.classes) if sample.labels[i] == 1)
    listing.write_text(f"image,labels,split\n{sample.path},{labels},test\n")
    assert main(["calibrate", str(run), str(listing), "--device", "cpu"]) == 1
    assert "has no split 'train'" in capsys.readouterr().err
    assert main(["calibrate", "imagenet-lite0", str(listing)]) == 1
    assert "packaged model" in capsys.readouterr().err
    assert not (run / "calibration.json").exists()


# --- masks ----------------------------------------------------------------------------------------------------------


def prediction(scores: list[float], maps: Any, task: Task, gates: tuple[float, ...] | None = None) -> Prediction:
    classes = ("a", "b", "c")[: len(scores)]
    calibration = None if gates is None else Calibration(MaskParams(gate=gates), FITTED)
    parts = (np.asarray(scores, np.float32), np.asarray(maps, np.float32))
    return Prediction("", 4, 1, classes, task, *parts, None, Image.new("RGB", (4, 1)), calibration)


def test_the_likeliest_of_exclusive_classes_is_always_drawn() -> None:
    maps = [[[1, 1, 0, 0]], [[0, 0, 1, 1]]]
    assert prediction([0.1, 0.0], maps, "multiclass", (0.9, 0.9)).mask().tolist() == [[1, 1, 0, 0]]
    assert prediction([0.1, 0.0], maps, "multiclass", (0.9, 0.3)).mask().tolist() == [[1, 1, 2, 2]]
    assert prediction([0.1, 0.0], maps, "multilabel", (0.9, 0.9)).mask().tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize("task", ["multilabel", "multiclass"])
def test_gates_of_another_number_of_classes_are_refused(task: Task) -> None:
    for gates in ((0.1,), (0.1,) * 9):
        with pytest.raises(ShapeError, match=f"{len(gates)} gates for 2 classes"):
            prediction([4, 4], np.ones((2, 1, 4)), task).mask(params=MaskParams(gate=gates))


def test_a_class_that_is_the_background() -> None:
    """Column by column the highest raw map is that of a, b (the background), b, c; c is not predicted."""
    maps = [[[3, 1, 0, 0]], [[2, 2, 1, 0]], [[0, 0, 0, 5]]]
    said = prediction([4, 4, -4], maps, "multilabel")
    assert said.mask(background="b").tolist() == [[1, 0, 0, 0]]
    assert said.mask(background="b", params=MaskParams(gate=0.0)).tolist() == [[1, 0, 0, 3]]
    assert said.mask(background="a", params=MaskParams(gate=(0.0, 0.0, 1.0))).tolist() == [[0, 2, 2, 0]]
    with pytest.raises(ConfigError, match="no class 'd'"):
        said.mask(background="d")


@pytest.mark.parametrize("crf", [False, True])
def test_nan_scores_are_refused(crf: bool) -> None:
    with pytest.raises(ConfigError, match="outside"):
        prediction([float("nan"), 1], np.ones((2, 1, 4)), "multilabel").mask(crf)
