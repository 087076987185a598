"""Failure policy of a run: what is kept, and what ends it.

| event                                      | kept                             | the run                              |
|--------------------------------------------|----------------------------------|--------------------------------------|
| SIGTERM, SIGINT                            | a checkpoint of the last step    | ends with `Stopped`, exit status 75  |
| non-finite step, `train.on_nonfinite=stop` | checkpoints of the steps before  | ends with `NonFiniteError`           |
| training input cannot be read              | a checkpoint, by a single process| ends with the error of the input     |
| validation example cannot be read          | everything                       | continues; ends at the last step     |
| evaluation cannot be written               | a checkpoint, by a single process| ends with `UserError`                |
| checkpoint or metrics cannot be written    | the older checkpoints            | continues and retries                |
| last checkpoint cannot be written          | the older checkpoints            | ends with `UserError`                |

After each of these the same command continues from the newest checkpoint. `monitor` decides about single steps (skipped
updates, broken training examples); several processes end together, at the places where they talk (parallel/protocol).
"""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Callable
from typing import NoReturn

import jax

from pfcn_jax.checkpoints.manager import Checkpoints
from pfcn_jax.config.schema import Config
from pfcn_jax.data.example import DataError
from pfcn_jax.errors import Stopped, UserError
from pfcn_jax.parallel.protocol import raise_together
from pfcn_jax.training.monitor import NonFiniteError, StepMonitor
from pfcn_jax.training.signals import StopRequest
from pfcn_jax.utils.stderr import print_lines


class FailurePolicy:
    """Ends a run, or lets it continue, after saving what can be saved.

    Args:
      save: starts a checkpoint of a step (`Trainer.save`).
    """

    def __init__(
        self,
        config: Config,
        workdir: pathlib.Path,
        checkpoints: Checkpoints,
        monitor: StepMonitor,
        save: Callable[[int], None],
    ):
        self._config, self._workdir = config, workdir
        self._checkpoints, self._monitor, self._save = checkpoints, monitor, save

    def stop(self, step: int, request: StopRequest) -> NoReturn:
        """Ends a run that was asked to stop, once the checkpoint of `step` is on disk."""
        self.ensure_saved(step)
        raise Stopped(
            f"stopped by {request.signal_name or 'a signal to another process'} after step {step}; its checkpoint is "
            f"written, the same command continues ({self._workdir})"
        )

    def end_after(self, step: int, request: StopRequest, error: Exception) -> NoReturn:
        """Ends a run whose input or step raised `error` after `step`; a single process saves its progress first."""
        if isinstance(error, NonFiniteError):
            raise error
        if jax.process_count() == 1 and step > 0 and isinstance(error, (UserError, OSError, RuntimeError)):
            with contextlib.suppress(DataError):
                self._monitor.read()
            with contextlib.suppress(NonFiniteError):
                self._save(step)
                self._checkpoints.wait()
            if request:  # the signal that asks to stop also ends the workers of the input
                self.stop(step, request)
        if isinstance(error, DataError) and self._config.data.on_broken == "stop":
            skip = "--config.data.on_broken=skip goes on without it"
            raise DataError(f"{error}; {skip}\n{self.last_checkpoint()}", kind=error.kind) from error
        raise error

    def skip_evaluation(self, step: int, error: DataError) -> None:
        """Lets training continue without the evaluation of `step`; raises the error after the last step.

        So does one of several processes: the others are in the middle of their evaluation.
        """
        if step >= self._config.train.steps or jax.process_count() > 1:
            raise error
        print_lines(f"step {step} is not evaluated, the training goes on: {error}")

    def end_evaluation(self, step: int, error: OSError) -> NoReturn:
        """Ends a run whose evaluation cannot be written; the same command repeats the evaluation."""
        self._checkpoints.wait()
        if jax.process_count() == 1:  # the others are in their evaluation, and would not answer
            self.ensure_saved(step)
        raise UserError(
            f"the evaluation of step {step} cannot be written ({error}); the same command again evaluates it",
            code="disk",
        ) from error

    def ensure_saved(self, step: int) -> None:
        """Raises UserError on every process unless the checkpoint of `step` is on disk; retries the write once."""
        self._checkpoints.wait()
        problem = None
        if jax.process_index() == 0 and not self._checkpoints.has(step):
            self._save(step)
            self._checkpoints.wait()
            if not self._checkpoints.has(step):
                problem = UserError(
                    f"the checkpoint of step {step} cannot be written ({self._checkpoints.problem}). "
                    f"{self.last_checkpoint()} Make room and start the same command again: it continues from there",
                    code="disk",
                )
        raise_together(problem)

    def last_checkpoint(self) -> str:
        """One sentence that names the newest checkpoint."""
        self._checkpoints.wait()
        try:
            steps = self._checkpoints.steps()
        except OSError as error:
            return f"The checkpoints cannot be listed now ({error.strerror})."
        return f"The last checkpoint is of step {steps[-1]}." if steps else "There is no checkpoint yet."
