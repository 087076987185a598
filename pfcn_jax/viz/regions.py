"""The region head of a level as an image."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8

from pfcn_jax.data.classes import ClassTable
from pfcn_jax.types import RegionChannels

_ANY_THING = (255, 255, 255)  # color of region channel 0


def draw_regions(
    score: Float[np.ndarray, "hl wl C"], image: UInt8[np.ndarray, "h w 3"], stride: int, classes: ClassTable
) -> UInt8[np.ndarray, "h w 3"]:
    """The strongest region of every position as a square in its class's color; nothing where no region is.

    The image is darkened; white is "any thing" (channel 0, where the region head does not tell things apart).
    """
    things = score.shape[-1] - classes.num_stuff
    palette = np.full((score.shape[-1], 3), _ANY_THING, np.float32)
    channel = RegionChannels(*classes.counts, things).of_class(np.arange(len(classes)))
    named = channel > 0 if things == 1 else channel >= 0
    palette[channel[named]] = classes.palette[named]
    height, width = image.shape[:2]

    def enlarge(values: np.ndarray) -> np.ndarray:
        return values.repeat(stride, axis=0).repeat(stride, axis=1)[:height, :width]

    color, opacity = enlarge(palette[score.argmax(axis=-1)]), 0.8 * enlarge(score.max(axis=-1))[..., None]
    return np.rint((1.0 - opacity) * 0.4 * image + opacity * color).astype(np.uint8)
