"""Objects of the tools' importers: layers, groups, parts and ellipses against slow references."""

from __future__ import annotations

import numpy as np
import pytest

from pfcn_jax.data.importers.common import things_and_background
from pfcn_jax.data.importers.labelled import Drawing, Shape
from pfcn_jax.data.importers.objects import (
    ArrayPart,
    LabelObject,
    MaskPart,
    draw_objects,
    ellipse_points,
    join_groups,
    read_polygon,
)
from tests.data.importers.drawn import SIZE, box, disk, runs_of

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools' decoder
CLASSES, BACKGROUND = things_and_background(["cat"], "background", ["sky", "sea"])
CAT, SKY, SEA = (CLASSES.names.index(name) for name in ("cat", "sky", "sea"))


def test_random_layers_against_the_rule_pixel_by_pixel():
    rng = np.random.default_rng(0)
    for _ in range(30):
        shapes = []
        for _ in range(rng.integers(1, 9)):
            y, x, height, width = rng.integers(0, 40), rng.integers(0, 60), rng.integers(0, 30), rng.integers(0, 40)
            class_id, layer = int(rng.choice([CAT, SKY, SEA])), int(rng.integers(-1, 3))
            shapes.append(Shape(class_id, box(y, x, y + height, x + width), layer=layer))
        drawing = Drawing(SIZE, found=len(shapes))
        drawing.draw_stacked(shapes, CLASSES.is_thing)
        labelled = drawing.finish()
        ranks = [(s.layer, CLASSES.is_thing[s.class_id], -int(s.mask.sum()), i) for i, s in enumerate(shapes)]
        owner = np.full(SIZE, -1)
        for i in sorted(range(len(shapes)), key=ranks.__getitem__):
            owner[shapes[i].mask] = i
        keys = [(s.class_id, i if s.class_id == CAT else -1) for i, s in enumerate(shapes)]  # stuff: one a class
        expected = {
            (key[0], np.isin(owner, [i for i, other in enumerate(keys) if other == key]).tobytes()) for key in keys
        }
        expected = {(class_id, mask) for class_id, mask in expected if any(mask)}
        rows = {(int(c), (labelled.segment_map == row).tobytes()) for row, c in enumerate(labelled.class_id, start=1)}
        assert rows == expected


def test_groups_join_one_class_in_the_highest_layer():
    one = LabelObject("a", "cat", (ArrayPart(box(0, 0, 2, 2)),), layer=1)
    two = LabelObject("b", "cat", (ArrayPart(box(4, 4, 6, 6)[4:6, 4:6], (4, 4)),), layer=5)
    sky = LabelObject("c", "sky", (ArrayPart(box(0, 0, 9, 9)),), layer=4)
    bad = LabelObject("d", "", fault="are boxes")
    joined = join_groups([("g", one), ("g", sky), ("", bad), ("g", two), ("", one)])
    assert [(own.class_name, own.layer, own.joined) for own in joined] == [
        ("cat", 5, 1), ("sky", 4, 0), ("", 0, 0), ("cat", 1, 0),
    ]  # fmt: skip
    labelled = draw_objects(joined, SIZE, CLASSES, BACKGROUND)
    assert (labelled.found, labelled.written, labelled.joined, len(labelled.faults)) == (5, 2, 1, 1)
    np.testing.assert_array_equal(labelled.segment_map == 2, box(0, 0, 2, 2) | box(4, 4, 6, 6))


def test_run_lengths_of_a_box():
    ring = disk(20, 30, 9) & ~disk(20, 30, 4)
    own = ring[11:30, 21:40]
    np.testing.assert_array_equal(MaskPart(tuple(runs_of(own)), own.shape, (11, 21)).draw(SIZE), ring)
    assert MaskPart((0, 6), (2, 3), (46, 61)).draw(SIZE)[46:, 61:].all()


def test_an_ellipse_is_turned_clockwise():
    points = np.reshape(ellipse_points((30, 24), (16, 4), 45), (-1, 2))
    far = points[np.argmax(((points - [30, 24]) ** 2).sum(1))]
    assert abs(far - [30, 24]) == pytest.approx([16 * 0.5**0.5] * 2) and (far[0] > 30) == (far[1] > 24)  # y is down
    part, fault = read_polygon(points.ravel().tolist(), SIZE)
    assert part is not None and not fault and abs(part.draw(SIZE).sum() - np.pi * 64) < 8
    assert read_polygon(None, SIZE)[0] is None and read_polygon([1.0, 2.0], SIZE)[1].endswith("three points")
