"""The part that ConvNeXt and Swin share: a stem of stride 4 and four stages of residual blocks, each with a norm."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pfcn_jax.models.backbones.registry import PAPER_WIDTH, STAGES, refuse_options
from pfcn_jax.models.layers import LayerNorm, keep, used_positions
from pfcn_jax.models.ops.convolution import depthwise_conv2d
from pfcn_jax.models.options import ModelOptions

INITIAL = nn.initializers.truncated_normal(0.02)
CHANNELS = {"t": 96, "s": 96, "b": 128, "l": 192}  # of res2 by size; each stage doubles them


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
        kernel = self.param("kernel", INITIAL, shape, jnp.float32).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32).astype(self.dtype)
        x, padding = x.astype(self.dtype), ((self.padding, self.padding),) * 2
        if self.depthwise:
            x = depthwise_conv2d(x, kernel, self.stride, padding)
        else:
            stride, dimensions = (self.stride, self.stride), ("NHWC", "HWIO", "NHWC")
            x = jax.lax.conv_general_dilated(x, kernel, stride, padding, dimension_numbers=dimensions)
        return x + bias[None, None, None, :]


class Stem(nn.Module):
    """4x4 convolution of stride 4, then layer norm."""

    features: int
    epsilon: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W 3"]) -> Float[Array, "B H//4 W//4 O"]:
        x = Convolution(self.features, 4, 4, dtype=self.dtype, name="conv")(x)
        return LayerNorm(self.epsilon, dtype=self.dtype, name="norm")(x)


class StagedBackbone(nn.Module):
    """`res2`..`res5` are the stages after a layer norm each (`norm2`..`norm5`), as detection necks want them; these
    norms are in no classification checkpoint and are never frozen.

    `freeze_at`: no gradient reaches the stem (1), the stem and res2 (2), ...; 0 trains everything.
    """

    blocks: tuple[int, ...]
    channels: int  # of res2
    drop_rate: float = 0.0
    freeze_at: int = 2
    dtype: Any = jnp.float32
    remat: bool = False

    epsilon: ClassVar[float]  # of the layer norms

    @nn.nowrap
    def downsample(self, stage: int) -> Any:
        """The module before the blocks of stage 3, 4 or 5: half the size, twice the channels."""
        raise NotImplementedError

    @nn.nowrap
    def block(self, stage: int, index: int, drop_rate: float, extent: Int[Array, "B 2"] | None) -> Any:
        """Block `index` of a stage: a function of the map and of its positions in use."""
        raise NotImplementedError

    @nn.compact
    def __call__(self, x: Float[Array, "B H W 3"], extent: Int[Array, "B 2"] | None) -> dict[str, Array]:
        """`stem` (stride 4) and `res2`..`res5` of an image that is zero beyond its size."""
        x = Stem(self.channels, self.epsilon, dtype=self.dtype, name="stem")(x)
        used = used_positions(extent, 4, x.shape[1], x.shape[2])
        x = keep(x, used)
        x = jax.lax.stop_gradient(x) if self.freeze_at >= 1 else x
        outputs, done, last = {"stem": x}, 0, sum(self.blocks) - 1
        for stage, count in zip(STAGES, self.blocks, strict=True):
            if stage > 2:
                x = self.downsample(stage)(x)
                used = used_positions(extent, 2**stage, x.shape[1], x.shape[2])
                x = keep(x, used)
            for index in range(count):
                x = self.block(stage, index, self.drop_rate * done / last, extent)(x, used)
                done += 1
            x = jax.lax.stop_gradient(x) if self.freeze_at >= stage else x
            outputs[f"res{stage}"] = keep(LayerNorm(self.epsilon, dtype=self.dtype, name=f"norm{stage}")(x), used)
        return outputs

    @nn.nowrap
    def frozen_modules(self, freeze_at: int) -> tuple[str, ...]:
        """The stem (1), and the blocks of res2 (2), `down3` and the blocks of res3 (3), ..."""
        names = ["stem"] if freeze_at >= 1 else []
        for stage, count in zip(STAGES, self.blocks, strict=True):
            if stage <= freeze_at:
                names += [f"down{stage}"] if stage > 2 else []
                names += [f"res{stage}_{index}" for index in range(count)]
        return tuple(names)


def shared_fields(options: ModelOptions) -> dict[str, Any]:
    """The fields of a `StagedBackbone` that do not depend on its size."""
    return {
        "drop_rate": options.drop_path,
        "freeze_at": options.freeze_at,
        "dtype": jnp.dtype(options.dtype),
        "remat": options.remat,
    }


def scaled_channels(size: str, options: ModelOptions) -> int:
    """Channels of res2 at `options.backbone_width`."""
    return CHANNELS[size] * options.backbone_width // PAPER_WIDTH


def check(options: ModelOptions) -> None:
    """Raises ConfigError for options that neither ConvNeXt nor Swin has."""
    refuse_options(options, "backbone_norm", "deformable_stages", "stride_in_1x1")
