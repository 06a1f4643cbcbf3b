"""Draw heatmaps, masks, points and boxes on an image, and arrange images in a grid.

Every function returns a new RGB image and leaves its arguments unchanged. The size of marks and text is proportional to
the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

from wildcat.errors import ConfigError, ShapeError
from wildcat.viz.colors import MARK_COLORS, class_palette, colormap_table, readable_on, unit_range
from wildcat.viz.fonts import drawn_texts, text_font

Color = tuple[int, int, int]
Rectangle = tuple[int, int, int, int]  # x1 y1 x2 y2, x2 and y2 exclusive

BLACK: Color = (24, 24, 27)
WHITE: Color = (255, 255, 255)
MASK_OPACITY = 0.55


def overlay_heatmap(
    image: Image.Image, heatmap: ArrayLike, alpha: float = 0.75, limits: tuple[float, float] | None = None
) -> Image.Image:
    """Draw a heatmap over an image.

    The map is scaled to its minimum and maximum and resized with bicubic interpolation, for display only. The opacity
    grows with the value, so that low values show the image.

    Args:
        image: any mode.
        heatmap: (h, w) covering the whole image, any scale; NaN cells are transparent.
        alpha: opacity of the maximum, in [0, 1].
        limits: (low, high) of the scale, to compare maps; None: the map's own. Without limits a constant map has no
            maximum and is transparent.

    Raises:
        ShapeError: the map is not (h, w) with at least one cell.
        ConfigError: `alpha` is outside [0, 1], or the limits are invalid.
    """
    if not 0 <= alpha <= 1:
        raise ConfigError(f"alpha={alpha} is not in [0, 1].", "0 is transparent, 1 is opaque.")
    values = np.asarray(heatmap, dtype=np.float64)
    if values.ndim != 2 or values.size == 0:
        raise ShapeError(f"heatmap has shape {values.shape}, not (h, w).", "Give one class's map at a time.")
    heat = unit_range(values, limits)
    unknown = np.isnan(heat)
    levels = Image.fromarray((_resize(np.where(unknown, 0.0, heat), image.size) * 255).round().astype(np.uint8))
    level = np.linspace(0, 1, 256)
    strength = level**2 * (3 - 2 * level)
    opacity = np.asarray(levels.point((255 * alpha * strength).round().astype(int).tolist()))
    if unknown.any():
        opacity = (opacity * (1 - _resize(unknown.astype(np.float64), image.size))).round().astype(np.uint8)
    return _blend(image, levels, colormap_table("inferno"), opacity)


def overlay_mask(image: Image.Image, mask: ArrayLike) -> Image.Image:
    """Draw a class mask over an image in the palette of VOC, each region with an opaque inner border.

    For notebooks and scripts. Mask files are written by `wildcat.regions.masks.write_mask`, the service and the report
    encode their own; which pixels belong to a class is decided in `wildcat.regions.masks.maps_to_mask`.

    Args:
        image: any mode.
        mask: (h, w) integers in [0, 255], 0 (background) is transparent; resized to the image with nearest-neighbour
            interpolation.

    Raises:
        ShapeError: the mask is not (h, w) integers.
        ConfigError: a value is outside [0, 255].
    """
    classes = np.asarray(mask)
    if classes.ndim != 2 or classes.size == 0 or classes.dtype.kind not in "iub":
        raise ShapeError(f"mask is {classes.dtype} {classes.shape}, not (h, w) integers.", "Give class indices.")
    if classes.min() < 0 or classes.max() > 255:
        raise ConfigError(
            f"mask runs from {classes.min()} to {classes.max()}.", "The palette has 256 colours, 0 to 255."
        )
    resized = Image.fromarray(classes.astype(np.uint8)).resize(image.size, Image.Resampling.NEAREST)
    full = np.asarray(resized)
    opacity = np.where(full > 0, round(255 * MASK_OPACITY), 0).astype(np.uint8)
    opacity[inner_border(full, max(1, round(1.5 * _unit(image.size))))] = 255
    return _blend(image, resized, class_palette(), opacity)


def inner_border(classes: NDArray[np.uint8], width: int) -> NDArray[np.bool_]:
    """(H, W) pixels of a class other than 0 that are at most `width` rows and columns away from another class."""
    from scipy import ndimage  # noqa: PLC0415  # slow to import, and only masks need it

    size = 2 * width + 1
    border: NDArray[np.bool_] = ndimage.maximum_filter(classes, size) != ndimage.minimum_filter(classes, size)
    return border & (classes > 0)


def draw_point(image: Image.Image, point: ArrayLike, label: str = "") -> Image.Image:
    """Draw a round mark at a point, and its label beside it.

    Args:
        point: (x, y) in pixels of `image`; a point outside the image is not visible.
        label: `#1` is drawn for one whose characters no font of the system has; "": none.

    Raises:
        ShapeError: the point is not two finite numbers.
    """
    ((x, y),) = _rows("point", np.asarray(point)[None], (2,))
    canvas = image.convert("RGB")  # a copy
    radius = max(5, round(6 * _unit(image.size)))
    mark, corner = _point_mark(radius), (math.floor(x) - radius, math.floor(y) - radius)
    canvas.paste(mark, corner, mark)
    if label:
        (text,), font_size = drawn_texts([label]), max(12, round(14 * _unit(image.size)))
        width, height = _label_size(text, font_size)
        right, left, top = round(x + radius * 1.6), round(x - radius * 1.6) - width, round(y - height / 2)
        places = [(right, top), (left, top), (right, top - height), (right, top + height)]
        _draw_label(canvas, text, font_size, places, (*corner, corner[0] + mark.width, corner[1] + mark.height))
    return canvas


def draw_boxes(image: Image.Image, boxes: ArrayLike) -> Image.Image:
    """Draw the outline of each box.

    Args:
        boxes: (n, 4) or (n, 5) rows of x1 y1 x2 y2 in pixels of `image`, x2 and y2 exclusive; a fifth column (a score)
            is ignored.

    Raises:
        ShapeError: the boxes are not (n, 4) or (n, 5).
    """
    canvas = image.convert("RGB")  # a copy
    draw = ImageDraw.Draw(canvas)
    line = max(2, round(2.5 * _unit(image.size)))
    rim = max(1, line // 3)  # a dark rim on both sides keeps the line visible on its own colour
    for i, row in enumerate(_rows("boxes", boxes, (4, 5))):
        x1, y1, x2, y2 = _corner_pixels(row, canvas.size)
        draw.rectangle((x1 - rim, y1 - rim, x2 + rim, y2 + rim), outline=BLACK, width=line + 2 * rim)
        draw.rectangle((x1, y1, x2, y2), outline=MARK_COLORS[i % len(MARK_COLORS)], width=line)
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
            font = text_font(text, font_size)
            draw.text(centre, _shorten(text, font, width), font=font, fill=BLACK, anchor="mm")
    return sheet


def _unit(size: tuple[int, int]) -> float:
    """Scale of marks: 1 for an image of 400 x 400 pixels, proportional to the geometric mean of the sides."""
    return math.sqrt(size[0] * size[1]) / 400


def _shorten(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text.rstrip() + "..."


def _label_size(text: str, font_size: int) -> tuple[int, int]:
    return math.ceil(text_font(text, font_size).getlength(text) + 0.8 * font_size), round(1.45 * font_size)


def _draw_label(
    image: Image.Image, text: str, font_size: int, corners: Sequence[tuple[int, int]], mark: Rectangle
) -> None:
    """Draw a label at the upper left corner, of those given, with the least overlap with the mark."""
    font = text_font(text, font_size)
    text = _shorten(text, font, image.width - 0.8 * font_size)
    width, height = _label_size(text, font_size)

    def place(corner: tuple[int, int]) -> tuple[int, int, Rectangle]:
        """(overlap, displacement, rectangle) of the label, moved into the image."""
        x = min(max(corner[0], 0), max(image.width - width, 0))
        y = min(max(corner[1], 0), max(image.height - height, 0))
        shared = min(x + width, mark[2]) - max(x, mark[0]), min(y + height, mark[3]) - max(y, mark[1])
        overlap = max(0, shared[0]) * max(0, shared[1])
        return overlap, abs(x - corner[0]) + abs(y - corner[1]), (x, y, x + width, y + height)

    x1, y1, x2, y2 = min(map(place, corners), key=lambda candidate: candidate[:2])[2]
    draw = ImageDraw.Draw(image)
    draw.rounded_rectangle((x1, y1, x2 - 1, y2 - 1), radius=font_size // 5, fill=MARK_COLORS[0])
    centre = ((x1 + x2) / 2, (y1 + y2) / 2)
    draw.text(centre, text, font=font, fill=readable_on(MARK_COLORS[0]), anchor="mm")


@lru_cache(maxsize=64)
def _point_mark(radius: int) -> Image.Image:
    """RGBA, 2 * radius + 1 pixels a side: a dark rim, a white ring and a coloured disc, antialiased."""
    side, factor = 2 * radius + 1, 8
    mark = Image.new("RGBA", (side * factor, side * factor), (*BLACK, 0))
    draw = ImageDraw.Draw(mark)
    centre = side * factor / 2
    for share, fill in ((1.0, BLACK), (0.86, WHITE), (0.6, MARK_COLORS[0])):
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


def _rows(name: str, values: ArrayLike, widths: tuple[int, ...]) -> NDArray[np.float64]:
    """(n, the first of `widths`): finite rows of one of these widths."""
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        return np.zeros((0, widths[0]))
    if array.ndim != 2 or array.shape[1] not in widths or not np.isfinite(array[:, : widths[0]]).all():
        raise ShapeError(
            f"{name} of shape {array.shape} are not finite (n, {widths[0]}) rows.", f"Give (n, {widths[0]}) numbers."
        )
    return array[:, : widths[0]]


def _texts(labels: Sequence[str] | None, count: int) -> list[str]:
    if labels is None:
        return [""] * count
    if isinstance(labels, str) or len(labels) != count:
        raise ShapeError(f"{len(labels)} texts for {count}.", "Give one text for each, in a list.")
    return drawn_texts([str(label) for label in labels])


def image_suffix(image: Image.Image) -> Literal["jpg", "png"]:
    """JPEG, or PNG for images with a side above the 65,500 pixels of a JPEG."""
    return "jpg" if max(image.size) <= 65_500 else "png"
