"""Scratch of a contraction, used again for every tile and chunk.

Memory that comes anew from the system is cleared when it is first touched; for a few MiB that can take as long as the
product that is written there.
"""

import math

from torch import Tensor

__all__ = ["Scratch"]

ALIGNED = 16  # elements, 64 bytes or more


class Scratch:
    """Buffers of the dtype and device of a tensor, with anything in them."""

    def __init__(self, like: Tensor) -> None:
        self._buffer = like.new_empty(0)

    def __call__(self, *shapes: tuple[int, ...]) -> list[Tensor]:
        """Tensors of some shapes, all that are needed at once; the next call hands the same memory out again."""
        sizes = [-(-math.prod(shape) // ALIGNED) * ALIGNED for shape in shapes]
        if self._buffer.numel() < sum(sizes):
            self._buffer = self._buffer.new_empty(sum(sizes))
        parts = self._buffer[: sum(sizes)].split(sizes)
        return [part[: math.prod(shape)].view(shape) for part, shape in zip(parts, shapes, strict=True)]
