"""The whole network: shapes under every option, independence of canvas and batch mates, frozen parts, bfloat16."""

from __future__ import annotations

import functools
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfcn_jax.errors import ConfigError
from pfcn_jax.models.backbones.resnet import ResNet
from pfcn_jax.models.build import build_model
from pfcn_jax.models.options import ModelOptions
from pfcn_jax.models.panoptic_fcn import PanopticFCN, init_variables
from pfcn_jax.types import STRIDES, DenseOutputs

TINY: dict[str, Any] = {
    "backbone": "resnet18", "backbone_width": 8, "fpn_channels": 16,
    "head_channels": 16, "kernel_channels": 12, "encoder_channels": 8,
}  # fmt: skip
ENHANCED = {"encoder_deformable": True, "encoder_channels": 16}
SHORT = {"position_convs": 1, "kernel_convs": 1, "encoder_convs": 1}  # compiles in half the time
OPTIONS: dict[str, dict[str, Any]] = {
    "base": {},
    "enhanced": ENHANCED,
    "r34": {"backbone": "resnet34"},
    "r50": {"backbone": "resnet50"},
    "r50 stride in 3x3": {"backbone": "resnet50", "stride_in_1x1": False},
    "r101 deformable": {"backbone": "resnet101", "deformable_stages": (3, 4, 5)},
    "from scratch": {"backbone_norm": "group_norm", "freeze_at": 0},
    "one conv": SHORT,
    "four convs": {"position_convs": 4, "kernel_convs": 4, "encoder_convs": 4},
    "coords elsewhere": {"position_coords": True, "kernel_coords": False, "encoder_coords": False},
    "deformable elsewhere": {"position_deformable": False, "kernel_deformable": True},
    "encoder on p2": {"encoder_input": "p2"},
    "encoder on sum": {"encoder_input": "sum"},
    "rgb": {"pixel_order": "rgb", "pixel_std": (58.395, 57.12, 57.375)},
    "bfloat16": {"dtype": "bfloat16"},
    "remat": {"remat": True, "backbone": "resnet50", "encoder_deformable": True},
}


def _images(sizes: list[tuple[int, int]], canvas: tuple[int, int]) -> tuple[np.ndarray, jax.Array, jax.Array]:
    """Random images top-left in a canvas (noise beyond them), their sizes and extents."""
    image = np.random.default_rng(9).integers(0, 256, size=(len(sizes), *canvas, 3)).astype(np.uint8)
    for index, (height, width) in enumerate(sizes):
        pixels = np.random.default_rng(height * 1000 + width).integers(0, 256, size=(height, width, 3))
        image[index, :height, :width] = pixels
    size = jnp.asarray(sizes, jnp.int32)
    return image, size, -(-size // 32) * 32


def _model(**options: Any) -> PanopticFCN:
    return PanopticFCN(3, 2, ModelOptions(**{**TINY, **options}))


def _make(**options: Any) -> tuple[PanopticFCN, dict[str, Any]]:
    """A small model whose variables are drawn so that every part of it has an effect."""
    model = _model(**options)
    variables = jax.eval_shape(lambda: init_variables(model, jax.random.key(0)))
    rng = np.random.default_rng(1)

    def draw(path: tuple[str, ...], leaf: jax.Array) -> jax.Array:
        noise = rng.normal(size=leaf.shape).astype(np.float32)
        if path[-1] == "var":
            return jnp.asarray(1 + 0.1 * np.abs(noise))
        if path[-1] == "kernel":
            fan = float(np.prod(leaf.shape[:-1]))
            gain = {"stem": 0.02, "offset": 0.1, "conv3": 0.3}  # without them rounding is amplified a hundredfold
            return jnp.asarray(noise * next((gain[name] for name in path if name in gain), 1.0) * (2 / fan) ** 0.5)
        return jnp.asarray((path[-1] == "scale") + 0.1 * noise)

    flat = flax.traverse_util.flatten_dict(variables)
    return model, flax.traverse_util.unflatten_dict({path: draw(path, leaf) for path, leaf in flat.items()})


@functools.cache
def _small() -> tuple[PanopticFCN, dict[str, Any], tuple[Any, ...], DenseOutputs]:
    """A model that compiles fast, its variables, an image of 60 x 64 on 64 x 64 and the outputs for it."""
    model, variables = _make(encoder_deformable=True, **SHORT)
    arguments = _images([(60, 64)], (64, 64))
    return model, variables, arguments, jax.jit(model.apply)(variables, *arguments)


@pytest.mark.parametrize("name", OPTIONS)
def test_shapes(name: str) -> None:
    """Every option builds, keeps float32 parameters, and gives the shapes of the legend."""
    model = _model(**OPTIONS[name])
    options = model.options
    variables = jax.eval_shape(lambda: init_variables(model, jax.random.key(0)))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    assert set(variables) == ({"params"} if options.backbone_norm == "group_norm" else {"params", "batch_stats"})
    image = jax.ShapeDtypeStruct((2, 96, 160, 3), jnp.uint8)
    size = jax.ShapeDtypeStruct((2, 2), jnp.int32)
    for extent in (size, None):
        outputs = jax.eval_shape(lambda v, i, s, e: model.apply(v, i, s, e), variables, image, size, extent)
        levels = [(-(-96 // stride), -(-160 // stride)) for stride in STRIDES]
        assert [x.shape for x in outputs.center_logits] == [(2, *level, 3) for level in levels]
        assert [x.shape for x in outputs.region_logits] == [(2, *level, 3) for level in levels]
        assert [x.shape for x in outputs.kernel_map] == [(2, *level, 12) for level in levels]
        assert outputs.feature.shape == (2, 24, 40, options.encoder_channels)
        assert {x.dtype for x in (*outputs.center_logits, *outputs.region_logits)} == {jnp.dtype(jnp.float32)}
        assert outputs.feature.dtype == outputs.kernel_map[0].dtype == jnp.dtype(options.dtype)
    for method in ("embed_things", "embed_stuff"):
        embed = jax.eval_shape(
            lambda v, k, method=method: model.apply(v, k, method=method), variables,
            jax.ShapeDtypeStruct((2, 5, 7, 12), options.dtype),
        )  # fmt: skip
        assert embed.shape == (2, 5, 7, options.encoder_channels) and embed.dtype == jnp.float32


def test_the_paper_model_has_its_channels() -> None:
    variables = jax.eval_shape(lambda: init_variables(PanopticFCN(), jax.random.key(0)))
    params = variables["params"]
    assert params["position_head"]["centers"]["kernel"].shape == (3, 3, 256, 80)
    assert params["position_head"]["regions"]["kernel"].shape == (3, 3, 256, 54)
    assert params["kernel_head"]["conv1"]["kernel"].shape == (3, 3, 258, 256)
    assert params["feature_encoder"]["conv3"]["kernel"].shape == (3, 3, 64, 64)
    assert params["backbone"]["res5_2"]["conv3"]["kernel"].shape == (1, 1, 512, 2048)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 36_999_511  # as many as in the original


@pytest.mark.slow
def test_initial_position_bias_and_offsets() -> None:
    params = init_variables(_model(backbone="resnet50", deformable_stages=(5,)), jax.random.key(0))["params"]
    for output in ("centers", "regions"):
        np.testing.assert_allclose(params["position_head"][output]["bias"], -2.19, rtol=1e-6)
        assert float(jnp.std(params["position_head"][output]["kernel"])) == pytest.approx(0.01, rel=0.2)
    assert np.asarray(params["position_head"]["conv1"]["offset"]["kernel"]).any()
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(params["backbone"]["res5_0"]["conv2"]["offset"]))


def _assert_same(whole: DenseOutputs, row: int, alone: DenseOutputs) -> None:
    """Row `row` of a batch equals an image alone, to rounding, and is exactly zero beyond it."""
    for big, small in zip(jax.tree.leaves(whole), jax.tree.leaves(alone), strict=True):
        ours, theirs = np.asarray(big[row]), np.asarray(small[0])
        height, width = theirs.shape[:2]
        np.testing.assert_allclose(ours[:height, :width], theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())
        assert not ours[height:].any() and not ours[:, width:].any()


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"backbone": "resnet50", "deformable_stages": (4,), **ENHANCED},
        {"backbone_norm": "group_norm", "encoder_input": "sum", "kernel_deformable": True, "position_coords": True},
    ],
    ids=["frozen", "scratch"],
)
def test_canvas_and_batch_mates_do_not_matter(options: dict[str, Any]) -> None:
    model, variables = _make(**options)
    sizes = [(60, 90), (96, 33), (128, 160)]
    apply = jax.jit(model.apply)
    whole = apply(variables, *_images(sizes, (128, 160)))
    assert all(np.abs(np.asarray(leaf)).max() > 1e-3 for leaf in jax.tree.leaves(whole))
    for row, size in enumerate(sizes):
        image, one_size, extent = _images([size], tuple(-(-side // 32) * 32 for side in size))
        _assert_same(whole, row, apply(variables, image, one_size, extent))
        if row == 0:  # no extent is the whole canvas
            _assert_same(whole, row, apply(variables, image, one_size, None))


@pytest.mark.slow
def test_gradient_does_not_depend_on_the_canvas() -> None:
    model, variables = _make(encoder_deformable=True, **SHORT)

    @jax.jit
    def gradient(params: Any, image: jax.Array, size: jax.Array, extent: jax.Array) -> Any:
        def total(params: Any) -> jax.Array:
            outputs = model.apply({**variables, "params": params}, image, size, extent)
            return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(outputs))

        return jax.grad(total)(params)

    small = gradient(variables["params"], *_images([(50, 64)], (64, 64)))
    large = gradient(variables["params"], *_images([(50, 64)], (96, 128)))
    for a, b in zip(jax.tree.leaves(small), jax.tree.leaves(large), strict=True):
        scale = max(float(jnp.abs(a).max()), 1e-3)
        np.testing.assert_allclose(np.asarray(a) / scale, np.asarray(b) / scale, atol=1e-3)


def test_stages_compose_to_the_whole() -> None:
    model, variables, arguments, whole = _small()

    @jax.jit
    def by_stages(variables: Any, image: jax.Array, size: jax.Array, extent: jax.Array) -> Any:
        features = model.apply(variables, image, size, extent, method="features")
        pyramid = model.apply(variables, features, extent, method="pyramid")
        return features, pyramid, model.apply(variables, pyramid, extent, method="heads")

    features, pyramid, parts = by_stages(variables, *arguments)
    assert {name: x.shape[1] for name, x in features.items()} == {
        "stem": 16,
        "res2": 16,
        "res3": 8,
        "res4": 4,
        "res5": 2,
    }
    assert {name: x.shape[1] for name, x in pyramid.items()} == {"p2": 16, "p3": 8, "p4": 4, "p5": 2, "p6": 1, "p7": 1}
    _assert_same(whole, 0, parts)


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_normalize(order: str) -> None:
    model = _model(pixel_order=order, pixel_mean=(10.0, 20.0, 30.0), pixel_std=(1.0, 2.0, 4.0))
    image, size, _ = _images([(30, 40), (64, 64)], (64, 64))
    ours = np.asarray(model.apply({}, image, size, method="normalize"))
    pixels = image if order == "rgb" else image[..., ::-1]
    theirs = (pixels.astype(np.float32) - np.float32([10, 20, 30])) / np.float32([1, 2, 4])
    theirs[0, 30:], theirs[0, :, 40:] = 0, 0
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("freeze_at", [0, 1, 2])
def test_frozen_parts_get_no_gradient(freeze_at: int) -> None:
    model, variables = _make(freeze_at=freeze_at, **SHORT)
    image, size, extent = _images([(32, 32)], (32, 32))

    def total(params: Any) -> jax.Array:
        features = model.apply({**variables, "params": params}, image, size, extent, method="features")
        return jnp.sum(jnp.square(features["res3"]))

    gradients = flax.traverse_util.flatten_dict(jax.grad(total)(variables["params"]), sep="/")
    frozen = {path for path in gradients if path.startswith(tuple(f"{p}/" for p in model.frozen_paths()))}
    assert {path.split("/")[1] for path in frozen} == set(ResNet(18).frozen_modules(freeze_at))
    for path, gradient in gradients.items():
        if path.split("/")[1] in ("stem", "res2_0", "res2_1", "res3_0", "res3_1"):
            assert np.asarray(gradient).any() == (path not in frozen), path


def test_remat_changes_no_number() -> None:
    _, variables, arguments, plain = _small()
    saved = jax.jit(_model(encoder_deformable=True, remat=True, **SHORT).apply)(variables, *arguments)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(saved), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_bfloat16_stays_close() -> None:
    model, variables = _make(encoder_deformable=True, **SHORT)
    arguments = _images([(60, 96), (96, 64)], (96, 96))
    apply = jax.jit(model.apply)
    exact = apply(variables, *arguments)
    # The yardstick: what rounding the parameters alone does to the float32 network.
    rounded = apply(jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), variables), *arguments)
    small = _model(encoder_deformable=True, dtype="bfloat16", **SHORT)
    close = jax.jit(small.apply)(variables, *arguments)
    for a, b, c in zip(*map(jax.tree.leaves, (exact, rounded, close)), strict=True):
        yardstick = np.sqrt(np.mean((np.asarray(a) - np.asarray(b)) ** 2))
        assert np.sqrt(np.mean((np.asarray(a) - np.asarray(c, np.float32)) ** 2)) < 4 * yardstick

    def total(params: Any) -> jax.Array:
        outputs = small.apply({**variables, "params": params}, *arguments)
        return sum(jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(outputs))

    gradients = jax.jit(jax.grad(total))(variables["params"])
    assert all(leaf.dtype == jnp.float32 and np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"backbone": "resnet20"}, "resnet20"),
        ({"encoder_input": "p3"}, "p3"),
        ({"pixel_order": "gbr"}, "gbr"),
        ({"deformable_stages": (3,)}, "no bottlenecks"),
        ({"deformable_stages": (6,)}, "stages are 2 to 5"),
    ],
)
def test_wrong_options_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model(ModelOptions(**{**TINY, **fields}), 3, 2)


def test_canvas_must_be_a_multiple_of_32() -> None:
    model = _model()
    with pytest.raises(ValueError, match="multiples of 32"):
        model.init(jax.random.key(0), jnp.zeros((1, 40, 64, 3), jnp.uint8), jnp.ones((1, 2), jnp.int32), None)
