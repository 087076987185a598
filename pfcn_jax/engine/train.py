"""`train`: runs a config to its end, evaluates it, writes checkpoints and pictures; started again, it continues."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from pfcn_jax.data.pipeline import BatchIterator
from pfcn_jax.data.sources import Source
from pfcn_jax.engine import distributed
from pfcn_jax.engine.checkpoint import CheckpointError, Checkpoints, load_meta
from pfcn_jax.engine.config import Config, TrainConfig, from_command_line, from_dict, to_json
from pfcn_jax.engine.evaluate import EvaluationResult, evaluate_model
from pfcn_jax.engine.inputs import open_evaluation, open_training, train_pipeline
from pfcn_jax.engine.loading import start_from
from pfcn_jax.engine.optim import learning_rate_schedule
from pfcn_jax.engine.preview import PreviewWriter
from pfcn_jax.engine.report import format_table, write_json
from pfcn_jax.engine.state import (
    TrainState,
    build_model,
    build_optimizer,
    check_same_state,
    create_state,
    data_mesh,
    put_batch,
    replicated,
)
from pfcn_jax.engine.steps import train_step
from pfcn_jax.engine.telemetry import MetricsWriter, ProgressDisplay
from pfcn_jax.errors import UserError
from pfcn_jax.models.panoptic_fcn import PanopticFCN

PyTree = Any


class Trainer:
    """One run: what `train` builds from a config and a working directory, and the loop over it."""

    def __init__(self, config: Config, workdir: pathlib.Path):
        self.config, self.workdir = config, workdir
        check_division(config.train)
        self.mesh: Mesh = data_mesh()
        self.source: Source = open_training(config.data)
        self.model: PanopticFCN = build_model(config.model, self.source.classes)
        self.pipeline = train_pipeline(config, self.source)
        self.batches: BatchIterator = iter(self.pipeline)
        self.checkpoints = Checkpoints(workdir, keep_latest=config.train.keep_latest, keep_best=config.train.keep_best)
        self.state = self._restore()
        self.train_step = jax.jit(
            functools.partial(
                train_step,
                model=self.model,
                optimizer=build_optimizer(config, self.model),
                config=config,
                mesh=self.mesh,
            ),
            donate_argnums=0,
        )

    def run(self) -> EvaluationResult:
        """Trains to the last step and returns the final evaluation."""
        train = self.config.train
        main_process = jax.process_index() == 0
        if main_process:
            (self.workdir / "config.json").write_text(to_json(self.config) + "\n")
        rate = learning_rate_schedule(self.config.optim, steps=train.steps, batch_size=train.batch_size)
        writer, start = MetricsWriter(self.workdir) if main_process else None, int(self.state.step)
        display = ProgressDisplay(train.steps, start=start)
        timer = _StepTimer(train.batch_size)
        result = None
        for step, batch in self._device_batches(start):
            self.state, scalars = self.train_step(self.state, batch)
            step += 1
            if step % train.log_every == 0 or step == train.steps:
                values = {key: float(value) for key, value in jax.device_get(scalars).items()}
                _check_finite(step, values)
                values |= timer.lap(step - start) | {"learning_rate": float(rate(np.int32(step - 1)))}
                if writer:
                    writer.write(step, values)
                display.update(step, _losses_line(values))
            last = step == train.steps
            result = None
            if last or (train.eval_every and step % train.eval_every == 0):
                result = self.evaluate(step, writer, everything=last)
                timer.restart(step - start)
            if result or step % train.checkpoint_every == 0:
                self.save(step, pq=result.pq.all.PQ if result else None)
        display.close()
        if writer:
            writer.close()
        self.checkpoints.close()
        self.batches.close()
        return result if result else self.evaluate(start, None, everything=True)

    def evaluate(self, step: int, writer: MetricsWriter | None, *, everything: bool) -> EvaluationResult:
        """Scores the validation split; `everything` takes all of it, with AP, mIoU, pictures and files."""
        data, train = self.config.data, self.config.train
        limits = [data.eval_examples] if everything else [data.eval_examples, train.eval_examples]
        examples = min((limit for limit in limits if limit), default=0)
        source = open_evaluation(data, examples)
        preview = PreviewWriter(self.workdir / "pictures", source.classes, train.preview_pictures if everything else 0)
        result = evaluate_model(
            self.state.model, self.model, source, self.config, self.mesh, detailed=everything, on_picture=preview
        )
        pq = result.pq
        if writer:
            scalars = {"eval/PQ": pq.all.PQ, "eval/PQ_th": pq.things.PQ, "eval/PQ_st": pq.stuff.PQ}
            scalars |= {"eval/SQ": pq.all.SQ, "eval/RQ": pq.all.RQ}
            if result.ap and result.semantic:
                scalars |= {"eval/AP": result.ap.AP, "eval/mIoU": result.semantic.mIoU}
            writer.write(step, scalars)
        if everything and jax.process_index() == 0:
            write_json(self.workdir / "evaluation.json", result.to_dict(source.classes))
            print(format_table(pq, source.classes.names))
        return result

    def save(self, step: int, *, pq: float | None) -> None:
        """Starts a checkpoint in the background."""
        self.checkpoints.save(
            step,
            model=self.state.model,
            training=self.state.training,
            meta={
                "config": json.loads(to_json(self.config)),
                "classes": self.source.classes.to_json(),
                "position": self.batches.get_state() | {"batch": step},
            },
            pq=pq,
        )

    def _restore(self) -> TrainState:
        """The state of the latest checkpoint with its position in the data, or a fresh one."""
        step = self.checkpoints.latest_step()
        if step is None:
            return self._fresh_state()
        sharding = replicated(self.mesh)
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            jax.eval_shape(lambda: create_state(self.config, self.model, self.mesh)),
        )
        path = self.checkpoints.directory / str(step)
        check_same_state(from_dict(load_meta(path)["config"]), self.config, str(path))
        model, training, meta = self.checkpoints.restore(step, model=abstract.model, training=abstract.training)
        try:
            self.batches.set_state(meta["position"])
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}") from error
        return TrainState.from_items(model, training)

    def _fresh_state(self) -> TrainState:
        """Random parameters, or those that the config asks to start from."""
        state = create_state(self.config, self.model, self.mesh)
        train = self.config.train
        if not train.init_from:
            return state
        variables = jax.device_get(state.variables)
        merged, notes = start_from(pathlib.Path(train.init_from), variables, self.config, fresh_heads=train.fresh_heads)
        print("\n".join([f"starting from {train.init_from}", *notes]), flush=True)
        return create_state(self.config, self.model, self.mesh, merged)

    def _device_batches(self, start: int) -> Iterator[tuple[int, PyTree]]:
        """(step, batch on the mesh) to the end; the next batch is on its way while a step runs."""
        steps = self.config.train.steps
        if start >= steps:
            return
        batch = put_batch(next(self.batches), self.mesh)
        for step in range(start, steps):
            current = batch
            yield step, current
            if step + 1 < steps:
                batch = put_batch(next(self.batches), self.mesh)


class _StepTimer:
    """Images/s since the last lap."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self.restart(0)

    def restart(self, steps: int) -> None:
        self._steps, self._time = steps, time.monotonic()

    def lap(self, steps: int) -> dict[str, float]:
        now = time.monotonic()
        done, spent = steps - self._steps, max(now - self._time, 1e-9)
        self.restart(steps)
        return {"images_per_second": done * self._batch_size / spent, "step_seconds": spent / max(done, 1)}


def check_division(train: TrainConfig) -> None:
    """Raises UserError unless every device gets the same number of pictures in every part of a step."""
    devices, parts = jax.device_count(), train.accumulate
    if train.batch_size % (devices * parts):
        of_parts = f" in {parts} parts each (config.train.accumulate)" if parts > 1 else ""
        raise UserError(
            f"config.train.batch_size: {train.batch_size} pictures do not divide over {devices} devices{of_parts}; "
            f"choose a multiple of {devices * parts}"
        )


def _check_finite(step: int, values: dict[str, float]) -> None:
    bad = [key for key, value in values.items() if not np.isfinite(value)]
    if bad:
        raise UserError(f"step {step}: {', '.join(bad)} not finite; lower the learning rate or look at the data")


def _losses_line(values: dict[str, float]) -> str:
    parts = [f"{key} {values[key]:.3f}" for key in ("loss", "loss_pos_th", "loss_pos_st", "loss_seg_th", "loss_seg_st")]
    return "  ".join([*parts, f"{values['images_per_second']:.1f} images/s"])


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", help="where checkpoints, metrics and pictures go (default: runs/<config name>)")
    parser.add_argument("--init-from", help="a checkpoint to start from (short for --config.train.init_from)")
    distributed.add_flags(parser)


def main(args: argparse.Namespace) -> int:
    distributed.join(args)
    config = from_command_line(args.config_argv)
    if args.init_from:
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, init_from=args.init_from))
    workdir = pathlib.Path(args.workdir or pathlib.Path("runs") / config.name)
    result = Trainer(config, workdir).run()
    pq = result.pq
    if jax.process_index() == 0:
        print(f"PQ {pq.all.PQ:.2f}  PQ_th {pq.things.PQ:.2f}  PQ_st {pq.stuff.PQ:.2f}  ({workdir}/evaluation.json)")
    return 0
