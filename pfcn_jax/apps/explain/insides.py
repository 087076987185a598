"""Intermediate results for one image as panels: centers, regions, kernels before and after fusion, similarities."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
from jaxtyping import Array, Float, UInt8

from pfcn_jax.apps.explain.fates import Cluster, Fate
from pfcn_jax.data.classes import ClassTable
from pfcn_jax.data.transforms import resize_image
from pfcn_jax.inference.two_stage import EncodedImage, Trace
from pfcn_jax.types import FEATURE_STRIDE, LEVELS, STRIDES, RegionChannels
from pfcn_jax.viz import heatmap, mark_points, similarity_matrix
from pfcn_jax.viz.regions import draw_regions

Image = UInt8[np.ndarray, "h w 3"]
_SIDE = 256  # long side of a panel of a level or a mask
_SHOWN_MEMBERS = 7  # of a cluster: the five levels, and repeats


@dataclasses.dataclass(frozen=True)
class Panel:
    image: Image
    title: str


@dataclasses.dataclass(frozen=True)
class Row:
    """A cluster (or a stuff class): the mask after fusion, then the masks of the kernels that it was made of."""

    title: str
    note: str
    removed: bool
    panels: tuple[Panel, ...]


class Insides:
    """Draws the panels of one image.

    Args:
      encoded: the image with the network's outputs.
      trace: of its prediction.
    """

    def __init__(self, encoded: EncodedImage, trace: Trace, classes: ClassTable):
        self._proposed, self._classes = trace.proposed, classes
        self._dense = encoded.dense
        height, width = (int(side) for side in np.asarray(encoded.geometry.size))
        self._resized = resize_image(encoded.image, (height, width))
        self._zoom = _SIDE / max(height, width)
        size = (max(1, round(height * self._zoom)), max(1, round(width * self._zoom)))
        method = cv2.INTER_CUBIC if self._zoom > 1 else cv2.INTER_AREA
        self._thumbnail = cv2.resize(self._resized, size[::-1], interpolation=method)
        self._feature = np.asarray(encoded.dense.feature, np.float32)

    def centers(self, fates: list[Fate]) -> list[Panel]:
        """The best center score of any class on each level, with rings at the peaks that became kernels."""
        panels = []
        for level, (logits, stride) in enumerate(zip(self._dense.center_logits, STRIDES)):
            score = _sigmoid(np.asarray(logits, np.float32)).max(axis=-1)
            here = [fate for fate in fates if fate.level == level]
            drawn = self._fit(heatmap(score, self._resized, stride=stride))
            points = [((f.row + 0.5) * stride * self._zoom, (f.column + 0.5) * stride * self._zoom) for f in here]
            colors = [self._classes.colors[fate.class_id] for fate in here]
            title = f"{LEVELS[level]}: {len(here)} peaks, best {score.max():.2f}"
            panels.append(Panel(mark_points(drawn, points, colors), title))
        return panels

    def regions(self) -> list[Panel]:
        """The strongest region of every position of each level; white is "any thing"."""
        panels = []
        for level, (logits, stride) in enumerate(zip(self._dense.region_logits, STRIDES)):
            score = _sigmoid(np.asarray(logits, np.float32))
            panels.append(Panel(self._fit(draw_regions(score, self._resized, stride, self._classes)), LEVELS[level]))
        return panels

    def cluster(self, cluster: Cluster) -> Row:
        """The mask of a cluster's kernel, and those of its members."""
        head = cluster.head
        after = "" if cluster.score is None else f" -> {cluster.score:.2f}"
        count = len(cluster.members)
        panels = [Panel(self._mask(cluster.weight), "after fusion" if count > 1 else "alone: nothing to fuse")]
        if count > 1:
            panels += [Panel(self._mask(f.weight), self._member_title(f)) for f in cluster.members[:_SHOWN_MEMBERS]]
        hidden = count - _SHOWN_MEMBERS
        note = cluster.verdict + (f"; {hidden} more members are not shown" if hidden > 0 else "")
        kernels = "1 kernel" if count == 1 else f"{count} kernels"
        title = f"{self._classes.names[head.class_id]} {head.score:.2f}{after}: {kernels}"
        return Row(title, note, cluster.segment is None, tuple(panels))

    def dropped(self, fate: Fate) -> Panel:
        """A kernel that fusion drops."""
        return Panel(self._mask(fate.weight), f"{self._classes.names[fate.class_id]} {fate.score:.2f}, {fate.place}")

    def stuff(self) -> list[Row]:
        """For each region channel with a kernel: its mean kernel's mask, then those of its levels."""
        rows = []
        stuff, pooled = self._proposed.stuff, self._proposed.pooled
        assert pooled is not None and pooled.source is not None  # one view
        for channel in np.flatnonzero(stuff.valid).tolist():
            panels = [Panel(self._mask(stuff.weight[channel]), "mean of the levels")]
            for slot in np.flatnonzero(pooled.valid & (pooled.class_id == channel)).tolist():
                title = f"{LEVELS[pooled.source.level[slot]]} {float(pooled.score[slot]):.2f}"
                panels.append(Panel(self._mask(pooled.weight[slot]), title))
            name = self._channel_name(channel, len(stuff.valid))
            title = f"{name}: {len(panels) - 1} level{'s' if len(panels) > 2 else ''}"
            rows.append(Row(title, "", False, tuple(panels)))
        return rows

    def similarities(self, clusters: list[Cluster], *, largest: int = 80) -> Panel:
        """Cosine similarity of the picked kernels, cluster by cluster."""
        groups = [[fate.kernel for fate in cluster.members] for cluster in clusters]
        order = np.array([kernel for group in groups for kernel in group][:largest], np.int64)
        matrix = np.asarray(self._proposed.things.similarity)[np.ix_(order, order)]
        ends = np.cumsum([len(group) for group in groups])
        title = f"cosine similarity of {len(order)} kernels; squares: clusters"
        return Panel(similarity_matrix(matrix, ends[ends <= len(order)].tolist()), title)

    def _member_title(self, fate: Fate) -> str:
        relation = "head" if fate.is_head else f"similarity {fate.similarity:.3f}"
        return f"{fate.place} {fate.score:.2f}, {relation}"

    def _channel_name(self, channel: int, channels: int) -> str:
        regions = RegionChannels(*self._classes.counts, channels - self._classes.num_stuff)
        if channel >= regions.things:
            return self._classes.names[regions.stuff_class(channel)]
        return "any thing" if regions.things == 1 else self._classes.names[channel]

    def _mask(self, weight: Float[np.ndarray, " E"] | Array) -> Image:
        """The kernel as a 1x1 convolution of the encoded feature, over the image."""
        probability = _sigmoid(self._feature @ np.asarray(weight))
        return self._fit(heatmap(probability, self._resized, stride=FEATURE_STRIDE))

    def _fit(self, drawn: Image) -> Image:
        height, width = self._thumbnail.shape[:2]
        return cv2.resize(drawn, (width, height), interpolation=cv2.INTER_AREA if self._zoom < 1 else cv2.INTER_CUBIC)


def segment_table(trace: Trace, classes: ClassTable) -> list[dict[str, object]]:
    """The segments as rows of a table."""
    panoptic = trace.prediction.panoptic
    rows: list[dict[str, object]] = []
    for number, row in enumerate(np.flatnonzero(panoptic.valid).tolist(), start=1):
        name = classes.names[int(panoptic.class_id[row])]
        kind = "thing" if panoptic.is_thing[row] else "stuff"
        rows.append({"id": number, "name": name, "kind": kind, "score": float(panoptic.score[row]),
                     "area": int(panoptic.area[row])})  # fmt: skip
    return rows


def _sigmoid(logits: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    return 1.0 / (1.0 + np.exp(-np.clip(logits, -60.0, 60.0)))
