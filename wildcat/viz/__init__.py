"""Draw maps, masks, points and boxes on images, with Pillow and NumPy."""

from wildcat.viz.colors import COLORMAPS, apply_colormap, class_palette, unit_range
from wildcat.viz.overlay import draw_boxes, draw_point, overlay_heatmap, overlay_mask, side_by_side

__all__ = [
    "COLORMAPS",
    "apply_colormap",
    "class_palette",
    "draw_boxes",
    "draw_point",
    "overlay_heatmap",
    "overlay_mask",
    "side_by_side",
    "unit_range",
]
