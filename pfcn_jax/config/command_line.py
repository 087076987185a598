"""A config from the command line: `--config=FILE --config.key=value ...`."""

from __future__ import annotations

import dataclasses
import pathlib
import typing
from typing import Any

from pfcn_jax.config.schema import RENAMED_KEYS, Config, check_key, from_dict, with_new_names
from pfcn_jax.errors import ConfigError
from pfcn_jax.utils.stderr import print_lines


def from_command_line(config_argv: list[str], base: Config | None = None) -> Config:
    """`--config=FILE --config.key=value ...` -> a checked config. `FILE:NAME` hands NAME to the file's `get_config`.

    Args:
      base: what the keys change if no file is given (the config of a checkpoint).

    Raises:
      ConfigError: if there is no file, the file fails, or a key or value does not fit.
    """
    import ml_collections
    from absl import flags
    from ml_collections import config_flags

    renamed = [_with_new_key(word) for word in config_argv]
    lines = [f"{old}: write {new}" for old, new in zip(config_argv, renamed) if old != new]
    config_argv = renamed
    _check_overrides(config_argv)
    files = [word.partition("=")[2] for word in config_argv if word.startswith("--config=")]
    values, argv = flags.FlagValues(), ["pfcn_jax", *config_argv]
    if files:
        file = files[-1].partition(":")[0]
        if not pathlib.Path(file).is_file():
            raise ConfigError(f"{file}: no such config file")
        config_flags.DEFINE_config_file("config", flag_values=values, lock_config=True, sys_argv=argv)
    elif base is not None:
        tree = ml_collections.ConfigDict(dataclasses.asdict(base), convert_dict=True)
        config_flags.DEFINE_config_dict("config", tree, flag_values=values, lock_config=True, sys_argv=argv)
    else:
        raise ConfigError("no config: add --config configs/quickstart.py (or another file of configs/)")
    try:
        values(argv)
        tree = values.config.to_dict()
    except (flags.Error, OSError, KeyError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"{' '.join(config_argv)}: {_reason(error)}") from error
    tree, more = with_new_names(tree)
    for line in (*lines, *more):
        print_lines(line)
    return from_dict(tree)


def _with_new_key(word: str) -> str:
    """`--config.key=value` with the key's name of now."""
    name, equals, value = word.partition("=")
    new = RENAMED_KEYS.get(name.removeprefix("--config."))
    return f"--config.{new}{equals}{value}" if new else word


def _check_overrides(config_argv: list[str]) -> None:
    """Raises ConfigError for the first `--config.key=value` whose key the schema does not have."""
    for word in config_argv:
        name, path = word.partition("=")[0].removeprefix("--"), "config"
        schema: Any = Config
        for key in name.partition("[")[0].split(".")[1:]:
            if not dataclasses.is_dataclass(schema):
                raise ConfigError(f"{name}: unknown config key ({path} is a value, not a section of keys)")
            check_key(schema, key, path)
            schema, path = typing.get_type_hints(schema)[key], f"{path}.{key}"


def _reason(error: Exception) -> str:
    """The reason of an error. A config file that fails is reported as a whole traceback: its last line says why."""
    text = str(error.args[0]).strip(chr(39))
    return text.strip().splitlines()[-1].partition(": ")[2] if "Traceback" in text else text
