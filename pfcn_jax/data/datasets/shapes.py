"""The things of the drawn scenes: ball, crate, tent, star and ring; outlines, surfaces and shadows.

A thing is drawn twice from one outline: at the image's size as a label (`fill`), larger as a surface (`draw`).
"""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
from jaxtyping import Float, Float32, Int32

NAMES = ("ball", "crate", "tent", "star", "ring")
_SHIFT = 4  # fixed-point bits of OpenCV's drawing coordinates

# Hues (degrees) around which each kind is colored: the kinds overlap in color, their outlines decide.
_HUES = {
    "ball": ((0, 18), (215, 16), (120, 14)),
    "crate": ((28, 7),),
    "tent": ((20, 14), (200, 20), (340, 12)),
    "star": ((50, 7),),
    "ring": ((285, 18), (330, 14), (175, 12)),
}


@dataclasses.dataclass(frozen=True)
class Thing:
    """One thing in a scene; lengths in pixels of the image."""

    kind: int  # index into NAMES
    center: tuple[float, float]  # x, y
    radius: float
    outline: Float[np.ndarray, "points 2"]  # x, y
    hole: Float[np.ndarray, "points 2"] | None  # of a ring: the ground is seen through it
    angle: float
    color: Float32[np.ndarray, " 3"]  # RGB, 0..255
    accent: Float32[np.ndarray, " 3"]
    stripes: float  # stripes over the surface
    floating: bool  # casts no shadow


def make_thing(
    rng: np.random.Generator, kind: int, center: tuple[float, float], radius: float, *, floating: bool
) -> Thing:
    """A thing of `kind` with random rotation, proportions, colors and pattern."""
    name = NAMES[kind]
    angle = {"tent": rng.normal(0.0, 0.12), "crate": rng.uniform(-0.6, 0.6)}.get(name, rng.uniform(0.0, 2.0 * np.pi))
    outline, hole = _outline(rng, name)
    cosine, sine = np.cos(angle), np.sin(angle)
    turn = np.array([[cosine, sine], [-sine, cosine]])
    hue, spread = _HUES[name][int(rng.integers(len(_HUES[name])))]
    color = _hsv(rng.normal(hue, spread), rng.uniform(0.55, 0.9), rng.uniform(0.7, 0.98))
    accent = color * 0.62 if name == "crate" else _accent(rng, color)
    return Thing(
        kind=kind,
        center=center,
        radius=radius,
        outline=outline @ turn * radius + np.array(center),
        hole=None if hole is None else hole @ turn * radius + np.array(center),
        angle=float(angle),
        color=color,
        accent=accent,
        stripes=float({"ball": 2.0, "crate": 3.0, "tent": 3.0, "star": 0.0, "ring": 0.0}[name]),
        floating=floating,
    )


def _outline(rng: np.random.Generator, name: str) -> tuple[Float[np.ndarray, "p 2"], Float[np.ndarray, "p 2"] | None]:
    """The outline of a kind in units of its radius, y downwards, and its hole."""
    if name == "crate":
        wide, high = rng.uniform(0.78, 1.0), rng.uniform(0.7, 1.0)
        return np.array([[-wide, -high], [wide, -high], [wide, high], [-wide, high]]), None
    if name == "tent":
        wide, tip = rng.uniform(0.95, 1.2), rng.uniform(-0.2, 0.2)
        return np.array([[tip, -1.1], [wide, 0.9], [-wide, 0.9]]), None
    if name == "star":
        points = int(rng.choice([5, 5, 6]))
        angle = np.arange(2 * points) * np.pi / points
        reach = np.where(np.arange(2 * points) % 2 == 0, 1.2, rng.uniform(0.48, 0.58))
        return np.stack([np.sin(angle) * reach, -np.cos(angle) * reach], 1), None
    angle = np.linspace(0.0, 2.0 * np.pi, 48, endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle)], 1)
    if name == "ring":
        return circle * 1.1, circle * rng.uniform(0.5, 0.62)
    return circle, None


def _hsv(hue: float, saturation: float, value: float) -> Float32[np.ndarray, " 3"]:
    pixel = np.array([[[hue % 360.0, saturation, value]]], np.float32)
    return cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB)[0, 0] * np.float32(255)


def _accent(rng: np.random.Generator, color: Float32[np.ndarray, " 3"]) -> Float32[np.ndarray, " 3"]:
    """The second color of a pattern: nearly white, or the first one darker."""
    if rng.random() < 0.6:
        return np.array([245, 240, 228], np.float32)
    return color * np.float32(0.55)


def _fixed(points: Float[np.ndarray, "p 2"], scale: float, origin: tuple[float, float]) -> Int32[np.ndarray, "p 2"]:
    """Coordinates for OpenCV: a pixel's center, not its corner, is an integer there."""
    moved = points * scale - np.array(origin) - 0.5
    return np.round(moved * (1 << _SHIFT)).astype(np.int32)


def fill(labels: Int32[np.ndarray, "h w"], thing: Thing, value: int) -> None:
    """Writes `value` where the thing is, in place, without antialiasing."""
    outlines = [_fixed(thing.outline, 1.0, (0.0, 0.0))]
    if thing.hole is not None:
        outlines.append(_fixed(thing.hole, 1.0, (0.0, 0.0)))
    cv2.fillPoly(labels, outlines, value, lineType=cv2.LINE_8, shift=_SHIFT)


def draw_shadow(shade: Float32[np.ndarray, "H W"], thing: Thing, light: float, zoom: int) -> None:
    """Darkens the ground beside the foot of a thing, in place; `light` in -1 (left) .. 1 (right)."""
    x, y = thing.center
    radius = thing.radius * zoom
    center = (int((x * zoom) - light * radius * 0.75), int(y * zoom + radius * 0.86))
    axes = (max(int(radius * 1.15), 1), max(int(radius * 0.34), 1))
    cv2.ellipse(shade, center, axes, 0.0, 0.0, 360.0, 0.62, thickness=-1)


def draw(image: Float32[np.ndarray, "H W 3"], thing: Thing, light: float, zoom: int) -> None:
    """Draws the surface of a thing, in place: pattern, shading from the light's side, and a darker rim."""
    corner = np.floor(thing.outline.min(0) * zoom).astype(int) - 2
    opposite = np.ceil(thing.outline.max(0) * zoom).astype(int) + 3
    x0, y0 = (int(v) for v in np.maximum(corner, 0))
    x1, y1 = (int(v) for v in np.minimum(opposite, [image.shape[1], image.shape[0]]))
    if x0 >= x1 or y0 >= y1:
        return
    outlines = [_fixed(thing.outline, zoom, (x0, y0))]
    if thing.hole is not None:
        outlines.append(_fixed(thing.hole, zoom, (x0, y0)))
    mask = np.zeros((y1 - y0, x1 - x0), np.uint8)
    cv2.fillPoly(mask, outlines, 1, shift=_SHIFT)
    radius = thing.radius * zoom
    x = (np.arange(x0, x1, dtype=np.float32)[None, :] + 0.5 - np.float32(thing.center[0] * zoom)) / np.float32(radius)
    y = (np.arange(y0, y1, dtype=np.float32)[:, None] + 0.5 - np.float32(thing.center[1] * zoom)) / np.float32(radius)
    surface = _surface(thing, x, y)
    surface *= _shading(thing, x, y, light)[:, :, None]
    rim = (thing.color * np.float32(0.42)).tolist()
    cv2.polylines(
        surface, outlines, True, rim, thickness=max(int(radius * 0.09), 1), lineType=cv2.LINE_AA, shift=_SHIFT
    )
    cv2.copyTo(surface, mask, image[y0:y1, x0:x1])


def _surface(
    thing: Thing, x: Float32[np.ndarray, "1 w"], y: Float32[np.ndarray, "h 1"]
) -> Float32[np.ndarray, "h w 3"]:
    """The pattern: stripes along the turned thing, planks with a frame for a crate, one color otherwise."""
    cosine, sine = np.float32(np.cos(thing.angle)), np.float32(np.sin(thing.angle))
    along, across = x * cosine + y * sine, y * cosine - x * sine
    if thing.stripes == 0.0:
        light = np.zeros(np.broadcast_shapes(x.shape, y.shape), bool)
    elif NAMES[thing.kind] == "crate":
        frame = np.maximum(np.abs(along), np.abs(across)) > 0.62
        light = (np.abs(np.mod(across * np.float32(thing.stripes), 1.0) - 0.5) > 0.42) | (
            frame & (np.abs(along - across) > 0.3)
        )
    else:
        light = np.mod(along * np.float32(thing.stripes * 0.5) + 0.25, 1.0) < 0.5
    return np.where(light[:, :, None], thing.accent[None, None, :], thing.color[None, None, :]).astype(np.float32)


def _shading(
    thing: Thing, x: Float32[np.ndarray, "1 w"], y: Float32[np.ndarray, "h 1"], light: float
) -> Float32[np.ndarray, "h w"]:
    """Brightness: round for a ball and along the tube of a ring, a plain slope for flat things."""
    towards = x * np.float32(light * 0.8) - y * np.float32(0.6)
    name = NAMES[thing.kind]
    if name == "ball":
        height = np.sqrt(np.clip(1.0 - x * x - y * y, 0.0, 1.0))
        shading = 0.5 + 0.34 * height + 0.3 * towards
        return np.clip(shading + 0.5 * np.clip(shading - 0.95, 0.0, 1.0), 0.3, 1.4).astype(np.float32)
    if name == "ring":
        tube = 1.0 - np.abs(np.sqrt(x * x + y * y) - 0.83) / 0.3
        return (0.62 + 0.36 * np.clip(tube, 0.0, 1.0) + 0.14 * towards).astype(np.float32)
    return np.clip(0.9 + 0.2 * towards, 0.55, 1.2).astype(np.float32)
