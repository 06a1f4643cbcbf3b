"""Images of what the model found: heat, points, boxes and masks on the photograph, and several side by side.

Every function gives a new RGB image and leaves its arguments alone. Marks and letters grow with the image, so that
they can be seen at 300 pixels and at 4,000.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

from wildcat.errors import ConfigError, ShapeError
from wildcat.viz.colors import MARK_COLORS, class_palette, colormap_table, readable_on, unit_range

Color = tuple[int, int, int]
Rectangle = tuple[int, int, int, int]

_INK: Color = (24, 24, 27)
_PAPER: Color = (255, 255, 255)


def overlay_heatmap(
    image: Image.Image,
    heatmap: ArrayLike,
    alpha: float = 0.75,
    colormap: str = "inferno",
    *,
    limits: tuple[float, float] | None = None,
    fade: bool = True,
) -> Image.Image:
    """The photograph with a heatmap over it.

    The map is smoothly resized to the image and rescaled for display only, in floating point.

    Args:
        image: any mode; shown as RGB.
        heatmap: (h, w) covering the whole image, any scale; NaN cells show the photograph.
        alpha: opacity of the hottest place, in [0, 1].
        colormap: see `wildcat.viz.colors.COLORMAPS`.
        limits: the (low, high) of the scale, to compare maps; None: this map's own. A constant map without limits has
            no hot place and leaves the photograph as it is (with `fade`).
        fade: opacity grows with the heat, so that the photograph stays clear where it is cold; for a signed colour map
            it grows to both ends. False: `alpha` everywhere.

    Raises:
        ShapeError: the map is not (h, w) with at least one cell.
        ConfigError: `alpha` outside [0, 1], limits that give no scale, or an unknown colour map.
    """
    _check_alpha(alpha)
    values = np.asarray(heatmap, dtype=np.float64)
    if values.ndim != 2 or values.size == 0:
        raise ShapeError(f"heatmap has shape {values.shape}, not (h, w).", "Give one class's map at a time.")
    signed = colormap == "blue_red"
    heat = unit_range(values, limits, symmetric=signed and limits is None)
    unknown = np.isnan(heat)
    smooth = _resize(np.where(unknown, 0.5 if signed else 0.0, heat), image.size)
    level = Image.fromarray((smooth * 255).round().astype(np.uint8))
    shade = np.linspace(-1 if signed else 0, 1, 256)  # the distance from "no heat", of each of the 256 levels
    strength = _smoothstep(np.abs(shade)) if fade else np.ones(256)
    opacity = np.asarray(level.point((255 * alpha * strength).round().astype(int).tolist()))
    if unknown.any():
        opacity = (opacity * (1 - _resize(unknown.astype(np.float64), image.size))).round().astype(np.uint8)
    return _blend(image, level, colormap_table(colormap), opacity)


def overlay_mask(
    image: Image.Image, mask: ArrayLike, palette: ArrayLike | None = None, alpha: float = 0.55, *, outline: bool = True
) -> Image.Image:
    """The photograph with a class mask over it; class 0 (background) shows the photograph.

    Args:
        image: any mode; shown as RGB.
        mask: (h, w) integers in [0, 255]; another size than the image's is stretched without mixing classes.
        palette: (n, 3) RGB in 0..255 by class index; None: VOC's.
        alpha: opacity, in [0, 1].
        outline: draw the inner border of each region in its full colour.

    Raises:
        ShapeError: the mask is not (h, w), or the palette not (n, 3).
        ConfigError: `alpha` outside [0, 1], or a class without a colour.
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
    full = Image.fromarray(classes.astype(np.uint8)).resize(image.size, Image.Resampling.NEAREST)
    opacity = np.where(np.asarray(full) > 0, round(255 * alpha), 0).astype(np.uint8)
    if outline:
        opacity[_inner_border(np.asarray(full), max(1, round(1.5 * _unit(image.size))))] = 255
    return _blend(image, full, colors, opacity)


def draw_points(
    image: Image.Image,
    points: ArrayLike,
    labels: Sequence[str] | None = None,
    colors: Sequence[Color] | None = None,
) -> Image.Image:
    """The image with a round mark at each (x, y), and its label beside it.

    Args:
        points: (n, 2) in continuous pixels of `image`; a mark outside the image is not seen.
        labels: n texts, or None.
        colors: RGB, taken in turn; None: seven that colour-blind readers tell apart.

    Raises:
        ShapeError: the points are not (n, 2), or there are not n labels.
    """
    rows = _rows("points", points, 2)
    texts = _texts(labels, len(rows))
    canvas = image.convert("RGB").copy() if image.mode == "RGB" else image.convert("RGB")
    radius = max(5, round(6 * _unit(image.size)))
    palette = _cycle(colors, len(rows))
    placed: list[Rectangle] = []
    for (x, y), color in zip(rows, palette, strict=True):
        stamp = _point_stamp(radius, color)
        corner = (math.floor(x) - stamp.width // 2, math.floor(y) - stamp.height // 2)
        canvas.paste(stamp, corner, stamp)
        placed.append((*corner, corner[0] + stamp.width, corner[1] + stamp.height))  # labels keep clear of marks
    for (x, y), color, text in zip(rows, palette, texts, strict=True):
        width, height = _tag_size(text, _font_size(image.size))
        right, left = round(x + radius * 1.6), round(x - radius * 1.6) - width
        middle = round(y - height / 2)
        spots = [(right, middle), (left, middle), (right, middle - height), (right, middle + height)]
        _draw_tag(canvas, text, color, spots, placed)
    return canvas


def draw_boxes(
    image: Image.Image,
    boxes: ArrayLike,
    labels: Sequence[str] | None = None,
    colors: Sequence[Color] | None = None,
) -> Image.Image:
    """The image with a frame around each box, and its label on a tag at the frame's corner.

    Args:
        boxes: (n, 4) or (n, 5) rows of x1 y1 x2 y2 (x2, y2 exclusive edges) in pixels of `image`; a fifth column (a
            score) is not shown: put it into the labels.
        labels: n texts, or None.
        colors: RGB, taken in turn; None: seven that colour-blind readers tell apart.

    Raises:
        ShapeError: the boxes are not (n, 4) or (n, 5), or there are not n labels.
    """
    rows = _rows("boxes", boxes, 4)
    texts = _texts(labels, len(rows))
    canvas = image.convert("RGB").copy() if image.mode == "RGB" else image.convert("RGB")
    draw = ImageDraw.Draw(canvas)
    line = max(2, round(2.5 * _unit(image.size)))
    hair = max(1, line // 3)
    palette = _cycle(colors, len(rows))
    frames = [_frame(row, canvas.size) for row in rows]
    for (x1, y1, x2, y2), color in zip(frames, palette, strict=True):
        # a dark hairline on both sides keeps the frame visible on its own colour
        draw.rectangle((x1 - hair, y1 - hair, x2 + hair, y2 + hair), outline=_INK, width=line + 2 * hair)
        draw.rectangle((x1, y1, x2, y2), outline=color, width=line)
    placed: list[Rectangle] = []
    for (x1, y1, _, y2), color, text in zip(frames, palette, texts, strict=True):
        height = _tag_size(text, _font_size(image.size))[1]
        spots = [(x1 - hair, y1 - height), (x1 - hair, y1), (x1 - hair, y2), (x1 - hair, y2 - height)]
        _draw_tag(canvas, text, color, spots, placed)
    return canvas


def side_by_side(
    images: Sequence[Image.Image],
    captions: Sequence[str] | None = None,
    columns: int | None = None,
    height: int | None = None,
) -> Image.Image:
    """A grid of images with captions underneath, for example the M modalities of a class.

    Args:
        images: at least one; each is scaled to one height and keeps its proportions.
        captions: one text per image, cut with an ellipsis where it is wider than its column; or None.
        columns: None: all in one row up to four, otherwise the rows that make the grid nearest to a square.
        height: of each image in pixels; None: the first one's.

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
        raise ConfigError(
            f"columns={columns}, height={height}: both are at least 1.", "Leave them out to have them chosen."
        )
    columns = min(columns, count)
    cells = [_to_height(image, height) for image in images]
    width = max(cell.width for cell in cells)
    gap = max(4, height // 40)
    font = _font(max(11, height // 20))
    caption_height = round(font.size * 1.7) if any(texts) else 0
    rows = math.ceil(count / columns)
    size = (columns * (width + gap) + gap, rows * (height + caption_height + gap) + gap)
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, (cell, text) in enumerate(zip(cells, texts, strict=True)):
        x, y = gap + (i % columns) * (width + gap), gap + (i // columns) * (height + caption_height + gap)
        sheet.paste(cell, (x + (width - cell.width) // 2, y))
        if text:
            middle = (x + width / 2, y + height + caption_height / 2)
            draw.text(middle, _fit(text, font, width), font=font, fill=_INK, anchor="mm")
    return sheet


def _unit(size: tuple[int, int]) -> float:
    """The length that marks are measured in: 1 for an image of 400 x 400, in proportion to the mean side."""
    return math.sqrt(size[0] * size[1]) / 400


def _font_size(size: tuple[int, int]) -> int:
    return max(12, round(14 * _unit(size)))


@lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):  # Pillow built without FreeType draws in one tiny size
        raise ConfigError("this Pillow cannot scale letters.", "Install a Pillow wheel from PyPI: it has FreeType.")
    return font


def _fit(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def _tag_size(text: str, font_size: int) -> tuple[int, int]:
    return math.ceil(_font(font_size).getlength(text) + 0.8 * font_size), round(1.45 * font_size)


def _draw_tag(
    image: Image.Image, text: str, color: Color, spots: Sequence[tuple[int, int]], placed: list[Rectangle]
) -> None:
    """Write `text` on a tag of `color` at the first spot (x, y of its corner) that is inside and free, and note it."""
    if not text:
        return
    font_size = _font_size(image.size)
    font = _font(font_size)
    text = _fit(text, font, image.width - 0.8 * font_size)
    width, height = _tag_size(text, font_size)

    def inside(spot: tuple[int, int]) -> Rectangle:
        x = min(max(spot[0], 0), max(image.width - width, 0))
        y = min(max(spot[1], 0), max(image.height - height, 0))
        return x, y, x + width, y + height

    def cost(rectangle: Rectangle, spot: tuple[int, int]) -> tuple[int, int]:
        return sum(_overlap(rectangle, other) for other in placed), abs(rectangle[0] - spot[0]) + abs(
            rectangle[1] - spot[1]
        )

    best = min(((inside(spot), spot) for spot in spots), key=lambda pair: cost(*pair))[0]
    placed.append(best)
    draw = ImageDraw.Draw(image)
    draw.rounded_rectangle((best[0], best[1], best[2] - 1, best[3] - 1), radius=font_size // 5, fill=color)
    draw.text(((best[0] + best[2]) / 2, (best[1] + best[3]) / 2), text, font=font, fill=readable_on(color), anchor="mm")


def _overlap(a: Rectangle, b: Rectangle) -> int:
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


@lru_cache(maxsize=64)
def _point_stamp(radius: int, color: Color) -> Image.Image:
    """A round mark of odd size, smooth at its edge: a dark rim, a white ring, the colour."""
    side, fine = 2 * radius + 1, 8
    stamp = Image.new("RGBA", (side * fine, side * fine), (*_INK, 0))
    draw = ImageDraw.Draw(stamp)
    middle = side * fine / 2
    for part, fill in ((1.0, _INK), (0.86, _PAPER), (0.6, color)):
        reach = part * middle - 0.5
        draw.ellipse((middle - reach, middle - reach, middle + reach, middle + reach), fill=(*fill, 255))
    return stamp.resize((side, side), Image.Resampling.BOX)


def _frame(row: NDArray[np.float64], size: tuple[int, int]) -> Rectangle:
    """The first and last pixel of a box on each axis, inside the image."""
    x1, y1 = min(max(round(row[0]), 0), size[0] - 1), min(max(round(row[1]), 0), size[1] - 1)
    x2, y2 = min(max(round(row[2]) - 1, x1), size[0] - 1), min(max(round(row[3]) - 1, y1), size[1] - 1)
    return x1, y1, x2, y2


def _to_height(image: Image.Image, height: int) -> Image.Image:
    canvas = image.convert("RGB")
    if canvas.height == height:
        return image
    return canvas.resize((max(1, round(canvas.width * height / canvas.height)), height), Image.Resampling.LANCZOS)


def _resize(values: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float32]:
    """(h, w) in [0, 1] smoothly stretched over (width, height) `size`; 32-bit floats all the way."""
    stretched = Image.fromarray(values.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
    return np.asarray(stretched, dtype=np.float32).clip(0, 1)


def _smoothstep(values: NDArray[np.float64]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = values * values * (3 - 2 * values)
    return result


def _blend(
    image: Image.Image, indices: Image.Image, colors: NDArray[np.uint8], opacity: NDArray[np.uint8]
) -> Image.Image:
    """The photograph under `colors[indices]`; Pillow blends with rounding and without wrapping."""
    indices.putpalette(colors.tobytes())  # now an indexed image, of mode P
    return Image.composite(indices.convert("RGB"), image.convert("RGB"), Image.fromarray(opacity))


def _inner_border(classes: NDArray[np.uint8], width: int) -> NDArray[np.bool_]:
    """Cells of a class other than 0 that lie within `width` cells of another class."""
    border = np.zeros(classes.shape, dtype=bool)
    for cells, marks in ((classes, border), (classes.T, border.T)):
        change = cells[1:] != cells[:-1]
        marks[1:] |= change
        marks[:-1] |= change
    for marks in (border, border.T):
        reach = 0
        while reach < width - 1:  # each step may triple the reach: few passes at any width
            step = min(2 * reach + 1, width - 1 - reach)
            before = marks.copy()
            marks[step:] |= before[:-step]
            marks[:-step] |= before[step:]
            reach += step
    return border & (classes > 0)


def _rows(name: str, values: ArrayLike, width: int) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        return np.zeros((0, width))
    if (
        array.ndim != 2
        or array.shape[1] not in ((2,) if width == 2 else (4, 5))
        or not np.isfinite(array[:, :width]).all()
    ):
        raise ShapeError(
            f"{name} of shape {array.shape} are not finite (n, {width}) rows.", f"Give (n, {width}) numbers."
        )
    return array[:, :width]


def _texts(labels: Sequence[str] | None, count: int) -> list[str]:
    if labels is None:
        return [""] * count
    if isinstance(labels, str) or len(labels) != count:
        raise ShapeError(f"{len(labels)} texts for {count}.", "Give one text for each, in a list.")
    return [str(label) for label in labels]


def _cycle(colors: Sequence[Color] | None, count: int) -> list[Color]:
    palette = colors or MARK_COLORS
    return [(int(r), int(g), int(b)) for r, g, b in (palette[i % len(palette)] for i in range(count))]


def _check_alpha(alpha: float) -> None:
    if not 0 <= alpha <= 1:
        raise ConfigError(
            f"alpha={alpha} is not in [0, 1].", "0 shows the photograph alone, 1 hides it at the hottest place."
        )
