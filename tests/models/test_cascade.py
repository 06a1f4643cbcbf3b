"""The cascade: proposals against a loop, crops in pixels, both limits of the second stage, and from the commands."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image, ImageDraw

from wildcat.cli import main
from wildcat.config import TrainConfig
from wildcat.data import DataSet
from wildcat.data.dataset import Sample
from wildcat.data.image_ref import ImageCrop, cropped, decode_image, fingerprint
from wildcat.errors import ConfigError, DataError, RunError
from wildcat.evaluation import evaluate
from wildcat.export.onnx import export_onnx
from wildcat.fitting.benchmark import bench_engines
from wildcat.fitting.config import RefineConfig
from wildcat.fitting.methods.pronet_cascade import proposed_crops
from wildcat.fitting.refine import refine
from wildcat.models.cascade import SIDES, Cascade, propose, verified_classes
from wildcat.models.folder import open_model
from wildcat.models.run import create_run, open_run
from wildcat.nn.model import Transfer
from wildcat.predictor import Predictor, load
from wildcat.train.loop import train

pytestmark = pytest.mark.usefixtures("cache")

QUICK = RefineConfig(method="pronet-cascade", epochs=2, batch_size=8)


@pytest.fixture(scope="module")
def cascade(tiny: Path, shapes: DataSet, tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """A cascade of `tiny`; read only."""
    folder = tmp_path_factory.mktemp("models") / "cascade"
    refine(open_run(tiny), shapes, folder, QUICK, device="cpu")
    return folder


def with_second_stage(tiny: Path, bias: np.ndarray, weight: float, crops: int = 4) -> Predictor:
    """The run with a verifier that gives every crop the same scores, (C,)."""
    first = load(tiny, "cpu")
    verifier = Transfer(first.model.backbone.num_features, len(first.classes))
    with torch.no_grad():
        verifier.weight.zero_()
        verifier.bias.copy_(torch.from_numpy(bias))
    cascade = Cascade((verifier,), crops, weight)
    return Predictor("both", first.members, first.classes, first.task, "cpu", cascade=cascade)


# --- proposals and crops ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(7, 7), (12, 9), (1, 1), (1, 5), (2, 3)])
def test_a_proposal_is_the_window_of_the_highest_mean(grid: tuple[int, int]) -> None:
    height, width = grid
    maps = np.random.default_rng(0).normal(size=(3, *grid)).astype(np.float32)
    found = iter(propose(maps, [2, 0]))
    for side in SIDES:
        rows, columns = max(1, round(side * height)), max(1, round(side * width))
        for index in (2, 0):
            means = {
                (x / width, y / height, (x + columns) / width, (y + rows) / height): maps[
                    index, y : y + rows, x : x + columns
                ].mean()
                for y in range(height - rows + 1)
                for x in range(width - columns + 1)
            }
            assert next(found) == (index, max(means, key=lambda part: means[part]))
    assert next(found, None) is None


def test_proposals_contain_a_planted_region() -> None:
    maps = np.full((2, 12, 12), -1.0, dtype=np.float32)
    maps[1, 8:11, 2:5] = 5.0
    for _, (left, top, right, bottom) in propose(maps, [1]):
        assert left <= 2 / 12 and top <= 8 / 12 and right >= 5 / 12 and bottom >= 11 / 12


def test_the_likeliest_classes_share_the_crops() -> None:
    scores = np.asarray([0.1, 3.0, -1.0, 3.0], dtype=np.float32)
    assert verified_classes(scores, 4) == [1, 3] and verified_classes(scores, 7) == [1, 3, 0]
    assert verified_classes(scores, 100) == [1, 3, 0, 2]


def test_a_crop_has_the_pixels_of_its_place(tmp_path: Path) -> None:
    rows, columns = np.mgrid[:60, :100].astype(np.uint8)
    pixels = np.stack([columns, rows, rows], axis=-1)
    Image.fromarray(pixels).save(tmp_path / "ramp.png")
    crop = ImageCrop(tmp_path / "ramp.png", (0.25, 0.5, 0.75, 1.0))
    image, size = decode_image(crop)
    assert size == image.size == (50, 30)
    np.testing.assert_array_equal(np.asarray(image), pixels[30:, 25:75])
    whole, other = fingerprint(crop.image), fingerprint(replace(crop, part=(0.25, 0.5, 0.75, 0.9)))
    assert len({whole, other, fingerprint(crop)}) == 3 and pickle.loads(pickle.dumps(crop)) == crop
    assert cropped(Image.new("RGB", (1, 1)), (0.5, 0.9, 1.0, 1.0)).size == (1, 1), "an image smaller than its parts"


# --- the second stage -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_a_second_stage_that_agrees_changes_no_score(weight: float, tiny: Path, shapes_folder: Path) -> None:
    path = next(shapes_folder.rglob("*.jpg"))
    plain = load(tiny, "cpu").predict(path)
    both = with_second_stage(tiny, plain.class_scores, weight).predict(path)
    np.testing.assert_allclose(both.class_scores, plain.class_scores, atol=1e-5)
    np.testing.assert_array_equal(both.class_maps, plain.class_maps)


def test_only_the_proposing_classes_are_verified(tiny: Path, shapes_folder: Path) -> None:
    images = sorted(shapes_folder.rglob("*.jpg"))[:5]
    first, second = load(tiny, "cpu"), with_second_stage(tiny, np.full(5, 9.0, dtype=np.float32), 0.25)
    for plain, both in zip(first.predict(images), second.predict(images), strict=True):
        verified = verified_classes(plain.class_scores, 4)
        expected = plain.class_scores.copy()
        expected[verified] = 0.75 * expected[verified] + 0.25 * 9
        np.testing.assert_allclose(both.class_scores, expected, atol=1e-5)
        assert set(both.located) == {plain.classes[i] for i in verified}
        for i, name in enumerate(plain.classes):
            if i not in verified:
                assert both.points[name] == plain.points[name]
                continue
            box, part = both.located[name], propose(plain.class_maps, [i])[0].part  # of equal scores the first
            assert box[:4] == pytest.approx(np.multiply(part, [plain.width, plain.height] * 2))
            x, y = both.points[name]
            assert box.x1 < x < box.x2 and box.y1 < y < box.y2
    untouched = with_second_stage(tiny, np.full(5, 9.0, dtype=np.float32), 0.0).predict(images)
    for plain, both in zip(first.predict(images), untouched, strict=True):
        np.testing.assert_array_equal(both.class_scores, plain.class_scores)


@pytest.mark.parametrize("sizes", [(), (96, 64)])
def test_the_best_crop_of_a_class_decides(
    sizes: tuple[int, ...], cascade: Path, tiny: Path, shapes_folder: Path
) -> None:
    """Each image alone, its crops one by one through the network, at the first size, gives what a batch gives."""
    images = sorted(shapes_folder.rglob("*.jpg"))[:3]
    predictor, first = load(cascade, "cpu", sizes=sizes), load(tiny, "cpu", sizes=sizes)
    assert predictor.cascade is not None
    for path, plain, both in zip(images, first.predict(images), predictor.predict(images), strict=True):
        with Image.open(path) as image, torch.inference_mode():
            for index in verified_classes(plain.class_scores, QUICK.crops):
                found = []
                for _, (left, top, right, bottom) in propose(plain.class_maps, [index]):
                    pixels = first.preprocess(cropped(image.convert("RGB"), (left, top, right, bottom)))[None]
                    features = first.model.features(pixels)
                    mean = features.mean(dim=(2, 3), keepdim=True)
                    heat = predictor.cascade.networks[0](features)[0, index]
                    row, column = np.unravel_index(int(heat.argmax()), heat.shape)
                    x = left + (right - left) * (column + 0.5) / heat.shape[1]
                    y = top + (bottom - top) * (row + 0.5) / heat.shape[0]
                    score = float(predictor.cascade.networks[0](mean)[0, index, 0, 0])
                    found.append((score, (x * plain.width, y * plain.height)))
                score, point = max(found)
                assert both.class_scores[index] == pytest.approx(
                    0.3 * plain.class_scores[index] + 0.7 * score, abs=1e-3
                )
                assert both.located[plain.classes[index]].score == pytest.approx(score, abs=1e-3)
                assert both.points[plain.classes[index]] == pytest.approx(point)


def test_crops_have_the_labels_of_the_classes_that_propose_them(tiny: Path, shapes: DataSet) -> None:
    predictor, samples = load(tiny, "cpu"), shapes.split("train")[:6]

    class Computed:
        def batch(self, indices: list[int]) -> torch.Tensor:
            images = [predictor.preprocess(decode_image(samples[i].path)[0]) for i in indices]
            with torch.inference_mode():
                return predictor.model.features(torch.stack(images))

    labels = torch.from_numpy(np.stack([s.labels for s in samples]))
    crops = proposed_crops(predictor.members[0], Computed(), samples, labels, crops=2)  # type: ignore[arg-type]
    for sample, prediction in zip(samples, predictor.predict([s.path for s in samples]), strict=True):
        own = [crop for crop in crops if crop.path.image == sample.path]  # type: ignore[union-attr]
        proposing = {int(np.argmax(prediction.class_scores)), *np.flatnonzero(sample.labels == 1).tolist()}
        expected: dict[tuple[float, ...], set[int]] = {}
        for index, part in propose(prediction.class_maps, sorted(proposing)):
            expected.setdefault(part, set()).add(index)
        assert len(own) == len(expected) <= 2 * len(proposing)
        for crop in own:
            counted = expected[crop.path.part]  # type: ignore[union-attr]
            own_labels = [label if label != 1 or c in counted else 0 for c, label in enumerate(sample.labels)]
            assert crop.labels.tolist() == own_labels


def test_a_verifier_finds_small_objects(tmp_path: Path) -> None:
    """Discs and crosses of a tenth of the side, less than a cell of the run's map: crops enlarge them."""
    data = small_objects(tmp_path / "small", 30, 24)
    config = TrainConfig(
        backbone="lite0",
        image_size=96,
        epochs=10,
        batch_size=8,
        workers=0,
        tune="head",
        val_split="none",
        pooling="lse",
        num_maps=1,
        sharpness=4.0,
    )
    run = create_run(tmp_path / "run", config, data)
    train(run, data)
    refine(run, data, tmp_path / "cascade", RefineConfig(method="pronet-cascade", crops=4), device="cpu")
    measures = ("classification", "pointing")
    before, after = (
        evaluate(load(tmp_path / name, "cpu"), data, "val", measures=measures) for name in ("run", "cascade")
    )
    assert after["classification"]["map"] >= before["classification"]["map"] - 0.01
    assert after["pointing"]["map"] > before["pointing"]["map"] + 0.1


def small_objects(folder: Path, train: int, val: int) -> DataSet:
    """Images of 240 px with a disc, a cross or both, of 24 px, on noise."""
    folder.mkdir()

    def draw(index: int) -> Sample:
        rng = np.random.default_rng(index)
        image = Image.fromarray(rng.integers(90, 166, (240, 240, 3), dtype=np.uint8))
        labels = np.asarray([[1, -1], [-1, 1], [1, 1]][index % 3], dtype=np.int8)
        corners = rng.permutation(81)[:2]  # two of 9 x 9 places
        boxes = [(x, y, x + 24, y + 24) for x, y in ((c % 9 * 25 + 2, c // 9 * 25 + 2) for c in corners.tolist())]
        present = np.flatnonzero(labels == 1)
        pen = ImageDraw.Draw(image)
        for c in present.tolist():
            left, top, right, bottom = boxes[c]
            colour = tuple(rng.choice([0, 255], 3).tolist())
            if c == 0:
                pen.ellipse(boxes[c], fill=colour)
            else:
                pen.rectangle((left + 8, top, right - 8, bottom), fill=colour)
                pen.rectangle((left, top + 8, right, bottom - 8), fill=colour)
        path = folder / f"{index}.png"
        image.save(path)
        return Sample(path.name, path, labels, np.asarray(boxes, dtype=np.float32)[present], present)

    splits = {"train": [draw(i) for i in range(train)], "val": [draw(i) for i in range(train, train + val)]}
    readers = {name: (lambda samples=samples: samples) for name, samples in splits.items()}
    return DataSet("small", "made", folder, ("disc", "cross"), "multilabel", readers)


def test_an_ensemble_averages_the_verifiers_of_its_cascades(
    cascade: Path, tiny: Path, shapes_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run and two cascades with equal first stages: each crop has the mean of the two verifiers' scores."""
    constant = Path(shutil.copytree(cascade, tmp_path / "constant"))
    weights = safetensors.torch.load_file(constant / "verifier.safetensors")
    weights["weight"].zero_()
    weights["bias"].fill_(9.0)
    safetensors.torch.save_file(weights, constant / "verifier.safetensors")
    both = tmp_path / "both"
    made = ["ensemble", str(cascade), str(tiny), str(constant), "--combine", "average", "--out", str(both)]
    assert main([*made, "--device", "cpu"]) == 0
    assert "3 networks (test_resnet 64, test_resnet 64, test_resnet 64)" in capsys.readouterr().out
    shutil.rmtree(constant)
    images = sorted(shapes_folder.rglob("*.jpg"))[:3]
    found = [load(folder, "cpu", "horizontal").predict(images) for folder in (tiny, cascade, both)]
    for plain, one, two in zip(*found, strict=True):
        assert two.located.keys() == one.located.keys()
        for name, box in one.located.items():
            assert two.located[name][:4] == box[:4] and two.pointed[name] == one.pointed[name]
            assert two.located[name].score == pytest.approx((box.score + 9) / 2, abs=1e-4)
            expected = 0.3 * plain.scores[name] + 0.7 * (box.score + 9) / 2
            assert two.scores[name] == pytest.approx(expected, abs=1e-4)
    with pytest.raises(ConfigError, match="does not take tile=64") as caught:
        load(both, "cpu", tile=64)
    assert f"{both}/members/1/base" in caught.value.hint, "the first cascade of the ensemble"
    with pytest.raises(ConfigError, match="bench times one stage") as caught:
        bench_engines(load(both, "cpu"))
    assert f"{both}/members/1/base" in caught.value.hint
    (both / "members" / "3" / "verifier.safetensors").unlink()
    with pytest.raises(RunError, match=r"members/3/verifier\.safetensors"):
        load(both, "cpu")


def test_cascades_of_an_ensemble_verify_the_same_crops(
    cascade: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Path(shutil.copytree(cascade, tmp_path / "other"))
    (other / "model.json").write_text((other / "model.json").read_text().replace('"crops": 8', '"crops": 6', 1))
    assert main(["ensemble", str(cascade), str(other), "--combine", "average", "--out", str(tmp_path / "both")]) == 1
    said = capsys.readouterr().err
    assert "(8 crops, weight 0.7) verify different crops" in said and "--crop-weight" in said
    assert not (tmp_path / "both").exists()


# --- from the command to a model --------------------------------------------------------------------------------------


def test_the_commands(
    cascade: Path, tiny: Path, shapes_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, data = tmp_path / "cascade", str(shapes_folder)
    made = ["refine", str(tiny), data, "--out", str(out), "--method", "pronet-cascade", "--epochs", "2"]
    assert main([*made, "--batch-size", "8", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "a verifier of crops on test_resnet; loss" in said and "--save overlays" in said
    weights = [(folder / "verifier.safetensors").read_bytes() for folder in (out, cascade)]
    assert weights[0] == weights[1], "the same seed gives the same verifier"
    trained = open_model(out).manifest["trained"]
    assert trained["crops"] == 8 and trained["crop_weight"] == 0.7 and not {"tune", "label_sizes"} & trained.keys()
    assert main(["evaluate", str(out), data, "--device", "cpu", "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert 0 <= measured["classification"]["map"] <= 1 and 0 <= measured["pointing"]["map"] <= 1
    predict = ["predict", str(out), data, "--split", "val", "--device", "cpu", "--flip", "horizontal"]
    assert main([*predict, "--save", "overlays,masks", "--out", str(tmp_path / "out")]) == 0
    for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert all(0 <= x <= row["width"] and 0 <= y <= row["height"] for x, y in row["points"].values())
        assert all(len(boxes) == 1 for boxes in row["boxes"].values())
    assert main(["calibrate", str(out), data, "--plain", "--device", "cpu"]) == 0
    export = ["export", str(out), data, "--split", "val", "--format", "coco", "--device", "cpu"]
    assert main([*export, "--out", str(tmp_path / "coco")]) == 0
    assert main(["report", str(out), data, "--device", "cpu", "--out", str(tmp_path / "report.html")]) == 0
    copy = pickle.loads(pickle.dumps(load(out, "cpu")))
    path = next(shapes_folder.rglob("*.jpg"))
    np.testing.assert_array_equal(copy.predict(path).class_scores, load(out, "cpu").predict(path).class_scores)


def test_what_a_cascade_does_not_do(cascade: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for settings, words in (
        ({"tile": 64}, "tile=64"),
        ({"localize": "beam-search"}, "localize='beam-search'"),
    ):
        with pytest.raises(ConfigError, match=f"is a cascade: .* does not take {words}") as caught:
            load(cascade, "cpu", **settings)  # type: ignore[arg-type]
        assert f"{cascade}/base" in caught.value.hint
    with pytest.raises(ConfigError, match="is a cascade, which crops images"):
        export_onnx(load(cascade, "cpu"), tmp_path / "cascade.onnx")
    with pytest.raises(ConfigError, match="is a cascade; bench times one stage"):
        bench_engines(load(cascade, "cpu"))
    with pytest.raises(RunError, match="is a cascade, not a run"):
        open_run(cascade)


def test_bad_input_is_one_sentence(tiny: Path, shapes: DataSet, cascade: Path, tmp_path: Path) -> None:
    run = open_run(tiny)
    for wrong, words in (
        ({"crops": 1}, "crops=1: give at least 2"),
        ({"crop_weight": 1.5}, "crop_weight=1.5: give a number from 0 to 1"),
        ({"crop_weight": float("nan")}, "crop_weight=nan"),
        ({"tune": "all"}, "tune='all' is not a setting of method='pronet-cascade'"),
        ({"superpixels": True}, "superpixels=True is not a setting"),
    ):
        with pytest.raises(ConfigError, match=words):
            refine(run, shapes, tmp_path / "out", replace(QUICK, **wrong), device="cpu")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"crops=4 is not a setting of method='wildcat'\.") as caught:
        RefineConfig(crops=4).validate()
    assert "belongs to pronet-cascade" in caught.value.hint
    with pytest.raises(DataError, match="other classes"):
        refine(run, replace(shapes, classes=("a", "b", "c", "d", "e")), tmp_path / "out", QUICK)
    few = [s for s in shapes.split("train") if s.labels[3] != 1]
    without = replace(shapes, readers={"train": lambda: few, "val": lambda: few}, _cache={})
    with pytest.raises(DataError, match="no image to train on has the label 'square', so it has no proposals"):
        refine(run, without, tmp_path / "out", QUICK, device="cpu")
    assert not (tmp_path / "out").exists()
    for name, spoil in (("verifier.safetensors", None), ("model.json", '"crops": 1')):
        copy = Path(shutil.copytree(cascade, tmp_path / name))
        if spoil is None:
            (copy / name).unlink()
        else:
            (copy / name).write_text((copy / name).read_text().replace('"crops": 8', spoil, 1))
        with pytest.raises(RunError, match=name):
            load(copy, "cpu")
