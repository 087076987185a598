"""Films of drawn scenes: the same again, ids that last, things that are hidden and come back."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pfcn_jax.data.datasets.scenes import MIN_VISIBLE, STUFF, THINGS
from pfcn_jax.data.datasets.scenes_film import draw_film


def test_a_film_depends_on_seed_and_number_alone():
    film, again = draw_film(2, frames=5, size=(64, 96)), draw_film(2, frames=5, size=(64, 96))
    for name in ("images", "segment_maps", "class_id"):
        np.testing.assert_array_equal(getattr(film, name), getattr(again, name))
    np.testing.assert_array_equal(draw_film(2, frames=3, step=2, size=(64, 96)).images, film.images[::2])
    assert film.images.shape == (5, 64, 96, 3) and film.images.dtype == np.uint8
    assert (draw_film(3, frames=1, size=(64, 96)).images != film.images[:1]).any()
    assert (draw_film(2, frames=1, size=(64, 96), seed=1).images != film.images[:1]).any()


@pytest.mark.parametrize("index", [0, 2])
def test_things_leave_come_back_and_hide_each_other(index):
    film = draw_film(index)
    things = len(film.class_id) - len(STUFF)
    assert (film.class_id[:things] < len(THINGS)).all()
    assert film.class_id[things:].tolist() == list(range(len(THINGS), len(THINGS) + len(STUFF)))
    areas = np.stack(
        [np.bincount(labels.ravel(), minlength=1 + len(film.class_id))[1:] for labels in film.segment_maps]
    )
    assert not ((areas > 0) & (areas < MIN_VISIBLE)).any()
    visible = areas[:, things - 1] > 0  # of the nearest thing
    gone = np.flatnonzero(~visible)
    assert visible[0] and visible[-1] and len(gone) >= 3 and visible[gone[-1] + 1 :].all()
    # Things neither grow nor shrink: one that shows less than half of its pixels inside of the image is hidden.
    inside = [t for t in range(40) for i in range(things - 1) if 0 < areas[t, i] < 0.5 * areas[:, i].max()
              and not (film.segment_maps[t][:, [0, -1]] == i + 1).any()]  # fmt: skip
    assert inside


def test_the_ground_stays_where_it_is():
    film = draw_film(1, frames=6)
    things = len(film.class_id) - len(STUFF)
    ground = np.where(film.segment_maps > things, film.segment_maps, 0)
    for one, other in itertools.pairwise(ground):
        both = (one > 0) & (other > 0)
        np.testing.assert_array_equal(one[both], other[both])
