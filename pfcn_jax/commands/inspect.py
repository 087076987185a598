"""`inspect`: the config, the parameter table, and one batch of a config or a checkpoint."""

from __future__ import annotations

import argparse
import math
import pathlib
from typing import Any

import jax
import numpy as np

from pfcn_jax.checkpoints.loading import load_with_config
from pfcn_jax.config.command_line import from_command_line
from pfcn_jax.config.schema import config_hash, to_json
from pfcn_jax.data.classes import ClassTable
from pfcn_jax.data.inputs import open_training, train_pipeline
from pfcn_jax.models.build import abstract_variables, build_model
from pfcn_jax.types import Batch

_DEPTH = 2  # the table sums parameters below backbone/res2_0, position_head/conv1, ...


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", help="look at a checkpoint instead of a config")
    parser.add_argument("--no-batch", action="store_true", help="do not read an image")
    parser.add_argument("--depth", type=int, default=_DEPTH, help="levels of the parameter table")


def main(args: argparse.Namespace) -> int:
    if args.checkpoint:
        loaded = load_with_config(pathlib.Path(args.checkpoint), args.config_argv)
        config, classes, source = loaded.config, loaded.classes, None
    else:
        config = from_command_line(args.config_argv)
        source = open_training(config.data)
        classes = source.classes
    print(to_json(config))
    print(f"config hash {config_hash(config)}\n")
    print(f"{classes.num_things} things and {classes.num_stuff} stuff classes: {', '.join(classes.names)}\n")
    variables = abstract_variables(build_model(config.model, *classes.counts))
    print(parameter_table(variables["params"], args.depth))
    if variables["batch_stats"]:
        print(f"frozen statistics: {_count(variables['batch_stats']):,}")
    if not args.no_batch:
        source = source or open_training(config.data)
        with iter(
            train_pipeline(config.data, source, batch_size=config.train.batch_size, seed=config.seed, process=(0, 1))
        ) as batches:
            print("\n" + describe_batch(next(batches), classes))
    return 0


def parameter_table(params: Any, depth: int = _DEPTH) -> str:
    """Parameters below each module, and their sum."""
    rows: dict[str, int] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        names = [str(part.key) for part in path]
        key = "/".join(names[: min(depth, len(names) - 1)])
        rows[key] = rows.get(key, 0) + math.prod(leaf.shape)
    width = max(map(len, rows))
    lines = [f"{key:{width}s} {count:14,d}" for key, count in rows.items()]
    return "\n".join([*lines, f"{'total':{width}s} {sum(rows.values()):14,d}"])


def describe_batch(batch: Batch, classes: ClassTable) -> str:
    """Shapes, sizes and segments of a batch, one line per image."""
    lines = [
        f"batch: image {batch.image.dtype} {list(batch.image.shape)}, segment slots {batch.segments.valid.shape[1]}"
    ]
    for row in np.flatnonzero(batch.valid):
        valid = np.asarray(batch.segments.valid[row])
        names = [classes.names[c] for c in np.asarray(batch.segments.class_id[row])[valid]]
        listed = ", ".join(f"{name} x{names.count(name)}" for name in sorted(set(names), key=names.index))
        height, width = (int(side) for side in batch.size[row])
        lines.append(f"  example {int(batch.image_id[row])}: {height} x {width}; {listed}")
    return "\n".join(lines)


def _count(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
