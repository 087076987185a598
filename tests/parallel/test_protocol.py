"""An error of one process is raised on all, with its class and its code."""

from __future__ import annotations

import contextlib

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from pfcn_jax.errors import ConfigError, TryAgain, UserError
from pfcn_jax.parallel.protocol import raise_together

FULL = UserError("no room\nfree some", code="disk")
BUSY = TryAgain("in use")


def raised_on_all(monkeypatch, *problems: UserError | None) -> list[UserError]:
    """The errors of `raise_together` on processes with these problems; each sends its own message to all."""
    sent: list[np.ndarray] = []

    def send(message: np.ndarray) -> np.ndarray:
        sent.append(message)
        return np.stack(rows or [message])

    monkeypatch.setattr(jax, "process_count", lambda: len(problems))
    monkeypatch.setattr(multihost_utils, "process_allgather", send)
    rows: list[np.ndarray] = []
    for problem in problems:  # what each sends
        with contextlib.suppress(UserError):
            raise_together(problem)
    rows = list(sent)
    errors = []
    for problem in problems:
        with pytest.raises(UserError) as caught:
            raise_together(problem)
        errors.append(caught.value)
    return errors


@pytest.mark.parametrize(
    ("problems", "kind", "code"),
    [
        ((None, FULL), UserError, "disk"),
        ((FULL, FULL), UserError, "disk"),
        ((None, BUSY, FULL), TryAgain, "try-again"),  # the first
        ((UserError("x" * 5000), None), UserError, "usage"),
        ((None, ConfigError("config.x: no")), UserError, "config"),
    ],
)
def test_every_process_raises_the_first_problem(monkeypatch, problems, kind, code):
    first = next(problem for problem in problems if problem)
    for error in raised_on_all(monkeypatch, *problems):
        assert type(error) is kind and error.code == code
        assert str(error) == str(first)[: len(str(error))] and len(str(error)) >= min(len(str(first)), 1900)


def test_nothing_is_raised_without_a_problem(monkeypatch):
    raise_together(None)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda message: np.stack([message, message]))
    raise_together(None)


def test_a_single_process_raises_its_own_error():
    for problem in (FULL, BUSY, ConfigError("config.x: no")):
        with pytest.raises(UserError) as caught:
            raise_together(problem)
        assert caught.value is problem
