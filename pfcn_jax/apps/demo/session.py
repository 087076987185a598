"""The demo's uploads: the network runs once for each, fusion and merge again for every change of a threshold."""

from __future__ import annotations

import base64
import collections
import dataclasses
import math
import secrets
import threading
import time
import zlib
from typing import Any

import cv2
import numpy as np

from pfcn_jax.apps.demo.uploads import Limits, read_upload
from pfcn_jax.errors import UserError
from pfcn_jax.inference.two_stage import EncodedImage, KernelCounts, TwoStagePredictor
from pfcn_jax.panoptic.options import THRESHOLDS
from pfcn_jax.panoptic.predict import Prediction
from pfcn_jax.viz import data_uri, encode_webp, overlay, segment_colors
from pfcn_jax.viz.preview import compact, draw_prediction

# name: (lowest, highest, step, what it does). Above 1, fusion finds no pair.
SLIDERS: dict[str, tuple[float, float, float, str]] = {
    "fusion_threshold": (0.5, 1.01, 0.01, "kernels of one class with at least this cosine similarity are one object"),
    "center_threshold": (0.0, 1.0, 0.01, "peaks above it become kernels of things"),
    "stuff_threshold": (0.0, 1.0, 0.01, "regions above it become kernels of stuff"),
    "mask_threshold": (0.05, 0.95, 0.01, "pixels above it belong to a thing's mask"),
    "min_score": (0.0, 1.0, 0.01, "after rescoring by the mask, things above it stay"),
    "merge_score": (0.0, 1.0, 0.01, "things from it on are put on the canvas"),
    "merge_overlap": (0.0, 1.0, 0.01, "a thing is a duplicate if more than this share of it is taken"),
    "min_stuff_area": (0, 20000, 16, "stuff with fewer pixels is void"),
}
assert set(SLIDERS) == set(THRESHOLDS)
_READABLE = 720  # long side of the drawing, about: names on a smaller one are hard to read


@dataclasses.dataclass(frozen=True)
class Uploaded:
    name: str
    encoded: EncodedImage


class DemoSession:
    """Uploads by their keys, and the answers to the page; thread-safe.

    Args:
      long_side: larger images are downscaled to it first, so that sliders stay fast.
      kept: images whose network outputs stay in memory; the least recently used goes first.
    """

    def __init__(self, predictor: TwoStagePredictor, limits: Limits, *, long_side: int = 1024, kept: int = 8):
        self.limits = limits
        self._predictor, self._long_side, self._kept = predictor, long_side, kept
        self._uploads: collections.OrderedDict[str, Uploaded] = collections.OrderedDict()
        self._lock = threading.Lock()  # one image at a time: a device is not faster with two

    def info(self) -> dict[str, Any]:
        """The model, the limits and the sliders, for the page."""
        inference = self._predictor.config.inference
        sliders = [
            {"name": name, "low": low, "high": high, "step": step, "text": text, "value": getattr(inference, name)}
            for name, (low, high, step, text) in SLIDERS.items()
        ]
        classes = self._predictor.loaded.classes
        return {
            "model": self._predictor.loaded.config.name,
            "classes": list(classes.names),
            "sliders": sliders,
            "max_bytes": self.limits.max_bytes,
            "max_pixels": self.limits.max_pixels,
        }

    def add(self, data: bytes, name: str) -> dict[str, Any]:
        """Decodes an upload and runs the network on it.

        Raises:
          UserError: the file cannot be used; the message says why.
        """
        with self._lock:
            image = _shrunk(read_upload(data, name, self.limits), self._long_side)
            begin = time.monotonic()
            encoded = self._predictor.encode(image)
            seconds = time.monotonic() - begin
            key = secrets.token_urlsafe(16)
            self._uploads[key] = Uploaded(name, encoded)
            while len(self._uploads) > self._kept:
                self._uploads.popitem(last=False)
        blank = np.zeros(image.shape[:2], np.int32)
        shown = overlay(image, blank, self._predictor.loaded.classes, [], scale=_scale(image))
        height, width = image.shape[:2]
        return {
            "key": key,
            "height": height,
            "width": width,
            "image": data_uri(encode_webp(shown)),
            "seconds": round(seconds, 3),
        }

    def segment(self, key: Any, thresholds: Any) -> dict[str, Any]:
        """The segments of an upload with these thresholds.

        Raises:
          UserError: an unknown or forgotten upload, or thresholds that are none.
        """
        checked = check_thresholds(thresholds)
        with self._lock:
            upload = self._uploads.get(key) if isinstance(key, str) else None
            if upload is None:
                raise UserError("this image is no longer in memory: upload it again")
            self._uploads.move_to_end(key)
            begin = time.monotonic()
            prediction, counts = self._predictor.segment(upload.encoded, **checked)
            seconds = time.monotonic() - begin
        return self._answer(upload.encoded.image, prediction, counts, seconds)

    def _answer(
        self, image: np.ndarray, prediction: Prediction, counts: KernelCounts, seconds: float
    ) -> dict[str, Any]:
        classes = self._predictor.loaded.classes
        segment_map, class_id, score = compact(prediction.panoptic)
        areas = np.bincount(segment_map.ravel(), minlength=len(class_id) + 1)[1:]
        colors = segment_colors(class_id, classes.palette)
        segments = [
            {
                "id": row + 1,
                "name": classes.names[c],
                "thing": bool(classes.is_thing[c]),
                "score": round(float(score[row]), 4),
                "area": int(areas[row]),
                "color": colors[row].tolist(),
            }
            for row, c in enumerate(class_id.tolist())
        ]
        drawn = draw_prediction(image, prediction.panoptic, classes, scale=_scale(image))
        return {
            "segments": segments,
            "ids": base64.b64encode(zlib.compress(segment_map.astype("<u2").tobytes())).decode("ascii"),
            "overlay": data_uri(encode_webp(drawn)),
            "kernels": {
                "picked": counts.picked,
                "fused": counts.fused,
                "rescored": counts.rescored,
                "placed": sum(segment["thing"] for segment in segments),
            },
            "seconds": round(seconds, 3),
        }


def check_thresholds(values: Any) -> dict[str, float]:
    """Thresholds as the page sends them.

    Raises:
      UserError: not numbers by the names of `SLIDERS`, within their bounds.
    """
    if not isinstance(values, dict):
        raise UserError("thresholds must be numbers by name")
    for name, value in values.items():
        if name not in SLIDERS:
            raise UserError(f"{str(name)[:40]}: no threshold (known: {', '.join(SLIDERS)})")
        low, high = SLIDERS[name][:2]
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or not low <= value <= high:
            raise UserError(f"{name}: must be a number in {low:g}..{high:g}, got {str(value)[:40]}")
    return dict(values)


def _shrunk(image: np.ndarray, long_side: int) -> np.ndarray:
    ratio = long_side / max(image.shape[:2])
    if ratio >= 1.0:
        return image
    height, width = (max(1, round(side * ratio)) for side in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def _scale(image: np.ndarray) -> float:
    """Magnification of the drawing of a small image."""
    return float(max(1, round(_READABLE / max(image.shape[:2]))))
