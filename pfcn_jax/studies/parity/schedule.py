"""The learning rates of the published schedules against the recorded ones."""

from __future__ import annotations

import pathlib

import jax.numpy as jnp
import numpy as np

from pfcn_jax.optim.options import OptimOptions
from pfcn_jax.optim.rules import learning_rate_schedule
from pfcn_jax.studies.parity.reference import Check, check, recorded_files

STEPS = {"1x": 90_000, "3x": 270_000}
RELATIVE = 2e-6  # float32 against float64


def check_schedule(reference: pathlib.Path) -> list[Check]:
    """The learning rate at every recorded step, relative to the recorded one."""
    checks = []
    for recorded in recorded_files(reference, "lr_schedule*.npz"):
        for key in recorded.arrays:
            if not key.endswith(".iter"):
                continue
            name = key.removesuffix(".iter")
            schedule = learning_rate_schedule(OptimOptions(), steps=STEPS[name.split("-")[-1]], batch_size=16)
            ours = np.array([float(schedule(jnp.int32(step))) for step in recorded[key]])
            theirs = recorded[f"{name}.lr"]
            checks.append(check(recorded.name, f"{name}.lr (relative)", ours / theirs, np.ones_like(theirs), RELATIVE))
    return checks
