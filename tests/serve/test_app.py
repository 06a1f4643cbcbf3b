"""Responses to valid requests and invalid parameters, and the headers for browsers."""

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

from tests.serve.conftest import Connect, calibrated, encoded, image, walled
from wildcat.errors import ConfigError
from wildcat.export import ANNOTATION_FORMATS, InstanceParams, find_instances
from wildcat.export.predictions import ROWS, PredictionWriter
from wildcat.predictor import Predictor
from wildcat.regions.masks import MaskParams
from wildcat.serve import create_app
from wildcat.serve.middleware import LOOPBACK
from wildcat.viz.colors import class_palette


def upload(content: bytes | None = None, name: str = "a.png", field: str = "image") -> dict[str, Any]:
    return {"files": {field: (name, encoded(image()) if content is None else content)}}


def post(connect: Connect, path: str, model: Predictor | None = None, **options: Any) -> httpx.Response:
    async def request() -> httpx.Response:
        async with connect(**({"model": model} if model else {})) as client:
            return await client.post(path, **(options or upload()))

    return asyncio.run(request())


def get(
    connect: Connect, path: str, hosts: Any = None, names: Any = (), root_path: str = "", **headers: str
) -> httpx.Response:
    async def request() -> httpx.Response:
        async with connect(hosts=hosts, names=names, root_path=root_path) as client:
            return await client.get(f"{client.base_url}{path}", headers=headers)

    return asyncio.run(request())


def image_of(data_url: str) -> Image.Image:
    head, _, text = data_url.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(text)))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_predict_returns_the_row_of_predictions_jsonl(
    connect: Connect, predictor: Predictor, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / f"a.{kind.lower()}"
    path.write_bytes(encoded(image(), kind))
    with PredictionWriter(tmp_path / "out", save=()) as writer:
        writer.add(predictor.predict(path), path.name)
    row = json.loads((tmp_path / "out" / ROWS).read_text(encoding="utf-8"))
    response = post(connect, "/predict", **upload(path.read_bytes(), "C:\\images\\a.png"))
    assert response.status_code == 200
    assert response.json() == {**row, "image": "a.png"}
    assert list(response.json()) == list(row)


def test_a_large_jpeg_is_decoded_as_for_predict(connect: Connect, predictor: Predictor, tmp_path: Path) -> None:
    """At a reduced size for the network, in full for drawings."""
    path = tmp_path / "a.jpg"
    image(size=(96, 48)).resize((1200, 600)).save(path)
    prediction = predictor.predict(path)
    response = post(connect, "/predict?save=overlays&classes=red", **upload(path.read_bytes())).json()
    assert (response["width"], response["height"]) == (1200, 600)
    assert response["scores"] == prediction.to_dict()["scores"]
    overlay = np.asarray(image_of(response["files"]["overlays"]["red"]))
    assert np.array_equal(overlay, np.asarray(prediction.plot("red"))) and overlay.shape == (600, 1200, 3)


def test_exif_orientation_and_transparency_are_applied(connect: Connect) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    rotated = post(connect, "/predict", **upload(encoded(image(), "JPEG", exif=exif))).json()
    assert (rotated["width"], rotated["height"]) == (48, 96)
    transparent = post(connect, "/predict", **upload(encoded(Image.new("RGBA", (20, 10))))).json()
    white = post(connect, "/predict", **upload(encoded(Image.new("RGB", (20, 10), "white")))).json()
    assert transparent == white


def test_save_returns_images(connect: Connect, predictor: Predictor) -> None:
    kinds = "&".join(f"save={kind}" for kind in ("overlays", "heatmaps", "modalities", "masks"))
    response = post(connect, f"/predict?{kinds}&classes=blue&classes=red&threshold=0.4").json()
    prediction = predictor.predict(image())
    sent = response["files"]
    assert set(sent["overlays"]) == set(sent["heatmaps"]) == set(sent["modalities"]) == {"blue", "red"}
    assert np.array_equal(np.asarray(image_of(sent["overlays"]["red"])), np.asarray(prediction.plot("red")))
    assert [len(maps) for maps in sent["modalities"].values()] == [2, 2]
    heat = np.asarray(image_of(sent["heatmaps"]["red"])).astype(int).sum(axis=2)
    assert heat[:20, :25].mean() > 2 * heat[:20, 60:].mean(), "high values are brighter"
    expected = prediction.mask(params=MaskParams(rule="score", score=0.4))
    assert np.array_equal(np.asarray(image_of(sent["masks"])), expected)
    assert response["mask_values"] == {predictor.classes[i - 1]: i for i in np.unique(expected).tolist() if i}
    assert response["mask_values"]


def test_cells_are_the_raw_maps(connect: Connect, predictor: Predictor) -> None:
    response = post(connect, "/predict?cells=1").json()
    prediction = predictor.predict(image())
    assert prediction.modality_maps is not None
    assert next(iter(response["cells"]["classes"])) == prediction.top
    assert set(response["cells"]["classes"]) == {prediction.top, *prediction.labels}
    assert response["cells"]["grid"] == [8, 8]
    for name, cell in response["cells"]["classes"].items():
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
def test_masks_follow_the_calibration(
    connect: Connect, predictor: Predictor, rule: Any, own: dict[str, float], other: float, changed: dict[str, float]
) -> None:
    """The thresholds exclude a class above 0.5 and include one below."""
    likely = predictor.predict(image()).probabilities
    assert likely["red"] > 0.5 > likely["blue"]
    params = MaskParams(gate=(1.0, 0.4, likely["blue"] - 0.01), rule=rule, **own)
    model = calibrated(predictor, params)
    prediction = model.predict(image())
    response = post(connect, "/predict?save=masks&cells=1", model).json()
    expected = prediction.mask()
    assert set(np.unique(expected)) - {0} <= {2, 3}, "red is excluded"
    assert np.array_equal(np.asarray(image_of(response["files"]["masks"])), expected)
    assert response["cells"]["mask"]["classes"] == ["green", "blue"]
    assert {"green", "blue"} <= set(response["cells"]["classes"])
    assert response["cells"]["mask"]["rule"] == rule
    assert response["cells"]["mask"]["threshold"] == pytest.approx(params.threshold)
    changed_mask = Image.open(io.BytesIO(post(connect, f"/map?kind=mask&threshold={other}", model).content))
    wanted = prediction.mask(params=replace(params, **changed))
    assert np.array_equal(np.asarray(changed_mask), wanted)
    assert not np.array_equal(wanted, expected)


@pytest.mark.parametrize(("rule", "status"), [("score", 200), ("constant", 422), ("power", 422)])
def test_a_threshold_is_checked_for_the_rule(connect: Connect, predictor: Predictor, rule: Any, status: int) -> None:
    response = post(connect, "/map?kind=mask&threshold=1.5", calibrated(predictor, MaskParams(rule=rule)))
    assert response.status_code == status
    assert status == 200 or "threshold=1.5" in response.json()["detail"]


def test_map_is_one_png(connect: Connect, predictor: Predictor) -> None:
    prediction = predictor.predict(image())
    for kind, expected in (("overlay", prediction.plot("blue")), ("image", image())):
        response = post(connect, f"/map?kind={kind}&class=blue")
        assert response.headers["content-type"] == "image/png"
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(response.content))), np.asarray(expected))
    mask = Image.open(io.BytesIO(post(connect, "/map?kind=mask&crf=true").content))
    assert np.array_equal(np.asarray(mask), prediction.mask(crf=True))
    assert mask.getpalette() == class_palette().ravel().tolist()
    sheet = Image.open(io.BytesIO(post(connect, "/map?kind=modalities").content))
    assert sheet.width > 2 * prediction.width


@pytest.mark.parametrize("on", [False, True])
def test_masks_are_propagated_on_request(connect: Connect, predictor: Predictor, on: bool) -> None:
    model = walled(predictor, on)
    prediction = model.predict(image())
    masks = {choice: prediction.mask(propagate=choice) for choice in (False, True)}
    assert (masks[False] != masks[True]).any()
    np.testing.assert_array_equal(masks[False], predictor.predict(image()).mask())
    for query, choice in (("", on), ("&propagate=true", True), ("&propagate=false", False)):
        response = post(connect, f"/map?kind=mask{query}", model)
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(response.content))), masks[choice])
    row = post(connect, "/predict?save=masks&crf=true&propagate=true", model).json()
    both = prediction.mask(crf=True, propagate=True)
    np.testing.assert_array_equal(np.asarray(image_of(row["files"]["masks"])), both)
    archives = {post(connect, f"/annotations?propagate={choice}", model).content for choice in ("true", "false")}
    assert len(archives) == 2


@pytest.mark.parametrize(
    "path", ["/map?kind=mask", "/map?kind=overlay", "/predict?cells=1", "/annotations?format=coco"]
)
def test_a_model_without_boundaries_propagates_nothing(connect: Connect, path: str) -> None:
    response = post(connect, f"{path}&propagate=true")
    assert response.status_code == 422
    assert response.json()["detail"] == "propagate=True: this model has no boundaries, or was loaded without them."
    assert "wildcat refine --propagate" in response.json()["hint"]
    assert post(connect, f"{path}&propagate=false").status_code == 200


@pytest.mark.parametrize("name", sorted(ANNOTATION_FORMATS))
def test_annotations_equal_the_export(connect: Connect, predictor: Predictor, tmp_path: Path, name: str) -> None:
    response = post(connect, f"/annotations?format={name}", **upload(name="été one.png"))
    assert response.status_code == 200
    assert re.fullmatch(rf'attachment; filename="[\w.-]+-{name}\.zip"', response.headers["content-disposition"])
    with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
        sent = {entry: archive.read(entry) for entry in archive.namelist() if entry[-1] != "/"}
    with ANNOTATION_FORMATS[name](tmp_path / "annotations", predictor.classes, model="colours") as writer:
        instances = writer.add(replace(predictor.predict(image()), path="été one.png"), "été one.png")
    folder = tmp_path / "annotations"
    written = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    assert set(sent) == set(written)
    assert instances
    for entry, path in written.items():
        assert sent[entry] == path.read_bytes(), entry


@pytest.mark.parametrize("name", [".", "..", "a/.", ".png", "a."])
def test_names_of_dots_are_annotated(connect: Connect, name: str) -> None:
    assert post(connect, "/annotations?format=coco", **upload(name=name)).status_code == 200


def test_model_hides_its_path(connect: Connect) -> None:
    response = get(connect, "/model")
    facts = response.json()
    assert facts["name"] == "colours"
    assert facts["classes"] == ["red", "green", "blue"]
    assert facts["members"] == [{"backbone": "cells", "num_maps": 2, "input_size": 64}]
    assert facts["task"] == "multilabel"
    assert "secret" not in response.text
    assert facts["boundaries"] is facts["propagate"] is facts["crf"] is False
    assert facts["limits"] == {
        "max_mb": 20, "max_pixels": 40_000_000, "queue": 512, "queue_mb": 256, "timeout": 60, "wait": 300,
        "worker_timeout": 60,
    }  # fmt: skip
    assert get(connect, "/health").json() == {
        "status": "ok", "workers": 1, "workers_alive": 1, "restarts": 0, "requests": 0, "queue": 512
    }  # fmt: skip


def test_openapi_describes_every_route(connect: Connect) -> None:
    described = get(connect, "/openapi.json").json()
    assert set(described["paths"]) == {"/predict", "/map", "/annotations", "/model", "/health"}
    predict = described["paths"]["/predict"]["post"]
    assert {p["name"] for p in predict["parameters"]} == {
        "save", "classes", "cells", "crf", "propagate", "threshold"
    }  # fmt: skip
    assert "image" in predict["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
    assert {"200", "400", "413", "415", "422", "503"} <= set(predict["responses"])
    example = predict["responses"]["200"]["content"]["application/json"]["example"]
    assert set(post(connect, "/predict").json()) == set(example)
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
        ("/predict?save=masks&threshold=1e39", 422, "1e+39"),
        ("/predict?cells=-1", 422, "cells=-1"),
        ("/predict?url=http://127.0.0.1/a.png", 422, "url"),
        ("/map?kind=../../etc/passwd", 422, "kind"),
        ("/annotations?format=pickle", 422, "format"),
        ("/nothing", 404, "/nothing"),
        ("/model", 405, "POST"),
    ],
)
def test_invalid_parameters_get_one_sentence(connect: Connect, path: str, status: int, words: str) -> None:
    response = post(connect, path)
    assert response.status_code == status
    assert set(response.json()) == {"detail", "hint"}
    assert words in " ".join(response.json().values())


def test_too_many_drawings_are_refused(connect: Connect) -> None:
    large = encoded(Image.new("L", (6000, 5000)))
    every = "classes=red&classes=green&classes=blue"
    refused = post(connect, f"/predict?save=overlays&save=heatmaps&save=masks&{every}", **upload(large))
    assert refused.status_code == 422
    assert "6 drawings of 4487 x 3739 pixels" in refused.json()["detail"], "they are downscaled"
    assert "at most 4" in refused.json()["hint"]


def test_annotations_follow_the_threshold(connect: Connect, predictor: Predictor) -> None:
    """As the mask that the page shows."""
    areas = []
    for query in ("", "&threshold=0.6"):
        response = post(connect, f"/annotations?format=coco{query}", **upload())
        with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
            name = next(name for name in archive.namelist() if name.endswith(".json"))
            areas.append([one["area"] for one in json.loads(archive.read(name))["annotations"]])
    params = predictor.predict(image()).mask_params()
    found = find_instances(predictor.predict(image()), InstanceParams(threshold=0.6))
    assert areas[1] == [one.area for one in found] != areas[0]
    assert predictor.predict(image()).mask(params=params.with_threshold(0.6)).astype(bool).sum() == sum(areas[1])


# --- browsers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/static/page.js", "/model", "/nothing"])
def test_every_response_has_security_headers(connect: Connect, path: str) -> None:
    headers = get(connect, path).headers
    assert headers["x-content-type-options"] == "nosniff"
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == "'self'"
    assert not any(name.startswith("access-control") for name in headers)


def test_other_origins_and_host_names_are_refused(connect: Connect) -> None:
    assert get(connect, "/model", origin="http://evil.example").status_code == 403
    assert get(connect, "/model", origin="http://127.0.0.1:9").status_code == 403
    assert get(connect, "/model", origin="null").status_code == 403
    assert get(connect, "/model", origin="http://127.0.0.1:8000").status_code == 200
    assert get(connect, "/model", LOOPBACK, host="evil.example").status_code == 400
    assert get(connect, "/model", LOOPBACK, host="[::1]:8000").status_code == 200
    assert get(connect, "/model", LOOPBACK, host="[").status_code == 400
    assert get(connect, "/model", None, host="evil.example").status_code == 200


# (header Host, header Origin, --names) -> status of a service that listens on this machine only
@pytest.mark.parametrize(
    ("host", "origin", "names", "status", "words"),
    [
        ("example.com", None, "", 400, ("header Host is 'example.com'", "--names example.com.")),
        ("example.com:8443", "https://example.com:8443", "", 400, ("'example.com:8443'", "--names example.com.")),
        ("<b>", None, "", 400, ("'<b>'", "--names NAME.")),
        ("127.0.0.1:8000", "https://a.org", "", 403, ("Origin is 'https://a.org'", "Host is '127.0.0.1:8000'")),
        ("127.0.0.1:8000", "https://a.org", "", 403, ("--names a.org,", "keep the header Host")),
        ("127.0.0.1:8000", "https://example.com", "example.com", 200, ()),
        ("127.0.0.1:8000", "https://evil.example", "example.com", 403, ("https://evil.example",)),
        ("example.com", "https://example.com:8443", "Example.com", 200, ()),
        ("example.com:443", "https://example.com", "https://example.com:443/", 200, ()),
        ("127.0.0.1:80", "http://127.0.0.1", "", 200, ()),
        ("127.0.0.1:80", "http://127.0.0.1:8000", "", 403, ()),
    ],
)  # fmt: skip
def test_a_refusal_names_the_header_its_value_and_the_flag(
    connect: Connect, host: str, origin: str | None, names: str, status: int, words: tuple[str, ...]
) -> None:
    headers = {"host": host, **({"origin": origin} if origin else {})}
    response = get(connect, "/model", LOOPBACK, filter(None, [names]), **headers)
    assert response.status_code == status, response.text
    assert all(word in " ".join(response.json().values()) for word in words)


@pytest.mark.parametrize("root_path", ["/wild.cat/v1", "wild.cat/v1/"])
@pytest.mark.parametrize("prefix", ["", "/", "/wild.cat/v1"])  # a proxy strips it, leaves a second slash, or keeps it
def test_a_path_prefix(connect: Connect, root_path: str, prefix: str) -> None:
    for path in ("/", "") if prefix else ("/",):
        page = get(connect, prefix + path, root_path=root_path)
        assert page.status_code == 200 and '<head><base href="/wild.cat/v1/">' in page.text
    assert get(connect, f"{prefix}/static/page.js", root_path=root_path).status_code == 200
    assert get(connect, f"{prefix}/model", root_path=root_path).json()["name"] == "colours"
    assert get(connect, f"{prefix}/openapi.json", root_path=root_path).json()["servers"] == [{"url": "/wild.cat/v1"}]
    assert "/wild.cat/v1/openapi.json" in get(connect, f"{prefix}/models", root_path=root_path).json()["hint"]


def test_an_unknown_prefix_is_answered_with_the_flag(connect: Connect) -> None:
    assert "--root-path" in get(connect, "/wildcat/model").json()["hint"]
    assert "<base" not in get(connect, "/").text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"root_path": "https://example.com/wildcat"}, "without a host name"),
        ({"root_path": "/a b"}, "--root-path '/a b'"),
        ({"root_path": "/predict/"}, "--root-path /predict is a path of the service"),
        ({"names": ["*"]}, r"--names '\*'"),
        ({"names": ["https://"]}, "--names 'https://'"),
    ],
)
def test_flags_for_a_proxy_are_checked(predictor: Predictor, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        create_app(predictor, **options)


def test_the_page_is_complete_and_requests_no_other_server(connect: Connect) -> None:
    page = get(connect, "/").text
    assert not re.search(r"<style|<script(?![^>]*src)|\sstyle=|\son\w+=", page), "the policy allows nothing inline"
    links = re.findall(r'(?:src|href)="([^"#][^"]*)"', page)
    assert set(links) == {
        "data:,", "static/maps.js", "static/page.js", "static/page.css", "static/report.css", "openapi.json"
    }  # fmt: skip
    for link in set(links) - {"data:,"}:
        assert get(connect, f"/{link}").status_code == 200
    script = get(connect, "/static/maps.js").text + get(connect, "/static/page.js").text
    assert (
        "innerHTML =" not in script and "eval(" not in script and "://" not in script.replace("http://www.w3.org", "")
    )
    for name in re.findall(r'find\("#([\w-]+)"\)', script):
        assert f'id="{name}"' in page, name
    colors = get(connect, "/static/colors.json").json()
    assert {len(base64.b64decode(text)) for text in colors["colormaps"].values()} == {768}


@pytest.mark.parametrize("path", ["/static/../app.py", "/static/%2e%2e/app.py", "/static/index.html", "/static/"])
def test_only_the_files_of_the_page_are_served(connect: Connect, path: str) -> None:
    assert get(connect, path).status_code == 404
