"""The heads: where things and stuff are, which kernel each position proposes, and what the kernels are applied to."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pfcn_jax.models.layers import Conv, append_coords, used_positions
from pfcn_jax.types import RegionChannels

PRIOR_BIAS = -2.19  # of the position outputs: a probability of 0.1 everywhere at the start


class Tower(nn.Module):
    """`convs` 3x3 convolutions with norm and ReLU, coordinate channels in front on request."""

    channels: int = 256
    convs: int = 3
    deformable: bool = False
    coords: bool = False
    norm: str | None = "group_norm"
    dtype: Any = jnp.float32
    remat: bool = False

    def tower(self, x: Float[Array, "B h w I"], extent: Int[Array, "B 2"] | None, stride: int) -> Array:
        conv_class = nn.remat(Conv) if self.remat else Conv
        used = used_positions(extent, stride, x.shape[1], x.shape[2])
        x = append_coords(x, extent, stride) if self.coords else x
        for index in range(1, self.convs + 1):
            x = conv_class(
                self.channels,
                norm=self.norm,
                activation=True,
                deformable=self.deformable,
                initializer="deformable" if self.deformable else "default",
                dtype=self.dtype,
                name=f"conv{index}",
            )(x, used)
        return x


class PositionHead(Tower):
    """Object centers (a channel per thing class) and stuff regions (channel 0 "any thing", or one channel per thing
    class, then the stuff classes).

    Both output convolutions run in float32 for every `dtype`: peaks are found by exact comparison of neighbors, and
    bfloat16 would make ties of them.
    """

    regions: RegionChannels = RegionChannels(80, 53)

    @nn.compact
    def __call__(
        self, x: Float[Array, "B h w I"], extent: Int[Array, "B 2"] | None, stride: int
    ) -> tuple[Float[Array, "B h w T"], Float[Array, "B h w C"]]:
        """Center logits and region logits of one level."""
        used = used_positions(extent, stride, x.shape[1], x.shape[2])
        x = self.tower(x, extent, stride)
        centers = Conv(self.regions.num_things, initializer="output", bias_value=PRIOR_BIAS, name="centers")
        regions = Conv(self.regions.count, initializer="output", bias_value=PRIOR_BIAS, name="regions")
        return centers(x, used), regions(x, used)


class KernelHead(Tower):
    """The kernel map: at every position the kernel that it proposes, before the embedding."""

    out_channels: int = 256

    @nn.compact
    def __call__(
        self, x: Float[Array, "B h w I"], extent: Int[Array, "B 2"] | None, stride: int
    ) -> Float[Array, "B h w K"]:
        used = used_positions(extent, stride, x.shape[1], x.shape[2])
        x = self.tower(x, extent, stride)
        return Conv(self.out_channels, initializer="output", dtype=self.dtype, name="output")(x, used)


class FeatureEncoder(Tower):
    """The encoded feature of stride 4 that every kernel is applied to: convolutions with bias, no norm."""

    norm: str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "B h w I"], extent: Int[Array, "B 2"] | None) -> Float[Array, "B h w E"]:
        return self.tower(x, extent, 4)
