"""Objects drawn above each other: who is above whom, what becomes of each, and sums that add up."""

from __future__ import annotations

import numpy as np
import pytest

from pfcn_jax.data.importers.labelled import HIDDEN, NO_PIXEL, Drawing, Labelled, Shape
from tests.data.importers.support import square

SIZE = (12, 20)
THING, OTHER, STUFF, BACKGROUND = range(4)
IS_THING = (True, True, False, False)


def rows_of(labelled: Labelled) -> set[tuple[int, bool, bytes]]:
    return {
        (int(class_id), bool(crowd), (labelled.segment_map == row + 1).tobytes())
        for row, (class_id, crowd) in enumerate(zip(labelled.class_id, labelled.is_crowd))
    }


def test_random_stacks_against_the_rule_pixel_by_pixel():
    rng = np.random.default_rng(0)
    for _ in range(40):
        shapes = []
        for _ in range(rng.integers(1, 9)):
            y, x, height, width = rng.integers(0, 10), rng.integers(0, 18), rng.integers(0, 8), rng.integers(0, 12)
            mask = square(y, x, y + height, x + width, SIZE)
            shapes.append(Shape(int(rng.integers(0, 3)), mask, bool(rng.random() < 0.2)))
        drawing = Drawing(SIZE, found=len(shapes))
        drawing.draw_stacked(shapes, IS_THING)
        labelled = drawing.finish(BACKGROUND)
        # Slow: stuff of one class is one shape; the highest of a pixel's shapes has it.
        stuff = [s.mask for s in shapes if s.class_id == STUFF and not s.is_crowd and s.mask.any()]
        own = [s for s in shapes if (s.class_id != STUFF or s.is_crowd) and s.mask.any()]
        own += [Shape(STUFF, np.logical_or.reduce(stuff))] if stuff else []
        ranks = [(not s.is_crowd, IS_THING[s.class_id], -int(s.mask.sum()), i) for i, s in enumerate(own)]
        owner = np.full(SIZE, -1)
        for y, x in np.ndindex(SIZE):
            owner[y, x] = max((i for i, s in enumerate(own) if s.mask[y, x]), key=ranks.__getitem__, default=-1)
        expected = {(s.class_id, s.is_crowd, (owner == i).tobytes()) for i, s in enumerate(own) if (owner == i).any()}
        expected |= {(BACKGROUND, False, (owner == -1).tobytes())} if (owner == -1).any() else set()
        assert rows_of(labelled) == expected
        hidden = sum(not (owner == i).any() for i in range(len(own)))
        empty = sum(not s.mask.any() for s in shapes)
        assert labelled.left_out[HIDDEN] == hidden and labelled.left_out.get(NO_PIXEL, 0) == empty
        assert labelled.joined == max(len(stuff) - 1, 0)


def test_the_background_joins_what_was_drawn_of_it_and_leaves_void():
    drawing = Drawing(SIZE)
    drawing.draw(Shape(BACKGROUND, square(0, 0, 4, 4, SIZE)))
    labelled = drawing.finish(BACKGROUND, void=square(8, 0, 12, 20, SIZE))
    assert rows_of(labelled) == {(BACKGROUND, False, square(0, 0, 8, 20, SIZE).tobytes())}
    assert (labelled.found, labelled.written, labelled.filled) == (1, 1, 0)


def test_objects_that_get_lost_in_silence_are_a_bug():
    drawing = Drawing(SIZE, found=3)
    drawing.draw(Shape(THING, square(0, 0, 4, 4, SIZE)))
    drawing.fault("line 2", "are boxes")
    drawing.fault("line 1", "have a part that cannot be used", is_lost=False)
    with pytest.raises(ValueError, match="3 objects found, but 2 written"):
        drawing.finish()
    drawing.leave_out("are not wanted")
    assert drawing.finish().found == 3
