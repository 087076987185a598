"""The contract of a metric: its input for an image, and how its sums travel and become a result.

A metric holds running sums over images. The evaluation makes one per scoring thread, adds images to it, and adds the
sums of all threads and processes at the end, in any order: sums must be exact (integers), so that the result has the
same bits however the images were distributed.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol, Self

import numpy as np
from jaxtyping import Bool, Float, Integer, UInt8

from pfcn_jax.types import RegionChannels

Output = Literal["thing_masks", "semantic_map"]


class Classes(Protocol):
    """The classes of a data set, things first. Entry i of every sequence belongs to class id i."""

    @property
    def names(self) -> Sequence[str]: ...

    @property
    def category_ids(self) -> Sequence[int]:
        """The data set's own ids: the keys of results by class."""
        ...

    @property
    def is_thing(self) -> Sequence[bool]: ...


@dataclasses.dataclass(frozen=True)
class Task:
    """The prediction task: classes, and the channels of the model's semantic map.

    Attributes:
      thing_regions: 1 if the semantic map has one channel for any thing, else the number of thing classes; stuff
        classes follow, one channel each.
    """

    classes: Classes
    thing_regions: int = 1

    @property
    def num_classes(self) -> int:
        return len(self.classes.names)

    @property
    def num_things(self) -> int:
        return sum(self.classes.is_thing)

    @property
    def regions(self) -> RegionChannels:
        """The channels of the semantic map, and the one of each class."""
        return RegionChannels(self.num_things, self.num_classes - self.num_things, self.thing_regions)


@dataclasses.dataclass(frozen=True)
class Labels:
    """The labels of an image at its original size.

    Attributes:
      image_id: unique in the evaluation (the index of the example).
      segment_map: 0 is void, i > 0 is row i - 1 of `class_id` and `is_crowd`.
    """

    image_id: int
    segment_map: Integer[np.ndarray, "H W"]
    class_id: Integer[np.ndarray, " G"]
    is_crowd: Bool[np.ndarray, " G"]


@dataclasses.dataclass(frozen=True)
class PredictedImage:
    """The prediction for an image at its original size. Outputs that no metric lists in `needs` are None.

    Attributes:
      segment_map: 0 is void, i > 0 is row i - 1 of `class_id` and `score`. Rows may have no pixel.
      thing_class_id: of the detections, best first, before they are merged into `segment_map`.
      thing_score: likewise.
      thing_masks: likewise; they may overlap; bits packed along rows.
      semantic_map: channel of every pixel (see `Task`), -1 where there is none.
    """

    segment_map: Integer[np.ndarray, "H W"]
    class_id: Integer[np.ndarray, " P"]
    score: Float[np.ndarray, " P"]
    thing_class_id: Integer[np.ndarray, " N"] | None = None
    thing_score: Float[np.ndarray, " N"] | None = None
    thing_masks: UInt8[np.ndarray, "N H W8"] | None = None
    semantic_map: Integer[np.ndarray, "H W"] | None = None


@dataclasses.dataclass(frozen=True)
class Summary:
    """The result of a metric.

    Attributes:
      values: entries of the evaluation's JSON: plain numbers, text, lists and dicts (NaN: undefined).
      figures: the few numbers for curves, reports and tables of runs, by name (NaN: undefined).
      lines: for the terminal.
    """

    values: Mapping[str, Any]
    figures: Mapping[str, float]
    lines: Sequence[str] = ()


def format_score(value: float | None, digits: int = 2) -> str:
    """A score as text; "-" if it is undefined (None or NaN): there was nothing to find."""
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


@dataclasses.dataclass
class Metric(abc.ABC):
    """Running sums over images; one subclass per file, registered by name (`metrics.registry.register`).

    Attributes:
      needs: optional outputs of the prediction that `add` reads. They cost time, so the program makes them only if
        some metric of the evaluation needs them.
    """

    task: Task
    needs: ClassVar[tuple[Output, ...]] = ()

    @classmethod
    @abc.abstractmethod
    def zeros(cls, task: Task) -> Self:
        """The sums over no image."""

    @abc.abstractmethod
    def add(self, labels: Labels, prediction: PredictedImage) -> None:
        """Adds one image. Called by one thread at a time."""

    @abc.abstractmethod
    def to_arrays(self) -> dict[str, np.ndarray]:
        """The sums as arrays; their sizes may differ from process to process."""

    @classmethod
    @abc.abstractmethod
    def from_arrays(cls, task: Task, arrays: Mapping[str, np.ndarray]) -> Self:
        """The metric that `to_arrays` was called on."""

    @abc.abstractmethod
    def summary(self) -> Summary:
        """The result over all images that were added."""

    def __add__(self, other: Self) -> Self:
        """The sums over the images of both: by default, element by element, the arrays of `to_arrays`."""
        mine, theirs = self.to_arrays(), other.to_arrays()
        return self.from_arrays(self.task, {name: mine[name] + theirs[name] for name in mine})
