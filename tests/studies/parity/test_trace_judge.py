"""The judge of replays: what it lets through and what it does not."""

from __future__ import annotations

import numpy as np
import pytest

from pfcn_jax.studies.parity import trace_judge


def _runs(steps: int = 40, *, spread: float = 1e-4) -> dict[str, np.ndarray]:
    """Two runs that fall from 8 and agree to `spread` times the step's number / steps."""
    base = 8.0 / (1.0 + np.arange(steps)[:, None]) * np.array([[1.0, 0.5, 0.25, 0.125]])
    return {"float32": base, "float32_ulp": base * (1.0 + spread * np.arange(steps)[:, None] / steps)}


def _slow_own(runs, step):
    """The largest difference between two runs at a step, pair by pair: of single losses, and of the total."""
    here = [run[step] for run in runs.values() if step < len(run)]
    pairs = [(one, other) for i, one in enumerate(here) for other in here[i + 1 :]]
    single = [abs(a / b - 1.0) for one, other in pairs for a, b in zip(one, other)]
    total = [abs(sum(one) / sum(other) - 1.0) for one, other in pairs]
    return [max(single, default=0.0), max(total, default=0.0)]


def test_own_difference_pair_by_pair():
    rng = np.random.default_rng(0)
    runs = {name: rng.uniform(1.0, 2.0, (steps, 4)) for name, steps in (("a", 12), ("b", 12), ("c", 5))}
    slow = [_slow_own(runs, step) for step in range(12)]
    np.testing.assert_allclose(trace_judge.own_difference(runs), slow, rtol=1e-12)
    means = {name: [run[i : i + 5].mean(axis=0) for i in range(0, len(run) - 4, 5)] for name, run in runs.items()}
    slow = [_slow_own(means, window) for window in range(2)]
    np.testing.assert_allclose(trace_judge.own_difference(runs, window=5), slow, rtol=1e-12)


def test_as_far_as_the_original_is_from_itself():
    runs = _runs()
    assert all(one.ok for one in trace_judge.judge("f", runs["float32_ulp"], runs))
    three = runs["float32"] + 2.9 * (runs["float32_ulp"] - runs["float32"])
    assert all(one.ok for one in trace_judge.judge("f", three, runs))
    four = runs["float32"] + 4.0 * (runs["float32_ulp"] - runs["float32"])
    assert not any(one.ok for one in trace_judge.judge("f", four, runs))


@pytest.mark.parametrize("column", range(4))
def test_one_loss_in_one_step_is_enough(column):
    runs = _runs()
    ours = runs["float32"].copy()
    ours[3, column] *= 1.0 + 1e-3
    failed = [one.tensor for one in trace_judge.judge("f", ours, runs) if not one.ok]
    assert "largest of the four losses: steps 1 to 40" in failed
    assert trace_judge.missed_steps(ours, runs) == [4]


def test_where_the_original_agrees_exactly_the_floor_counts():
    runs = _runs(spread=0.0)
    assert all(one.ok for one in trace_judge.judge("f", runs["float32"] * (1.0 + 0.9e-5), runs))
    assert not any(one.ok for one in trace_judge.judge("f", runs["float32"] * (1.0 + 1.1e-5), runs))


def test_beyond_the_agreement_means_of_ten_steps_count():
    runs = _runs(spread=1e-1)  # 1e-3 is passed at once
    ours = runs["float32"].copy()
    ours[25] *= 1.05  # one step by more than the runs differ; its window by a tenth of that
    checks = trace_judge.judge("f", ours, runs)
    assert all(one.ok for one in checks)
    assert "total loss: means of 10 steps from 1 to 40" in [one.tensor for one in checks]
    ours[20:30] *= 1.5
    assert not all(one.ok for one in trace_judge.judge("f", ours, runs))


def test_a_nan_is_never_ok():
    runs = _runs()
    ours = runs["float32"].copy()
    ours[5, 0] = np.nan
    assert not all(one.ok for one in trace_judge.judge("f", ours, runs))


def test_the_first_steps_of_a_trace():
    runs = _runs()
    checks = trace_judge.judge("f", runs["float32"][:7], runs)
    assert [one.tensor for one in checks] == [f"{what}: steps 1 to 7" for what in trace_judge.JUDGED]


def test_missed_steps_are_judged_again():
    runs = _runs()
    ours, exact = runs["float32"].copy(), runs["float32"][:6].copy()
    ours[3:6] *= 1.001
    assert trace_judge.missed_steps(ours, runs) == [4, 5, 6]
    assert not all(one.ok for one in trace_judge.judge("f", ours, runs))

    def again(*replays):
        return trace_judge.Again("nearest", trace_judge.nearest(replays, runs["float32"]))

    checks = trace_judge.judge("f", ours, runs, again(exact))
    assert all(one.ok for one in checks) and checks[0].tensor.endswith(", nearest in 3 steps")
    worse, better = exact.copy(), exact.copy()
    worse[5] *= 1.001
    better[3] *= 0.999
    assert not all(one.ok for one in trace_judge.judge("f", ours, runs, again(worse)))
    assert not all(one.ok for one in trace_judge.judge("f", ours, runs, again(better)))
    assert all(one.ok for one in trace_judge.judge("f", ours, runs, again(worse, better)))  # each step by its nearest
    ours[8] *= 1.001  # a step that was missed and not judged again
    with pytest.raises(IndexError):
        trace_judge.judge("f", ours, runs, again(exact))


def test_steps_within():
    differences = np.array([[0.0, 1e-6], [1e-4, 0.0], [1e-7, 1e-7]])
    assert [trace_judge.steps_within(differences, limit) for limit in (1e-7, 1e-5, 1e-3)] == [0, 1, 3]
