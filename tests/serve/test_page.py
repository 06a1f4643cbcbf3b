"""The service's page in a real browser: what is drawn is what the library draws, where it says, at both widths."""

from __future__ import annotations

import base64
import json
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

from tests.conftest import Visit, pixels
from tests.serve.conftest import calibrated
from wildcat.prediction import Prediction
from wildcat.predictor import Predictor
from wildcat.regions.masks import MaskParams
from wildcat.serve import create_app
from wildcat.serve.middleware import LOOPBACK
from wildcat.serve.server import address_of, listen
from wildcat.viz.colors import MARK_COLORS

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route

DESKTOP, PHONE = 1280, 390

GATES = MaskParams(gate=(1.0, 0.4, 0.3), rule="constant", constant=0.3)
"""Red is predicted and held back, blue is not predicted and drawn."""


@pytest.fixture(scope="module")
def addresses(predictor: Predictor) -> Iterator[dict[str, str]]:
    """The service of the plain model and of one with gates of its own, on ports of this machine."""
    running, found = [], {}
    for name, model in (("plain", predictor), ("calibrated", calibrated(predictor, GATES))):
        listener = listen("127.0.0.1", 0)
        config = uvicorn.Config(create_app(model, hosts=LOOPBACK), log_level="warning", timeout_graceful_shutdown=2)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        running.append((server, thread))
        found[name] = address_of("127.0.0.1", listener)
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
    """96 x 48 pixels of dim noise, with a red glow, a green one, and a faint blue one."""
    pixels = np.random.default_rng(0).integers(0, 80, (48, 96, 3)) * (1, 1, 0.4)
    y, x = np.mgrid[:48, :96]
    glows = ((22, 12, 175, 150), (70, 33, 175, 150), (10, 40, 80, 60))
    for channel, (across, down, strength, size) in enumerate(glows):
        pixels[:, :, channel] += strength * np.exp(-((x - across) ** 2 + (y - down) ** 2) / size)
    path = tmp_path / "été & <b>.png"
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def wait_for(page: Page, words: str) -> None:
    """Until the page's status says so."""
    page.locator("#status", has_text=words).wait_for()


def give(page: Page, photo: Path) -> None:
    """Choose a file, and wait until it is drawn."""
    page.set_input_files("#file", photo)
    wait_for(page, f"{photo.name}, 96")


def drawn(page: Page) -> NDArray[np.uint8]:
    """(H, W, 4): what lies on the image."""
    return pixels(page.locator("#stage canvas"))


def hottest(page: Page) -> tuple[float, float]:
    """(x, y) of the least transparent place, the middle of those that are alike, as parts of width and height."""
    alpha = drawn(page)[:, :, 3]
    rows, columns = np.nonzero(alpha == alpha.max())
    return float(columns.mean() + 0.5) / alpha.shape[1], float(rows.mean() + 0.5) / alpha.shape[0]


def row_of(page: Page, name: str) -> Any:
    return page.locator(f'.row[data-name="{name}"]')


def assert_hot_at_the_point(page: Page, said: Prediction, name: str) -> None:
    """Heat and the drawn mark lie where `Prediction.points` says: within half a cell of 8 x 8, and within a pixel."""
    x, y = said.points[name]
    hot = hottest(page)
    assert abs(hot[0] - x / said.width) < 1 / 16 and abs(hot[1] - y / said.height) < 1 / 16, (hot, said.points[name])
    stage, mark = (page.locator(f"#stage{inside}").bounding_box() for inside in ("", " .mark-point"))
    assert stage and mark
    at = (mark["x"] + mark["width"] / 2 - stage["x"], mark["y"] + mark["height"] / 2 - stage["y"])
    assert at == pytest.approx((x / said.width * stage["width"], y / said.height * stage["height"]), abs=1)


def assert_fits(page: Page, width: int) -> None:
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing to scroll sideways"


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_an_image_is_looked_at(
    visit: Visit, addresses: dict[str, str], predictor: Predictor, photo: Path, width: int
) -> None:
    said = predictor.predict(photo)
    page, _ = visit(addresses["plain"], width)
    page.wait_for_selector("#facts dd")
    assert page.title() == "colours · wildcat"
    assert_fits(page, width)
    give(page, photo)
    assert_fits(page, width)
    assert page.locator(".row bdi").all_text_contents() == sorted(said.classes, key=lambda name: -said.scores[name])
    assert f"{said.probabilities['red']:.0%}".replace("%", " %") in row_of(page, "red").inner_text()
    assert "predicted" not in (row_of(page, "blue").get_attribute("class") or "")
    assert page.locator("#stage img").get_attribute("alt") == f"{photo.name}: {', '.join(said.labels)}"

    assert_hot_at_the_point(page, said, said.top)
    first = drawn(page)
    other = next(name for name in said.labels if name != said.top)
    row_of(page, other).click()
    assert other in page.inner_text("#caption")
    assert_hot_at_the_point(page, said, other)
    assert not np.array_equal(drawn(page), first), "another class, another image"

    mean = drawn(page)
    page.click('[data-modality="1"]')
    assert "map 2" in page.inner_text("#caption")
    assert not np.array_equal(drawn(page), mean), "one map is not the mean of both"
    assert page.locator('[data-modality="1"]').get_attribute("aria-pressed") == "true"

    page.click("text=None")
    assert page.locator("#stage canvas").count() == 0


def test_an_image_that_is_given_before_the_model_is_known_waits_for_it(
    visit: Visit, addresses: dict[str, str], photo: Path
) -> None:
    page, _ = visit(addresses["plain"])
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route("**/model", hold)
    page.reload()
    page.set_input_files("#file", photo)
    assert not page.locator("#facts dd").count(), "the model is not known yet"
    held[0].continue_()
    wait_for(page, f"{photo.name}, 96")


def test_hover_and_keys_show_a_class_and_let_it_go(
    visit: Visit, addresses: dict[str, str], predictor: Predictor, photo: Path
) -> None:
    page, _ = visit(addresses["plain"])
    give(page, photo)
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


def test_images_are_dropped_and_pasted_and_addresses_are_not_opened(
    visit: Visit, addresses: dict[str, str], photo: Path
) -> None:
    page, faults = visit(addresses["plain"])
    page.wait_for_selector("#facts dd")

    def hand_over(event: str, content: bytes | None, name: str) -> None:
        page.evaluate(
            """([event, text, name]) => {
              const carried = new DataTransfer(), bytes = Uint8Array.from(atob(text ?? ""), (c) => c.charCodeAt(0));
              if (text === null) carried.setData("text/uri-list", "http://127.0.0.1:9/a.png");
              else carried.items.add(new File([bytes], name, { type: "image/png" }));
              const options = { bubbles: true, cancelable: true, dataTransfer: carried, clipboardData: carried };
              const made = event === "paste" ? new ClipboardEvent(event, options) : new DragEvent(event, options);
              document.querySelector("#drop").dispatchEvent(made);
            }""",
            [event, None if content is None else base64.b64encode(content).decode(), name],
        )

    for event, name in (("drop", "dropped.png"), ("paste", "pasted.png")):
        hand_over(event, photo.read_bytes(), name)
        wait_for(page, f"{name}, 96")
        hand_over(event, None, "")
        wait_for(page, "addresses are never opened")
    hand_over("drop", b"no image", "a.png")
    wait_for(page, "no image of a kind")
    assert page.locator(".row").count() == 3, "the last image is still there"
    assert len(faults) == 1 and "415" in faults.pop()


@pytest.mark.parametrize("model", ["plain", "calibrated"])
def test_the_mask_is_that_of_the_library_and_follows_the_slider(
    visit: Visit, addresses: dict[str, str], predictor: Predictor, photo: Path, model: str
) -> None:
    said = predictor.predict(photo)
    if model == "calibrated":
        said = calibrated(predictor, GATES).predict(photo)
        assert set(said.labels) == {"red", "green"}
    page, _ = visit(addresses[model])
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    give(page, photo)
    page.click("text=Mask")

    classes = page.locator("#legend span").all_text_contents()
    assert classes == (["red", "green"] if model == "plain" else ["green", "blue"])

    def assert_shows(mask: NDArray[np.int64], share: float) -> None:
        palette = np.zeros((4, 4), np.uint8)
        for color, name in zip(MARK_COLORS, classes, strict=False):
            palette[1 + said.classes.index(name)] = (*color, 255)
        assert np.mean((drawn(page) == palette[mask]).all(axis=2)) >= share

    assert all(np.mean(said.mask() == 1 + said.classes.index(name)) > 0.02 for name in classes), "each is seen"
    assert_shows(said.mask(), 0.99)  # maps are sent as a byte a cell: a pixel on the edge may differ
    params = said.mask_params()
    changes: dict[str, Any] = {"score": 0.4} if model == "plain" else {"constant": 0.6}
    page.fill("#threshold", "0.4" if model == "plain" else "60")
    assert page.inner_text("#threshold-said") == ("score 0.4" if model == "plain" else "60 %")
    narrower = said.mask(params=replace(params, **changes))
    assert 0 < np.count_nonzero(narrower) < np.count_nonzero(said.mask())
    assert_shows(narrower, 0.99)

    give(page, photo)  # a new image begins at the model's own threshold
    assert page.inner_text("#threshold-said") == ("score 0.0" if model == "plain" else "30 %")
    page.check("#crf")
    wait_for(page, "mask sharpened")
    assert "threshold" not in asked[-1], "the model's own is asked for"
    assert_shows(said.mask(crf=True), 1.0)
    page.fill("#threshold", "0.4" if model == "plain" else "60")
    wait_for(page, "mask sharpened")
    assert_shows(said.mask(crf=True, params=replace(params, **changes)), 1.0)
    page.uncheck("#crf")
    assert_shows(narrower, 0.99)


def test_downloads(visit: Visit, addresses: dict[str, str], predictor: Predictor, photo: Path, tmp_path: Path) -> None:
    page, _ = visit(addresses["plain"])
    give(page, photo)
    said = predictor.predict(photo)

    def download(button: str) -> Path:
        with page.expect_download() as waiting:
            page.click(button)
        target = tmp_path / "got" / waiting.value.suggested_filename
        waiting.value.save_as(target)
        return target

    row = json.loads(download("#get-json").read_text(encoding="utf-8"))
    assert row == {**said.to_dict(), "image": photo.name, "files": {}}
    with Image.open(download("#get-png")) as shown, Image.open(photo) as plain:
        assert shown.size == plain.size
        x, y = (int(v) for v in said.points[said.top])
        mark = np.asarray(shown.convert("RGB"))[y, x].astype(int)
        assert mark[0] > 200 and mark[0] > mark[1] + 30 > mark[2] + 60, "the orange of a point, where it is"
        red = np.asarray(shown.convert("RGB")).astype(int)[:, :, 0] - np.asarray(plain)[:, :, 0]
        assert (np.abs(red) > 30).mean() > 0.01, "heat lies on the image"
    page.select_option("#format", "voc")
    with zipfile.ZipFile(download("#get-annotations")) as archive:
        written = "".join(archive.read(name).decode() for name in archive.namelist() if name.endswith(".xml"))
    assert all(f"<name>{name}</name>" in written for name in said.labels)


def test_no_image_is_too_large_to_say_so(visit: Visit, addresses: dict[str, str], tmp_path: Path) -> None:
    page, _ = visit(addresses["plain"], PHONE)
    page.wait_for_selector("#facts dd")
    path = tmp_path / "large.png"
    path.write_bytes(bytes(21_000_000))
    page.set_input_files("#file", path)
    page.wait_for_selector("#status.bad")
    assert page.inner_text("#status") == "This file has 21.0 MB; at most 20 MB are read here."
    assert_fits(page, PHONE)
