"""The Python API: a trained model that is called with an image, whatever the image comes as."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from pfcn_jax.checkpoints.loading import LoadedModel, load_checkpoint
from pfcn_jax.config.schema import Config, from_dict
from pfcn_jax.data.decode import decode_image, has_deep_channels, read_orientation, turn
from pfcn_jax.data.example import sides
from pfcn_jax.errors import UserError
from pfcn_jax.inference.predictor import Predictor
from pfcn_jax.inference.result import Result, make_result
from pfcn_jax.inference.tracking import Tracker


class Model:
    """A trained network with its classes. Call it with an image; the first call with a new size class compiles."""

    def __init__(self, loaded: LoadedModel, config: Config):
        self.path, self.classes, self.config = loaded.path, loaded.classes, config
        self._predictor = Predictor(loaded, config)

    def __call__(self, image: Any, *, upright: bool = True) -> Result:
        """Segments one image.

        Args:
          image: the path of an image file; a PIL image; or a uint8 array, RGB `[h, w, 3]`, RGBA `[h, w, 4]` (alpha
            is dropped) or gray `[h, w]`.
          upright: turn files and PIL images as their EXIF orientation says.

        Raises:
          UserError: what is given is no such image; the message says what it is. (A ValueError.)
        """
        array, name = read_image(image, upright=upright)
        return make_result(array, self._predictor(array).panoptic, self.classes, name=name)

    def track(self, frames: Iterable[Any]) -> Iterator[Result]:
        """Segments the frames of one video, one by one; a segment has the same id and color in all of them.

        Args:
          frames: in the order of time, each whatever the model can be called with.

        Raises:
          UserError: as the call with one image.
        """
        tracker = Tracker(len(self.classes))
        for frame in frames:
            array, name = read_image(frame)
            prediction = self._predictor(array)
            yield tracker.track(make_result(array, prediction.panoptic, self.classes, name=name), prediction)

    def __repr__(self) -> str:
        things, stuff = self.classes.num_things, self.classes.num_stuff
        return f"<Model {self.config.name} from {self.path}: {things} things, {stuff} stuff classes>"


def load_for_use(path: str | os.PathLike[str], settings: Mapping[str, Any]) -> Model:
    """See `pfcn_jax.load`."""
    loaded = load_checkpoint(pathlib.Path(path))
    tree = dataclasses.asdict(loaded.config)
    tree["inference"].update(settings)
    return Model(loaded, from_dict(tree))


def read_image(image: Any, *, upright: bool = True) -> tuple[UInt8[np.ndarray, "h w 3"], str]:
    """Anything that is an image as RGB, and a name for it.

    Raises:
      UserError: it is none, or not of 8 bits a channel.
    """
    if isinstance(image, (str, os.PathLike)):
        return _read_file(pathlib.Path(image), upright), pathlib.Path(image).stem
    if isinstance(image, Image.Image):
        name = pathlib.Path(str(getattr(image, "filename", "") or "image")).stem
        return _from_pillow(image, upright), name
    if isinstance(image, np.ndarray) or hasattr(image, "__array__"):
        return _from_array(np.asarray(image)), "image"
    raise UserError(f"an image is a path, a PIL image or a uint8 array; got {type(image).__name__}")


def _read_file(path: pathlib.Path, upright: bool) -> np.ndarray:
    if path.is_dir():
        raise UserError(f"{path}: a folder; call the model with one image, or use `predict` for many")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    return decode_image(data, str(path), upright=upright)


def _from_pillow(image: Image.Image, upright: bool) -> np.ndarray:
    if has_deep_channels(image):
        raise UserError(
            f"a PIL image of mode {image.mode} with more than 8 bits a channel; convert it to 8 bits",
            code="picture-format",
        )
    if 0 in image.size:
        raise UserError(f"a PIL image of {sides((image.height, image.width))} pixels has nothing to segment")
    try:
        array = np.array(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:  # opened lazily: a broken file shows here
        raise UserError(f"{getattr(image, 'filename', '') or 'PIL image'}: broken image ({error})") from error
    return turn(array, read_orientation(image) if upright else 1)


def _from_array(array: np.ndarray) -> np.ndarray:
    shape = list(array.shape)
    if array.dtype != np.uint8:
        hint = "; bring it to 0..255 and use .astype(np.uint8)" if array.dtype.kind in "fiu" else ""
        raise UserError(f"an array of {array.dtype} {shape} is no image: expected uint8 of 0..255{hint}")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim == 2:
        array = np.repeat(array[:, :, None], 3, axis=2)
    if array.ndim != 3 or array.shape[2] not in (3, 4) or array.size == 0:
        raise UserError(f"an array of shape {shape} is no image: expected [h, w, 3] (RGB), [h, w, 4] or [h, w]")
    return np.ascontiguousarray(array[:, :, :3])
