"""The images of each batch, known beforehand for any batch number.

All images of a batch share one canvas, so batches are formed per canvas. A plan needs only the images' sizes and a
seed; batch t follows from t alone. So a position in the data is one number, workers and hosts cannot change the
order, and continuing after an interruption is exact.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, Int32

from pfcn_jax.data.canvas import Size, smallest_canvas
from pfcn_jax.data.example import DataError

FILLER = -1  # in place of an index: no image, only padding


@dataclasses.dataclass(frozen=True)
class PlannedBatch:
    """Batch `number`: the canvas (height, width), and the example of each row (`FILLER` for none)."""

    number: int
    canvas: Size
    examples: Int[np.ndarray, " batch"]


def choose_canvases(
    sizes: Int[np.ndarray, "examples 2"], largest_size: Callable[[Size], Size], canvases: Sequence[Size]
) -> Int[np.ndarray, " examples"]:
    """For each image the smallest canvas (by area, then by position in the list) that holds its largest result.

    Raises:
      DataError: an image fits on none of them.
    """
    distinct, inverse = np.unique(sizes, axis=0, return_inverse=True)
    choice = np.empty(len(distinct), np.int64)
    for row, (height, width) in enumerate(distinct.tolist()):
        needed = largest_size((height, width))
        found = smallest_canvas(needed, canvases)
        if found is None:
            raise DataError(
                f"an image of size {height} x {width} (height x width) becomes {needed[0]} x {needed[1]} and fits on "
                f"no canvas of {', '.join(f'{h} x {w}' for h, w in canvases)}; add one that holds it, or resize it",
                kind="no-canvas",
            )
        choice[row] = found
    return choice[inverse.reshape(-1)]


class BatchPlan:
    """The plan. `plan[t]` is batch t over all hosts.

    Training (`shuffle=True`): infinite. The images of a canvas form an endless row of permutations, cut into batches;
    an epoch holds the batches that end in it, in random order. So every image is seen equally often, whatever the
    batch size, and each canvas gets its share of the batches.
    Evaluation (`shuffle=False`): every image once, grouped by canvas in the order of the list, ascending; the last
    batch of a canvas is filled up with `FILLER`.
    """

    def __init__(
        self,
        sizes: Int[np.ndarray, "examples 2"],
        largest_size: Callable[[Size], Size],
        *,
        canvases: Sequence[Size],
        batch_size: int,
        shuffle: bool,
        seed: int = 0,
    ):
        if batch_size < 1:
            raise ValueError(f"batch size {batch_size}: at least 1")
        if seed < 0:
            raise ValueError(f"seed {seed}: at least 0")
        if not len(sizes):
            raise DataError("no images to make batches of")
        self.canvases = tuple((int(height), int(width)) for height, width in canvases)
        self.batch_size, self.shuffle, self.seed = batch_size, shuffle, seed
        self.canvas_of = choose_canvases(sizes, largest_size, self.canvases)
        self.groups = [np.flatnonzero(self.canvas_of == c) for c in range(len(self.canvases))]
        self.num_examples = len(sizes)
        self._sizes_digest = hashlib.sha256(np.ascontiguousarray(sizes, np.int64).tobytes()).hexdigest()
        self._make_caches()

    def _make_caches(self) -> None:
        self._permutation = functools.lru_cache(maxsize=4 * len(self.canvases))(self._draw_permutation)
        self._epoch_batches = functools.lru_cache(maxsize=4)(self._draw_epoch)

    def __getstate__(self) -> dict[str, Any]:
        # The caches stay behind when a worker process gets a copy.
        return {key: value for key, value in vars(self).items() if key not in ("_permutation", "_epoch_batches")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._make_caches()

    @property
    def num_batches(self) -> int:
        """Batches of one pass (evaluation only: training has no end)."""
        if self.shuffle:
            raise ValueError("a training plan is infinite")
        return sum(-(-len(group) // self.batch_size) for group in self.groups)

    def rows_of(self, process: tuple[int, int]) -> slice:
        """The rows of each batch that one process reads: p B/P .. (p + 1) B/P - 1 of (p, P).

        Raises:
          ValueError: the batch size is no multiple of P.
        """
        index, count = process
        if self.batch_size % count or not 0 <= index < count:
            raise ValueError(f"batch size {self.batch_size} on process {index} of {count} does not divide")
        rows = self.batch_size // count
        return slice(index * rows, (index + 1) * rows)

    def fingerprint(self) -> str:
        """Changes whenever batch t could be another one: images (by their sizes), canvases, batch size or seed."""
        state = repr((self.canvases, self.batch_size, self.shuffle, self.seed, self.num_examples, self._sizes_digest))
        digest = hashlib.sha256(state.encode())
        digest.update(np.ascontiguousarray(self.canvas_of, np.int64).tobytes())
        return digest.hexdigest()[:16]

    def __getitem__(self, number: int) -> PlannedBatch:
        if number < 0:
            raise IndexError(f"batch {number}")
        return self._training_batch(number) if self.shuffle else self._evaluation_batch(number)

    def epoch_of(self, number: int) -> int:
        """The epoch (from 0) that batch `number` belongs to."""
        if not self.shuffle:
            return 0
        # Batches up to the end of epoch e are sum over canvases of floor(e n_c / B): at most e N / B.
        epoch = number * self.batch_size // self.num_examples
        while self._batches_before(epoch + 1) <= number:
            epoch += 1
        return epoch

    def _batches_before(self, epoch: int) -> int:
        return sum(epoch * len(group) // self.batch_size for group in self.groups)

    def _training_batch(self, number: int) -> PlannedBatch:
        epoch = self.epoch_of(number)
        canvas, position = self._epoch_batches(epoch)[number - self._batches_before(epoch)]
        group = self.groups[canvas]
        places = np.arange(position * self.batch_size, (position + 1) * self.batch_size)
        rounds, inside = np.divmod(places, len(group))
        examples = np.array([self._permutation(canvas, int(r))[i] for r, i in zip(rounds, inside)], np.int64)
        return PlannedBatch(number, self.canvases[canvas], examples)

    def _draw_epoch(self, epoch: int) -> list[tuple[int, int]]:
        """(canvas, number of the batch among those of its canvas) of the batches of an epoch, in their order."""
        batches = [
            (canvas, position)
            for canvas, group in enumerate(self.groups)
            for position in range(epoch * len(group) // self.batch_size, (epoch + 1) * len(group) // self.batch_size)
        ]
        order = np.random.Generator(np.random.PCG64([self.seed, 1, epoch])).permutation(len(batches))
        return [batches[i] for i in order]

    def _draw_permutation(self, canvas: int, round_number: int) -> Int[np.ndarray, " group"]:
        generator = np.random.Generator(np.random.PCG64([self.seed, 2, canvas, round_number]))
        return generator.permutation(self.groups[canvas])

    def _evaluation_batch(self, number: int) -> PlannedBatch:
        position = number
        for canvas, group in zip(self.canvases, self.groups):
            batches = -(-len(group) // self.batch_size)
            if position < batches:
                examples = np.full(self.batch_size, FILLER, np.int64)
                own = group[position * self.batch_size : (position + 1) * self.batch_size]
                examples[: len(own)] = own
                return PlannedBatch(number, canvas, examples)
            position -= batches
        raise IndexError(f"batch {number} of {self.num_batches}")


def output_shape(sizes: Int32[np.ndarray, "n 2"] | Sequence[tuple[int, int]], multiple: int = 32) -> tuple[int, int]:
    """The smallest static canvas, in multiples of `multiple`, that holds images of these original sizes."""
    largest = np.max(np.asarray(sizes).reshape(-1, 2), axis=0, initial=1)
    height, width = (int(-(-side // multiple) * multiple) for side in largest)
    return height, width
