"""ResNet-18/34/50/101 (He et al. 2016), with MSRA's or torchvision's placement of strides."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pfcn_jax.errors import ConfigError
from pfcn_jax.models.backbones.registry import STAGES, BackboneSpec, PixelStatistics, refuse_options, register
from pfcn_jax.models.layers import Conv, keep, used_positions
from pfcn_jax.models.ops.convolution import max_pool
from pfcn_jax.models.options import ModelOptions

STAGE_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
BASIC_DEPTHS = (18, 34)  # blocks of two 3x3 convolutions; the others are bottlenecks
DEPTHS = {f"resnet{depth}": depth for depth in STAGE_BLOCKS}
# The original writes these means in RGB order and applies them to BGR images; its weights expect that.
MSRA_PIXELS = PixelStatistics((123.675, 116.28, 103.53), (1.0, 1.0, 1.0), "bgr")


def block_names(depth: int) -> dict[int, tuple[str, ...]]:
    """Names of the residual blocks of each stage 2..5, in order."""
    blocks = enumerate(STAGE_BLOCKS[depth], start=2)
    return {stage: tuple(f"res{stage}_{index}" for index in range(count)) for stage, count in blocks}


class Stem(nn.Module):
    """7x7 convolution of stride 2, norm, ReLU, 3x3 max pool of stride 2: stride 4 in all."""

    features: int
    norm: str
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W 3"], extent: Int[Array, "B 2"] | None) -> Float[Array, "B h w C"]:
        used = used_positions(extent, 2, x.shape[1] // 2, x.shape[2] // 2)
        x = Conv(
            self.features, 7, 2, norm=self.norm, activation=True, initializer="msra", dtype=self.dtype, name="conv"
        )(x, used)
        # After ReLU nothing is below zero: the zeros beyond the extent pad the maximum as minus infinity would.
        x = max_pool(x)
        return keep(x, used_positions(extent, 4, x.shape[1], x.shape[2]))


class Block(nn.Module):
    """Residual block: two 3x3 convolutions, or (bottleneck) 1x1, 3x3, 1x1 with the 3x3 deformable or not."""

    features: int  # of the output
    inner: int | None  # of the 3x3 convolution of a bottleneck; None: a basic block
    stride: int
    norm: str
    stride_in_1x1: bool = True
    deformable: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B h w I"], before: Any, used: Bool[Array, "B ho wo 1"] | None) -> Array:
        """Args: `before`, `used` are the positions in use of the input and of the output."""

        def conv(
            name: str, features: int, size: int, stride: int = 1, *, activation: bool = True, deformable: bool = False
        ) -> Conv:
            return Conv(
                features,
                size,
                stride,
                norm=self.norm,
                activation=activation,
                initializer="msra",
                deformable=deformable,
                offset_init="zeros",  # a deformable convolution of a backbone starts as a plain one
                dtype=self.dtype,
                name=name,
            )

        shortcut = x
        if x.shape[-1] != self.features or self.stride != 1:
            shortcut = conv("shortcut", self.features, 1, self.stride, activation=False)(x, used)
        if self.inner is None:
            y = conv("conv1", self.features, 3, self.stride)(x, used)
            y = conv("conv2", self.features, 3, activation=False)(y, used)
        else:
            first, second = (self.stride, 1) if self.stride_in_1x1 else (1, self.stride)
            y = conv("conv1", self.inner, 1, first)(x, used if self.stride_in_1x1 else before)
            y = conv("conv2", self.inner, 3, second, deformable=self.deformable)(y, used)
            y = conv("conv3", self.features, 1, activation=False)(y, used)
        return keep(nn.relu(y + shortcut), used)


class ResNet(nn.Module):
    """Residual network.

    `freeze_at`: no gradient reaches the stem (1), the stem and res2 (2), ...; 0 trains everything.

    `stride_in_1x1`: a stage's stride sits in the first 1x1 convolution (MSRA's weights) or in the 3x3 (torchvision's).
    `deformable_stages`: stages (of 2..5) whose 3x3 convolutions are deformable; bottlenecks only.
    """

    depth: int = 50
    norm: str = "frozen_bn"
    stride_in_1x1: bool = True
    deformable_stages: tuple[int, ...] = ()
    width: int = 64
    freeze_at: int = 2
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B H W 3"], extent: Int[Array, "B 2"] | None) -> dict[str, Array]:
        """`stem` (stride 4) and `res2`..`res5` of an image that is zero beyond its size."""
        basic = self.depth in BASIC_DEPTHS
        block_class = nn.remat(Block) if self.remat else Block
        x = Stem(self.width, self.norm, dtype=self.dtype, name="stem")(x, extent)
        x = jax.lax.stop_gradient(x) if self.freeze_at >= 1 else x
        outputs, used, stride = {"stem": x}, used_positions(extent, 4, x.shape[1], x.shape[2]), 4
        for stage, names in block_names(self.depth).items():
            width = self.width * 2 ** (stage - 2)
            for name in names:
                step = 2 if stage > 2 and name == names[0] else 1
                stride *= step
                before, used = used, used_positions(extent, stride, x.shape[1] // step, x.shape[2] // step)
                x = block_class(
                    features=width if basic else 4 * width,
                    inner=None if basic else width,
                    stride=step,
                    norm=self.norm,
                    stride_in_1x1=self.stride_in_1x1,
                    deformable=stage in self.deformable_stages,
                    dtype=self.dtype,
                    name=name,
                )(x, before, used)
            x = jax.lax.stop_gradient(x) if self.freeze_at >= stage else x
            outputs[f"res{stage}"] = x
        return outputs

    @nn.nowrap
    def frozen_modules(self, freeze_at: int) -> tuple[str, ...]:
        """The stem (1), and the blocks of res2 (2), res3 (3), ...; see `registry.Backbone`."""
        names = block_names(self.depth)
        stages = (name for stage in range(2, freeze_at + 1) for name in names[stage])
        return ("stem", *stages) if freeze_at >= 1 else ()


def _build(depth: int, options: ModelOptions) -> ResNet:
    return ResNet(
        depth=depth,
        norm=options.backbone_norm,
        stride_in_1x1=options.stride_in_1x1,
        deformable_stages=tuple(options.deformable_stages),
        width=options.backbone_width,
        freeze_at=options.freeze_at,
        dtype=jnp.dtype(options.dtype),
        remat=options.remat,
    )


def _check(depth: int, options: ModelOptions) -> None:
    if not set(options.deformable_stages) <= set(STAGES):
        raise ConfigError(f"config.model.deformable_stages: stages are 2 to 5, got {options.deformable_stages}")
    if options.deformable_stages and depth in BASIC_DEPTHS:
        raise ConfigError(
            f"config.model.deformable_stages: {options.backbone} has no bottlenecks; use resnet50 or resnet101"
        )
    refuse_options(options, "drop_path")


def _pixels(options: ModelOptions) -> PixelStatistics:
    return MSRA_PIXELS if options.stride_in_1x1 else PixelStatistics()


for _name, _depth in DEPTHS.items():
    register(_name, BackboneSpec(functools.partial(_build, _depth), _pixels, functools.partial(_check, _depth)))
