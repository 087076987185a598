"""The training loop: runs a config to its end, with checkpoints and evaluations; started again, it continues."""

from __future__ import annotations

import contextlib
import functools
import json
import pathlib
import sys
from typing import Any, NoReturn

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from pfcn_jax.checkpoints.format import score_of
from pfcn_jax.checkpoints.manager import Checkpoints
from pfcn_jax.config.schema import Config, to_json
from pfcn_jax.data.inputs import open_evaluation, open_training, train_pipeline
from pfcn_jax.data.pipeline import BatchIterator
from pfcn_jax.data.sources import DataError, Example, Source
from pfcn_jax.errors import Stopped, UserError
from pfcn_jax.evaluation.evaluate import EvaluationResult, evaluate_model
from pfcn_jax.evaluation.tables import format_table
from pfcn_jax.models.build import build_model
from pfcn_jax.models.panoptic_fcn import PanopticFCN
from pfcn_jax.optim.rules import learning_rate_schedule
from pfcn_jax.optim.state import TrainState
from pfcn_jax.panoptic.predict import Prediction
from pfcn_jax.parallel import distributed
from pfcn_jax.parallel.prefetch import DevicePrefetch, Interrupted
from pfcn_jax.parallel.sharding import data_mesh, replicated, shard_batch
from pfcn_jax.steps import Scalars, train_step
from pfcn_jax.training.monitor import NonFiniteError, Watch, make_report
from pfcn_jax.training.restore import begin, check_division, take_workdir, write_config
from pfcn_jax.training.signals import StopRequest
from pfcn_jax.training.state import build_optimizer
from pfcn_jax.training.telemetry import MetricsWriter, StepTimer
from pfcn_jax.types import Batch
from pfcn_jax.utils.atomic import write_json
from pfcn_jax.utils.progress import ProgressDisplay
from pfcn_jax.utils.stderr import print_lines
from pfcn_jax.viz.preview import PreviewWriter


class Trainer:
    """One run: what `train` builds from a config and a working directory, and the loop over it.

    The working directory belongs to it until `close`.
    """

    def __init__(self, config: Config, workdir: pathlib.Path):
        self.config, self.workdir = config, workdir
        check_division(config.train)
        self.mesh: Mesh = data_mesh()
        self._flags: dict[bool, jax.Array] = {}
        self.metrics: MetricsWriter | None = None  # open while `run` runs, on process 0
        self._resources = contextlib.ExitStack()  # what `close` gives back, the last one first
        if lock := take_workdir(workdir):
            self._resources.callback(lock.release)
        try:
            self.source: Source = open_training(config.data)
            open_evaluation(config.data, 1, classes=self.source.classes)  # what cannot be scored is said now
            self.model: PanopticFCN = build_model(config.model, *self.source.classes.counts)
            self.pipeline = train_pipeline(
                config.data, self.source, batch_size=config.train.batch_size, seed=config.seed
            )
            self.batches: BatchIterator = iter(self.pipeline)
            self._resources.callback(self.batches.close)
            train = config.train
            self.checkpoints = Checkpoints(workdir, keep_latest=train.keep_latest, keep_best=train.keep_best)
            self._resources.callback(self.checkpoints.close)
            self.state, counts = begin(
                config,
                self.model,
                self.mesh,
                classes=self.source.classes,
                checkpoints=self.checkpoints,
                batches=self.batches,
            )
            self.watch = Watch(config, self.source, self.pipeline.plan, counts)
        except BaseException:
            self.close()
            raise
        self.step = jax.jit(
            functools.partial(
                watched_step,
                model=self.model,
                optimizer=build_optimizer(config, self.model),
                config=config,
                mesh=self.mesh,
            ),
            donate_argnums=0,
        )

    def run(self, stop: StopRequest | None = None) -> EvaluationResult:
        """Trains to the last step and returns the final evaluation.

        Args:
          stop: a request that listens already; None: signals are heard from here on.

        Raises:
          Stopped: SIGTERM or SIGINT came; a checkpoint of the last step is written.
          UserError: the run cannot go on, or its last checkpoint cannot be written.
        """
        start = int(self.state.step)
        with contextlib.ExitStack() as stack:
            if stop is None:  # (a request that nobody has made yet is false)
                stop = stack.enter_context(StopRequest())
            stack.callback(self.close)
            if jax.process_index() == 0:
                write_config(self.workdir, self.config)
            due = self._evaluation_due(start)
            if jax.process_index() == 0 and (due or start < self.config.train.steps):
                self.metrics = self._open_metrics(start, scored=not due)
                stack.callback(self.metrics.close)
            result = self._evaluate_at(start, stop) if due else None
            if start < self.config.train.steps:
                try:
                    result = self._steps(start, stop)
                except NonFiniteError as error:
                    raise NonFiniteError(f"{error}\n{self._kept()}") from error
            return result or self.evaluate(start, everything=True, stop=stop)

    def _open_metrics(self, start: int, *, scored: bool) -> MetricsWriter:
        try:
            return MetricsWriter(self.workdir, start=start, scored=scored)
        except OSError as error:
            raise UserError(f"{self.workdir / 'metrics.jsonl'}: cannot be written ({error.strerror})") from error

    def _steps(self, start: int, stop: StopRequest) -> EvaluationResult | None:
        """The loop. Returns the evaluation of the last step."""
        train = self.config.train
        rate = learning_rate_schedule(self.config.optim, steps=train.steps, batch_size=train.batch_size)
        timer = StepTimer(train.batch_size, start)
        step, result = start, None
        put = functools.partial(shard_batch, mesh=self.mesh)
        alone = stop if jax.process_count() == 1 else None  # several processes stop after the same step
        with (
            DevicePrefetch(self.batches, put, limit=train.steps - start, stop=alone) as batches,
            contextlib.closing(ProgressDisplay(train.steps, start=start)) as display,
        ):
            while step < train.steps:
                try:
                    batch = next(batches)
                    self.state, scalars, report = self.step(self.state, batch, self._stop_flags(stop))
                    del batch  # so that an error holds none of it
                    batches.idle_after = scalars["loss"]
                    step += 1
                    self.watch.add(step, scalars, report)
                except Interrupted:  # while it waited for a batch
                    self._leave(step, stop)
                except Exception as error:
                    self._give_up(step, stop, error)
                last = step == train.steps
                stopping = self.watch.stop if jax.process_count() > 1 else bool(stop)
                if step % train.log_every == 0 or last or stopping:
                    values = {key: float(value) for key, value in jax.device_get(scalars).items()}
                    self.watch.read()
                    values |= timer.lap(step, batches.waited_seconds)
                    counts = self._counts()
                    updates = step - int(counts["skipped_steps"])  # a step that was left out keeps its learning rate
                    values |= {"learning_rate": float(rate(np.int32(max(updates - 1, 0)))), **counts}
                    if self.metrics:
                        self.metrics.write(step, values)
                    display.update(step, _losses_line(values))
                    self.checkpoints.poll()
                evaluating = last or (train.eval_every and step % train.eval_every == 0)
                if stopping or evaluating or step % train.checkpoint_every == 0:
                    self.save(step)
                if stopping:
                    self._leave(step, stop)
                if evaluating:
                    result = self._evaluate_at(step, stop)
                    timer.restart(step, batches.waited_seconds)
        self._ensure_saved(step)
        return result

    def evaluate(self, step: int, *, everything: bool, stop: StopRequest | None = None) -> EvaluationResult:
        """Scores the validation split; `everything` takes all of it, with AP, mIoU, pictures and files.

        Raises:
          Stopped: a single process was asked to stop.
        """
        data, train = self.config.data, self.config.train
        limits = [data.eval_examples] if everything else [data.eval_examples, train.eval_examples]
        examples = min((limit for limit in limits if limit), default=0)
        source = open_evaluation(data, examples, classes=self.source.classes)
        preview = PreviewWriter(self.workdir / "pictures", source.classes, train.preview_pictures if everything else 0)

        def on_picture(example: Example, prediction: Prediction) -> None:
            if stop and jax.process_count() == 1:
                self._leave(step, stop)
            preview(example, prediction)

        try:
            result = evaluate_model(
                self.state.model, self.model, source, self.config, self.mesh, detailed=everything, on_picture=on_picture
            )
            if everything and jax.process_index() == 0:
                write_json(self.workdir / "evaluation.json", {"step": step} | result.to_dict(source.classes))
        except OSError as error:
            self.checkpoints.wait()
            if jax.process_count() == 1:  # the other processes are elsewhere, and would not answer
                self._ensure_saved(step)
            raise UserError(
                f"the evaluation of step {step} cannot be written ({error}); the same command again evaluates it"
            ) from error
        pq = result.pq
        if self.metrics:
            scalars = {"eval/PQ": pq.all.PQ, "eval/PQ_th": pq.things.PQ, "eval/PQ_st": pq.stuff.PQ}
            scalars |= {"eval/SQ": pq.all.SQ, "eval/RQ": pq.all.RQ}
            if result.ap and result.semantic:
                scalars |= {"eval/AP": result.ap.AP, "eval/mIoU": result.semantic.mIoU}
            self.metrics.write(step, scalars)
            self.metrics.sync()
        self.checkpoints.score(step, pq.all.PQ)  # last: what has a score is not evaluated again
        if everything and jax.process_index() == 0:
            print_lines(format_table(pq, source.classes.names), to=sys.stdout)
        return result

    def save(self, step: int) -> None:
        """Starts a checkpoint in the background, once every step up to this one is known to be finite."""
        self.watch.read()
        if self.metrics:
            self.metrics.sync()  # the steps up to this one are not repeated
        self.checkpoints.save(
            step,
            model=self.state.model,
            training=self.state.training,
            meta={
                "config": json.loads(to_json(self.config)),
                "classes": self.source.classes.to_json(),
                "position": self.batches.get_state() | {"batch": step},
                "counts": self.watch.to_json(),
            },
        )

    def close(self) -> None:
        """Waits for the checkpoint that is being written, ends the workers and gives the working directory back."""
        self._resources.close()

    def _evaluation_due(self, step: int) -> bool:
        """Whether a run that goes on at `step` was stopped before the evaluation of that step had ended."""
        train = self.config.train
        if step == 0 or not (step >= train.steps or (train.eval_every and step % train.eval_every == 0)):
            return False
        missing = score_of(self.checkpoints.directory / str(step)) is None
        return bool(distributed.number_of_process_0(int(missing)))

    def _evaluate_at(self, step: int, stop: StopRequest) -> EvaluationResult | None:
        """The evaluation that is due. None: a validation picture is broken; before the last step that stops no run."""
        last = step >= self.config.train.steps
        try:
            return self.evaluate(step, everything=last, stop=stop)
        except DataError as error:
            if last or jax.process_count() > 1:  # the other processes are in the middle of theirs
                raise
            print_lines(f"step {step} is not evaluated, the training goes on: {error}")
            return None

    def _stop_flags(self, stop: StopRequest) -> jax.Array:
        """Whether this process was asked to stop, for each of its devices; the step tells it to the others."""
        asked = bool(stop) and jax.process_count() > 1
        if asked not in self._flags:
            self._flags[asked] = shard_batch(np.full(jax.local_device_count(), asked, np.int32), self.mesh)
        return self._flags[asked]

    def _counts(self) -> dict[str, float]:
        failed = self.checkpoints.failures + (self.metrics.failures if self.metrics else 0)
        return {**self.watch.totals(), "failed_writes": float(failed)}

    def _kept(self) -> str:
        self.checkpoints.wait()
        try:
            steps = self.checkpoints.steps()
        except OSError as error:
            return f"The checkpoints cannot be listed now ({error.strerror})."
        return f"The last checkpoint is of step {steps[-1]}." if steps else "There is no checkpoint yet."

    def _give_up(self, step: int, stop: StopRequest, error: Exception) -> NoReturn:
        """The data cannot be read on: what was learnt so far is kept, as far as a process can do that alone."""
        if isinstance(error, NonFiniteError):
            raise error
        if jax.process_count() == 1 and step > 0 and isinstance(error, (UserError, OSError, RuntimeError)):
            with contextlib.suppress(DataError):
                self.watch.read()
            with contextlib.suppress(NonFiniteError):
                self.save(step)
                self.checkpoints.wait()
            if stop:  # whoever stopped the run has stopped its workers, too
                self._leave(step, stop)
        if isinstance(error, DataError) and self.config.data.on_broken == "stop":
            raise DataError(f"{error}; --config.data.on_broken=skip goes on without it\n{self._kept()}") from error
        raise error

    def _leave(self, step: int, stop: StopRequest) -> NoReturn:
        """Ends the run once the checkpoint of `step` is on disk."""
        self._ensure_saved(step)
        raise Stopped(
            f"stopped by {stop.signal_name or 'a signal to another process'} after step {step}; its checkpoint is "
            f"written, the same command continues ({self.workdir})"
        )

    def _ensure_saved(self, step: int) -> None:
        """Raises UserError unless the checkpoint of `step` is there; it is tried once more."""
        self.checkpoints.wait()
        problem = ""
        if jax.process_index() == 0 and not self.checkpoints.has(step):
            self.save(step)
            self.checkpoints.wait()
            if not self.checkpoints.has(step):
                problem = (
                    f"the checkpoint of step {step} cannot be written ({self.checkpoints.problem}). {self._kept()} "
                    "Make room and start the same command again: it goes on from there"
                )
        distributed.raise_together(problem)


def watched_step(
    state: TrainState, batch: Batch, stop: Array, *, mesh: Mesh, **keywords: Any
) -> tuple[TrainState, Scalars, Array]:
    """`train_step` and the report of what happened (`watch.make_report`), the same on every device."""
    state, scalars = train_step(state, batch, mesh=mesh, **keywords)
    report = make_report(scalars, batch.image_id, stop)
    return state, scalars, jax.lax.with_sharding_constraint(report, replicated(mesh))


def _losses_line(values: dict[str, float]) -> str:
    parts = [f"{key} {values[key]:.3f}" for key in ("loss", "loss_pos_th", "loss_pos_st", "loss_seg_th", "loss_seg_st")]
    waited = values["input_wait_seconds"] / max(values["step_seconds"], 1e-9)
    return "  ".join([*parts, f"{values['images_per_second']:.1f} images/s", f"{waited:.0%} waiting for input"])
