"""Writers of exported models: the whole program, its parameters, the network as ONNX."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

import pfcn_jax
from pfcn_jax.checkpoints.format import WHOLE_MODEL
from pfcn_jax.checkpoints.loading import LoadedModel
from pfcn_jax.config.schema import Config, to_json
from pfcn_jax.data.canvas import smallest_canvas
from pfcn_jax.errors import UserError
from pfcn_jax.export.container import SCRIPT, WEIGHTS, read_script, write_container
from pfcn_jax.export.onnx import convert
from pfcn_jax.export.program import PLATFORMS, Function, Shape, Size, lower
from pfcn_jax.interop.writer import write_safetensors
from pfcn_jax.panoptic.options import OutputSpec, TTAOptions
from pfcn_jax.panoptic.predict import propose
from pfcn_jax.steps import embeddings, generate, predict_step
from pfcn_jax.types import SIZE_DIVISOR, image_geometry, round_up
from pfcn_jax.utils.atomic import write_bytes

ENDINGS = {".pfcn": "program", ".safetensors": "safetensors", ".onnx": "onnx", "": "orbax"}
FIELDS = ("segment_map", "class_id", "is_thing", "score", "area", "valid")  # of the result, see types.py
OUTPUT_SIDES = (768, 1536, 4096)
INPUTS = {
    "image": "uint8 [batch, *canvas, 3]: RGB, resized, at the upper left, zeros elsewhere",
    "size": "int32 [batch, 2]: height and width of the image on the canvas",
    "original_size": "int32 [batch, 2]: height and width of the result, at most `output`",
}
OUTPUTS = {
    "segment_map": "int32 [batch, *output]: 0 = no segment, i = row i - 1 of the arrays below",
    "class_id": "int32 [batch, rows]: index into `classes`",
    "is_thing": "bool [batch, rows]",
    "score": "float32 [batch, rows]",
    "area": "int32 [batch, rows]: pixels",
    "valid": "bool [batch, rows]: False for rows that are not in use",
}
ONNX_OUTPUTS = {
    "feature": "float32 [canvas height / 4, canvas width / 4, channels]: what the kernels are applied to",
    "thing_weight": "float32 [slots, channels]: fused kernels of things, valid ones first, best first",
    "thing_class": "int32 [slots]: index into `classes`",
    "thing_score": "float32 [slots]: of the center",
    "thing_valid": "bool [slots]: False for slots that are not in use",
    "stuff_weight": "float32 [region channels, channels]: fused kernels of stuff",
    "stuff_score": "float32 [region channels]: mean probability of the region",
    "stuff_valid": "bool [region channels]",
}


# ------------------------------------------------------------------------------------------------- the whole program
def program_shapes(config: Config, output_sides: Sequence[int], batch_sizes: Sequence[int]) -> list[Shape]:
    """A shape for each canvas, output and batch; the cheapest first. Every image of the sides fits into one."""
    outputs = sorted({round_up(side) for side in output_sides})
    shapes = [
        Shape(batch, canvas, (side, side))
        for batch in set(batch_sizes)
        for canvas in all_canvases(config)
        for side in outputs
    ]
    return sorted(
        shapes, key=lambda shape: (shape.batch, shape.canvas[0] * shape.canvas[1], shape.output, shape.canvas)
    )


def all_canvases(config: Config) -> list[Size]:
    """The evaluation's canvases, and what the largest lying or standing image needs if none of them holds it."""
    data = config.data
    canvases = list(dict.fromkeys(data.eval_canvases))
    short, long = min(data.eval_short_side, data.eval_max_long_side), data.eval_max_long_side
    for height, width in ((short, long), (long, short)):
        if smallest_canvas((height, width), canvases) is None:
            canvases.append((round_up(height), round_up(width)))
    return canvases


def prediction(loaded: LoadedModel, output: Size) -> Function:
    """(flat weights, image, size, original size) -> the arrays of FIELDS: the whole prediction of one output size."""

    def predict(weights: Mapping[str, Any], image: Any, size: Any, original_size: Any) -> dict[str, Any]:
        variables = unflatten(weights)
        config = loaded.config
        found = predict_step(
            variables,
            image,
            size,
            original_size,
            model=loaded.model,
            config=config,
            output=OutputSpec(output),
        )
        return {name: getattr(found.panoptic, name) for name in FIELDS}

    return predict


def write_program(path: pathlib.Path, loaded: LoadedModel, shapes: Sequence[Shape]) -> str:
    """Lowers the prediction for every shape and writes them with the weights into one file; returns a summary."""
    weights = {f"{WEIGHTS}{name}": array for name, array in flatten(loaded.variables).items()}
    programs: dict[str, bytes] = {}
    entries: list[dict[str, Any]] = []
    for shape in shapes:
        exported = lower(prediction(loaded, shape.output), weights, shape)
        programs[shape.name] = bytes(exported.serialize())
        convention = exported.calling_convention_version
        entries.append({"file": shape.name, **dataclasses.asdict(shape), "calling_convention": convention})
    meta = {**describe(loaded), "inputs": INPUTS, "outputs": OUTPUTS, "platforms": PLATFORMS, "programs": entries}
    write_container(path, meta=meta, programs=programs, weights=weights)
    count = f"{len(programs)} program{'s' * (len(programs) > 1)} for {', '.join(PLATFORMS)}"
    of_programs, size = sum(map(len, programs.values())), path.stat().st_size
    return f"{count} ({of_programs / 1e6:.1f} MB) and {len(weights)} arrays, {size / 1e6:.1f} MB"


def describe(loaded: LoadedModel) -> dict[str, Any]:
    """Description of a model for users without this package: classes, size rule, pixels, config, versions."""
    config = loaded.config
    return {
        "name": config.name,
        "resize_to": [config.data.eval_short_side, config.data.eval_max_long_side],  # short side, at most long side
        "resize_with": "bilinear, antialiased, 8 bits, columns before rows (Pillow)",
        "pixels": {
            "order": config.model.pixel_order,
            "mean": config.model.pixel_mean,
            "std": config.model.pixel_std,
            "where": "inside the program: it takes RGB of 0..255",
        },
        "classes": loaded.classes.to_coco(),
        "config": json.loads(to_json(config)),
        "versions": {
            "pfcn_jax": pfcn_jax.__version__,
            **{name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "numpy")},
        },
    }


# ----------------------------------------------------------------------------------------------- parameters alone
def write_parameters(path: pathlib.Path, loaded: LoadedModel, kind: str) -> str:
    """Writes the parameters with config and classes, as `load` reads them; returns a summary.

    Raises:
      UserError: a checkpoint under this name already (none is overwritten), or it cannot be written.
    """
    arrays = flatten(loaded.variables)
    content = {
        "kind": WHOLE_MODEL,
        "config": json.loads(to_json(loaded.config)),
        "classes": loaded.classes.to_json(),
    }
    if kind == "orbax":
        from pfcn_jax.checkpoints.format import save_model

        path = save_model(path, model=loaded.variables, meta=content)
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    else:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_safetensors(path, arrays, metadata={"format": "pfcn_jax", "meta": json.dumps(content)})
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror or error})", code="disk") from error
        size = path.stat().st_size
    return f"{len(arrays)} arrays, {sum(array.size for array in arrays.values()):,} numbers, {size / 1e6:.1f} MB"


def flatten(variables: Any) -> dict[str, np.ndarray]:
    """`params/backbone/.../kernel` -> array."""
    return flatten_shapes(jax.tree.map(np.asarray, dict(variables)))


def flatten_shapes(variables: Any) -> dict[str, Any]:
    """`flatten` for shapes and types instead of arrays."""
    return traverse_util.flatten_dict(dict(variables), sep="/")


def unflatten(weights: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`; a leading `weights/` is dropped. A network without statistics has none."""
    tree = traverse_util.unflatten_dict({name.removeprefix(WEIGHTS): array for name, array in weights.items()}, sep="/")
    return {"batch_stats": {}, **tree}


# ------------------------------------------------------------------------------------------------------------- ONNX
def onnx_shape(config: Config, canvas: Sequence[int] | None, output_sides: Sequence[int]) -> Shape:
    """One image; the given canvas, or the first of the evaluation's; the largest of the outputs."""
    height, width = canvas or config.data.eval_canvases[0]
    if height % SIZE_DIVISOR or width % SIZE_DIVISOR:
        raise UserError(f"--canvas: both sides must be multiples of {SIZE_DIVISOR}, got {height} {width}")
    side = round_up(max(output_sides))
    return Shape(1, (height, width), (side, side))


def proposals(loaded: LoadedModel) -> Callable[..., dict[str, Any]]:
    """(flat weights, image, size) of a batch of one -> the arrays of ONNX_OUTPUTS: the network up to fused kernels."""

    def propose_kernels(weights: Mapping[str, Any], image: Any, size: Any) -> dict[str, Any]:
        variables, model, config = unflatten(weights), loaded.model, loaded.config
        geometry = image_geometry(size)
        dense = generate(variables, image, geometry, model)
        dense, geometry = jax.tree.map(lambda leaf: leaf[0], (dense, geometry))
        found = propose(dense, embeddings(variables, model), geometry, config.inference)
        fields = {"weight": "weight", "class": "class_id", "score": "score", "valid": "valid"}
        kernels = {"thing": found.things.fused, "stuff": found.stuff}
        arrays = {f"{kind}_{name}": getattr(kernels[kind], fields[name]) for kind in kernels for name in fields}
        return {name: value for name, value in {**arrays, "feature": found.feature}.items() if name in ONNX_OUTPUTS}

    return propose_kernels


def write_onnx(path: pathlib.Path, loaded: LoadedModel, shape: Shape) -> str:
    """Writes the network of one canvas as an ONNX model, and beside it the script that runs it; returns a summary.

    Raises:
      UserError: the package `onnx` is not installed, an operation has no rule, the config augments at test time, or
        the files cannot be written.
    """
    if loaded.config.tta != TTAOptions():
        raise UserError(
            f"{path}: ONNX holds one view of an image; export it with --config.tta.scales=() --config.tta.flip=False, "
            "or as .pfcn, which holds all views",
            code="config",
        )
    image = jax.ShapeDtypeStruct((shape.batch, *shape.canvas, 3), jnp.uint8)
    inputs = {"image": image, "size": jax.ShapeDtypeStruct((shape.batch, 2), jnp.int32)}
    about = {"inputs": {name: INPUTS[name] for name in inputs}, "outputs": ONNX_OUTPUTS}
    meta = {**describe(loaded), **about, "programs": [dataclasses.asdict(shape)]}
    model = convert(proposals(loaded), flatten(loaded.variables), inputs, {"pfcn_jax": json.dumps(meta)})
    try:
        write_bytes(path, model.SerializeToString())
        write_bytes(path.with_name(SCRIPT), read_script())
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})", code="disk") from error
    (height, width), size = shape.canvas, path.stat().st_size
    return (
        f"the network on {height} x {width}, {len(model.graph.node)} nodes, {size / 1e6:.1f} MB; run it with {SCRIPT}"
    )
