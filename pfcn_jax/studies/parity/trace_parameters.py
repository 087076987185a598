"""How far parameters have moved in a replay, against the same measures of the original's runs.

Of every parameter a recorded file has the norm of its difference from its start, and that difference's projection on a
random direction that is drawn from its name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pfcn_jax.optim.rules import learning_rate_schedule
from pfcn_jax.optim.state import TrainState
from pfcn_jax.studies.parity.reference import Check, direction_of
from pfcn_jax.studies.parity.trace import Trace, momentum_of
from pfcn_jax.studies.parity.trace_judge import AGREED, TIMES, own_difference, steps_within

PyTree = Any
Layout = Callable[[PyTree], Mapping[str, np.ndarray]]  # parameters -> the original's names and layouts
FIRST_UPDATE = 1e-3  # of an update's norm, in float32 against float64: the median over all parameters


@dataclasses.dataclass(frozen=True)
class Moved:
    """Norm and projection of the difference of every trained parameter from its start, in the file's order."""

    norm: np.ndarray
    probe: np.ndarray

    def apart(self, other: Moved) -> tuple[np.ndarray, np.ndarray]:
        """Relative differences from `other`: of the norms, and of the projections (relative to the norm)."""
        return np.abs(self.norm / other.norm - 1.0), np.abs(self.probe - other.probe) / other.norm


class Measure:
    """An observer of a replay: measures the parameters after the steps that were recorded."""

    def __init__(self, trace: Trace, start: PyTree, layout: Layout):
        self.trace, self.layout = trace, layout
        names, trained = trace.recorded.json("param_names"), trace.recorded["param_trained"]
        self.names = [name for name, used in zip(names, trained, strict=True) if used]
        self.start = {name: values.astype(np.float64) for name, values in layout(start).items() if name in self.names}
        self.moved: dict[int, Moved] = {}
        self.first_update: Moved | None = None

    def __call__(self, step: int, state: TrainState) -> None:
        if step == 1:  # the parameters themselves do not show it: it is less than their last place
            optim, train = self.trace.config.optim, self.trace.config.train
            rate = learning_rate_schedule(optim, steps=train.steps, batch_size=train.batch_size)(0)
            momentum = self.layout(momentum_of(state))
            self.first_update = self._moved(
                {name: -float(rate) * momentum[name].astype(np.float64) for name in self.names}
            )
        elif step in self.trace.recorded_steps:
            now = self.layout(state.params)
            self.moved[step] = self._moved({name: now[name] - self.start[name] for name in self.names})

    def _moved(self, delta: Mapping[str, np.ndarray]) -> Moved:
        norm = [np.sqrt((delta[name] ** 2).sum()) for name in self.names]
        return Moved(
            np.array(norm), np.array([(delta[name] * direction_of(name, delta[name].shape)).sum() for name in delta])
        )

    def recorded(self, run: str, step: int) -> Moved | None:
        """The same measures of one of the original's runs, if it has them."""
        key = f"{run}/step{step}/"
        if f"{key}delta_norm" not in self.trace.recorded:
            return None
        trained = self.trace.recorded["param_trained"]
        return Moved(*(self.trace.recorded[f"{key}delta_{what}"][trained] for what in ("norm", "probe")))

    def rows(self) -> list[ParameterRow]:
        """Ours and the original's other runs against its float32 run, at every recorded step."""
        rows = []
        for step, ours in self.moved.items():
            rows.append(self.row("ours", step, ours))
            for run in self.trace.losses:
                other = self.recorded(run, step)
                if run != "float32" and other is not None:
                    rows.append(self.row(run, step, other))
        return rows

    def row(self, run: str, step: int, moved: Moved) -> ParameterRow:
        """A run against the original's float32 run, at a recorded step."""
        base = self.recorded("float32", step)
        assert base is not None
        return ParameterRow.of(run, step, moved, base)

    def checks(self, others: Sequence[Mapping[int, Moved]] = ()) -> list[Check]:
        """The median parameter: the first update against float64, later as near as the original's runs, times TIMES.

        Only while the losses of the original's runs agree to AGREED; beyond, its parameters are one outcome of many.

        Args:
          others: the same measures of replays whose parameters were moved: the nearest counts where ours is not within.
        """
        name, rows, checks = self.trace.recorded.name, self.rows(), []
        exact = self.recorded("float64", 1)
        if exact is not None and self.first_update is not None:
            norm, probe = (float(np.median(values)) for values in self.first_update.apart(exact))
            for what, value in (("norm", norm), ("projection", probe)):
                title = f"first update against float64, {what}"
                checks.append(Check(name, title, value, FIRST_UPDATE, value <= FIRST_UPDATE))
        agreed = steps_within(own_difference(self.trace.losses)[:, 1:], AGREED)
        for step in (step for step in self.moved if step <= agreed):
            here = [row for row in rows if row.step == step]
            for what in ("norm", "probe"):
                ours, *theirs = (getattr(row, what)[0] for row in here)
                limit, title = TIMES * max(theirs), f"parameters after step {step}, {what}"
                moved = [getattr(self.row("moved", step, other[step]), what)[0] for other in others if step in other]
                if ours > limit and moved:
                    ours, title = min(moved), f"{title}, nearest of {len(moved)} runs"
                checks.append(Check(name, title, ours, limit, ours <= limit))
        return checks


@dataclasses.dataclass(frozen=True)
class ParameterRow:
    """How far the parameters of a run are from the original's float32 run: (median, largest) over all trained ones."""

    run: str
    step: int
    norm: tuple[float, float]
    probe: tuple[float, float]

    @classmethod
    def of(cls, run: str, step: int, moved: Moved, base: Moved) -> ParameterRow:
        norm, probe = moved.apart(base)
        return cls(run, step, (float(np.median(norm)), norm.max()), (float(np.median(probe)), probe.max()))
