"""Slow, obvious NumPy forms of the training targets, guidance and losses, in float64, with full-size masks."""

from __future__ import annotations

import dataclasses

import numpy as np

STRIDES = (8, 16, 32, 64, 128)
RANGES = ((1, 64), (32, 128), (64, 256), (128, 512), (256, 2048))


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear, half-pixel centers, no antialiasing: `[h, w]` -> `[height, width]`."""
    out = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            sy = max((y + 0.5) * image.shape[0] / height - 0.5, 0.0)
            sx = max((x + 0.5) * image.shape[1] / width - 0.5, 0.0)
            y0, x0 = int(sy), int(sx)
            y1, x1 = min(y0 + 1, image.shape[0] - 1), min(x0 + 1, image.shape[1] - 1)
            fy, fx = sy - y0, sx - x0
            top = image[y0, x0] * (1 - fx) + image[y0, x1] * fx
            bottom = image[y1, x0] * (1 - fx) + image[y1, x1] * fx
            out[y, x] = top * (1 - fy) + bottom * fy
    return out


def quarter(mask: np.ndarray, size: tuple[int, int], extent: tuple[int, int]) -> np.ndarray:
    """A full-size mask at 1/4 resolution, padded to the extent."""
    out = np.zeros((extent[0] // 4, extent[1] // 4))
    height, width = int(size[0] / 4 + 0.5), int(size[1] / 4 + 0.5)
    out[:height, :width] = resize(mask[: size[0], : size[1]].astype(float), height, width)
    return out


def radius(height: float, width: float, overlap: float = 0.7) -> float:
    """CornerNet's gaussian radius as it is used everywhere."""
    b1, c1 = height + width, width * height * (1 - overlap) / (1 + overlap)
    r1 = (b1 + np.sqrt(b1**2 - 4 * c1)) / 2
    b2, c2 = 2 * (height + width), (1 - overlap) * width * height
    r2 = (b2 + np.sqrt(b2**2 - 16 * c2)) / 2
    a3, b3, c3 = 4 * overlap, -2 * overlap * (height + width), (overlap - 1) * width * height
    return min(r1, r2, (b3 + np.sqrt(b3**2 - 4 * a3 * c3)) / 2)


@dataclasses.dataclass
class Slow:
    heatmap: list[np.ndarray]  # [hl, wl, T] per level
    region: list[np.ndarray]  # [hl, wl, C]
    pairs: list[tuple[int, int]]  # (row, level), row after row
    present: list[tuple[int, int]]  # (region channel, level)
    masks: dict[int, np.ndarray]  # row -> 1/4 mask
    region_masks: list[np.ndarray]  # per channel
    level_masks: dict[tuple[int, int], np.ndarray]


def targets(segment_map, table, size, extent, *, num_things, num_stuff, center="mass") -> Slow:
    """`table`: list of (class_id, is_crowd, box) per row; thing classes come first."""
    shapes = [(-(-extent[0] // s), -(-extent[1] // s)) for s in STRIDES]
    heatmap = [np.zeros((*shape, num_things)) for shape in shapes]
    pairs, masks, level_masks = [], {}, {}
    for row, (class_id, is_crowd, box) in enumerate(table):
        if class_id >= num_things or is_crowd:
            continue
        mask = quarter(segment_map == row + 1, size, extent)
        ys, xs = np.nonzero(mask)
        if not len(ys):
            continue
        masks[row] = mask
        width, height = box[2] - box[0], box[3] - box[1]
        cy, cx = ys.mean(), xs.mean()
        if center == "box":
            cy, cx = (box[1] + box[3]) / 8, (box[0] + box[2]) / 8
        for level, ((low, high), shape) in enumerate(zip(RANGES, shapes)):
            if not low <= np.sqrt(width * height) <= high:
                continue
            pairs.append((row, level))
            level_masks[row, level] = resize(mask, *shape)
            rows, columns = shape[0] / extent[0], shape[1] / extent[1]  # the ratio of the sizes, not 1 / stride
            py, px = min(int(cy * 4 * rows), shape[0] - 1), min(int(cx * 4 * columns), shape[1] - 1)
            r = int(radius(height * rows, width * columns))
            for y in range(max(py - r, 0), min(py + r + 1, shape[0])):
                for x in range(max(px - r, 0), min(px + r + 1, shape[1])):
                    value = np.exp(-((y - py) ** 2 + (x - px) ** 2) / (2 * ((2 * r + 1) / 3) ** 2))
                    heatmap[level][y, x, class_id] = max(heatmap[level][y, x, class_id], value)
    channels = np.full(segment_map.shape, -1)
    for row, (class_id, _, _) in enumerate(table):
        channels[segment_map == row + 1] = 0 if class_id < num_things else class_id - num_things + 1
    region_masks = [quarter(channels == c, size, extent) for c in range(1 + num_stuff)]
    region = []
    for shape in shapes:
        soft = np.stack([resize(mask, *shape) for mask in region_masks], axis=-1)
        region.append(np.where(soft < 0.5 - 1e-6, 0.0, soft))
    present = [(c, level) for c in range(1 + num_stuff) for level in range(5) if region[level][..., c].any()]
    return Slow(heatmap, region, pairs, present, masks, region_masks, level_masks)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def focal(logits: np.ndarray, target: np.ndarray, alpha: float = 0.25, gamma: float = 2.0) -> np.ndarray:
    p = sigmoid(logits)
    ce = -(target * np.log(p) + (1 - target) * np.log(1 - p))
    pt = p * target + (1 - p) * (1 - target)
    return (alpha * target + (1 - alpha) * (1 - target)) * (1 - pt) ** gamma * ce


def dice(logits: np.ndarray, mask: np.ndarray) -> float:
    p = sigmoid(logits)
    return 1 - 2 * (p * mask).sum() / ((p**2).sum() + (mask**2).sum())


def top_positions(logits: np.ndarray, level_mask: np.ndarray, k: int) -> list[tuple[int, int]]:
    """The k cells of the mask with the highest logit, first cell first among equals."""
    inside = [(-float(logits[y, x]), y, x) for y, x in np.argwhere(level_mask > 0.1)]
    return [(y, x) for _, y, x in sorted(inside)[:k]]
