"""When a run logs, writes a checkpoint and evaluates."""

from __future__ import annotations

import dataclasses

from pfcn_jax.config.schema import TrainOptions


@dataclasses.dataclass(frozen=True)
class Due:
    """Actions after a step, in the order of the fields."""

    log: bool
    save: bool
    evaluate: bool


@dataclasses.dataclass(frozen=True)
class Cadence:
    """Intervals in steps, counted from 1; the last step logs, saves and evaluates in any case.

    Attributes:
      steps: number of the last step.
      eval_every: 0: evaluate after the last step only.
    """

    steps: int
    log_every: int
    eval_every: int
    save_every: int

    @classmethod
    def from_options(cls, train: TrainOptions) -> Cadence:
        return cls(train.steps, train.log_every, train.eval_every, train.checkpoint_every)

    def is_last(self, step: int) -> bool:
        return step >= self.steps

    def evaluates(self, step: int) -> bool:
        """True if `step` is followed by an evaluation; there is none before the first step."""
        return step > 0 and (self.is_last(step) or (self.eval_every > 0 and step % self.eval_every == 0))

    def after(self, step: int, *, stopping: bool = False) -> Due:
        """Actions after `step`. A run that is stopping logs and saves now; a restart makes up for its evaluation.

        An evaluation comes with a checkpoint, which keeps its score.
        """
        evaluates = self.evaluates(step)
        return Due(
            log=stopping or self.is_last(step) or step % self.log_every == 0,
            save=stopping or evaluates or step % self.save_every == 0,
            evaluate=evaluates and not stopping,
        )
