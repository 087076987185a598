"""GeoJSON: `geojson/NAME.geojson` for each image, polygons with holes in pixels (y downwards), things and stuff."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

from pfcn_jax.data.classes import ClassTable
from pfcn_jax.inference.formats.registry import ImageEntry, register
from pfcn_jax.inference.outlines import Ring, outline
from pfcn_jax.inference.result import Result, Segment
from pfcn_jax.utils.atomic import write_json


@register("geojson")
class GeoJson:
    """A feature for each segment; what QuPath, QGIS and shapely read. Coordinates are pixel borders, 0..width."""

    def __init__(self, folder: pathlib.Path, classes: ClassTable):
        self._folder = folder

    def add(self, entry: ImageEntry, result: Result) -> None:
        features = [_feature(result, segment) for segment in result.segments]
        content = {"type": "FeatureCollection", "features": features}
        write_json(self._folder / "geojson" / f"{entry.name}.geojson", content)

    def finish(self, order: Sequence[str]) -> None:
        """Nothing: every image has a file of its own."""


def _feature(result: Result, segment: Segment) -> dict[str, Any]:
    polygons = [[_closed(ring) for ring in part] for part in outline(result.mask(segment)).polygons()]
    single = len(polygons) == 1
    return {
        "type": "Feature",
        "id": segment.id,
        "geometry": {
            "type": "Polygon" if single else "MultiPolygon",
            "coordinates": polygons[0] if single else polygons,
        },
        "properties": {
            "class": segment.class_name,
            "category_id": segment.category_id,
            "is_thing": segment.is_thing,
            "score": round(segment.score, 5),
            "area": segment.area,
        },
    }


def _closed(ring: Ring) -> list[list[int]]:
    return [*ring.tolist(), ring[0].tolist()]
