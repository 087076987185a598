"""The trainings and evaluations behind the ablation tables: each one once, found again after any stop.

Rows share what is the same in them. A training is named by the hash of everything in its config that can change the
weights, an evaluation by the hash of everything that can change its figures; both lie in the working directory:

    trainings/<hash>/       a training run like any other; training.json is there once it is complete
    evaluations/<hash>.json the figures of one row and seed
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from typing import Any

import jax
import numpy as np

from pfcn_jax.checkpoints.loading import load_checkpoint
from pfcn_jax.config.schema import Config, from_dict
from pfcn_jax.data.inputs import open_evaluation
from pfcn_jax.errors import UserError
from pfcn_jax.evaluation.curves import read_metrics
from pfcn_jax.evaluation.evaluate import EvaluationResult, evaluate_model
from pfcn_jax.parallel.protocol import number_of_process_0
from pfcn_jax.parallel.sharding import data_mesh
from pfcn_jax.studies.ablate.tables import Figures
from pfcn_jax.training.trainer import Trainer
from pfcn_jax.utils.atomic import write_json
from pfcn_jax.utils.environment import environment
from pfcn_jax.utils.settings import Affects, names_affecting


def training_key(config: Config) -> str:
    """The hash of everything that the weights depend on."""
    return evaluation_key(_without(config, "scores"))


def evaluation_key(config: Config) -> str:
    """The hash of everything that the figures depend on.

    Only values that differ from the schema's defaults are in it, so that a key which the schema gets later, switched
    off by default, leaves the trainings of before where they are.
    """
    values, defaults = (dataclasses.asdict(tree) for tree in (_without(config, "speed", "run"), Config()))
    values["name"] = defaults["name"]
    text = json.dumps(_differences(values, defaults), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _differences(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for key, value in values.items():
        if isinstance(value, dict):
            value = _differences(value, defaults[key])
            if value:
                found[key] = value
        elif value != defaults[key]:
            found[key] = value
    return found


def _without(config: Config, *kinds: Affects) -> Config:
    """The config with the schema's defaults for the keys that affect one of `kinds`."""
    usual, sections = Config(), dict[str, Any]()
    for field in dataclasses.fields(config):
        section: Any = getattr(config, field.name)
        default = getattr(usual, field.name)
        if dataclasses.is_dataclass(default):
            names = names_affecting(section, *kinds)
            sections[field.name] = dataclasses.replace(section, **{name: getattr(default, name) for name in names})
    return dataclasses.replace(config, **sections)


class Runs:
    """The working directory of ablations.

    Args:
      base: the config that the rows change; every training is scored with its `inference` settings as it ends.
    """

    def __init__(self, base: Config, workdir: pathlib.Path):
        self.base, self.workdir = base, workdir

    def evaluation_file(self, config: Config) -> pathlib.Path:
        return self.workdir / "evaluations" / f"{evaluation_key(config)}.json"

    def training_directory(self, config: Config) -> pathlib.Path:
        return self.workdir / "trainings" / training_key(config)

    def is_measured(self, config: Config) -> bool:
        return self.evaluation_file(config).is_file()

    def is_trained(self, config: Config) -> bool:
        return (self.training_directory(config) / "training.json").is_file()

    def read(self, config: Config) -> dict[str, Any] | None:
        """What `measure` wrote of a config; None if it has not been measured."""
        if not self.is_measured(config):
            return None
        result: dict[str, Any] = json.loads(self.evaluation_file(config).read_text())
        return result

    def measure(self, config: Config) -> None:
        """Sees to it that the figures of a config are there: trains, goes on training, evaluates, or does nothing.

        Raises:
          UserError: the training that is there was made with another default of the schema, or it fails.
        """
        self.check_defaults(self.training_directory(config))
        if _agreed(self.is_measured(config)):
            return
        if not _agreed(self.is_trained(config)):
            self._train(config)
        if not _agreed(self.is_measured(config)):  # the training has written them if they are those of the base
            self._evaluate(config)

    def check_defaults(self, directory: pathlib.Path) -> None:
        """A default that the schema has changed since then would make an old training look like this one."""
        file = directory / "config.json"
        if file.is_file() and training_key(from_dict(json.loads(file.read_text()))) != directory.name:
            raise UserError(f"{directory}: trained with other defaults than today's; take another --workdir")

    def _train(self, config: Config) -> None:
        directory = self.training_directory(config)
        directory.mkdir(parents=True, exist_ok=True)
        trained = dataclasses.replace(config, inference=self.base.inference, tta=self.base.tta)
        result = Trainer(trained, directory).run()
        jax.clear_caches()  # the next training is another program
        self._write(trained, result)
        if jax.process_index() == 0:
            write_json(directory / "training.json", {"seconds": training_seconds(directory), **environment()})

    def _evaluate(self, config: Config) -> None:
        loaded = load_checkpoint(self.training_directory(config), best=False)
        source = open_evaluation(config.data, config.data.eval_examples, classes=loaded.classes)
        result = evaluate_model(loaded.variables, loaded.model, source, config, data_mesh())
        jax.clear_caches()
        self._write(config, result)

    def _write(self, config: Config, result: EvaluationResult) -> None:
        if jax.process_index() != 0:
            return
        directory = self.training_directory(config)
        entry = {
            "training": directory.name,
            "seed": config.seed,
            **figures(result)._asdict(),
            "pictures": result.images,
            "evaluate_seconds": result.seconds,
            "train_seconds": training_seconds(directory),
        }
        write_json(self.evaluation_file(config), entry | {"environment": environment()})


def figures(result: EvaluationResult) -> Figures:
    """The five columns of the tables."""
    return Figures(**{name: result.figures.get(name) for name in Figures._fields})


def training_seconds(directory: pathlib.Path) -> float:
    """Wall-clock seconds of a run's steps, compilation included, evaluation not; of all its sessions together."""
    steps, seconds = read_metrics(directory).get("step_seconds", ([], []))
    return float(np.dot(np.diff([0, *steps]), seconds)) if steps else 0.0


def _agreed(known: bool) -> bool:
    """What process 0 knows: a file that it has just written may not be seen everywhere yet."""
    return bool(number_of_process_0(known))
