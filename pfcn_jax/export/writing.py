"""Writers of exported models: the whole program, its parameters, ONNX."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
import numpy as np
from flax import traverse_util

import pfcn_jax
from pfcn_jax.checkpoints.format import WHOLE_MODEL
from pfcn_jax.checkpoints.loading import LoadedModel
from pfcn_jax.config.schema import Config, to_json
from pfcn_jax.data.canvas import smallest_canvas
from pfcn_jax.errors import UserError
from pfcn_jax.export.container import WEIGHTS, write_container
from pfcn_jax.export.onnx import convert
from pfcn_jax.export.program import PLATFORMS, Function, Shape, Size, lower
from pfcn_jax.interop.writer import write_safetensors
from pfcn_jax.panoptic.options import OutputSpec
from pfcn_jax.steps import generate, generate_views, predict_step, segment
from pfcn_jax.types import SIZE_DIVISOR, image_geometry, round_up
from pfcn_jax.utils.atomic import write_bytes

ENDINGS = {".pfcn": "program", ".safetensors": "safetensors", ".onnx": "onnx", "": "orbax"}
FIELDS = ("segment_map", "class_id", "is_thing", "score", "area", "valid")  # of the result, see types.py
OUTPUT_SIDES = (768, 1536, 4096)


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
    write_container(path, meta={**describe(loaded), "programs": entries}, programs=programs, weights=weights)
    count = f"{len(programs)} program{'s' * (len(programs) > 1)} for {', '.join(PLATFORMS)}"
    of_programs, size = sum(map(len, programs.values())), path.stat().st_size
    return f"{count} ({of_programs / 1e6:.1f} MB) and {len(weights)} arrays, {size / 1e6:.1f} MB"


def describe(loaded: LoadedModel) -> dict[str, Any]:
    """Description of a program for users without this package: inputs, outputs, classes, config."""
    config = loaded.config
    return {
        "name": config.name,
        "inputs": {
            "image": "uint8 [batch, *canvas, 3]: RGB, resized, at the upper left, zeros elsewhere",
            "size": "int32 [batch, 2]: height and width of the image on the canvas",
            "original_size": "int32 [batch, 2]: height and width of the result, at most `output`",
        },
        "outputs": {
            "segment_map": "int32 [batch, *output]: 0 = no segment, i = row i - 1 of the arrays below",
            "class_id": "int32 [batch, rows]: index into `classes`",
            "is_thing": "bool [batch, rows]",
            "score": "float32 [batch, rows]",
            "area": "int32 [batch, rows]: pixels",
            "valid": "bool [batch, rows]: False for rows that are not in use",
        },
        "resize_to": [config.data.eval_short_side, config.data.eval_max_long_side],  # short side, at most long side
        "resize_with": "bilinear, antialiased, 8 bits, columns before rows (Pillow)",
        "pixels": {
            "order": config.model.pixel_order,
            "mean": config.model.pixel_mean,
            "std": config.model.pixel_std,
            "where": "inside the program: it takes RGB of 0..255",
        },
        "classes": loaded.classes.to_coco(),
        "platforms": PLATFORMS,
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
    """One image; the given canvas, or the first of the evaluation's; the first of the outputs."""
    height, width = canvas or config.data.eval_canvases[0]
    if height % SIZE_DIVISOR or width % SIZE_DIVISOR:
        raise UserError(f"--canvas: both sides must be multiples of {SIZE_DIVISOR}, got {height} {width}")
    side = round_up(output_sides[0])
    return Shape(1, (height, width), (side, side))


def prediction_of_one(loaded: LoadedModel, output: Size) -> Function:
    """`prediction` for batches of one image, without the loop over images: the converter gets that one wrong."""

    def predict(weights: Mapping[str, Any], image: Any, size: Any, original_size: Any) -> dict[str, Any]:
        variables, model, config = unflatten(weights), loaded.model, loaded.config
        geometry = image_geometry(size, original_size)
        dense = generate(variables, image, geometry, model)
        batch = (dense, geometry, generate_views(variables, image, size, model, config.tta, None))
        dense, geometry, views = jax.tree.map(lambda leaf: leaf[0], batch)
        options, spec = config.inference, OutputSpec(output)
        found = segment(variables, dense, geometry, views, model=model, options=options, output=spec)
        return {name: getattr(found.panoptic, name)[None] for name in FIELDS}

    return predict


def write_onnx(path: pathlib.Path, loaded: LoadedModel, shape: Shape) -> str:
    """Writes the whole prediction of one shape as an ONNX model; returns a summary.

    Raises:
      UserError: the converter is not installed, or the file cannot be written.
    """
    weights = flatten(loaded.variables)
    model = convert(prediction_of_one(loaded, shape.output), weights, shape, FIELDS, describe(loaded))
    try:
        write_bytes(path, model)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})", code="disk") from error
    (height, width), side = shape.canvas, shape.output[0]
    return f"the program on {height} x {width}, images up to {side} pixels, {len(model) / 1e6:.1f} MB"
