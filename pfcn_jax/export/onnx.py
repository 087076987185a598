"""The prediction of one shape as an ONNX model. Only here the converter and the runtime are imported."""

from __future__ import annotations

import json
import logging
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pfcn_jax.errors import UserError
from pfcn_jax.export.program import Function, Shape

OPSET = 23
INSTALL = (
    "ONNX needs packages that do not go together with those of training: in an environment of its own, "
    "`pip install -r requirements-onnx.txt` and export from the .safetensors"
)
_META = "pfcn_jax"  # of the model's metadata: the same JSON as in an exported program
_real_loop = jax.lax.fori_loop


def _for_a_cpu(*arguments: Any, default: Callable[..., Any], **platforms: Callable[..., Any]) -> Any:
    """`platform_dependent` without a choice: the converter knows no platforms."""
    return platforms.get("cpu", default)(*arguments)


def convert(
    function: Function, weights: Mapping[str, Any], shape: Shape, outputs: Sequence[str], meta: Mapping[str, Any]
) -> bytes:
    """The function as an ONNX model; the weights are inside.

    Args:
      outputs: names of the results, in the function's order.
      meta: what the model says about itself; the shape is added.

    Raises:
      UserError: the converter is not installed.
    """
    try:
        from jax2onnx import to_onnx
    except ImportError as error:
        raise UserError(f"{INSTALL} ({error})") from error

    lax: Any = jax.lax

    def traced(image: Any, size: Any, original_size: Any) -> list[Any]:
        # The converter puts a loop of its own in place of JAX's, one that needs a number known beforehand. What JAX's
        # makes, a `while`, it converts well.
        theirs, jax.lax.fori_loop = jax.lax.fori_loop, _real_loop
        choice, lax.platform_dependent = lax.platform_dependent, _for_a_cpu
        try:
            found = function(weights, image, size, original_size)
        finally:
            jax.lax.fori_loop, lax.platform_dependent = theirs, choice
        return [found[name] for name in outputs]

    image = jax.ShapeDtypeStruct((shape.batch, *shape.canvas, 3), jnp.uint8)
    size = jax.ShapeDtypeStruct((shape.batch, 2), jnp.int32)
    noisy = logging.getLogger("onnx_ir")
    before = noisy.level
    noisy.setLevel(logging.ERROR)  # it warns of every shape that it does not write down
    try:
        model = to_onnx(
            traced,
            [image, size, size],
            model_name="pfcn_jax",
            opset=OPSET,
            input_names=["image", "size", "original_size"],
            output_names=list(outputs),
        )
    finally:
        noisy.setLevel(before)
    entry = model.metadata_props.add()
    program = {"batch": shape.batch, "canvas": shape.canvas, "output": shape.output}
    entry.key, entry.value = _META, json.dumps({**meta, "programs": [program]})
    return model.SerializeToString()


def load_onnx(path: pathlib.Path) -> tuple[dict[str, Any], Callable[..., dict[str, np.ndarray]]]:
    """The interface of `run_exported.load` for an ONNX model in ONNX Runtime on the CPU.

    Raises:
      UserError: the runtime is not installed, or it does not take the file.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(f"{INSTALL} ({error})") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; it warns of every constant that nothing uses
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its classes are not public
        raise UserError(f"{path}: ONNX Runtime does not take it ({error})") from error
    inputs = [entry.name for entry in session.get_inputs()]
    outputs = [entry.name for entry in session.get_outputs()]

    def run(program: Any, *arrays: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(outputs, session.run(None, dict(zip(inputs, arrays, strict=True)))))

    return json.loads(session.get_modelmeta().custom_metadata_map[_META]), run
