"""The weights that the tensors of a reference data directory were recorded with."""

from __future__ import annotations

import importlib.util
import json
import pathlib
from typing import Any

import numpy as np


def make_state_dict(reference: pathlib.Path, variant: str) -> dict[str, np.ndarray]:
    """The original's state dict (PyTorch names and layouts) for `variant`, drawn by the directory's own recipe.

    The recipe `weights.py` is imported from the directory: point this at a directory that you trust, as a test suite.
    """
    star = variant.startswith("Star")
    listing = reference / "tensors" / f"state_dict_{'Star-R50-3x' if star else 'R50-1x'}.json"
    recipe = load_recipe(reference / "weights.py")
    names = json.loads(listing.read_text())
    return {name: recipe.make(name, tuple(entry["shape"])) for name, entry in names.items()}


def load_recipe(path: pathlib.Path) -> Any:
    """A directory's own `weights.py` as a module. It is executed: point this at a directory that you trust."""
    specification = importlib.util.spec_from_file_location("pfcn_reference_weights", path)
    if specification is None or specification.loader is None or not path.is_file():
        raise FileNotFoundError(f"{path}: cannot be loaded")
    recipe = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(recipe)
    return recipe
