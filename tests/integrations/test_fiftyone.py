"""FiftyOne: labels of predictions, on its own package where it is installed, otherwise on a stand-in of its labels.

FiftyOne keeps data sets in a MongoDB server; here mongomock takes its place.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.test_predictor import block, colour_finder
from wildcat.errors import ConfigError, ImageError, MissingExtra
from wildcat.integrations.fiftyone import Labels, add_predictions, to_label

Factory = Callable[..., Any]


class StandIn(ModuleType):
    """The names of FiftyOne that are used, with the arguments and attributes that its documentation gives them."""

    def __getattr__(self, name: str) -> Factory:
        if name not in (
            "Classification",
            "Classifications",
            "Detection",
            "Detections",
            "Keypoint",
            "Keypoints",
            "Heatmap",
        ):
            raise AttributeError(name)
        return lambda **values: SimpleNamespace(kind=name, **{"mask": None, **values})


class Sample(dict[str, Any]):
    def __init__(self, filepath: str) -> None:
        super().__init__()
        self.filepath = filepath


class DataSet:
    """The methods of a FiftyOne data set that are used."""

    def __init__(self, paths: list[str], media_type: str | None = "image") -> None:
        self.name, self.media_type, self.samples = "photos", media_type, [Sample(path) for path in paths]
        self.saved: list[Sample] = []

    def iter_samples(self, progress: bool | None = False) -> Iterator[Sample]:
        yield from self.samples

    @contextmanager
    def save_context(self) -> Iterator[Any]:
        pending: list[Sample] = []
        try:
            yield SimpleNamespace(save=pending.append)
        finally:
            self.saved += pending


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("images")
    for i, (row, column) in enumerate([(2, 3), (0, 0), (7, 7)]):
        Image.fromarray(block(row, column, channel=i)).save(folder / f"{i}.png")
    return sorted(map(str, folder.iterdir()))


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fiftyone", StandIn("fiftyone"))


# --- labels -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("stand_in")
def test_boxes_and_masks_are_those_of_the_mask(images: list[str]) -> None:
    prediction = colour_finder().predict(images[0])  # red in the cell of 40 x 20 pixels at (120, 40) of 320 x 160
    expected = prediction.mask() == 1
    for labels in ("detections", "instances"):
        (found,) = to_label(prediction, labels).detections  # type: ignore[arg-type]
        x, y, width, height = np.multiply(found.bounding_box, [320, 160, 320, 160]).round().astype(int)
        rows, columns = np.nonzero(expected)
        assert (x, y, width, height) == (columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1)
        assert (found.label, found.confidence) == ("red", pytest.approx(prediction.probabilities["red"]))
        if labels == "instances":
            assert np.array_equal(found.mask, expected[y : y + height, x : x + width])
        else:
            assert found.mask is None


@pytest.mark.usefixtures("stand_in")
def test_classes_points_and_heatmaps(images: list[str]) -> None:
    prediction = colour_finder().predict(images[0])
    assert [c.label for c in to_label(prediction, "classifications").classifications] == ["red"]
    every = to_label(prediction, "classifications", min_score=0.0).classifications
    assert [c.label for c in every] == sorted(prediction.classes, key=lambda c: -prediction.probabilities[c])
    (point,) = to_label(prediction, "keypoints").keypoints
    assert point.points == [(prediction.points["red"][0] / 320, prediction.points["red"][1] / 160)]
    heatmap = to_label(prediction, "heatmap", "green")
    assert np.array_equal(heatmap.map, prediction.class_maps[1])
    assert heatmap.range == [heatmap.map.min(), heatmap.map.max()]
    assert np.array_equal(to_label(prediction, "heatmap").map, prediction.class_maps[0]), "of the likeliest class"
    object.__setattr__(prediction, "task", "multiclass")
    assert to_label(prediction, "classifications").label == "red"


@pytest.mark.usefixtures("stand_in")
def test_samples_get_their_own_prediction(images: list[str], tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    dataset = DataSet([images[0], str(tmp_path / "broken.png"), images[1], images[2], images[0]])
    refused: list[Any] = []
    count = add_predictions(
        dataset, colour_finder(), "wildcat", batch_size=2, on_error=lambda image, _: refused.append(image)
    )
    assert (count, refused) == (4, [str(tmp_path / "broken.png")])
    found = [sample["wildcat"].detections[0].label if "wildcat" in sample else None for sample in dataset.samples]
    assert found == ["red", None, "green", "blue", "red"]
    assert dataset.saved == [sample for sample in dataset.samples if "wildcat" in sample]
    dataset = DataSet([images[0], str(tmp_path / "broken.png")])
    with pytest.raises(ImageError, match=r"broken\.png is not an image"):
        add_predictions(dataset, colour_finder(), batch_size=1)
    assert dataset.saved == dataset.samples[:1], "the samples before are saved"


@pytest.mark.usefixtures("stand_in")
def test_wrong_arguments(images: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, predictor = DataSet(images), colour_finder()
    with pytest.raises(ConfigError, match="labels='boxes': unknown") as caught:
        add_predictions(dataset, predictor, labels="boxes")  # type: ignore[arg-type]
    assert caught.value.hint.startswith("Choose from: classifications, detections")
    with pytest.raises(ConfigError, match="this model has no class 'rot'"):
        add_predictions(dataset, predictor, labels="heatmap", class_name="rot")
    for media, said in (("video", "holds video, not images"), (None, "holds nothing, not images")):
        with pytest.raises(ConfigError, match=f"the data set photos {said}"):
            add_predictions(DataSet([], media), predictor)
    monkeypatch.setattr(type(predictor), "has_maps", False)
    with pytest.raises(ConfigError, match="colours gives class scores only"):
        add_predictions(dataset, predictor)
    monkeypatch.setitem(sys.modules, "fiftyone", None)
    with pytest.raises(MissingExtra, match="fiftyone is needed here"):
        add_predictions(dataset, predictor)
    assert not dataset.saved


# --- the package itself -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fiftyone() -> Any:
    """FiftyOne with its documents in mongomock."""
    pytest.importorskip("fiftyone")
    mongomock = pytest.importorskip("mongomock")
    import fiftyone
    import mongoengine
    import pymongo
    from fiftyone.core.odm import database

    class Client(mongomock.MongoClient):  # type: ignore[misc,name-defined]
        _closed = False  # which mongomock would take for a database

    client = Client(tz_aware=False)
    connect = mongoengine.connect
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FIFTYONE_DISABLE_SERVICES", "1")
        patch.setattr(fiftyone.config, "database_uri", "mongodb://localhost")
        patch.setattr(fiftyone.config, "do_not_track", True)
        for name in ("_validate_db_version", "_update_fc_version", "_delete_non_persistent_datasets_if_allowed"):
            patch.setattr(database, name, lambda *_: None)
        patch.setattr(pymongo, "MongoClient", lambda *_, **__: client)
        patch.setattr(
            mongoengine, "connect", lambda name, **_: connect(name, mongo_client_class=lambda *_, **__: client)
        )
        yield fiftyone


@pytest.mark.parametrize("labels", ["classifications", "detections", "instances", "keypoints", "heatmap"])
def test_a_data_set_keeps_the_predictions(fiftyone: Any, images: list[str], labels: Labels) -> None:
    dataset = fiftyone.Dataset(f"photos-{labels}")
    dataset.add_samples([fiftyone.Sample(filepath=path) for path in images])
    predictor = colour_finder()
    assert add_predictions(dataset, predictor, "wildcat", labels=labels) == 3
    stored = fiftyone.load_dataset(f"photos-{labels}")
    stored.reload()
    for sample, prediction in zip(stored, predictor.predict(images), strict=True):
        label = sample["wildcat"]
        assert type(label).__name__ in ("Classifications", "Detections", "Keypoints", "Heatmap")
        if labels == "heatmap":
            expected = prediction.class_maps[prediction.index_of(prediction.top)]
            assert np.allclose(label.map, expected, atol=1e-5)
            continue
        (one,) = next(getattr(label, name) for name in ("classifications", "detections", "keypoints") if name in label)
        assert one.label == prediction.top
        if labels == "instances":
            x, y, width, height = np.multiply(one.bounding_box, [320, 160, 320, 160]).round().astype(int)
            assert np.array_equal(one.mask, (prediction.mask() > 0)[y : y + height, x : x + width])
    assert stored.count() == 3


def test_a_multi_class_model_gives_one_classification(fiftyone: Any, images: list[str]) -> None:
    dataset = fiftyone.Dataset("photos-multiclass")
    dataset.add_samples([fiftyone.Sample(filepath=path) for path in images])
    predictor = colour_finder()
    predictor.task = "multiclass"
    assert add_predictions(dataset.limit(2), predictor, "wildcat", labels="classifications") == 2, "of a view"
    dataset.reload()
    assert [sample["wildcat"] and sample["wildcat"].label for sample in dataset] == ["red", "green", None]
    assert dataset.first()["wildcat"].logits.tolist() == pytest.approx(predictor.predict(images[0]).class_scores)
