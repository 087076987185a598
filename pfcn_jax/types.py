"""Every struct that crosses a room, and the legend of shapes.

Legend: B batch, H W canvas (padded input), h w = H/4 W/4, hl wl = size of level l, L = 5 levels (p3..p7),
S segment slots of the table, T thing classes, C region channels (1 + stuff classes; channel 0 is "any thing"),
K channels of the kernel map, E channels of the encoded feature, M kernel slots, P predicted-segment slots (in targets
and losses: (instance, level) pairs, each with k sampled positions),
H0 W0 output canvas.  Sizes are (height, width).  `mask` means pixels, `valid` means "this slot is not padding".

Class ids are contiguous with things first: 0..T-1 are things, T.. are stuff; `RegionChannels` maps them to region
channels.  Segment map value 0 is void, value i > 0 is row i - 1 of the segment table.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Integer, UInt8

LEVELS = ("p3", "p4", "p5", "p6", "p7")
STRIDES = (8, 16, 32, 64, 128)
FEATURE_STRIDE = 4  # the encoded feature and every mask live at 1/4 of the input
SIZE_DIVISOR = 32  # the padded size of an image is a multiple of this

VOID = 0  # segment map: no segment
IGNORE = 255  # semantic map: no label


def round_up(side: Any) -> Any:
    """The next multiple of `SIZE_DIVISOR`, of a number or of an array of them."""
    return (side + SIZE_DIVISOR - 1) // SIZE_DIVISOR * SIZE_DIVISOR


@struct.dataclass
class ImageGeometry:
    """Sizes of an image in pixels, as data: one compiled program serves all of them."""

    size: Int[Array, "*B 2"]  # resized, in the canvas
    padded_size: Int[Array, "*B 2"]  # the part of the canvas that counts
    original_size: Int[Array, "*B 2"]  # of the file


def image_geometry(size: Any, original_size: Any = None, *, canvas: tuple[int, ...] | None = None) -> ImageGeometry:
    """The geometry of images `[*B, 2]`, which are padded to the next multiple of 32 or, if given, to a whole canvas.

    Args:
      original_size: None: `size`, for callers that stay on the canvas.
      canvas: (height, width); the original implementation trains with all of it.
    """
    padded_size = round_up(size) if canvas is None else jnp.broadcast_to(jnp.asarray(canvas, jnp.int32), size.shape)
    return ImageGeometry(size, padded_size, size if original_size is None else original_size)


@dataclasses.dataclass(frozen=True)
class RegionChannels:
    """Channels of the region head: those of things first, then one per stuff class."""

    num_things: int
    num_stuff: int
    things: int = 1  # channels of things: 1 ("any thing", channel 0) or `num_things` (one per class)

    @property
    def count(self) -> int:
        """C."""
        return self.things + self.num_stuff

    def of_class(self, class_id: Any) -> Any:
        """Channels of classes, NumPy or JAX arrays alike."""
        array = class_id.__array_namespace__()
        thing = array.minimum(class_id, self.things - 1)
        return array.where(class_id < self.num_things, thing, self.stuff_of(class_id))

    def stuff_of(self, class_id: Any) -> Any:
        """Channels of stuff classes."""
        return class_id - self.num_things + self.things

    def stuff_class(self, channel: Any) -> Any:
        """Stuff classes of channels: the inverse of `stuff_of`."""
        return self.num_things - self.things + channel


@struct.dataclass
class SegmentTable:
    """Classes and boxes of the rows of a segment map, padded to S slots."""

    class_id: Int[Array, "*B S"]
    is_thing: Bool[Array, "*B S"]
    is_crowd: Bool[Array, "*B S"]
    box: Float[Array, "*B S 4"]  # x0, y0, x1, y1 in pixels of the resized image, exclusive ends
    valid: Bool[Array, "*B S"]


@struct.dataclass
class Batch:
    """Images and their labels, as they travel to the device."""

    image: UInt8[Array, "*B H W 3"]  # RGB, zero outside `size`
    segment_map: Integer[Array, "*B H W"]  # 0 = void, i = row i - 1 of `segments`; of the smallest type that holds S
    segments: SegmentTable
    size: Int[Array, "*B 2"]  # of the resized image inside the canvas
    original_size: Int[Array, "*B 2"]  # of the file
    image_id: Int[Array, "*B"]  # index of the example in its source
    valid: Bool[Array, "*B"]  # False: a filler image of the last batch
    dropped_segments: Int[Array, "*B"] | None = None  # segments that found no slot; None: not counted


@struct.dataclass
class DenseOutputs:
    """Outputs of the network at every position (one entry per level p3..p7)."""

    center_logits: tuple[Float[Array, "*B _hl _wl T"], ...]
    region_logits: tuple[Float[Array, "*B _hl _wl C"], ...]
    kernel_map: tuple[Float[Array, "*B _hl _wl K"], ...]
    feature: Float[Array, "*B h w E"]


@struct.dataclass
class KernelSource:
    """Where the network generated kernels: a peak of the centers, or a region of a level."""

    level: Int[Array, "*B M"]  # 0 = p3
    cell: Int[Array, "*B M 2"]  # (row, column) of the peak on its level; -1 for a region
    view: Int[Array, "*B M"]  # 0: the image itself; else the further view of test-time augmentation


@struct.dataclass
class Kernels:
    """Kernels, padded to M slots. `class_id` is the head's own channel: the thing class for kernels of things, the
    region channel for kernels of stuff."""

    weight: Float[Array, "*B M E"]
    class_id: Int[Array, "*B M"]
    score: Float[Array, "*B M"]
    valid: Bool[Array, "*B M"]
    source: KernelSource | None = None  # of a fused thing: its head's; None for a mean of several levels or views
    head: Int[Array, "*B M"] | None = None  # slot of the head among the kernels that were fused (things only)


@struct.dataclass
class PanopticPrediction:
    """A panoptic segmentation at the image's original size, top-left in the output canvas."""

    segment_map: Int[Array, "*B H0 W0"]  # 0 = void, i = row i - 1 of the arrays below
    class_id: Int[Array, "*B P"]
    is_thing: Bool[Array, "*B P"]
    score: Float[Array, "*B P"]  # things: the rescored score; stuff: mean probability of its class
    area: Int[Array, "*B P"]
    valid: Bool[Array, "*B P"]
    kernel: Int[Array, "*B P"] | None = None  # slot of its kernel: of the rescored things, or the region channel
