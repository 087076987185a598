"""Every recorded training of a directory, replayed, measured and judged."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pfcn_jax.errors import UserError
from pfcn_jax.models.panoptic_fcn import PanopticFCN
from pfcn_jax.optim.rules import frozen_mask, learning_rate_schedule
from pfcn_jax.panoptic.targets import assign_levels
from pfcn_jax.studies.parity.gradients import original_layout_of
from pfcn_jax.studies.parity.network import load_model
from pfcn_jax.studies.parity.reference import Check, check
from pfcn_jax.studies.parity.trace import (
    Replay,
    Step,
    Trace,
    compile_step,
    read_trace,
    replay,
    start_state,
    trace_files,
)
from pfcn_jax.studies.parity.trace_judge import (
    FLOOR,
    TIMES,
    Again,
    difference,
    judge,
    missed_steps,
    nearest,
    own_difference,
)
from pfcn_jax.studies.parity.trace_parameters import Layout, Measure, Moved, ParameterRow
from pfcn_jax.studies.parity.trace_predictions import PredictionRow, compare_predictions
from pfcn_jax.studies.parity.trace_variants import VARIANTS, replay_in_float64, replay_variant

PyTree = Any
RATE = 2e-6  # relative, float32 against float64
MOVED_RUNS = 12  # where the original has no float64 run
EXACT = 1e-7  # relative, float64 against float64: masks are resampled in float32 there and in float64 here
IN_FLOAT64 = "float64"  # a variant, too: in a process of its own


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A recorded training and ours."""

    trace: Trace
    replay: Replay
    checks: list[Check]
    parameters: list[ParameterRow]
    predictions: list[PredictionRow]  # empty if the file has none
    missed: list[int]  # steps in which float32 is not within what is allowed: judged again
    moved: list[np.ndarray]  # losses [steps, 4] of replays from moved parameters, if they judged
    variants: dict[str, np.ndarray]  # losses [n, 4]


def study_traces(reference: pathlib.Path, *, names: Sequence[str] = (), variants: Sequence[str] = ()) -> list[Outcome]:
    """Replays every `trace*.npz` of a directory.

    Args:
      reference: a reference data directory, or its folder of traces.
      names: only these.
      variants: "TRACE/VARIANT", with a key of VARIANTS or "float64": also replays that trace so.

    Raises:
      UserError: there is no such file or variant, or nothing to make the weights from.
    """
    paths = {path.stem: path for path in trace_files(reference)}
    known = [f"{trace}/{variant}" for trace in paths for variant in (*VARIANTS, IN_FLOAT64)]
    for wanted, there in ((names, [*paths]), (variants, known)):
        if missing := sorted(set(wanted) - set(there)):
            raise UserError(f"{reference}: no {', '.join(missing)}; there are {', '.join(there) or 'no traces'}")
    outcomes = []
    for name in names or paths:
        of_this = [variant.split("/")[1] for variant in variants if variant.startswith(f"{name}/")]
        outcomes.append(study_trace(paths[name], weights_folder(reference), variants=of_this))
        print(f"{name}: {len(outcomes[-1].replay.losses)} steps, float32 misses {outcomes[-1].missed}", flush=True)
    return outcomes


def weights_folder(reference: pathlib.Path) -> pathlib.Path:
    """The directory that the reproducible weights are made from: this one, or the one above a folder of traces."""
    for folder in (reference, reference.parent):
        if (folder / "weights.py").is_file() and (folder / "tensors").is_dir():
            return folder
    raise UserError(f"{reference}: no weights.py and tensors/ here or above; the weights of a trace are made from them")


def study_trace(
    path: pathlib.Path, weights: pathlib.Path, *, steps: int | None = None, variants: Sequence[str] = ()
) -> Outcome:
    """Replays one file.

    Args:
      weights: the reference data directory.
      steps: only the first so many.
    """
    trace = read_trace(path)
    model, variables = load_model(weights, trace.variant)
    measure = Measure(trace, variables["params"], original_layout_of(weights, trace.variant, variables))
    state = start_state(variables, model, trace.config)
    whole = steps is None
    step = compile_step(model, trace.config)
    ours, last = replay(trace, step, state, steps=steps, final=whole, observe=measure)
    missed, again, moved = missed_steps(ours.losses, trace.losses), None, []
    if missed and len(trace.losses.get("float64", ())) >= missed[-1]:
        exact = replay_in_float64(path, weights, missed[-1]).losses
        again = Again("in float64", difference(exact, trace.losses["float64"]))
    elif missed:
        layout = measure.layout
        moved = [_replay_moved(trace, step, variables, model, layout, missed[-1], seed) for seed in range(MOVED_RUNS)]
        found = nearest([losses for losses, _ in moved], trace.losses["float32"])
        again = Again(f"nearest of {MOVED_RUNS} moved runs", found)
    checks = judge(trace.recorded.name, ours.losses, trace.losses, again)
    checks += [*_check_steps(trace, ours), *measure.checks([parameters for _, parameters in moved])]
    predictions: list[PredictionRow] = []
    if whole and "final/losses" in trace.recorded:
        predictions = compare_predictions(trace, model, last.variables)
        checks.append(_check_final(trace, ours))
    others = {}
    for name in variants:
        if name == IN_FLOAT64:
            exact_run = replay_in_float64(path, weights, trace.steps)
            others[name] = exact_run.losses
            checks += _check_exact(trace, exact_run)
        else:
            others[name] = replay_variant(name, trace, model, variables).losses
    return Outcome(trace, ours, checks, measure.rows(), predictions, missed, [losses for losses, _ in moved], others)


def _replay_moved(
    trace: Trace, step: Step, variables: PyTree, model: PanopticFCN, layout: Layout, steps: int, seed: int
) -> tuple[np.ndarray, dict[int, Moved]]:
    """Losses and parameters of a replay from parameters that are moved by one unit in their last place, at random."""
    random = np.random.default_rng(seed)

    def move(value: jax.Array, frozen: bool) -> jax.Array:
        up = random.random(value.shape) < 0.5
        moved = np.nextafter(value, np.where(up, np.inf, -np.inf).astype(np.float32))
        return value if frozen else jnp.asarray(moved)

    params = variables["params"]
    params = jax.tree.map(move, params, frozen_mask(params, (*model.frozen_paths(), *trace.config.optim.frozen)))
    measure = Measure(trace, params, layout)
    state = start_state({**variables, "params": params}, model, trace.config)
    ours, _ = replay(trace, step, state, steps=steps, final=False, observe=measure)
    return ours.losses, measure.moved


def _check_exact(trace: Trace, ours: Replay) -> list[Check]:
    """Every loss and the gradient's norm in float64 against the original's float64 run, in the steps that both have."""
    if "float64" not in trace.losses:
        return []
    found = difference(ours.losses, trace.losses["float64"])[:, 0]
    norms = ours.grad_norm[: len(found)] / trace.recorded["float64/grad_norm"] - 1.0
    return [
        check(trace.recorded.name, f"{what} in float64, steps 1 to {len(found)}", values, np.zeros_like(found), EXACT)
        for what, values in (("every loss", found), ("norm of the gradient", norms))
    ]


def _check_steps(trace: Trace, ours: Replay) -> list[Check]:
    """Learning rates and numbers of positives."""
    name, steps, train = trace.recorded.name, len(ours.losses), trace.config.train
    schedule = learning_rate_schedule(trace.config.optim, steps=train.steps, batch_size=train.batch_size)
    rates = np.array([float(schedule(jnp.int32(step))) for step in range(steps)])
    recorded = trace.recorded["float32/lr"][:steps]
    positives = np.resize([positives_of_boxes(trace, index) for index in range(len(trace.batches))], steps)
    return [
        check(name, "learning rates (relative)", rates / recorded, np.ones_like(recorded), RATE),
        check(name, "positives: no mask has vanished", ours.positives, positives, 0.0),
    ]


def positives_of_boxes(trace: Trace, index: int) -> int:
    """The (instance, level) pairs of a batch as the original counts them: by the boxes, whatever the masks."""
    segments = trace.batches[index].segments
    instances = segments.valid & segments.is_thing & ~segments.is_crowd
    levels = assign_levels(segments.box.reshape(-1, 4), trace.config.targets.level_ranges)
    return int(jnp.sum(levels & instances.reshape(-1)[:, None]))


def _check_final(trace: Trace, ours: Replay) -> Check:
    """The total loss of every batch after the last update, within what single steps of the trace are allowed."""
    found = difference(ours.final_losses, trace.recorded["final/losses"])[:, 1]
    limit = max(TIMES * own_difference(trace.losses)[:, 1].max(), FLOOR)
    return check(trace.recorded.name, "final total of every batch (relative)", found, np.zeros_like(found), limit)
