"""The results of a prediction follow from its scores and maps by hand calculation; it is saved atomically."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import map_coordinates
from scipy.special import expit, softmax

from wildcat.errors import ConfigError, RunError
from wildcat.export.instances import InstanceParams, find_instances
from wildcat.files import file_name, file_names
from wildcat.models.calibration import Calibration
from wildcat.prediction import SCHEMA, Prediction
from wildcat.regions.masks import MaskParams

CLASSES = ("cat", "dog", "fish")


def prediction(**changes: Any) -> Prediction:
    """A 90 x 40 image with three 2 x 3 class maps: cat peaks lower left, dog upper right, fish in the middle."""
    maps = np.array(
        [[[0, 1, 2], [9, 1, 0]], [[-5, -4, 4], [-5, -6, -7]], [[1, 8, 1], [1, 7, 1]]],
        dtype=np.float32,
    )
    values: dict[str, Any] = {
        "path": "pets/a.png",
        "width": 90,
        "height": 40,
        "classes": CLASSES,
        "task": "multilabel",
        "class_scores": np.array([0.5, -2.0, 3.0], np.float32),
        "class_maps": maps,
        "modality_maps": np.stack([maps + 1, maps - 1], axis=1),
        "image": Image.new("RGB", (90, 40), (40, 90, 160)),
    }
    return Prediction(**{**values, **changes})


# --- scores, probabilities, labels ----------------------------------------------------------------------------------


def test_multilabel_labels_have_a_probability_of_at_least_one_half() -> None:
    p = prediction()
    assert dict(p.scores) == {"cat": 0.5, "dog": -2.0, "fish": 3.0}
    np.testing.assert_allclose(list(p.probabilities.values()), expit([0.5, -2.0, 3.0]), rtol=1e-6)
    assert p.labels == ("fish", "cat")  # the likeliest first
    assert prediction(class_scores=np.array([0, -1e-3, -9], np.float32)).labels == ("cat",)  # 0 is exactly one half
    assert prediction(class_scores=np.array([-1, -2, -3], np.float32)).labels == ()
    assert prediction(class_scores=np.array([-1, -2, -3], np.float32)).top == "cat"


def test_multiclass_is_the_likeliest_class_and_probabilities_add_up() -> None:
    p = prediction(task="multiclass", class_scores=np.array([-5, -4, -6], np.float32))
    np.testing.assert_allclose(list(p.probabilities.values()), softmax([-5.0, -4.0, -6.0]), rtol=1e-5)
    assert p.labels == ("dog",)


@pytest.mark.parametrize(
    ("task", "gates", "labels"),
    [
        # probabilities 0.62, 0.12, 0.95
        ("multilabel", (0.7, 0.1, 0.96), ("dog",)),
        ("multilabel", (0.6, 0.1, 0.9), ("fish", "cat", "dog")),
        ("multilabel", (1.0, 1.0, 1.0), ()),
        # probabilities 0.075, 0.006, 0.918: the likeliest class is a label whatever its threshold
        ("multiclass", (0.07, 1.0, 1.0), ("fish", "cat")),
        ("multiclass", (1.0, 1.0, 1.0), ("fish",)),
        ("multiclass", None, ("fish",)),
    ],
)
def test_one_set_of_thresholds_decides_labels_boxes_masks_and_exports(
    task: Any, gates: tuple[float, ...] | None, labels: tuple[str, ...]
) -> None:
    maps = np.zeros((3, 4, 9), np.float32)
    maps[0, 0, 0] = maps[1, 3, 4] = maps[2, 1, 8] = 9  # in corners of their own: every drawn class is visible
    calibration = None if gates is None else Calibration(MaskParams(gate=gates, rule="score", score=1.0), {})
    p = prediction(task=task, class_maps=maps, modality_maps=None, calibration=calibration)
    assert p.labels == tuple(p.boxes) == labels
    assert {CLASSES[i - 1] for i in np.unique(p.mask()) if i} == set(labels)
    assert {i.name for i in find_instances(p, InstanceParams(min_area=0))} == set(labels)
    row = p.to_dict()
    assert row["labels"] == list(row["boxes"]) == list(labels)
    explicit = InstanceParams(min_score=0.9, min_area=0)
    assert {i.name for i in find_instances(p, explicit)} == {"fish"}, "an explicit minimum score overrides them"


@pytest.mark.parametrize("task", ["multilabel", "multiclass"])
def test_a_row_of_the_likeliest_classes(task: Any) -> None:
    p = prediction(task=task, class_scores=np.asarray([0.5, -2.0, 3.0], np.float32))
    whole, row = p.to_dict(), p.to_dict(top_k=2)
    assert list(row["scores"]) == list(row["probabilities"]) == list(row["points"]) == [CLASSES[2], CLASSES[0]]
    for column in ("scores", "probabilities", "points", "boxes"):
        assert row[column].items() <= whole[column].items()
    assert row["labels"] == list(row["boxes"]) == whole["labels"]
    assert p.to_dict(top_k=1)["labels"] == whole["labels"][:1] == list(p.to_dict(top_k=1)["boxes"])
    assert p.to_dict(top_k=9).keys() == whole.keys() and p.to_dict(top_k=9)["scores"] == whole["scores"]


@pytest.mark.parametrize("crf", [False, True])
def test_the_crf_runs_on_the_device_of_the_predictor(crf: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = []

    def record(maps: torch.Tensor, class_prob: torch.Tensor, size: tuple[int, int], *_: Any, **__: Any) -> torch.Tensor:
        devices.extend([maps.device.type, class_prob.device.type])
        return torch.zeros(size, dtype=torch.int64)

    monkeypatch.setattr("wildcat.prediction.maps_to_mask", record)
    mask = prediction(device=torch.device("meta")).mask(crf=crf)
    assert mask.shape == (40, 90)
    assert devices == ["meta" if crf else "cpu"] * 2


def test_a_prediction_cannot_be_changed() -> None:
    p = prediction()
    with pytest.raises(dataclasses.FrozenInstanceError):
        p.width = 3  # type: ignore[misc]


# --- places ---------------------------------------------------------------------------------------------------------


def test_points_are_the_centres_of_the_highest_cells_in_pixels_of_the_image() -> None:
    assert dict(prediction().points) == {"cat": (15.0, 30.0), "dog": (75.0, 10.0), "fish": (45.0, 10.0)}


def test_heatmaps_are_bilinear_between_cell_centres() -> None:
    p = prediction()
    y, x = np.mgrid[0:40, 0:90]
    # The centre of pixel x lies at x + 0.5; cell j of 3 covers 30 pixels and has its centre at 30 j + 15.
    grid = [(y + 0.5) * 2 / 40 - 0.5, (x + 0.5) * 3 / 90 - 0.5]
    for i, name in enumerate(CLASSES):
        expected = map_coordinates(p.class_maps[i].astype(np.float64), grid, order=1, mode="nearest")
        np.testing.assert_allclose(p.heatmap(name), expected, atol=1e-5)


def test_modalities_are_in_the_image_resolution_and_their_mean_is_the_heatmap() -> None:
    p = prediction()
    modalities = p.modalities("dog")
    assert modalities.shape == (2, 40, 90)
    np.testing.assert_allclose(modalities.mean(axis=0), p.heatmap("dog"), atol=1e-5)
    np.testing.assert_allclose(modalities[0] - modalities[1], 2, atol=1e-5)
    with pytest.raises(ConfigError, match="modalities=True"):
        prediction(modality_maps=None).modalities("dog")


def test_shares_of_modality_maps_that_differ_and_of_maps_that_are_alike() -> None:
    assert prediction().map_shares("dog") == [1.0, 0.0]  # map 0 is above map 1 everywhere
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(3, 4, 10, 10)).astype(np.float32)
    p = prediction(modality_maps=maps, class_maps=maps.max(axis=1))
    highest = np.argsort(-p.class_maps[1].ravel())[:20]
    winners = maps[1].reshape(4, 100)[:, highest].argmax(axis=0)
    assert p.map_shares("dog") == pytest.approx([(winners == m).mean() for m in range(4)])
    alike = p.class_maps[:, None] + 1e-3 * maps
    assert prediction(modality_maps=alike, class_maps=p.class_maps).map_shares("dog") is None
    with pytest.raises(ConfigError, match="modalities=True"):
        prediction(modality_maps=None).map_shares("dog")


@pytest.mark.parametrize("cells", [(10, 10), (14, 14), (28, 28), (88, 118), (400, 400)])
def test_an_object_of_one_cell_has_a_box(cells: tuple[int, int]) -> None:
    maps = np.full((3, *cells), -5, np.float32)
    maps[:, cells[0] // 2, cells[1] // 3] = 5
    (box,) = prediction(class_maps=maps, modality_maps=None).find_boxes("cat")
    x, y = prediction(class_maps=maps, modality_maps=None).points["cat"]
    assert box.x1 <= x <= box.x2 and box.y1 <= y <= box.y2


def test_boxes_surround_the_upper_half_of_the_range_of_the_map() -> None:
    maps = np.zeros((3, 4, 9), np.float32)
    maps[0, 1, 2] = 6  # one cell of 10 x 10 pixels; between it and zero, half way is the edge of the cell
    p = prediction(class_maps=maps, modality_maps=None)
    (box,) = p.boxes["cat"]
    np.testing.assert_allclose(box[:4], (20, 10, 30, 20), atol=2)
    assert box.score > 5
    assert set(p.boxes) == {"fish", "cat"}  # the predicted classes
    assert p.boxes["fish"] == []  # a flat map points nowhere
    larger = p.find_boxes("cat", threshold=0.2)[0]
    assert larger.x1 < box.x1 and larger.x2 > box.x2 and larger.y1 < box.y1 and larger.y2 > box.y2


def test_an_unknown_class_suggests_the_most_similar() -> None:
    with pytest.raises(ConfigError) as caught:
        prediction().heatmap("fsh")
    assert caught.value.message == "this model has no class 'fsh'."
    assert caught.value.hint == "did you mean fish?"
    with pytest.raises(ConfigError, match="It has: cat, dog, fish"):
        prediction().modalities("zebra")


def test_plot_is_hot_at_the_point_and_clear_far_from_it() -> None:
    maps = np.zeros((3, 4, 9), np.float32)
    maps[0, 3, 8] = 5  # lower right: the cell has its centre at (850, 350)
    p = prediction(width=900, height=400, image=Image.new("RGB", (900, 400), (0, 0, 60)), class_maps=maps)
    plotted = np.asarray(p.plot("cat")).astype(int)
    assert plotted.shape == (400, 900, 3)
    assert np.abs(plotted[:50, :50] - (0, 0, 60)).max() <= 2
    hot = plotted[395, 895]  # below the mark and its label
    assert hot[0] > 150 and hot[0] > hot[2]
    mark = plotted[345:356, 845:856].reshape(-1, 3)
    assert np.ptp(mark, axis=0).max() > 100  # a ring of several colours, where the heat alone is smooth
    assert np.asarray(p.plot("cat", boxes=True)).astype(int).tolist() != plotted.tolist()


def test_a_notebook_shows_the_likeliest_class_in_a_small_image(tmp_path: Path) -> None:
    p = prediction()
    png = p._repr_png_()
    assert png is not None
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), np.asarray(p.plot("fish")))
    tall = Image.new("RGB", (400, 3200), (40, 90, 160))
    png = prediction(width=400, height=3200, image=tall)._repr_png_()
    assert png is not None
    shown = Image.open(io.BytesIO(png))
    assert shown.format == "PNG" and shown.size == (80, 640)
    hot, cold = (np.asarray(shown)[y, x].astype(int) for y, x in ((160, 55), (600, 20)))
    assert hot[0] > cold[0] + 40, "heat beside the point, upper middle, and none in the corner"
    assert tall.size == (400, 3200)
    assert prediction(image=tmp_path / "gone.png")._repr_png_() is None


# --- rows and folders -----------------------------------------------------------------------------------------------


def test_heat_of_a_class_fades_with_its_probability_where_it_is_not_predicted() -> None:
    made = prediction(class_scores=np.array([0.5, -2.0, -9.0], np.float32))
    plain = np.asarray(made.load_image()).astype(int)
    change = {c: np.abs(np.asarray(made.plot(c)).astype(int) - plain).sum(axis=2) for c in made.classes}
    far_from_marks = np.s_[:, :30]  # dog and fish are marked further right, cat is predicted and hot here
    assert change["cat"][far_from_marks].max() > 100
    assert change["dog"][np.s_[:, 40:50]].max() > change["fish"][far_from_marks].max()
    assert change["fish"][far_from_marks].max() < 3, "one in eight thousand: as good as nothing"
    assert made.opacity("cat") > made.opacity("dog") > made.opacity("fish") > 0


def test_a_row_is_plain_json_with_all_that_was_predicted() -> None:
    row = json.loads(json.dumps(prediction().to_dict()))
    assert {k: row[k] for k in ("image", "width", "height")} == {"image": "pets/a.png", "width": 90, "height": 40}
    assert row["scores"] == {"cat": 0.5, "dog": -2.0, "fish": 3.0}
    assert row["labels"] == ["fish", "cat"]
    assert row["points"] == {"cat": [15, 30], "dog": [75, 10], "fish": [45, 10]}
    assert list(row["boxes"]) == ["fish", "cat"]
    assert all(len(box) == 5 for boxes in row["boxes"].values() for box in boxes)
    assert abs(row["probabilities"]["fish"] - expit(3.0)) < 1e-4


def test_save_writes_raw_arrays_overlays_and_a_manifest(tmp_path: Path) -> None:
    p = prediction()
    folder = p.save(tmp_path / "new" / "a")
    manifest = json.loads((folder / "prediction.json").read_text(encoding="utf-8"))
    assert manifest["schema"] == SCHEMA
    assert manifest["labels"] == ["fish", "cat"]
    with np.load(folder / manifest["files"]["maps"]) as arrays:
        np.testing.assert_array_equal(arrays["scores"], p.class_scores)
        np.testing.assert_array_equal(arrays["class_maps"], p.class_maps)
        np.testing.assert_array_equal(arrays["modality_maps"], p.modality_maps)
    assert set(manifest["files"]["overlays"]) == {"fish", "cat"}
    for name in manifest["files"]["overlays"].values():
        with Image.open(folder / name) as overlay:
            assert overlay.size == (90, 40)
    listed = {"prediction.json", manifest["files"]["maps"], *manifest["files"]["overlays"].values()}
    assert {f.name for f in folder.iterdir()} == listed


def test_save_leaves_nothing_behind_on_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plot = Prediction.plot

    def fail_at_the_second(self: Prediction, name: str | None = None, *, boxes: bool = False) -> Image.Image:
        if name == "cat":
            raise OSError(28, "No space left on device")
        return plot(self, name, boxes=boxes)

    monkeypatch.setattr(Prediction, "plot", fail_at_the_second)
    with pytest.raises(OSError, match="No space left"):
        prediction().save(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_save_never_overwrites(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "precious.txt").write_text("mine")
    with pytest.raises(RunError, match="never overwritten"):
        prediction().save(tmp_path / "a")
    assert [f.read_text() for f in (tmp_path / "a").iterdir()] == ["mine"]


def test_classes_with_similar_names_get_separate_files(tmp_path: Path) -> None:
    p = prediction(classes=("a/b", "a_b", "A/B"), class_scores=np.array([2, 1, 3], np.float32))
    overlays = json.loads((p.save(tmp_path / "x") / "prediction.json").read_text())["files"]["overlays"]
    assert len({name.casefold() for name in overlays.values()}) == 3
    assert all((tmp_path / "x" / name).is_file() for name in overlays.values())


def test_pickling_copying_and_plain_values() -> None:
    p = prediction()
    expected = p.to_dict()
    assert [type(value) for value in dict(p.scores).values()] == [float] * 3
    for text in (p.to_dict(), p.scores, p.probabilities, p.points, p.boxes, p.labels):
        json.dumps(text)
    for again in (pickle.loads(pickle.dumps(p)), copy.deepcopy(p), copy.copy(p)):  # with what was computed before
        assert again.to_dict() == expected and again.boxes == p.boxes
        assert np.array_equal(again.heatmap("cat"), p.heatmap("cat"))


def test_a_prediction_is_one_line() -> None:
    assert repr(prediction()) == "Prediction('pets/a.png', 90 x 40, {'fish': 95%, 'cat': 62%})"
    assert repr(prediction(class_scores=np.full(3, -9, np.float32))) == "Prediction('pets/a.png', 90 x 40, {'cat': 0%})"


@given(st.text())
def test_a_file_name_is_one_visible_entry_of_a_folder(name: str) -> None:
    safe = file_name(name)
    assert safe and not safe.startswith(".")
    assert not set(safe) & set('/\\:*?"<>|\0\n ')
    assert len(safe.encode("utf-8", "replace")) <= 200


@given(st.lists(st.text(alphabet="aAbB/_. é", max_size=4), unique=True))
def test_file_names_differ_on_case_insensitive_disks(names: list[str]) -> None:
    made = file_names(names)
    assert list(made) == names
    assert len({name.casefold() for name in made.values()}) == len(names)
