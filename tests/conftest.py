"""Shared fixtures. Nothing here reaches a network."""

from __future__ import annotations

import base64
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

# Tiny networks gain nothing from several threads, and on a busy machine threads that wait for each other take minutes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from huggingface_hub import constants, file_download
from numpy.typing import NDArray
from PIL import Image

from tests.hub_server import Hub
from wildcat.cli import main
from wildcat.data.dataset import DataSet
from wildcat.data.readers.synthetic import write_shapes
from wildcat.data.readers.voc import read_voc
from wildcat.train.batchnorm import estimate_running_statistics

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

# Machines that run tests are shared: an example that takes long says nothing.
hypothesis.settings.register_profile("shared", deadline=None)
hypothesis.settings.load_profile("shared")

# A shell that starts tests in the background has them ignore Ctrl-C; the tests of interruption need it to work.
signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).resolve().parent.parent

TINY = ("--backbone", "test_resnet", "--weights", "none", "--image-size", "64", "--workers", "0", "--device", "cpu")
TINY += ("--batch-size", "8", "--lr", "0.001")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with VOCdevkit/ (VOC 2012 mini) and 15-Scene/; the test is skipped where it is absent."""
    folder = Path(os.environ.get("WILDCAT_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "VOCdevkit" / "VOC2012").is_dir():
        pytest.skip(f"no real data at {folder} (set WILDCAT_TEST_DATA to a folder with VOCdevkit/ and 15-Scene/)")
    return folder


@pytest.fixture(autouse=True)
def _pixel_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command with --max-pixels changes the limit of the process: restored after the test."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium of the system; skipped where there is none.

    Playwright's own event loop runs as long as it does, and `asyncio.run` refuses to work beside it: tests that need
    both live in different modules.
    """
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright, which drives the browser")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("needs Chromium on the PATH (Debian: apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found)
        yield browser
        browser.close()


def pixels(canvas: Locator) -> NDArray[np.uint8]:
    """(H, W, 4): what is drawn on a canvas of a page."""
    width, height, text = canvas.evaluate(
        """canvas => {
          const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
          return [canvas.width, canvas.height, btoa(data.reduce((all, byte) => all + String.fromCharCode(byte), ""))];
        }"""
    )
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(height, width, 4)


Visit = Callable[..., "tuple[Page, list[str]]"]


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    """`page, faults = visit(address, width)`: a page, and what it does wrong.

    A fault is an error on its console, or a request that leaves its origin. A test that provokes one looks at it and
    clears the list: what is left at the end fails the test.
    """
    all_faults: list[list[str]] = []
    context = browser.new_context()

    def opened(address: str, width: int = 1280, height: int = 800) -> tuple[Page, list[str]]:
        page, faults = context.new_page(), []
        all_faults.append(faults)
        home = urlsplit(address)[:2]

        def look_at(url: str) -> None:
            if urlsplit(url)[:2] != home and urlsplit(url).scheme not in ("data", "blob"):
                faults.append(f"asked for {url}")

        page.on("console", lambda message: message.type == "error" and faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(error.message))
        page.on("request", lambda request: look_at(request.url))
        page.set_viewport_size({"width": width, "height": height})
        page.set_default_timeout(20_000)
        page.goto(address)
        return page, faults

    yield opened
    context.close()
    assert not any(all_faults), all_faults


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder of the module's own, for features, downloads and graphs."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("WILDCAT_CACHE", str(folder))
        yield folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A stand-in for the Hugging Face Hub, with an empty cache and the token of a user who may write to ann/..."""
    with Hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)  # the package reads the environment when imported
        template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        for module in (constants, file_download):  # older versions import it by name
            monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # uploads by native code, to other servers
        monkeypatch.setenv("HF_TOKEN", "hf_write")
        yield server


@pytest.fixture(scope="session")
def shapes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """22 images to train with and 10 to validate with, as a VOC devkit."""
    return write_shapes(tmp_path_factory.mktemp("data") / "shapes", train=22, val=10, size=(48, 64))


@pytest.fixture(scope="session")
def shapes(shapes_folder: Path) -> DataSet:
    """The data set in `shapes_folder`."""
    return read_voc(shapes_folder)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, shapes_folder: Path) -> Path:
    """A run folder trained for two epochs on `shapes_folder`; read only (copy it to write into it)."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WILDCAT_CACHE", str(folder.with_name("cache")))
        assert main(["train", str(shapes_folder), "--out", str(folder), "--epochs", "2", *TINY]) == 0
    return folder


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of weights for test_resnet, with running statistics that fit them."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "test_resnet.safetensors"
    network = timm.create_model("test_resnet", num_classes=0)
    estimate_running_statistics(network, torch.randn(2, 8, 3, 64, 64))
    safetensors.torch.save_file(network.state_dict(), path)
    return str(path)
