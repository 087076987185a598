"""Pictures of any size -> predictions at their own size: resize, pad to a canvas, run the compiled program, crop."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import UInt8

from pfcn_jax.checkpoints.loading import LoadedModel
from pfcn_jax.config.schema import Config
from pfcn_jax.data.plan import output_shape
from pfcn_jax.data.transforms import resize_image, resized_size
from pfcn_jax.panoptic.predict import Prediction, crop_prediction
from pfcn_jax.parallel.sharding import local_row, replicate, shard_batch
from pfcn_jax.steps import predict_step
from pfcn_jax.types import round_up

Size = tuple[int, int]  # (height, width)
Tag = TypeVar("Tag")
_OUTPUT_MULTIPLE = 256  # original sizes are rounded up to this: a new compilation only for a new rounded size


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A picture on its canvas. Pictures with the same `program` can share a batch."""

    canvas: UInt8[np.ndarray, "H W 3"]
    size: Size
    original_size: Size
    output_shape: Size

    @property
    def program(self) -> tuple[Size, Size]:
        """What is compiled in: canvas and output canvas."""
        return (self.canvas.shape[0], self.canvas.shape[1]), self.output_shape


class Predictor:
    """Compiles once for each (canvas, rounded original size, batch size).

    Args:
      batch_size: pictures of a full batch in `stream`; rounded up to the devices of the mesh.
      mesh: split each batch over these devices; None: the default device.
    """

    def __init__(self, loaded: LoadedModel, config: Config, *, batch_size: int = 1, mesh: Mesh | None = None):
        self.loaded, self.config, self._mesh = loaded, config, mesh
        devices = mesh.size if mesh else 1
        self.batch_size = -(-batch_size // devices) * devices
        self._variables = replicate(loaded.variables, mesh) if mesh else loaded.variables
        self._step = jax.jit(
            functools.partial(predict_step, model=loaded.model, config=config.inference, tta=config.tta, mesh=mesh),
            static_argnames="output_shape",
        )

    def __call__(self, image: UInt8[np.ndarray, "h w 3"]) -> Prediction:
        """The segments of one RGB uint8 picture at its own size, as NumPy arrays."""
        prepared = self.prepare(image)
        return _collect(self.dispatch([prepared], self._mesh.size if self._mesh else 1), 0, prepared)

    def stream(self, pictures: Iterable[tuple[Tag, np.ndarray]]) -> Iterator[tuple[Tag, np.ndarray, Prediction]]:
        """Predictions for (tag, picture), in batches of one canvas; pictures of one size keep their order.

        A batch is computed while the caller is busy with the one before.
        """
        waiting: dict[tuple[Size, Size], list[tuple[Tag, np.ndarray, Prepared]]] = {}
        running: Iterator[tuple[Tag, np.ndarray, Prediction]] = iter(())
        for tag, image in pictures:
            prepared = self.prepare(image)
            group = waiting.setdefault(prepared.program, [])
            group.append((tag, image, prepared))
            if len(group) == self.batch_size:
                started = self._start(waiting.pop(prepared.program))
                yield from running
                running = started
        for group in waiting.values():
            started = self._start(group)
            yield from running
            running = started
        yield from running

    def _start(self, group: list[tuple[Tag, np.ndarray, Prepared]]) -> Iterator[tuple[Tag, np.ndarray, Prediction]]:
        predicted = self.dispatch([prepared for _, _, prepared in group], self.batch_size)
        return ((tag, image, _collect(predicted, row, ready)) for row, (tag, image, ready) in enumerate(group))

    def prepare(self, image: UInt8[np.ndarray, "h w 3"]) -> Prepared:
        """Resizes a picture by the evaluation's rule and lays it on its canvas."""
        original = (image.shape[0], image.shape[1])
        size = resized_size(original, self.config.data.eval_short_side, self.config.data.eval_max_long_side)
        canvas = np.zeros((*self.canvas_for(size), 3), np.uint8)
        canvas[: size[0], : size[1]] = resize_image(image, size)
        return Prepared(canvas, size, original, output_shape([original], _OUTPUT_MULTIPLE))

    def dispatch(self, pictures: Sequence[Prepared], batch_size: int) -> Prediction:
        """Starts the program on pictures of one `program`, filled up to `batch_size` rows; arrays on the device."""
        (height, width), shape = pictures[0].program
        images = np.zeros((batch_size, height, width, 3), np.uint8)
        sizes, originals = np.ones((batch_size, 2), np.int32), np.ones((batch_size, 2), np.int32)
        for row, picture in enumerate(pictures):
            images[row], sizes[row], originals[row] = picture.canvas, picture.size, picture.original_size
        arrays = shard_batch((images, sizes, originals), self._mesh) if self._mesh else (images, sizes, originals)
        return self._step(self._variables, *arrays, output_shape=shape)

    def canvas_for(self, size: Size) -> Size:
        """The smallest evaluation canvas that holds a resized picture, or one of its own if none does."""
        fitting = [canvas for canvas in self.config.data.eval_canvases if canvas[0] >= size[0] and canvas[1] >= size[1]]
        if fitting:
            return min(fitting, key=lambda canvas: canvas[0] * canvas[1])
        height, width = (round_up(side) for side in size)
        return height, width


def _collect(predicted: Prediction, row: int, picture: Prepared) -> Prediction:
    return crop_prediction(local_row(predicted, row), picture.original_size)
