"""Prediction -> picture: panoptic overlays, heat maps, panels, pages. NumPy arrays in, uint8 RGB or HTML out."""

from pfcn_jax.viz.heat import heatmap, similarity_matrix
from pfcn_jax.viz.page import data_uri, encode_picture, render
from pfcn_jax.viz.paint import paint_kinds
from pfcn_jax.viz.panels import contact_sheet, mark_points, side_by_side
from pfcn_jax.viz.panoptic import overlay, segment_colors

__all__ = [
    "contact_sheet",
    "data_uri",
    "encode_picture",
    "heatmap",
    "mark_points",
    "overlay",
    "paint_kinds",
    "render",
    "segment_colors",
    "side_by_side",
    "similarity_matrix",
]
