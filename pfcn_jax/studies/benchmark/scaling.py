"""The part `scaling`: time of a whole training over numbers of chips, from counted operations and stated
assumptions.

A step takes as long as the dearest of three (docs/scaling.md):

    device = images of a chip x operations of an image / (peak x share)  +  2 (n - 1) / n x gradient bytes / link
    input  = images of a step / (hosts x images that a host decodes in a second)
    step   = max(device, input)

The operations are counted from the traced training step; everything else is an assumption that the caller states.
Nothing overlaps the all-reduce here, so its share is an upper bound. What is not in the model: that `share` falls when
a chip gets few images, latencies, evaluation and checkpoints, and machines that fail.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pfcn_jax.config.command_line import from_command_line
from pfcn_jax.config.schema import Config, TrainOptions
from pfcn_jax.data.classes import ClassTable, coco_classes
from pfcn_jax.data.inputs import open_training, train_pipeline
from pfcn_jax.errors import UserError
from pfcn_jax.models.build import abstract_variables, build_model
from pfcn_jax.optim.rules import frozen_mask
from pfcn_jax.optim.state import TrainState
from pfcn_jax.steps import train_step
from pfcn_jax.studies.abstract import abstract_batch
from pfcn_jax.studies.benchmark.measure import Row
from pfcn_jax.studies.flops import traced_flops
from pfcn_jax.training.state import build_optimizer

_BYTES = 4  # of a gradient element: parameters and their gradients are float32, whatever is computed with
FLAGS = ("chips", "per-chip", "peak-tflops", "share", "link-gbytes", "chips-per-host", "host-images")
_WORTHWHILE = 0.8  # efficiency down to which adding chips is counted as scaling


@dataclasses.dataclass(frozen=True)
class Work:
    """Operations and bytes of a training, independent of the machine."""

    flops_per_image: float  # matrix products and convolutions, forward and backward
    gradient_bytes: float  # of all trained parameters: what every chip sends and receives in a step
    steps: int
    batch: int


@dataclasses.dataclass(frozen=True)
class Machine:
    """The machine. Every number is an assumption or a measurement of the reader's."""

    peak_flops: float  # of one chip, in the type that is computed in
    share: float  # of the peak that the training step reaches on one chip
    link_bytes: float  # bytes a second that a chip sends to its neighbor: the slowest link of the ring
    chips_per_host: int
    images_per_host: float  # that a host reads, decodes and resizes in a second; inf: not looked at


@dataclasses.dataclass(frozen=True)
class Step:
    """Seconds of one training step on `chips` chips."""

    chips: int
    compute: float
    all_reduce: float
    input: float

    @property
    def seconds(self) -> float:
        return max(self.compute + self.all_reduce, self.input)

    @property
    def bound(self) -> str:
        """The part that bounds the step: input, compute or all-reduce."""
        if self.input > self.compute + self.all_reduce:
            return "input"
        return "compute" if self.compute >= self.all_reduce else "all-reduce"


def step_time(work: Work, machine: Machine, chips: int) -> Step:
    """The model: a batch that is split evenly over `chips`, a ring all-reduce of the gradients, hosts that decode."""
    each = math.ceil(work.batch / chips)
    hosts = math.ceil(chips / machine.chips_per_host)
    return Step(
        chips=chips,
        compute=each * work.flops_per_image / (machine.peak_flops * machine.share),
        all_reduce=2.0 * (chips - 1) / chips * work.gradient_bytes / machine.link_bytes,
        input=work.batch / (hosts * machine.images_per_host),
    )


def efficiency(work: Work, machine: Machine, chips: int) -> float:
    """Images a second of `chips` chips over `chips` times those of one chip with nothing to wait for."""
    alone = work.batch * work.flops_per_image / (machine.peak_flops * machine.share)
    return alone / (chips * step_time(work, machine, chips).seconds)


def last_worthwhile(work: Work, machine: Machine, *, least: float = _WORTHWHILE) -> int:
    """The largest number of chips that divides the batch and still has an efficiency of `least`; 0 if none has."""
    divisors = [chips for chips in range(1, work.batch + 1) if work.batch % chips == 0]
    return max((chips for chips in divisors if efficiency(work, machine, chips) >= least), default=0)


def scaling_row(work: Work, machine: Machine, chips: int) -> Row:
    """One row of the table: the whole training on `chips` chips."""
    step = step_time(work, machine, chips)
    hours = work.steps * step.seconds / 3600.0
    return {
        "chips": chips,
        "batch": work.batch,
        "steps": work.steps,
        "compute_s": step.compute,
        "all_reduce_s": step.all_reduce,
        "input_s": step.input,
        "step_s": step.seconds,
        "bound": step.bound,
        "images_per_s": work.batch / step.seconds,
        "efficiency_of_chips": efficiency(work, machine, chips),
        "hours": hours,
        "chip_hours": hours * chips,
    }


def count_work(config: Config) -> tuple[Work, list[Row]]:
    """Counts the operations of the training step, an image on each canvas, without compiling or running it.

    Returns:
      The work, with canvases weighted by the images that fall on them (equally, if the data are not there), and one
      row for each canvas.
    """
    classes, shares = _canvases(config)
    model = build_model(config.model, *classes.counts)
    variables = abstract_variables(model)
    optimizer = build_optimizer(config, model)
    params = variables["params"]
    number: Any = jax.ShapeDtypeStruct((), jnp.int32)
    state = TrainState(number, params, variables["batch_stats"], jax.eval_shape(optimizer.init, params))
    single = dataclasses.replace(config, train=dataclasses.replace(config.train, accumulate=1, ema_decay=0.0))
    step = functools.partial(train_step, model=model, optimizer=optimizer, config=single)

    @functools.cache
    def flops(sides: tuple[int, int]) -> float:
        return traced_flops(jax.jit(step).trace(state, abstract_batch(1, sides, config.data.max_segments)).jaxpr)

    # A canvas on its side costs the same.
    rows: list[Row] = [
        {"canvas": f"{height}x{width}", "share": share, "gflop": flops((min(height, width), max(height, width))) / 1e9}
        for (height, width), share in zip(config.data.canvases, shares)
    ]
    frozen = (*model.frozen_paths(), *config.optim.frozen)
    work = Work(
        flops_per_image=sum(row["share"] * row["gflop"] for row in rows) * 1e9,
        gradient_bytes=_BYTES * float(_trained(params, frozen)),
        steps=config.train.steps,
        batch=config.train.batch_size,
    )
    return work, rows


def _canvases(config: Config) -> tuple[ClassTable, list[float]]:
    """The classes, and the share of the training images that falls on each canvas."""
    canvases = config.data.canvases
    if config.data.source != "scenes" and not pathlib.Path(config.data.root).exists():
        return coco_classes(), [1.0 / len(canvases)] * len(canvases)
    source = open_training(config.data)
    plan = train_pipeline(
        config.data, source, batch_size=config.train.batch_size, seed=config.seed, process=(0, 1)
    ).plan
    return source.classes, (np.bincount(plan.canvas_of, minlength=len(canvases)) / len(source)).tolist()


def _trained(params: Any, frozen: tuple[str, ...]) -> int:
    """Elements of the parameters that are not below a frozen path."""
    sizes = jax.tree.map(lambda leaf, fixed: 0 if fixed else leaf.size, params, frozen_mask(params, frozen))
    return sum(jax.tree.leaves(sizes))


def add_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("`scaling`: assumptions, all of them the reader's (docs/scaling.md)")
    group.add_argument("--chips", nargs="+", type=int, default=[1, 8, 64], help="numbers of chips (default: 1 8 64)")
    group.add_argument("--per-chip", type=int, help="images a chip: the batch grows with the chips (default: fixed)")
    group.add_argument("--peak-tflops", type=float, help="of one chip, in the type that is computed in")
    group.add_argument("--share", type=float, help="of the peak that the step reaches, as 0.3")
    group.add_argument("--link-gbytes", type=float, help="GB/s from chip to chip, the slowest link of the ring")
    group.add_argument("--chips-per-host", type=int, default=8)
    group.add_argument("--host-images", type=float, help="images/s that a host decodes (default: not looked at)")


def machine_of(args: argparse.Namespace) -> Machine:
    """The assumptions of the command line.

    Raises:
      UserError: one that has no default is missing, or is no positive number.
    """
    needed = {"--peak-tflops": args.peak_tflops, "--share": args.share, "--link-gbytes": args.link_gbytes}
    missing = [flag for flag, value in needed.items() if value is None]
    if missing:
        raise UserError(f"{', '.join(missing)}: missing; `scaling` makes no assumption about your machine by itself")
    numbers = {**needed, "--chips-per-host": args.chips_per_host, "--host-images": args.host_images}
    for flag, value in numbers.items():
        if value is not None and not 0.0 < value < math.inf:
            raise UserError(f"{flag}: must be a positive number, got {value}")
    if args.share > 1.0:
        raise UserError(f"--share: at most 1 (of the peak), got {args.share}")
    return Machine(
        peak_flops=args.peak_tflops * 1e12,
        share=args.share,
        link_bytes=args.link_gbytes * 1e9,
        chips_per_host=args.chips_per_host,
        images_per_host=args.host_images or math.inf,
    )


def rows(args: argparse.Namespace) -> tuple[Config, list[Row]]:
    """The table over numbers of chips; the count and the end of scaling are printed above it."""
    machine = machine_of(args)
    config = from_command_line(args.config_argv, Config())
    splits = [_split(config.train, args, chips) for chips in args.chips]
    work, canvases = count_work(config)
    for row in canvases:
        print(f"{row['canvas']}: {row['gflop']:.4g} GFLOP an image, {100 * row['share']:.0f} % of the images")
    print(f"mean {work.flops_per_image / 1e9:.4g} GFLOP an image; {work.gradient_bytes / 1e6:.0f} MB of gradients")
    if args.per_chip is None:
        stop = last_worthwhile(work, machine)
        print(f"a batch of {work.batch}: at least {100 * _WORTHWHILE:.0f} % of every chip up to {stop} chips")
    of_chips = [dataclasses.replace(work, batch=batch, steps=steps) for batch, steps in splits]
    return config, [scaling_row(part, machine, chips) for part, chips in zip(of_chips, args.chips)]


def _split(train: TrainOptions, args: argparse.Namespace, chips: int) -> tuple[int, int]:
    """Batch and steps on `chips` chips: the config's, or `--per-chip` images on each for as many images in all."""
    if chips < 1:
        raise UserError(f"--chips: at least 1, got {chips}")
    if args.per_chip is not None:
        if args.per_chip < 1:
            raise UserError(f"--per-chip: at least 1, got {args.per_chip}")
        batch = args.per_chip * chips
        return batch, math.ceil(train.steps * train.batch_size / batch)
    if train.batch_size % chips:
        raise UserError(f"--chips {chips}: a batch of {train.batch_size} does not divide over them; give --per-chip")
    return train.batch_size, train.steps
