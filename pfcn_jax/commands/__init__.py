"""The verbs of the command line: one file each here, or the `command.py` of an app or a study."""

from __future__ import annotations

import re

from pfcn_jax.utils.stderr import print_lines

VERBS = {
    "train": "train a model (and evaluate it, and draw what it sees)",
    "evaluate": "PQ, AP and mIoU of a checkpoint, or PQ of anybody's panoptic predictions",
    "predict": "segment images: panoptic PNG, JSON and an overlay image for each",
    "bulk": "segment a folder or bucket of any size: many workers, resumable, each image written once (Ray)",
    "explain": "the method's insides for an image: centers, regions, kernels before and after fusion",
    "demo": "a web page on this computer: drop an image, see its segments, drag the thresholds",
    "inspect": "show the config, the parameter table and one batch",
    "validate-data": "read a whole data set and say whether it will train, and what is wrong with it",
    "browse": "one image of many: examples with their labels, and the targets as the network sees them",
    "prepare": "instance or semantic labels -> COCO-panoptic; COCO -> ArrayRecord",
    "curves": "losses and PQ of one or more runs as one image",
    "convert": "weights of the original, detectron2, torchvision or timm -> a checkpoint, and back",
    "weights": "published weights by name: list, get, path, verify, remove",
    "ablate": "the paper's ablation tables, trained and scored row by row, beside the published figures",
    "card": "a checkpoint's model card: what it is, was trained on, scores, and cannot do",
    "export": "a model as one file: the whole program for JAX alone, its parameters, or ONNX",
    "benchmark": "time, memory and efficiency of each part, beside a matrix product measured in the same run",
    "compile": "the programs of a config, compiled for TPUs without one: does it fit, what does each part cost",
    "parity": "check every tensor of a reference data directory",
}
# Verbs outside of commands/.
ROOMS = {"apps": ("bulk", "demo", "explain"), "studies": ("ablate", "benchmark", "compile", "parity")}
RENAMED_FLAGS = {"--pictures": "--images"}  # old names work for one release
EXTRAS = {"matplotlib": "plots", "array_record": "tfds", "importlib_resources": "tfds", "tensorflow_datasets": "tfds"}


def module_of(verb: str) -> str:
    """The module with the verb's `add_flags(parser)` and `main(args) -> exit status`."""
    for room, verbs in ROOMS.items():
        if verb in verbs:
            return f"pfcn_jax.{room}.{verb}.command"
    return f"pfcn_jax.commands.{verb.replace('-', '_')}"


def rename_flags(argv: list[str]) -> list[str]:
    """The arguments with flags of old names under their new ones; says so for each."""
    for old, new in RENAMED_FLAGS.items():
        renamed = [re.sub(f"^{old}(?==|$)", new, word) for word in argv]
        if renamed != argv:
            print_lines(f"{old}: write {new}; the old name goes with the next release")
        argv = renamed
    return argv
