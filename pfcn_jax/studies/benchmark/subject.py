"""The measured model with its weights, and its input images on a canvas."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import pathlib
from typing import Any

import jax
import numpy as np
from jaxtyping import Int32, UInt8

from pfcn_jax.checkpoints.loading import load_with_config
from pfcn_jax.config.command_line import from_command_line
from pfcn_jax.config.schema import Config
from pfcn_jax.data.classes import ClassTable, coco_classes
from pfcn_jax.data.decode import decode_image
from pfcn_jax.data.inputs import open_evaluation
from pfcn_jax.data.transforms import resize_image, resized_size
from pfcn_jax.errors import UserError
from pfcn_jax.inference.input_files import find_inputs
from pfcn_jax.interop.convert import to_params
from pfcn_jax.models.build import build_model
from pfcn_jax.models.options import ModelOptions
from pfcn_jax.models.panoptic_fcn import PanopticFCN, init_variables
from pfcn_jax.studies.reference_weights import make_state_dict
from pfcn_jax.types import round_up

PyTree = Any
BASE, ENHANCED = "R50-1x", "Star-R50-3x"  # variants of the original with recorded weights
_IMAGES = 16  # of a data set, to make batches of


@dataclasses.dataclass(frozen=True)
class Subject:
    """A network with its variables (on the device), its config, and where the weights come from."""

    config: Config
    model: PanopticFCN
    variables: PyTree
    weights: str


def load_subject(args: argparse.Namespace) -> Subject:
    """The model of `--checkpoint`, of `--reference` (the original's weights), or a random one of `--config`."""
    if args.checkpoint and args.reference:
        raise UserError("--checkpoint and --reference both name weights: give one of them")
    if args.checkpoint:
        loaded = load_with_config(pathlib.Path(args.checkpoint), args.config_argv)
        return Subject(loaded.config, loaded.model, jax.device_put(loaded.variables), f"checkpoint {args.checkpoint}")
    if args.reference:
        return reference_subject(args, ENHANCED if args.enhanced else BASE)
    config = from_command_line(args.config_argv)
    model = build_model(config.model, *_classes(config, args).counts)
    variables = init_variables(model, jax.random.key(config.seed))
    return Subject(config, model, {"batch_stats": {}, **variables}, f"random, seed {config.seed}")


def reference_subject(args: argparse.Namespace, variant: str) -> Subject:
    """A variant of the original with its recorded weights; the config's other sections come from the command line."""
    folder = pathlib.Path(args.reference)
    if not (folder / "weights.py").is_file():
        raise UserError(f"{folder}: no weights.py here; expected a reference data directory")
    converted = to_params(make_state_dict(folder, variant))
    known = {field.name for field in dataclasses.fields(ModelOptions)}
    options = {name: value for name, value in converted.model_options().items() if name in known}
    config = from_command_line(args.config_argv, Config(name=f"original_{variant}"))
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, **options))
    model = build_model(config.model, *coco_classes().counts)
    return Subject(config, model, jax.device_put(converted.variables), f"the original's, recorded ({variant})")


def _classes(config: Config, args: argparse.Namespace) -> ClassTable:
    if args.images and config.data.source != "scenes":
        return coco_classes()  # the images have no labels, and the data set need not be there
    return open_evaluation(config.data, 1).classes


def read_images(args: argparse.Namespace, config: Config) -> list[UInt8[np.ndarray, "h w 3"]]:
    """`--images` decoded, or the first images of the config's evaluation split."""
    if args.images:
        paths = [entry.path for entry in find_inputs(args.images) if not entry.is_video]
        return [decode_image(path.read_bytes(), str(path)) for path in paths]
    source = open_evaluation(config.data, _IMAGES)
    return [source[index].image for index in range(len(source))]


@dataclasses.dataclass(frozen=True)
class Placed:
    """A batch as the prediction takes it."""

    image: UInt8[np.ndarray, "B H W 3"]
    size: Int32[np.ndarray, "B 2"]
    original_size: Int32[np.ndarray, "B 2"]

    @property
    def canvas(self) -> tuple[int, int]:
        return self.image.shape[1], self.image.shape[2]


def place(images: list[UInt8[np.ndarray, "h w 3"]], batch: int, config: Config) -> Placed:
    """`batch` images (taken in turn), resized to the config's evaluation size, on the smallest canvas for them."""
    chosen = list(itertools.islice(itertools.cycle(images), batch))
    short, longest = config.data.eval_short_side, config.data.eval_max_long_side
    sizes = [resized_size((photo.shape[0], photo.shape[1]), short, longest) for photo in chosen]
    height, width = (max(round_up(size[axis]) for size in sizes) for axis in (0, 1))
    image = np.zeros((batch, height, width, 3), np.uint8)
    for row, photo, size in zip(image, chosen, sizes):
        row[: size[0], : size[1]] = resize_image(photo, size)
    original = np.array([photo.shape[:2] for photo in chosen], np.int32)
    return Placed(image, np.array(sizes, np.int32), original)
