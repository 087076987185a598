"""ConvNeXt T/S/B/L (Liu et al. 2022): 7x7 depthwise convolutions, layer norms, GELU, layer scale."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pfcn_jax.models.backbones.registry import BackboneSpec, register
from pfcn_jax.models.backbones.stages import INITIAL, Convolution, StagedBackbone, check, scaled_channels, shared_fields
from pfcn_jax.models.layers import LayerNorm, drop_path, keep
from pfcn_jax.models.options import ModelOptions

BLOCKS = {"t": (3, 3, 9, 3), "s": (3, 3, 27, 3), "b": (3, 3, 27, 3), "l": (3, 3, 27, 3)}
EPSILON = 1e-6
LAYER_SCALE = 1e-6  # at the start, as the paper trains on ImageNet; pretrained weights bring their own


class Block(nn.Module):
    """x + drop path(layer scale * MLP(norm(7x7 depthwise convolution of x)))."""

    drop_rate: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"], used: Any) -> Float[Array, "B h w C"]:
        channels = x.shape[-1]
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=INITIAL)
        y = Convolution(channels, 7, padding=3, depthwise=True, dtype=self.dtype, name="depthwise")(x)
        y = LayerNorm(EPSILON, dtype=self.dtype, name="norm")(y)
        y = nn.gelu(dense(4 * channels, name="expand")(y), approximate=False)
        y = dense(channels, name="project")(y)
        scale = self.param("layer_scale", nn.initializers.constant(LAYER_SCALE), (channels,), jnp.float32)
        y = y * scale.astype(self.dtype)[None, None, None, :]
        return keep(x + drop_path(self, y, self.drop_rate), used)


class Downsample(nn.Module):
    """Layer norm, then a 2x2 convolution of stride 2. Odd sizes are floored."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B h w I"]) -> Float[Array, "B h//2 w//2 O"]:
        x = LayerNorm(EPSILON, dtype=self.dtype, name="norm")(x)
        return Convolution(self.features, 2, 2, dtype=self.dtype, name="conv")(x)


class ConvNeXt(StagedBackbone):
    """See `StagedBackbone`."""

    epsilon = EPSILON

    @nn.nowrap
    def downsample(self, stage: int) -> Any:
        return Downsample(self.channels * 2 ** (stage - 2), dtype=self.dtype, name=f"down{stage}")

    @nn.nowrap
    def block(self, stage: int, index: int, drop_rate: float, extent: Int[Array, "B 2"] | None) -> Any:
        block_class = nn.remat(Block) if self.remat else Block
        return block_class(drop_rate, dtype=self.dtype, name=f"res{stage}_{index}")


def _build(size: str, options: ModelOptions) -> ConvNeXt:
    channels = max(1, scaled_channels(size, options))
    return ConvNeXt(blocks=BLOCKS[size], channels=channels, **shared_fields(options))


for _size in BLOCKS:
    register(f"convnext_{_size}", BackboneSpec(functools.partial(_build, _size), check=check))
