"""Slow, obvious NumPy versions of the layers, for one map `[h, w, C]` without a canvas."""

from __future__ import annotations

import numpy as np


def conv(x: np.ndarray, kernel: np.ndarray, stride: int = 1) -> np.ndarray:
    """Zero-padded convolution, one output position at a time."""
    size = kernel.shape[0]
    pad = (size - 1) // 2
    height, width = -(-x.shape[0] // stride), -(-x.shape[1] // stride)
    padded = np.pad(x, ((pad, pad), (pad, pad), (0, 0)))
    out = np.zeros((height, width, kernel.shape[-1]))
    for i in range(height):
        for j in range(width):
            window = padded[i * stride : i * stride + size, j * stride : j * stride + size]
            out[i, j] = np.einsum("yxi,yxio->o", window, kernel)
    return out


def group_norm(x: np.ndarray, groups: int, scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
    out = np.zeros(x.shape)
    width = x.shape[-1] // groups
    for group in range(groups):
        part = x[..., group * width : (group + 1) * width].astype(np.float64)
        out[..., group * width : (group + 1) * width] = (part - part.mean()) / np.sqrt(part.var() + 1e-5)
    return out * scale + bias


def coords(height: int, width: int) -> np.ndarray:
    out = np.zeros((height, width, 2))
    for i in range(height):
        for j in range(width):
            out[i, j, 0] = -1 + (2 * i / (height - 1) if height > 1 else 0)
            out[i, j, 1] = -1 + (2 * j / (width - 1) if width > 1 else 0)
    return out


def bilinear_upsample(x: np.ndarray) -> np.ndarray:
    height, width, channels = x.shape
    out = np.zeros((2 * height, 2 * width, channels))
    for i in range(2 * height):
        for j in range(2 * width):
            y, z = max((i + 0.5) / 2 - 0.5, 0.0), max((j + 0.5) / 2 - 0.5, 0.0)
            top, left = int(y), int(z)
            below, right = min(top + 1, height - 1), min(left + 1, width - 1)
            fy, fz = y - top, z - left
            out[i, j] = (1 - fy) * ((1 - fz) * x[top, left] + fz * x[top, right]) + fy * (
                (1 - fz) * x[below, left] + fz * x[below, right]
            )
    return out


def _bilinear(x: np.ndarray, y: float, z: float) -> np.ndarray:
    """Value at a fractional position, zero outside of the map."""
    value = np.zeros(x.shape[-1])
    top, left = int(np.floor(y)), int(np.floor(z))
    for i in (top, top + 1):
        for j in (left, left + 1):
            if 0 <= i < x.shape[0] and 0 <= j < x.shape[1]:
                value += (1 - abs(y - i)) * (1 - abs(z - j)) * x[i, j]
    return value


def deformable_conv(x: np.ndarray, offset_mask: np.ndarray, kernel: np.ndarray, stride: int = 1) -> np.ndarray:
    """Offsets: channels 0..17, (row, column) interleaved per tap; masks: channels 18..26, through a sigmoid."""
    size = kernel.shape[0]
    taps, pad = size * size, (size - 1) // 2
    out = np.zeros((*offset_mask.shape[:2], kernel.shape[-1]))
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            for tap in range(taps):
                dy, dx = offset_mask[i, j, 2 * tap], offset_mask[i, j, 2 * tap + 1]
                mask = 1 / (1 + np.exp(-offset_mask[i, j, 2 * taps + tap]))
                y, z = i * stride - pad + tap // size + dy, j * stride - pad + tap % size + dx
                out[i, j] += mask * _bilinear(x, y, z) @ kernel[tap // size, tap % size]
    return out
