"""Draw maps, masks, points and boxes on images, with Pillow and NumPy."""

from wildcat.viz.overlay import draw_boxes, draw_point, overlay_heatmap, overlay_mask, side_by_side

__all__ = ["draw_boxes", "draw_point", "overlay_heatmap", "overlay_mask", "side_by_side"]
