"""Reading the reference data directory: recorded tensors and their yardsticks.

Recorded arrays are channels first and keep every `step`-th channel of large tensors; `Recorded.compare` takes ours
channels last and compares what was kept.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Check:
    """One compared tensor. `ok` is what decides; `tolerance` is in the unit of `max_abs_diff`."""

    file: str
    tensor: str
    max_abs_diff: float
    tolerance: float
    ok: bool


def check(file: str, tensor: str, ours: np.ndarray, theirs: np.ndarray, tolerance: float) -> Check:
    """Compares two arrays of one shape; a shape that differs or a NaN is never ok."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    if ours.shape != theirs.shape:
        return Check(file, f"{tensor}: shape {ours.shape}, recorded {theirs.shape}", float("inf"), tolerance, False)
    difference = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
    largest = float(difference.max()) if difference.size else 0.0
    return Check(file, tensor, largest, float(tolerance), bool(largest <= tolerance))


class Recorded:
    """One `.npz` of the reference data directory."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.name = path.name
        with np.load(path, allow_pickle=False) as archive:
            self.arrays: dict[str, np.ndarray] = {key: archive[key] for key in archive.files}
        self.meta: dict[str, dict[str, Any]] = json.loads(str(self.arrays.pop("__meta__")))
        self.config: dict[str, Any] = json.loads(str(self.arrays["config"])) if "config" in self.arrays else {}

    def __contains__(self, key: str) -> bool:
        return key in self.arrays or f"{key}.bits" in self.arrays

    def __getitem__(self, key: str) -> np.ndarray:
        """An array; a boolean one that was packed (`key.bits`, `key.shape`) is unpacked."""
        if f"{key}.bits" in self.arrays:
            shape = tuple(self.arrays[f"{key}.shape"])
            bits = np.unpackbits(self.arrays[f"{key}.bits"], axis=-1)
            return bits[..., : shape[-1]].reshape(shape).astype(bool)
        return self.arrays[key]

    def json(self, key: str) -> Any:
        return json.loads(str(self.arrays[key]))

    def f64err(self, key: str) -> float | None:
        """Largest float32 - float64 difference of the original itself: the yardstick of a tolerance."""
        return self.meta.get(key, {}).get("f64err")

    def compare(self, key: str, ours: np.ndarray, *, relative: float = 1e-5) -> Check:
        """Compares channels-last `ours` `[B, h, w, C]`; allowed: 3 x f64err, or relative x the tensor's maximum."""
        theirs = self[key]
        meta = self.meta.get(key, {})
        ours = np.moveaxis(np.asarray(ours), -1, 1)[:, :: meta.get("step", 1)]
        largest = meta.get("absmax", float(np.abs(theirs).max(initial=0.0)))
        return check(self.name, key, ours, theirs, max(3.0 * meta.get("f64err", 0.0), relative * largest))


def recorded_files(reference: pathlib.Path, pattern: str = "*.npz") -> Iterator[Recorded]:
    """The recorded files that match, in name order; a directory without a single one is an error."""
    directory = reference / "tensors"
    if not directory.is_dir():
        raise FileNotFoundError(f"{reference}: no folder 'tensors'; expected a reference data directory")
    for path in sorted(directory.glob(pattern)):
        yield Recorded(path)


def direction_of(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The random direction that a parameter's gradient or change is projected on, drawn from its name."""
    seed = int.from_bytes(hashlib.sha256(f"probe:{name}".encode()).digest()[:8], "little")
    return np.random.Generator(np.random.PCG64(seed)).standard_normal(shape, dtype=np.float32)
