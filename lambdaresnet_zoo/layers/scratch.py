"""Scratch of a contraction, used again for every tile and chunk, and on a CPU by the next contraction.

Memory that comes anew from the system is cleared when it is first touched; for a few MiB that can take as long as the
product that is written there. What is freed may go back to the system at once, step after step: a training step of some
shapes took twice as long for that alone. So on a CPU a thread keeps its scratch. Other devices keep theirs themselves.
"""

import math
import threading

import torch
from torch import Tensor, nn

__all__ = ["KEPT_BYTES", "Scratch", "release"]

KEPT_BYTES = 2**24
"""At most so much is kept for each use and dtype, by each thread."""
ALIGNED = 16  # elements, 64 bytes or more

_LOCAL = threading.local()


class Scratch:
    """Buffers of the dtype and device of a tensor, with anything in them.

    Args:
        like: has the dtype and the device.
        use: what for; two of one use and dtype, of one thread, have the same memory.
    """

    def __init__(self, like: Tensor, use: str) -> None:
        self._like = like.detach()
        self._key = f"{use} {like.dtype}"
        # Not a tensor that only seems to be one, as those that torch traces with.
        self._keeps = like.device.type == "cpu" and type(like) in (Tensor, nn.Parameter)
        kept: Tensor | None = _LOCAL.__dict__.get(self._key) if self._keeps else None
        self._buffer = self._like.new_empty(0) if kept is None else kept

    def __call__(self, *shapes: tuple[int, ...]) -> list[Tensor]:
        """Tensors of some shapes, all that are needed at once; the next call hands the same memory out again."""
        sizes = [-(-math.prod(shape) // ALIGNED) * ALIGNED for shape in shapes]
        if self._buffer.numel() < sum(sizes):
            self._grow(sum(sizes))
        parts = self._buffer[: sum(sizes)].split(sizes)
        return [part[: math.prod(shape)].view(shape) for part, shape in zip(parts, shapes, strict=True)]

    def _grow(self, size: int) -> None:
        if self._keeps and size * self._like.element_size() <= KEPT_BYTES:
            self._buffer = self._like  # before there are two
            _LOCAL.__dict__.pop(self._key, None)
            with torch.inference_mode(False):  # what is made in that mode cannot be written to outside
                self._buffer = _LOCAL.__dict__[self._key] = torch.empty(size, dtype=self._like.dtype, device="cpu")
        else:
            self._buffer = self._like.new_empty(size)


def release() -> None:
    """Give back what this thread keeps."""
    _LOCAL.__dict__.clear()
