"""Checkpoint format: what is written with Orbax, and how each part is read.

A checkpoint `<workdir>/checkpoints/<step>` has three items: `model` (parameters and frozen statistics), `training`
(optimizer state, step, and the raw parameters if `model` has averaged ones; absent in converted models) and `meta`
(JSON: the whole config, the classes, the position in the data). Orbax writes into a temporary folder and renames it
when complete, so a checkpoint exists whole or not at all. `manifest.json` in it has the checksum of every file;
`score.json` is added when the step has been evaluated.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from pfcn_jax.checkpoints.manifest import MANIFEST, find_damage, write_manifest
from pfcn_jax.errors import UserError

PyTree = Any
FORMAT = 2
SCORE = "score.json"
BACKBONE, WHOLE_MODEL = "backbone", "model"  # meta["kind"]; checkpoints of training have none: whole models


class CheckpointError(UserError):
    """A checkpoint is missing, unreadable, or does not fit; the message names the path and the way out."""

    code = "checkpoint"


def check_intact(checkpoint: pathlib.Path) -> None:
    """Raises CheckpointError if files of the model have changed since they were written; it lists them."""
    lines = find_damage(checkpoint, ("model", "meta"))
    if lines:
        others = [entry.name for entry in checkpoint.parent.glob("*") if entry.name.isdigit() and entry != checkpoint]
        way = f"; beside it lie {', '.join(sorted(others, key=int))}" if others else ""
        listing = "\n  ".join(lines[:10])
        raise CheckpointError(f"{checkpoint}: damaged, a file is not as it was written{way}:\n  {listing}")


def score_of(checkpoint: pathlib.Path) -> float | None:
    """Returns the PQ of a checkpoint's evaluation; None if there is none, or it cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        return read_score(checkpoint)
    return None


def read_score(checkpoint: pathlib.Path) -> float | None:
    """Returns the PQ of a checkpoint's evaluation; None if there is none.

    Raises:
      OSError, ValueError: there is one, but it cannot be read.
    """
    try:
        return float(json.loads((checkpoint / SCORE).read_text())["PQ"])
    except FileNotFoundError:
        return None
    except (KeyError, TypeError) as error:
        raise ValueError(f"{checkpoint / SCORE}: no PQ") from error


class Handler(ocp.CompositeCheckpointHandler):
    """Writes the manifest when all items are complete, before Orbax renames the folder."""

    def finalize(self, directory: Any) -> None:
        super().finalize(directory)
        write_manifest(pathlib.Path(directory))


@ocp.args.register_with_handler(Handler, for_save=True, for_restore=True)
class Items(ocp.args.Composite):
    """Arguments of `Handler`; Orbax finds the handler by this class."""


def save_model(directory: pathlib.Path, *, model: PyTree, meta: Mapping[str, Any]) -> pathlib.Path:
    """Writes a model without training state, as `convert` does; returns the path of the checkpoint.

    Raises:
      CheckpointError: if the directory already holds a checkpoint.
    """
    target = directory.absolute() / "checkpoints" / "0"
    if target.exists():
        raise CheckpointError(f"{target}: exists already; choose another output directory")
    with ocp.Checkpointer(Handler()) as checkpointer:
        items = Items(model=ocp.args.StandardSave(model), meta=ocp.args.JsonSave({"format": FORMAT, **meta}))
        checkpointer.save(target, args=items)
    return target


def find_checkpoint(path: pathlib.Path, *, best: bool = False) -> pathlib.Path:
    """Returns `path` if it is a checkpoint, else the latest (or best) checkpoint of that working directory."""
    path = path.absolute()
    if (path / MANIFEST).is_file() or ((path / "meta").is_dir() and (path / "model").is_dir()):
        return path
    for parent in (path / "checkpoints", path):
        steps = sorted((int(entry.name), entry) for entry in parent.glob("*") if entry.name.isdigit())
        if steps:
            return _best_of([entry for _, entry in steps]) if best else steps[-1][1]
    raise CheckpointError(f"{path}: no checkpoint here; expected a working directory of `train` or `convert`")


def load_meta(checkpoint: pathlib.Path) -> dict[str, Any]:
    """Reads the JSON item of a checkpoint: config, classes, position."""
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            meta = checkpointer.restore(checkpoint, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
    except Exception as error:
        raise CheckpointError(f"{checkpoint}: its 'meta' cannot be read ({error})") from error
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise CheckpointError(f"{checkpoint}: not a checkpoint of this version (format {FORMAT})")
    return meta


def steps_of(meta: Mapping[str, Any]) -> int:
    """Training steps of a checkpoint; 0 for converted weights."""
    return int((meta.get("position") or {}).get("batch", 0))


def load_model(checkpoint: pathlib.Path, abstract: PyTree) -> PyTree:
    """Reads the model of a checkpoint onto the first local device.

    Raises:
      CheckpointError: if names or shapes differ from `abstract` (the config and the checkpoint do not fit).
    """
    _check_fit(checkpoint, abstract)
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract)
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            items = ocp.args.Composite(model=ocp.args.StandardRestore(target))
            return checkpointer.restore(checkpoint, args=items)["model"]
    except Exception as error:
        raise CheckpointError(f"{checkpoint}: cannot read its parameters, a file may be damaged ({error})") from error


def load_stored(checkpoint: pathlib.Path, item: str = "model") -> PyTree:
    """Reads an item of a checkpoint as it is stored, without a model to compare with; NumPy arrays."""
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            items = ocp.args.Composite(**{item: ocp.args.PyTreeRestore(restore_args=_as_numpy(checkpoint / item))})
            return checkpointer.restore(checkpoint, args=items)[item]
    except Exception as error:
        what = "parameters" if item == "model" else item
        raise CheckpointError(f"{checkpoint}: cannot read its {what}, a file may be damaged ({error})") from error


def load_run(checkpoint: pathlib.Path, *, model: PyTree, training: PyTree) -> tuple[PyTree, PyTree]:
    """Reads the state that a run resumes from, as the given abstract trees say (shapes, dtypes, shardings).

    Raises:
      CheckpointError: names or shapes of the model differ from the config's, or the files cannot be read.
    """
    _check_fit(checkpoint, model)
    items = ocp.args.Composite(model=ocp.args.StandardRestore(model), training=ocp.args.StandardRestore(training))
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            restored = checkpointer.restore(checkpoint, args=items)
    except Exception as error:
        raise CheckpointError(f"{checkpoint}: cannot read its state ({error})") from error
    return restored["model"], restored["training"]


def _stored_tree(item: pathlib.Path) -> PyTree:
    """Names, shapes and dtypes of the arrays in an item.

    Asks the handler, not a Checkpointer: that would take the item for a checkpoint and warn that its
    `_CHECKPOINT_METADATA` is missing.
    """
    handler = ocp.StandardCheckpointHandler()
    try:
        stored = handler.metadata(item)
    finally:
        handler.close()
    return getattr(stored, "tree", stored)


def _as_numpy(item: pathlib.Path) -> PyTree:
    return jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), _stored_tree(item))


def _check_fit(checkpoint: pathlib.Path, abstract: PyTree) -> None:
    """Compares names and shapes of the stored model with the config's; raises one error with all differences."""
    try:
        stored = _stored_tree(checkpoint / "model")
    except Exception as error:
        raise CheckpointError(f"{checkpoint}: no readable model item ({error})") from error
    theirs = _shapes(stored)
    ours = _shapes(abstract)
    lines = [f"only in the checkpoint: {name} {theirs[name]}" for name in sorted(theirs.keys() - ours.keys())]
    lines += [f"only in the config's model: {name} {ours[name]}" for name in sorted(ours.keys() - theirs.keys())]
    lines += [
        f"{name}: {theirs[name]} in the checkpoint, {ours[name]} by the config"
        for name in sorted(ours.keys() & theirs.keys())
        if ours[name] != theirs[name]
    ]
    if lines:
        more = f"\n  ... and {len(lines) - 10} more" if len(lines) > 10 else ""
        listing = "\n  ".join(lines[:10])
        raise CheckpointError(f"{checkpoint}: config and checkpoint do not fit:\n  {listing}{more}")


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    flat, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda leaf: hasattr(leaf, "shape"))
    names = ("/".join(str(getattr(part, "key", getattr(part, "name", part))) for part in path) for path, _ in flat)
    return {name: tuple(np.shape(leaf) if np.isscalar(leaf) else leaf.shape) for name, (_, leaf) in zip(names, flat)}


def _best_of(checkpoints: list[pathlib.Path]) -> pathlib.Path:
    """Returns the checkpoint with the highest recorded PQ; the latest if none has a score."""
    best, best_pq = checkpoints[-1], -1.0
    for checkpoint in checkpoints:
        pq = score_of(checkpoint)
        if pq is not None and pq >= best_pq:
            best, best_pq = checkpoint, pq
    return best
