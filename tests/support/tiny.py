"""A network that compiles in seconds, on 64 x 64 scenes: everything of the real thing, only smaller."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import jax
import numpy as np

from pfcn_jax.checkpoints.format import save_model
from pfcn_jax.config.command_line import from_command_line
from pfcn_jax.config.schema import to_json
from pfcn_jax.data.datasets.scenes import class_table
from pfcn_jax.models.build import abstract_variables, build_model
from pfcn_jax.models.panoptic_fcn import PanopticFCN

TINY = [
    f"--config={pathlib.Path(__file__).parents[2] / 'configs' / 'quickstart.py'}",
    "--config.train.init_from=",  # other configs than the quickstart's may start from ImageNet weights
    "--config.model.backbone=resnet18",
    "--config.model.backbone_norm=group_norm",
    "--config.model.stride_in_1x1=False",
    "--config.model.freeze_at=0",
    "--config.model.backbone_width=8",
    "--config.model.fpn_channels=16",
    "--config.model.head_channels=16",
    "--config.model.kernel_channels=16",
    "--config.model.encoder_channels=8",
    "--config.model.position_convs=1",
    "--config.model.kernel_convs=1",
    "--config.model.encoder_convs=1",
    "--config.data.scene_size=(64, 64)",
    "--config.data.short_sides=(64,)",
    "--config.data.max_long_side=64",
    "--config.data.eval_short_side=64",
    "--config.data.eval_max_long_side=64",
    "--config.data.canvases=((64, 64),)",
    "--config.data.eval_canvases=((64, 64),)",
    "--config.data.eval_examples=3",
    "--config.inference.candidates=8",
    "--config.inference.max_things=16",
    "--config.optim.warmup_steps=2",
    "--config.train.batch_size=2",
    "--config.train.eval_batch_size=2",
    "--config.train.log_every=1",
    "--config.train.preview_images=2",
]

# For processes that compile much and compute little: the environment that halves the compiler's time.
QUICK_COMPILER = {
    "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
    "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),  # the tests' own
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
}

# Thresholds that let a network that has learned nothing find things and stuff.
EAGER = {"center_threshold": 0.0, "stuff_threshold": 0.0, "min_score": 0.0, "merge_score": 0.0, "min_stuff_area": 1}
# The same for a command. Thresholds are constants of a compiled program: with these, tests of several files share one.
EAGER_FLAGS = [f"--config.inference.{name}={value}" for name, value in EAGER.items()]


def tiny_variables(model: PanopticFCN, *, seed: int = 3, sharpness: float = 20.0) -> dict[str, Any]:
    """Random weights, drawn without compiling anything; `sharpness` makes masks that differ from place to place."""
    rng = np.random.default_rng(seed)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        name = jax.tree_util.keystr(path)
        if leaf.ndim < 2:
            return np.full(leaf.shape, 1.0 if "scale" in name or "var" in name else 0.0, np.float32)
        value = rng.normal(size=leaf.shape) * np.sqrt(2.0 / np.prod(leaf.shape[:-1]))
        return (value * (sharpness if "embedding" in name else 1.0)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, abstract_variables(model))


def write_tiny_model(directory: pathlib.Path) -> pathlib.Path:
    """A checkpoint of the tiny network with random weights and eager thresholds."""
    config = from_command_line(TINY)
    config = dataclasses.replace(config, inference=dataclasses.replace(config.inference, **EAGER))
    classes = class_table()
    meta = {"kind": "model", "config": json.loads(to_json(config)), "classes": classes.to_json()}
    save_model(directory, model=tiny_variables(build_model(config.model, *classes.counts)), meta=meta)
    return directory
