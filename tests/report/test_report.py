"""The report: it shows the predictions it was given, respects its maximum size, and escapes hostile names."""

from __future__ import annotations

import base64
import hashlib
import inspect
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import average_precision_score, confusion_matrix

from tests.conftest import Visit, pixels
from wildcat.data.dataset import DataSet, Sample, Task
from wildcat.errors import ConfigError, RunError
from wildcat.evaluation import GAME_TOLERANCE, evaluate
from wildcat.metrics import pointing_game, precision_recall_curve
from wildcat.models.calibration import Calibration
from wildcat.prediction import Prediction
from wildcat.regions.masks import MaskParams
from wildcat.report import Gallery, ModelInfo, report_split, write_report
from wildcat.report.charts import curve_points, line_chart
from wildcat.report.gallery import make_thumbnail
from wildcat.viz.colors import MARK_COLORS

HOSTILE = ("<script>document.title='owned'</script>", '"><img src=x onerror=alert(1)>', "a & b</title>", "plain")


class FakePredictor:
    """Random scores and maps, fixed for each file name; 3 x 4 cells, 2 modalities."""

    has_maps = True

    def __init__(self, classes: Sequence[str], task: Task = "multilabel", seed: int = 0) -> None:
        self.name, self.classes, self.task, self.seed = "/secret/place/run", tuple(classes), task, seed

    def predict(self, path: Path) -> Prediction:
        digest = hashlib.sha256(f"{path.name}{self.seed}".encode("utf-8", "surrogateescape")).digest()
        rng = np.random.default_rng(list(digest))
        count = len(self.classes)
        maps = rng.normal(size=(count, 2, 3, 4)).astype(np.float32)
        scores = rng.normal(size=count).round(1).astype(np.float32)  # ties happen
        return Prediction(str(path), 60, 40, self.classes, self.task, scores, maps.mean(axis=1), maps, path)

    def stream(self, images: Iterable[Path], **_: Any) -> Iterator[Prediction]:
        for path in images:
            yield self.predict(path)


def make_data(
    folder: Path, classes: Sequence[str], task: Task = "multilabel", count: int = 20, located: bool = True
) -> DataSet:
    """Noise, 60 x 40; labels at random, a box in the top left of whatever is present, a mask of the first class."""
    rng = np.random.default_rng(1)
    samples = []
    for i in range(count):
        path = folder / f"<b>&{i:03}.png"
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(path)
        labels = np.where(rng.random(len(classes)) < 0.4, 1, -1).astype(np.int8)
        if task == "multiclass":
            labels = np.where(np.arange(len(classes)) == rng.integers(len(classes)), 1, -1).astype(np.int8)
        present = np.flatnonzero(labels == 1)
        located_fields: dict[str, Any] = {}
        if located:
            mask = folder / f"mask-{i}.png"
            Image.fromarray(np.pad(np.ones((20, 30), np.uint8), ((0, 20), (0, 30)))).save(mask)
            boxes = np.tile(np.asarray([0, 0, 30, 20], np.float32), (len(present), 1))
            located_fields = {"boxes": boxes, "box_classes": present, "mask": mask}
        samples.append(Sample(path.name, path, labels, **located_fields))
    return DataSet("made <up>", "voc", folder, tuple(classes), task, {"val": lambda: samples})


class Elements(HTMLParser):
    """Every element of a page with its attributes, and the text inside scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, list[str]] = {"script": [], "style": [], "title": []}
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag in self.inside:
            self.inside[tag].append("")

    def handle_data(self, data: str) -> None:
        tag = self.found[-1][0] if self.found else ""
        if tag in self.inside:
            self.inside[tag][-1] += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def stored(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="store">(.*?)</script>', page)
    assert found
    return dict(json.loads(found[1]))


def report(folder: Path, data: DataSet, model: FakePredictor, **options: Any) -> str:
    target = folder / "report.html"
    report_split(target, model, data, "val", **options)  # type: ignore[arg-type]
    return target.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[DataSet, FakePredictor, str]:
    folder = tmp_path_factory.mktemp("hostile")
    data, model = make_data(folder, HOSTILE), FakePredictor(HOSTILE[::-1])
    info = ModelInfo({"Model": HOSTILE[0]}, (HOSTILE[1],), [{"epoch": 1, "loss": 0.5, "val": {HOSTILE[0]: 0.25}}])
    return data, model, report(folder, data, model, info=info)


# --- one safe file ---


def test_hostile_names_are_escaped(hostile: tuple[DataSet, FakePredictor, str]) -> None:
    elements = Elements(hostile[2])
    assert len(elements.of("script")) == 2 and not elements.of("img")
    assert not {tag for tag, _ in elements.found} & {"iframe", "object", "embed", "link", "base", "form", "x"}
    for _, attributes in elements.found:
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
    assert [title.strip() for title in elements.inside["title"]] == ["run on made <up>, val"]
    assert "</script" not in json.dumps(hostile[2].split('id="store">')[1].split("</script>")[0])


def test_the_page_requests_nothing(hostile: tuple[DataSet, FakePredictor, str]) -> None:
    page = hostile[2]
    for _, attributes in Elements(page).found:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            assert attributes.get(name) is None or str(attributes[name]).startswith("#")
    assert set(re.findall(r"[a-z]+://[^\s\"'<)]*", page)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"url\(|@import|fetch\(|XMLHttp|import\(|innerHTML =|eval\(", page)
    assert "/secret" not in page and str(hostile[0].root) not in page, "absolute paths are not published"


def test_the_content_security_policy_allows_only_the_page(hostile: tuple[DataSet, FakePredictor, str]) -> None:
    page = hostile[2]
    policy = next(str(m["content"]) for m in Elements(page).of("meta") if "http-equiv" in m)
    assert policy.startswith("default-src 'none';") and "unsafe" not in policy
    for tag in ("style", "script"):
        inner = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inner[0].encode()).digest()).decode()
        assert len(inner) == 1 and f"{tag}-src 'sha256-{digest}'" in policy


def test_a_name_that_is_not_unicode(tmp_path: Path) -> None:
    model = FakePredictor(["a\udcff", "b"])
    gallery = Gallery(model.classes, "multilabel")
    path = tmp_path / "caf\udce9.png"
    Image.new("RGB", (60, 40)).save(path)
    gallery.add(model.predict(path))
    written = write_report(tmp_path / "r.html", gallery, "x\udcfe")
    assert r"caf\udce9.png" in stored((tmp_path / "r.html").read_text(encoding="utf-8"))["images"][0]["name"]
    assert written.shown >= 1


# --- selection of examples ---


@pytest.mark.parametrize("task", ["multilabel", "multiclass"])
def test_examples_are_the_highest_and_lowest_ranked_images(tmp_path: Path, task: Task) -> None:
    data, model = make_data(tmp_path, ["x", "y", "z"], task, count=30), FakePredictor(["z", "x", "y"], task)
    gallery = Gallery(data.classes, task, examples=4)
    predictions = {s.name: model.predict(s.path) for s in data.split("val")}
    for sample in data.split("val"):
        gallery.add(predictions[sample.name], sample)
    for c, name in enumerate(data.classes):
        rank = {n: p.probabilities[name] if task == "multiclass" else p.scores[name] for n, p in predictions.items()}
        present = [s.name for s in data.split("val") if s.labels[c] == 1]
        absent = [s.name for s in data.split("val") if s.labels[c] == -1]
        best = sorted(present, key=lambda n: -rank[n])[:4]  # sorted() is stable: of equals the earlier
        assert [e.image.name for e in gallery.examples_of(name, "hit")] == best
        worst = [n for n in sorted(present, key=lambda n: rank[n])[:4] if n not in best]
        assert [e.image.name for e in gallery.examples_of(name, "miss")] == worst
        assert [e.image.name for e in gallery.examples_of(name, "false positive")] == sorted(
            absent, key=lambda n: -rank[n]
        )[:4]
        found = sum(name in predictions[n].labels for n in present)
        assert (gallery.counts[name, "hit"], gallery.counts[name, "hit predicted"]) == (len(present), found)


def test_a_multiclass_model_is_ranked_by_probability_on_multilabel_data(tmp_path: Path) -> None:
    data = make_data(tmp_path, ["x", "y", "z"], located=False)
    cards = stored(report(tmp_path, data, FakePredictor(["x", "y", "z"], "multiclass")))["cards"]
    for name in data.classes:
        ranks = [-card["probability"] for card in cards if (card["class_name"], card["kind"]) == (name, "hit")]
        assert len(ranks) > 4 and ranks == sorted(ranks)


def test_ignored_labels_are_neither_hits_nor_false_positives(tmp_path: Path) -> None:
    data, model = make_data(tmp_path, ["x"], count=1), FakePredictor(["x"])
    sample = data.split("val")[0]
    gallery = Gallery(("x",), "multilabel")
    gallery.add(model.predict(sample.path), Sample(sample.name, sample.path, np.zeros(1, np.int8)))
    assert gallery.images == 1 and not gallery.counts


def test_with_many_classes_fewer_examples_are_held() -> None:
    assert Gallery([str(i) for i in range(1000)], "multilabel", examples=50, max_mb=20).examples == 3
    assert Gallery(["a"], "multilabel", examples=50, max_mb=20).examples == 50


# --- stored examples ---


def decoded(text: str) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text.split(",")[1]))).convert("RGBA"))


def test_maps_points_boxes_and_masks_match_the_predictions(hostile: tuple[DataSet, FakePredictor, str]) -> None:
    data, model, page = hostile
    store = stored(page)
    assert len(store["cards"]) == len(re.findall(r'data-card="\d+"', page)) >= 4 * len(HOSTILE)
    samples = {s.name: s for s in data.split("val")}
    for card in store["cards"]:
        thumbnail = store["images"][card["image"]]
        prediction, name = model.predict(samples[thumbnail["name"]].path), card["class_name"]
        c = prediction.classes.index(name)
        assert thumbnail["size"] == [60, 40] and card["grid"] == [3, 4]
        heat = np.frombuffer(base64.b64decode(card["heat"]), np.uint8).reshape(3, 4)
        assert heat.argmax() == prediction.class_maps[c].argmax() and heat.min() == 0 and heat.max() == 255
        maps = np.stack([np.frombuffer(base64.b64decode(m), np.uint8) for m in card["modalities"]]).reshape(2, 3, 4)
        raw = prediction.modality_maps[c] if prediction.modality_maps is not None else None
        assert raw is not None
        np.testing.assert_allclose(maps / 255, (raw - raw.min()) / np.ptp(raw), atol=0.003)  # one scale for all
        assert card["num_maps"] == 2
        assert card["shares"] == pytest.approx([100 * s for s in prediction.map_shares(name) or ()], abs=0.5)
        np.testing.assert_allclose(card["point"], prediction.points[name], atol=0.06)
        assert len(card["boxes"]) == len(prediction.boxes.get(name, []))
        x, y = prediction.points[name]
        present = name in (thumbnail["present"] or [])
        assert card["point_inside"] == ((x <= 48 and y <= 38) if present else None)  # the box 30 x 20, grown by 18
        assert card["truth_boxes"] == ([[0, 0, 30, 20, 0]] if present else [])
        if thumbnail["mask"]:
            mask, colors = prediction.mask(), dict(thumbnail["legend"])
            shown = decoded(thumbnail["mask"])
            for i, label in enumerate(prediction.classes):
                if (mask == i + 1).any():
                    rgb = [int(colors[label][j : j + 2], 16) for j in (1, 3, 5)]
                    assert (shown[mask == i + 1] == [*rgb, 255]).all()
            assert (shown[mask == 0][:, 3] == 0).all()
        truth = decoded(thumbnail["truth"])
        assert (truth[:20, :30, 3] == 255).all() and (truth[20:, :, 3] == 0).all()
        assert tuple(truth[0, 0, :3]) == MARK_COLORS[list(dict(thumbnail["legend"])).index(HOSTILE[0])]


def test_thumbnails_keep_the_content(tmp_path: Path) -> None:
    path = tmp_path / "wide.png"
    image = Image.new("RGB", (1600, 400), (250, 20, 20))
    image.paste((20, 20, 250), (800, 0, 1600, 400))
    image.save(path)
    gallery = Gallery(["a"], "multilabel")
    maps = np.zeros((1, 2, 2), np.float32)
    gallery.add(Prediction(str(path), 1600, 400, ("a",), "multilabel", np.ones(1, np.float32), maps, None, image))
    assert image.size == (1600, 400), "the argument is unchanged"
    (example,) = gallery.examples_of("a", "unlabelled")
    small = Image.fromarray(decoded(example.image.src)).convert("RGB")
    assert small.size == (384, 96)
    left, right = small.getpixel((20, 40)), small.getpixel((360, 40))
    assert isinstance(left, tuple) and isinstance(right, tuple) and left[0] > 200 > right[0]
    assert left[2] < 100 < right[2]
    assert example.modalities == ()


def test_the_mask_contains_a_class_below_one_half_if_its_gate_is_lower() -> None:
    image, maps = Image.new("RGB", (60, 40)), np.array([[[2.0, -2.0]]], np.float32)
    prediction = Prediction("", 60, 40, ("a",), "multilabel", np.full(1, -1, np.float32), maps, None, image)
    assert prediction.labels == ()
    assert make_thumbnail(prediction, None, ("a",)).mask is None
    params = MaskParams(gate=(0.2,), rule="score")
    thumbnail = make_thumbnail(replace(prediction, calibration=Calibration(params, {})), None, ("a",))
    assert thumbnail.mask is not None and [name for name, _ in thumbnail.legend] == ["a"]
    shown = decoded(thumbnail.mask)
    assert (shown[:, :30, 3] == 255).all() and (shown[:, 30:, 3] == 0).all()


def test_a_mask_of_more_classes_than_a_png_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classes = tuple(f"c{i:03}" for i in range(300))
    labels = np.append(np.arange(1, 301), [0] * 20).reshape(16, 20)
    monkeypatch.setattr(Prediction, "mask", lambda _: labels)
    image, maps = Image.new("RGB", (20, 16)), np.zeros((300, 1, 1), np.float32)
    prediction = Prediction("", 20, 16, classes, "multilabel", np.zeros(300, np.float32), maps, None, image)
    thumbnail = make_thumbnail(prediction, None, classes)
    assert [name for name, _ in thumbnail.legend] == list(classes[:254]) and thumbnail.mask is not None
    assert ((decoded(thumbnail.mask)[..., 3] > 0) == ((labels > 0) & (labels <= 254))).all()
    Image.fromarray(np.full((16, 20), 255, np.uint8)).save(tmp_path / "ignored.png")
    sample = Sample("a", tmp_path / "a.jpg", np.ones(300, np.int8), mask=tmp_path / "ignored.png")
    labels[:] = 255
    thumbnail = make_thumbnail(prediction, sample, classes)
    assert [name for name, _ in thumbnail.legend] == ["c254"] and thumbnail.truth is not None
    assert (decoded(thumbnail.truth) == [160, 160, 160, 255]).all()


# --- metrics ---


def test_metrics_name_their_variant_tolerance_and_split(tmp_path: Path) -> None:
    data, model = make_data(tmp_path, ["x", "y"]), FakePredictor(["x", "y"])
    page = report(tmp_path, data, model, variant="voc07")
    result = evaluate(model, data, "val", "voc07")  # type: ignore[arg-type]
    for value, detail in (
        (result["classification"]["map"], "voc07 AP · val, 20 images"),
        (result["pointing"]["map"], "voc07 AP, 18 px tolerance · val, 20 images"),
        (result["pointing"]["pointing_game"], "15 px tolerance · val, 20 images"),
        (result["segmentation"]["miou"], "background by score 0, without CRF · val, 20 images"),
    ):
        assert f'<dd>{100 * value:.1f}<span class="unit"> %</span></dd><p>{detail}</p>' in page
    assert inspect.signature(pointing_game).parameters["tolerance"].default == GAME_TOLERANCE
    assert "AP (voc07), %" in page and "Point AP (18 px), %" in page


def test_data_with_image_level_labels_only(tmp_path: Path) -> None:
    data = make_data(tmp_path, ["x", "y"], located=False)
    page = report(tmp_path, data, FakePredictor(["x", "y"]))
    assert "Mean average precision" in page and "Pointing" not in page and "IoU" not in page
    assert all(card["truth_boxes"] is None and card["point_inside"] is None for card in stored(page)["cards"])


def test_the_confusion_matrix_matches_scikit_learn(tmp_path: Path) -> None:
    data, model = (
        make_data(tmp_path, ["x", "y", "z"], "multiclass", 30, False),
        FakePredictor(["z", "y", "x"], "multiclass"),
    )
    page = report(tmp_path, data, model)
    truth = [2 - int(s.labels.argmax()) for s in data.split("val")]  # the model's order
    predicted = [int(model.predict(s.path).class_scores.argmax()) for s in data.split("val")]
    rows = re.search(r'<table class="heat">.*?<tbody>(.*?)</tbody>', page, re.DOTALL)
    assert rows
    shown = [int(n or 0) for n in re.findall(r"<td[^>]*>(\d*)</td>", rows[1])]
    assert shown == confusion_matrix(truth, predicted, labels=[0, 1, 2]).ravel().tolist()


@pytest.mark.parametrize(("count", "tolerance"), [(30, 1e-3), (4000, 0.02)])
def test_the_area_under_a_drawn_curve_is_the_average_precision(count: int, tolerance: float) -> None:
    rng = np.random.default_rng(0)
    labels = np.where(rng.random(count) < 0.3, 1, -1)
    scores = labels + rng.normal(size=count) * 1.5
    points = curve_points(precision_recall_curve(scores, labels))
    x, y = np.asarray([(0, 100), *points, (points[-1][0], 100)]).T
    area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2 / 1e4
    assert area == pytest.approx(average_precision_score(labels == 1, scores), abs=tolerance)
    assert len(x) < 200


def test_training_curves_need_a_history(hostile: tuple[DataSet, FakePredictor, str], tmp_path: Path) -> None:
    assert 'id="training"' in hostile[2] and "<td>0.2500</td>" in hostile[2]
    assert 'id="training"' not in report(tmp_path, make_data(tmp_path, ["x"], count=3), FakePredictor(["x"]))


def test_a_chart_keeps_its_lines_and_labels_inside_and_skips_values_that_are_not_finite() -> None:
    lines = [("loss", [1, 2, 3], [0.3, float("nan"), 0.1]), ("val loss", [2], [0.2])]
    chart = line_chart("Loss", "loss", "", lines, circled=2)
    assert [len(points) for _, points in chart["lines"]] == [2, 1]
    (x1, y1), (x3, y3) = chart["lines"][0][1]
    assert chart["lines"][1][1] == [((x1 + x3) / 2, (y1 + y3) / 2)] and y3 > y1  # y points downwards
    assert chart["circle"] == (x3, y3) and [label for _, label in chart["x_ticks"]] == ["1", "2", "3"]
    assert all(64 <= x <= 508 for x, _ in chart["x_ticks"]) and all(12 <= y <= 222 for y, _ in chart["y_ticks"])


# --- size ---


def test_the_file_respects_max_mb_and_counts_what_is_left_out(tmp_path: Path) -> None:
    data, model = make_data(tmp_path, ["x" * 300, "y"], count=40), FakePredictor(["x" * 300, "y"])
    full = report_split(tmp_path / "full.html", model, data, "val", examples=12)  # type: ignore[arg-type]
    assert full.left_out == 0 and full.bytes == (tmp_path / "full.html").stat().st_size
    limit = 0.7 * full.bytes / 1e6
    small = report_split(tmp_path / "s.html", model, data, "val", examples=12, max_mb=limit)  # type: ignore[arg-type]
    assert 0.8 * limit * 1e6 < small.bytes <= limit * 1e6
    assert 0 < small.shown < full.shown and small.shown + small.left_out == full.shown
    page = (tmp_path / "s.html").read_text(encoding="utf-8")
    assert f"{small.left_out:,} more examples exceed the maximum file size" in page
    assert len({c["class_name"] for c in stored(page)["cards"]}) == 2, "every class keeps some examples"
    with pytest.raises(ConfigError, match="the page without images takes"):
        report_split(tmp_path / "t.html", model, data, "val", max_mb=0.01)  # type: ignore[arg-type]
    assert not (tmp_path / "t.html").exists()


@pytest.mark.parametrize("options", [{"max_mb": 0}, {"max_mb": 1e9}, {"examples": -1}])
def test_limits_out_of_range_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options)).replace("_", "-")):
        report(tmp_path, make_data(tmp_path, ["x"], count=1), FakePredictor(["x"]), **options)


def test_an_image_of_many_classes_is_stored_once(hostile: tuple[DataSet, FakePredictor, str]) -> None:
    names = [thumbnail["name"] for thumbnail in stored(hostile[2])["images"]]
    assert len(names) == len(set(names)) <= 20


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(RunError, match="never overwritten") as caught:
        report(tmp_path, make_data(tmp_path, ["x"], count=1), FakePredictor(["x"]))
    assert "report-2.html" in caught.value.hint and (tmp_path / "report.html").read_text() == "mine"


def test_predictions_without_ground_truth(tmp_path: Path) -> None:
    data, model = make_data(tmp_path, ["x", "y", "never"]), FakePredictor(["x", "y", "never"])
    gallery = Gallery(model.classes, model.task, examples=5)
    for prediction in model.stream([s.path for s in data.split("val")]):
        prediction.class_scores[2] = -99
        gallery.add(prediction)
    written = write_report(tmp_path / "r.html", gallery, "a folder")
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert written.shown == 10 and [c["class_name"] for c in stored(page)["cards"]] == ["x"] * 5 + ["y"] * 5
    assert 'id="metrics"' not in page and 'id="class-2"' not in page and 'id="class-1"' in page
    assert all(p["present"] is None and p["truth"] is None for p in stored(page)["images"])


# --- in a browser ---


@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser(hostile: tuple[DataSet, FakePredictor, str], tmp_path: Path, visit: Visit, width: int) -> None:
    """Images, keys, viewer, slider and layers under the page's own policy; `visit` fails on any console error."""
    (tmp_path / "report.html").write_text(hostile[2], encoding="utf-8")
    page, _ = visit((tmp_path / "report.html").as_uri(), width)
    assert page.title() == "run on made <up>, val", "no name ran as a script"
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "no horizontal scrolling"

    def focused() -> int:
        return int(page.evaluate("[...document.querySelectorAll('.card')].indexOf(document.activeElement)"))

    page.locator(".card").first.scroll_into_view_if_needed()
    page.locator(".card .stage img").first.wait_for()
    page.locator(".card").first.focus()
    page.keyboard.press("ArrowRight")
    assert focused() == 1
    page.keyboard.press("Home")
    assert focused() == 0

    card, heat = stored(hostile[2])["cards"][0], page.locator(".card canvas").first
    alpha = pixels(heat)[:, :, 3]
    row, column = divmod(int(np.frombuffer(base64.b64decode(card["heat"]), np.uint8).argmax()), 4)
    y, x = (int(v) for v in np.unravel_index(alpha.argmax(), alpha.shape))
    at = ((x + 0.5) / alpha.shape[1] * 4, (y + 0.5) / alpha.shape[0] * 3)
    assert at == pytest.approx((column + 0.5, row + 0.5), abs=0.75), "the maximum is drawn at its cell"
    before = pixels(heat)
    page.select_option("#colormap", "viridis")
    assert not np.array_equal(pixels(heat), before)

    page.locator(".card").first.click()
    viewer = page.locator("#viewer")
    assert viewer.locator("canvas").count() == 3, "the heatmap and its two modality maps"
    assert viewer.locator("[alt]:not([alt=''])").count() == 4, "every image has an alternative text"
    first = page.inner_text("#viewer-title")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#viewer-title") != first
    for layer, shown in (("Mask", [False, True]), ("Heatmap", [True, False])):
        viewer.get_by_text(layer, exact=True).click()
        drawn = [viewer.locator(f".pair .stage > {kind}").first for kind in ("canvas:not(.always)", "img.mask")]
        assert [kind.is_visible() for kind in drawn] == shown
    page.fill("#opacity", "20")
    assert float(drawn[0].evaluate("canvas => getComputedStyle(canvas).opacity")) == 0.2
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.keyboard.press("Escape")
    viewer.wait_for(state="hidden")
    page.locator(".card").nth(1).and_(page.locator(":focus")).wait_for()


def test_a_link_opens_one_image(hostile: tuple[DataSet, FakePredictor, str], tmp_path: Path, visit: Visit) -> None:
    (tmp_path / "report.html").write_text(hostile[2], encoding="utf-8")
    page, _ = visit((tmp_path / "report.html").as_uri() + "#view-2")
    card = stored(hostile[2])["cards"][2]
    page.locator("#viewer").wait_for()
    assert page.inner_text("#viewer-title").startswith(card["class_name"])
