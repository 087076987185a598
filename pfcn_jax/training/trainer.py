"""Trains a config to its last step, with checkpoints and evaluations; started again, it resumes."""

from __future__ import annotations

import contextlib
import functools
import json
import pathlib
import sys

import jax
import numpy as np
from jax.sharding import Mesh

from pfcn_jax.checkpoints.format import score_of
from pfcn_jax.checkpoints.manager import Checkpoints
from pfcn_jax.config.schema import Config, to_json
from pfcn_jax.data.example import DataError, Example, Source
from pfcn_jax.data.inputs import evaluation_split, train_pipeline
from pfcn_jax.data.pipeline import BatchIterator
from pfcn_jax.errors import UserError
from pfcn_jax.evaluation.evaluate import EvaluationResult, configured_metrics
from pfcn_jax.evaluation.provenance import provenance
from pfcn_jax.models.panoptic_fcn import PanopticFCN
from pfcn_jax.optim.rules import learning_rate_schedule
from pfcn_jax.panoptic.predict import Prediction
from pfcn_jax.parallel.prefetch import DevicePrefetch, Interrupted
from pfcn_jax.parallel.protocol import StopFlags, number_of_process_0
from pfcn_jax.parallel.sharding import data_mesh, shard_batch, this_process
from pfcn_jax.training.cadence import Cadence
from pfcn_jax.training.collaborators import Collaborators, EvaluationTask
from pfcn_jax.training.failures import FailurePolicy
from pfcn_jax.training.monitor import NonFiniteError, StepMonitor
from pfcn_jax.training.restore import check_batch_size, lock_workdir, restore_or_initialize, write_config
from pfcn_jax.training.signals import StopRequest
from pfcn_jax.training.telemetry import MetricsWriter, StepTimer, format_losses
from pfcn_jax.utils.atomic import write_json
from pfcn_jax.utils.progress import ProgressDisplay
from pfcn_jax.utils.stderr import print_lines
from pfcn_jax.viz.preview import PreviewWriter

DEFAULTS = Collaborators()


class Trainer:
    """One run: everything that a config and a working directory describe, and the training loop.

    The working directory is locked until `close`.
    """

    def __init__(self, config: Config, workdir: pathlib.Path, collaborators: Collaborators = DEFAULTS):
        """Opens the data, builds the model, and restores the newest checkpoint or initializes a state.

        Raises:
          UserError: the config, the data or the checkpoints cannot be used, or another process holds `workdir`.
        """
        self.config, self.workdir, self.collaborators = config, workdir, collaborators
        check_batch_size(config.train)
        self.mesh: Mesh = data_mesh()
        self.cadence = Cadence.from_options(config.train)
        self.metrics: MetricsWriter | None = None  # open during `run`, on process 0
        self._stop_flags = StopFlags(self.mesh)
        self._resources = contextlib.ExitStack()  # released by `close`, the last one first
        if lock := lock_workdir(workdir):
            self._resources.callback(lock.release)
        try:
            self._open_data()
            self.model: PanopticFCN = collaborators.build_model(config.model, *self.source.classes.counts)
            train = config.train
            self.checkpoints = Checkpoints(workdir, keep_latest=train.keep_latest, keep_best=train.keep_best)
            self._resources.callback(self.checkpoints.close)
            self.state, counts = restore_or_initialize(
                config,
                functools.partial(collaborators.create_state, config, self.model, self.mesh),
                self.mesh,
                classes=self.source.classes,
                checkpoints=self.checkpoints,
                batches=self.batches,
            )
            self.monitor = StepMonitor(config, self.source, self.pipeline.plan, counts)
            self.failures = FailurePolicy(config, workdir, self.checkpoints, self.monitor, self.save)
            self.step = collaborators.build_step(config, self.model, self.mesh)
        except BaseException:
            self.close()
            raise

    def _open_data(self) -> None:
        config, collaborators = self.config, self.collaborators
        self.source: Source = collaborators.open_training(config.data)
        collaborators.open_evaluation(config.data, 1, classes=self.source.classes)  # fail now, not at the first score
        configured_metrics(config)  # likewise
        self.pipeline = train_pipeline(
            config.data, self.source, batch_size=config.train.batch_size, seed=config.seed, process=this_process()
        )
        self.batches: BatchIterator = iter(self.pipeline)
        self._resources.callback(self.batches.close)

    def run(self, stop: StopRequest | None = None) -> EvaluationResult:
        """Trains to the last step and returns the final evaluation.

        Args:
          stop: a request that already listens to signals; None: listen from here on.

        Raises:
          Stopped: SIGTERM or SIGINT came; a checkpoint of the last step is written.
          UserError: the run cannot go on, or its last checkpoint cannot be written.
        """
        start = int(self.state.step)
        with contextlib.ExitStack() as stack:
            if stop is None:  # not `if stop`: a request is false until a signal comes
                stop = stack.enter_context(StopRequest())
            stack.callback(self.close)
            if jax.process_index() == 0:
                write_config(self.workdir, self.config)
            overdue = self._evaluation_is_overdue(start)
            if jax.process_index() == 0 and (overdue or not self.cadence.is_last(start)):
                self.metrics = self._open_metrics(start, scored=not overdue)
                stack.callback(self.metrics.close)
            result = self._evaluate_after(start, stop) if overdue else None
            if not self.cadence.is_last(start):
                try:
                    result = self._train(start, stop)
                except NonFiniteError as error:
                    raise NonFiniteError(f"{error}\n{self.failures.last_checkpoint()}") from error
            return result or self.evaluate(start, everything=True, stop=stop)

    def _train(self, start: int, stop: StopRequest) -> EvaluationResult | None:
        """The training loop. Returns the evaluation of the last step."""
        step, result, several = start, None, jax.process_count() > 1
        timer = StepTimer(self.config.train.batch_size, start, clock=self.collaborators.clock)
        with (
            self._prefetch(start, None if several else stop) as batches,
            contextlib.closing(ProgressDisplay(self.cadence.steps, start=start)) as display,
        ):
            while not self.cadence.is_last(step):
                try:
                    batch = next(batches)
                    self.state, scalars, report = self.step(self.state, batch, self._stop_flags(bool(stop)))
                    del batch  # so that the traceback of an error does not hold it
                    batches.idle_after = scalars["loss"]
                    step += 1
                    self.monitor.add(step, scalars, report)
                except Interrupted:  # a signal came while waiting for a batch
                    self.failures.stop(step, stop)
                except Exception as error:
                    self.failures.end_after(step, stop, error)
                stopping = self.monitor.stop if several else bool(stop)  # several processes stop after the same step
                due = self.cadence.after(step, stopping=stopping)
                if due.log:
                    values = {key: float(value) for key, value in jax.device_get(scalars).items()}
                    self.monitor.read()
                    values |= timer.lap(step, batches.waited_seconds)
                    self._log(step, values, display)
                if due.save:
                    self.save(step)
                if stopping:
                    self.failures.stop(step, stop)
                if due.evaluate:
                    result = self._evaluate_after(step, stop)
                    timer.restart(step, batches.waited_seconds)
        self.failures.ensure_saved(step)
        return result

    def save(self, step: int) -> None:
        """Starts a checkpoint in the background, once all steps so far are known to be finite.

        Raises:
          NonFiniteError, DataError: see `StepMonitor.read`.
        """
        self.monitor.read()
        if self.metrics:
            self.metrics.sync()  # a run that resumes here does not log these steps again
        self.checkpoints.save(
            step,
            model=self.state.model,
            training=self.state.training,
            meta={
                "config": json.loads(to_json(self.config)),
                "classes": self.source.classes.to_json(),
                "position": self.batches.get_state() | {"batch": step},
                "counts": self.monitor.to_json(),
            },
        )

    def evaluate(self, step: int, *, everything: bool, stop: StopRequest | None = None) -> EvaluationResult:
        """Scores the validation split and records the scores.

        Args:
          everything: the whole split, with all metrics, preview images and evaluation.json; otherwise PQ of
            `train.eval_examples`.

        Raises:
          Stopped: a single process was asked to stop.
          UserError: the scores cannot be written.
        """
        data, train = self.config.data, self.config.train
        limits = [data.eval_examples] if everything else [data.eval_examples, train.eval_examples]
        examples = min((limit for limit in limits if limit), default=0)
        source = self.collaborators.open_evaluation(data, examples, classes=self.source.classes)
        preview = PreviewWriter(self.workdir / "pictures", source.classes, train.preview_images if everything else 0)

        def on_example(example: Example, prediction: Prediction) -> None:
            if stop and jax.process_count() == 1:
                self.failures.stop(step, stop)
            preview(example, prediction)

        task = EvaluationTask(
            step, self.state.model, self.model, source, self.config, self.mesh, everything, on_example
        )
        try:
            result = self.collaborators.evaluate(task)
            if everything and jax.process_index() == 0:
                facts = {"step": step, "evaluated": provenance(self.config, evaluation_split(data))}
                write_json(self.workdir / "evaluation.json", facts | result.to_dict())
        except OSError as error:
            self.failures.end_evaluation(step, error)
        self._record(step, result)
        if everything and jax.process_index() == 0:
            print_lines(*result.lines(), to=sys.stdout)
        return result

    def close(self) -> None:
        """Waits for the checkpoint in progress, ends the workers and unlocks the working directory."""
        self._resources.close()

    def _prefetch(self, start: int, stop: StopRequest | None) -> DevicePrefetch:
        put = functools.partial(shard_batch, mesh=self.mesh)
        return self.collaborators.prefetch(self.batches, put, limit=self.cadence.steps - start, stop=stop)

    def _open_metrics(self, start: int, *, scored: bool) -> MetricsWriter:
        try:
            return MetricsWriter(self.workdir, start=start, scored=scored)
        except OSError as error:
            raise UserError(
                f"{self.workdir / 'metrics.jsonl'}: cannot be written ({error.strerror})", code="disk"
            ) from error

    def _log(self, step: int, values: dict[str, float], display: ProgressDisplay) -> None:
        """Adds counts and the learning rate to the metrics of a step, and writes and shows them."""
        train = self.config.train
        rate = learning_rate_schedule(self.config.optim, steps=train.steps, batch_size=train.batch_size)
        counts = self.monitor.totals()
        updates = step - int(counts["skipped_steps"])  # a skipped step does not advance the schedule
        failed_writes = self.checkpoints.failures + (self.metrics.failures if self.metrics else 0)
        values |= {"learning_rate": float(rate(np.int32(max(updates - 1, 0)))), **counts}
        values["failed_writes"] = float(failed_writes)
        if self.metrics:
            self.metrics.write(step, values)
        display.update(step, format_losses(values))
        self.checkpoints.poll()

    def _record(self, step: int, result: EvaluationResult) -> None:
        """Writes the scores to the metrics, then to the checkpoint: a step with a score is not evaluated again."""
        if self.metrics:
            self.metrics.write(step, {f"eval/{name}": value for name, value in result.figures.items()})
            self.metrics.sync()
        self.checkpoints.score(step, result.pq.all.PQ)

    def _evaluation_is_overdue(self, step: int) -> bool:
        """True if the run was stopped at `step` before the evaluation of that step had ended."""
        if not self.cadence.evaluates(step):
            return False
        missing = score_of(self.checkpoints.directory / str(step)) is None
        return bool(number_of_process_0(int(missing)))

    def _evaluate_after(self, step: int, stop: StopRequest) -> EvaluationResult | None:
        """The evaluation that is due after `step`; None if a broken validation example prevents it."""
        try:
            return self.evaluate(step, everything=self.cadence.is_last(step), stop=stop)
        except DataError as error:
            self.failures.skip_evaluation(step, error)
            return None
