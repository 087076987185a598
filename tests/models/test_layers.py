"""Layers against slow NumPy versions, alone and inside a larger canvas with rubbish behind the image."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfcn_jax.models import layers
from tests.models import oracles

CANVAS = 128  # pixels
EXTENTS = ((128, 96), (32, 64), (96, 32))


def _maps(stride: int, channels: int, seed: int = 0) -> tuple[np.ndarray, jax.Array, list[tuple[int, int]]]:
    """A batch of maps that are random everywhere, the extents of its images, and the sizes in use."""
    shape = (len(EXTENTS), CANVAS // stride, CANVAS // stride, channels)
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32) + 0.5
    return values, jnp.asarray(EXTENTS, jnp.int32), [(-(-h // stride), -(-w // stride)) for h, w in EXTENTS]


def _assert_beyond_is_zero(x: np.ndarray, sizes: list[tuple[int, int]]) -> None:
    for row, (height, width) in zip(np.asarray(x), sizes, strict=True):
        assert not row[height:].any() and not row[:, width:].any()


@pytest.mark.parametrize("stride", [8, 64, 128])
def test_used_positions_round_up(stride: int) -> None:
    _, extent, sizes = _maps(stride, 1)
    side = CANVAS // stride
    used = np.asarray(layers.used_positions(extent, stride, side, side))
    for row, (height, width) in zip(used, sizes, strict=True):
        expected = np.zeros((side, side, 1), bool)
        expected[:height, :width] = True
        np.testing.assert_array_equal(row, expected)
    assert layers.used_positions(None, stride, side, side) is None


@pytest.mark.parametrize(("channels", "groups"), [(256, 32), (64, 32), (32, 8), (48, 12), (8, 2), (6, 1), (4, 1)])
def test_norm_groups(channels: int, groups: int) -> None:
    assert layers.norm_groups(channels) == groups
    assert channels % groups == 0


@pytest.mark.parametrize("masked", [True, False])
def test_group_norm_sees_only_what_is_in_use(masked: bool) -> None:
    x, extent, sizes = _maps(16, 64)
    x[:] += 100.0  # a large mean: a one-pass variance in float32 would be off by a percent
    used = layers.used_positions(extent, 16, *x.shape[1:3]) if masked else None
    sizes = sizes if masked else [x.shape[1:3]] * len(x)
    rng = np.random.default_rng(1)
    scale, bias = rng.normal(size=64).astype(np.float32), rng.normal(size=64).astype(np.float32)
    variables = {"params": {"scale": jnp.asarray(scale), "bias": jnp.asarray(bias)}}
    ours = np.asarray(layers.GroupNorm().apply(variables, x, used))
    for row, image, (height, width) in zip(ours, x, sizes, strict=True):
        theirs = oracles.group_norm(image[:height, :width], 32, scale, bias)
        np.testing.assert_allclose(row[:height, :width], theirs, atol=2e-4)


def test_group_norm_of_an_empty_map_is_finite() -> None:
    x = jnp.ones((1, 2, 2, 8))
    norm = layers.GroupNorm()
    variables = norm.init(jax.random.key(0), x)
    gradient = jax.grad(lambda x: jnp.sum(norm.apply(variables, x, jnp.zeros((1, 2, 2, 1), bool))))(x)
    assert np.isfinite(gradient).all()


def test_frozen_batch_norm() -> None:
    rng = np.random.default_rng(0)
    scale, bias, mean = (rng.normal(size=7).astype(np.float32) for _ in range(3))
    var = rng.uniform(0.5, 2, size=7).astype(np.float32)
    x = rng.normal(size=(2, 3, 4, 7)).astype(np.float32)
    variables = {"batch_stats": {"scale": scale, "bias": bias, "mean": mean, "var": var}}
    ours = layers.FrozenBatchNorm().apply(variables, x)
    np.testing.assert_allclose(ours, (x - mean) / np.sqrt(var + 1e-5) * scale + bias, rtol=1e-5, atol=1e-5)
    fresh = layers.FrozenBatchNorm().init(jax.random.key(0), x)
    assert set(fresh) == {"batch_stats"}
    np.testing.assert_allclose(layers.FrozenBatchNorm().apply(fresh, x), x, rtol=1e-6)
    gradient = jax.grad(lambda v: jnp.sum(layers.FrozenBatchNorm().apply(v, x)))(variables)
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("stride", [4, 64, 128])  # 128: one row, one column
def test_coord_channels(stride: int) -> None:
    x, extent, sizes = _maps(stride, 3)
    ours = np.asarray(jax.jit(layers.append_coords, static_argnums=2)(x, extent, stride))
    np.testing.assert_array_equal(ours[..., :3], x)
    for row, (height, width) in zip(ours[..., 3:], sizes, strict=True):
        np.testing.assert_allclose(row[:height, :width], oracles.coords(height, width), atol=1e-6)
        assert row[0, 0].tolist() == [-1.0, -1.0]
        assert row[height - 1, width - 1].tolist() == [1.0 if height > 1 else -1.0, 1.0 if width > 1 else -1.0]
    _assert_beyond_is_zero(ours[..., 3:], sizes)
    whole = layers.coord_channels(None, stride, 1, 5, 1)
    np.testing.assert_allclose(whole[0], oracles.coords(5, 1), atol=1e-6)


@pytest.mark.parametrize("stride", [8, 32])
def test_bilinear_upsample(stride: int) -> None:
    x, extent, sizes = _maps(stride, 2)
    x = np.asarray(layers.keep(x, layers.used_positions(extent, stride, *x.shape[1:3])))
    ours = np.asarray(jax.jit(layers.bilinear_upsample, static_argnums=2)(x, extent, stride))
    for row, image, (height, width) in zip(ours, x, sizes, strict=True):
        theirs = oracles.bilinear_upsample(image[:height, :width])
        np.testing.assert_allclose(row[: 2 * height, : 2 * width], theirs, atol=1e-6)
    _assert_beyond_is_zero(ours, [(2 * height, 2 * width) for height, width in sizes])
    whole = np.asarray(layers.bilinear_upsample(jnp.asarray(x), None, stride))
    np.testing.assert_allclose(whole[0], oracles.bilinear_upsample(x[0]), atol=1e-6)


def test_nearest_upsample() -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    np.testing.assert_array_equal(layers.nearest_upsample(x), x.repeat(2, axis=1).repeat(2, axis=2))


@pytest.mark.parametrize("norm", [None, "frozen_bn", "group_norm"])
@pytest.mark.parametrize("deformable", [False, True])
def test_conv_layer_is_zero_beyond(norm: str | None, deformable: bool) -> None:
    x, extent, sizes = _maps(32, 8)
    used = layers.used_positions(extent, 32, 4, 4)
    x = layers.keep(jnp.asarray(x), used)
    layer = layers.Conv(16, norm=norm, activation=True, deformable=deformable)
    variables = layer.init(jax.random.key(1), x, used)
    assert ("bias" in variables["params"]) == (norm is None)
    ours = layer.apply(variables, x, used)
    _assert_beyond_is_zero(np.asarray(ours), sizes)
    assert np.asarray(ours).any()
    alone = layer.apply(variables, x[1:2, :1, :2])  # the second image, without a canvas
    np.testing.assert_allclose(ours[1:2, :1, :2], alone, atol=1e-5)


@pytest.mark.parametrize("deformable", [False, True])
def test_a_bfloat16_layer_of_odd_channels_has_the_parameters_and_values_of_the_float32_one(deformable: bool) -> None:
    """Its channels are filled up to a multiple of eight inside: nothing of that may show."""
    x = jax.random.normal(jax.random.key(0), (1, 6, 5, 18), jnp.float32)
    exact, rounded = (layers.Conv(7, deformable=deformable, dtype=dtype) for dtype in (jnp.float32, jnp.bfloat16))
    variables = exact.init(jax.random.key(1), x)
    assert variables["params"]["kernel"].shape == (3, 3, 18, 7)

    def loss(layer, variables, x):
        return jnp.sum(layer.apply(variables, x).astype(jnp.float32) ** 2)

    wanted = (exact.apply(variables, x), jax.grad(loss, argnums=(1, 2))(exact, variables, x))
    found = (rounded.apply(variables, x), jax.grad(loss, argnums=(1, 2))(rounded, variables, x))
    for one, other in zip(jax.tree.leaves(wanted), jax.tree.leaves(found), strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(np.asarray(other, np.float32), one, atol=0.04 * float(jnp.abs(one).max()))


def test_unknown_norm_is_named() -> None:
    with pytest.raises(ValueError, match="'batch'"):
        layers.Conv(4, norm="batch").init(jax.random.key(0), jnp.zeros((1, 2, 2, 3)))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("default", (3 * 9 * 64) ** -0.5),
        ("deformable", (9 * 64 / 2) ** -0.5),
        ("fpn", (9 * 64) ** -0.5),
        ("msra", (9 * 32 / 2) ** -0.5),
        ("output", 0.01),
        ("zeros", 0.0),
    ],
)
def test_initial_standard_deviation(name: str, expected: float) -> None:
    layer = layers.Conv(32, initializer=name, bias_value=-2.0)
    params = layer.init(jax.random.key(0), jnp.zeros((1, 3, 3, 64)))["params"]
    assert float(jnp.std(params["kernel"])) == pytest.approx(expected, rel=0.03)
    bias = np.asarray(params["bias"])
    if name == "default":
        assert np.abs(bias).max() <= (9 * 64) ** -0.5 and bias.std() > 0
    else:
        assert (bias == -2.0).all()
