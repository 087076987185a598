"""Checkpoints with Orbax: what a run needs to go on, and what a model needs to be used anywhere.

A checkpoint `<workdir>/checkpoints/<step>` has three items: `model` (parameters and frozen statistics), `training`
(optimiser state, step, and the raw parameters if `model` has averaged ones; absent in converted models) and `meta`
(JSON: the whole config, the classes, the position in the data). Orbax writes into a temporary folder and renames it
when complete: it exists whole or not at all. `manifest.json` in it has the checksum of every file; `score.json` beside
it is added when the step has been evaluated.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from pfcn_jax.checkpoints.manifest import MANIFEST, find_damage, write_manifest
from pfcn_jax.errors import UserError

PyTree = Any
FORMAT = 2
SCORE = "score.json"


class CheckpointError(UserError):
    """A checkpoint that cannot be found, read or fitted; the message names the path and the way out."""


def check_intact(checkpoint: pathlib.Path, items: Sequence[str] = ("model", "meta")) -> None:
    """Raises CheckpointError if files of these items are not as they were written; it names them and what to do."""
    lines = find_damage(checkpoint, items)
    if lines:
        others = [entry.name for entry in checkpoint.parent.glob("*") if entry.name.isdigit() and entry != checkpoint]
        way = f"; beside it lie {', '.join(sorted(others, key=int))}" if others else ""
        listing = "\n  ".join(lines[:10])
        raise CheckpointError(f"{checkpoint}: damaged, a file is not as it was written{way}:\n  {listing}")


def score_of(checkpoint: pathlib.Path) -> float | None:
    """The PQ of the evaluation at a checkpoint's step; None if there was none, or it cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        return read_score(checkpoint)
    return None


def read_score(checkpoint: pathlib.Path) -> float | None:
    """The PQ of the evaluation at a checkpoint's step; None if there was none.

    Raises:
      OSError, ValueError: there was one, but it cannot be read.
    """
    try:
        return float(json.loads((checkpoint / SCORE).read_text())["PQ"])
    except FileNotFoundError:
        return None
    except (KeyError, TypeError) as error:
        raise ValueError(f"{checkpoint / SCORE}: no PQ") from error


class Handler(ocp.CompositeCheckpointHandler):
    """Writes the manifest when all items are complete, before the checkpoint gets its name."""

    def finalize(self, directory: Any) -> None:
        super().finalize(directory)
        write_manifest(pathlib.Path(directory))


@ocp.args.register_with_handler(Handler, for_save=True, for_restore=True)
class Items(ocp.args.Composite):
    """What `Handler` writes: Orbax finds a handler's arguments by their class."""


def save_model(directory: pathlib.Path, *, model: PyTree, meta: Mapping[str, Any]) -> pathlib.Path:
    """Writes a model without training state (what `convert` makes); returns the path of the checkpoint.

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
    """The checkpoint that `path` means: itself, or the latest (or best) one of a run's working directory."""
    path = path.absolute()
    if (path / MANIFEST).is_file() or ((path / "meta").is_dir() and (path / "model").is_dir()):
        return path
    for parent in (path / "checkpoints", path):
        steps = sorted((int(entry.name), entry) for entry in parent.glob("*") if entry.name.isdigit())
        if steps:
            return _best_of([entry for _, entry in steps]) if best else steps[-1][1]
    raise CheckpointError(f"{path}: no checkpoint here; expected a working directory of `train` or `convert`")


def load_meta(checkpoint: pathlib.Path) -> dict[str, Any]:
    """The JSON item of a checkpoint: config, classes, position."""
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            meta = checkpointer.restore(checkpoint, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
    except Exception as error:
        raise CheckpointError(f"{checkpoint}: its 'meta' cannot be read ({error})") from error
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise CheckpointError(f"{checkpoint}: not a checkpoint of this version (format {FORMAT})")
    return meta


def load_model(checkpoint: pathlib.Path, abstract: PyTree) -> PyTree:
    """The parameters of a checkpoint on the default device.

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
    """An item of a checkpoint as it is stored, whatever model it is for; NumPy arrays."""
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            items = ocp.args.Composite(**{item: ocp.args.PyTreeRestore(restore_args=_as_numpy(checkpoint / item))})
            return checkpointer.restore(checkpoint, args=items)[item]
    except Exception as error:
        what = "parameters" if item == "model" else item
        raise CheckpointError(f"{checkpoint}: cannot read its {what}, a file may be damaged ({error})") from error


def load_run(checkpoint: pathlib.Path, *, model: PyTree, training: PyTree) -> tuple[PyTree, PyTree]:
    """Reads what a run goes on from into the given abstract trees (shapes, dtypes, shardings).

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


def _as_numpy(item: pathlib.Path) -> PyTree:
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        stored = checkpointer.metadata(item).item_metadata
    tree = getattr(stored, "tree", stored)
    return jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)


def _check_fit(checkpoint: pathlib.Path, abstract: PyTree) -> None:
    """Compares names and shapes of the stored model with what the config makes; all differences in one error."""
    try:
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            stored = checkpointer.metadata(checkpoint / "model").item_metadata
    except Exception as error:
        raise CheckpointError(f"{checkpoint}: no readable model item ({error})") from error
    theirs = _shapes(getattr(stored, "tree", stored))
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
    """The checkpoint with the highest recorded PQ; the latest if none has one."""
    best, best_pq = checkpoints[-1], -1.0
    for checkpoint in checkpoints:
        pq = score_of(checkpoint)
        if pq is not None and pq >= best_pq:
            best, best_pq = checkpoint, pq
    return best
