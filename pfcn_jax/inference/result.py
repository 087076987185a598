"""The prediction of one image for people: its segments with their names, as a drawing, and as files."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections import Counter
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from pfcn_jax.codec import write_id_png
from pfcn_jax.data.classes import ClassTable
from pfcn_jax.data.segments import count_pixels, find_runs, tight_boxes
from pfcn_jax.errors import UserError
from pfcn_jax.types import PanopticPrediction
from pfcn_jax.utils.atomic import write_json
from pfcn_jax.viz import OverlayStyle, overlay
from pfcn_jax.viz.preview import compact

_SHOWN_CLASSES = 4  # in a Result's repr
_READABLE = 320  # a drawing with a shorter long side is magnified, so that names can be read


@dataclasses.dataclass(frozen=True)
class Segment:
    """One segment of an image."""

    id: int  # its value in the segment map
    class_name: str
    class_id: int  # contiguous, things first
    category_id: int  # the data set's own
    is_thing: bool
    score: float  # things: the rescored score; stuff: mean probability of its class
    area: int  # pixels
    box: tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels, exclusive ends

    def to_coco(self) -> dict[str, Any]:
        """Its entry in the `segments_info` of a COCO-panoptic file (`bbox` is x, y, width, height there)."""
        x0, y0, x1, y1 = self.box
        return {
            "id": self.id,
            "category_id": self.category_id,
            "score": round(self.score, 5),
            "area": self.area,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "iscrowd": 0,
        }


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Result:
    """The panoptic segmentation of one image."""

    image: UInt8[np.ndarray, "h w 3"]  # RGB, as it was segmented: upright
    segment_map: Int[np.ndarray, "h w"]  # 0 = void, else `Segment.id`
    segments: tuple[Segment, ...]  # ids 1..n in their order, or those of tracks
    classes: ClassTable
    name: str = "image"  # of the files that `save` writes
    tracked: bool = False  # ids are kept from frame to frame, and with them the colors of the drawing

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        height, width = self.segment_map.shape
        return height, width

    def __repr__(self) -> str:
        height, width = self.size
        counts = Counter(segment.class_name for segment in self.segments)
        shown = [f"{count} {name}" if count > 1 else name for name, count in counts.most_common(_SHOWN_CLASSES)]
        if len(counts) > _SHOWN_CLASSES:
            shown.append(f"{len(counts) - _SHOWN_CLASSES} more classes")
        plural = "" if len(self.segments) == 1 else "s"
        listing = f": {', '.join(shown)}" if shown else ""
        return f"<Result {height} x {width} (height x width), {len(self.segments)} segment{plural}{listing}>"

    def mask(self, segment: Segment | int) -> np.ndarray:
        """The pixels of a segment, bool `[h, w]`."""
        return self.segment_map == (segment.id if isinstance(segment, Segment) else segment)

    def with_track_ids(self, ids: Int[np.ndarray, " n"]) -> Result:
        """The same segments under the ids of their tracks, in the order of `segments`; no two may be equal."""
        segments = tuple(dataclasses.replace(segment, id=int(i)) for segment, i in zip(self.segments, ids, strict=True))
        new_id = np.zeros(1 + max((segment.id for segment in self.segments), default=0), np.int32)
        new_id[[segment.id for segment in self.segments]] = ids
        return dataclasses.replace(self, segment_map=new_id[self.segment_map], segments=segments, tracked=True)

    def overlay(self, *, scale: float | None = None, alpha: float = 0.5, labels: bool = True) -> Image.Image:
        """The image with its segments drawn over it.

        Args:
          scale: magnifies the drawing; by default only small images are, so that names can be read.
          alpha: how much of the colors covers the image, 0..1.
          labels: write class names and scores.
        """
        if scale is None:
            scale = max(1, round(_READABLE / max(self.size)))
        ids = [segment.id for segment in self.segments]
        row = np.zeros(1 + max(ids, default=0), np.int32)
        row[ids] = np.arange(1, 1 + len(ids))
        drawn = overlay(
            self.image,
            row[self.segment_map],
            self.classes,
            [segment.class_id for segment in self.segments],
            [segment.score for segment in self.segments],
            numbers=ids if self.tracked else None,
            scale=scale,
            style=OverlayStyle(alpha, labels),
        )
        return Image.fromarray(drawn)

    def to_coco(self, image_id: int | str | None = None, file_name: str | None = None) -> dict[str, Any]:
        """The entry of this image in the `annotations` of a COCO-panoptic file, as `predict` writes it.

        Args:
          image_id: default: `name`.
          file_name: of the PNG of ids; default: that of `save`, NAME.png.
        """
        return {
            "image_id": self.name if image_id is None else image_id,
            "file_name": f"{self.name}.png" if file_name is None else file_name,
            "segments_info": [segment.to_coco() for segment in self.segments],
        }

    def to_coco_instances(self, image_id: int | str | None = None) -> list[dict[str, Any]]:
        """The things as COCO detections: what `predict --format coco-instances` writes and `COCO.loadRes` reads.

        Each has `image_id` (default: `name`), `category_id`, `segmentation` (compressed RLE), `area`, `bbox` (x, y,
        width, height), `iscrowd` and `score`.
        """
        from pycocotools import mask as coco_mask  # needed here alone

        found = []
        for segment in self.segments:
            if segment.is_thing:
                rle = coco_mask.encode(np.asfortranarray(self.mask(segment).astype(np.uint8)))
                entry = segment.to_coco() | {
                    "image_id": self.name if image_id is None else image_id,
                    "segmentation": {"size": list(self.size), "counts": rle["counts"].decode("ascii")},
                }
                del entry["id"]  # of the segment map; a file of detections numbers its own
                found.append(entry)
        return found

    def to_supervision(self) -> Any:
        """This result as `supervision.Detections`: things and stuff, in the order of `segments`.

        `data` has `class_name` and `is_thing`.

        Raises:
          UserError: the package `supervision` is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise UserError("to_supervision needs the package supervision: pip install supervision") from error
        return supervision.Detections(
            xyxy=np.array([segment.box for segment in self.segments], np.float32).reshape(-1, 4),
            mask=np.array([self.mask(segment) for segment in self.segments], bool).reshape(-1, *self.size),
            confidence=np.array([segment.score for segment in self.segments], np.float32),
            class_id=np.array([segment.class_id for segment in self.segments], int),
            data={
                "class_name": np.array([segment.class_name for segment in self.segments], str),
                "is_thing": np.array([segment.is_thing for segment in self.segments], bool),
            },
        )

    def save(self, folder: str | os.PathLike[str], *, name: str | None = None) -> pathlib.Path:
        """Writes `NAME.png` (ids as a COCO-panoptic PNG), `NAME.json` and `NAME_overlay.png`; returns the folder."""
        folder, name = pathlib.Path(folder), name or self.name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_id_png(folder / f"{name}.png", self.segment_map)
            self.overlay().save(folder / f"{name}_overlay.png")
            height, width = self.size
            content = {
                "images": [{"id": name, "file_name": name, "height": height, "width": width}],
                "annotations": [self.to_coco(name, f"{name}.png")],
                "categories": self.classes.to_coco(),
            }
            write_json(folder / f"{name}.json", content)
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({error.strerror or error})") from error
        return folder


def make_result(
    image: UInt8[np.ndarray, "h w 3"], prediction: PanopticPrediction, classes: ClassTable, *, name: str = "image"
) -> Result:
    """Names, areas and boxes of what was predicted; `prediction` is cropped to the image."""
    segment_map, class_id, score = compact(prediction)
    runs = find_runs(segment_map)
    areas, boxes = count_pixels(runs, len(class_id)), tight_boxes(runs, len(class_id))
    segments = tuple(
        Segment(
            id=row + 1,
            class_name=classes.names[c],
            class_id=c,
            category_id=classes.category_ids[c],
            is_thing=bool(classes.is_thing[c]),
            score=float(score[row]),
            area=int(areas[row]),
            box=tuple(int(side) for side in boxes[row]),  # type: ignore[arg-type]
        )
        for row, c in enumerate(class_id.tolist())
    )
    return Result(image=image, segment_map=segment_map, segments=segments, classes=classes, name=name)
