"""Building blocks of the network: masks of positions in use, convolution, norms, coordinate channels, upsampling.

Every map lies top-left in a static canvas. A level of stride s is in use on ceil(extent / s) rows and columns; every
block that looks at neighbors or at statistics gets a map that is exactly zero beyond, so that the result is what the
image would give alone: zero is also what the convolutions pad with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pfcn_jax.models.ops.convolution import conv2d
from pfcn_jax.models.ops.deformable import deformable_conv

EPSILON = 1e-5  # of batch and group norms
NORM_GROUPS = 32


# ---------------------------------------------------------------------------------------------------------- in use
def used_positions(
    extent: Int[Array, "B 2"] | None, stride: int, height: int, width: int
) -> Bool[Array, "B h w 1"] | None:
    """Which positions of a level are in use: ceil(extent / stride) rows and columns. None (no extent): all of them."""
    if extent is None:
        return None
    rows, columns = used_size(extent, stride)
    used = jnp.arange(height)[None, :, None] < rows[:, None, None]
    used &= jnp.arange(width)[None, None, :] < columns[:, None, None]
    return used[..., None]


def used_size(extent: Int[Array, "B 2"], stride: int) -> tuple[Int[Array, " B"], Int[Array, " B"]]:
    """Rows and columns in use on a level of this stride."""
    size = (extent.astype(jnp.int32) + (stride - 1)) // stride
    return size[:, 0], size[:, 1]


def keep(x: Float[Array, "B h w C"], used: Bool[Array, "B h w 1"] | None) -> Float[Array, "B h w C"]:
    """Zero beyond the positions in use. The compiler fuses it into the activation before it."""
    return x if used is None else jnp.where(used, x, jnp.zeros((), x.dtype))


# ----------------------------------------------------------------------------------------------------- convolution
# Initial values, by what they are for; the kernel's distribution and whether the bias follows it.
_SCALING = nn.initializers.variance_scaling
INITIALIZERS: dict[str, Callable[..., Array]] = {
    "default": _SCALING(1.0 / 3.0, "fan_in", "uniform"),  # the framework's own: Kaiming-uniform with a = sqrt(5)
    "deformable": _SCALING(2.0, "fan_in", "uniform"),  # Kaiming-uniform for ReLU: default of deformable convolutions
    "fpn": _SCALING(1.0, "fan_in", "uniform"),  # Caffe2's Xavier-uniform
    "msra": _SCALING(2.0, "fan_out", "normal"),
    "output": nn.initializers.normal(0.01),
    "zeros": nn.initializers.zeros_init(),
}


def _in_eights(x: Float[Array, "B h w I"], kernel: Float[Array, "k k I O"]) -> tuple[Array, Array]:
    """Pads the input channels, if at least 8, with zeros to a multiple of eight, as matrix units want bfloat16.

    Here it becomes part of what makes the map; a GPU's library would copy the map before each of the three products.
    """
    missing = -x.shape[-1] % 8
    if missing == 0 or x.shape[-1] < 8 or x.dtype != jnp.bfloat16:
        return x, kernel
    x = jnp.pad(x, [(0, 0)] * 3 + [(0, missing)])
    return x, jnp.pad(kernel, [(0, 0), (0, 0), (0, missing), (0, 0)])


class Conv(nn.Module):
    """Convolution (plain or modulated deformable), then norm, then ReLU, then zero beyond the positions in use.

    Parameters: `kernel` HWIO, `bias` (only without a norm), and those of the children `norm` and `offset`.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    norm: str | None = None  # None, "frozen_bn", "group_norm"
    activation: bool = False
    deformable: bool = False
    initializer: str = "default"
    bias_value: float = 0.0
    offset_init: str = "default"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B h w I"], used: Bool[Array, "B ho wo 1"] | None = None
    ) -> Float[Array, "B ho wo O"]:
        """`used`: positions of the *output* in use. `x` must be zero beyond its own."""
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", INITIALIZERS[self.initializer], shape, jnp.float32).astype(self.dtype)
        x = x.astype(self.dtype)
        if self.deformable:
            # Three numbers per tap: see deformable_conv. Positions are wanted in float32 whatever the feature's type.
            offset = Conv(3 * self.kernel_size**2, self.kernel_size, self.stride, initializer=self.offset_init,
                          dtype=self.dtype, name="offset")(x)  # fmt: skip
            x, kernel = _in_eights(x, kernel)
            x = deformable_conv(x, offset.astype(jnp.float32), kernel, stride=self.stride)
        else:
            x, kernel = _in_eights(x, kernel)
            x = conv2d(x, kernel, stride=self.stride)
        if self.norm is None:
            bias = self.param("bias", self._initial_bias, shape)
            x = x + bias.astype(self.dtype)[None, None, None, :]
        else:
            x = make_norm(self.norm, dtype=self.dtype)(x, used)
        return keep(nn.relu(x) if self.activation else x, used)

    def _initial_bias(self, key: Array, shape: tuple[int, ...]) -> Float[Array, " O"]:
        if self.initializer == "default":  # uniform in +-1/sqrt(fan in), as the kernel
            bound = (shape[0] * shape[1] * shape[2]) ** -0.5
            return jax.random.uniform(key, (self.features,), jnp.float32, -bound, bound)
        return jnp.full((self.features,), self.bias_value, jnp.float32)


# ----------------------------------------------------------------------------------------------------------- norms
def make_norm(kind: str, *, dtype: Any, epsilon: float = EPSILON) -> nn.Module:
    """The norm layer of a name, as a child called `norm`; `epsilon` is that of the batch norm."""
    if kind == "frozen_bn":
        return FrozenBatchNorm(epsilon, dtype=dtype, name="norm")
    if kind == "group_norm":
        return GroupNorm(dtype=dtype, name="norm")
    raise ValueError(f"norm {kind!r}; known: 'frozen_bn', 'group_norm'")


class FrozenBatchNorm(nn.Module):
    """Batch norm with fixed statistics, in the form x * scale + bias (rounding depends on the form).

    The four vectors are no parameters: collection `batch_stats`, entries `scale`, `bias`, `mean`, `var`.
    """

    epsilon: float = EPSILON
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"], used: Any = None) -> Float[Array, "B h w C"]:
        shape = (x.shape[-1],)
        scale = self.variable("batch_stats", "scale", jnp.ones, shape, jnp.float32).value
        bias = self.variable("batch_stats", "bias", jnp.zeros, shape, jnp.float32).value
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32).value
        var = self.variable("batch_stats", "var", jnp.full, shape, 1.0 - self.epsilon, jnp.float32).value
        # Collections that are not differentiated still travel through `jax.grad` when a caller passes them along.
        scale, bias, mean, var = jax.lax.stop_gradient((scale, bias, mean, var))
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        shift = bias - mean * factor
        return (x.astype(jnp.float32) * factor[None, None, None, :] + shift[None, None, None, :]).astype(self.dtype)


def norm_groups(channels: int) -> int:
    """Number of groups of a group norm: 32 where that leaves at least two channels in each, as in the paper's model;
    otherwise (small models) the largest divisor of `channels` that leaves at least four in each."""
    if channels % NORM_GROUPS == 0 and channels >= 2 * NORM_GROUPS:
        return NORM_GROUPS
    return next(groups for groups in range(max(1, channels // 4), 0, -1) if channels % groups == 0)


class GroupNorm(nn.Module):
    """Group norm whose statistics see only the positions in use, in float32 whatever the input's type.

    Sums run per channel first and per group after, on `[B, C]`: no five-dimensional view of the map, which would be
    padded eightfold in a TPU's memory.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B h w C"], used: Bool[Array, "B h w 1"] | None = None
    ) -> Float[Array, "B h w C"]:
        """Values beyond the positions in use are arbitrary; the caller masks them."""
        batch, height, width, channels = x.shape
        groups = norm_groups(channels)
        scale = self.param("scale", nn.initializers.ones_init(), (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (channels,), jnp.float32)
        if used is None:
            positions = jnp.full((batch,), float(height * width), jnp.float32)
        else:
            positions = jnp.sum(used, axis=(1, 2, 3), dtype=jnp.float32)
        count = jnp.maximum(positions, 1.0)[:, None] * (channels // groups)  # [B, 1]: values of a group

        def group_mean(values: Float[Array, "B h w C"]) -> Float[Array, "B C"]:
            per_channel = jnp.sum(keep(values, used), axis=(1, 2))
            per_group = jnp.sum(per_channel.reshape(batch, groups, -1), axis=-1) / count
            return jnp.repeat(per_group, channels // groups, axis=-1)

        x = x.astype(jnp.float32)
        mean = group_mean(x)
        variance = group_mean(jnp.square(x - mean[:, None, None, :]))  # two passes: no cancellation
        factor = jax.lax.rsqrt(variance + EPSILON) * scale[None, :]
        shift = bias[None, :] - mean * factor
        return (x * factor[:, None, None, :] + shift[:, None, None, :]).astype(self.dtype)


class LayerNorm(nn.Module):
    """Layer norm over channels, position by position, in float32 whatever the input's type.

    Values beyond the positions in use become the bias; the caller masks them.
    """

    epsilon: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
        scale = self.param("scale", nn.initializers.ones_init(), (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (x.shape[-1],), jnp.float32)
        x = x.astype(jnp.float32)
        centered = x - jnp.mean(x, axis=-1, keepdims=True)
        factor = jax.lax.rsqrt(jnp.mean(jnp.square(centered), axis=-1, keepdims=True) + self.epsilon)
        return (centered * factor * scale[None, None, None, :] + bias[None, None, None, :]).astype(self.dtype)


def drop_path(module: nn.Module, branch: Float[Array, "B h w C"], rate: float) -> Float[Array, "B h w C"]:
    """A residual branch, zero for whole images with probability `rate` and scaled to the same mean (stochastic depth).

    Random only if the caller passes `rngs={"drop_path": key}`: prediction is deterministic.
    """
    if rate == 0.0 or not module.has_rng("drop_path"):
        return branch
    kept = jax.random.bernoulli(module.make_rng("drop_path"), 1.0 - rate, (branch.shape[0], 1, 1, 1))
    return jnp.where(kept, branch / (1.0 - rate), jnp.zeros((), branch.dtype))


# ----------------------------------------------------------------------------------------- coordinates, upsampling
def _linspace(length: int, count: Int[Array, " B"]) -> Float[Array, "B length"]:
    """-1 .. 1 over the first `count` of `length` positions, zero beyond; a count of 1 gives -1.

    Counted from the nearer end, so that both ends and the symmetry are exact.
    """
    count = count[:, None]
    position = jnp.arange(length, dtype=jnp.int32)[None, :]
    step = 2.0 / jnp.maximum(count - 1, 1).astype(jnp.float32)
    from_start = -1.0 + step * position.astype(jnp.float32)
    from_end = 1.0 - step * (count - 1 - position).astype(jnp.float32)
    value = jnp.where((position < count // 2) | (count == 1), from_start, from_end)
    return jnp.where(position < count, value, 0.0)


def coord_channels(
    extent: Int[Array, "B 2"] | None, stride: int, batch: int, height: int, width: int
) -> Float[Array, "B h w 2"]:
    """Two channels, the row then the column, each -1 .. 1 over the rows and columns in use; zero beyond (CoordConv)."""
    if extent is None:
        rows, columns = jnp.full((batch,), height, jnp.int32), jnp.full((batch,), width, jnp.int32)
    else:
        rows, columns = used_size(extent, stride)
    row = jnp.broadcast_to(_linspace(height, rows)[:, :, None], (batch, height, width))
    column = jnp.broadcast_to(_linspace(width, columns)[:, None, :], (batch, height, width))
    return keep(jnp.stack([row, column], axis=-1), used_positions(extent, stride, height, width))


def append_coords(x: Float[Array, "B h w C"], extent: Int[Array, "B 2"] | None, stride: int) -> Array:
    """The map with two coordinate channels behind its own: `[B, h, w, C + 2]`."""
    coords = coord_channels(extent, stride, *x.shape[:3])
    return jnp.concatenate([x, coords.astype(x.dtype)], axis=-1)


def nearest_upsample(x: Float[Array, "B h w C"]) -> Float[Array, "B 2*h 2*w C"]:
    """Every position doubled along both axes."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)


def bilinear_upsample(
    x: Float[Array, "B h w C"], extent: Int[Array, "B 2"] | None, stride: int
) -> Float[Array, "B 2*h 2*w C"]:
    """Bilinear x2 with half-pixel centers, the edge value repeated at the border of what is in use; zero beyond.

    `extent` is in pixels of the canvas, `stride` that of the input level.
    """
    rows, columns = (None, None) if extent is None else used_size(extent, stride)
    x = _double(_double(x, columns, axis=2), rows, axis=1)
    return keep(x, used_positions(extent, stride // 2, x.shape[1], x.shape[2]))


def _double(x: Float[Array, "B h w C"], count: Int[Array, " B"] | None, *, axis: int) -> Array:
    """Position k becomes 3/4 x[k] + 1/4 x[k-1] and 3/4 x[k] + 1/4 x[k+1]; neighbors clamped to the first `count`."""
    length = x.shape[axis]
    before = jnp.concatenate(
        [jax.lax.slice_in_dim(x, 0, 1, axis=axis), jax.lax.slice_in_dim(x, 0, length - 1, axis=axis)], axis=axis
    )
    after = jnp.concatenate(
        [jax.lax.slice_in_dim(x, 1, length, axis=axis), jax.lax.slice_in_dim(x, length - 1, length, axis=axis)],
        axis=axis,
    )
    if count is not None:
        last = jnp.arange(length)[None, :] >= count[:, None] - 1
        after = jnp.where(last[:, :, None, None] if axis == 1 else last[:, None, :, None], x, after)
    doubled = jnp.stack([0.25 * before + 0.75 * x, 0.75 * x + 0.25 * after], axis=axis + 1)
    return doubled.reshape(*x.shape[:axis], 2 * length, *x.shape[axis + 1 :])
