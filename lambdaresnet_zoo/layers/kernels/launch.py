"""How the kernels are cut into tiles and started. Imports Triton; tensors are by position (see ``position``)."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import position
from .availability import interpreted

__all__ = ["launch_output", "launch_queries", "launch_table", "launch_values"]


@dataclass(frozen=True)
class Tiles:
    """Extents of a kernel's tiles, powers of two from 16 on.

    Args:
        columns: of (query, k), so columns / K queries.
        values: channels of values, at most; fewer where the layer has fewer.
        step: positions of context in one product.
        context: positions of context that one program owns, in the gradients of values and table.
        fold: (positions, offsets) that the last sum of the table's gradient takes at once.
        schedules: (warps, stages) to try, once for each shape of layer. None changes the order of a sum.
    """

    columns: int
    values: int
    step: int
    context: int
    fold: tuple[int, int]
    schedules: tuple[tuple[int, int], ...] = ()


# Of columns 64, 128 and 256 and steps 32, 64 and 128 on an H100, in bfloat16 at 7 and 14 pixels, none was faster in
# all four kernels than HALF beyond the noise; FLOAT was chosen for registers and shared memory, as the compiler tells.
HALF = Tiles(columns=128, values=128, step=64, context=64, fold=(16, 4), schedules=((4, 2), (4, 3), (8, 3)))
# With 8 warps and 16 values, Triton 3.6 compiles a product in float32 that reads beyond its shared memory (H100, H200).
FLOAT = Tiles(columns=64, values=64, step=32, context=32, fold=(16, 4), schedules=((4, 2), (4, 3)))
INTERPRETED = Tiles(columns=128, values=32, step=64, context=64, fold=(64, 64))  # few and large: each costs the same
PARTIAL_BYTES = 2**26  # of what the table's gradient holds at a time


def launch_output(queries: Tensor, values: Tensor, table: Tensor, height: int, width: int, output: Tensor) -> None:
    """Write the output [B, N, H, V]."""
    shape = _Shape(queries, values, table, height, width)
    programs = shape.images * shape.value_tiles * shape.count(shape.queries)
    shape.start("output_kernel", programs, (output, queries, values, table), shape.queries, STEP=shape.tiles.step)


def launch_queries(cotangent: Tensor, values: Tensor, table: Tensor, height: int, width: int, gradient: Tensor) -> None:
    """Write the gradient of the queries [B, N, H, K]."""
    shape = _Shape(gradient, values, table, height, width)
    programs = shape.images * shape.count(shape.queries)
    tensors = (gradient, cotangent, values, table)
    shape.start("queries_kernel", programs, tensors, shape.queries, STEP=shape.tiles.step)


def launch_values(cotangent: Tensor, queries: Tensor, table: Tensor, height: int, width: int, gradient: Tensor) -> None:
    """Write the gradient of the values [B, U, N, V]."""
    shape = _Shape(queries, gradient, table, height, width)
    context = shape.tiles.context
    programs = shape.images * shape.u * shape.value_tiles * shape.count(context)
    tensors = (gradient, cotangent, queries, table)
    shape.start("values_kernel", programs, tensors, context, CONTEXT=context)


def launch_table(cotangent: Tensor, queries: Tensor, values: Tensor, height: int, width: int, gradient: Tensor) -> None:
    """Add the gradient of the table to ``gradient`` [rows, columns, U, K], of the accumulator's dtype.

    In two passes, so that the sum has one order: the gradient of E for every pair of positions in
    scope, summed over a share of the images, then its sum over the pairs of each offset. What lies
    between is held for a chunk of the tiles at a time.
    """
    shape = _Shape(queries, values, gradient, height, width)
    size, context = shape.queries, shape.tiles.context
    capacity = triton.cdiv(shape.box(size), context) * context
    tile_bytes = shape.u * capacity * size * shape.kp * gradient.element_size()
    tiles = shape.count(size)
    chunk = min(tiles, max(1, PARTIAL_BYTES // tile_bytes))
    wanted = triton.cdiv(2 * _processors(queries.device), shape.u * chunk * (capacity // context))
    splits = max(1, min(wanted, shape.images, PARTIAL_BYTES // (chunk * tile_bytes)))
    per_split = triton.cdiv(shape.images, splits)
    splits = triton.cdiv(shape.images, per_split)
    partial = gradient.new_empty(splits, chunk, shape.u, capacity, size * shape.kp)
    positions, offsets = shape.tiles.fold
    folds = shape.u * triton.cdiv(shape.rows * shape.columns, offsets)
    for first in range(0, tiles, chunk):
        here = min(chunk, tiles - first)
        programs = splits * shape.u * here * (capacity // context)
        shape.start(
            "table_kernel", programs, (partial, cotangent, queries, values), size,
            images=shape.images, per_split=per_split, first_tile=first, chunk=here, capacity=capacity, CONTEXT=context,
        )  # fmt: skip
        with _on(gradient):
            position.fold_kernel[(folds,)](
                gradient, partial, height, width, shape.rows, shape.columns, shape.strip(size),
                splits, first, here, capacity, K=shape.k, U=shape.u, KP=shape.kp, T=size,
                POSITIONS=positions, OFFSETS=offsets, ACC=shape.acc,
            )  # fmt: skip


class _Shape:
    """Extents of one call, padded extents, and its tiles."""

    def __init__(self, queries: Tensor, values: Tensor, table: Tensor, height: int, width: int) -> None:
        self.height, self.width = height, width
        self.images, _, self.heads, self.k = queries.shape
        self.u, self.v = values.shape[1], values.shape[3]
        self.rows, self.columns = table.shape[:2]
        self.dtype = queries.dtype
        self.acc = tl.float64 if self.dtype == torch.float64 else tl.float32
        self.tiles = INTERPRETED if interpreted() else FLOAT if self.dtype == torch.float32 else HALF
        self.kp = triton.next_power_of_2(self.k)
        self.queries = max(1, self.tiles.columns // self.kp)
        # No extent of a product is below 16.
        self.hp = max(triton.next_power_of_2(self.heads), 16 // self.queries)
        self.values = max(16, min(triton.next_power_of_2(self.v), self.tiles.values))
        self.value_tiles = triton.cdiv(self.v, self.values)

    def strip(self, size: int) -> int:
        """Width of the strips of tiles of ``size``: about square tiles, or one strip if most is seen anyway."""
        side = 2 ** (size.bit_length() // 2)
        if side - 1 + self.columns >= self.width:
            return self.width
        return triton.cdiv(self.width, max(1, round(self.width / side)))

    def count(self, size: int) -> int:
        """Tiles of ``size`` on the grid."""
        strip = self.strip(size)
        return triton.cdiv(self.height * strip, size) * triton.cdiv(self.width, strip)

    def box(self, size: int) -> int:
        """The most positions that a tile of ``size`` sees."""
        strip = self.strip(size)
        across = min(self.width, strip - 1 + self.columns)
        down = min(self.height, (size + strip - 2) // strip + self.rows)
        return down * across

    def constants(self) -> dict[str, Any]:
        """What the kernels are compiled for."""
        return {
            "H": self.heads, "K": self.k, "U": self.u, "V": self.v, "HP": self.hp, "KP": self.kp,
            "T": self.queries, "VALUES": self.values, "ACC": self.acc,
            # Float32 by tensor cores, each factor in parts: about its accuracy at a multiple of its speed.
            "PRECISION": "tf32x3" if self.dtype == torch.float32 else "ieee",
            "WIDE": interpreted() and self.dtype == torch.bfloat16,
        }  # fmt: skip

    def start(self, name: str, programs: int, tensors: tuple[Tensor, ...], size: int, **more: int) -> None:
        """Run a kernel on tiles of ``size`` positions."""
        sizes = {"height": self.height, "width": self.width, "rows": self.rows, "columns": self.columns}
        with _on(tensors[0]):
            _tuned(name, self.tiles.schedules)[(programs,)](
                *tensors, **sizes, strip=self.strip(size), **self.constants(), **more
            )


@cache
def _tuned(name: str, schedules: tuple[tuple[int, int], ...]) -> Any:
    kernel = getattr(position, name)
    if not schedules:
        return kernel
    configs = [triton.Config({}, num_warps=warps, num_stages=stages) for warps, stages in schedules]
    return triton.autotune(configs, key=["H", "K", "U", "V"])(kernel)


@cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _on(tensor: Tensor) -> AbstractContextManager:
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
