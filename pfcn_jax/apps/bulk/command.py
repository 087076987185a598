"""`bulk`: segments all images below a folder or in a bucket, on all accelerators of a computer or a Ray cluster.

Each image is written exactly once; what a worker leaves undone when it dies another one does; the same command again
does what is left. Writes into --output: panoptic/NAME.png, panoptic.json (COCO-panoptic), classes.csv, failures.jsonl.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import pathlib
import sys
import time
from contextlib import nullcontext
from typing import Any

import jax
import numpy as np

from pfcn_jax.apps.bulk import cluster, layout
from pfcn_jax.apps.bulk.merge import merge
from pfcn_jax.apps.bulk.worker import Job
from pfcn_jax.checkpoints.format import find_checkpoint
from pfcn_jax.checkpoints.loading import LoadedModel, load_with_config
from pfcn_jax.checkpoints.named import resolve
from pfcn_jax.data.store import Store
from pfcn_jax.errors import UserError
from pfcn_jax.utils.progress import ProgressDisplay

_SHARD, _SHARD_ON_ACCELERATORS = 16, 256  # seconds of work each
_NAMED = 20  # failures that are printed


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", metavar="INPUT", help="a folder, or a URI such as gs://bucket/photos, with all below")
    parser.add_argument("--checkpoint", required=True, help="a checkpoint or a working directory of `train`")
    parser.add_argument("--output", required=True, help="folder or URI for everything that is written")
    parser.add_argument("--workers", type=int, default=0, help="default: one for each accelerator, or 4 cores")
    parser.add_argument("--accelerator", choices=("auto", *cluster.ACCELERATORS), default="auto")
    parser.add_argument(
        "--address", default="", help="of a running Ray cluster, or 'auto'; default: this computer alone"
    )
    parser.add_argument("--batch-size", type=int, default=0, help="default: 1 on CPU, 8 a device on accelerators")
    parser.add_argument(
        "--shard-size",
        type=int,
        default=0,
        help="images that a worker takes at a time, and loses when it dies "
        f"(default: {_SHARD} on CPU, {_SHARD_ON_ACCELERATORS} on accelerators)",
    )
    parser.add_argument("--overlay", action="store_true", help="write a drawing for each image, too")
    parser.add_argument("--retry-failed", action="store_true", help="try images again that failed before")
    parser.add_argument(
        "--as-stored", action="store_true", help="ignore EXIF orientation, as the labels of COCO and others do"
    )


@dataclasses.dataclass
class Work:
    """Result of listing input and output: the remaining images, and the number of finished ones."""

    todo: list[str]
    done: int
    failed: int  # in an earlier run

    @property
    def found(self) -> int:
        return len(self.todo) + self.done + self.failed


def main(args: argparse.Namespace) -> int:
    cluster.require_ray()
    if min(args.workers, args.batch_size, args.shard_size) < 0:
        raise UserError("--workers, --batch-size and --shard-size must not be negative")
    find_checkpoint(resolve(pathlib.Path(args.checkpoint)), best=True)  # refuse a wrong path at once
    try:
        return _run(args, Store(args.input, scratch=layout.TMP), Store(args.output, scratch=layout.TMP))
    except OSError as error:  # of a folder or bucket; its message says which
        raise UserError(f"cannot be read or written: {error}") from error


def _run(args: argparse.Namespace, source: Store, output: Store) -> int:
    work = find_work(source, output, retry_failed=args.retry_failed)
    print(
        f"{work.found} images in {source.where}: {len(work.todo)} to do, {work.done} done and {work.failed} failed "
        "before",
        flush=True,
    )
    # Ray starts processes, which must not happen once JAX has threads: so it comes first.
    with cluster.started(args.address, args.workers, args.accelerator) if work.todo else nullcontext() as pool:
        jax.config.update("jax_platforms", "cpu")  # the accelerators are the workers': nothing is computed here
        loaded = load_with_config(pathlib.Path(args.checkpoint), args.config_argv)
        layout.check_settings(output, _settings(args, loaded, source))
        if args.retry_failed:
            output.remove_folder(layout.FAILURES)
        if pool:
            output.remove_folder(layout.WORKERS)
            _segment(args, str(loaded.path), work.todo, pool)
            if (died := sum(1 for _ in output.list(layout.WORKERS)) - pool.workers) > 0:
                print(f"{died} workers died and were replaced")
    written, failed, counts = merge(output, loaded.classes)
    for folder in (layout.TMP, layout.ATTEMPTS):
        output.remove_folder(folder)
    print(f"{written} images segmented into {output.where}")
    print(counts.summary())
    return _report_failures(failed, output)


def find_work(source: Store, output: Store, *, retry_failed: bool) -> Work:
    """Compares two listings, of the images and of the results.

    Raises:
      UserError: there is no such input, or no image in it.
    """
    if not source.exists():
        raise UserError(f"{source.where}: no such folder")
    done = layout.find_done(output)
    failed = {} if retry_failed else layout.read_failures(output)
    work = Work([], 0, 0)
    for name in layout.find_images(source, output):
        if name in done:
            work.done += 1
        elif name in failed:
            work.failed += 1
        else:
            work.todo.append(name)
    if not work.found:
        raise UserError(f"nothing to segment in {source.where} (looked for {', '.join(layout.SUFFIXES)})")
    return work


def _segment(args: argparse.Namespace, checkpoint: str, todo: list[str], pool: cluster.Pool) -> None:
    """Runs the workers over the images that are left."""
    job = Job(
        checkpoint=checkpoint,
        config_argv=args.config_argv,
        source=_absolute(args.input),
        output=_absolute(args.output),
        accelerator=pool.accelerator,
        batch_size=args.batch_size,
        overlay=args.overlay,
        upright=not args.as_stored,
    )
    size = args.shard_size or (_SHARD if pool.accelerator == "cpu" else _SHARD_ON_ACCELERATORS)
    begin = time.monotonic()
    done = broken = 0
    display = ProgressDisplay(len(todo), label="bulk")
    try:
        for outcomes in cluster.segment(job, list(layout.shards(todo, size)), pool.workers):
            done += len(outcomes)
            broken += sum(bool(error) for _, error in outcomes)
            display.update(done, f"{pool.workers} workers" + (f", {broken} failed" if broken else ""))
    except Exception as error:  # of a worker, as Ray brings it here: the last line says what it was
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise UserError(f"a worker failed: {reason} (what is done is kept; the same command goes on)") from error
    finally:
        display.close()
    spent = time.monotonic() - begin
    print(f"{done} images in {spent:.1f} s by {pool.workers} workers, {done / spent:.2f} a second with their start")


def _settings(args: argparse.Namespace, loaded: LoadedModel, source: Store) -> dict[str, Any]:
    """Settings that a result depends on, besides its image."""
    parameters = hashlib.sha256()
    for leaf in jax.tree.leaves(loaded.variables):
        parameters.update(np.asarray(leaf).tobytes())
    config = dataclasses.asdict(loaded.config)
    sizes = {key: config["data"][key] for key in ("eval_short_side", "eval_max_long_side", "eval_canvases")}
    return {
        "input": source.path(),
        "parameters": parameters.hexdigest(),
        "classes": list(loaded.classes.names),
        "model": config["model"],
        "inference": config["inference"],
        "tta": config["tta"],
        "sizes": sizes,
        "overlay": args.overlay,
        "as_stored": args.as_stored,
    }


def _absolute(where: str) -> str:
    """A local path for workers that run elsewhere on this computer; a URI as it is."""
    return where if "://" in where else str(pathlib.Path(where).absolute())


def _report_failures(failed: dict[str, str], output: Store) -> int:
    for reason in list(failed.values())[:_NAMED]:
        print(f"skipped: {reason}", file=sys.stderr)
    if len(failed) > _NAMED:
        print(f"skipped: {len(failed) - _NAMED} more", file=sys.stderr)
    if failed:
        where = f"{output.where}/{layout.FAILURES_JSONL}"
        print(f"{len(failed)} could not be segmented, see {where} (--retry-failed tries again)", file=sys.stderr)
    return 1 if failed else 0
