"""The model card of a checkpoint in Markdown: front matter for the Hub, training data, scores, limits."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import jax

from pfcn_jax.checkpoints.format import BACKBONE, WHOLE_MODEL, CheckpointError, steps_of
from pfcn_jax.config.schema import Config, config_hash, from_dict
from pfcn_jax.data.classes import ClassTable
from pfcn_jax.errors import UserError
from pfcn_jax.evaluation.hub import HubFields, describe_settings, front_matter
from pfcn_jax.evaluation.provenance import changed_settings, data_folder, provenance
from pfcn_jax.metrics.protocol import format_score
from pfcn_jax.models.build import abstract_variables, build_model

_GROUPS = ("All", "Things", "Stuff")
_NO_FIELDS = HubFields()
_SHOWN_CLASSES = 40  # of the table of PQ by class; a card is one page


def find_scores(checkpoint: pathlib.Path, meta: dict[str, Any], given: str | None) -> tuple[dict[str, Any] | None, str]:
    """The evaluation that belongs to a checkpoint, or None and why there is none.

    `evaluation.json` of a run names the step that it scores; it counts for that step's checkpoint alone.

    Raises:
      UserError: the file that was named cannot be read, or belongs to another step.
    """
    if given is not None:
        try:
            scores = json.loads(pathlib.Path(given).read_text())
            scores |= {name: dict(scores[name]) for name in _GROUPS}
            if "evaluated" in scores:
                scores["evaluated"] = {name: scores["evaluated"][name] for name in provenance(Config(), "")}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{given}: no result of `evaluate --output` ({error})") from error
        if scores.get("step", steps_of(meta)) != steps_of(meta):
            raise UserError(f"{given}: scores step {scores['step']}, this checkpoint is of step {steps_of(meta)}")
        return scores, ""
    file = checkpoint.parents[1] / "evaluation.json"
    if not file.is_file():
        return None, "Not evaluated yet."
    scores = json.loads(file.read_text())
    step, scored = steps_of(meta), scores.get("step")
    if step != scored:
        return None, f"Not evaluated: the run's evaluation belongs to step {scored}, this checkpoint to step {step}."
    if "evaluated" not in scores:  # runs of older versions; the scored data are those of the config
        config = from_dict(meta["config"])
        scores["evaluated"] = provenance(config, config.data.eval_split)
    return scores, ""


def make_card(
    meta: dict[str, Any],
    scores: dict[str, Any] | None = None,
    note: str = "Not evaluated yet.",
    hub: HubFields = _NO_FIELDS,
) -> str:
    """The card as Markdown with a front matter that the Hugging Face Hub reads.

    Args:
      meta: of the checkpoint.
      scores: of `evaluate`; None: `note` stands in their place.
      hub: fields of the front matter that the checkpoint does not know.

    Raises:
      CheckpointError: the checkpoint is a backbone, or its config is not one of this version.
    """
    if meta.get("kind", WHOLE_MODEL) == BACKBONE:
        raise CheckpointError("a backbone alone: it is the start of a training, not a model that needs a card")
    config, classes = from_dict(meta["config"]), ClassTable.from_json(meta["classes"])
    parts = [
        front_matter(config, classes, scores, hub, trained=steps_of(meta) > 0),
        f"# Panoptic FCN: {config.name}",
        "Panoptic segmentation: every pixel gets a class, every countable object its own id. The method is that of Li "
        'et al., "Fully Convolutional Networks for Panoptic Segmentation" (CVPR 2021); the code is `pfcn_jax`.',
        _table(("", ""), _facts(config, classes, meta)),
        "## Use\n\n```python\nfrom pfcn_jax import load\n\n"
        'result = load("PATH")("photo.jpg")\nresult.overlay().show()\n```',
        "## Network\n\n" + _table(("part", "parameters"), _parameters(config, classes)),
        "## Training\n\n" + _table(("", ""), _training(config, meta)),
        "## Scores\n\n" + (_scores(scores, config, classes) if scores else note),
        "## Thresholds\n\nOf the config's `inference` section; each can be changed at `load` and `predict`.\n\n"
        + _table(("key", "value"), [(f"`{k}`", _text(v)) for k, v in meta["config"]["inference"].items()]),
        "## Limits\n\n" + "\n".join(f"- {line}" for line in _limits(config, classes)),
        "## Classes\n\n" + "\n\n".join(_class_lines(classes)),
    ]
    return "\n\n".join(parts) + "\n"


def _facts(config: Config, classes: ClassTable, meta: dict[str, Any]) -> list[tuple[str, str]]:
    data, model = config.data, config.model
    enhanced = model.encoder_deformable and model.encoder_channels == 256
    return [
        ("config hash", f"`{config_hash(config)}`"),
        ("network", f"{model.backbone}, {model.backbone_norm}{', enhanced (*)' if enhanced else ''}, {model.dtype}"),
        ("classes", f"{classes.num_things} of things, {classes.num_stuff} of stuff"),
        ("input", f"short side {data.eval_short_side}, long side at most {data.eval_max_long_side} pixels"),
        ("pixels", f"{model.pixel_order.upper()}, mean {_text(model.pixel_mean)}, std {_text(model.pixel_std)}"),
        ("weights", _origin(meta)),
    ]


def _origin(meta: dict[str, Any]) -> str:
    if meta.get("converted_from"):
        return f"converted ({meta['converted_from']})"
    return f"trained by this code, {steps_of(meta):,} steps" if steps_of(meta) else "not trained"


def _parameters(config: Config, classes: ClassTable) -> list[tuple[str, str]]:
    params = abstract_variables(build_model(config.model, *classes.counts))["params"]
    counts = {name: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(part)) for name, part in params.items()}
    total = sum(counts.values())
    rows = [(f"`{name}`", f"{count:,}") for name, count in sorted(counts.items())]
    return [*rows, ("all", f"{total:,} ({4 * total / 1e6:,.1f} MB in float32)")]


def _training(config: Config, meta: dict[str, Any]) -> list[tuple[str, str]]:
    data, train, optim = config.data, config.train, config.optim
    step = steps_of(meta)
    if step == 0:
        return [("steps", "none by this code")]
    start = pathlib.PurePath(train.init_from).name
    source = _data(data.source, data_folder(data))
    limited = f", its first {data.train_examples} images" if data.train_examples else ""
    rows = [
        ("data", f"{source}, split `{data.train_split or 'train...'}`{limited}"),
        ("sizes", f"short side {_text(data.short_sides)}, long side at most {data.max_long_side}"),
        ("steps", f"{step:,} of {train.steps:,}, {train.batch_size} images each: {step * train.batch_size:,} seen"),
        ("optimizer", f"{optim.name}, rate {optim.learning_rate:g} at {optim.reference_batch} images"),
        ("start", f"weights of `{start}`" if start else "random weights"),
        ("seed", str(config.seed)),
    ]
    if train.ema_decay:
        rows.append(("weights kept", f"a moving average, decay {train.ema_decay:g}"))
    return rows


def _data(source: str, folder: str) -> str:
    return f"`{source}`, folder `{folder}`" if folder else f"`{source}`"


def _scores(scores: dict[str, Any], config: Config, classes: ClassTable) -> str:
    rows = [(name, *_group(scores[name])) for name in _GROUPS]
    parts = [_evaluated(scores.get("evaluated"), config), _table(("", "PQ", "SQ", "RQ"), rows)]
    ap, miou = (scores.get("AP") or {}).get("AP"), scores.get("mIoU")
    over = f" (over {scores['mIoU_over']})" if "mIoU_over" in scores else ""
    figures = (("AP", ap, ""), ("mIoU", miou, over))
    lines = [f"{name} {format_score(value, 1)}{note}" for name, value, note in figures if value is not None]
    lines += [f"{scores['pictures']} images"] if "pictures" in scores else []
    parts += [f"{', '.join(lines)}."] if lines else []
    found = []
    for name, category in zip(classes.names, classes.category_ids):
        row = scores.get("per_class", {}).get(str(category), {})
        if row.get("TP", 0) + row.get("FP", 0) + row.get("FN", 0):  # others were neither there nor predicted
            found.append((_escape(name), format_score(row["PQ"], 1)))
    if found:
        parts.append(_table(("class", "PQ"), found[:_SHOWN_CLASSES]))
    if len(found) > _SHOWN_CLASSES:
        parts.append(f"({len(found) - _SHOWN_CLASSES} more classes are left out.)")
    return "\n\n".join(parts)


def _evaluated(evaluated: dict[str, Any] | None, config: Config) -> str:
    """The data and the settings that the scores belong to, in a sentence."""
    if evaluated is None:
        return "The result does not say which data it was measured on."
    split = f", split `{evaluated['split']}`" if evaluated["split"] else ""
    changed = describe_settings(changed_settings(evaluated, config))
    return f"Measured on {_data(evaluated['source'], evaluated['folder'])}{split}" + (
        f" with `{changed}`." if changed else "."
    )


def _group(scores: dict[str, Any]) -> list[str]:
    """PQ, SQ and RQ of a group; "-" where it has no class with a segment."""
    return [format_score(scores.get(key) if scores.get("N", 1) else None, 1) for key in ("PQ", "SQ", "RQ")]


def _limits(config: Config, classes: ClassTable) -> list[str]:
    inference = config.inference
    lines = [
        "It knows the classes below and no others: what is none of them is drawn as one of them, or left void.",
        f"At most {inference.max_things} things an image; a thing below score {inference.merge_score:g} and a stuff "
        f"region below {inference.min_stuff_area} pixels are left void.",
        "A mask has one position for every 4 x 4 pixels of the resized image: what is smaller has no shape.",
        "What the training data lack (places, seasons, kinds of people and cameras) it has not learned, and the scores "
        "say nothing about it. Test it on images of your own before you rely on it.",
    ]
    if config.data.source == "scenes":
        lines.insert(0, "It was trained on drawn scenes: it is a demonstration and means nothing on photographs.")
    if config.data.train_split == config.data.eval_split != "":
        lines.insert(0, "It is scored on images of the split that it was trained on.")
    if classes.num_stuff == 0:
        lines.append("It has no stuff classes: everything but things is void.")
    return lines


def _class_lines(classes: ClassTable) -> list[str]:
    groups = (("Things", classes.names[: classes.num_things]), ("Stuff", classes.names[classes.num_things :]))
    return [f"{title}: {', '.join(map(_escape, names))}." for title, names in groups if names]


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _escape(name: str) -> str:
    """A class name is anybody's text: it must not end a cell or begin a tag."""
    return name.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def _text(value: Any) -> str:
    return ", ".join(f"{part:g}" for part in value) if isinstance(value, (list, tuple)) else str(value)
