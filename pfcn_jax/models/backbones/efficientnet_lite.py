"""EfficientNet-Lite 0-4: inverted residual blocks with ReLU6 and without squeeze-and-excitation.

Convolutions pad as TensorFlow's `SAME`: the odd pixel goes to the bottom and the right.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pfcn_jax.models.backbones.registry import (
    PAPER_WIDTH,
    STAGES,
    BackboneSpec,
    PixelStatistics,
    refuse_options,
    register,
)
from pfcn_jax.models.layers import drop_path, keep, make_norm, used_positions
from pfcn_jax.models.ops.convolution import conv2d, depthwise_conv2d, same_padding
from pfcn_jax.models.options import ModelOptions

SCALES = ((1.0, 1.0), (1.0, 1.1), (1.1, 1.2), (1.2, 1.4), (1.4, 1.8))  # (width, depth) of Lite0 .. Lite4
# (kernel size, stride of the first block, expansion, channels, blocks) of Lite0's seven stages
STAGE_TABLE = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
LAST_STAGE = {2: 2, 3: 3, 4: 5, 5: 7}  # res2 .. res5 -> the last of the seven stages at its stride
STEM_CHANNELS = 32
EPSILON = 1e-3  # of the batch norms; some published variances are 0
PIXELS = PixelStatistics((127.0, 127.0, 127.0), (128.0, 128.0, 128.0))


def round_channels(channels: float) -> int:
    """The nearest multiple of 8 that is not more than 10 % below."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def stage_blocks(variant: int) -> tuple[int, ...]:
    """Blocks of the seven stages; the first and the last are not deepened."""
    depth = SCALES[variant][1]
    counts = [blocks for *_, blocks in STAGE_TABLE]
    return (counts[0], *(math.ceil(count * depth) for count in counts[1:-1]), counts[-1])


class ConvUnit(nn.Module):
    """Convolution without bias, batch norm, ReLU6 on request; zero beyond the positions in use."""

    features: int
    kernel_size: int = 1
    stride: int = 1
    depthwise: bool = False
    activation: bool = True
    norm: str = "frozen_bn"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B h w I"], used: Bool[Array, "B ho wo 1"] | None) -> Float[Array, "B ho wo O"]:
        """`used`: positions of the *output* in use. `x` must be zero beyond its own."""
        groups = x.shape[-1] if self.depthwise else 1
        shape = (self.kernel_size, self.kernel_size, x.shape[-1] // groups, self.features)
        fan_out = self.kernel_size**2 * self.features // groups
        kernel = self.param("kernel", nn.initializers.normal((2.0 / fan_out) ** 0.5), shape, jnp.float32)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        if self.kernel_size == 1:
            x = conv2d(x, kernel)
        elif self.depthwise:
            padding = same_padding((x.shape[1], x.shape[2]), self.kernel_size, self.stride)
            x = depthwise_conv2d(x, kernel, self.stride, padding)
        else:
            x = jax.lax.conv_general_dilated(
                x, kernel, (self.stride, self.stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        x = make_norm(self.norm, dtype=self.dtype, epsilon=EPSILON)(x, used)
        return keep(nn.relu6(x) if self.activation else x, used)


class Block(nn.Module):
    """Inverted residual: 1x1 expansion (if any), depthwise convolution, linear 1x1 projection."""

    features: int
    expansion: int
    kernel_size: int
    stride: int
    norm: str
    drop_rate: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B h w I"], before: Any, used: Any) -> Float[Array, "B ho wo O"]:
        """Args: `before`, `used` are the positions in use of the input and of the output."""
        unit = functools.partial(ConvUnit, norm=self.norm, dtype=self.dtype)
        inner = x.shape[-1] * self.expansion
        y = unit(inner, name="expand")(x, before) if self.expansion > 1 else x
        y = unit(inner, self.kernel_size, self.stride, depthwise=True, name="depthwise")(y, used)
        y = unit(self.features, activation=False, name="project")(y, used)
        if self.stride == 1 and x.shape[-1] == self.features:
            y = x.astype(y.dtype) + drop_path(self, y, self.drop_rate)
        return y


class EfficientNetLite(nn.Module):
    """`freeze_at`: no gradient reaches the stem (1), the stem and stages 1-2 = res2 (2), ...; 0 trains everything."""

    variant: int = 0
    width: int = PAPER_WIDTH
    norm: str = "frozen_bn"
    drop_rate: float = 0.0
    freeze_at: int = 2
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B H W 3"], extent: Int[Array, "B 2"] | None) -> dict[str, Array]:
        """`stem` (stride 2) and `res2`..`res5` of an image that is zero beyond its size."""
        scale = self.width / PAPER_WIDTH
        block_class = nn.remat(Block) if self.remat else Block
        stride = 2
        used = used_positions(extent, stride, -(-x.shape[1] // 2), -(-x.shape[2] // 2))
        stem = round_channels(STEM_CHANNELS * scale)
        x = ConvUnit(stem, 3, 2, norm=self.norm, dtype=self.dtype, name="stem")(x, used)
        x = jax.lax.stop_gradient(x) if self.freeze_at >= 1 else x
        outputs = {"stem": x}
        counts = stage_blocks(self.variant)
        done, total = 0, sum(counts)
        level_of = {stage: level for level, stage in LAST_STAGE.items()}
        for stage, (size, first_stride, expansion, channels, _) in enumerate(STAGE_TABLE, start=1):
            for index in range(counts[stage - 1]):
                step = first_stride if index == 0 else 1
                stride *= step
                before, used = used, used_positions(extent, stride, -(-x.shape[1] // step), -(-x.shape[2] // step))
                x = block_class(
                    features=round_channels(channels * SCALES[self.variant][0] * scale),
                    expansion=expansion,
                    kernel_size=size,
                    stride=step,
                    norm=self.norm,
                    drop_rate=self.drop_rate * done / total,
                    dtype=self.dtype,
                    name=f"stage{stage}_{index}",
                )(x, before, used)
                done += 1
            if level := level_of.get(stage):
                x = jax.lax.stop_gradient(x) if self.freeze_at >= level else x
                outputs[f"res{level}"] = x
        return outputs

    @nn.nowrap
    def frozen_modules(self, freeze_at: int) -> tuple[str, ...]:
        """The stem (1), and the blocks of the stages up to res2 (2), res3 (3), ...; see `registry.Backbone`."""
        last = LAST_STAGE.get(freeze_at, 0)
        blocks = [
            f"stage{s}_{i}" for s, n in enumerate(stage_blocks(self.variant), start=1) if s <= last for i in range(n)
        ]
        return ("stem", *blocks) if freeze_at >= 1 else ()


def _build(variant: int, options: ModelOptions) -> EfficientNetLite:
    return EfficientNetLite(
        variant=variant,
        width=options.backbone_width,
        norm=options.backbone_norm,
        drop_rate=options.drop_path,
        freeze_at=options.freeze_at,
        dtype=jnp.dtype(options.dtype),
        remat=options.remat,
    )


def _check(options: ModelOptions) -> None:
    refuse_options(options, "deformable_stages", "stride_in_1x1")


assert set(LAST_STAGE) == set(STAGES)
for _variant in range(len(SCALES)):
    register(
        f"efficientnet_lite{_variant}",
        BackboneSpec(functools.partial(_build, _variant), lambda options: PIXELS, _check),
    )
