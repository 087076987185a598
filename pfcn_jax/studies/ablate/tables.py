"""The paper's seven ablation tables: every row is a few changes of a config, with the figures that were published.

The figures are those of COCO val, ResNet-50, 1x. A row is applied to any base config (`apply`), so that the same tables
are made on COCO and on small data; `configs/ablations.py` gives each row a name on the command line.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from pfcn_jax.config.schema import Config, from_dict
from pfcn_jax.errors import UserError


class Figures(NamedTuple):
    """Scores of a table row in percent. None: not evaluated."""

    PQ: float | None
    PQ_th: float | None
    PQ_st: float | None
    AP: float | None
    mIoU: float | None


METRICS = Figures._fields


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table: `changes` of config keys ("section.key") that make it out of the base."""

    name: str
    changes: Mapping[str, Any]
    published: Figures


@dataclasses.dataclass(frozen=True)
class Table:
    """One table of the paper. `reference` is the row that the differences are taken to: the method as published."""

    name: str
    title: str
    reference: str
    rows: tuple[Row, ...]

    def row(self, name: str) -> Row:
        for row in self.rows:
            if row.name == name:
                return row
        raise UserError(f"{name}: no row of the table {self.name} (it has {', '.join(row.name for row in self.rows)})")


_BASE = Figures(41.3, 46.9, 32.9, 32.1, 41.7)  # the method as published
_NO_COORDS = {"model.kernel_coords": False, "model.encoder_coords": False}
_NO_FUSION = 1.01  # no cosine similarity reaches it


def _rows(key: str, **rows: tuple[Any, Figures]) -> tuple[Row, ...]:
    """Rows that differ in one key; a name's leading underscore only makes it a Python name."""
    return tuple(Row(name.lstrip("_"), {key: value}, published) for name, (value, published) in rows.items())


def _generator(name: str, convs: int, deformable: bool, published: Figures) -> Row:
    """A row of the first table: convolutions in both heads, deformable ones in the position head, no coordinates."""
    convs_of_both = {"model.position_convs": convs, "model.kernel_convs": convs}
    return Row(name, {**convs_of_both, "model.position_deformable": deformable, **_NO_COORDS}, published)


def _coordinates(name: str, kernel: bool, encoder: bool, published: Figures) -> Row:
    return Row(name, {"model.kernel_coords": kernel, "model.encoder_coords": encoder}, published)


def _fusion(name: str, threshold: float, published: Figures, **more: bool) -> Row:
    changes = {f"inference.{key}": value for key, value in more.items()}
    return Row(name, {"inference.fusion_threshold": threshold, **changes}, published)


def _dice(name: str, positives: int, weighted: bool, published: Figures) -> Row:
    return Row(name, {"loss.positives": positives, "loss.weighted_dice": weighted}, published)


TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        Table(
            "kernel_generator",
            "Convolutions of the kernel generator (plain or deformable, number; before coordinates)",
            "deform_3",
            (
                _generator("plain_1", 1, False, Figures(38.4, 43.4, 31.0, 28.3, 39.9)),
                _generator("plain_2", 2, False, Figures(38.9, 44.1, 31.1, 28.9, 40.1)),
                _generator("plain_3", 3, False, Figures(39.2, 44.7, 31.0, 29.6, 40.2)),
                _generator("plain_4", 4, False, Figures(39.2, 44.9, 30.8, 29.4, 39.9)),
                _generator("deform_3", 3, True, Figures(39.9, 45.0, 32.4, 29.9, 41.2)),
            ),
        ),
        Table(
            "coordinates",
            "Coordinate channels in the kernel head and in the feature encoder",
            "both",
            (
                _coordinates("none", False, False, Figures(39.9, 45.0, 32.4, 29.9, 41.2)),
                _coordinates("kernel_head", True, False, Figures(39.9, 45.0, 32.2, 30.0, 41.1)),
                _coordinates("encoder", False, True, Figures(40.2, 45.3, 32.5, 30.4, 41.6)),
                _coordinates("both", True, True, _BASE),
            ),
        ),
        Table(
            "fusion_threshold",
            "Cosine similarity from which kernels are fused (within a class, or across classes)",
            "0.90",
            (
                _fusion("0.80", 0.80, Figures(39.7, 44.3, 32.9, 29.9, 41.7)),
                _fusion("0.85", 0.85, Figures(40.8, 46.1, 32.9, 31.5, 41.7)),
                _fusion("0.90", 0.90, _BASE),
                _fusion("0.95", 0.95, Figures(41.3, 47.0, 32.9, 31.1, 41.7)),
                _fusion("1.00", 1.00, Figures(38.7, 42.6, 32.9, 25.4, 41.7)),
                _fusion("0.90_class_agnostic", 0.90, Figures(41.2, 46.7, 32.9, 30.9, 41.7), class_aware_fusion=False),
            ),
        ),
        Table(
            "removing_repeats",
            "Removing repeats: kernel fusion and mask NMS",
            "fusion",
            (
                _fusion("none", _NO_FUSION, Figures(38.7, 42.6, 32.9, 25.4, 41.7), mask_nms=False),
                _fusion("nms", _NO_FUSION, Figures(38.7, 42.6, 32.9, 27.8, 41.7), mask_nms=True),
                _fusion("fusion", 0.90, _BASE, mask_nms=False),
                _fusion("fusion_nms", 0.90, Figures(41.3, 46.9, 32.8, 32.3, 41.7), mask_nms=True),
            ),
        ),
        Table(
            "encoder_channels",
            "Channels of the feature encoder",
            "64",
            _rows(
                "model.encoder_channels",
                _16=(16, Figures(39.9, 45.0, 32.1, 30.8, 41.3)),
                _32=(32, Figures(40.8, 46.3, 32.5, 31.7, 41.6)),
                _64=(64, _BASE),
                _128=(128, Figures(41.3, 47.0, 32.6, 32.6, 41.7)),
            ),
        ),
        Table(
            "encoder_input",
            "What the feature encoder reads",
            "semantic_fpn",
            _rows(
                "model.encoder_input",
                p2=("p2", Figures(40.6, 46.0, 32.4, 31.6, 41.3)),
                sum=("sum", Figures(40.5, 46.0, 32.1, 31.7, 41.1)),
                semantic_fpn=("semantic_fpn", _BASE),
            ),
        ),
        Table(
            "weighted_dice",
            "Positions k in the weighted dice loss (plain: 7 positions, all with the same weight)",
            "7",
            (
                _dice("plain", 7, False, Figures(40.2, 45.5, 32.4, 31.0, 41.3)),
                _dice("1", 1, True, Figures(40.0, 45.1, 32.4, 30.9, 41.4)),
                _dice("3", 3, True, Figures(41.0, 46.4, 32.7, 31.6, 41.4)),
                _dice("5", 5, True, Figures(41.0, 46.5, 32.9, 32.1, 41.7)),
                _dice("7", 7, True, _BASE),
                _dice("9", 9, True, Figures(41.3, 46.8, 32.9, 32.1, 41.8)),
            ),
        ),
    )
}


def find_row(name: str) -> tuple[Table, Row]:
    """The row that "TABLE:ROW" names.

    Raises:
      UserError: there is no such table or row; the message lists those that there are.
    """
    table, _, row = name.partition(":")
    if table not in TABLES:
        raise UserError(f"{table}: no ablation table (known: {', '.join(TABLES)})")
    return TABLES[table], TABLES[table].row(row)


def apply(base: Config, row: Row, *, seed: int) -> Config:
    """The config of a row: the base with its changes and a seed."""
    config = base
    for path, value in row.changes.items():
        section, _, key = path.partition(".")
        changed = dataclasses.replace(getattr(config, section), **{key: value})
        config = dataclasses.replace(config, **{section: changed})
    return from_dict(dataclasses.asdict(dataclasses.replace(config, seed=seed)))
