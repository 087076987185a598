"""The front door: `python -m pfcn_jax.main [verb] --config configs/X.py [--config.key=value ...] [flags]`.

Without a verb: train.
"""

from __future__ import annotations

import argparse
import importlib
import sys

from pfcn_jax.commands import EXTRAS, VERBS, module_of, rename_flags
from pfcn_jax.errors import STOPPED, Stopped, TryAgain, UserError, explain, with_code
from pfcn_jax.utils.stderr import exit_with, print_any_script, print_lines


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
    args = flags.parse_args(rename_flags(others))
    args.config_argv, args.run = config_argv, module.main
    return args


def main(argv: list[str] | None = None) -> int:
    return run(parse(sys.argv[1:] if argv is None else argv))


def run(args: argparse.Namespace) -> int:
    """Runs a parsed command and returns its exit status; an error of the user becomes one line."""
    try:
        return int(args.run(args))
    except Stopped as stopped:
        print_lines(str(stopped))
        return STOPPED
    except Exception as error:
        shown = _as_user_error(error)
        if shown is None:
            raise
        print_lines(f"error: {with_code(shown)}")
        return STOPPED if isinstance(shown, TryAgain) else 2


def _as_user_error(error: Exception) -> UserError | None:
    if isinstance(error, UserError):
        return error
    if isinstance(error, ModuleNotFoundError):
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        return (
            UserError(f"{error.name} is not installed: pip install -e '.[{extra}]'", code="not-installed")
            if extra
            else None
        )
    return explain(error)


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
    print_any_script()
    exit_with(main())
