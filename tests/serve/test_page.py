"""The page of the service in a real browser: it draws what the library draws, at the same places, at two widths."""

from __future__ import annotations

import base64
import json
import shutil
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import uvicorn
from numpy.typing import NDArray
from PIL import Image
from starlette.types import ASGIApp

from tests.conftest import Visit, pixels
from tests.serve.conftest import calibrated, walled
from tests.test_intensity import ranged
from wildcat.cli.serve import listen, url_of
from wildcat.prediction import Prediction
from wildcat.predictor import Predictor
from wildcat.regions.masks import MaskParams
from wildcat.serve import create_app
from wildcat.serve.middleware import LOOPBACK
from wildcat.viz.colors import MARK_COLORS

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route

DESKTOP, PHONE = 1280, 390

# The thresholds exclude red, the most probable class, and include blue, which is below 0.5.
GATES = MaskParams(gate=(1.0, 0.4, 0.3), rule="constant", constant=0.3)
SUPERPIXELS = MaskParams(rule="score", superpixels=True)


def behind_proxy(app: ASGIApp, prefix: str = "", host: bytes = b"") -> ASGIApp:
    """What a proxy passes on: the path without a prefix, and another header Host."""

    async def pass_on(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            scope["path"] = scope["path"].removeprefix(prefix)
            scope["headers"] = [(k, host if host and k == b"host" else v) for k, v in scope["headers"]]
        await app(scope, receive, send)

    return pass_on


@pytest.fixture(scope="module")
def addresses(predictor: Predictor) -> Iterator[dict[str, str]]:
    """The URLs of services: of the plain model, of a calibrated one, and behind proxies."""
    running, found = [], {}
    plain = create_app(predictor, hosts=LOOPBACK)
    numbered = calibrated(predictor, MaskParams(gate=1.0))
    numbered.classes = ("5", "7", "3")
    for name, app in {
        "plain": plain,
        "walled": create_app(walled(predictor), hosts=LOOPBACK),
        "propagating": create_app(walled(predictor, propagate=True), hosts=LOOPBACK),
        "superpixels": create_app(calibrated(predictor, SUPERPIXELS), hosts=LOOPBACK),
        "ranged": create_app(ranged("0,4095"), hosts=LOOPBACK),
        "calibrated": create_app(calibrated(predictor, GATES), hosts=LOOPBACK),
        "numbered": create_app(numbered, hosts=LOOPBACK),
        "stripped": behind_proxy(plain, prefix="/below"),
        "kept": create_app(predictor, hosts=LOOPBACK, root_path="/wildcat"),
        "other host": behind_proxy(plain, host=b"localhost"),
        "named": behind_proxy(create_app(predictor, hosts=LOOPBACK, names=["127.0.0.1"]), host=b"localhost"),
    }.items():
        listener = listen("127.0.0.1", 0)
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        running.append((server, thread))
        found[name] = url_of("127.0.0.1", listener)
    until = time.monotonic() + 60
    while not all(server.started for server, _ in running):
        assert time.monotonic() < until, "the service does not start"
        time.sleep(0.01)
    yield found
    for server, thread in running:
        server.should_exit = True
        thread.join(10)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """96 x 48 pixels of dark noise with a red, a green and a faint blue spot."""
    pixels = np.random.default_rng(0).integers(0, 80, (48, 96, 3)) * (1, 1, 0.4)
    y, x = np.mgrid[:48, :96]
    spots = ((22, 12, 175, 150), (70, 33, 175, 150), (10, 40, 80, 60))
    for channel, (across, down, strength, size) in enumerate(spots):
        pixels[:, :, channel] += strength * np.exp(-((x - across) ** 2 + (y - down) ** 2) / size)
    path = tmp_path / "été & <b>.png"
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def wait_for(page: Page, text: str) -> None:
    """Wait until the status of the page contains the text."""
    page.locator("#status", has_text=text).wait_for()


def upload(page: Page, photo: Path) -> None:
    """Choose a file and wait for its prediction."""
    page.set_input_files("#file", photo)
    wait_for(page, f"{photo.name}, 96")


def drawn(page: Page) -> NDArray[np.uint8]:
    """(H, W, 4): the overlay."""
    return pixels(page.locator("#stage canvas"))


def most_opaque(page: Page) -> tuple[float, float]:
    """(x, y) of the most opaque pixel, the centre if there are several, as shares of width and height."""
    alpha = drawn(page)[:, :, 3]
    rows, columns = np.nonzero(alpha == alpha.max())
    return float(columns.mean() + 0.5) / alpha.shape[1], float(rows.mean() + 0.5) / alpha.shape[0]


def row_of(page: Page, name: str) -> Any:
    return page.locator(f'.row[data-name="{name}"]')


def assert_maximum_at_the_point(page: Page, prediction: Prediction, name: str) -> None:
    """The maximum of the heatmap is within half a cell of `Prediction.points`, the mark within a pixel."""
    x, y = prediction.points[name]
    maximum = most_opaque(page)
    assert abs(maximum[0] - x / prediction.width) < 1 / 16 and abs(maximum[1] - y / prediction.height) < 1 / 16, (
        maximum,
        prediction.points[name],
    )
    stage, mark = (page.locator(f"#stage{inside}").bounding_box() for inside in ("", " .mark-point"))
    assert stage and mark
    at = (mark["x"] + mark["width"] / 2 - stage["x"], mark["y"] + mark["height"] / 2 - stage["y"])
    assert at == pytest.approx((x / prediction.width * stage["width"], y / prediction.height * stage["height"]), abs=1)


def assert_fits(page: Page, width: int) -> None:
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page scrolls sideways"


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_an_image_is_predicted(
    visit: Visit, addresses: dict[str, str], predictor: Predictor, photo: Path, width: int
) -> None:
    prediction = predictor.predict(photo)
    page, _ = visit(addresses["plain"], width)
    page.wait_for_selector("#facts dd")
    assert page.title() == "colours · wildcat"
    assert_fits(page, width)
    upload(page, photo)
    assert_fits(page, width)
    assert page.locator(".row bdi").all_text_contents() == sorted(
        prediction.classes, key=lambda name: -prediction.scores[name]
    )
    assert f"{prediction.probabilities['red']:.0%}".replace("%", " %") in row_of(page, "red").inner_text()
    assert "predicted" not in (row_of(page, "blue").get_attribute("class") or "")
    assert page.locator("#stage img").get_attribute("alt") == f"{photo.name}: {', '.join(prediction.labels)}"

    assert_maximum_at_the_point(page, prediction, prediction.top)
    first = drawn(page)
    other = next(name for name in prediction.labels if name != prediction.top)
    row_of(page, other).click()
    assert other in page.inner_text("#caption")
    assert_maximum_at_the_point(page, prediction, other)
    assert not np.array_equal(drawn(page), first), "another class has another map"

    mean = drawn(page)
    page.click('[data-modality="1"]')
    assert "map 2" in page.inner_text("#caption")
    assert not np.array_equal(drawn(page), mean), "one map is not the mean of both"
    assert page.locator('[data-modality="1"]').get_attribute("aria-pressed") == "true"

    page.click("text=None")
    assert page.locator("#stage canvas").count() == 0


@pytest.mark.parametrize(("proxy", "path"), [("stripped", "/below/"), ("kept", "/wildcat"), ("named", "/")])
def test_the_page_works_behind_a_proxy(
    visit: Visit, addresses: dict[str, str], photo: Path, proxy: str, path: str
) -> None:
    page, _ = visit(addresses[proxy] + path)
    upload(page, photo)
    folder = addresses[proxy] + path.rstrip("/")
    assert page.inner_text("#endpoint") == f"{folder}/predict"
    assert page.evaluate("document.querySelector('footer a').href") == f"{folder}/openapi.json"
    page.click("text=Mask")
    page.check("#crf")
    wait_for(page, "mask refined")
    with page.expect_download() as waiting:
        page.click("#download-annotations")
    assert waiting.value.suggested_filename.endswith("-coco.zip")


def test_the_page_shows_why_the_service_refuses_it(visit: Visit, addresses: dict[str, str], photo: Path) -> None:
    page, faults = visit(addresses["other host"])
    page.set_input_files("#file", photo)
    wait_for(page, f"The header Origin is '{addresses['other host']}', but the header Host is 'localhost'")
    assert "--names 127.0.0.1" in page.inner_text("#status")
    page.route("**/predict*", lambda route: route.fulfill(status=413, body="<html>nginx</html>"))
    page.set_input_files("#file", photo)
    wait_for(page, "The proxy before the service answered with status 413. Its limit for uploads is too low")
    page.route("**/model", lambda route: route.fulfill(status=400, json={"detail": "no such host.", "hint": "Try."}))
    page.reload()
    wait_for(page, "No such host. Try.")
    assert all("40" in fault or "413" in fault for fault in faults)
    faults.clear()


def test_an_upload_waits_until_the_model_is_loaded(visit: Visit, addresses: dict[str, str], photo: Path) -> None:
    page, _ = visit(addresses["plain"])
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route("**/model", hold)
    page.reload()
    page.set_input_files("#file", photo)
    assert not page.locator("#facts dd").count(), "the model is not loaded yet"
    held[0].continue_()
    wait_for(page, f"{photo.name}, 96")


def test_hover_and_keys_select_a_class(
    visit: Visit, addresses: dict[str, str], predictor: Predictor, photo: Path
) -> None:
    page, _ = visit(addresses["plain"])
    upload(page, photo)
    names = page.locator(".row bdi").all_text_contents()
    row_of(page, names[2]).hover()
    assert page.inner_text("#caption").startswith(names[2])
    page.mouse.move(5, 5)
    assert page.inner_text("#caption").startswith(names[0])
    row_of(page, names[0]).focus()
    page.keyboard.press("ArrowDown")
    assert page.inner_text("#caption").startswith(names[1])
    page.keyboard.press("End")
    assert page.inner_text("#caption").startswith(names[2])
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before


def test_images_can_be_dropped_and_pasted_but_not_urls(visit: Visit, addresses: dict[str, str], photo: Path) -> None:
    page, faults = visit(addresses["plain"])
    page.wait_for_selector("#facts dd")

    def transfer(event: str, content: bytes | None, name: str) -> None:
        page.evaluate(
            """([event, text, name]) => {
              const data = new DataTransfer(), bytes = Uint8Array.from(atob(text ?? ""), (c) => c.charCodeAt(0));
              if (text === null) data.setData("text/uri-list", "http://127.0.0.1:9/a.png");
              else data.items.add(new File([bytes], name, { type: "image/png" }));
              const options = { bubbles: true, cancelable: true, dataTransfer: data, clipboardData: data };
              const made = event === "paste" ? new ClipboardEvent(event, options) : new DragEvent(event, options);
              document.querySelector("#drop").dispatchEvent(made);
            }""",
            [event, None if content is None else base64.b64encode(content).decode(), name],
        )

    for event, name in (("drop", "dropped.png"), ("paste", "pasted.png")):
        transfer(event, photo.read_bytes(), name)
        wait_for(page, f"{name}, 96")
        transfer(event, None, "")
        wait_for(page, "URLs are not opened")
    transfer("drop", b"no image", "a.png")
    wait_for(page, "no image in an accepted format")
    assert page.locator(".row").count() == 3, "the last image is still there"
    assert len(faults) == 1 and "415" in faults.pop()


@pytest.mark.parametrize("model", ["plain", "calibrated"])
def test_the_mask_equals_the_library_and_follows_the_threshold(
    visit: Visit, addresses: dict[str, str], predictor: Predictor, photo: Path, model: str
) -> None:
    prediction = predictor.predict(photo)
    if model == "calibrated":
        prediction = calibrated(predictor, GATES).predict(photo)
        assert set(prediction.labels) == {"green", "blue"}
    page, _ = visit(addresses[model])
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    upload(page, photo)
    page.click("text=Mask")

    classes = page.locator("#legend span").all_text_contents()
    assert classes == (["red", "green"] if model == "plain" else ["green", "blue"])

    def assert_shows(mask: NDArray[np.int64], share: float) -> None:
        palette = np.zeros((4, 4), np.uint8)
        for color, name in zip(MARK_COLORS, classes, strict=False):
            palette[1 + prediction.classes.index(name)] = (*color, 255)
        assert np.mean((drawn(page) == palette[mask]).all(axis=2)) >= share

    assert all(np.mean(prediction.mask() == 1 + prediction.classes.index(name)) > 0.02 for name in classes), (
        "each class is visible"
    )
    assert_shows(prediction.mask(), 0.99)  # maps have one byte per cell, so pixels on the edge may differ
    params = prediction.mask_params()
    changes: dict[str, Any] = {"score": 0.4} if model == "plain" else {"constant": 0.6}
    page.fill("#threshold", "0.4" if model == "plain" else "60")
    assert page.inner_text("#threshold-value") == ("score 0.4" if model == "plain" else "60 %")
    narrower = prediction.mask(params=replace(params, **changes))
    assert 0 < np.count_nonzero(narrower) < np.count_nonzero(prediction.mask())
    assert_shows(narrower, 0.99)

    upload(page, photo)  # a new image resets the threshold
    assert page.inner_text("#threshold-value") == ("score 0.0" if model == "plain" else "30 %")
    page.check("#crf")
    wait_for(page, "mask refined")
    assert "threshold" not in requested[-1], "the request uses the model's own threshold"
    assert_shows(prediction.mask(crf=True), 1.0)
    page.fill("#threshold", "0.4" if model == "plain" else "60")
    wait_for(page, "mask refined")
    assert_shows(prediction.mask(crf=True, params=replace(params, **changes)), 1.0)
    page.uncheck("#crf")
    assert_shows(narrower, 0.99)


@pytest.mark.parametrize("model", ["walled", "propagating"])
def test_the_mask_is_propagated_if_the_model_has_boundaries(
    visit: Visit, addresses: dict[str, str], predictor: Predictor, photo: Path, model: str
) -> None:
    prediction = walled(predictor).predict(photo)
    palette = np.array([(0, 0, 0, 0), *((*color, 255) for color in MARK_COLORS[:2])], np.uint8)
    page, _ = visit(addresses[model])
    upload(page, photo)
    page.click("text=Mask")
    if model == "walled":
        page.check("#propagate")
    wait_for(page, "mask refined")
    assert page.is_checked("#propagate")
    np.testing.assert_array_equal(drawn(page), palette[prediction.mask(propagate=True)])
    page.uncheck("#propagate")
    assert np.mean((drawn(page) == palette[prediction.mask(propagate=False)]).all(axis=2)) > 0.99
    without, _ = visit(addresses["plain"])
    upload(without, photo)
    without.click("text=Mask")
    assert without.is_visible("#crf") and not without.is_visible("#propagate")


def test_downloads(visit: Visit, addresses: dict[str, str], predictor: Predictor, photo: Path, tmp_path: Path) -> None:
    page, _ = visit(addresses["plain"])
    upload(page, photo)
    prediction = predictor.predict(photo)

    def download(button: str) -> Path:
        with page.expect_download() as waiting:
            page.click(button)
        target = tmp_path / "got" / waiting.value.suggested_filename
        waiting.value.save_as(target)
        return target

    row = json.loads(download("#download-json").read_text(encoding="utf-8"))
    assert row == {**prediction.to_dict(), "image": photo.name, "files": {}}
    with Image.open(download("#download-png")) as shown, Image.open(photo) as plain:
        assert shown.size == plain.size
        x, y = (int(v) for v in prediction.points[prediction.top])
        mark = np.asarray(shown.convert("RGB"))[y, x].astype(int)
        assert mark[0] > 200 and mark[0] > mark[1] + 30 > mark[2] + 60, "a point is orange"
        red = np.asarray(shown.convert("RGB")).astype(int)[:, :, 0] - np.asarray(plain)[:, :, 0]
        assert (np.abs(red) > 30).mean() > 0.01, "the heatmap is drawn"
    page.select_option("#format", "voc")
    with zipfile.ZipFile(download("#download-annotations")) as archive:
        written = "".join(archive.read(name).decode() for name in archive.namelist() if name.endswith(".xml"))
    assert all(f"<name>{name}</name>" in written for name in prediction.labels)


def test_an_upload_is_not_dropped_by_a_setting_of_the_mask(
    visit: Visit, addresses: dict[str, str], photo: Path, tmp_path: Path
) -> None:
    page, _ = visit(addresses["plain"])
    upload(page, photo)
    page.click("text=Mask")
    page.evaluate(
        """() => {
          const now = window.fetch;
          const wait = () => new Promise((resolve) => { window.answer = resolve; });
          window.fetch = async (path, options) => {
            if (path.startsWith("predict?cells")) await wait();
            return now(path, options);
          };
        }"""
    )
    page.set_input_files("#file", shutil.copyfile(photo, tmp_path / "next.png"))
    wait_for(page, "Predicting next.png")
    page.check("#crf")
    page.uncheck("#crf")
    page.evaluate("() => window.answer()")
    wait_for(page, "next.png, 96")


def test_the_most_probable_class_is_shown_first_if_none_is_predicted(
    visit: Visit, addresses: dict[str, str], photo: Path
) -> None:
    """Objects of JavaScript list names that are numbers in the order of the numbers."""
    page, _ = visit(addresses["numbered"])
    upload(page, photo)
    assert page.locator(".row bdi").all_text_contents() == ["7", "5", "3"]
    assert page.inner_text("#caption").startswith("7")


def test_superpixels_are_drawn_by_the_service(
    visit: Visit, addresses: dict[str, str], predictor: Predictor, photo: Path
) -> None:
    prediction = calibrated(predictor, SUPERPIXELS).predict(photo)
    assert not np.array_equal(prediction.mask(), predictor.predict(photo).mask())
    palette = np.array([(0, 0, 0, 0), *((*color, 255) for color in MARK_COLORS[:2])], np.uint8)
    page, _ = visit(addresses["superpixels"])
    upload(page, photo)
    page.click("text=Mask")
    wait_for(page, "mask refined")
    np.testing.assert_array_equal(drawn(page), palette[prediction.mask()])


def test_an_image_of_sixteen_bits_is_shown_in_the_range_of_the_model(
    visit: Visit, addresses: dict[str, str], tmp_path: Path
) -> None:
    """Browsers divide by 256, so that values up to 4095 are nearly black."""
    Image.fromarray(np.full((48, 96), 4000, np.uint16)).save(tmp_path / "scan.png")
    page, _ = visit(addresses["ranged"])
    upload(page, tmp_path / "scan.png")
    level = page.evaluate(
        """() => {
          const canvas = document.createElement("canvas"), photo = document.querySelector("#stage img");
          canvas.width = canvas.height = 1;
          canvas.getContext("2d").drawImage(photo, 0, 0);
          return canvas.getContext("2d").getImageData(0, 0, 1, 1).data[0];
        }"""
    )
    assert level == round(4000 / 4095 * 255)


def test_a_file_that_is_too_large_is_refused_at_once(visit: Visit, addresses: dict[str, str], tmp_path: Path) -> None:
    page, _ = visit(addresses["plain"], PHONE)
    page.wait_for_selector("#facts dd")
    path = tmp_path / "large.png"
    path.write_bytes(bytes(21_000_000))
    page.set_input_files("#file", path)
    page.wait_for_selector("#status.bad")
    assert page.inner_text("#status") == "This file has 21.0 MB; the limit is 20 MB."
    assert_fits(page, PHONE)
