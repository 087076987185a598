"""The config: its schema with defaults, and the checks of every key.

The defaults are Panoptic FCN with ResNet-50 on COCO, 1x (configs/panoptic_fcn_r50.py states those of the method). A
config file returns an `ml_collections.ConfigDict`; `from_dict` turns it into these frozen dataclasses. A key that is
not in the schema, or a value of another type, is an error that names the key: nothing is silently ignored.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pfcn_jax.config.checks import check_values
from pfcn_jax.data.options import DataOptions
from pfcn_jax.errors import ConfigError
from pfcn_jax.models.options import ModelOptions
from pfcn_jax.optim.options import OptimOptions
from pfcn_jax.panoptic.options import LossOptions, PredictOptions, TargetOptions, TTAOptions
from pfcn_jax.utils.settings import setting

if TYPE_CHECKING:
    import ml_collections


RENAMED_KEYS = {"train.preview_pictures": "train.preview_images"}
RENAMED_VALUES = {"targets.padding": {"picture": "image"}}


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """The training program."""

    steps: int = setting(90_000, at_least=1)
    batch_size: int = setting(16, at_least=1)  # over all devices and all parts of a step
    accumulate: int = setting(1, at_least=1)  # sequential parts of a batch: less memory, the same result
    # of the averaged weights, which are evaluated and saved as the model; 0 = no averaging
    ema_decay: float = setting(0.0, at_least=0, below=1)
    log_every: int = setting(20, at_least=1, affects="run")
    eval_every: int = setting(5000, at_least=0, affects="run")  # 0: only at the end
    eval_examples: int = setting(500, at_least=0, affects="run")  # of a periodic evaluation; 0 = all, as the last one
    eval_batch_size: int = setting(8, at_least=1, affects="run")  # at least; rounded up to a multiple of the devices
    checkpoint_every: int = setting(2500, at_least=1, affects="run")
    keep_latest: int = setting(2, at_least=1, affects="run")
    keep_best: int = setting(1, at_least=0, affects="run")  # by PQ of the evaluation
    preview_images: int = setting(8, at_least=0, affects="run")  # overlay images written by the last evaluation
    init_from: str = ""  # a checkpoint of this project to start from: a model, or a backbone made by `convert`
    # A loss or gradient that is not finite stops the run, or skips the update of its step.
    on_nonfinite: Literal["stop", "skip"] = "stop"
    max_skipped: int = setting(100, at_least=0)  # "skip": steps of a run that may be skipped; one more stops it
    # Parameters outside the backbone that do not fit (other classes) are initialized; else they are an error.
    fresh_heads: bool = False


@dataclasses.dataclass(frozen=True)
class EvaluationOptions:
    """Metrics of an evaluation."""

    # Files of pfcn_jax/metrics, or "module:name" of your own (docs/extending.md). PQ is always measured, since it ranks
    # checkpoints. Periodic evaluations measure PQ alone.
    metrics: tuple[str, ...] = setting(("pq", "ap", "miou"), affects="scores")


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run."""

    name: str = "panoptic_fcn_r50"
    seed: int = setting(0, at_least=0)
    data: DataOptions = dataclasses.field(default_factory=DataOptions)
    model: ModelOptions = dataclasses.field(default_factory=ModelOptions)
    targets: TargetOptions = dataclasses.field(default_factory=TargetOptions)
    loss: LossOptions = dataclasses.field(default_factory=LossOptions)
    inference: PredictOptions = dataclasses.field(default_factory=PredictOptions)
    tta: TTAOptions = dataclasses.field(default_factory=TTAOptions)
    optim: OptimOptions = dataclasses.field(default_factory=OptimOptions)
    train: TrainOptions = dataclasses.field(default_factory=TrainOptions)
    evaluation: EvaluationOptions = dataclasses.field(default_factory=EvaluationOptions)


def default_config() -> ml_collections.ConfigDict:
    """The schema's defaults as a ConfigDict, the starting point of every config file."""
    import ml_collections  # here: only config files and command lines need it, a checkpoint does not

    return ml_collections.ConfigDict(dataclasses.asdict(Config()), convert_dict=True)


def from_dict(tree: Mapping[str, Any]) -> Config:
    """Checks a config against the schema.

    Raises:
      ConfigError: for an unknown key (with the nearest known one) or a value of a wrong type, or values that cannot
        work together; it names the key.
    """
    if to_dict := getattr(tree, "to_dict", None):  # a ConfigDict
        tree = to_dict()
    config = _build(Config, with_new_names(tree)[0], "config")
    check_values(config)
    return config


def with_new_names(tree: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A config in which old names of keys and values are replaced by those of now, and a line for each of them."""
    tree = {key: dict(part) if isinstance(part, Mapping) else part for key, part in tree.items()}
    lines = []
    for old, new in RENAMED_KEYS.items():
        (section, before), after = old.split("."), new.split(".")[1]
        part = tree.get(section)
        if isinstance(part, dict) and before in part:
            part[after] = part.pop(before)
            lines.append(f"config.{old} is called config.{new} now; the old name goes with the next release")
    for key, values in RENAMED_VALUES.items():
        section, name = key.split(".")
        part = tree.get(section)
        if isinstance(part, dict) and part.get(name) in values:
            before, part[name] = part[name], values[part[name]]
            lines.append(
                f"config.{key}: {before!r} is called {part[name]!r} now; the old name goes with the next release"
            )
    return tree, lines


def check_key(schema: Any, key: str, path: str) -> None:
    """Raises ConfigError if a section of the schema has no such key, with the nearest one that it has."""
    known = [field.name for field in dataclasses.fields(schema)]
    if key not in known:
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise ConfigError(f"{path}.{key}: unknown config key{hint} (known: {', '.join(known)})")


def to_json(config: Config) -> str:
    """The config as sorted JSON text."""
    return json.dumps(dataclasses.asdict(config), indent=2, sort_keys=True)


def config_hash(config: Config) -> str:
    """Twelve hex digits that change with any value of the config."""
    return hashlib.sha256(to_json(config).encode()).hexdigest()[:12]


def _build(schema: type, tree: Mapping[str, Any], path: str) -> Any:
    for key in tree:
        check_key(schema, str(key), path)
    hints = typing.get_type_hints(schema)
    values = {key: _convert(value, hints[key], f"{path}.{key}") for key, value in tree.items()}
    return schema(**values)


def _convert(value: Any, hint: Any, path: str) -> Any:
    """`value` as the type that the schema asks for; JSON's lists become tuples, whole numbers may stand for floats."""
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path}: is a section of keys, got {value!r}")
        return _build(typing.cast(type, hint), value, path)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{path}: must be a sequence, got {value!r}")
        parts = typing.get_args(hint)
        if len(parts) == 2 and parts[1] is Ellipsis:
            parts = (parts[0],) * len(value)
        if len(parts) != len(value):
            raise ConfigError(f"{path}: must have {len(parts)} entries, got {value!r}")
        return tuple(_convert(entry, part, f"{path}[{i}]") for i, (entry, part) in enumerate(zip(value, parts)))
    if typing.get_origin(hint) is Literal:
        if value not in typing.get_args(hint):
            raise ConfigError(f"{path}: must be one of {', '.join(typing.get_args(hint))}, got {value!r}")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{path}: must be {hint.__name__}, got {value!r}")
    return value
