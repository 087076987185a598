"""`convert`: weights of the original, detectron2, torchvision or timm -> a checkpoint with its config; and back.

convert --input model_final.pth --output runs/converted            the original's model, or an ImageNet backbone
convert --checkpoint runs/mine --output model.pth                  a state dict that the original loads, strictly
"""

from __future__ import annotations

import argparse
import pathlib

import jax
import numpy as np

from pfcn_jax.checkpoints.conversion import convert_file
from pfcn_jax.checkpoints.loading import load_checkpoint
from pfcn_jax.config.command_line import from_command_line
from pfcn_jax.config.schema import Config
from pfcn_jax.errors import UserError
from pfcn_jax.interop.convert import from_params
from pfcn_jax.interop.names import ModelFacts
from pfcn_jax.interop.writer import write_state_dict
from pfcn_jax.models.backbones.resnet import DEPTHS


def add_flags(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", help="a .pth, .pkl or .safetensors file")
    source.add_argument("--checkpoint", help="a checkpoint of ours, to write in the original's format")
    parser.add_argument("--output", required=True, help="a new folder; with --checkpoint: the .pth file to write")
    parser.add_argument("--classes", help="a COCO-panoptic JSON whose `categories` the model was trained on")
    parser.add_argument(
        "--torchvision",
        action="store_true",
        default=None,
        help="a backbone under detectron2's names was made from torchvision's weights (RGB, stride in the 3x3)",
    )


def main(args: argparse.Namespace) -> int:
    output = pathlib.Path(args.output)
    if args.checkpoint:
        if args.config_argv:
            raise UserError("convert --checkpoint takes no config: the checkpoint has its own")
        count = to_original(pathlib.Path(args.checkpoint), output)
        print(f"{output}: {count} tensors under the original's names")
        return 0
    given = from_command_line(args.config_argv, Config())
    made = convert_file(
        pathlib.Path(args.input), given, output, torchvision_weights=args.torchvision, classes_file=args.classes
    )
    model = made.config.model
    kind = "a backbone" if made.is_backbone else "a whole model"
    print(f"{made.path}: {kind} ({made.source}), {made.num_parameters:,} numbers")
    place = f", stride in the {'1x1' if model.stride_in_1x1 else '3x3'} convolution" if model.backbone in DEPTHS else ""
    print(f"  {model.backbone}{place}")
    if made.is_backbone:
        print(f"  {model.pixel_order.upper()}, mean {model.pixel_mean}, std {model.pixel_std}")
        print(f"start from it with --config.train.init_from={output} (and these settings under config.model)")
    return 0


def to_original(checkpoint: pathlib.Path, output: pathlib.Path) -> int:
    """Writes a checkpoint as a `.pth` with the original's names; returns the number of tensors."""
    loaded = load_checkpoint(checkpoint)
    facts = ModelFacts(loaded.config.model, *loaded.classes.counts)
    state_dict = from_params(jax.tree.map(np.asarray, loaded.variables), facts)
    write_state_dict(output, state_dict)
    return len(state_dict)
