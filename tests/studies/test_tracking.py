"""`benchmark tracking`: the scores of drawn films under the ids of each tracker."""

from __future__ import annotations

import numpy as np
import pytest

from pfcn_jax.data.datasets.scenes import STUFF
from pfcn_jax.data.datasets.scenes_film import draw_film
from pfcn_jax.main import main
from pfcn_jax.studies.benchmark.tracking import MODES, Segmented, film_rows


def test_perfect_segments_with_a_kernel_for_each_thing_have_perfect_kernels():
    """The films again, far apart: masks alone lose the things, their kernels do not."""
    films = [draw_film(index, frames=5, step=9, size=(64, 96)) for index in range(2)]
    waiting = iter([(film, labels) for film in films for labels in film.segment_maps])

    def segment(image: np.ndarray) -> Segmented:
        film, labels = next(waiting)
        rows = np.flatnonzero(np.bincount(labels.ravel(), minlength=1 + len(film.class_id))[1:])
        new = np.zeros(1 + len(film.class_id), np.int32)
        new[rows + 1] = np.arange(1, 1 + len(rows))
        is_thing = rows < len(film.class_id) - len(STUFF)
        return Segmented(new[labels], film.class_id[rows], is_thing, np.eye(len(film.class_id))[rows])

    rows = {row["tracked by"]: row for row in film_rows(segment, films, 9)}
    assert list(rows) == list(MODES)
    for row in rows.values():
        assert row["every n-th frame"] == 9 and row["things, k = 1"] == row["SQ"] == 100.0
        assert "things, k = 10" not in row  # the films are shorter
    for name in ("kernels", "both"):
        assert rows[name]["VPQ"] == rows[name]["STQ"] == pytest.approx(100.0)
    assert rows["masks"]["AQ"] < 95.0 and rows["masks"]["VPQ"] < 100.0


def test_a_checkpoint_is_needed(capsys):
    assert main(["benchmark", "tracking"]) == 2
    assert "give --checkpoint" in capsys.readouterr().err
