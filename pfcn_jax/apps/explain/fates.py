"""The fate of every kernel of things in a prediction: merged, removed, or pasted as a segment."""

from __future__ import annotations

import dataclasses
from typing import TypeVar

import numpy as np
from jaxtyping import Float

from pfcn_jax.inference.two_stage import Trace
from pfcn_jax.panoptic.fusion import Fusion
from pfcn_jax.types import LEVELS

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Fate:
    """One picked kernel. `kernel` and `owner` are slots of the picked kernels."""

    kernel: int
    owner: int
    class_id: int
    score: float  # of the peak
    level: int  # 0 = p3
    row: int
    column: int
    similarity: float  # to its owner; 1 for a head
    weight: Float[np.ndarray, " E"]

    @property
    def is_head(self) -> bool:
        return self.owner == self.kernel

    @property
    def place(self) -> str:
        return f"{LEVELS[self.level]} ({self.row}, {self.column})"


@dataclasses.dataclass(frozen=True)
class Cluster:
    """A head with its members, best first (the head is the first), and the fate of their fused kernel."""

    members: tuple[Fate, ...]
    weight: Float[np.ndarray, " E"]  # the mean of the members
    score: float | None  # after rescoring; None if it did not survive that
    segment: int | None  # its id in the segment map
    verdict: str

    @property
    def head(self) -> Fate:
        return self.members[0]


def tell_fates(trace: Trace, *, merge_score: float) -> tuple[list[Cluster], list[Fate]]:
    """The clusters, in the order of their heads' scores, and the kernels that fusion drops.

    A kernel whose owner is itself no head is dropped: it joins no cluster (as in the original).

    Args:
      merge_score: the threshold that the trace was made with.
    """
    fusion, prediction = trace.proposed.things, trace.prediction
    fates = {fate.kernel: fate for fate in _fates(fusion)}
    things, panoptic = prediction.things, prediction.panoptic
    thing_of = {int(_made(things.head)[slot]): slot for slot in np.flatnonzero(things.valid).tolist()}
    rows = np.flatnonzero(np.asarray(panoptic.valid) & np.asarray(panoptic.is_thing)).tolist()
    segment_of = {int(_made(panoptic.kernel)[row]): row + 1 for row in rows}
    clusters, heads = [], set()
    for slot in np.flatnonzero(fusion.fused.valid).tolist():
        head = fates[int(_made(fusion.fused.head)[slot])]
        heads.add(head.kernel)
        members = (head, *(fate for fate in fates.values() if fate.owner == head.kernel and not fate.is_head))
        thing = thing_of.get(head.kernel)
        score = None if thing is None else float(things.score[thing])
        segment = None if thing is None else segment_of.get(thing)
        verdict = _verdict(score, segment, merge_score)
        clusters.append(Cluster(members, np.asarray(fusion.fused.weight[slot]), score, segment, verdict))
    return clusters, [fate for fate in fates.values() if fate.owner not in heads]


def _fates(fusion: Fusion) -> list[Fate]:
    picked, source = fusion.picked, _made(fusion.picked.source)
    found = []
    for kernel in np.flatnonzero(picked.valid).tolist():
        owner = int(fusion.owner[kernel])
        row, column = (int(value) for value in source.cell[kernel])
        found.append(
            Fate(
                kernel=kernel,
                owner=owner,
                class_id=int(picked.class_id[kernel]),
                score=float(picked.score[kernel]),
                level=int(source.level[kernel]),
                row=row,
                column=column,
                similarity=float(fusion.similarity[kernel, owner]),
                weight=np.asarray(picked.weight[kernel]),
            )
        )
    return found


def _made(part: T | None) -> T:
    """A part that every prediction of one view has."""
    assert part is not None
    return part


def _verdict(score: float | None, segment: int | None, merge_score: float) -> str:
    if score is None:
        return "removed: its score after rescoring is too low (or by mask NMS or the limit of things)"
    if segment is not None:
        return f"segment {segment}"
    if score < np.float32(merge_score):
        return f"removed: score {score:.2f} is below {merge_score:g}"
    return "removed as a duplicate: too much of its mask is taken already"
