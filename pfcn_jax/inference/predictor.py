"""Images of any size -> predictions at their own size: resize, pad to a canvas, run the compiled program, crop."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import UInt8

from pfcn_jax.checkpoints.loading import LoadedModel
from pfcn_jax.config.schema import Config
from pfcn_jax.data.canvas import pad_into, smallest_canvas
from pfcn_jax.data.plan import output_shape
from pfcn_jax.data.transforms import resize_image, resized_size
from pfcn_jax.models.panoptic_fcn import PanopticFCN
from pfcn_jax.panoptic.options import OutputSpec
from pfcn_jax.panoptic.predict import Prediction, crop_prediction
from pfcn_jax.parallel.sharding import local_row, replicate, shard_batch
from pfcn_jax.steps import predict_step
from pfcn_jax.types import round_up

Size = tuple[int, int]  # (height, width)
Tag = TypeVar("Tag")
_OUTPUT_MULTIPLE = 256  # original sizes are rounded up to this: a new compilation only for a new rounded size


@dataclasses.dataclass(frozen=True)
class Prepared:
    """An image on its canvas. Images with the same `program` can share a batch."""

    canvas: UInt8[np.ndarray, "H W 3"]
    size: Size
    original_size: Size
    output_shape: Size

    @property
    def program(self) -> tuple[Size, Size]:
        """The shapes that are compiled in: canvas and output canvas."""
        return (self.canvas.shape[0], self.canvas.shape[1]), self.output_shape


def compile_prediction(model: PanopticFCN, config: Config, mesh: Mesh | None) -> Callable[..., Prediction]:
    """The jitted prediction program: `predict_step` of a model, with `output` static."""
    return jax.jit(functools.partial(predict_step, model=model, config=config, mesh=mesh), static_argnames="output")


class Predictor:
    """Compiles once for each (canvas, rounded original size, batch size).

    Args:
      batch_size: images of a full batch in `stream`; rounded up to the devices of the mesh.
      mesh: split each batch over these devices; None: the default device.
    """

    def __init__(self, loaded: LoadedModel, config: Config, *, batch_size: int = 1, mesh: Mesh | None = None):
        self.loaded, self.config, self._mesh = loaded, config, mesh
        devices = mesh.size if mesh else 1
        self.batch_size = -(-batch_size // devices) * devices
        self._variables = replicate(loaded.variables, mesh) if mesh else loaded.variables
        self._step = compile_prediction(loaded.model, config, mesh)

    def __call__(self, image: UInt8[np.ndarray, "h w 3"]) -> Prediction:
        """The segments of one RGB uint8 image at its own size, as NumPy arrays."""
        prepared = self.prepare(image)
        return _collect(self.dispatch([prepared], self._mesh.size if self._mesh else 1), 0, prepared)

    def stream(self, images: Iterable[tuple[Tag, np.ndarray]]) -> Iterator[tuple[Tag, np.ndarray, Prediction]]:
        """Predictions for (tag, image), in batches of one canvas; images of one size keep their order.

        A batch is computed while the caller is busy with the one before.
        """
        waiting: dict[tuple[Size, Size], list[tuple[Tag, np.ndarray, Prepared]]] = {}
        running: Iterator[tuple[Tag, np.ndarray, Prediction]] = iter(())
        for tag, image in images:
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
        """Resizes an image by the evaluation's rule and pads it to its canvas."""
        original = (image.shape[0], image.shape[1])
        size = resized_size(original, self.config.data.eval_short_side, self.config.data.eval_max_long_side)
        canvas = np.empty((*self.canvas_for(size), 3), np.uint8)
        pad_into(canvas, resize_image(image, size))
        return Prepared(canvas, size, original, output_shape([original], _OUTPUT_MULTIPLE))

    def dispatch(self, images: Sequence[Prepared], batch_size: int) -> Prediction:
        """Starts the program on images of one `program`, filled up to `batch_size` rows; arrays on the device."""
        (height, width), shape = images[0].program
        canvases = np.zeros((batch_size, height, width, 3), np.uint8)
        sizes, originals = np.ones((batch_size, 2), np.int32), np.ones((batch_size, 2), np.int32)
        for row, image in enumerate(images):
            canvases[row], sizes[row], originals[row] = image.canvas, image.size, image.original_size
        arrays = shard_batch((canvases, sizes, originals), self._mesh) if self._mesh else (canvases, sizes, originals)
        return self._step(self._variables, *arrays, output=OutputSpec(shape))

    def canvas_for(self, size: Size) -> Size:
        """The smallest evaluation canvas that holds a resized image, or one of its own if none does."""
        canvases = self.config.data.eval_canvases
        found = smallest_canvas(size, canvases)
        if found is not None:
            return canvases[found]
        height, width = (round_up(side) for side in size)
        return height, width


def _collect(predicted: Prediction, row: int, image: Prepared) -> Prediction:
    return crop_prediction(local_row(predicted, row), image.original_size)
