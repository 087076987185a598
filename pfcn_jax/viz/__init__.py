"""Prediction -> image: panoptic overlays, heat maps, panels, pages. NumPy arrays in, uint8 RGB or HTML out."""

from pfcn_jax.viz.heat import heatmap, similarity_matrix
from pfcn_jax.viz.page import data_uri, encode_webp, render
from pfcn_jax.viz.paint import paint_kinds
from pfcn_jax.viz.panels import contact_sheet, mark_points, panel_row
from pfcn_jax.viz.panoptic import OverlayStyle, overlay, segment_colors

__all__ = [
    "OverlayStyle",
    "contact_sheet",
    "data_uri",
    "encode_webp",
    "heatmap",
    "mark_points",
    "overlay",
    "paint_kinds",
    "panel_row",
    "render",
    "segment_colors",
    "similarity_matrix",
]
