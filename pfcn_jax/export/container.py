"""One file for a program and everything it needs: an `.npz` by another name.

A zip, stored without compression: `meta.json`, one `programs/*.bin` (a serialised `jax.export.Exported`) for each
shape, one `weights/*.npy` for each array, and the script that runs it. `numpy.load` opens it; reading it executes
nothing.
"""

from __future__ import annotations

import io
import json
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from pfcn_jax.errors import UserError
from pfcn_jax.utils.atomic import atomic_path

FORMAT, VERSION = "pfcn_jax program", 1
META, SCRIPT, WEIGHTS = "meta.json", "run_exported.py", "weights/"
_LONG_AGO = (1980, 1, 1, 0, 0, 0)  # the same content gives the same bytes, whenever it is written


def write_container(
    path: pathlib.Path, *, meta: Mapping[str, Any], programs: Mapping[str, bytes], weights: Mapping[str, np.ndarray]
) -> None:
    """Writes the file; it appears under its name only when complete.

    Args:
      programs: member name -> serialised program.
      weights: name, beginning with `weights/` -> array.

    Raises:
      UserError: it cannot be written.
    """
    content = {"format": FORMAT, "format_version": VERSION, **meta}
    try:
        with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr(_member(META), json.dumps(content, indent=1))
            archive.writestr(_member(SCRIPT), read_script())
            for name, program in programs.items():
                archive.writestr(_member(name), program)
            for name, array in weights.items():
                archive.writestr(_member(f"{name}.npy"), _npy(array))
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error


def read_script() -> bytes:
    """The script that runs exported files, which travels with each of them."""
    return pathlib.Path(__file__).with_name(SCRIPT).read_bytes()


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asarray(array, order="C"), allow_pickle=False)
    return file.getvalue()


def _member(name: str) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name, _LONG_AGO)
    member.create_system, member.external_attr = 3, 0o644 << 16
    return member
