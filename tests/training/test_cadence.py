"""When a run logs, saves and evaluates."""

from __future__ import annotations

import pytest

from pfcn_jax.config.schema import TrainOptions
from pfcn_jax.training.cadence import Cadence, Due

EVERY = Cadence(steps=12, log_every=3, eval_every=4, save_every=5)


def _steps(name: str, cadence: Cadence = EVERY) -> list[int]:
    return [step for step in range(1, cadence.steps + 1) if getattr(cadence.after(step), name)]


def test_each_action_has_its_interval_and_an_evaluation_its_checkpoint():
    assert _steps("log") == [3, 6, 9, 12]
    assert _steps("evaluate") == [4, 8, 12]
    assert _steps("save") == [4, 5, 8, 10, 12]


def test_the_last_step_does_everything_whatever_the_intervals_are():
    odd = Cadence(steps=7, log_every=100, eval_every=0, save_every=100)
    for name in ("log", "save", "evaluate"):
        assert _steps(name, odd) == [7]


@pytest.mark.parametrize("step", [1, 4, 12])
def test_a_run_that_stops_logs_and_saves_but_does_not_evaluate(step):
    assert EVERY.after(step, stopping=True) == Due(log=True, save=True, evaluate=False)


def test_evaluations_that_a_restart_has_to_make_up_for():
    assert [step for step in range(13) if EVERY.evaluates(step)] == [4, 8, 12]  # not 0: nothing is trained yet
    assert EVERY.evaluates(13)  # a checkpoint of a longer run


def test_intervals_come_from_the_config():
    train = TrainOptions(steps=9, log_every=2, eval_every=3, checkpoint_every=4)
    assert Cadence.from_options(train) == Cadence(steps=9, log_every=2, eval_every=3, save_every=4)
