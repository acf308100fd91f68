"""Memory of a CPU that evaluation uses again and again.

What is freed may go back to the system, and memory that comes from it anew is cleared when it is first touched: for
scratch of a few MiB in every layer that takes as long as the product that is written to it. So each thread keeps some.
GPUs need none, as torch's allocator keeps theirs.
"""

import math
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["MOST", "workspace"]

MOST = 2**24
"""Bytes that a thread keeps for a dtype; who needs more gets fresh memory."""
ALIGNED = 16  # elements, 64 bytes or more

_LOCAL = threading.local()


def workspace(like: Tensor, shapes: Sequence[tuple[int, ...]], keep: bool = True) -> list[Tensor]:
    """Tensors of some shapes, with anything in them, of the dtype and device of another.

    Args:
        like: has the dtype and the device.
        shapes: of all that is needed at once; the next call in this thread hands the same memory out again.
        keep: False for memory of its own.
    """
    sizes = [-(-math.prod(shape) // ALIGNED) * ALIGNED for shape in shapes]
    if not keep or like.device.type != "cpu" or sum(sizes) * like.element_size() > MOST:
        return [like.new_empty(shape) for shape in shapes]
    kept: dict[Any, Tensor] = _LOCAL.__dict__
    buffer = kept.get(like.dtype)
    if buffer is None or buffer.numel() < sum(sizes):
        with torch.inference_mode(False):  # what is made there cannot be written to elsewhere
            buffer = kept[like.dtype] = torch.empty(sum(sizes), dtype=like.dtype)
    parts = buffer[: sum(sizes)].split(sizes)
    return [part[: math.prod(shape)].view(shape) for part, shape in zip(parts, shapes, strict=True)]
