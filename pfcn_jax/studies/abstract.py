"""Shapes of what a program is compiled for: nothing is read, drawn or computed."""

from __future__ import annotations

from typing import Any

import numpy as np
from jax import ShapeDtypeStruct

from pfcn_jax.data.segments import map_type
from pfcn_jax.types import Batch, SegmentTable


def abstract_batch(images: int, canvas: tuple[int, int], segments: int) -> Batch:
    """The shapes of a batch as the pipeline makes it.

    Args:
      canvas: (height, width).
      segments: slots of an image's table (`data.max_segments`).
    """

    def array(dtype: type | np.dtype, *shape: int) -> Any:
        return ShapeDtypeStruct((images, *shape), dtype)

    table = SegmentTable(
        class_id=array(np.int32, segments),
        is_thing=array(np.bool_, segments),
        is_crowd=array(np.bool_, segments),
        box=array(np.float32, segments, 4),
        valid=array(np.bool_, segments),
    )
    return Batch(
        image=array(np.uint8, *canvas, 3),
        segment_map=array(map_type(segments), *canvas),
        segments=table,
        size=array(np.int32, 2),
        original_size=array(np.int32, 2),
        image_id=array(np.int32),
        valid=array(np.bool_),
        dropped_segments=array(np.int32),
    )
