"""A small scene with every kind of segment, shared by the tests of training."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from pfcn_jax.types import SegmentTable

NUM_THINGS, NUM_STUFF = 3, 2
SIZE, EXTENT = (90, 121), (96, 128)  # neither side a multiple of 4


def scene() -> tuple[np.ndarray, list[tuple[int, bool, tuple[int, int, int, int]]]]:
    """Id map `[96, 128]` and rows (class_id, is_crowd, box): a big and two small things, a thing that vanishes at 1/4
    resolution, a crowd, a flat one, two kinds of stuff, void."""
    table: list[tuple[int, bool, tuple[int, int, int, int]]] = []
    segment_map = np.zeros(EXTENT, np.int32)

    def add(class_id: int, box: tuple[int, int, int, int], crowd: bool = False) -> None:
        x0, y0, x1, y1 = box
        table.append((class_id, crowd, box))
        segment_map[y0:y1, x0:x1] = len(table)

    add(3, (0, 0, 121, 30))  # stuff
    add(4, (0, 60, 121, 90))  # stuff
    add(0, (5, 5, 75, 71))  # on p3 no, p4 and p5
    add(2, (80, 12, 115, 50))  # on p3 and p4
    add(2, (90, 40, 100, 70))
    add(1, (8, 80, 9, 81))  # one pixel that no 1/4 pixel reads
    add(1, (104, 80, 121, 90))  # at the lower right border
    add(1, (40, 75, 60, 88), crowd=True)
    add(0, (60, 72, 100, 74))  # flat
    return segment_map, table


def as_table(table: list[tuple[int, bool, tuple[int, int, int, int]]], slots: int) -> SegmentTable:
    missing = slots - len(table)
    class_id = np.array([row[0] for row in table] + [0] * missing, np.int32)
    return SegmentTable(
        class_id=jnp.asarray(class_id),
        is_thing=jnp.asarray(class_id < NUM_THINGS),
        is_crowd=jnp.asarray([row[1] for row in table] + [False] * missing),
        box=jnp.asarray([row[2] for row in table] + [(0, 0, 0, 0)] * missing, jnp.float32).reshape(slots, 4),
        valid=jnp.arange(slots) < len(table),
    )


def on_canvas(segment_map: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.pad(segment_map, [(0, height - segment_map.shape[0]), (0, width - segment_map.shape[1])])
