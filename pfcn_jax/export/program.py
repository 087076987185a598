"""A prediction function of one shape -> StableHLO that runs without the code that made it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from pfcn_jax.errors import UserError

Size = tuple[int, int]  # (height, width)
PLATFORMS = ("cpu", "cuda", "tpu")
# (weights, image uint8 [B, H, W, 3], size int32 [B, 2], original_size int32 [B, 2]) -> arrays by name
Function = Callable[[Mapping[str, Any], Any, Any, Any], Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Shape:
    """Shapes that are compiled in; everything else is data."""

    batch: int
    canvas: Size  # multiples of 32
    output: Size  # at least as large as every original size

    @property
    def name(self) -> str:
        """Of the program's member in the file."""
        canvas, output = ("x".join(map(str, size)) for size in (self.canvas, self.output))
        return f"programs/batch{self.batch}_canvas{canvas}_output{output}.bin"


def lower(
    function: Function, weights: Mapping[str, Any], shape: Shape, platforms: tuple[str, ...] = PLATFORMS
) -> export.Exported:
    """The function as one program for all platforms, with static shapes.

    Raises:
      UserError: the program calls what only one platform, or only this process, has.
    """
    abstract = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in weights.items()}
    image = jax.ShapeDtypeStruct((shape.batch, *shape.canvas, 3), jnp.uint8)
    size = jax.ShapeDtypeStruct((shape.batch, 2), jnp.int32)
    exported = export.export(jax.jit(function), platforms=platforms)(abstract, image, size, size)
    calls = foreign_calls(exported)
    if calls:
        raise UserError(f"the program cannot be exported: it calls {', '.join(calls)}, which not every platform has")
    return exported


def foreign_calls(exported: export.Exported) -> list[str]:
    """Operations of a program outside of StableHLO: custom calls, host callbacks, feeds."""
    text = exported.mlir_module()
    found = set(re.findall(r"custom_call @([\w.$]+)", text))
    found |= set(re.findall(r"stablehlo\.(infeed|outfeed|send|recv)\b", text))
    return sorted(found)
