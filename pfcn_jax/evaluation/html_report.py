"""`evaluate --report DIR`: an evaluation as one page of HTML, with the worst images first, and as JSON.

The page embeds its images and style; it can be mailed. A collector receives every image of the evaluation and stores
counts and the few worst images.
"""

from __future__ import annotations

import dataclasses
import heapq
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from pfcn_jax.data.classes import ClassTable
from pfcn_jax.data.example import Example
from pfcn_jax.metrics.breakdown import SIZES, Breakdown, breakdown, error_map, top_confusions
from pfcn_jax.metrics.pq import PQCounts, PQGroup, PQResult, SegmentMatches, count_matches, match_segments, pq_result
from pfcn_jax.panoptic.predict import Prediction
from pfcn_jax.utils.atomic import write_json, write_text
from pfcn_jax.viz import data_uri, encode_webp, overlay, paint_kinds, render
from pfcn_jax.viz.preview import compact

_SIDE = 512  # long side of an image in the report, about
_LISTED_CONFUSIONS = 15
_MATRIX_CLASSES = 24  # a matrix of more classes cannot be read
# In the order of metrics.breakdown: CORRECT, FALSE_POSITIVE, FALSE_NEGATIVE, BOTH, WRONG_CLASS, BOUNDARY, IGNORED.
_ERRORS: tuple[tuple[str, tuple[int, int, int] | None], ...] = (
    ("correct", None),
    ("made up (false positive)", (226, 48, 48)),
    ("missed (false negative)", (40, 96, 224)),
    ("missed, and something made up there", (150, 50, 190)),
    ("found, but of the wrong class", (245, 170, 30)),
    ("boundary of a found segment", (20, 190, 170)),
    ("not judged (no label, crowd)", (70, 74, 82)),
)


@dataclasses.dataclass(frozen=True)
class ScoredImage:
    """One image with its labels, its prediction, and how the two match. It is drawn when the page is written."""

    pq: float
    counts: tuple[int, int, int, int]  # TP, FP, FN, and misses that were found under another class
    example: Example
    segment_map: Int[np.ndarray, "h w"]
    class_id: Int[np.ndarray, " n"]
    score: Float[np.ndarray, " n"]
    any_class: SegmentMatches


class ReportCollector:
    """Call it with every example and its prediction (`evaluate_model(on_image=...)`), then `write`.

    Args:
      limit: the number of worst images that are stored.
    """

    def __init__(self, classes: ClassTable, *, limit: int = 24):
        self._classes, self._limit = classes, limit
        self.breakdown = Breakdown.zeros(len(classes))
        self.scored = 0
        self._worst: list[tuple[float, int, ScoredImage]] = []  # a heap with the best of them on top

    def __call__(self, example: Example, prediction: Prediction) -> None:
        classes = len(self._classes)
        segment_map, class_id, score = compact(prediction.panoptic)
        maps = (example.segment_map, example.class_id, example.is_crowd, segment_map, class_id, classes)
        found, any_class = match_segments(*maps), match_segments(*maps, any_class=True)
        self.breakdown += breakdown(found, any_class, classes)
        counts = count_matches(found, classes)
        result = pq_result(counts, self._classes.is_thing)
        if result.all.N == 0:
            return  # nothing labeled, nothing predicted: no score
        order, self.scored = self.scored, self.scored + 1
        key = (-result.all.PQ, -order)
        if len(self._worst) == self._limit and key < self._worst[0][:2]:
            return
        mixed = int(np.sum(found.gt_classes[any_class.gt_row] != found.pred_classes[any_class.pred_row]))
        image = ScoredImage(
            pq=result.all.PQ,
            counts=(int(counts.tp.sum()), int(counts.fp.sum()), int(counts.fn.sum()), mixed),
            example=example,
            segment_map=segment_map,
            class_id=class_id,
            score=score,
            any_class=any_class,
        )
        (heapq.heappushpop if len(self._worst) == self._limit else heapq.heappush)(self._worst, (*key, image))

    def worst(self) -> list[ScoredImage]:
        """The stored images, worst first."""
        return [image for _, _, image in sorted(self._worst, key=lambda entry: (-entry[0], -entry[1]))]

    def write(
        self, folder: pathlib.Path, result: PQResult, *, title: str, subtitle: str, others: Mapping[str, float]
    ) -> pathlib.Path:
        """Writes `report.html` and `report.json`.

        Args:
          result: PQ of the whole evaluation.
          others: further figures in percent for the top of the page, as AP and mIoU; NaN: undefined, "-".

        Returns:
          The page.
        """
        sizes = [pq_result(counts, self._classes.is_thing) for counts in self.breakdown.by_size]
        page = render(
            "report.html",
            title=title,
            subtitle=subtitle,
            tiles=_tiles(result, others),
            groups=_groups(result, sizes, np.asarray(self._classes.is_thing)),
            sizes=SIZES,
            classes=_class_rows(result, sizes, self._classes),
            confusions=_confusion_rows(self.breakdown.confusion, self._classes.names),
            matrix=_matrix(self.breakdown.confusion, self._classes.names),
            images=[_image_values(image, self._classes) for image in self.worst()],
            scored=self.scored,
            legend=[{"text": text, "color": _css(color or (200, 200, 200))} for text, color in _ERRORS],
        )
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "report.json", self._to_dict(result, sizes, others))
        write_text(folder / "report.html", page)
        return folder / "report.html"

    def _to_dict(self, result: PQResult, sizes: list[PQResult], others: Mapping[str, float]) -> dict[str, Any]:
        ids, names = self._classes.category_ids, self._classes.names
        return {
            **result.to_dict(ids),
            **others,
            "sizes": {size: part.to_dict(ids) for size, part in zip(SIZES, sizes)},
            "confusion": {"classes": [*names, "(nothing)"], "counts": self.breakdown.confusion.tolist()},
            "worst_pictures": [
                {
                    "file_name": image.example.file_name,
                    "PQ": image.pq,
                    **dict(zip(("TP", "FP", "FN"), image.counts)),
                }
                for image in self.worst()
            ],
        }


def _tiles(result: PQResult, others: Mapping[str, float]) -> list[dict[str, Any]]:
    """Name and value of the numbers at the top of the page; None: undefined."""
    values = {"PQ": result.all, "PQ things": result.things, "PQ stuff": result.stuff}
    tiles: list[dict[str, Any]] = [
        {"name": name, "value": group.PQ if group.N else None} for name, group in values.items()
    ]
    tiles += [{"name": name, "value": getattr(result.all, name) if result.all.N else None} for name in ("SQ", "RQ")]
    return tiles + [{"name": name, "value": None if math.isnan(value) else value} for name, value in others.items()]


def _groups(result: PQResult, sizes: list[PQResult], is_thing: np.ndarray) -> list[dict[str, Any]]:
    """All, things and stuff, then small, medium and large segments."""

    def row(name: str, group: PQGroup, counts: PQCounts, members: np.ndarray) -> dict[str, Any]:
        scores = {key: getattr(group, key) if group.N else None for key in ("PQ", "SQ", "RQ")}
        sums = {key: int(getattr(counts, key.lower())[members].sum()) for key in ("TP", "FP", "FN")}
        return {"name": name, **scores, **sums, "N": group.N}

    everything = np.ones_like(is_thing)
    rows = [
        row("all", result.all, result.counts, everything),
        row("things", result.things, result.counts, is_thing),
        row("stuff", result.stuff, result.counts, ~is_thing),
    ]
    return rows + [row(f"{size} segments", part.all, part.counts, everything) for size, part in zip(SIZES, sizes)]


def _present(result: PQResult) -> np.ndarray:
    return (result.counts.tp + result.counts.fp + result.counts.fn) > 0


def _class_rows(result: PQResult, sizes: list[PQResult], classes: ClassTable) -> list[dict[str, Any]]:
    """Classes that have a segment; things, then stuff, the best first."""
    exists = [_present(part) for part in sizes]
    rows = np.flatnonzero(_present(result))
    order = sorted(rows.tolist(), key=lambda c: (not classes.is_thing[c], -float(result.PQ[c]), c))
    return [
        {
            "name": classes.names[c],
            "thing": classes.is_thing[c],
            "color": _css(classes.colors[c]),
            **{kind: float(getattr(result, kind)[c]) for kind in ("PQ", "SQ", "RQ")},
            **{kind: int(getattr(result.counts, kind.lower())[c]) for kind in ("TP", "FP", "FN")},
            "by_size": [float(part.PQ[c]) if exists[i][c] else None for i, part in enumerate(sizes)],
        }
        for c in order
    ]


def _confusion_rows(confusion: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "labeled": names[labeled],
            "predicted": names[predicted],
            "count": count,
            "share": 100.0 * count / int(confusion[labeled].sum()),
        }
        for labeled, predicted, count in top_confusions(confusion, _LISTED_CONFUSIONS)
    ]


def _matrix(confusion: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """The confusion matrix of the classes with most confusions, in the order of the class table."""
    mixed = confusion[:-1, :-1] - np.diag(np.diagonal(confusion)[:-1])
    exists = confusion[:-1].sum(axis=1) + confusion[:, :-1].sum(axis=0) > 0
    weight = np.where(exists, 1 + mixed.sum(axis=0) + mixed.sum(axis=1), 0)
    shown = np.sort(np.argsort(-weight, kind="stable")[:_MATRIX_CLASSES])
    shown = shown[exists[shown]]
    last = len(names)
    rows = []
    for row in [*shown.tolist(), last]:
        total = max(1, int(confusion[row].sum()))
        cells = []
        for column in [*shown.tolist(), last]:
            count = int(confusion[row, column])
            share = count / total
            hue = "47,111,222" if row == column else "226,72,48"
            opacity = 0.0 if not count else 0.12 + 0.6 * share
            cells.append({"count": count, "color": f"rgba({hue},{opacity:.2f})"})
        rows.append({"name": "nothing there" if row == last else names[row], "cells": cells})
    return {"names": [names[c] for c in shown], "rows": rows, "left_out": int(exists.sum()) - len(shown)}


def _image_values(image: ScoredImage, classes: ClassTable) -> dict[str, Any]:
    tp, fp, fn, mixed = image.counts
    panels = [{"name": name, "src": data_uri(encode_webp(panel))} for name, panel in _panels(image, classes)]
    name = image.example.file_name
    return {"name": name, "pq": image.pq, "tp": tp, "fp": fp, "fn": fn, "mixed": mixed, "panels": panels}


def _panels(scored: ScoredImage, classes: ClassTable) -> list[tuple[str, np.ndarray]]:
    """Image, labels, prediction and errors, each about as large."""
    image, truth = scored.example.image, scored.example.segment_map
    scale = _SIDE / max(truth.shape)
    kinds = error_map(truth, scored.segment_map, scored.any_class)
    return [
        ("image", overlay(image, np.zeros_like(truth), classes, [], scale=scale)),
        ("labels", overlay(image, truth, classes, scored.example.class_id, scale=scale)),
        ("prediction", overlay(image, scored.segment_map, classes, scored.class_id, scored.score, scale=scale)),
        ("errors", paint_kinds(image, kinds, [color for _, color in _ERRORS], scale=scale)),
    ]


def _css(color: Sequence[int]) -> str:
    return f"rgb({color[0]},{color[1]},{color[2]})"
