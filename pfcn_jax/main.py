"""The front door: `python -m pfcn_jax.main [verb] --config configs/X.py [--config.key=value ...] [flags]`.

Without a verb: train.
"""

from __future__ import annotations

import argparse
import importlib
import sys

from pfcn_jax.errors import STOPPED, Stopped, TryAgain, UserError
from pfcn_jax.utils.stderr import leave, say

VERBS = {
    "train": "train a model (and evaluate it, and draw what it sees)",
    "evaluate": "PQ, AP and mIoU of a checkpoint, or PQ of anybody's panoptic predictions",
    "predict": "segment pictures: panoptic PNG, JSON and an overlay picture for each",
    "bulk": "segment a folder or bucket of any size: many workers, resumable, each picture written once (Ray)",
    "explain": "the method's insides for a picture: centers, regions, kernels before and after fusion",
    "demo": "a web page on this computer: drop a picture, see its segments, drag the thresholds",
    "inspect": "show the config, the parameter table and one batch",
    "validate-data": "read a whole data set and say whether it will train, and what is wrong with it",
    "browse": "one picture of many: examples with their labels, and the targets as the network sees them",
    "prepare": "instance or semantic labels -> COCO-panoptic; COCO -> ArrayRecord",
    "curves": "losses and PQ of one or more runs as one picture",
    "convert": "weights of the original, detectron2, torchvision or timm -> a checkpoint, and back",
    "ablate": "the paper's ablation tables, trained and scored row by row, beside the published figures",
    "card": "a checkpoint's model card: what it is, was trained on, scores, and cannot do",
    "export": "a model as one file: the whole program for JAX alone, its parameters, or ONNX",
    "benchmark": "time, memory and efficiency of each part, beside a matrix product measured in the same run",
    "parity": "check every tensor of a reference data directory",
}
ROOMS = {"apps": ("bulk", "demo", "explain"), "studies": ("ablate", "benchmark", "parity")}  # others: commands/


def module_of(verb: str) -> str:
    """The module with the verb's `add_flags(parser)` and `main(args) -> exit status`."""
    for room, verbs in ROOMS.items():
        if verb in verbs:
            return f"pfcn_jax.{room}.{verb}.command"
    return f"pfcn_jax.commands.{verb.replace('-', '_')}"


def parse(argv: list[str]) -> argparse.Namespace:
    """The flags of a verb; `--config` and `--config.key=value` stay together in `args.config_argv`."""
    parser = argparse.ArgumentParser(
        prog="python -m pfcn_jax.main",
        description="Panoptic FCN in JAX. Without a verb: train.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="verbs:\n"
        + "\n".join(f"  {verb:14s} {text}" for verb, text in VERBS.items())
        + "\n\n`python -m pfcn_jax.main VERB --help` shows the flags of a verb.",
    )
    verb = argv[0] if argv and not argv[0].startswith("-") else None
    if verb is None and {"-h", "--help"} & set(argv):
        parser.parse_args(["--help"])
    if verb is not None and verb not in VERBS:
        parser.error(f"unknown verb '{verb}' (known: {', '.join(VERBS)})")
    rest = argv[1:] if verb else argv
    verb = verb or "train"
    module = importlib.import_module(module_of(verb))
    flags = argparse.ArgumentParser(
        prog=f"python -m pfcn_jax.main {verb}", description=module.__doc__, allow_abbrev=False
    )
    module.add_flags(flags)
    config_argv, others = _split_config(rest)
    args = flags.parse_args(others)
    args.config_argv, args.run = config_argv, module.main
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse(sys.argv[1:] if argv is None else argv)
    try:
        return int(args.run(args))
    except UserError as error:
        say(f"error: {error}")
        return STOPPED if isinstance(error, TryAgain) else 2
    except Stopped as stopped:
        say(str(stopped))
        return STOPPED


def _split_config(argv: list[str]) -> tuple[list[str], list[str]]:
    """Takes `--config X`, `--config=X`, `--config.key V` and `--config.key=V` out of the arguments."""
    config: list[str] = []
    others: list[str] = []
    words = iter(argv)
    for word in words:
        if word == "--config" or word.startswith(("--config=", "--config.")):
            config.append(word if "=" in word else f"{word}={next(words, '')}")
        else:
            others.append(word)
    return config, others


if __name__ == "__main__":
    leave(main())
