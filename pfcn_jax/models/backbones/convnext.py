"""ConvNeXt T/S/B/L (Liu et al. 2022): 7x7 depthwise convolutions, layer norms, GELU, layer scale."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pfcn_jax.models.backbones.registry import PAPER_WIDTH, STAGES, BackboneSpec, refuse_options, register
from pfcn_jax.models.layers import LayerNorm, drop_path, keep, used_positions
from pfcn_jax.models.options import ModelOptions

BLOCKS = {"t": (3, 3, 9, 3), "s": (3, 3, 27, 3), "b": (3, 3, 27, 3), "l": (3, 3, 27, 3)}
CHANNELS = {"t": 96, "s": 96, "b": 128, "l": 192}  # of res2; each stage doubles them
EPSILON = 1e-6
LAYER_SCALE = 1e-6  # at the start, as the paper trains on ImageNet; pretrained weights bring their own
_INITIAL = nn.initializers.truncated_normal(0.02)


class Convolution(nn.Module):
    """Convolution with bias. Parameters: `kernel` HWIO, `bias`."""

    features: int
    kernel_size: int
    stride: int = 1
    padding: int = 0
    depthwise: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B h w I"]) -> Float[Array, "B ho wo O"]:
        groups = x.shape[-1] if self.depthwise else 1
        shape = (self.kernel_size, self.kernel_size, x.shape[-1] // groups, self.features)
        kernel = self.param("kernel", _INITIAL, shape, jnp.float32).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32).astype(self.dtype)
        x = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel,
            (self.stride, self.stride),
            [(self.padding, self.padding)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )
        return x + bias[None, None, None, :]


class Block(nn.Module):
    """x + drop path(layer scale * MLP(norm(7x7 depthwise convolution of x)))."""

    drop_rate: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"], used: Any) -> Float[Array, "B h w C"]:
        channels = x.shape[-1]
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=_INITIAL)
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
    def __call__(self, x: Float[Array, "B h w I"], used: Any) -> Float[Array, "B h//2 w//2 O"]:
        x = LayerNorm(EPSILON, dtype=self.dtype, name="norm")(x)
        return keep(Convolution(self.features, 2, 2, dtype=self.dtype, name="conv")(x), used)


class Stem(nn.Module):
    """4x4 convolution of stride 4, then layer norm."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W 3"], used: Any) -> Float[Array, "B H//4 W//4 O"]:
        x = Convolution(self.features, 4, 4, dtype=self.dtype, name="conv")(x)
        return keep(LayerNorm(EPSILON, dtype=self.dtype, name="norm")(x), used)


class ConvNeXt(nn.Module):
    """`res2`..`res5` are the stages after a layer norm each (`norm2`..`norm5`), as detection necks want them; these
    norms are in no classification checkpoint and are never frozen.

    `freeze_at`: no gradient reaches the stem (1), the stem and res2 (2), ...; 0 trains everything.
    """

    blocks: tuple[int, ...] = BLOCKS["t"]
    channels: int = CHANNELS["t"]
    drop_rate: float = 0.0
    freeze_at: int = 2
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B H W 3"], extent: Int[Array, "B 2"] | None) -> dict[str, Array]:
        """`stem` (stride 4) and `res2`..`res5` of an image that is zero beyond its size."""
        block_class = nn.remat(Block) if self.remat else Block
        used = used_positions(extent, 4, x.shape[1] // 4, x.shape[2] // 4)
        x = Stem(self.channels, dtype=self.dtype, name="stem")(x, used)
        x = jax.lax.stop_gradient(x) if self.freeze_at >= 1 else x
        outputs, done, last = {"stem": x}, 0, sum(self.blocks) - 1
        for stage, count in zip(STAGES, self.blocks, strict=True):
            if stage > 2:
                used = used_positions(extent, 2**stage, x.shape[1] // 2, x.shape[2] // 2)
                features = self.channels * 2 ** (stage - 2)
                x = Downsample(features, dtype=self.dtype, name=f"down{stage}")(x, used)
            for index in range(count):
                rate = self.drop_rate * done / last
                x = block_class(rate, dtype=self.dtype, name=f"res{stage}_{index}")(x, used)
                done += 1
            x = jax.lax.stop_gradient(x) if self.freeze_at >= stage else x
            outputs[f"res{stage}"] = keep(LayerNorm(EPSILON, dtype=self.dtype, name=f"norm{stage}")(x), used)
        return outputs

    @nn.nowrap
    def frozen_modules(self, freeze_at: int) -> tuple[str, ...]:
        """The stem (1), and the blocks of res2 (2), `down3` and the blocks of res3 (3), ..."""
        return frozen_stages(self.blocks, freeze_at)


def frozen_stages(blocks: tuple[int, ...], freeze_at: int) -> tuple[str, ...]:
    """Modules `stem`, `downN`, `resN_i` of all stages up to `freeze_at`."""
    names = ["stem"] if freeze_at >= 1 else []
    for stage, count in zip(STAGES, blocks, strict=True):
        if stage <= freeze_at:
            names += [f"down{stage}"] if stage > 2 else []
            names += [f"res{stage}_{index}" for index in range(count)]
    return tuple(names)


def _build(size: str, options: ModelOptions) -> ConvNeXt:
    return ConvNeXt(
        blocks=BLOCKS[size],
        channels=max(1, CHANNELS[size] * options.backbone_width // PAPER_WIDTH),
        drop_rate=options.drop_path,
        freeze_at=options.freeze_at,
        dtype=jnp.dtype(options.dtype),
        remat=options.remat,
    )


def _check(options: ModelOptions) -> None:
    refuse_options(options, "backbone_norm", "deformable_stages", "stride_in_1x1")


for _size in BLOCKS:
    register(f"convnext_{_size}", BackboneSpec(functools.partial(_build, _size), check=_check))
