"""Every struct that crosses a room, and the legend of shapes.

Legend: B batch, H W canvas (padded input), h w = H/4 W/4, hl wl = size of level l, L = 5 levels (p3..p7),
S segment slots of the table, T thing classes, C region channels (1 + stuff classes; channel 0 is "any thing"),
K channels of the kernel map, E channels of the encoded feature, M kernel slots, P predicted-segment slots (in targets
and losses: (instance, level) pairs, each with k sampled positions),
H0 W0 output canvas.  Sizes are (height, width).  `mask` means pixels, `valid` means "this slot is not padding".

Class ids are contiguous with things first: 0..T-1 are things, T.. are stuff, and stuff class c has region channel
c - T + 1.  (With a channel for each thing class, `thing_regions` = T instead of 1, a thing has its class's channel and
stuff class c has channel c.)  Segment map value 0 is void, value i > 0 is row i - 1 of the segment table.
"""

from __future__ import annotations

from typing import Any

from flax import struct
from jaxtyping import Array, Bool, Float, Int, Integer, UInt8

LEVELS = ("p3", "p4", "p5", "p6", "p7")
STRIDES = (8, 16, 32, 64, 128)
FEATURE_STRIDE = 4  # the encoded feature and every mask live at 1/4 of the input
SIZE_DIVISOR = 32  # a picture alone is padded to a multiple of this

VOID = 0  # segment map: no segment
IGNORE = 255  # semantic map: no label


def round_up(side: Any) -> Any:
    """The next multiple of `SIZE_DIVISOR`, of a number or of an array of them."""
    return (side + SIZE_DIVISOR - 1) // SIZE_DIVISOR * SIZE_DIVISOR


@struct.dataclass
class SegmentTable:
    """What a row of the segment map is. All arrays are padded to S slots."""

    class_id: Int[Array, "*B S"]
    is_thing: Bool[Array, "*B S"]
    is_crowd: Bool[Array, "*B S"]
    box: Float[Array, "*B S 4"]  # x0, y0, x1, y1 in pixels of the resized picture, exclusive ends
    valid: Bool[Array, "*B S"]


@struct.dataclass
class Batch:
    """Pictures and their labels, as they travel to the device."""

    image: UInt8[Array, "*B H W 3"]  # RGB, zero outside `size`
    segment_map: Integer[Array, "*B H W"]  # 0 = void, i = row i - 1 of `segments`; of the smallest type that holds S
    segments: SegmentTable
    size: Int[Array, "*B 2"]  # of the resized picture inside the canvas
    original_size: Int[Array, "*B 2"]  # of the file
    image_id: Int[Array, "*B"]  # index of the example in its source
    valid: Bool[Array, "*B"]  # False: a filler picture of the last batch
    dropped_segments: Int[Array, "*B"] | None = None  # segments that found no slot; None where nobody counts


@struct.dataclass
class DenseOutputs:
    """What the network says at every position (one entry per level p3..p7)."""

    center_logits: tuple[Float[Array, "*B _hl _wl T"], ...]
    region_logits: tuple[Float[Array, "*B _hl _wl C"], ...]
    kernel_map: tuple[Float[Array, "*B _hl _wl K"], ...]
    feature: Float[Array, "*B h w E"]


@struct.dataclass
class Kernels:
    """Kernels, padded to M slots. `class_id` is the head's own channel: the thing class for kernels of things, the
    region channel (see the legend) for kernels of stuff."""

    weight: Float[Array, "*B M E"]
    class_id: Int[Array, "*B M"]
    score: Float[Array, "*B M"]
    valid: Bool[Array, "*B M"]


@struct.dataclass
class PanopticPrediction:
    """A panoptic segmentation at the picture's original size, top-left in the output canvas."""

    segment_map: Int[Array, "*B H0 W0"]  # 0 = void, i = row i - 1 of the arrays below
    class_id: Int[Array, "*B P"]
    is_thing: Bool[Array, "*B P"]
    score: Float[Array, "*B P"]  # things: the rescored score; stuff: mean probability of its class
    area: Int[Array, "*B P"]
    valid: Bool[Array, "*B P"]
