"""Draw heatmaps, masks, points and boxes on an image, and arrange images in a grid.

Every function returns a new RGB image and leaves its arguments unchanged. The size of marks and text is proportional to
the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from wildcat.errors import ConfigError, ShapeError
from wildcat.viz.colors import MARK_COLORS, class_palette, colormap_table, readable_on, unit_range
from wildcat.viz.fonts import drawn_texts, text_font

Color = tuple[int, int, int]
Rectangle = tuple[int, int, int, int]  # x1 y1 x2 y2, x2 and y2 exclusive

BLACK: Color = (24, 24, 27)
WHITE: Color = (255, 255, 255)


def overlay_heatmap(
    image: Image.Image,
    heatmap: ArrayLike,
    alpha: float = 0.75,
    colormap: str = "inferno",
    *,
    limits: tuple[float, float] | None = None,
    fade: bool = True,
) -> Image.Image:
    """Draw a heatmap over an image.

    The map is scaled to its minimum and maximum and resized with bicubic interpolation, for display only.

    Args:
        image: any mode.
        heatmap: (h, w) covering the whole image, any scale; NaN cells are transparent.
        alpha: opacity of the maximum, in [0, 1].
        colormap: one of `wildcat.viz.colors.COLORMAPS`.
        limits: (low, high) of the scale, to compare maps; None: the map's own. Without limits a constant map has no
            maximum and is transparent (with `fade`).
        fade: the opacity grows with the value, so that low values show the image; with the signed colour map
            "blue_red" it grows with the magnitude. False: `alpha` everywhere.

    Raises:
        ShapeError: the map is not (h, w) with at least one cell.
        ConfigError: `alpha` is outside [0, 1], the limits are invalid, or the colour map is unknown.
    """
    _check_alpha(alpha)
    values = np.asarray(heatmap, dtype=np.float64)
    if values.ndim != 2 or values.size == 0:
        raise ShapeError(f"heatmap has shape {values.shape}, not (h, w).", "Give one class's map at a time.")
    signed = colormap == "blue_red"
    heat = unit_range(values, limits, symmetric=signed and limits is None)
    unknown = np.isnan(heat)
    resized = _resize(np.where(unknown, 0.5 if signed else 0.0, heat), image.size)
    levels = Image.fromarray((resized * 255).round().astype(np.uint8))
    magnitude = np.abs(np.linspace(-1 if signed else 0, 1, 256))  # of each of the 256 levels
    strength = magnitude**2 * (3 - 2 * magnitude) if fade else np.ones(256)
    opacity = np.asarray(levels.point((255 * alpha * strength).round().astype(int).tolist()))
    if unknown.any():
        opacity = (opacity * (1 - _resize(unknown.astype(np.float64), image.size))).round().astype(np.uint8)
    return _blend(image, levels, colormap_table(colormap), opacity)


def overlay_mask(
    image: Image.Image, mask: ArrayLike, palette: ArrayLike | None = None, alpha: float = 0.55, *, outline: bool = True
) -> Image.Image:
    """Draw a class mask over an image; class 0 (background) is transparent.

    Args:
        image: any mode.
        mask: (h, w) integers in [0, 255]; resized to the image with nearest-neighbour interpolation.
        palette: (n, 3) RGB in [0, 255] by class index; None: the palette of VOC.
        alpha: opacity, in [0, 1].
        outline: draw the inner border of each region at full opacity.

    Raises:
        ShapeError: the mask is not (h, w) integers, or the palette not (n, 3).
        ConfigError: `alpha` is outside [0, 1], or the palette has no colour for a class.
    """
    _check_alpha(alpha)
    classes = np.asarray(mask)
    if classes.ndim != 2 or classes.size == 0 or classes.dtype.kind not in "iub":
        raise ShapeError(f"mask is {classes.dtype} {classes.shape}, not (h, w) integers.", "Give class indices.")
    colors = class_palette() if palette is None else np.asarray(palette, dtype=np.uint8)
    if colors.ndim != 2 or colors.shape[1] != 3:
        raise ShapeError(f"palette has shape {colors.shape}, not (n, 3).", "Give one RGB row per class.")
    if classes.min() < 0 or classes.max() >= min(len(colors), 256):
        raise ConfigError(
            f"mask runs from {classes.min()} to {classes.max()}; the palette has {len(colors)} colours.",
            "Give one palette row per class index, background included.",
        )
    resized = Image.fromarray(classes.astype(np.uint8)).resize(image.size, Image.Resampling.NEAREST)
    full = np.asarray(resized)
    opacity = np.where(full > 0, round(255 * alpha), 0).astype(np.uint8)
    if outline:
        opacity[inner_border(full, max(1, round(1.5 * _unit(image.size))))] = 255
    return _blend(image, resized, colors, opacity)


def inner_border(classes: NDArray[np.uint8], width: int) -> NDArray[np.bool_]:
    """(H, W) pixels of a class other than 0 that are at most `width` rows and columns away from another class."""
    size = 2 * width + 1
    border: NDArray[np.bool_] = ndimage.maximum_filter(classes, size) != ndimage.minimum_filter(classes, size)
    return border & (classes > 0)


def draw_points(
    image: Image.Image,
    points: ArrayLike,
    labels: Sequence[str] | None = None,
    colors: Sequence[Color] | None = None,
) -> Image.Image:
    """Draw a round mark at each point, and its label beside it.

    Args:
        points: (n, 2) of (x, y) in pixels of `image`; points outside the image are not visible.
        labels: n texts, or None; `#1`, `#2`, ... is drawn for those whose characters no font of the system has.
        colors: RGB, repeated if there are fewer than n; None: `wildcat.viz.colors.MARK_COLORS`.

    Raises:
        ShapeError: the points are not (n, 2), or the labels not n.
    """
    rows = _rows("points", points, 2)
    texts = _texts(labels, len(rows))
    canvas = image.convert("RGB")  # a copy
    radius = max(5, round(6 * _unit(image.size)))
    cycle = _cycle(colors, len(rows))
    occupied: list[Rectangle] = []  # labels avoid marks and other labels
    for (x, y), color in zip(rows, cycle, strict=True):
        mark = _point_mark(radius, color)
        x1, y1 = math.floor(x) - radius, math.floor(y) - radius
        canvas.paste(mark, (x1, y1), mark)
        occupied.append((x1, y1, x1 + mark.width, y1 + mark.height))
    for (x, y), color, text in zip(rows, cycle, texts, strict=True):
        width, height = _label_size(text, _font_size(image.size))
        right, left, top = round(x + radius * 1.6), round(x - radius * 1.6) - width, round(y - height / 2)
        corners = [(right, top), (left, top), (right, top - height), (right, top + height)]
        _draw_label(canvas, text, color, corners, occupied)
    return canvas


def draw_boxes(
    image: Image.Image,
    boxes: ArrayLike,
    labels: Sequence[str] | None = None,
    colors: Sequence[Color] | None = None,
) -> Image.Image:
    """Draw the outline of each box, and its label at a corner.

    Args:
        boxes: (n, 4) or (n, 5) rows of x1 y1 x2 y2 in pixels of `image`, x2 and y2 exclusive; a fifth column (a score)
            is ignored.
        labels: n texts, or None; `#1`, `#2`, ... is drawn for those whose characters no font of the system has.
        colors: RGB, repeated if there are fewer than n; None: `wildcat.viz.colors.MARK_COLORS`.

    Raises:
        ShapeError: the boxes are not (n, 4) or (n, 5), or the labels not n.
    """
    rows = _rows("boxes", boxes, 4)
    texts = _texts(labels, len(rows))
    canvas = image.convert("RGB")  # a copy
    draw = ImageDraw.Draw(canvas)
    line = max(2, round(2.5 * _unit(image.size)))
    rim = max(1, line // 3)  # a dark rim on both sides keeps the line visible on its own colour
    cycle = _cycle(colors, len(rows))
    corners = [_corner_pixels(row, canvas.size) for row in rows]
    for (x1, y1, x2, y2), color in zip(corners, cycle, strict=True):
        draw.rectangle((x1 - rim, y1 - rim, x2 + rim, y2 + rim), outline=BLACK, width=line + 2 * rim)
        draw.rectangle((x1, y1, x2, y2), outline=color, width=line)
    occupied: list[Rectangle] = []
    for (x1, y1, _, y2), color, text in zip(corners, cycle, texts, strict=True):
        height = _label_size(text, _font_size(image.size))[1]
        _draw_label(canvas, text, color, [(x1 - rim, y) for y in (y1 - height, y1, y2, y2 - height)], occupied)
    return canvas


def side_by_side(
    images: Sequence[Image.Image],
    captions: Sequence[str] | None = None,
    columns: int | None = None,
    height: int | None = None,
) -> Image.Image:
    """Arrange images in a grid with captions below, for example the M modality maps of a class.

    Args:
        images: at least one; resized to one height, with their aspect ratio.
        captions: one text per image, shortened to the width of its column; or None. `#1`, `#2`, ... is drawn for those
            whose characters no font of the system has.
        columns: None: one row for up to four images, otherwise as many columns as rows.
        height: of each image in pixels; None: that of the first image.

    Raises:
        ShapeError: no images, or not one caption per image.
        ConfigError: `columns` or `height` below 1.
    """
    if not images:
        raise ShapeError("side_by_side got no images.", "Give at least one.")
    texts = _texts(captions, len(images))
    count = len(images)
    columns = columns if columns is not None else count if count <= 4 else math.ceil(math.sqrt(count))
    height = height if height is not None else images[0].height
    if columns < 1 or height < 1:
        raise ConfigError(f"columns={columns}, height={height}: both are at least 1.", "Omit them for the defaults.")
    columns = min(columns, count)
    cells = [
        image.resize((max(1, round(image.width * height / image.height)), height), Image.Resampling.LANCZOS)
        for image in (image.convert("RGB") for image in images)
    ]
    width = max(cell.width for cell in cells)
    gap = max(4, height // 40)
    font_size = max(11, height // 20)
    caption_height = round(font_size * 1.7) if any(texts) else 0
    step_x, step_y = width + gap, height + caption_height + gap
    sheet = Image.new("RGB", (columns * step_x + gap, math.ceil(count / columns) * step_y + gap), WHITE)
    draw = ImageDraw.Draw(sheet)
    for i, (cell, text) in enumerate(zip(cells, texts, strict=True)):
        x, y = gap + i % columns * step_x, gap + i // columns * step_y
        sheet.paste(cell, (x + (width - cell.width) // 2, y))
        if text:
            centre = (x + width / 2, y + height + caption_height / 2)
            font = _font(text, font_size)
            draw.text(centre, _shorten(text, font, width), font=font, fill=BLACK, anchor="mm")
    return sheet


def _unit(size: tuple[int, int]) -> float:
    """Scale of marks: 1 for an image of 400 x 400 pixels, proportional to the geometric mean of the sides."""
    return math.sqrt(size[0] * size[1]) / 400


def _font_size(size: tuple[int, int]) -> int:
    return max(12, round(14 * _unit(size)))


def _font(text: str, size: int) -> ImageFont.FreeTypeFont:
    """The font for one of `_texts`, which all can be drawn."""
    return cast(ImageFont.FreeTypeFont, text_font(text, size))


def _shorten(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text.rstrip() + "..."


def _label_size(text: str, font_size: int) -> tuple[int, int]:
    return math.ceil(_font(text, font_size).getlength(text) + 0.8 * font_size), round(1.45 * font_size)


def _draw_label(
    image: Image.Image, text: str, color: Color, corners: Sequence[tuple[int, int]], occupied: list[Rectangle]
) -> None:
    """Draw a label at the upper left corner, of those given, with the least overlap; add it to `occupied`."""
    if not text:
        return
    font_size = _font_size(image.size)
    font = _font(text, font_size)
    text = _shorten(text, font, image.width - 0.8 * font_size)
    width, height = _label_size(text, font_size)

    def place(corner: tuple[int, int]) -> tuple[int, int, Rectangle]:
        """(overlap, displacement, rectangle) of the label, moved into the image."""
        x = min(max(corner[0], 0), max(image.width - width, 0))
        y = min(max(corner[1], 0), max(image.height - height, 0))
        rectangle = (x, y, x + width, y + height)
        overlap = sum(_overlap(rectangle, other) for other in occupied)
        return overlap, abs(x - corner[0]) + abs(y - corner[1]), rectangle

    best = min(map(place, corners), key=lambda candidate: candidate[:2])[2]
    occupied.append(best)
    draw = ImageDraw.Draw(image)
    draw.rounded_rectangle((best[0], best[1], best[2] - 1, best[3] - 1), radius=font_size // 5, fill=color)
    centre = ((best[0] + best[2]) / 2, (best[1] + best[3]) / 2)
    draw.text(centre, text, font=font, fill=readable_on(color), anchor="mm")


def _overlap(a: Rectangle, b: Rectangle) -> int:
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


@lru_cache(maxsize=64)
def _point_mark(radius: int, color: Color) -> Image.Image:
    """RGBA, 2 * radius + 1 pixels a side: a dark rim, a white ring and the colour, antialiased."""
    side, factor = 2 * radius + 1, 8
    mark = Image.new("RGBA", (side * factor, side * factor), (*BLACK, 0))
    draw = ImageDraw.Draw(mark)
    centre = side * factor / 2
    for share, fill in ((1.0, BLACK), (0.86, WHITE), (0.6, color)):
        r = share * centre - 0.5
        draw.ellipse((centre - r, centre - r, centre + r, centre + r), fill=(*fill, 255))
    return mark.resize((side, side), Image.Resampling.BOX)


def _corner_pixels(row: NDArray[np.float64], size: tuple[int, int]) -> Rectangle:
    """The first and last pixel of a box on each axis, clipped to the image."""
    x1, y1 = min(max(round(row[0]), 0), size[0] - 1), min(max(round(row[1]), 0), size[1] - 1)
    x2, y2 = min(max(round(row[2]) - 1, x1), size[0] - 1), min(max(round(row[3]) - 1, y1), size[1] - 1)
    return x1, y1, x2, y2


def _resize(values: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float32]:
    """(h, w) in [0, 1] -> (height, width) of `size` (width, height), bicubic."""
    resized = Image.fromarray(values.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
    return np.asarray(resized, dtype=np.float32).clip(0, 1)


def _blend(
    image: Image.Image, indices: Image.Image, colors: NDArray[np.uint8], opacity: NDArray[np.uint8]
) -> Image.Image:
    """Blend `colors[indices]` over the image."""
    indices.putpalette(colors.tobytes())  # now of mode P
    return Image.composite(indices.convert("RGB"), image.convert("RGB"), Image.fromarray(opacity))


def _rows(name: str, values: ArrayLike, width: int) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        return np.zeros((0, width))
    widths = (2,) if width == 2 else (4, 5)
    if array.ndim != 2 or array.shape[1] not in widths or not np.isfinite(array[:, :width]).all():
        raise ShapeError(
            f"{name} of shape {array.shape} are not finite (n, {width}) rows.", f"Give (n, {width}) numbers."
        )
    return array[:, :width]


def _texts(labels: Sequence[str] | None, count: int) -> list[str]:
    if labels is None:
        return [""] * count
    if isinstance(labels, str) or len(labels) != count:
        raise ShapeError(f"{len(labels)} texts for {count}.", "Give one text for each, in a list.")
    return drawn_texts([str(label) for label in labels])


def _cycle(colors: Sequence[Color] | None, count: int) -> list[Color]:
    palette = colors or MARK_COLORS
    return [palette[i % len(palette)] for i in range(count)]


def _check_alpha(alpha: float) -> None:
    if not 0 <= alpha <= 1:
        raise ConfigError(f"alpha={alpha} is not in [0, 1].", "0 is transparent, 1 is opaque.")
