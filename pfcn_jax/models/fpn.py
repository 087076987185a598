"""Feature pyramid p2..p7, and the three ways to make one map of stride 4 out of it."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pfcn_jax.models.layers import Conv, bilinear_upsample, keep, nearest_upsample, used_positions

LEVEL_STRIDES = {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64, "p7": 128}


class FPN(nn.Module):
    """1x1 laterals, top-down path (nearest x2, sum), 3x3 outputs; P6 and P7 by convolutions of stride 2. No norms."""

    channels: int = 256
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: dict[str, Array], extent: Int[Array, "B 2"] | None) -> dict[str, Array]:
        """`features`: `res2`..`res5`. Returns `p2`..`p7`."""

        def conv(name: str, size: int, stride: int = 1) -> Conv:
            return Conv(self.channels, size, stride, initializer="fpn", dtype=self.dtype, name=name)

        pyramid: dict[str, Array] = {}
        above = None
        for level in (5, 4, 3, 2):
            x = features[f"res{level}"]
            used = used_positions(extent, 2**level, x.shape[1], x.shape[2])
            x = conv(f"lateral{level}", 1)(x, used)
            above = x if above is None else keep(x + nearest_upsample(above), used)
            pyramid[f"p{level}"] = conv(f"output{level}", 3)(above, used)
        for level in (6, 7):
            x = pyramid[f"p{level - 1}"]
            used = used_positions(extent, 2**level, (x.shape[1] + 1) // 2, (x.shape[2] + 1) // 2)
            # The p6 that the heads see is not rectified, the one that p7 is made from is.
            pyramid[f"p{level}"] = conv(f"p{level}", 3, 2)(x if level == 6 else nn.relu(x), used)
        return {name: pyramid[name] for name in LEVEL_STRIDES}


class SemanticFPN(nn.Module):
    """p2..p5 brought to stride 4 and summed (Kirillov et al. 2019): per level max(1, log2(stride / 4)) times 3x3
    convolution, group norm, ReLU, and bilinear x2 unless the level has stride 4 already."""

    channels: int = 256
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, pyramid: dict[str, Array], extent: Int[Array, "B 2"] | None) -> Float[Array, "B h w C"]:
        conv_class = nn.remat(Conv) if self.remat else Conv
        total: Array | None = None
        for level in ("p2", "p3", "p4", "p5"):
            x, stride = pyramid[level], LEVEL_STRIDES[level]
            for index in range(1, max(1, (stride // 4).bit_length() - 1) + 1):
                used = used_positions(extent, stride, x.shape[1], x.shape[2])
                x = conv_class(
                    self.channels,
                    norm="group_norm",
                    activation=True,
                    initializer="msra",
                    dtype=self.dtype,
                    name=f"{level}_conv{index}",
                )(x, used)
                if stride > 4:
                    x = bilinear_upsample(x, extent, stride)
                    stride //= 2
            total = x if total is None else total + x
        assert total is not None
        return total


def summed_pyramid(pyramid: dict[str, Array], extent: Int[Array, "B 2"] | None) -> Float[Array, "B h w C"]:
    """p2..p5 brought to stride 4 by bilinear x2 and summed, without a parameter (the paper's "FPN summed" input)."""
    total = pyramid["p5"]
    for level in ("p4", "p3", "p2"):
        total = bilinear_upsample(total, extent, 2 * LEVEL_STRIDES[level]) + pyramid[level]
    return total
