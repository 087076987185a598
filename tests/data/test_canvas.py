"""data/canvas.py: the choice of a canvas against a slow search. Padding: test_transforms.py."""

from __future__ import annotations

import numpy as np

from pfcn_jax.data.canvas import smallest_canvas


def test_the_smallest_canvas_that_fits():
    rng = np.random.default_rng(0)
    for _ in range(300):
        canvases = [tuple(side) for side in (rng.integers(1, 6, (rng.integers(1, 6), 2)) * 32).tolist()]
        size = tuple(rng.integers(1, 200, 2).tolist())
        best = None
        for position, (height, width) in enumerate(canvases):
            fits = height >= size[0] and width >= size[1]
            if fits and (best is None or height * width < canvases[best][0] * canvases[best][1]):
                best = position
        assert smallest_canvas(size, canvases) == best
