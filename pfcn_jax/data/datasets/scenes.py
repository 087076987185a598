"""Scenes that the package draws itself: a small illustrated world with exact labels, for tests and the quickstart.

Sky, mountains, grass, water and sand with curved borders; balls, crates, tents, stars and rings of many sizes that
stand in it, overlap, cast shadows and are lit from one side. Scene i of a split follows from (seed, split, i) alone.
Images are drawn at twice their size and reduced, labels are drawn at their own size without antialiasing.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib

import cv2
import numpy as np
from jaxtyping import Float32, Int32, UInt8

from pfcn_jax.data.classes import ClassTable
from pfcn_jax.data.datasets import shapes
from pfcn_jax.data.datasets.shapes import Thing
from pfcn_jax.data.example import Example, ExampleInfo, check_index
from pfcn_jax.data.options import DataOptions
from pfcn_jax.data.registry import register
from pfcn_jax.data.segments import find_runs

THINGS = shapes.NAMES
STUFF = ("sky", "mountain", "grass", "water", "sand")
MIN_VISIBLE = 24  # pixels; a thing of which less is to be seen is left out of the scene
ZOOM = 2  # images are drawn this much larger

_COLORS = {
    "ball": (226, 74, 68),
    "crate": (168, 108, 54),
    "tent": (238, 134, 52),
    "star": (250, 208, 64),
    "ring": (164, 86, 200),
    "sky": (132, 190, 240),
    "mountain": (124, 120, 142),
    "grass": (104, 172, 76),
    "water": (44, 116, 188),
    "sand": (228, 204, 146),
}
_SUPERCATEGORIES = {name: "thing" for name in THINGS} | {name: "land" for name in STUFF} | {"sky": "air"}

# Mean color (RGB) of each stuff class, how far a scene may move it, and the strength of its texture.
_STUFF_COLOR = {
    "sky": ((0, 0, 0), 0.0, 0.0),  # painted from _SKIES
    "mountain": ((122, 120, 140), 14.0, 11.0),
    "grass": ((102, 156, 70), 18.0, 15.0),
    "water": ((50, 118, 168), 16.0, 12.0),
    "sand": ((220, 194, 138), 14.0, 8.0),
}
_SKIES = (  # top and horizon colors: day, haze, evening, morning
    ((78, 146, 222), (196, 224, 244)),
    ((142, 178, 206), (226, 230, 228)),
    ((84, 84, 150), (248, 176, 122)),
    ((120, 150, 214), (250, 214, 206)),
)
_SKY_CHANCES = (0.5, 0.2, 0.15, 0.15)


def class_table() -> ClassTable:
    """Five things, five stuff classes."""
    names = THINGS + STUFF
    return ClassTable(
        names=names,
        category_ids=tuple(range(1, len(names) + 1)),
        is_thing=tuple(name in THINGS for name in names),
        colors=tuple(_COLORS[name] for name in names),
        supercategories=tuple(_SUPERCATEGORIES[name] for name in names),
    )


class Scenes:
    """Drawn scenes as a `Source`.

    Args:
      split: any name; different names give different scenes.
      size: (height, width) of the images, each at least 32.
      length: how many scenes there are; they cost nothing until they are read.
      things: fewest and most things that are placed (hidden ones are left out again).
      seed: of all scenes.
    """

    def __init__(
        self,
        split: str = "train",
        *,
        size: tuple[int, int] = (128, 128),
        length: int = 20_000,
        things: tuple[int, int] = (2, 7),
        seed: int = 0,
    ):
        if min(size) < 32:
            raise ValueError(f"scenes of size {size}: both sides must be at least 32")
        if not 0 <= things[0] <= things[1]:
            raise ValueError(f"things {things}: expected 0 <= fewest <= most")
        if length < 1:
            raise ValueError(f"length {length}: at least 1")
        self.split, self.length, self.things, self.seed = split, length, things, seed
        self.size = (int(size[0]), int(size[1]))

    @property
    def classes(self) -> ClassTable:
        return class_table()

    def __len__(self) -> int:
        return self.length

    def sizes(self) -> Int32[np.ndarray, "examples 2"]:
        return np.tile(np.array(self.size, np.int32), (self.length, 1))

    def info(self, index: int) -> ExampleInfo:
        check_index(index, self.length)
        return ExampleInfo(index, f"{self.split}_{index:06d}.png", (self.size[0], self.size[1]))

    def __getitem__(self, index: int) -> Example:
        info = self.info(index)
        key = [self.seed, zlib.crc32(self.split.encode()), index]
        rng = np.random.Generator(np.random.PCG64(key))
        textures = make_textures(self.size)
        ground = draw_ground(rng, textures)
        things = _visible_things(place_things(rng, self.size, self.things, ground), self.size)
        image = draw_image(rng, ground, things, textures)
        segment_map, class_id = _compact(draw_ids(ground.labels, things), classes_of(things))
        return Example(image, find_runs(segment_map), class_id, np.zeros(len(class_id), bool), index, info.file_name)


@register("scenes", splits=lambda _: ["train", "val"], reads_root=False)
def open_scenes(options: DataOptions, split: str) -> Scenes:
    """Scenes of `data.scene_size`."""
    return Scenes(split, size=options.scene_size)


class Textures:
    """Noise fields, twice as large as an image, from which each scene takes random windows."""

    def __init__(self, size: tuple[int, int]):
        self.height, self.width = size[0] * ZOOM, size[1] * ZOOM
        rng = np.random.Generator(np.random.PCG64(20121))
        shape = (2 * self.height, 2 * self.width)
        self._fields: dict[str, np.ndarray] = {
            "sky": _noise(rng, shape, (28, 46)) + 0.5 * _noise(rng, shape, (10, 18)),
            "mountain": _noise(rng, shape, (16, 9)) + 0.6 * _noise(rng, shape, (4, 3)),
            "grass": _noise(rng, shape, (5, 1)) + 0.5 * _noise(rng, shape, (24, 24)),
            "water": _noise(rng, shape, (1.6, 12)) + 0.5 * _noise(rng, shape, (4, 40)),
            "sand": _noise(rng, shape, (0.8, 0.8)) * 0.7 + 0.6 * _noise(rng, shape, (7, 40)),
            "grain": rng.standard_normal(shape, np.float32),
        }

    def window(self, name: str, rng: np.random.Generator, zoom: int = ZOOM) -> Float32[np.ndarray, "h w"]:
        """A random window of zero mean and unit deviation (over the whole field)."""
        height, width = self.height * zoom // ZOOM, self.width * zoom // ZOOM
        field = self._fields[name]
        top = int(rng.integers(field.shape[0] - height + 1))
        left = int(rng.integers(field.shape[1] - width + 1))
        return field[top : top + height, left : left + width]


@functools.lru_cache(maxsize=8)
def make_textures(size: tuple[int, int]) -> Textures:
    """Noise fields for images of `size`, made once in each process."""
    return Textures(size)


def _noise(rng: np.random.Generator, shape: tuple[int, int], sigma: tuple[float, float]) -> Float32[np.ndarray, "h w"]:
    """Gaussian noise smoothed by sigma (rows, columns), with zero mean and unit deviation."""
    field = rng.standard_normal(shape, np.float32)
    blurred = cv2.GaussianBlur(field, (0, 0), sigmaX=sigma[1], sigmaY=sigma[0], borderType=cv2.BORDER_REFLECT)
    return np.asarray((blurred - blurred.mean()) / blurred.std(), np.float32)


@dataclasses.dataclass(frozen=True)
class Ground:
    """The world without things. `labels` has the image's size and holds indices into STUFF."""

    image: Float32[np.ndarray, "H W 3"]  # at ZOOM times the size
    labels: UInt8[np.ndarray, "h w"]
    horizon: float  # as a part of the height


def _wave(rng: np.random.Generator, length: int, amplitude: float, cycles: float) -> Float32[np.ndarray, " length"]:
    """A smooth random curve: three sines of rising frequency."""
    x = np.linspace(0.0, 2.0 * np.pi * cycles, length, dtype=np.float32)
    curve = np.zeros(length, np.float32)
    for octave in range(3):
        curve += np.sin(x * (octave + 1) * rng.uniform(0.7, 1.3) + rng.uniform(0, 6.3)) / (octave + 1) ** 1.3
    return (amplitude * curve).astype(np.float32)


def _region_map(rng: np.random.Generator, textures: Textures) -> tuple[UInt8[np.ndarray, "H W"], float]:
    """The stuff class of each pixel, at ZOOM times the size, and the height of the horizon."""
    height, width = textures.height, textures.width
    rows = np.arange(height, dtype=np.float32)[:, None]
    horizon = float(rng.uniform(0.26, 0.46))
    line = height * horizon + _wave(rng, width, height * rng.uniform(0.0, 0.025), 1.0)
    labels = np.zeros((height, width), np.uint8)
    kinds = rng.permutation([STUFF.index(name) for name in ("grass", "water", "sand")])
    if rng.random() < 0.65:
        ridge = line - height * rng.uniform(0.08, 0.2) - np.abs(_wave(rng, width, height * 0.08, rng.uniform(0.8, 1.6)))
        labels[rows > ridge[None, :]] = STUFF.index("mountain")
    labels[rows > line[None, :]] = kinds[0]
    grounds = int(rng.choice([1, 2, 2, 2, 3, 3]))
    if grounds >= 2:
        middle = height * (horizon + (1.0 - horizon) * rng.uniform(0.35, 0.65))
        slope = np.linspace(-1.0, 1.0, width, dtype=np.float32) * height * rng.uniform(-0.22, 0.22)
        shore = np.maximum(middle + slope + _wave(rng, width, height * 0.04, rng.uniform(0.6, 1.4)), line)
        labels[rows > shore[None, :]] = kinds[1]
    if grounds >= 3:
        center = (
            int(width * rng.uniform(0.15, 0.85)),
            int(height * (horizon + (1 - horizon) * rng.uniform(0.4, 0.85))),
        )
        _draw_blob(
            labels, rng, center, (width * rng.uniform(0.2, 0.36), height * rng.uniform(0.1, 0.18)), int(kinds[2])
        )
        labels[rows <= line[None, :]] = np.minimum(labels[rows <= line[None, :]], STUFF.index("mountain"))
    return labels, horizon


def _draw_blob(
    labels: UInt8[np.ndarray, "H W"],
    rng: np.random.Generator,
    center: tuple[int, int],
    radius: tuple[float, float],
    value: int,
) -> None:
    """A lake or a patch: an ellipse with a wavy border."""
    angle = np.linspace(0.0, 2.0 * np.pi, 72, endpoint=False)
    wobble = 1.0 + 0.12 * np.sin(3 * angle + rng.uniform(0, 6.3)) + 0.08 * np.sin(5 * angle + rng.uniform(0, 6.3))
    points = np.stack(
        [center[0] + radius[0] * wobble * np.cos(angle), center[1] + radius[1] * wobble * np.sin(angle)], 1
    )
    cv2.fillPoly(labels, [np.round(points).astype(np.int32)], value)


def draw_ground(rng: np.random.Generator, textures: Textures) -> Ground:
    """A world without things: sky, and one to three grounds."""
    regions, horizon = _region_map(rng, textures)
    image = np.empty((*regions.shape, 3), np.float32)
    depth = np.clip((np.arange(len(regions), dtype=np.float32) / len(regions) - horizon) / (1.0 - horizon), 0.0, 1.0)
    for value, name in enumerate(STUFF):
        mask = (regions == value).astype(np.uint8)
        rows = np.flatnonzero(mask.any(axis=1))
        texture = textures.window(name, rng)
        base, strength = _stuff_color(rng, name)
        if not rows.size:
            continue
        part = slice(int(rows[0]), int(rows[-1]) + 1)  # only these rows are painted
        if name == "sky":
            layer = _paint_sky(rng, texture[part], horizon * len(regions))
        else:
            # Towards the horizon the texture is weaker and the color darker; mountains stand upright.
            near = np.ones_like(depth) if name == "mountain" else 0.86 + 0.18 * depth
            color = base[None, :] * near[part, None]
            layer = color[:, None, :] + (texture[part] * (strength * near[part] ** 2)[:, None])[:, :, None]
        cv2.copyTo(np.ascontiguousarray(layer, np.float32), mask[part], image[part])
    labels = np.ascontiguousarray(regions[ZOOM // 2 :: ZOOM, ZOOM // 2 :: ZOOM])
    return Ground(image, labels, horizon)


def _stuff_color(rng: np.random.Generator, name: str) -> tuple[Float32[np.ndarray, " 3"], float]:
    """The color of a stuff class in this scene, and the strength of its texture."""
    color, spread, strength = _STUFF_COLOR[name]
    shift = rng.normal(0.0, 0.5 * spread, 3) + rng.normal(0.0, spread)
    return (np.array(color) + shift).astype(np.float32), strength


def _paint_sky(
    rng: np.random.Generator, clouds: Float32[np.ndarray, "h W"], horizon: float
) -> Float32[np.ndarray, "h W 3"]:
    """A vertical gradient with clouds; `horizon` in rows."""
    top, bottom = (np.array(color, np.float32) for color in _SKIES[int(rng.choice(len(_SKIES), p=_SKY_CHANCES))])
    blend = np.clip(np.arange(len(clouds), dtype=np.float32) / np.float32(1.1 * horizon), 0.0, 1.0)[:, None]
    gradient = ((1.0 - blend) * top[None, :] + blend * bottom[None, :])[:, None, :]
    cover = np.clip((clouds - np.float32(rng.uniform(0.0, 1.4))) * np.float32(0.9), 0.0, 0.85)[:, :, None]
    return gradient + cover * (np.float32(250.0) - gradient)


def place_things(
    rng: np.random.Generator, size: tuple[int, int], number: tuple[int, int], ground: Ground
) -> list[Thing]:
    """Things from far to near: the lower a thing stands, the larger it is and the later it is drawn."""
    height, width = size
    count = int(rng.integers(number[0], number[1] + 1))
    feet = np.sort(rng.uniform(ground.horizon + 0.06, 1.02, count))
    things: list[Thing] = []
    unit = min(height, width)
    for foot in feet:
        nearness = (foot - ground.horizon) / (1.0 - ground.horizon)
        radius = unit * (0.055 + 0.13 * nearness) * rng.uniform(0.75, 1.25)
        if things and rng.random() < 0.3:  # stand close to an earlier one
            x = things[-1].center[0] + rng.uniform(-1.6, 1.6) * radius
        else:
            x = rng.uniform(0.04, 0.96) * width
        kind = int(rng.integers(len(THINGS)))
        lift = 0.0
        if THINGS[kind] in ("star", "ring") and rng.random() < 0.35:
            lift = rng.uniform(0.3, 1.0) * foot * height  # these may float
        center = (float(np.clip(x, 0, width)), float(max(foot * height - radius - lift, radius * 0.6)))
        things.append(shapes.make_thing(rng, kind, center, float(radius), floating=bool(lift > 0.0)))
    return things


def _visible_things(things: list[Thing], size: tuple[int, int]) -> list[Thing]:
    """Without those of which fewer than MIN_VISIBLE pixels can be seen."""
    order = np.zeros(size, np.int32)
    for number, thing in enumerate(things):
        shapes.fill(order, thing, number + 1)
    visible = np.bincount(order.reshape(-1), minlength=len(things) + 1)[1:]
    return [thing for thing, pixels in zip(things, visible) if pixels >= MIN_VISIBLE]


def draw_ids(stuff: UInt8[np.ndarray, "h w"], things: list[Thing]) -> Int32[np.ndarray, "h w"]:
    """Segment map of a scene: i + 1 is thing i in drawing order, stuff class s is n + s + 1; slivers are void."""
    painted = stuff.astype(np.int32) + len(things) + 1
    for number, thing in enumerate(things):
        shapes.fill(painted, thing, number + 1)
    present = np.bincount(painted.reshape(-1), minlength=len(things) + len(STUFF) + 1) >= MIN_VISIBLE
    return np.where(present, np.arange(len(present)), 0).astype(np.int32)[painted]


def classes_of(things: list[Thing]) -> Int32[np.ndarray, " n"]:
    """Class of each row of `draw_ids`: the things, then every stuff class."""
    return np.array([thing.kind for thing in things] + [len(THINGS) + i for i in range(len(STUFF))], np.int32)


def _compact(
    ids: Int32[np.ndarray, "h w"], class_id: Int32[np.ndarray, " rows"]
) -> tuple[Int32[np.ndarray, "h w"], Int32[np.ndarray, " n"]]:
    """Segment map and classes without the rows that have no pixel."""
    present = np.bincount(ids.reshape(-1), minlength=len(class_id) + 1)[1:] > 0
    row = np.concatenate([[0], np.where(present, np.cumsum(present), 0)]).astype(np.int32)
    return row[ids], class_id[present]


def draw_image(
    rng: np.random.Generator, ground: Ground, things: list[Thing], textures: Textures
) -> UInt8[np.ndarray, "h w 3"]:
    """The ground with its things, lit from one side. Draws on a copy: `ground` can serve many images."""
    image = ground.image.copy()
    light = float(rng.uniform(-0.9, 0.9))  # where the light comes from: left -1, right 1
    top = max(int(len(image) * (ground.horizon - 0.02)), 0)  # shadows lie on the ground only
    shade = np.ones(image.shape[:2], np.float32)
    for thing in things:
        if not thing.floating:
            shapes.draw_shadow(shade, thing, light, ZOOM)
    image[top:] *= cv2.blur(shade[top:], (7, 5))[:, :, None]
    for thing in things:
        shapes.draw(image, thing, light, ZOOM)
    height, width = ground.labels.shape
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return _expose(rng, small, textures)


def _expose(
    rng: np.random.Generator, image: Float32[np.ndarray, "h w 3"], textures: Textures
) -> UInt8[np.ndarray, "h w 3"]:
    """Brightness, warmth, a gradient of light over the image, and noise of the camera."""
    width = image.shape[1]
    gain = rng.uniform(0.86, 1.15)
    warmth = rng.uniform(-0.06, 0.06)
    color = np.array([gain * (1 + warmth), gain, gain * (1 - warmth)], np.float32)
    tilt = np.linspace(-1, 1, width, dtype=np.float32) * np.float32(rng.uniform(-0.1, 0.1))
    grain = textures.window("grain", rng, zoom=1) * np.float32(rng.uniform(1.5, 5.0))
    lit = image * color[None, None, :] * (1.0 + tilt)[None, :, None] + grain[:, :, None]
    return np.clip(lit + 0.5, 0, 255).astype(np.uint8)
