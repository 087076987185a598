"""Judges a replay against the recorded runs of the original, which differ among themselves: NumPy only.

Training is chaotic: a rounding in the first step grows, tenfold a step at a high learning rate. So the measure of a
difference is how far the original's own runs (float32, float64, parameters moved by one unit in the last place) have
parted by then.

The network's gradient jumps where a rectified value is 0, and a float32 replay rounds some value of some step to the
other side than all of the few recorded runs. So steps that it misses are judged again: by a replay in float64 against
the original's, or by the nearest of several replays whose parameters were moved as the original's were.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from pfcn_jax.studies.parity.reference import Check

TIMES = 3.0  # allowed: so many times the largest difference of the original from itself so far
FLOOR = 1e-5  # or this, where the original agrees better
AGREED = 1e-3  # single steps are judged up to the last one at which the original's runs agree to this
WINDOW = 10  # steps of a mean, judged beyond
LIMITS = (1e-5, 1e-4, 1e-3, 1e-2)
JUDGED = ("largest of the four losses", "total loss")

Losses = Float[np.ndarray, "n 4"]
Differences = Float[np.ndarray, "n 2"]  # relative: of the loss that differs most, and of the total


@dataclasses.dataclass(frozen=True)
class Again:
    """A second judgement of the steps that a float32 replay misses, up to the last of them."""

    how: str
    differences: Differences


def difference(losses: Losses, base: Losses) -> Differences:
    """|losses - base| / base of the loss that differs most and of the total, in every step that both have."""
    steps = min(len(losses), len(base))
    each = np.abs(losses[:steps] / base[:steps] - 1.0)
    total = np.abs(losses[:steps].sum(axis=1) / base[:steps].sum(axis=1) - 1.0)
    return np.stack([each.max(axis=1), total], axis=1)


def own_difference(runs: Mapping[str, Losses], window: int = 1) -> Differences:
    """The largest relative difference between any two runs of the original, in every step (or mean of steps).

    A run that ends early counts as far as it goes.
    """
    means = [windowed(losses, window) for losses in runs.values()]
    largest = np.zeros((max(len(run) for run in means), len(JUDGED)))
    for one, other in itertools.combinations(means, 2):
        found = difference(one, other)
        largest[: len(found)] = np.maximum(largest[: len(found)], found)
    return largest


def windowed(losses: Losses, window: int) -> Losses:
    """Means of `window` steps; steps that do not fill the last window are left out."""
    whole = len(losses) // window * window
    return losses[:whole].reshape(-1, window, losses.shape[1]).mean(axis=1)


def allowed(own: Differences) -> Differences:
    """How far a replay may be from the original, in every step: TIMES the largest own difference so far, or FLOOR."""
    return np.maximum(TIMES * np.maximum.accumulate(own, axis=0), FLOOR)


def steps_within(differences: Differences, limit: float) -> int:
    """The number of steps from the start in which every loss and the total are within `limit`."""
    outside = np.flatnonzero((differences > limit).any(axis=1))
    return int(outside[0]) if len(outside) else len(differences)


def agreed_steps(own: Differences) -> tuple[int, ...]:
    """The last step at which the original's runs agree to AGREED, for each of JUDGED."""
    return tuple(int(np.flatnonzero(column <= AGREED).max(initial=-1)) + 1 for column in own.T)


def missed_steps(losses: Losses, runs: Mapping[str, Losses]) -> list[int]:
    """The steps (from 1) that are judged one by one and not within what is allowed."""
    own = own_difference(runs)[: len(losses)]
    found = difference(losses, runs["float32"])
    judged = np.arange(len(found))[:, None] < np.array(agreed_steps(own))[None]
    return (np.flatnonzero((judged & ~(found <= allowed(own))).any(axis=1)) + 1).tolist()


def nearest(replays: Sequence[Losses], base: Losses) -> Differences:
    """The smallest difference of any of several replays, in every step."""
    return np.min([difference(losses, base) for losses in replays], axis=0)


def judge(name: str, losses: Losses, runs: Mapping[str, Losses], again: Again | None = None) -> list[Check]:
    """Two checks for each of JUDGED: single steps, then means of WINDOW steps.

    Args:
      name: of the recorded file.
      losses: ours, of all steps or of the first few.
      runs: the original's, "float32" among them: ours is compared with that one.
      again: takes the place of ours in the steps of `missed_steps`.
    """
    runs = {run: values[: len(losses)] for run, values in runs.items()}
    own, found, note = own_difference(runs), difference(losses, runs["float32"]), ""
    if again is not None:
        missed = np.array(missed_steps(losses, runs)) - 1
        found[missed] = again.differences[missed]
        note = f", {again.how} in {len(missed)} steps"
    windows = difference(windowed(losses, WINDOW), windowed(runs["float32"], WINDOW))
    limits, window_limits = allowed(own), allowed(own_difference(runs, WINDOW)) if len(windows) else windows
    checks = []
    for column, what in enumerate(JUDGED):
        agreed = agreed_steps(own)[column]
        title = f"{what}: steps 1 to {agreed}{note}"
        checks.append(_worst(name, title, found[:agreed, column], limits[:agreed, column]))
        first = agreed // WINDOW  # the first window that reaches beyond
        if first < len(windows):
            title = f"{what}: means of {WINDOW} steps from {first * WINDOW + 1} to {len(windows) * WINDOW}"
            checks.append(_worst(name, title, windows[first:, column], window_limits[first:, column]))
    return checks


def _worst(name: str, title: str, found: np.ndarray, limits: np.ndarray) -> Check:
    """The step that uses most of what it is allowed; a NaN is never ok."""
    if not len(found):
        return Check(name, title, 0.0, 0.0, True)
    worst = int(np.argmax(np.where(np.isnan(found), np.inf, found / limits)))
    return Check(name, title, float(found[worst]), float(limits[worst]), bool(found[worst] <= limits[worst]))
