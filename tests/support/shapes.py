"""Checks of the shapes and types in signatures while tests run: jaxtyping's import hook with beartype.

Functions and methods are checked when they are called or traced. Constructors of structs are not: `jax.tree.map` and
`vmap` fill a struct's fields with axes, shapes and placeholders, too. Left out are `metrics/`, `viz/` and `codec`,
whose functions check their arguments themselves with errors of their own, which are tested.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jaxtyping
import numpy as np

# Modules whose signatures are known to be true; add the others of data/, panoptic/ and models/ as theirs are made so.
ROOMS = (
    "data.augment", "data.datasets.coco", "data.datasets.scenes", "data.datasets.shapes",
    "data.pipeline", "data.scoring", "data.segments", "data.transforms", "models.layers", "models.ops",
    "panoptic.fusion", "panoptic.guidance", "panoptic.kernels",
)  # fmt: skip


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its annotations checked at every call."""
    from beartype import BeartypeConf, beartype

    if function.__name__ == "__init__":
        return function
    return beartype(function, conf=BeartypeConf(is_pep484_tower=True))  # an int will do for a float


def install() -> None:
    """Checks every function of `ROOMS`. Call it before the package is imported."""
    jaxtyping.Array = jax.Array | np.ndarray  # JAX functions take both
    jaxtyping.install_import_hook([f"pfcn_jax.{room}" for room in ROOMS], "tests.support.shapes.check")
