"""Superpixels: averages against a loop, masks that follow them, and the missing package."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from wildcat.errors import ConfigError, MissingExtra
from wildcat.regions import MaskParams, maps_to_mask
from wildcat.regions.superpixels import average_over, superpixels


@pytest.fixture
def halves() -> np.ndarray:
    """(40, 60, 3): black on the left, white on the right."""
    image = np.zeros((40, 60, 3), np.uint8)
    image[:, 30:] = 255
    return image


def test_averages_against_a_loop() -> None:
    rng = np.random.default_rng(0)
    maps, regions = rng.normal(size=(3, 6, 7)).astype(np.float32), rng.integers(0, 5, (6, 7))
    expected = maps.copy()
    for number in range(5):
        for k in range(3):
            expected[k][regions == number] = maps[k][regions == number].mean()
    np.testing.assert_allclose(average_over(torch.from_numpy(maps), regions).numpy(), expected, atol=1e-6)


def test_a_mask_follows_the_superpixels(halves: np.ndarray) -> None:
    found = superpixels(halves)
    assert len(np.unique(found[:, :28])) == 1 and len(np.unique(found[:, 32:])) == 1 and found[0, 0] != found[0, 59]
    maps = np.full((1, 4, 6), -4.0)
    maps[0, :, :3] = 2.0
    maps[0, 1, 1] = -1.0  # a hole that the average fills
    probs = np.array([0.9])
    plain = maps_to_mask(maps, probs, (40, 60), MaskParams(rule="score"))
    smooth = maps_to_mask(maps, probs, (40, 60), MaskParams(rule="score", superpixels=True), image=halves)
    assert plain[15, 15] == 0
    assert (smooth[:, :28] == 1).all() and (smooth[:, 32:] == 0).all()
    with pytest.raises(ConfigError, match="superpixels=True needs the image"):
        maps_to_mask(maps, probs, (40, 60), MaskParams(rule="score", superpixels=True))


def test_without_scikit_image(halves: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage.segmentation", None)
    with pytest.raises(MissingExtra, match="scikit-image is needed") as caught:
        superpixels(halves)
    assert "wildcat-vision[superpixels]" in caught.value.hint
