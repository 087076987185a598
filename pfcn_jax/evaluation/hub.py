"""The front matter of a model card: YAML that the Hugging Face Hub reads, with the measured scores as `model-index`."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from typing import Any

import yaml

from pfcn_jax.config.schema import Config
from pfcn_jax.data.classes import ClassTable, coco_classes
from pfcn_jax.errors import UserError
from pfcn_jax.evaluation.provenance import changed_settings, data_folder

TASK = {"type": "image-segmentation", "name": "Panoptic segmentation"}
# Data sets with a name of their own: `data.source` -> (name in `datasets`, title).
_NAMED_DATA = {
    "ade20k": ("ade20k", "ADE20K"),
    "cityscapes": ("cityscapes", "Cityscapes"),
    "mapillary": ("mapillary-vistas", "Mapillary Vistas"),
    "scenes": ("scenes", "scenes drawn by pfcn_jax"),
}
_COCO = ("coco", "COCO 2017 panoptic")
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_DATASET = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


@dataclasses.dataclass(frozen=True)
class HubFields:
    """Fields that a checkpoint does not know.

    Fields:
      license: of the weights, as the Hub names it (apache-2.0, cc-by-nc-4.0, other); "": the key is left out.
      datasets: the training data on the Hub, as OWNER/NAME or NAME; (): the name of a known data set, or nothing.

    Raises:
      UserError: one of them is nothing that the Hub takes.
    """

    license: str = ""
    datasets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.license and not _LICENSE.fullmatch(self.license):
            raise UserError(f"--license {self.license}: not as the Hub names licenses (apache-2.0, cc-by-4.0, other)")
        for name in self.datasets:
            if not _DATASET.fullmatch(name):
                raise UserError(f"--dataset {name}: not as the Hub names data sets (OWNER/NAME or NAME)")


def front_matter(
    config: Config, classes: ClassTable, scores: Mapping[str, Any] | None, hub: HubFields, *, trained: bool
) -> str:
    """The block between two lines of dashes that opens a card.

    Args:
      scores: of `evaluate`. Only those that say which data they belong to (`evaluated`) become a `model-index`.
      trained: this code trained the weights, so that the config names the training data.
    """
    content: dict[str, Any] = {"library_name": "pfcn_jax", "pipeline_tag": TASK["type"]}
    if hub.license:
        content["license"] = hub.license
    content["tags"] = ["panoptic-segmentation", "panoptic-fcn", "jax", "flax", config.model.backbone]
    known = _known_data(config.data.source, classes)
    datasets = list(hub.datasets)
    if not datasets and trained and known and config.data.source != "scenes":
        datasets = [known[0]]
    if datasets:
        content["datasets"] = datasets
    if scores and "evaluated" in scores and (metrics := _metrics(scores, config)):
        data = _dataset(scores, config, classes, hub)
        results = [{"task": TASK, "dataset": data, "metrics": metrics}]
        content["model-index"] = [{"name": config.name, "results": results}]
    return f"---\n{yaml.safe_dump(content, sort_keys=False, allow_unicode=True)}---"


def _known_data(source: str, classes: ClassTable) -> tuple[str, str] | None:
    """Name and title of a data set that everybody knows; COCO's layout counts as COCO only with COCO's classes."""
    if source in ("coco", "tfds"):
        return None if classes.difference(coco_classes()) else _COCO
    return _NAMED_DATA.get(source)


def _dataset(scores: Mapping[str, Any], config: Config, classes: ClassTable, hub: HubFields) -> dict[str, Any]:
    """The `dataset` of a result: type, name, split and the number of images."""
    evaluated = scores["evaluated"]
    title = evaluated["folder"] or evaluated["source"]
    kind, name = _known_data(evaluated["source"], classes) or (re.sub(r"[^\w.-]+", "-", title, flags=re.ASCII), title)
    of_training = (evaluated["source"], evaluated["folder"]) == (config.data.source, data_folder(config.data))
    data: dict[str, Any] = {"type": hub.datasets[0] if len(hub.datasets) == 1 and of_training else kind, "name": name}
    if evaluated["split"]:
        data["split"] = evaluated["split"]
    if "pictures" in scores:
        data["args"] = {"images": scores["pictures"]}
    return data


def _metrics(scores: Mapping[str, Any], config: Config) -> list[dict[str, Any]]:
    """The `metrics` of a result: those that were measured, in percent. What had nothing to find is left out."""
    groups = {name: scores[name] if scores[name].get("N", 1) else {} for name in ("All", "Things", "Stuff")}
    found = [
        ("pq", "PQ", groups["All"].get("PQ")),
        ("sq", "SQ", groups["All"].get("SQ")),
        ("rq", "RQ", groups["All"].get("RQ")),
        ("pq_things", "PQ of things", groups["Things"].get("PQ")),
        ("pq_stuff", "PQ of stuff", groups["Stuff"].get("PQ")),
        ("ap", "mask AP", (scores.get("AP") or {}).get("AP")),
        ("mean_iou", "mIoU", scores.get("mIoU")),
    ]
    changed = describe_settings(changed_settings(scores["evaluated"], config))
    settings = {"config": changed} if changed else {}
    return [
        {"type": kind, "name": name, "value": round(value, 2)} | settings
        for kind, name, value in found
        if value is not None and not math.isnan(value)
    ]


def describe_settings(settings: Mapping[str, Any]) -> str:
    """Settings as on a command line, `inference.merge_score=0.4, tta.flip=true`; "" without any."""
    return ", ".join(f"{key}={json.dumps(value)}" for key, value in settings.items())
