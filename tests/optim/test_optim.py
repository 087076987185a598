"""The optimizer against the recorded schedules and a hand-written SGD step."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pfcn_jax.errors import ConfigError
from pfcn_jax.optim import rules as optim
from pfcn_jax.optim.build import make_optimizer
from pfcn_jax.optim.optimizers import register_optimizer
from pfcn_jax.optim.options import OptimOptions
from pfcn_jax.studies.parity.reference import Recorded

CONFIG = OptimOptions()
FROZEN = ("backbone/stem", "backbone/res2_0")


def test_schedule_equals_the_recorded_one(reference_dir):
    recorded = Recorded(reference_dir / "tensors" / "lr_schedule.npz")
    for name, steps in (("R50-1x", 90_000), ("R50-3x", 270_000)):
        schedule = optim.learning_rate_schedule(CONFIG, steps=steps, batch_size=16)
        ours = np.array([float(schedule(jnp.int32(i))) for i in recorded[f"{name}.iter"]])
        np.testing.assert_allclose(ours, recorded[f"{name}.lr"], rtol=2e-6)


def test_learning_rate_scales_with_the_batch():
    one = optim.learning_rate_schedule(CONFIG, steps=100, batch_size=16)
    two = optim.learning_rate_schedule(CONFIG, steps=100, batch_size=32)
    np.testing.assert_allclose(2 * float(one(jnp.int32(50))), float(two(jnp.int32(50))), rtol=1e-6)


def _params():
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return {
        "backbone": {
            "stem": {"conv": {"kernel": draw(3)}},
            "res2_0": {"conv1": {"kernel": draw(3)}},
            "res3_0": {"conv1": {"kernel": draw(3)}, "norm1": {"scale": draw(2), "bias": draw(2)}},
        },
        "fpn": {"lateral2": {"kernel": draw(4), "bias": draw(4)}},
    }


def test_masks_name_frozen_stages_and_norms():
    frozen = optim.frozen_mask(_params(), FROZEN)["backbone"]
    assert frozen["stem"]["conv"]["kernel"] and frozen["res2_0"]["conv1"]["kernel"]
    assert not frozen["res3_0"]["conv1"]["kernel"]
    assert not any(jax.tree.leaves(optim.frozen_mask(_params(), ())))
    assert optim.frozen_mask(_params(), FROZEN[:1])["backbone"]["res2_0"]["conv1"]["kernel"] is False
    decay = optim.decay_mask(_params())
    assert decay["fpn"]["lateral2"]["bias"] and decay["backbone"]["res3_0"]["conv1"]["kernel"]
    assert not decay["backbone"]["res3_0"]["norm1"]["scale"] and not decay["backbone"]["res3_0"]["norm1"]["bias"]


def test_two_steps_equal_a_hand_written_sgd():
    params = _params()
    config = OptimOptions(clip_value=0.5, weight_decay=0.1, warmup_steps=3, learning_rate=0.3)
    rule = make_optimizer(config, steps=10, batch_size=16, frozen=FROZEN)
    schedule = optim.learning_rate_schedule(config, steps=10, batch_size=16)
    gradients = jax.tree.map(lambda leaf: leaf * 2.0, params)
    state, ours = rule.init(params), params
    momentum = jax.tree.map(jnp.zeros_like, params)
    theirs, frozen, decay = params, optim.frozen_mask(params, FROZEN), optim.decay_mask(params)
    for step in range(2):
        updates, state = jax.jit(rule.update)(gradients, state, ours)
        ours = jax.tree.map(lambda leaf, update: leaf + update, ours, updates)
        rate = float(schedule(jnp.int32(step)))
        clipped = jax.tree.map(lambda leaf: jnp.clip(leaf, -0.5, 0.5), gradients)
        decayed = jax.tree.map(lambda g, p, d: g + (0.1 * p if d else 0.0), clipped, theirs, decay)
        momentum = jax.tree.map(lambda m, g: 0.9 * m + g, momentum, decayed)
        theirs = jax.tree.map(lambda p, m, f, rate=rate: p if f else p - rate * m, theirs, momentum, frozen)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, theirs)


def test_adamw_moves_parameters_and_keeps_frozen_ones():
    params = _params()
    rule = make_optimizer(OptimOptions(name="adamw", warmup_steps=0), steps=10, batch_size=16, frozen=FROZEN)
    with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer power
        updates, _ = rule.update(params, rule.init(params), params)
    assert not np.any(updates["backbone"]["stem"]["conv"]["kernel"])
    assert np.all(updates["fpn"]["lateral2"]["kernel"] != 0)


def test_factors_multiply_the_learning_rate_and_the_longest_path_counts():
    params = _params()
    multipliers = (("backbone", 0.1), ("backbone/res3_0/norm1", 3.0))
    plain, scaled = (
        make_optimizer(config, steps=10, batch_size=16, frozen=FROZEN)
        for config in (CONFIG, OptimOptions(lr_multipliers=multipliers))
    )
    before, _ = plain.update(params, plain.init(params), params)
    after, state = scaled.update(params, scaled.init(params), params)
    expected = {
        "backbone": {
            "stem": {"conv": {"kernel": 1.0}},
            "res2_0": {"conv1": {"kernel": 1.0}},
            "res3_0": {"conv1": {"kernel": 0.1}, "norm1": {"scale": 3.0, "bias": 3.0}},
        },
        "fpn": {"lateral2": {"kernel": 1.0, "bias": 1.0}},
    }
    jax.tree.map(lambda a, b, f: np.testing.assert_allclose(a, f * b, rtol=1e-6), after, before, expected)
    # A run may go on with other factors: the stored state is the same.
    assert jax.tree.structure(state) == jax.tree.structure(plain.init(params))


def test_frozen_paths_get_no_gradient():
    def loss(params):
        return optax.tree.norm(optim.stop_frozen(params, ("backbone/res3_0", "fpn/lateral2/bias")))

    gradients = jax.grad(loss)(_params())
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients["backbone"]["res3_0"]))
    assert not np.any(gradients["fpn"]["lateral2"]["bias"])
    assert np.all(gradients["fpn"]["lateral2"]["kernel"]) and np.all(gradients["backbone"]["stem"]["conv"]["kernel"])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"frozen": ("backbone/res3",)}, r"optim\.frozen: no parameter .*'backbone/res3'; near: backbone/res3_0"),
        ({"lr_multipliers": (("heads", 2.0),)}, r"lr_multipliers: no parameter .*'heads'; near: backbone, fpn"),
        ({"lr_multipliers": (("fpn", 0.0),)}, r"'fpn' has 0\.0; to train nothing use optim\.frozen"),
        ({"lr_multipliers": (("fpn", 2.0), ("fpn", 3.0))}, "named twice"),
        ({"lr_multipliers": (("backbone/stem", 0.1),)}, "'backbone/stem' sets no learning rate"),
        ({"lr_multipliers": (("fpn", 0.1), ("fpn/lateral2", 0.2))}, "'fpn' sets no learning rate"),
        ({"frozen": ("backbone", "fpn")}, "leave no parameter to train"),
    ],
)
def test_a_path_that_does_nothing_is_an_error(keys, message):
    with pytest.raises(ConfigError, match=message):
        optim.check_paths(OptimOptions(**keys), _params(), frozen=FROZEN)


def test_paths_that_do_something_pass():
    config = OptimOptions(frozen=("backbone/res3_0/conv1",), lr_multipliers=(("backbone", 0.1), ("fpn", 2.0)))
    optim.check_paths(config, _params(), frozen=FROZEN)


def test_a_registered_optimizer_is_found_by_name_and_gets_the_learning_rate(tmp_path, monkeypatch):
    (tmp_path / "lab_optimizer.py").write_text(
        "import optax\n"
        "from pfcn_jax.optim.optimizers import register_optimizer\n\n"
        "@register_optimizer('signs')\n"
        "def signs(options):\n"
        "    return optax.scale_by_sign()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    options = OptimOptions(name="lab_optimizer:signs", warmup_steps=0, learning_rate=0.5)  # type: ignore[arg-type]
    params = _params()
    optimizer = make_optimizer(options, steps=10, batch_size=16, frozen=FROZEN)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    lateral = params["fpn"]["lateral2"]["kernel"]
    np.testing.assert_allclose(updates["fpn"]["lateral2"]["kernel"], -0.5 * jnp.sign(lateral), rtol=1e-6)
    assert not np.any(updates["backbone"]["stem"]["conv"]["kernel"])
    with pytest.raises(ValueError, match="two optimizers are called 'signs'"):
        register_optimizer("signs")(lambda options: optax.identity())


@pytest.mark.parametrize(("name", "message"), [("lion", "known: adamw, "), ("no_module:lion", "cannot import")])
def test_an_unknown_optimizer_is_an_error_that_names_the_key(name, message):
    with pytest.raises(ConfigError, match=rf"config\.optim\.name: .*{message}"):
        make_optimizer(OptimOptions(name=name), steps=1, batch_size=1)  # type: ignore[arg-type]
