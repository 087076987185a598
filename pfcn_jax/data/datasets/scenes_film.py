"""Films of drawn scenes with known ids: things move to and fro, hide each other, leave the image and come back.

Film i follows from (seed, i) alone. The ground and the light stay as they are in all its frames.
"""

from __future__ import annotations

import dataclasses
import zlib

import numpy as np
from jaxtyping import Int32, UInt8

from pfcn_jax.data.datasets import scenes
from pfcn_jax.data.datasets.shapes import Thing

_THINGS = (4, 7)
_MARGIN = 1.4  # things turn back this far beyond the border: nothing of them can be seen
_SPEED = (0.05, 0.16)  # radii a frame


@dataclasses.dataclass(frozen=True)
class Film:
    """A drawn film. A segment has the same value in the maps of all its frames."""

    images: UInt8[np.ndarray, "T h w 3"]  # RGB
    segment_maps: Int32[np.ndarray, "T h w"]  # 0 = void, i = row i - 1 of `class_id`
    class_id: Int32[np.ndarray, " n"]  # things, then every stuff class, whether it has pixels or not


def draw_film(
    index: int, *, frames: int = 40, step: int = 1, size: tuple[int, int] = (128, 128), seed: int = 0
) -> Film:
    """Draws film `index`.

    The nearest thing, which nothing hides, begins at the right border, leaves the image at once, and comes back within
    40 frames (of `step` 1).

    Args:
      index: of the film, at least 0.
      step: of the film's frames only every `step`-th is drawn: a lower frame rate.
      size: (height, width) of the frames.
      seed: of all films.
    """
    key = [seed, zlib.crc32(b"film"), index]
    rng = np.random.Generator(np.random.PCG64(key))
    textures = scenes.make_textures(size)
    ground = scenes.draw_ground(rng, textures)
    things = scenes.place_things(rng, size, _THINGS, ground)
    speeds = [float(rng.uniform(*_SPEED) * rng.choice([-1, 1])) * thing.radius for thing in things]
    nearest = things[-1]
    things[-1] = _at(nearest, size[1] - 0.8 * nearest.radius)
    speeds[-1] = 0.12 * nearest.radius
    images, maps = [], []
    for frame in range(0, frames * step, step):
        moved = [_at(thing, _position(thing, frame * speed, size[1])) for thing, speed in zip(things, speeds)]
        camera = np.random.Generator(np.random.PCG64([*key, 1]))  # the same light in each frame
        images.append(scenes.draw_image(camera, ground, moved, textures))
        maps.append(scenes.draw_ids(ground.labels, moved))
    return Film(np.stack(images), np.stack(maps), scenes.classes_of(things))


def _position(thing: Thing, distance: float, width: int) -> float:
    """x of a thing that has gone `distance` and turns back beyond each border."""
    margin = _MARGIN * thing.radius
    way = width + 2 * margin
    along = (thing.center[0] + margin + distance) % (2 * way)
    return min(along, 2 * way - along) - margin


def _at(thing: Thing, x: float) -> Thing:
    """The thing moved to another x."""
    by = np.array([x - thing.center[0], 0.0])
    hole = None if thing.hole is None else thing.hole + by
    return dataclasses.replace(thing, center=(x, thing.center[1]), outline=thing.outline + by, hole=hole)
