"""One whole training step against the original implementation: losses, gradients, clipping, decay, momentum.

Gradients are compared in the original's names and layouts. Of every parameter the file has the norm and a projection
on a random direction drawn from its name; about 30 parameters and the features have their gradients themselves.
"""

from __future__ import annotations

import functools
import operator
import pathlib
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pfcn_jax.interop.convert import from_params, read_facts
from pfcn_jax.models.panoptic_fcn import PanopticFCN
from pfcn_jax.optim.build import make_optimizer
from pfcn_jax.optim.options import OptimOptions
from pfcn_jax.optim.rules import decay_mask, frozen_mask
from pfcn_jax.panoptic.losses import combine
from pfcn_jax.panoptic.options import LossOptions
from pfcn_jax.panoptic.targets import Targets
from pfcn_jax.studies.parity.network import load_model, place, recorded_images
from pfcn_jax.studies.parity.reference import Check, Recorded, check, direction_of, recorded_files
from pfcn_jax.studies.parity.targets import recorded_labels, targets_of
from pfcn_jax.studies.parity.training import Embedding, check_losses, image_losses, sum_over_images
from pfcn_jax.studies.reference_weights import make_state_dict
from pfcn_jax.types import LEVELS, DenseOutputs

PyTree = Any
RELATIVE = 1e-4  # of a gradient's largest element, where the original's own rounding error is smaller
ROUNDING = 2.0**-23  # relative size of a unit in the last place of float32
ROUNDINGS = 16  # tries; about one in four is right


def check_gradients(reference: pathlib.Path) -> list[Check]:
    """One training step of every recorded batch."""
    tags = [path.stem.removeprefix("grad_") for path in sorted((reference / "tensors").glob("grad_*.npz"))]
    return [one for tag in tags for one in check_training_step(reference, tag)]


def check_training_step(reference: pathlib.Path, tag: str) -> list[Check]:
    """Losses of `train_<tag>` and everything in `grad_<tag>`, from the images and the original's weights.

    The gradient of this network jumps where a rectified value is 0 or a sample of a deformable convolution falls on a
    pixel. Each recorded batch has a few values within rounding of such a jump (one rectified value of 2e-7, on p3,
    moves the gradient at 40 positions by up to 0.4%), and the original's numbers hold for one side of each. So, where
    a gradient is not within its tolerance, the parameters are rounded another way, each by at most one unit in its
    last place, and all gradients are compared again: they must all be right in one and the same run. If no rounding
    does it, the result is that of the first run, without any. Losses are compared without.
    """
    (recorded,) = recorded_files(reference, f"train_{tag}.npz")
    (expected,) = recorded_files(reference, f"grad_{tag}.npz")
    model, variables = load_model(reference, recorded.config["config"])
    targets = [targets_of(recorded_labels(recorded, row)) for row in range(int(recorded["batch"]))]
    image, size = (jnp.asarray(values) for values in place(recorded_images(recorded)))
    layout = original_layout_of(reference, recorded.config["config"], variables)
    losses: list[Check] = []
    first: list[Check] = []
    for seed in range(ROUNDINGS):
        gradients, at_features, dense = step_gradients(
            round_parameters(variables, seed),
            image,
            size,
            targets,
            model=model,
            num_positions=recorded.config["pos_num"],
        )
        losses = losses or check_losses(recorded, dense, *embeddings(model, variables))  # without any rounding
        found = check_features(expected, at_features)
        found += check_parameters(expected, variables["params"], gradients, model, layout)
        if all(one.ok for one in found):
            rounding = "as they are" if seed == 0 else f"rounded another way, try {seed}"
            return [*losses, Check(expected.name, f"gradients: parameters {rounding}", 0.0, 0.0, True), *found]
        first = first or found
    return [*losses, Check(expected.name, "gradients: right under no rounding", float("inf"), 0.0, False), *first]


def round_parameters(variables: PyTree, seed: int) -> PyTree:
    """Moves each element up or down by at most one unit in its last place; not at all for seed 0."""
    if seed == 0:
        return variables
    rng = np.random.default_rng(seed)

    def move(values: jax.Array) -> jax.Array:
        share = rng.uniform(-ROUNDING, ROUNDING, values.shape).astype(np.float32)
        return jnp.asarray(np.asarray(values) * (1.0 + share))

    return jax.tree.map(move, variables)


def original_layout_of(
    reference: pathlib.Path, variant: str, variables: PyTree
) -> Callable[[PyTree], dict[str, np.ndarray]]:
    """A function from parameters, or what has their shape, to the original's names and layouts; buffers become 0."""
    facts = read_facts(make_state_dict(reference, variant), "panoptic_fcn")
    buffers = jax.tree.map(jnp.zeros_like, variables["batch_stats"])
    return lambda params: from_params({"params": params, "batch_stats": buffers}, facts)


def embeddings(model: PanopticFCN, variables: PyTree) -> tuple[Embedding, Embedding]:
    """The model's two kernel embeddings, things and stuff."""

    def embed(method: str, kernel: jax.Array) -> jax.Array:
        return cast(jax.Array, model.apply(variables, kernel, method=method))

    return functools.partial(embed, "embed_things"), functools.partial(embed, "embed_stuff")


@functools.partial(jax.jit, static_argnames=("model", "num_positions"))
def step_gradients(
    variables: PyTree,
    image: jax.Array,
    size: jax.Array,
    targets: list[Targets],
    *,
    model: PanopticFCN,
    num_positions: int,
) -> tuple[PyTree, dict[str, jax.Array], DenseOutputs]:
    """Gradients of the total loss at the parameters and at features on the way, and the heads' outputs.

    A gradient at a feature is the gradient at a zero that is added to it.
    """
    extent = jnp.broadcast_to(jnp.asarray(image.shape[1:3], jnp.int32)[None], size.shape)

    def run(variables: PyTree, nudge: dict[str, PyTree]) -> DenseOutputs:
        apply: Callable[..., Any] = functools.partial(model.apply, variables)
        features = apply(image, size, extent, method="features")
        pyramid = apply({**features, "res5": features["res5"] + nudge["res5"]}, extent, method="pyramid")
        pyramid = {level: values + nudge.get(level, 0.0) for level, values in pyramid.items()}
        return jax.tree.map(jnp.add, apply(pyramid, extent, method="heads"), nudge["dense"])

    def loss(params: PyTree, nudge: dict[str, PyTree]) -> tuple[jax.Array, DenseOutputs]:
        here = {**variables, "params": params}
        embed_things, embed_stuff = embeddings(model, here)
        dense = run(here, nudge)
        parts = [
            image_losses(
                jax.tree.map(operator.itemgetter(index), dense),
                one,
                embed_things=embed_things,
                embed_stuff=embed_stuff,
                num_positions=num_positions,
            )
            for index, one in enumerate(targets)
        ]
        return sum(combine(sum_over_images(parts), LossOptions()).values(), start=jnp.zeros(())), dense

    shapes = jax.eval_shape(lambda: _features(model, variables, image, size, extent))
    nudge = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    (gradients, at_nudge), dense = jax.grad(loss, argnums=(0, 1), has_aux=True)(variables["params"], nudge)
    named = {name: at_nudge[name] for name in ("res5", "p3", "p7")} | {"encode_feat": at_nudge["dense"].feature}
    for index, level in enumerate(LEVELS):
        for name in ("center_logits", "region_logits", "kernel_map"):
            named[f"{level}.{ORIGINAL_HEADS[name]}"] = getattr(at_nudge["dense"], name)[index]
    return gradients, named, dense


ORIGINAL_HEADS = {"center_logits": "pred_center", "region_logits": "pred_region", "kernel_map": "pred_weights"}


def _features(model: PanopticFCN, variables: PyTree, image: jax.Array, size: jax.Array, extent: jax.Array) -> PyTree:
    apply: Callable[..., Any] = functools.partial(model.apply, variables)
    features = apply(image, size, extent, method="features")
    pyramid = apply(features, extent, method="pyramid")
    dense = apply(pyramid, extent, method="heads")
    return {"res5": features["res5"], "p3": pyramid["p3"], "p7": pyramid["p7"], "dense": dense}


def check_features(expected: Recorded, at_features: dict[str, jax.Array]) -> list[Check]:
    """`fgrad/*`: channels-first, every step-th channel."""
    return [
        expected.compare(key, np.asarray(at_features[key.removeprefix("fgrad/")]), relative=RELATIVE)
        for key in expected.arrays
        if key.startswith("fgrad/")
    ]


def check_parameters(
    expected: Recorded,
    params: PyTree,
    gradients: PyTree,
    model: PanopticFCN,
    original_layout: Callable[[PyTree], dict[str, np.ndarray]],
) -> list[Check]:
    """Gradients of all parameters and one step of the optimiser (lr 0.01, no warm-up)."""
    config = OptimOptions(warmup_steps=0)
    optimizer = make_optimizer(config, steps=1, batch_size=config.reference_batch, frozen=model.frozen_paths())
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    stepped = optax.apply_updates(params, updates)
    frozen, decayed = frozen_mask(params, model.frozen_paths()), decay_mask(params)
    # The parameters that are trained, as a mask of ones: what is left of it under the original's names.
    mask = jax.tree.map(lambda values, fixed: jnp.full(values.shape, 0.0 if fixed else 1.0), params, frozen)
    names = {name for name, values in original_layout(mask).items() if values.any()}
    ours = {name: values.astype(np.float64) for name, values in original_layout(gradients).items() if name in names}
    trained = [d for f, d in zip(jax.tree.leaves(frozen), jax.tree.leaves(decayed)) if not f]
    groups = [group["n"] for group in expected.json("param_groups")]
    clipped = sum(int((np.abs(gradient) > config.clip_value).sum()) for gradient in ours.values())
    statistics = expected.json("all_grads")
    checks = [
        check(
            expected.name, "param_groups", np.array([sum(trained), len(trained) - sum(trained)]), np.array(groups), 0
        ),
        check(expected.name, "n_clipped", np.array(clipped), expected["n_clipped"], 0),
        check(expected.name, "all_grads: names", np.array(set(ours) ^ set(statistics) == set()), np.array(True), 0),
    ]
    for name, theirs in statistics.items():
        checks += _check_statistics(expected, name, ours[name], theirs)
    old, new = original_layout(params), original_layout(stepped)
    for key in expected.arrays:
        kind, _, name = key.partition("/")
        if kind == "grad":
            error = expected.f64err(key) or 0.0
            tolerance = max(3 * error, RELATIVE * expected.meta[key]["absmax"])
            checks.append(
                check(
                    expected.name,
                    key,
                    _recorded_part(ours[name], expected.meta[key]["slice"]),
                    expected[key],
                    tolerance,
                )
            )
        elif kind == "step_delta":
            error = 3 * statistics[name]["f64err"] + RELATIVE * statistics[name]["absmax"]
            tolerance = config.learning_rate * error + ROUNDING * float(np.abs(old[name]).max())
            delta = np.asarray(new[name], np.float32) - np.asarray(old[name], np.float32)
            checks.append(
                check(
                    expected.name,
                    key,
                    _recorded_part(delta, expected.meta[f"grad/{name}"]["slice"]),
                    expected[key],
                    tolerance,
                )
            )
    return checks


def _recorded_part(ours: np.ndarray, how: str) -> np.ndarray:
    """The part of a large parameter that was recorded, as its file says: "[::16,::16]", "[:,250:]", or "" for all."""

    def one(axis: str) -> slice:
        return slice(*(int(number) if number else None for number in axis.split(":")))

    return ours[tuple(one(axis) for axis in how.strip("[]").split(","))] if how else ours


def _check_statistics(expected: Recorded, name: str, gradient: np.ndarray, theirs: dict[str, float]) -> list[Check]:
    """Norm, mean and the projection on a direction drawn from the parameter's name."""
    direction = direction_of(name, gradient.shape)
    # An error of `each` per element changes the norm by at most each * sqrt(n), and a random projection by as much.
    each = max(3 * theirs["f64err"], RELATIVE * theirs["absmax"])
    spread = each * float(np.sqrt(gradient.size))
    return [
        check(expected.name, f"all_grads/{name}: {what}", np.array(ours), np.array(theirs[key]), tolerance)
        for what, key, ours, tolerance in (
            ("norm", "norm64", np.sqrt((gradient**2).sum()), spread),
            ("mean", "mean", gradient.mean(), each),
            ("projection", "probe", (gradient * direction).sum(), spread),
        )
    ]
