"""Window attention against the published order of steps (pad, roll, mask, roll back) in NumPy, image by image."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfcn_jax.models.backbones.swin import SHIFT, WINDOW, WindowAttention

SIZES = ((5, 9), (7, 15), (12, 20), (14, 7))  # no shift on an axis of at most 7
CANVAS = (14, 20)
HEADS, CHANNELS = 2, 4


def _regions(length: int, shift: int) -> np.ndarray:
    """Region of each rolled position of a padded axis; a window attends within one region only."""
    at = np.arange(length)
    return np.zeros(length) if shift == 0 else np.where(at < length - WINDOW, 0, np.where(at < length - shift, 1, 2))


def oracle(x: np.ndarray, params: dict[str, np.ndarray], *, shifted: bool) -> np.ndarray:
    height, width, channels = x.shape
    padded = np.pad(x, ((0, -height % WINDOW), (0, -width % WINDOW), (0, 0)))
    shift = [SHIFT if shifted and side > WINDOW else 0 for side in padded.shape[:2]]
    rolled = np.roll(padded, (-shift[0], -shift[1]), (0, 1))
    region = 3 * _regions(rolled.shape[0], shift[0])[:, None] + _regions(rolled.shape[1], shift[1])[None, :]
    out, size = np.zeros_like(rolled), channels // HEADS
    for top in range(0, rolled.shape[0], WINDOW):
        for left in range(0, rolled.shape[1], WINDOW):
            at = [(top + i, left + j) for i in range(WINDOW) for j in range(WINDOW)]
            qkv = np.stack([rolled[p] for p in at]) @ params["qkv_kernel"] + params["qkv_bias"]
            found = np.zeros((len(at), channels))
            for head in range(HEADS):
                part = slice(head * size, (head + 1) * size)
                query, key, value = (qkv[:, i * channels : (i + 1) * channels][:, part] for i in range(3))
                for q, (qi, qj) in enumerate(at):
                    logits = np.array(
                        [
                            query[q] @ key[k] * size**-0.5
                            + params["table"][(qi - ki + 6) * 13 + (qj - kj + 6), head]
                            + (0.0 if region[qi, qj] == region[ki, kj] else -100.0)
                            for k, (ki, kj) in enumerate(at)
                        ]
                    )
                    weight = np.exp(logits - logits.max())
                    found[q, part] = weight @ value / weight.sum()
            for p, row in zip(at, found @ params["proj_kernel"] + params["proj_bias"], strict=True):
                out[p] = row
    return np.roll(out, shift, (0, 1))[:height, :width]


@pytest.mark.parametrize("shifted", [False, True])
def test_window_attention(shifted: bool) -> None:
    rng = np.random.default_rng(0)
    net = WindowAttention(HEADS, shifted)
    draw = {
        "qkv_kernel": (CHANNELS, 3 * CHANNELS), "qkv_bias": (3 * CHANNELS,), "proj_kernel": (CHANNELS, CHANNELS),
        "proj_bias": (CHANNELS,), "table": ((2 * WINDOW - 1) ** 2, HEADS),
    }  # fmt: skip
    p = {name: rng.normal(size=shape) for name, shape in draw.items()}
    params = {
        "qkv": {"kernel": p["qkv_kernel"], "bias": p["qkv_bias"]},
        "proj": {"kernel": p["proj_kernel"], "bias": p["proj_bias"]},
        "bias_table": p["table"],
    }
    params = jax.tree.map(lambda array: jnp.asarray(array, jnp.float32), params)
    x = np.zeros((len(SIZES), *CANVAS, CHANNELS), np.float32)
    for row, (height, width) in zip(x, SIZES, strict=True):
        row[:height, :width] = rng.normal(size=(height, width, CHANNELS))
    count = tuple(jnp.asarray(SIZES, jnp.int32).T)
    ours = np.asarray(jax.jit(net.apply)({"params": params}, x, count))
    for row, image, (height, width) in zip(ours, x, SIZES, strict=True):
        theirs = oracle(image[:height, :width].astype(np.float64), p, shifted=shifted)
        np.testing.assert_allclose(row[:height, :width], theirs, atol=2e-5)
    alone = net.apply({"params": params}, x[1:2, :7, :15], None)  # an image without a canvas
    np.testing.assert_allclose(alone[0], ours[1, :7, :15], atol=1e-5)
