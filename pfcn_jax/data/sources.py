"""Sources made of other sources: the first examples, and examples cached in memory."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Int32

from pfcn_jax.data.classes import ClassTable
from pfcn_jax.data.example import Example, ExampleInfo, Source, check_index


@dataclasses.dataclass(frozen=True)
class FirstExamples:
    """The first `count` examples of a source, for a quick look or a periodic evaluation."""

    source: Source
    count: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"the first {self.count} examples: at least one is needed")

    @property
    def classes(self) -> ClassTable:
        return self.source.classes

    def __len__(self) -> int:
        return min(self.count, len(self.source))

    def __getitem__(self, index: int) -> Example:
        check_index(index, len(self))
        return self.source[index]

    def info(self, index: int) -> ExampleInfo:
        check_index(index, len(self))
        return self.source.info(index)

    def sizes(self) -> Int32[np.ndarray, "examples 2"]:
        return self.source.sizes()[: len(self)]


class CachedExamples:
    """A source whose decoded examples stay in memory once read. Every process that loads has its own copy."""

    def __init__(self, source: Source):
        self.source = source
        self._examples: dict[int, Example] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"source": self.source, "_examples": {}}  # a worker process starts with an empty memory

    @property
    def classes(self) -> ClassTable:
        return self.source.classes

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        example = self._examples.get(index)
        if example is None:
            example = self.source[index]
            for array in (example.image, example.runs.value, example.runs.start, example.runs.length):
                array.flags.writeable = False  # whoever changes it in place would change it for ever
            self._examples[index] = example
        return example

    def info(self, index: int) -> ExampleInfo:
        return self.source.info(index)

    def sizes(self) -> Int32[np.ndarray, "examples 2"]:
        return self.source.sizes()
