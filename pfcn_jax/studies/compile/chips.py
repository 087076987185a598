"""TPU chips and slices by name, and the compiler for them on a machine without a TPU."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from pfcn_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
    """A generation of TPU, by its page of Google's documentation (https://cloud.google.com/tpu/docs/v5e and others)."""

    hbm_bytes: float
    hbm_bandwidth: float  # bytes/s
    peak_flops: float  # bfloat16, 1/s
    clock: float | None  # cycles a second; None: not published
    cores: int  # TensorCores
    accelerator_type: str  # prefix of the names of slices: "v5litepod-4" has four of `named`
    named: str = "chips"  # what the number of an accelerator type counts


# The pages give no clock. It follows from peak = TensorCores x 4 MXUs x 128 x 128 cells x 2 operations x clock; for v6e
# they name two MXUs of 256 x 256 (at times four), which with this peak would be 3.5 GHz: left open.
CHIPS = {
    "v4": Chip(32 * 2**30, 1200e9, 275e12, 1.05e9, 2, "v4", "cores"),
    "v5e": Chip(16e9, 819e9, 197e12, 1.5e9, 1, "v5litepod"),
    "v5p": Chip(95e9, 2765e9, 459e12, 1.75e9, 2, "v5p", "cores"),
    "v6e": Chip(32e9, 1638e9, 918e12, None, 1, "v6e"),
}
ASSUMED_CLOCK = 1.5e9  # where none is known: that of v5e, so that the estimate says how it compares


@dataclasses.dataclass(frozen=True)
class Slice:
    """A slice as `v5e:2x4`: a generation and the torus of its chips."""

    name: str
    chip: Chip
    chips: int

    @property
    def accelerator_type(self) -> str:
        """As in `gcloud compute tpus tpu-vm create --accelerator-type`."""
        number = self.chips * (self.chip.cores if self.chip.named == "cores" else 1)
        return f"{self.chip.accelerator_type}-{number}"


def find_slice(name: str) -> Slice:
    """The slice of a topology's name.

    Raises:
      UserError: no such generation, or no torus.
    """
    generation, _, torus = name.partition(":")
    if generation not in CHIPS or not re.fullmatch(r"\d+(x\d+){1,2}", torus):
        raise UserError(
            f"--topology {name}: expected GENERATION:TORUS, as v5e:2x2, v6e:2x4, v4:2x2x1 or v5p:2x2x1 "
            f"(generations: {', '.join(CHIPS)})"
        )
    return Slice(name, CHIPS[generation], math.prod(int(side) for side in torus.split("x")))


def require_compiler() -> None:
    """Prepares this process to compile for TPUs, with JAX itself on the CPU. Comes before anything asks for a device.

    Raises:
      UserError: libtpu is not installed.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "libtpu, the TPU's compiler, is not installed: pip install -r requirements-tpu.txt (0.7 GB)",
            code="not-installed",
        )
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # the metadata server of a TPU VM
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # nothing here holds a chip
    jax.config.update("jax_platforms", "cpu")


def devices_of(found: Slice) -> Sequence[jax.Device]:
    """The devices of a slice, to compile for. Each is a whole chip (those of v4 and v5p join their two cores).

    Raises:
      UserError: there is no slice of this shape.
    """
    os.environ["TPU_ACCELERATOR_TYPE"] = found.accelerator_type
    joined = {"chip_config_name": "megacore"} if found.chip.cores == 2 else {}
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=found.name, **joined).devices
    except (jax.errors.JaxRuntimeError, RuntimeError) as error:
        raise UserError(f"--topology {found.name}: {str(error).splitlines()[0]}") from error
