"""Batches for an evaluation: images on their canvases and, beside them, the examples with the original labels.

Each example is read once: its image goes to the device, resized; its labels stay on the host, at the original size, for
the scorer. They are not resized, which training needs and scoring does not.
"""

from __future__ import annotations

import dataclasses
import gc
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32, UInt8

from pfcn_jax.data.augment import ResizeShortSide
from pfcn_jax.data.buffers import Take, shared_arrays
from pfcn_jax.data.canvas import pad_into
from pfcn_jax.data.example import Example, Source
from pfcn_jax.data.pipeline import LoaderOptions, load_ahead, settle_in_worker
from pfcn_jax.data.plan import FILLER, BatchPlan, PlannedBatch
from pfcn_jax.data.transforms import resize_image


@dataclasses.dataclass(frozen=True)
class ScoringBatch:
    """Images for the prediction program and their examples for the scorer. Filler rows are black.

    Attributes:
      size: of the resized image in the canvas; 1 x 1 for filler.
      original_size: of the file; 1 x 1 for filler.
      image_id: index of the example in its source; -1 for filler.
      examples: of the valid rows, in order. Their image has no pixels unless it was asked for.
    """

    image: UInt8[np.ndarray, "B H W 3"]
    size: Int32[np.ndarray, "B 2"]
    original_size: Int32[np.ndarray, "B 2"]
    image_id: Int32[np.ndarray, " B"]
    examples: list[Example]

    @property
    def valid(self) -> Bool[np.ndarray, " B"]:
        return self.image_id != FILLER


class ScoringLoader:
    """Batch number -> this host's rows. Picklable; may be called from several threads."""

    def __init__(
        self,
        source: Source,
        recipe: ResizeShortSide,
        plan: BatchPlan,
        *,
        rows: slice,
        with_images: bool,
        shared: bool,
    ):
        """Args as of `ScoringPipeline`; `rows` are those of this host. `shared`: the arrays go to another process."""
        self.source, self.recipe, self.plan = source, recipe, plan
        self.rows, self.with_images, self.shared = rows, with_images, shared

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        settle_in_worker()

    def __call__(self, number: int) -> dict[str, Any]:
        planned = self.plan[int(number)]
        if not self.shared:
            return self._load(planned, np.empty)
        with shared_arrays() as take:
            arrays = self._load(planned, take)
            # One array of bytes for all labels: large messages go through shared memory, not through the pipe.
            data = pickle.dumps(arrays["examples"], protocol=pickle.HIGHEST_PROTOCOL)
            packed = take((len(data),), np.uint8)
            np.asarray(packed)[:] = np.frombuffer(data, np.uint8)
            return arrays | {"examples": packed}

    def _load(self, planned: PlannedBatch, take: Take) -> dict[str, Any]:
        indices = planned.examples[self.rows]
        image = take((len(indices), *planned.canvas, 3), np.uint8)
        pixels = np.asarray(image)
        sizes = np.ones((2, len(indices), 2), np.int32)
        examples = []
        for row, index in enumerate(indices.tolist()):
            if index == FILLER:
                pixels[row] = 0
                continue
            example = self.source[index]
            size = self.recipe.largest_size(example.size)  # the only one: a single short side, no window
            pad_into(pixels[row], resize_image(example.image, size, method=self.recipe.resize_method))
            sizes[:, row] = size, example.size
            examples.append(example if self.with_images else dataclasses.replace(example, image=_NO_PIXELS))
        return {
            "image": image,
            "size": sizes[0],
            "original_size": sizes[1],
            "image_id": indices.astype(np.int32),
            "examples": examples,
        }


_NO_PIXELS = np.zeros((0, 0, 3), np.uint8)


class ScoringPipeline:
    """Every example of a source once, in batches of one canvas; the last batch of each canvas is filled up.

    Attributes:
      plan: which examples form batch t.
    """

    def __init__(
        self,
        source: Source,
        recipe: ResizeShortSide,
        plan: BatchPlan,
        *,
        process: tuple[int, int],
        workers: int = 0,
        with_images: bool = False,
    ):
        """Nothing is read yet.

        Args:
          recipe: the evaluation's: a single short side, no flip and no window.
          plan: of the batches over all hosts.
          process: (index, number) of this process: it reads its own rows of a batch only.
          workers: processes that load; 0 loads in threads of this process.
          with_images: the examples hold their original image, not their labels alone.

        Raises:
          ValueError: the batch size does not divide, or the recipe is one of training.
        """
        if len(recipe.short_sides) != 1 or recipe.flip or recipe.crop_size is not None:
            raise ValueError("an evaluation resizes every image to one short side, without flip and window")
        self.plan, self._options = plan, LoaderOptions(workers)
        rows = plan.rows_of(process)
        self._loader = ScoringLoader(source, recipe, plan, rows=rows, with_images=with_images, shared=workers > 0)

    def __len__(self) -> int:
        return self.plan.num_batches

    def __iter__(self) -> ScoringIterator:
        loaded = load_ahead(self._loader, range(len(self)), self._options)
        return ScoringIterator(loaded, self._options.workers > 0)


class ScoringIterator(Iterator[ScoringBatch]):
    """The batches in order. `close`, or the end of a `with` block, ends threads and worker processes."""

    def __init__(self, loaded: Iterator[dict[str, Any]], shared: bool):
        self._loaded, self._shared = loaded, shared

    def __next__(self) -> ScoringBatch:
        arrays = next(self._loaded)
        examples = arrays.pop("examples")
        if not isinstance(examples, list):
            examples = pickle.loads(np.asarray(examples).tobytes())
        return ScoringBatch(**arrays, examples=examples)

    def close(self) -> None:
        if hasattr(self._loaded, "close"):
            self._loaded.close()
        if self._shared:
            gc.collect()  # JAX frees a batch's memory with the next collection; shared, it may outlive the process

    def __enter__(self) -> ScoringIterator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
