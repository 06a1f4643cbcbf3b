"""What the service answers to good requests, and what it tells browsers."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.serve.conftest import Connect, calibrated, encoded, image
from wildcat.export import ANNOTATION_FORMATS
from wildcat.export.predictions import ROWS, PredictionWriter
from wildcat.predictor import Predictor
from wildcat.regions.masks import MaskParams
from wildcat.serve.middleware import LOOPBACK
from wildcat.viz.colors import class_palette


def upload(content: bytes | None = None, name: str = "a.png", field: str = "image") -> dict[str, Any]:
    return {"files": {field: (name, encoded(image()) if content is None else content)}}


def ask(connect: Connect, path: str, model: Predictor | None = None, **options: Any) -> httpx.Response:
    async def once() -> httpx.Response:
        async with connect(**({"model": model} if model else {})) as client:
            return await client.post(path, **(options or upload()))

    return asyncio.run(once())


def get(connect: Connect, path: str, hosts: Any = None, **headers: str) -> httpx.Response:
    async def once() -> httpx.Response:
        async with connect(hosts=hosts) as client:
            return await client.get(path, headers=headers)

    return asyncio.run(once())


def image_of(data_url: str) -> Image.Image:
    head, _, text = data_url.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(text)))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_predict_answers_the_row_of_predictions_jsonl(
    connect: Connect, predictor: Predictor, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / f"a.{kind.lower()}"
    path.write_bytes(encoded(image(), kind))
    with PredictionWriter(tmp_path / "out", save=()) as writer:
        writer.add(predictor.predict(path), path.name)
    row = json.loads((tmp_path / "out" / ROWS).read_text(encoding="utf-8"))
    answer = ask(connect, "/predict", **upload(path.read_bytes(), "C:\\images\\a.png"))
    assert answer.status_code == 200
    assert answer.json() == {**row, "image": "a.png"}
    assert list(answer.json()) == list(row)


def test_a_turned_and_a_clear_image_are_read_as_a_person_sees_them(connect: Connect) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = ask(connect, "/predict", **upload(encoded(image(), "JPEG", exif=exif))).json()
    assert (turned["width"], turned["height"]) == (48, 96)
    clear = ask(connect, "/predict", **upload(encoded(Image.new("RGBA", (20, 10))))).json()
    white = ask(connect, "/predict", **upload(encoded(Image.new("RGB", (20, 10), "white")))).json()
    assert clear == white


def test_images_are_sent_along_where_asked_for(connect: Connect, predictor: Predictor) -> None:
    kinds = "&".join(f"save={kind}" for kind in ("overlays", "heatmaps", "modalities", "masks"))
    answer = ask(connect, f"/predict?{kinds}&classes=blue&classes=red&threshold=0.4").json()
    prediction = predictor.predict(image())
    sent = answer["files"]
    assert set(sent["overlays"]) == set(sent["heatmaps"]) == set(sent["modalities"]) == {"blue", "red"}
    assert np.array_equal(np.asarray(image_of(sent["overlays"]["red"])), np.asarray(prediction.plot("red")))
    assert [len(maps) for maps in sent["modalities"].values()] == [2, 2]
    heat = np.asarray(image_of(sent["heatmaps"]["red"])).astype(int).sum(axis=2)
    assert heat[:20, :25].mean() > 2 * heat[:20, 60:].mean(), "the hot place is brighter than the cold one"
    expected = prediction.mask(params=MaskParams(rule="score", score=0.4))
    assert np.array_equal(np.asarray(image_of(sent["masks"])), expected)
    assert answer["mask_values"] == {predictor.classes[i - 1]: i for i in np.unique(expected).tolist() if i}
    assert answer["mask_values"]


def test_cells_stand_for_the_raw_maps(connect: Connect, predictor: Predictor) -> None:
    answer = ask(connect, "/predict?cells=1").json()
    prediction = predictor.predict(image())
    assert prediction.modality_maps is not None
    assert next(iter(answer["cells"]["classes"])) == prediction.top
    assert set(answer["cells"]["classes"]) == {prediction.top, *prediction.labels}
    assert answer["cells"]["grid"] == [8, 8]
    for name, cell in answer["cells"]["classes"].items():
        i = predictor.classes.index(name)

        def raw(text: str, low: float, high: float) -> np.ndarray:
            return low + np.frombuffer(base64.b64decode(text), np.uint8).reshape(8, 8) / 255 * (high - low)

        step = (cell["modality_high"] - cell["modality_low"]) / 255
        assert np.allclose(raw(cell["map"], cell["low"], cell["high"]), prediction.class_maps[i], atol=step)
        for text, expected in zip(cell["modalities"], prediction.modality_maps[i], strict=True):
            assert np.allclose(raw(text, cell["modality_low"], cell["modality_high"]), expected, atol=step)


@pytest.mark.parametrize(
    ("rule", "own", "other", "changed"),
    [
        ("score", {"score": 0.3}, 0.9, {"score": 0.9}),
        ("constant", {"constant": 0.3}, 0.6, {"constant": 0.6}),
        ("power", {"exponent": 3.0}, 0.5, {"exponent": 1.0}),  # 0.5 = (1 - 0.5)^1
    ],
)
def test_masks_are_drawn_as_the_model_was_calibrated(
    connect: Connect, predictor: Predictor, rule: Any, own: dict[str, float], other: float, changed: dict[str, float]
) -> None:
    """Gates of its own let a class through that is not predicted, and hold back one that is."""
    likely = predictor.predict(image()).probabilities
    assert likely["red"] > 0.5 > likely["blue"]
    params = MaskParams(gate=(1.0, 0.4, likely["blue"] - 0.01), rule=rule, **own)
    model = calibrated(predictor, params)
    prediction = model.predict(image())
    answer = ask(connect, "/predict?save=masks&cells=1", model).json()
    expected = prediction.mask()
    assert set(np.unique(expected)) - {0} <= {2, 3}, "red is held back"
    assert np.array_equal(np.asarray(image_of(answer["files"]["masks"])), expected)
    assert answer["cells"]["mask"]["classes"] == ["green", "blue"]
    assert {"green", "blue"} <= set(answer["cells"]["classes"])
    assert answer["cells"]["mask"]["rule"] == rule
    assert answer["cells"]["mask"]["threshold"] == pytest.approx(params.threshold)
    moved = Image.open(io.BytesIO(ask(connect, f"/map?kind=mask&threshold={other}", model).content))
    wanted = prediction.mask(params=replace(params, **changed))
    assert np.array_equal(np.asarray(moved), wanted)
    assert not np.array_equal(wanted, expected)


@pytest.mark.parametrize(("rule", "status"), [("score", 200), ("constant", 422), ("power", 422)])
def test_a_threshold_is_in_the_unit_of_the_rule(connect: Connect, predictor: Predictor, rule: Any, status: int) -> None:
    answer = ask(connect, "/map?kind=mask&threshold=1.5", calibrated(predictor, MaskParams(rule=rule)))
    assert answer.status_code == status
    assert status == 200 or "threshold=1.5" in answer.json()["detail"]


def test_map_is_one_png(connect: Connect, predictor: Predictor) -> None:
    prediction = predictor.predict(image())
    for kind, expected in (("overlay", prediction.plot("blue")), ("image", image())):
        answer = ask(connect, f"/map?kind={kind}&class=blue")
        assert answer.headers["content-type"] == "image/png"
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(answer.content))), np.asarray(expected))
    mask = Image.open(io.BytesIO(ask(connect, "/map?kind=mask&crf=true").content))
    assert np.array_equal(np.asarray(mask), prediction.mask(crf=True))
    assert mask.getpalette() == class_palette().ravel().tolist()
    sheet = Image.open(io.BytesIO(ask(connect, "/map?kind=modalities").content))
    assert sheet.width > 2 * prediction.width


@pytest.mark.parametrize("name", sorted(ANNOTATION_FORMATS))
def test_annotations_are_what_the_export_writes(
    connect: Connect, predictor: Predictor, tmp_path: Path, name: str
) -> None:
    answer = ask(connect, f"/annotations?format={name}", **upload(name="été one.png"))
    assert answer.status_code == 200
    assert re.fullmatch(rf'attachment; filename="[\w.-]+-{name}\.zip"', answer.headers["content-disposition"])
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        sent = {entry: archive.read(entry) for entry in archive.namelist()}
    with ANNOTATION_FORMATS[name](tmp_path / "annotations", predictor.classes, model="colours") as writer:
        instances = writer.add(replace(predictor.predict(image()), path="été one.png"), "été one.png")
    folder = tmp_path / "annotations"
    written = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    assert set(sent) == set(written)
    assert instances
    for entry, path in written.items():
        assert sent[entry] == path.read_bytes(), entry


def test_the_model_is_described_without_its_place(connect: Connect) -> None:
    answer = get(connect, "/model")
    facts = answer.json()
    assert facts["name"] == "colours"
    assert facts["classes"] == ["red", "green", "blue"]
    assert facts["members"] == [{"backbone": "cells", "num_maps": 2, "input_size": 64}]
    assert facts["task"] == "multilabel"
    assert "secret" not in answer.text
    assert get(connect, "/health").json() == {"status": "ok", "requests": 0, "places": 32}


def test_openapi_describes_every_route(connect: Connect) -> None:
    described = get(connect, "/openapi.json").json()
    assert set(described["paths"]) == {"/predict", "/map", "/annotations", "/model", "/health"}
    predict = described["paths"]["/predict"]["post"]
    assert {p["name"] for p in predict["parameters"]} == {"save", "classes", "cells", "crf", "threshold"}
    assert "image" in predict["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
    assert {"200", "400", "413", "415", "422", "503"} <= set(predict["responses"])
    example = predict["responses"]["200"]["content"]["application/json"]["example"]
    assert set(ask(connect, "/predict").json()) == set(example)
    formats = described["paths"]["/annotations"]["post"]["parameters"][0]["schema"]["enum"]
    assert formats == list(ANNOTATION_FORMATS)


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/predict?classes=rod", 422, "did you mean red?"),
        ("/map?class=rod", 422, "did you mean red?"),
        ("/predict?save=everything", 422, "save"),
        ("/predict?crf=perhaps", 422, "crf=perhaps"),
        ("/predict?threshold=much", 422, "threshold=much"),
        ("/predict?threshold=nan", 422, "threshold"),
        ("/predict?threshold=inf", 422, "threshold"),
        ("/predict?cells=-1", 422, "cells=-1"),
        ("/predict?url=http://127.0.0.1/a.png", 422, "url"),
        ("/map?kind=../../etc/passwd", 422, "kind"),
        ("/annotations?format=pickle", 422, "format"),
        ("/nothing", 404, "/nothing"),
        ("/model", 405, "POST"),
    ],
)
def test_what_does_not_fit_is_answered_with_a_sentence(connect: Connect, path: str, status: int, words: str) -> None:
    answer = ask(connect, path)
    assert answer.status_code == status
    assert set(answer.json()) == {"detail", "hint"}
    assert words in " ".join(answer.json().values())


def test_more_drawing_than_the_service_bears_is_refused(connect: Connect) -> None:
    large = encoded(Image.new("L", (6000, 5000)))
    refused = ask(connect, "/predict?save=overlays&save=heatmaps&save=masks", **upload(large))
    assert refused.status_code == 422
    assert "at most 2" in refused.json()["hint"]


# --- browsers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/static/page.js", "/model", "/nothing"])
def test_every_answer_carries_the_rules_for_browsers(connect: Connect, path: str) -> None:
    headers = get(connect, path).headers
    assert headers["x-content-type-options"] == "nosniff"
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == "'self'"
    assert not any(name.startswith("access-control") for name in headers)


def test_pages_of_others_and_other_names_are_refused(connect: Connect) -> None:
    assert get(connect, "/model", origin="http://evil.example").status_code == 403
    assert get(connect, "/model", origin="http://127.0.0.1:9").status_code == 403
    assert get(connect, "/model", origin="null").status_code == 403
    assert get(connect, "/model", origin="http://127.0.0.1:8000").status_code == 200
    assert get(connect, "/model", LOOPBACK, host="evil.example").status_code == 400
    assert get(connect, "/model", LOOPBACK, host="[::1]:8000").status_code == 200
    assert get(connect, "/model", LOOPBACK, host="[").status_code == 400
    assert get(connect, "/model", None, host="evil.example").status_code == 200


def test_the_page_is_whole_and_asks_for_nothing_elsewhere(connect: Connect) -> None:
    page = get(connect, "/").text
    assert not re.search(r"<style|<script(?![^>]*src)|\sstyle=|\son\w+=", page), "the policy allows nothing inline"
    links = re.findall(r'(?:src|href)="([^"#][^"]*)"', page)
    assert {"/static/maps.js", "/static/page.js", "/static/page.css", "/static/look.css", "/openapi.json"} <= set(links)
    for link in links:
        assert link.startswith(("/", "data:,"))
        if link.startswith("/"):
            assert get(connect, link).status_code == 200
    script = get(connect, "/static/maps.js").text + get(connect, "/static/page.js").text
    assert (
        "innerHTML =" not in script and "eval(" not in script and "://" not in script.replace("http://www.w3.org", "")
    )
    for name in re.findall(r'find\("#([\w-]+)"\)', script):
        assert f'id="{name}"' in page, name
    colors = get(connect, "/static/colors.json").json()
    assert {len(base64.b64decode(text)) for text in colors["colormaps"].values()} == {768}


@pytest.mark.parametrize("path", ["/static/../app.py", "/static/%2e%2e/app.py", "/static/index.html", "/static/"])
def test_only_the_assets_of_the_page_are_given_out(connect: Connect, path: str) -> None:
    assert get(connect, path).status_code == 404
