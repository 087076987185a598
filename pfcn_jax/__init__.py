"""Panoptic FCN in JAX and Flax.

    from pfcn_jax import load

    model = load("runs/quickstart")   # a working directory, a checkpoint, or exported .safetensors
    result = model("photo.jpg")       # a path, a PIL image or a uint8 array
    result.overlay().save("segments.png")

Importing the package loads nothing else; JAX comes with the first `load`.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pfcn_jax.inference.api import Model
    from pfcn_jax.inference.result import Result, Segment

__version__ = "0.1.0"
__all__ = ["Model", "Result", "Segment", "load"]
_HOMES = {
    "Model": "pfcn_jax.inference.api",
    "Result": "pfcn_jax.inference.result",
    "Segment": "pfcn_jax.inference.result",
}


def load(path: str | os.PathLike[str], **settings: Any) -> Model:
    """A trained model, ready to be called with images.

    Args:
      path: a working directory of `train` or `convert` (its best checkpoint by PQ), a checkpoint, or a
        `.safetensors` file of `export`.
      settings: keys of the config's `inference` section in place of the checkpoint's, such as `merge_score=0.4`.

    Raises:
      UserError: nothing that can be loaded at `path`, or a setting that does not exist; a ValueError.
    """
    from pfcn_jax.inference.api import load_for_use

    return load_for_use(path, settings)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'pfcn_jax' has no attribute {name!r}")
