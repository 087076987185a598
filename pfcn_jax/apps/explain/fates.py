"""What became of every kernel of things, told from a trace: merged into which, removed by what, or on the canvas."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

from pfcn_jax.inference.two_stage import Trace
from pfcn_jax.types import LEVELS


@dataclasses.dataclass(frozen=True)
class Fate:
    """One picked kernel. `kernel`, `owner` are slots of the trace's `picked`."""

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
    """A head with its members, best first (the head is the first), and what became of the kernel they make."""

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
    fates = _fates(trace)
    heads = [fate for fate in fates if fate.is_head]
    things = np.flatnonzero(trace.things.valid)
    clusters, used = [], set()
    for slot, head in enumerate(heads):
        members = (head, *(fate for fate in fates if fate.owner == head.kernel and not fate.is_head))
        weight = np.asarray(trace.fused.weight[slot])
        # Rescoring copies weights as they are, so that equal bits tell which thing this cluster became.
        same = [row for row in things if row not in used and np.array_equal(trace.things.weight[row], weight)]
        thing = int(same[0]) if same else None
        used.update(same[:1])
        clusters.append(_cluster(members, weight, thing, trace, merge_score))
    owners = {head.kernel for head in heads}
    return clusters, [fate for fate in fates if fate.owner not in owners]


def _fates(trace: Trace) -> list[Fate]:
    picked = trace.picked
    found = []
    for kernel in np.flatnonzero(picked.valid).tolist():
        owner = int(trace.owner[kernel])
        level, row, column = (int(value) for value in trace.position[kernel])
        found.append(
            Fate(
                kernel=kernel,
                owner=owner,
                class_id=int(picked.class_id[kernel]),
                score=float(picked.score[kernel]),
                level=level,
                row=row,
                column=column,
                similarity=float(trace.similarity[kernel, owner]),
                weight=np.asarray(picked.weight[kernel]),
            )
        )
    return found


def _cluster(
    members: tuple[Fate, ...], weight: np.ndarray, thing: int | None, trace: Trace, merge_score: float
) -> Cluster:
    if thing is None:
        verdict = "removed: its score after rescoring is too low (or mask NMS or the limit of things took it)"
        return Cluster(members, weight, None, None, verdict)
    score = float(trace.things.score[thing])
    placed = trace.placed[: int(trace.placed_count)].tolist()
    if thing in placed:
        segment = 1 + placed.index(thing)
        return Cluster(members, weight, score, segment, f"segment {segment}")
    if score < np.float32(merge_score):
        return Cluster(members, weight, score, None, f"removed: score {score:.2f} is below {merge_score:g}")
    return Cluster(members, weight, score, None, "removed as a duplicate: too much of its mask is taken already")
