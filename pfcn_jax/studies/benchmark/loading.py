"""The part `input`: images per second of the training pipeline, against decoding the same files and nothing else.

Both are per core. With workers = 0 that is images per second of processor time, which others on the machine disturb
little; n workers are n cores, and their rate is that of the elapsed time, as the training step sees it.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable

import cv2
import numpy as np

from pfcn_jax.config.command_line import from_command_line
from pfcn_jax.config.schema import Config
from pfcn_jax.data.datasets.coco import PanopticFiles
from pfcn_jax.data.example import Source
from pfcn_jax.data.inputs import open_training, train_pipeline
from pfcn_jax.studies.benchmark.measure import Row


@dataclasses.dataclass(frozen=True)
class Rate:
    """Images per second, elapsed and of this process' processor time."""

    elapsed: float
    processor: float


def measure_rate(step: Callable[[], int], *, seconds: float, at_least: int) -> Rate:
    """Calls `step`, which returns how many images it made, for about `seconds`."""
    done, begin, processor = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - begin < seconds or done < at_least:
        done += step()
    return Rate(done / (time.perf_counter() - begin), done / max(time.process_time() - processor, 1e-9))


def decode_rate(source: Source, *, seconds: float) -> Rate:
    """Bare decoding in one thread, in the data set's order: JPEG and panoptic PNG with OpenCV, no check and no id.

    Sources without such files count whole examples.
    """
    position = -1

    def step() -> int:
        nonlocal position
        position = (position + 1) % len(source)
        if isinstance(source, PanopticFiles):
            for data in source.read_files(position):
                cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        else:
            source[position]
        return 1

    return measure_rate(step, seconds=seconds, at_least=2)


def pipeline_rate(config: Config, source: Source, *, seconds: float) -> Rate:
    """The pipeline once its workers run and its buffers are empty, so that each batch taken is a batch made."""
    pipeline = train_pipeline(config.data, source, batch_size=config.train.batch_size, seed=config.seed, process=(0, 1))
    ahead = 2 + pipeline.options.buffered_batches * max(config.data.workers, 1)
    with iter(pipeline) as batches:
        for _ in range(ahead):
            next(batches)
        return measure_rate(lambda: len(next(batches).valid), seconds=seconds, at_least=2 * config.train.batch_size)


def rows(args: argparse.Namespace) -> tuple[Config, list[Row]]:
    """The sweep over worker processes, with the decode rate measured before and after each."""
    config = from_command_line(args.config_argv)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=args.batch[0]))
    source = open_training(dataclasses.replace(config.data, cache=False))
    measured: list[Row] = []
    for workers in args.workers:
        data = dataclasses.replace(config.data, workers=workers, cache=False)
        before = decode_rate(source, seconds=args.seconds / 2)
        rate = pipeline_rate(dataclasses.replace(config, data=data), source, seconds=args.seconds)
        after = decode_rate(source, seconds=args.seconds / 2)
        row: Row = {"workers": workers, "batch": args.batch[0], "images_per_s": rate.elapsed}
        row["images_per_core_s"] = rate.elapsed / workers if workers else rate.processor
        row["decode_images_per_core_s"] = (before.processor + after.processor) / 2
        row["share_of_decode_rate"] = row["images_per_core_s"] / row["decode_images_per_core_s"]
        row["against_first"] = rate.elapsed / measured[0]["images_per_s"] if measured else 1.0
        measured.append(row)
    return config, measured
