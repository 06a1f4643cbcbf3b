"""Metrics against scikit-learn, tables worked by hand, and a perfect model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.special import softmax
from sklearn.metrics import accuracy_score, average_precision_score, balanced_accuracy_score, roc_auc_score

from tests.counting import CountingProgress
from wildcat.cli.evaluate import evaluation_table, save_curves
from wildcat.data import open_dataset, write_shapes
from wildcat.data.dataset import DataSet, Sample, Task
from wildcat.data.images import read_mask
from wildcat.data.transforms import Preprocess
from wildcat.errors import DataError
from wildcat.evaluation import (
    SCORES,
    THRESHOLDS,
    evaluate,
    match_classes,
    measure,
    pointing_report,
    strength_histogram,
    summarize,
    true_mask,
)
from wildcat.fitting.calibrate import fit_background
from wildcat.fitting.choice import PLAIN, image_overlaps
from wildcat.metrics import confusions_by_threshold, mean_iou, pointing_average_precision, pointing_game
from wildcat.models.member import Member
from wildcat.nn.factory import create_model
from wildcat.prediction import Prediction
from wildcat.predictor import Predictor
from wildcat.regions.masks import MaskParams


class Scripted:
    """Stands in for a predictor: returns given scores and maps for each file."""

    has_maps = True

    def __init__(self, classes: Sequence[str], said: dict[str, tuple[Any, Any]], task: Task = "multilabel") -> None:
        self.name, self.classes, self.said, self.task = "script", tuple(classes), said, task

    def stream(self, images: Iterable[Path], **_: Any) -> Iterator[Prediction]:
        for path in images:
            scores, maps = (np.asarray(v, np.float32) for v in self.said[path.name])
            with Image.open(path) as image:
                width, height = image.size
            yield Prediction(str(path), width, height, self.classes, self.task, scores, maps, None, path)


def score(predictor: Any, data: DataSet, split: str, **options: Any) -> dict[str, Any]:
    result = evaluate(predictor, data, split, **options)
    json.dumps(result, allow_nan=False)  # plain values, and no NaN
    return result


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return open_dataset(write_shapes(tmp_path_factory.mktemp("data") / "shapes", train=4, val=12, size=(64, 96)))


def truth_as_maps(sample: Sample, classes: int) -> NDArray[np.float32]:
    """(C, H, W): 1 on the class's pixels, 2 on one of them that lies in a box that is not difficult."""
    assert sample.mask is not None and sample.boxes is not None and sample.box_classes is not None
    assert sample.box_difficult is not None
    mask = read_mask(sample.mask)
    maps = (mask == np.arange(1, classes + 1)[:, None, None]).astype(np.float32)
    for box, c in zip(sample.boxes[~sample.box_difficult], sample.box_classes[~sample.box_difficult], strict=True):
        x1, y1, x2, y2 = box.astype(int)
        y, x = np.argwhere(mask[y1:y2, x1:x2] == c + 1)[0]
        maps[c, y1 + y, x1 + x] = 2
    return maps


def knows_all(data: DataSet, split: str, order: Sequence[int] | None = None) -> Scripted:
    """A perfect model, with its classes in another order than the data's."""
    order = list(range(len(data.classes)) if order is None else order)
    said = {
        s.path.name: (10.0 * s.labels[order], truth_as_maps(s, len(data.classes))[order]) for s in data.split(split)
    }
    return Scripted([data.classes[i] for i in order], said)


# --- the perfect model ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (4, 2, 0, 1, 3)])
def test_a_perfect_model_has_perfect_scores(shapes: DataSet, order: tuple[int, ...]) -> None:
    result = score(knows_all(shapes, "val", order), shapes, "val")
    assert result["data"] == "shapes" and result["split"] == "val" and result["images"] == 12
    assert result["classification"]["map"] == 1.0
    assert result["classification"]["ap"] == dict.fromkeys(shapes.classes, 1.0)
    assert result["pointing"]["map"] == 1.0
    assert result["pointing"]["pointing_game"] == 1.0
    assert result["localization"]["max_box_acc_v2"] > 0.95 and result["localization"]["pxap"] > 0.95
    assert result["segmentation"]["miou"] == 1.0
    assert list(result["segmentation"]["iou"]) == ["background", *(shapes.classes[i] for i in order)]


def test_one_wrong_prediction_affects_its_class_alone(shapes: DataSet) -> None:
    model = knows_all(shapes, "val")
    sample = next(s for s in shapes.split("val") if (s.labels == 1).any())
    c = int(np.flatnonzero(sample.labels == 1)[0])
    scores, maps = model.said[sample.path.name]
    scores, maps = scores.copy(), maps.copy()
    scores[c] = -20  # the last of all
    maps[c] = 0
    model.said[sample.path.name] = (scores, maps)
    result = score(model, shapes, "val")
    positives = sum(s.labels[c] == 1 for s in shapes.split("val"))
    total = sum(s.labels[c] != 0 for s in shapes.split("val"))
    assert result["classification"]["ap"][shapes.classes[c]] == pytest.approx(
        ((positives - 1) + positives / total) / positives
    )
    others = [name for i, name in enumerate(shapes.classes) if i != c]
    assert all(result["classification"]["ap"][name] == 1.0 for name in others)
    assert result["segmentation"]["iou"][shapes.classes[c]] < 1.0


def test_classes_are_matched_by_name(shapes: DataSet) -> None:
    rng = np.random.default_rng(1)
    names = [s.path.name for s in shapes.split("val")]
    said = {n: (rng.normal(size=5), rng.normal(size=(5, 4, 6))) for n in names}
    order = [3, 0, 4, 2, 1]
    permuted = {n: (scores[order], maps[order]) for n, (scores, maps) in said.items()}
    expected = score(Scripted(shapes.classes, said), shapes, "val")
    assert score(Scripted([shapes.classes[i] for i in order], permuted), shapes, "val") == expected
    assert 0 < expected["classification"]["map"] < 1


def test_no_common_class_is_refused(shapes: DataSet) -> None:
    with pytest.raises(DataError, match=r"no class in common: the model has 'cat', 'dog'.*'cross', 'disc'") as caught:
        evaluate(Scripted(("cat", "dog"), {}), shapes, "val")  # type: ignore[arg-type]
    assert caught.value.hint


def test_classes_that_only_one_has(shapes: DataSet) -> None:
    """The metrics of the common classes are those on data and model with these classes alone."""
    rng = np.random.default_rng(3)
    names = [s.path.name for s in shapes.split("val")]
    said = {n: (rng.normal(size=5), rng.normal(size=(5, 4, 6))) for n in names}
    whole = score(Scripted(shapes.classes, said), shapes, "val")
    # The model knows "cube" in place of the last class, and writes the first in capitals.
    model = Scripted((shapes.classes[0].upper(), *shapes.classes[1:4], "cube"), said)
    data = match_classes(model, shapes)  # type: ignore[arg-type]
    assert [note.partition(":")[0] for note in data.notes[-3:]] == [
        "shapes writes the model's class 'CROSS' as 'cross'.",
        "shapes lacks 'cube'",
        "The model does not know 'triangle'",
    ]
    result = score(model, shapes, "val")
    assert tuple(result["notes"]) == data.notes[-3:]
    assert "notes" not in score(model, data, "val"), "these are matched already, and have their notes"
    for part, key in (("classification", "ap"), ("pointing", "ap")):
        assert list(result[part][key].values())[:4] == list(whole[part][key].values())[:4]
        assert result[part][key]["cube"] is None
    present = [value for value in list(whole["classification"]["ap"].values())[:4] if value is not None]
    assert result["classification"]["map"] == pytest.approx(np.mean(present))
    assert "triangle" not in result["segmentation"]["iou"]


def test_the_mean_iou_is_over_the_classes_that_the_data_has(tmp_path: Path) -> None:
    """The data has cat alone: dog, drawn on a cat, is a miss of cat, and no class with an IoU of 0."""
    for name, values in (("truth", (1, 1, 0, 0)), ("image", (0, 0, 0, 0))):
        Image.fromarray(np.array([values], np.uint8)).save(tmp_path / f"{name}.png")
    sample = Sample("image", tmp_path / "image.png", np.array([1], np.int8), mask=tmp_path / "truth.png")
    data = DataSet("one", "csv", tmp_path, ("cat",), "multilabel", {"test": lambda: [sample]})
    maps = np.array([[[9, 2, -9, -9]], [[-9, 5, -9, 0.7]]])
    model = Scripted(("cat", "dog"), {"image.png": ((9, 9), maps)})
    result = score(model, data, "test")
    assert result["segmentation"]["iou"] == {"background": 0.5, "cat": 0.5, "dog": None}
    assert result["segmentation"]["miou"] == 0.5
    assert result["segmentation"]["hindsight"]["miou"] == pytest.approx((1 + 0.5) / 2), "above the dog of 0.7"
    pairs = [(next(model.stream([sample.path])), dataclasses.replace(sample, labels=np.array([1, 0], np.int8)))]
    assert fit_background(MaskParams(rule="score"), pairs)[1][0]["miou"] == 0.5
    assert image_overlaps(pairs, MaskParams(rule="score"), PLAIN).tolist() == [[[1, 1, 0], [1, 1, 0], [2, 2, 0]]]


def test_classes_without_a_mask_value_are_named(tmp_path: Path) -> None:
    """Of a model's 300 classes the last ones have no value in a mask."""
    Image.fromarray(np.array([[1, 2]], np.uint8)).save(tmp_path / "mask.png")
    Image.new("RGB", (2, 1)).save(tmp_path / "image.png")
    sample = Sample("image", tmp_path / "image.png", np.array([1, 1, -1], np.int8), mask=tmp_path / "mask.png")
    data = DataSet("big", "csv", tmp_path, ("c5", "c280", "c290"), "multilabel", {"test": lambda: [sample]})
    model = Scripted([f"c{i}" for i in range(300)], {"image.png": (np.zeros(300), np.zeros((300, 1, 2)))})
    assert score(model, data, "test")["notes"][1] == "A mask holds 254 classes: the pixels of 'c280' are ignored."


def test_multiclass_data_with_other_classes(tmp_path: Path) -> None:
    """A prediction of a class that the data lacks is wrong; images of a class that the model lacks are left out."""
    said = {f"{i}.png": (scores, np.zeros((3, 1, 1))) for i, scores in enumerate(np.eye(3)[[0, 1, 2, 0]])}
    labels = np.where(np.eye(3)[[0, 1, 1, 2]] == 1, 1, -1).astype(np.int8)  # of a, b, z; the model has a, b, c
    data = dataclasses.replace(table(tmp_path, labels, "multiclass"), classes=("a", "b", "z"))
    result = score(Scripted(("a", "b", "c"), said, "multiclass"), data, data.splits[0])
    assert (result["images"], result["classification"]["accuracy"]) == (3, pytest.approx(2 / 3))


def test_a_split_of_one_class_says_that_its_accuracy_is_none(tmp_path: Path) -> None:
    labels = np.tile(np.int8([1, -1]), (4, 1))
    data = table(tmp_path, labels, "multiclass")
    said = {f"{i}.png": (np.array([1.0, 0.0]), np.zeros((2, 1, 1))) for i in range(4)}
    result = score(Scripted(data.classes, said, "multiclass"), data, data.splits[0])
    assert result["classification"]["accuracy"] == 1
    assert "All 4 images" in result["notes"][0]
    assert "note: All 4 images" in evaluation_table(result)


# --- against scikit-learn and by hand -------------------------------------------------------------------------------


def table(tmp_path: Path, labels: NDArray[np.int8], task: Task, **known: Any) -> DataSet:
    """A data set of N images of 100 x 100; `known` holds a list of N values for a field of Sample."""
    samples = []
    for i, row in enumerate(labels):
        path = tmp_path / f"{i}.png"
        Image.new("RGB", (100, 100)).save(path)
        samples.append(Sample(path.stem, path, row, **{field: values[i] for field, values in known.items()}))
    classes = tuple("abcdefgh"[: labels.shape[1]])
    return DataSet("table", "csv", tmp_path, classes, task, {"test": lambda: samples})


def test_multilabel_metrics_equal_scikit_learn(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    labels = rng.choice(np.array([-1, 0, 1], np.int8), (60, 3), p=[0.5, 0.2, 0.3])
    scores = np.round(rng.normal(size=(60, 3)), 1).astype(np.float32)  # rounded: some are equal
    data = table(tmp_path, labels, "multilabel")
    model = Scripted(data.classes, {f"{i}.png": (scores[i], np.zeros((3, 2, 2))) for i in range(60)})
    result = score(model, data, "test", variant="plain")
    expected = []
    for c in range(3):
        known = labels[:, c] != 0  # ignored labels are left out
        expected.append(average_precision_score(labels[known, c] == 1, scores[known, c]))
    assert list(result["classification"]["ap"].values()) == pytest.approx(expected)
    assert result["classification"]["map"] == pytest.approx(np.mean(expected))
    assert result["classification"]["variant"] == "plain"
    assert not {"pointing", "localization", "segmentation"} & set(result)  # nothing to compare with
    assert "accuracy" not in result["classification"]


def test_multiclass_metrics_equal_scikit_learn(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    targets = rng.choice(4, 80, p=[0.55, 0.25, 0.15, 0.05])
    scores = (rng.normal(size=(80, 4)) + 1.5 * np.eye(4)[targets] + rng.normal(0, 5, (80, 1))).astype(np.float32)
    data = table(tmp_path, np.where(np.eye(4)[targets] > 0, 1, -1).astype(np.int8), "multiclass")
    model = Scripted(data.classes, {f"{i}.png": (scores[i], np.zeros((4, 2, 2))) for i in range(80)}, "multiclass")
    result = score(model, data, "test", variant="plain")["classification"]
    probs = softmax(scores.astype(np.float64), axis=1)
    assert result["accuracy"] == pytest.approx(accuracy_score(targets, scores.argmax(axis=1)))
    assert result["class_mean_accuracy"] == pytest.approx(balanced_accuracy_score(targets, scores.argmax(axis=1)))
    assert result["roc_auc"] == pytest.approx(roc_auc_score(targets, probs, multi_class="ovr"), abs=1e-6)
    expected = [average_precision_score(targets == c, probs[:, c]) for c in range(4)]
    assert list(result["ap"].values()) == pytest.approx(expected, abs=1e-6)


def test_sure_predictions_are_still_ranked(tmp_path: Path) -> None:
    """Their probabilities round to 1; of two classes that exclude each other both have the same ROC AUC."""
    data = table(tmp_path, np.array([[-1, 1], [-1, 1], [1, -1], [1, -1]], np.int8), "multiclass")
    said = {f"{i}.png": (np.array([margin, 0]), np.zeros((2, 2, 2))) for i, margin in enumerate((18, 0, 25, 19))}
    result = score(Scripted(data.classes, said, "multiclass"), data, "test", variant="plain")["classification"]
    assert list(result["ap"].values()) == [1.0, 1.0]
    assert result["roc_auc"] == 1.0


def test_a_multiclass_model_is_ranked_by_probability_whatever_the_data(tmp_path: Path) -> None:
    """The raw scores of 1.png are all higher, its probability of a is lower; both show a, and only 0.png is located."""
    said = {"0.png": ((2, 0), np.eye(4)[[0, 0], None]), "1.png": ((9, 9), np.eye(4)[[3, 3], None])}
    boxes = [np.array([[0, 0, 20, 100]], np.float32)] * 2
    for task, row in (("multiclass", [1, -1]), ("multilabel", [1, 0])):
        labels = np.array([row, row], np.int8)
        classes = [np.array([0])] * 2
        data = table(tmp_path, labels, task, boxes=boxes, box_classes=classes)  # type: ignore[arg-type]
        result = score(Scripted(data.classes, said, "multiclass"), data, "test", variant="plain")
        assert result["pointing"]["ap"]["a"] == pytest.approx(0.5), "the hit is ranked first"
    data = table(tmp_path, np.array([[1, -1], [-1, -1]], np.int8), "multilabel")
    model = Scripted(data.classes, said, "multiclass")
    assert score(model, data, "test")["classification"]["ap"]["a"] == 1
    save_curves(tmp_path / "curves.csv", measure(model, data, "test"), data, "test")  # type: ignore[arg-type]
    assert (tmp_path / "curves.csv").read_text().splitlines()[1].startswith('"a",1.000000,1.000000,0.880')


def test_the_curve_of_saturated_probabilities_has_the_area_that_is_reported(tmp_path: Path) -> None:
    """Probabilities of logits that are far apart are rounded to 1, and would all be equal."""
    rng = np.random.default_rng(0)
    labels = np.where(rng.random(60) < 0.5, 1, -1).astype(np.int8)
    margins = 40 + rng.normal(size=60) + 2 * labels
    said = {f"{i}.png": (np.array([m, 0], np.float32), np.zeros((2, 2, 2))) for i, m in enumerate(margins)}
    data = table(tmp_path, np.stack([labels, -labels], axis=1), "multiclass")
    model = Scripted(data.classes, said, "multiclass")
    reported = score(model, data, "test", variant="plain")["classification"]["ap"]["a"]
    assert 0.9 < reported < 1
    save_curves(tmp_path / "curves.csv", measure(model, data, "test"), data, "test")  # type: ignore[arg-type]
    rows = [row.split(",") for row in (tmp_path / "curves.csv").read_text().splitlines() if row.startswith('"a"')]
    recall, precision = np.array([row[1:3] for row in rows], float).T
    assert float((np.diff(recall, prepend=0.0) * precision).sum()) == pytest.approx(reported, abs=1e-4)


def test_pointing_equals_the_metrics_of_each_class() -> None:
    rng = np.random.default_rng(6)
    samples = []
    for i in range(40):
        count = int(rng.integers(0, 5))
        corner = rng.uniform(0, 80, (count, 2))
        samples.append(
            Sample(
                str(i),
                Path(f"{i}.png"),
                np.zeros(6, np.int8),
                boxes=np.hstack([corner, corner + 20]).astype(np.float32),
                box_classes=rng.integers(0, 5, count),
                box_difficult=rng.random(count) < 0.4 if i % 3 else None,
            )
        )
    points, scores = rng.uniform(0, 100, (40, 6, 2)), rng.normal(size=(40, 6)).round(1)
    report = pointing_report(points, scores, samples, "abcdef", "voc10")
    inside, pairs = 0.0, 0
    for c in range(6):
        boxes, ignored = [], []
        for s in samples:
            assert s.boxes is not None and s.box_classes is not None
            hard = np.zeros(len(s.boxes), bool) if s.box_difficult is None else s.box_difficult
            boxes.append(s.boxes[(s.box_classes == c) & ~hard])
            ignored.append(bool((s.box_classes == c).any()) and not len(boxes[-1]))
        expected = pointing_average_precision(points[:, c], scores[:, c], boxes, 18, ignored=ignored)
        assert report["ap"]["abcdef"[c]] == (None if np.isnan(expected) else expected)
        if present := sum(len(b) > 0 for b in boxes):
            inside += present * pointing_game(points[:, c], boxes, 15)
            pairs += present
    assert report["ap"]["f"] is None and report["pointing_game"] == pytest.approx(inside / pairs)


def test_points_are_kept_only_where_boxes_are_measured(shapes: DataSet) -> None:
    model = knows_all(shapes, "val")
    assert len(measure(model, shapes, "val").points) == 12  # type: ignore[arg-type]
    tally = measure(model, shapes, "val", measures=("classification",))  # type: ignore[arg-type]
    assert not tally.points and "notes" not in summarize(tally, shapes, "val", "voc10")
    bare = [dataclasses.replace(s, boxes=None) for s in shapes.split("val")]
    data = dataclasses.replace(shapes, readers={"val": lambda: bare}, _cache={})
    assert not measure(model, data, "val").points  # type: ignore[arg-type]


def test_difficult_objects_by_hand(tmp_path: Path) -> None:
    """Classes a, b; a point lies at the centre of a cell of 20 pixels: cell (0, 0) is (10, 10), (2, 2) is (50, 50)."""

    def maps(*cells: tuple[int, int]) -> NDArray[np.float32]:
        made = np.zeros((2, 5, 5), np.float32)
        for c, (row, column) in enumerate(cells):
            made[c, row, column] = 1
        return made

    labels = np.array([[1, 1], [0, -1], [-1, -1], [1, -1]], np.int8)
    boxes = [  # of each image: (box, class, difficult)
        [((0, 0, 20, 20), 0, False), ((80, 80, 100, 100), 1, False), ((0, 80, 20, 100), 1, True)],
        [((0, 0, 20, 20), 0, True)],
        [],
        [((60, 40, 100, 60), 0, False)],
    ]
    data = table(
        tmp_path,
        labels,
        "multilabel",
        boxes=[np.array([b for b, _, _ in row], np.float32).reshape(-1, 4) for row in boxes],
        box_classes=[np.array([c for _, c, _ in row], np.int64) for row in boxes],
        box_difficult=[np.array([d for _, _, d in row], bool) for row in boxes],
    )
    model = Scripted(
        data.classes,
        {
            "0.png": ((0.9, 0.9), maps((0, 0), (4, 0))),  # a: inside its box; b: on the difficult one of two, a miss
            "1.png": ((0.8, 0.1), maps((4, 4), (0, 0))),  # a: only a difficult one: counts neither way
            "2.png": ((0.7, 0.1), maps((0, 0), (0, 0))),  # absent: the point is wrong wherever it lies
            "3.png": ((0.6, 0.1), maps((2, 2), (0, 0))),  # a: at (50, 50), 10 pixels beside its box: inside 18 and 15
        },
    )
    result = score(model, data, "test", variant="plain")
    assert result["classification"]["ap"]["a"] == pytest.approx((1 + 2 / 3) / 2)  # ranks: present, absent, present
    assert result["pointing"]["ap"]["a"] == pytest.approx((1 + 2 / 3) / 2)
    assert result["pointing"]["ap"]["b"] == 0
    assert result["pointing"]["map"] == pytest.approx((1 + 2 / 3) / 4)
    assert result["pointing"]["pointing_game"] == pytest.approx(2 / 3)
    assert result["pointing"]["tolerance"] == 18
    boxes_of_a = result["localization"]["max_box_acc"]  # of the easy pairs: 0.png and 3.png of a, 0.png of b
    assert boxes_of_a["0.3"] >= 1 / 3 and "pxap" not in result["localization"], "there is no mask"
    without_class_b = dataclasses.replace(data, readers={"test": lambda: data.split("test")[1:]}, _cache={})
    result = score(model, without_class_b, "test")
    assert result["classification"]["ap"]["b"] is None and result["pointing"]["ap"]["b"] is None
    assert result["classification"]["map"] == result["classification"]["ap"]["a"]


def test_a_mask_of_another_size_is_named(shapes: DataSet, tmp_path: Path) -> None:
    sample = shapes.split("val")[0]
    Image.new("L", (10, 10)).save(tmp_path / "small.png")
    odd = dataclasses.replace(
        shapes, readers={"val": lambda: [dataclasses.replace(sample, mask=tmp_path / "small.png")]}, _cache={}
    )
    with pytest.raises(DataError, match=r"small\.png is 10 x 10, its image 96 x 64"):
        evaluate(knows_all(shapes, "val"), odd, "val")  # type: ignore[arg-type]


# --- masks at other thresholds ---------------------------------------------------------------------------------------


def scribbles(data: DataSet, split: str) -> Scripted:
    """A model that is often right: the truth, coarse and with noise."""
    rng, said = np.random.default_rng(5), {}
    for s in data.split(split):
        maps = truth_as_maps(s, 5)[:, 4::8, 4::8].clip(max=1) + rng.normal(0, 0.3, (5, 8, 12))
        said[s.path.name] = (3.0 * s.labels + rng.normal(0, 2, 5), maps)
    return Scripted(data.classes, said)


def loop_miou(predictions: Iterable[Prediction], samples: Sequence[Sample], params: MaskParams, crf: bool) -> float:
    """Mean IoU, class by class over all pixels, from the masks that `Prediction.mask` draws."""
    both, either = np.zeros(6), np.zeros(6)
    for prediction, sample in zip(predictions, samples, strict=True):
        assert sample.mask is not None
        truth, mask = read_mask(sample.mask), prediction.mask(crf, params)
        for c in range(6):
            is_true, is_drawn, counts = truth == c, mask == c, truth != 255
            both[c] += (is_true & is_drawn & counts).sum()
            either[c] += ((is_true | is_drawn) & counts).sum()
    return float(np.mean(both[either > 0] / either[either > 0]))


def test_hindsight_is_the_best_of_all_masks_drawn_one_by_one(shapes: DataSet) -> None:
    model, samples = scribbles(shapes, "val"), shapes.split("val")
    result = score(model, shapes, "val")["segmentation"]
    predictions = list(model.stream([s.path for s in samples]))
    drawn = {
        "score": [MaskParams(rule="score", score=t) for t in SCORES],
        "constant": [MaskParams(rule="constant", constant=t) for t in THRESHOLDS],
    }
    expected = {r: [loop_miou(predictions, samples, p, False) for p in params] for r, params in drawn.items()}
    assert result["hindsight"]["miou"] == pytest.approx(max(expected["score"]))
    assert result["hindsight"]["threshold"] == SCORES[int(np.argmax(expected["score"]))]
    assert (result["rule"], result["threshold"], result["calibration"]) == ("score", 0.0, None)
    assert result["miou"] == pytest.approx(expected["score"][SCORES.index(0.0)])
    assert result["miou"] < result["hindsight"]["miou"]
    for rule, each in expected.items():
        histogram = sum(
            strength_histogram(p, true_mask(p, s), MaskParams(rule=rule))  # type: ignore[arg-type]
            for p, s in zip(predictions, samples, strict=True)
        )
        found = [mean_iou(confusion) for confusion in confusions_by_threshold(histogram)]  # type: ignore[arg-type]
        assert found == pytest.approx(each)


def test_a_crf_has_no_hindsight(shapes: DataSet) -> None:
    one = dataclasses.replace(shapes, readers={"val": lambda: shapes.split("val")[:1]}, _cache={})
    model = scribbles(shapes, "val")
    result = score(model, one, "val", crf=True)["segmentation"]
    predictions = list(model.stream([one.split("val")[0].path]))
    assert "hindsight" not in result and result["crf"] is True
    assert result["miou"] == pytest.approx(loop_miou(predictions, one.split("val"), MaskParams(rule="score"), True))


def test_a_model_that_draws_nothing(shapes: DataSet) -> None:
    said = {s.path.name: (np.full(5, -9.0), np.zeros((5, 2, 3))) for s in shapes.split("val")}
    result = score(Scripted(shapes.classes, said), shapes, "val")["segmentation"]
    masks = [read_mask(s.mask) for s in shapes.split("val") if s.mask is not None]
    shown = sum((m == 0).sum() for m in masks) / sum((m != 255).sum() for m in masks)
    classes = len(set(np.concatenate([np.unique(m) for m in masks])) - {255})
    assert result["iou"]["background"] == pytest.approx(shown)
    assert result["miou"] == pytest.approx(shown / classes)
    assert result["hindsight"]["miou"] == pytest.approx(result["miou"])


# --- a real network -------------------------------------------------------------------------------------------------


def test_metrics_do_not_depend_on_the_batch_and_progress_counts_images(shapes: DataSet) -> None:
    torch.manual_seed(0)
    model = create_model("test_resnet", num_classes=5, pretrained=False)
    predictor = Predictor(
        "tiny", [Member(model, Preprocess(64, (0.5,) * 3, (0.5,) * 3))], shapes.classes, "multilabel", "cpu"
    )
    progress = CountingProgress()
    expected = score(predictor, shapes, "val", progress=progress)
    assert progress.counts == {"evaluating": 12}
    for batch_size in (1, 5):
        stream = predictor.stream([s.path for s in shapes.split("val")], modalities=False, batch_size=batch_size)
        result = score(predictor, shapes, "val", predictions=stream)
        for part in ("classification", "pointing"):
            assert result[part]["ap"] == pytest.approx(expected[part]["ap"], abs=1e-9)
        assert result["segmentation"]["miou"] == pytest.approx(expected["segmentation"]["miou"], abs=1e-3)
