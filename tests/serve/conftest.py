"""A model with scores that follow from the image, and a client of its service that needs no network."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from copy import copy
from dataclasses import replace
from typing import Any, ClassVar

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from wildcat.data.image_ref import LoadedImage
from wildcat.data.transforms import Preprocess
from wildcat.models.calibration import Calibration
from wildcat.models.member import Member, Outputs
from wildcat.nn.backbones import Backbone
from wildcat.nn.boundaries import BoundaryNetwork
from wildcat.nn.heads import create_pool
from wildcat.nn.model import Wildcat
from wildcat.prediction import Prediction
from wildcat.predictor import Predictor
from wildcat.regions.masks import MaskParams
from wildcat.serve import Limits, create_app

SECONDS = 60.0  # for anything in these tests to happen on a busy machine

Connect = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "timeout"
        time.sleep(0.002)


class Gate:
    """Stands in for `Worker.run`: returns when the gate is open, and records the batches."""

    def __init__(self, run: Callable[[Sequence[Any]], Sequence[Any]] = list) -> None:
        self.run, self.open = run, threading.Event()
        self.batches: list[list[Any]] = []

    def __call__(self, jobs: Sequence[Any]) -> list[Any]:
        self.batches.append(list(jobs))
        assert self.open.wait(SECONDS)
        return list(self.run(jobs))


class Cells(nn.Module):
    """The features are the mean colours of 8 x 8 pixels."""

    pretrained_cfg: ClassVar = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    num_features = 3

    def forward_features(self, images: Tensor) -> Tensor:
        return functional.avg_pool2d(images, 8)


@pytest.fixture(scope="session")
def predictor() -> Predictor:
    """Class c is where channel c is bright; 64 x 64 input, 8 x 8 maps, two maps per class."""
    model = Wildcat(Backbone("cells", Cells()), 3, 2, create_pool("wildcat", 3, alpha=0.7))
    with torch.no_grad():
        model.transfer.weight.copy_(torch.eye(3).repeat_interleave(2, 0)[:, :, None, None])
        model.transfer.weight[::2] *= 2
        model.transfer.bias.copy_(torch.tensor([-1.0, 0.5] * 3))
    member = Member(model, Preprocess(64, (0.0,) * 3, (1.0,) * 3, "bilinear"))
    return Predictor("/secret/folder/colours", [member], ("red", "green", "blue"), "multilabel", "cpu")


class Walled(Predictor):
    """As a refined model with boundaries: a wall between the left and the right half of every image."""

    def predictions(self, images: Sequence[LoadedImage], outputs: Outputs) -> list[Prediction]:
        walls = np.zeros((len(images), 1, 8, 8), np.float32)
        walls[..., 4] = 0.9
        return super().predictions(images, replace(outputs, boundaries=walls))


def walled(predictor: Predictor, propagate: bool = False) -> Predictor:
    """The same network with boundaries; `propagate`: the service was started with --propagate."""
    member = replace(predictor.members[0], boundaries=BoundaryNetwork((3,)))
    return Walled("walled", [member], predictor.classes, predictor.task, "cpu", propagate=propagate)


def calibrated(predictor: Predictor, params: MaskParams) -> Predictor:
    """The same network with calibrated masks, as `wildcat calibrate` may fit them."""
    model = copy(predictor)
    model.calibration = Calibration(params, {})
    return model


def image(seed: int = 0, size: tuple[int, int] = (96, 48)) -> Image.Image:
    """Noise with a bright red and a bright green patch; `size` is (width, height)."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 80, (size[1], size[0], 3), dtype=np.uint8)
    pixels[: size[1] // 2, : size[0] // 3, 0] = 255 - seed % 50
    pixels[size[1] // 2 :, size[0] // 2 :, 1] = 250
    return Image.fromarray(pixels)


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.fixture
def connect(predictor: Predictor) -> Connect:
    """`async with connect(limits) as client`: a client of a service that is closed at the end."""

    @asynccontextmanager
    async def connected(
        limits: Limits | None = None, model: Predictor = predictor, **options: Any
    ) -> AsyncIterator[httpx.AsyncClient]:
        app = create_app(model, limits, **options)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
            client.app = app  # type: ignore[attr-defined]
            try:
                yield client
            finally:
                app.state.service.batcher.close()

    return connected
