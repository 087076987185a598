"""Label Studio's run lengths of brush masks: a bit stream of the RGBA bytes of the image, whose alpha is the mask.

The stream, most significant bit first: 32 bits with the number of values; 5 bits with the bits of a value, less one;
four times 4 bits with the widths of the lengths, less one; then blocks: 1 bit (1 = one value repeated, 0 = values one
by one), 2 bits that choose a width, the length less one in this width, the value or the values.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

_CHANNELS = 4
_WORD = 8  # bits of a value
HALF = 128  # alpha from which a pixel belongs to the mask; borders of strokes may be soft


class _Bits:
    def __init__(self, data: bytes):
        self.data = data
        self.position = 0
        self.end = 8 * len(data)

    def read(self, count: int) -> int:
        """The number in the next `count` bits."""
        start, stop = self.position, self.position + count
        if stop > self.end:
            raise ValueError("it ends too early")
        self.position = stop
        whole = int.from_bytes(self.data[start // 8 : -(-stop // 8)], "big")
        return (whole >> (-stop % 8)) & ((1 << count) - 1)

    def read_bytes(self, count: int) -> bytes:
        """The next `count` values of 8 bits."""
        return self.read(_WORD * count).to_bytes(count, "big")


def decode_brush(rle: Sequence[int], size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """The mask of a brush region.

    Args:
      rle: bytes as numbers.
      size: (height, width) of the image.

    Raises:
      ValueError: not such a stream, or not of an image of this size.
    """
    bits = _Bits(bytes(rle))
    expected = size[0] * size[1] * _CHANNELS
    if (total := bits.read(32)) != expected:
        raise ValueError(f"it has {total} values, the image needs {expected}")
    if (word := bits.read(5) + 1) != _WORD:
        raise ValueError(f"its values have {word} bits instead of {_WORD}")
    widths = [bits.read(4) + 1 for _ in range(4)]
    values = np.zeros(total, np.uint8)
    position = 0
    while position < total:
        is_repeated = bits.read(1)
        end = position + bits.read(widths[bits.read(2)]) + 1
        if end > total:
            raise ValueError("it has more values than its header says")
        values[position:end] = (
            bits.read(_WORD) if is_repeated else np.frombuffer(bits.read_bytes(end - position), np.uint8)
        )
        position = end
    return values.reshape(*size, _CHANNELS)[:, :, 3] >= HALF
