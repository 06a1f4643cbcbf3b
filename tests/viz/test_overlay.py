"""High values are brighter than low ones, marks lie at their coordinates, and the rest of the image is unchanged."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from skimage.color import rgb2lab

from wildcat.errors import ConfigError, ShapeError
from wildcat.viz import draw_boxes, draw_point, overlay_heatmap, overlay_mask, side_by_side
from wildcat.viz.colors import MARK_COLORS, class_palette
from wildcat.viz.overlay import inner_border


def grey(width: int = 300, height: int = 200, value: int = 90) -> Image.Image:
    return Image.new("RGB", (width, height), (value, value, value))


def noise(width: int = 120, height: int = 80) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def pixels(image: Image.Image) -> NDArray[np.int64]:
    return np.asarray(image).astype(np.int64)


def changed(before: Image.Image, after: Image.Image) -> NDArray[np.bool_]:
    assert before.size == after.size
    return (pixels(before) != pixels(after)).any(axis=-1)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint8, np.int16])
def test_high_values_are_redder_and_brighter_than_low_values(dtype: type) -> None:
    ramp = np.linspace(0, 255, 8).astype(dtype)[None].repeat(6, axis=0)
    row = np.asarray(overlay_heatmap(grey(), ramp))[100, ::20]
    redness = row[:, 0].astype(int) - row[:, 2]
    lightness = rgb2lab(row[None])[0, :, 0]
    assert redness[-1] > redness[0] + 40
    assert lightness[-1] > lightness[0] + 40
    assert (np.diff(lightness[7:]) > 0).all()  # the upper half: faint heat is darker than this image


def test_heat_is_centred_on_its_cell() -> None:
    heat = np.zeros((5, 10))
    heat[3, 7] = 1
    image = grey(500, 200)
    weight = np.abs(pixels(overlay_heatmap(image, heat)) - pixels(image)).sum(axis=-1)
    x, y = np.arange(500) + 0.5, np.arange(200) + 0.5
    centre = ((weight.sum(axis=0) @ x) / weight.sum(), (weight.sum(axis=1) @ y) / weight.sum())
    assert centre == pytest.approx((375, 140), abs=2)


def test_fading_shows_the_image_at_low_values() -> None:
    image = noise()
    heat = np.zeros((8, 12))
    heat[2, 2] = 5
    touched = changed(image, overlay_heatmap(image, heat))
    assert touched[20:30, 20:30].all()
    assert not touched[:, 70:].any()


def test_constant_nan_and_transparent_maps_leave_the_image_unchanged() -> None:
    image = noise()
    heat = np.random.default_rng(0).normal(size=(7, 7))
    for shown in (
        overlay_heatmap(image, np.full((7, 7), 3.0)),
        overlay_heatmap(image, np.full((7, 7), np.nan)),
        overlay_heatmap(image, heat, alpha=0),
    ):
        np.testing.assert_array_equal(pixels(shown), pixels(image))


def test_nan_and_infinity_do_not_affect_other_cells() -> None:
    image, heat = grey(), np.zeros((4, 6))
    heat[0, 0], heat[3, 5] = np.nan, 1.0
    shown = pixels(overlay_heatmap(image, heat))
    np.testing.assert_array_equal(shown[:20, :20], pixels(image)[:20, :20])
    assert shown[180, 280].sum() > shown[100, 100].sum() + 100
    heat[0, 0] = np.inf
    assert pixels(overlay_heatmap(image, heat))[10, 10].sum() > pixels(overlay_heatmap(image, heat))[100, 100].sum()


def test_limits_put_two_maps_on_one_scale() -> None:
    weak, strong = np.full((4, 4), 0.2), np.full((4, 4), 0.9)
    first, second = (pixels(overlay_heatmap(grey(), m, limits=(0, 1)))[100, 150] for m in (weak, strong))
    assert second.sum() > first.sum() + 100


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_any_mode_becomes_rgb_and_the_argument_is_unchanged(mode: str) -> None:
    image = noise().convert(mode)
    before = image.tobytes()
    for shown in (
        overlay_heatmap(image, np.eye(4)),
        overlay_mask(image, np.eye(4, dtype=int)),
        draw_point(image, (20, 20), "dog"),
        draw_boxes(image, [(20, 20, 60, 60)]),
    ):
        assert shown.mode == "RGB"
        assert changed(image.convert("RGB"), shown).any()
    assert image.tobytes() == before


def test_an_rgb_argument_is_unchanged() -> None:
    image = noise()
    before = image.tobytes()
    draw_point(image, (20, 20))
    draw_boxes(image, [(20, 20, 60, 60)])
    assert image.tobytes() == before


def test_mask_colours_only_its_pixels() -> None:
    image = noise()
    mask = np.zeros((80, 120), dtype=np.uint8)
    mask[20:60, 30:90], mask[30:40, 40:50] = 1, 15
    edged = pixels(overlay_mask(image, mask))
    blended = np.where((mask > 0)[..., None], 0.45 * pixels(image) + 0.55 * class_palette()[mask], pixels(image))
    border = inner_border(mask, 1)
    assert border.any()
    np.testing.assert_allclose(edged[~border], blended[~border], atol=1)
    np.testing.assert_array_equal(edged[border], class_palette()[mask][border])
    assert tuple(edged[20, 50]) == (128, 0, 0)
    assert tuple(edged[30, 45]) == (192, 128, 128)


@pytest.mark.parametrize("width", [1, 2, 5])
def test_the_outline_has_the_given_width(width: int) -> None:
    """Against a loop: pixels of a class with a pixel of another class within `width` rows and columns."""
    classes = np.zeros((30, 35), dtype=np.uint8)
    classes[5:25, 3:32], classes[0:10, 15:20], classes[15:, 20:22] = 3, 0, 7
    expected = np.zeros(classes.shape, dtype=bool)
    for y, x in np.ndindex(classes.shape):
        near = classes[max(0, y - width) : y + width + 1, max(0, x - width) : x + width + 1]
        expected[y, x] = classes[y, x] > 0 and (near != classes[y, x]).any()
    np.testing.assert_array_equal(inner_border(classes, width), expected)


@pytest.mark.parametrize("size", [(300, 200), (640, 480), (4000, 1000)])
def test_a_point_is_centred_and_scales_with_the_image(size: tuple[int, int]) -> None:
    image = grey(*size)
    x, y = size[0] * 0.3 + 0.5, size[1] * 0.6 + 0.5
    rows, columns = np.nonzero(changed(image, draw_point(image, (x, y))))
    assert (columns.mean() + 0.5, rows.mean() + 0.5) == pytest.approx((x, y), abs=1)
    assert np.ptp(columns) / np.sqrt(size[0] * size[1]) == pytest.approx(0.03, abs=0.012)


def test_points_at_and_beyond_the_edge() -> None:
    image = grey()
    assert changed(image, draw_point(image, (0, 0)))[0, 0] and changed(image, draw_point(image, (300, 200)))[-1, -1]
    assert not changed(image, draw_point(image, (-900, 50))).any()


def test_the_outline_of_a_box_lies_inside_it() -> None:
    color = MARK_COLORS[0]
    image = grey(400, 300)
    shown = pixels(draw_boxes(image, [(50, 40, 200, 150)]))
    rows, columns = np.nonzero((shown == color).all(axis=-1))
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (50, 40, 200, 150)
    np.testing.assert_array_equal(shown[60:130, 70:180], 90)
    np.testing.assert_array_equal(shown[:38], 90)
    beyond = pixels(draw_boxes(image, [(-50, -9, 900, 400)]))
    assert [tuple(beyond[i, j]) for i, j in ((0, 0), (0, -1), (-1, 0), (-1, -1))] == [color] * 4


def test_the_line_width_scales_with_the_image() -> None:
    widths = []
    for side in (300, 1200, 4800):
        shown = pixels(draw_boxes(grey(side, side), [(side * 0.2, side * 0.2, side * 0.8, side * 0.8)]))
        widths.append(int((shown[side // 2, : side // 2] == MARK_COLORS[0]).all(axis=-1).sum()))
    assert widths[0] >= 2
    assert widths[2] == pytest.approx(4 * widths[1], rel=0.2)


@pytest.mark.parametrize("background", [0, 90, 255])
def test_a_label_is_inside_the_image_and_has_contrast(background: int) -> None:
    image = grey(300, 200, background)
    for point in ((20, 20), (285, 175), (120, 105)):
        bare, named = draw_point(image, point), draw_point(image, point, "wildcat 0.93")
        rows, columns = np.nonzero(changed(bare, named))
        tag = pixels(named)[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].sum(axis=-1)
        assert np.ptp(columns) > 70
        assert np.ptp(tag) > 300


def test_a_label_longer_than_the_image_is_shortened() -> None:
    assert draw_point(grey(120, 80), (5, 5), "a very long name of a class that cannot fit").size == (120, 80)


def test_the_grid_shows_each_image_with_its_caption() -> None:
    images = [
        Image.new("RGB", (60, 40), color) for color in ((200, 0, 0), (0, 200, 0), (0, 0, 200), (9, 9, 9), (0, 200, 200))
    ]
    sheet = pixels(side_by_side(images, columns=2))
    centres = []
    for image in images:
        rows, columns = np.nonzero((sheet == image.getpixel((0, 0))).all(axis=-1))
        assert len(rows) == 60 * 40
        centres.append((round(rows.mean()), round(columns.mean())))
    assert centres[0][0] == centres[1][0] < centres[2][0] == centres[3][0] < centres[4][0]
    assert centres[0][1] == centres[2][1] == centres[4][1] < centres[1][1] == centres[3][1]
    plain, named = side_by_side(images[:2]), side_by_side(images[:2], ["head", "legs and a very long tail"])
    assert named.width == plain.width
    written = (pixels(named)[plain.height - 2 :].sum(axis=-1) < 300).any(axis=0)
    assert written[: named.width // 2].any()
    assert written[named.width // 2 :].any()


def test_the_grid_resizes_images_to_one_height() -> None:
    sheet = pixels(side_by_side([Image.new("RGB", (200, 100), (200, 0, 0)), Image.new("RGB", (30, 60), (0, 0, 200))]))
    rows, columns = np.nonzero((sheet == (0, 0, 200)).all(axis=-1))
    assert (np.ptp(columns) + 1, np.ptp(rows) + 1) == (50, 100)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: overlay_heatmap(grey(), np.zeros((2, 3, 3))), ShapeError, "one class's map"),
        (lambda: overlay_heatmap(grey(), np.eye(2), alpha=1.5), ConfigError, "alpha=1.5"),
        (lambda: overlay_mask(grey(), np.eye(2)), ShapeError, "integers"),
        (lambda: overlay_mask(grey(), np.full((2, 2), -1)), ConfigError, "from -1"),
        (lambda: draw_point(grey(), (1, 2, 3)), ShapeError, "point"),
        (lambda: draw_point(grey(), (1, np.nan)), ShapeError, "finite"),
        (lambda: draw_boxes(grey(), [(1, 2, 3)]), ShapeError, "boxes"),
        (lambda: side_by_side([]), ShapeError, "at least one"),
        (lambda: side_by_side([grey()], ["a", "b"]), ShapeError, "2 texts for 1"),
        (lambda: side_by_side([grey()], "a"), ShapeError, "in a list"),
        (lambda: side_by_side([grey()], columns=0), ConfigError, "columns=0"),
    ],
)
def test_errors_name_the_value_and_the_remedy(call, error: type[Exception], says: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=says):
        call()
