"""Resizing without a shift of half a pixel, crops within their bounds, flips and normalisation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from wildcat.config import Distortion
from wildcat.data.transforms import Preprocess, distort, random_crop, smallest_side, stack_images

PLAIN = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def ramps(width: int, height: int) -> Image.Image:
    """Red increases to the right, green downwards: a pixel's colour encodes its position."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([4 * x, 4 * y, np.zeros_like(x)], axis=-1).astype(np.uint8))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("width", "height"), [(60, 40), (24, 60)])
def test_resizing_maps_pixel_centres(width: int, height: int, interpolation: str) -> None:
    """Pixel j of S covers the image from j W/S to (j+1) W/S, so its centre is at (j + 1/2) W/S - 1/2."""
    size = 20
    tensor = Preprocess(size, *PLAIN, interpolation)(ramps(width, height))
    places = np.arange(size) + 0.5
    inner = slice(3, -3)  # at the border the filter is cut
    for row in range(3, size - 3):
        expected = 4 * (places * width / size - 0.5)
        np.testing.assert_allclose(tensor[0, row].numpy()[inner] * 255, expected[inner], atol=1.01)
    for column in range(3, size - 3):
        expected = 4 * (places * height / size - 0.5)
        np.testing.assert_allclose(tensor[1, :, column].numpy()[inner] * 255, expected[inner], atol=1.01)


def test_corners_stay_corners() -> None:
    image = Image.new("RGB", (90, 50))
    for colour, corner in [("red", (0, 0)), ("lime", (60, 0)), ("blue", (0, 30)), ("white", (60, 30))]:
        image.paste(colour, (*corner, corner[0] + 30, corner[1] + 20))
    tensor = Preprocess(32, *PLAIN)(image)
    assert tensor[:, 0, 0].tolist() == [1, 0, 0]
    assert tensor[:, 0, -1].tolist() == [0, 1, 0]
    assert tensor[:, -1, 0].tolist() == [0, 0, 1]
    assert tensor[:, -1, -1].tolist() == [1, 1, 1]


def test_normalisation_follows_the_weights() -> None:
    image = Image.new("RGB", (5, 7), (255, 51, 0))
    tensor = Preprocess(8, (0.5, 0.2, 0.4), (0.5, 0.1, 0.2))(image)
    assert tensor.dtype == torch.float32
    assert tensor.shape == (3, 8, 8)
    for channel, expected in enumerate([(1 - 0.5) / 0.5, 0.0, -2.0]):
        np.testing.assert_allclose(tensor[channel], expected, atol=1e-6)


@settings(max_examples=300)
@given(
    width=st.integers(1, 900),
    height=st.integers(1, 900),
    smallest=st.floats(0.01, 1.0),
    seed=st.integers(0, 2**32),
)
@example(width=1, height=1, smallest=1 - 2**-53, seed=0)
def test_crops_are_inside_and_cover_the_smallest_area(width: int, height: int, smallest: float, seed: int) -> None:
    left, top, crop_width, crop_height = random_crop((width, height), np.random.default_rng(seed), smallest)
    assert 0 <= left <= left + crop_width <= width
    assert 0 <= top <= top + crop_height <= height
    assert crop_width >= 1
    assert crop_height >= 1
    assert min(crop_width / width, crop_height / height) >= smallest_side(smallest) * (1 - 1e-9)
    assert crop_width * crop_height >= smallest * width * height * (1 - 1e-9)
    # Sides are rounded up to whole pixels: the true ones are between a pixel less and the result.
    assert crop_width / width >= 3 / 4 * (crop_height - 1) / height
    assert (crop_width - 1) / width <= 4 / 3 * crop_height / height


def test_crops_reach_every_size_and_corner() -> None:
    rng = np.random.default_rng(0)
    crops = np.array([random_crop((400, 200), rng, 0.25) for _ in range(2000)])
    area = crops[:, 2] * crops[:, 3] / (400 * 200)
    np.testing.assert_allclose(np.quantile(area, [0.1, 0.5, 0.9]), 0.25 + 0.75 * np.array([0.1, 0.5, 0.9]), atol=0.04)
    shape = np.log(crops[:, 2] / 2 / crops[:, 3])
    assert abs(shape.mean()) < 0.02, "wide and high crops are as frequent"
    free = np.stack([400 - crops[:, 2], 200 - crops[:, 3]], axis=1)
    roomy = (free > 20).all(axis=1)
    np.testing.assert_allclose((crops[roomy, :2] / free[roomy]).mean(axis=0), 0.5, atol=0.04)
    assert random_crop((400, 200), rng, 1.0) == (0, 0, 400, 200)


def test_the_generator_determines_the_crop() -> None:
    preprocess, image = Preprocess(16, *PLAIN), ramps(40, 30)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one, same, other = (preprocess.augmented(image, np.random.default_rng(seed), 0.3, "both") for seed in (4, 4, 5))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("flip", "expected"), [("none", {"as is"}), ("horizontal", {"as is", "mirrored"})])
def test_flips(flip: str, expected: set[str]) -> None:
    assert views_seen(flip) == expected


def test_both_flips_give_all_four_views() -> None:
    assert views_seen("both") == {"as is", "mirrored", "upended", "turned"}


def views_seen(flip: str) -> set[str]:
    image = ramps(32, 32)
    plain = Preprocess(32, *PLAIN)(image)
    views = {"as is": plain, "mirrored": plain.flip(-1), "upended": plain.flip(-2), "turned": plain.flip(-1, -2)}
    seen = set()
    for seed in range(40):
        got = Preprocess(32, *PLAIN).augmented(image, np.random.default_rng(seed), 1.0, flip)  # type: ignore[arg-type]
        (name,) = [name for name, view in views.items() if torch.equal(view, got)]
        seen.add(name)
    return seen


def test_a_crop_is_its_resized_rectangle() -> None:
    preprocess, image = Preprocess(16, *PLAIN), ramps(60, 40)
    for seed in range(10):
        left, top, width, height = random_crop(image.size, np.random.default_rng(seed), 0.2)
        expected = preprocess(image.crop((left, top, left + width, top + height)))
        assert torch.equal(preprocess.augmented(image, np.random.default_rng(seed), 0.2, "none"), expected)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(500, 375), (90, 64), (20, 500), (1, 1), (3000, 40)])
def test_resizing_equals_pillow(size: tuple[int, int], interpolation: str) -> None:
    coarse = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize(size, Image.Resampling.BILINEAR)
    oracle = image.resize((64, 64), Image.Resampling[interpolation.upper()])
    warped = Preprocess(64, *PLAIN, interpolation).warp(image)
    assert warped.dtype == torch.uint8
    assert np.abs(warped.permute(1, 2, 0).numpy().astype(int) - np.asarray(oracle)).max() <= 1


def test_a_batch_is_normalised_like_its_images_and_is_channels_last() -> None:
    preprocess = Preprocess(16, (0.4, 0.5, 0.6), (0.2, 0.3, 0.1))
    images = [ramps(30, 20), ramps(16, 16).transpose(Image.Transpose.ROTATE_90)]
    pixels = stack_images([preprocess.warp(image) for image in images])
    assert pixels.is_contiguous(memory_format=torch.channels_last)
    batch = preprocess.normalise(pixels)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    for image, inputs in zip(images, batch, strict=True):
        bytes_ = preprocess.warp(image).double().numpy()
        expected = (bytes_ / 255 - np.reshape([0.4, 0.5, 0.6], (3, 1, 1))) / np.reshape([0.2, 0.3, 0.1], (3, 1, 1))
        np.testing.assert_allclose(inputs, expected, atol=2e-6)
        assert torch.equal(inputs, preprocess(image))


@pytest.mark.parametrize("flip", ["none", "both"])
def test_a_crop_of_a_downscaled_copy_is_the_crop_of_the_image(flip: str) -> None:
    stored = ramps(60, 40).resize((600, 400), Image.Resampling.BICUBIC)
    copy = stored.reduce(4)
    preprocess = Preprocess(20, *PLAIN)
    for seed in range(20):
        one, other = (
            preprocess.augmented(image, np.random.default_rng(seed), 0.3, flip, (600, 400))  # type: ignore[arg-type]
            for image in (stored, copy)
        )
        assert (one - other).abs().max() < 5 / 255, "half a pixel of the copy is 0.8 of the 255 levels, and a filter"


def test_maximum_downscale_factor() -> None:
    assert Preprocess(100, *PLAIN).max_downscale((1600, 800)) == 4.0
    assert Preprocess(100, *PLAIN).max_downscale((150, 800)) < 1
    assert Preprocess(100, *PLAIN).max_downscale((1600, 800), crop_scale=0.48) == pytest.approx(2.4)


@pytest.mark.parametrize("distortion", ["trivial", "rand"])
def test_distortions_are_those_of_the_generator_alone(distortion: Distortion) -> None:
    pixels = torch.randint(0, 256, (3, 40, 40), dtype=torch.uint8)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    drawn = [distort(pixels, np.random.default_rng(seed), distortion) for seed in (*range(8), *range(8))]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(drawn[:8], drawn[8:], strict=True))
    assert all(image.shape == pixels.shape and image.dtype == torch.uint8 for image in drawn)
    assert sum(not torch.equal(image, pixels) for image in drawn[:8]) > 4
    assert sum(not torch.equal(image, drawn[0]) for image in drawn[:8]) > 4
