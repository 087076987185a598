"""Facts about an evaluation that go with its scores: the data and the settings that the scores belong to."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from pfcn_jax.config.schema import Config
from pfcn_jax.data.options import DataOptions
from pfcn_jax.utils.settings import names_affecting


def provenance(config: Config, split: str) -> dict[str, Any]:
    """The entry `evaluated` of an evaluation's JSON, without a path of the machine.

    Returns:
      `source` (of `data.source`), `folder` (its name; "" for drawn scenes), `split`, and `settings`: every key of
      `data`, `inference` and `tta` that affects scores.
    """
    return {
        "source": config.data.source,
        "folder": data_folder(config.data),
        "split": split,
        "settings": _settings(config),
    }


def data_folder(data: DataOptions) -> str:
    """The name of the folder that holds the data, not where it lies; "" for data that are drawn."""
    return "" if data.source == "scenes" else pathlib.PurePath(data.root).name


def changed_settings(evaluated: Mapping[str, Any], config: Config) -> dict[str, Any]:
    """The settings of an evaluation that are not those of `config`: key -> value of the evaluation."""
    own = _settings(config)
    found = evaluated.get("settings", {})
    return {key: value for key, value in found.items() if key in own and own[key] != value}


def _settings(config: Config) -> dict[str, Any]:
    sections = {"data": config.data, "inference": config.inference, "tta": config.tta}
    settings = {
        f"{section}.{name}": getattr(options, name)
        for section, options in sections.items()
        for name in names_affecting(type(options), "scores")
    }
    del settings["data.eval_split"]  # `split` has the name, found or given
    return dict(json.loads(json.dumps(settings)))  # tuples become lists, as they are read back
