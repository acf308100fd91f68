"""Scratch of a contraction, used again for every tile and chunk, and on a CPU by the next contraction.

Memory that comes anew from the system is cleared when it is first touched; for a few MiB that can take as long as the
product that is written there. What is freed may go back to the system at once, step after step: a training step of some
shapes took twice as long for that alone. So on a CPU a thread keeps its scratch. Other devices keep theirs themselves.
"""

import math
import threading
from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["KEPT_BYTES", "Scratch", "release"]

KEPT_BYTES = 2**24
"""At most so much is kept for each use and dtype, by each thread."""
ALIGNED = 16  # elements, 64 bytes or more


class _Handed(NamedTuple):
    """What was handed out last, so that passes of the same shapes, one after another, ask for nothing new."""

    buffer: Tensor
    shapes: tuple[tuple[int, ...], ...]
    parts: list[Tensor]


class _Kept(threading.local):
    """What each thread keeps, by use and dtype."""

    def __init__(self) -> None:
        self.handed: dict[tuple[str, torch.dtype], _Handed] = {}


_KEPT = _Kept()


class Scratch:
    """Buffers of the dtype and device of a tensor, with anything in them.

    Args:
        like: has the dtype and the device.
        use: what for; two of one use and dtype, of one thread, have the same memory.
    """

    def __init__(self, like: Tensor, use: str) -> None:
        self._like = like
        self._key = use, like.dtype
        # Not a tensor that only seems to be one, as those that torch traces with.
        self._keeps = like.device.type == "cpu" and type(like) in (Tensor, nn.Parameter)
        self._handed: _Handed | None = _KEPT.handed.get(self._key) if self._keeps else None

    def __call__(self, *shapes: tuple[int, ...]) -> list[Tensor]:
        """Tensors of some shapes, all that are needed at once; the next call hands the same memory out again."""
        if self._handed is None or self._handed.shapes != shapes:
            sizes = [-(-math.prod(shape) // ALIGNED) * ALIGNED for shape in shapes]
            with torch.inference_mode(False):  # what is made in that mode cannot be written to outside
                buffer = self._at_least(sum(sizes))
                split = zip(buffer[: sum(sizes)].split(sizes), shapes, strict=True)
                self._handed = _Handed(buffer, shapes, [part[: math.prod(shape)].view(shape) for part, shape in split])
            if self._keeps and buffer.nbytes <= KEPT_BYTES:
                _KEPT.handed[self._key] = self._handed
        return self._handed.parts

    def _at_least(self, size: int) -> Tensor:
        if self._handed is not None:
            if self._handed.buffer.numel() >= size:
                return self._handed.buffer
            self._handed = None  # before there are two
            _KEPT.handed.pop(self._key, None)
        return torch.empty(size, dtype=self._like.dtype, device=self._like.device)


def release() -> None:
    """Give back what this thread keeps."""
    _KEPT.handed.clear()
