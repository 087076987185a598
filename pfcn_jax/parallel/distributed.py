"""Flags of the commands that join several processes into one run.

Each process drives the devices of its own machine and reads its own rows of every batch; together they give the numbers
of a single process with all the devices.
"""

from __future__ import annotations

import argparse
import re

import jax

from pfcn_jax.errors import TryAgain, UserError


def add_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("several processes (docs/launch.md)")
    group.add_argument(
        "--distributed", action="store_true", help="join the processes that Slurm, Open MPI or a TPU pod has started"
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="elsewhere: where process 0 listens for the others")
    group.add_argument("--num-processes", type=int, metavar="N")
    group.add_argument("--process-id", type=int, metavar="I", help="0 .. N - 1")


def join(args: argparse.Namespace) -> None:
    """Joins the other processes of the job, if the flags name any; call it before any device is used.

    Raises:
      UserError: the flags do not go together, or the other processes cannot be found.
    """
    given = {
        "--coordinator": args.coordinator,
        "--num-processes": args.num_processes,
        "--process-id": args.process_id,
    }
    missing = [flag for flag, value in given.items() if value is None]
    if len(missing) == len(given):
        if args.distributed:
            _initialize("--distributed: nothing tells which processes belong together; give " + ", ".join(given))
        return
    if args.distributed:
        raise UserError("--distributed finds the other processes by itself; leave " + " and ".join(given) + " out")
    if missing:
        raise UserError(f"{', '.join(missing)}: missing; several processes need {', '.join(given)} together")
    if not re.fullmatch(r".+:\d+", args.coordinator):
        raise UserError(f"--coordinator: must be HOST:PORT, got {args.coordinator!r}")
    if args.num_processes < 1 or not 0 <= args.process_id < args.num_processes:
        raise UserError(f"--process-id: must be in 0 .. {args.num_processes - 1}, got {args.process_id}")
    _initialize(
        f"--coordinator {args.coordinator}: process {args.process_id} of {args.num_processes} cannot join the others",
        coordinator_address=args.coordinator,
        num_processes=args.num_processes,
        process_id=args.process_id,
    )


def _initialize(problem: str, **keywords: str | int) -> None:
    try:
        jax.distributed.initialize(**keywords)  # type: ignore[arg-type]
    except (RuntimeError, ValueError) as error:
        kind = UserError if isinstance(error, ValueError) else TryAgain  # another process may still be starting
        raise kind(f"{problem} ({error})") from error
