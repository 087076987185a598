"""The contract of backbones.registry, over every registered backbone."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfcn_jax.errors import ConfigError
from pfcn_jax.models.backbones.registry import BackboneSpec, find_backbone, known_backbones, register
from pfcn_jax.models.options import ModelOptions
from pfcn_jax.models.panoptic_fcn import PanopticFCN, init_variables

LEVELS = ("res2", "res3", "res4", "res5")
# The smallest of each kind is compiled, the others are only traced.
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("resnet50", "convnext_t", "swin_t")]
SMALLEST = ("resnet18", "efficientnet_lite0", *SLOW)
TINY_WIDTH = 8


@functools.cache
def _network(name: str, **options: Any) -> tuple[Any, Any, dict[str, Any]]:
    """The backbone, its jitted forward pass, and variables that are nowhere zero."""
    net = find_backbone(name).build(ModelOptions(backbone=name, backbone_width=TINY_WIDTH, **options))
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), None))
    rng = np.random.default_rng(1)

    def draw(path: tuple[str, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        noise = rng.normal(size=leaf.shape).astype(np.float32)
        if path[-1] in ("var", "scale"):
            return jnp.asarray(1 + 0.1 * np.abs(noise))
        if path[-1] == "kernel":
            return jnp.asarray(noise * (0.5 / float(np.prod(leaf.shape[:-1]))) ** 0.5)
        return jnp.asarray(0.1 * noise)

    flat = flax.traverse_util.flatten_dict(shapes)
    variables = flax.traverse_util.unflatten_dict({path: draw(path, leaf) for path, leaf in flat.items()})
    return net, jax.jit(net.apply), variables


def _images(sizes: list[tuple[int, int]], canvas: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """Normalized images top-left in a canvas, zero beyond, and their extents (equal to their sizes)."""
    x = np.zeros((len(sizes), *canvas, 3), np.float32)
    for row, (height, width) in zip(x, sizes, strict=True):
        row[:height, :width] = np.random.default_rng(height * 1000 + width).normal(size=(height, width, 3))
    return jnp.asarray(x), jnp.asarray(sizes, jnp.int32)


@pytest.mark.parametrize("name", known_backbones())
def test_strides_channels_and_parameter_type(name: str) -> None:
    spec = find_backbone(name)
    for dtype in ("float32", "bfloat16"):
        options = ModelOptions(backbone=name, dtype=dtype)
        spec.check(options)
        net = spec.build(options)
        outputs, variables = jax.eval_shape(
            lambda net=net: net.init_with_output(
                jax.random.key(0), jnp.zeros((2, 96, 160, 3)), jnp.full((2, 2), 32, jnp.int32)
            )
        )
        assert [outputs[level].shape[:3] for level in LEVELS] == [(2, 24, 40), (2, 12, 20), (2, 6, 10), (2, 3, 5)]
        assert {outputs[level].dtype for level in LEVELS} == {jnp.dtype(dtype)}
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
        top = set(variables["params"])
        frozen = [set(net.frozen_modules(freeze_at)) for freeze_at in range(6)]
        assert frozen[0] == set() and frozen[5] <= top
        assert all(fewer < more for fewer, more in itertools.pairwise(frozen))


@pytest.mark.parametrize("name", known_backbones())
def test_pixel_statistics_are_those_of_an_image(name: str) -> None:
    pixels = find_backbone(name).pixels(ModelOptions(backbone=name))
    assert pixels.order in ("rgb", "bgr") and min(pixels.std) > 0 and all(0 < mean < 255 for mean in pixels.mean)


@pytest.mark.parametrize("name", SMALLEST)
def test_canvas_and_batch_mates_do_not_matter(name: str) -> None:
    _, apply, variables = _network(name)
    sizes = [(32, 64), (96, 32), (64, 128)]
    batch = apply(variables, *_images(sizes, (96, 128)))
    for row, size in enumerate(sizes):
        x, extent = _images([size], size)
        alone = apply(variables, x, extent if row == 1 else None)
        for level in LEVELS:
            ours, theirs = np.asarray(batch[level][row]), np.asarray(alone[level][0])
            height, width = theirs.shape[:2]
            assert np.abs(theirs).max() > 1e-3
            np.testing.assert_allclose(ours[:height, :width], theirs, rtol=0, atol=2e-5 * np.abs(theirs).max())
            assert not ours[height:].any() and not ours[:, width:].any()


@pytest.mark.parametrize("name", SMALLEST)
def test_frozen_stages_get_no_gradient_and_remat_changes_no_number(name: str) -> None:
    x, extent = _images([(32, 32)], (32, 32))
    gradients = {}
    for freeze_at, remat in ((0, False), (3, True)):
        net, _, variables = _network(name, freeze_at=freeze_at, remat=remat)

        def total(params: Any, net: Any = net, variables: Any = variables) -> jax.Array:
            outputs = net.apply({**variables, "params": params}, x, extent)
            return sum(jnp.sum(jnp.sin(outputs[level])) for level in LEVELS)

        tree = jax.jit(jax.grad(total))(variables["params"])
        gradients[freeze_at] = flax.traverse_util.flatten_dict(jax.device_get(tree))
        frozen = net.frozen_modules(freeze_at)
        for path, gradient in gradients[freeze_at].items():
            assert gradient.any() == (path[0] not in frozen), path
    for path, gradient in gradients[3].items():
        if gradient.any():
            scale = np.abs(gradients[0][path]).max()
            np.testing.assert_allclose(gradient, gradients[0][path], rtol=0, atol=1e-4 * scale, err_msg=str(path))


@pytest.mark.parametrize("name", SMALLEST)
def test_bfloat16_stays_close(name: str) -> None:
    _, apply, variables = _network(name)
    arguments = _images([(96, 32)], (96, 32))  # a program of the test of canvases
    exact, rounded = apply(variables, *arguments), _network(name, dtype="bfloat16")[1](variables, *arguments)
    for level in LEVELS:
        scale = float(jnp.abs(exact[level]).max())
        np.testing.assert_allclose(np.asarray(rounded[level], np.float32), exact[level], atol=0.06 * scale)


def test_a_name_has_one_backbone() -> None:
    with pytest.raises(ValueError, match="resnet50"):
        register("resnet50", BackboneSpec(build=lambda options: None))


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'resnet50'.*resnet101"):
        find_backbone("resnet_50")
    with pytest.raises(ConfigError, match="cannot import 'no_such_module'"):
        find_backbone("no_such_module:tiny")


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "efficientnet_lite0", "convnext_t", "swin_t"])
def test_the_network_takes_a_registered_backbone(name: str) -> None:
    model = PanopticFCN(3, 2, ModelOptions(backbone=name, fpn_channels=16, head_channels=16))
    params = jax.eval_shape(lambda: init_variables(model, jax.random.key(0)))["params"]
    assert set(model.frozen_paths()) <= {f"backbone/{name}" for name in params["backbone"]}
