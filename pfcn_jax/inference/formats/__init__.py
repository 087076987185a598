"""What `predict --format NAME` writes beside the overlays: one file a format, registered by name."""

from __future__ import annotations

from pfcn_jax.inference.formats import coco, geojson, label_studio, labelme, yolo  # noqa: F401  (they register)
from pfcn_jax.inference.formats.registry import FORMATS, Writer, make_writer

__all__ = ["FORMATS", "Writer", "make_writer"]
