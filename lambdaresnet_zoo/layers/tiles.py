"""Geometry of the query order on a grid: query tiles, the context window that each sees, its embeddings.

A tile of queries sees a window of the context. Along an axis that one tile covers, the window is the axis
itself. Along an axis with several tiles there are two forms: a *padded* one, where the values are padded with
zeros, every tile sees the same offsets, and one block of embeddings serves all; and a *clipped* one, where each tile
sees what its scope reaches of the axis and has embeddings of its own, for scopes that reach across most of the grid.
Rows are either. Columns are padded, or where scores are computed by offset, clipped and all seen by every tile: the
tiles of a row then share their window, and each has a table of its own.

The context of embeddings counts backwards, from the last position of a window to the first, and with it that of their
scores and values. Of query i and context j, i + j then tells the offset, so all embeddings of a tile are one view with
strides of the table, from which they are copied in a single pass. Those that are kept are turned round once, and what
goes by offset has no need of it: there the context counts forwards.

Shapes: B batch, N query positions, M context positions, K query depth,
V value depth, U intra-depth, H heads. Here N are the queries of a tile, M the positions of its window, O the offsets
between them.

    table       [K, U, Rh, Rw]  see layers.contraction
    embeddings  [N, K, U * M]   what a batched matrix product over positions reads
"""

import math
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from .scratch import Scratch

__all__ = [
    "Axis", "Tiling", "by_context", "by_offset", "embeddings", "embeddings_backward", "keeps_embeddings",
    "kept_embeddings", "make_axis", "offset_table", "offset_table_backward",
]  # fmt: skip

CACHED_SIZES = 4  # tilings and types that are kept for one table
QUERIES_TURNED = 64  # at once, as turning them round takes a copy


class Axis(NamedTuple):
    """One axis of the grid in tiles."""

    size: int
    """Positions of the grid."""
    tile: int
    """Queries of a tile."""
    tiles: int
    reach: int = 0
    """Positions that a query sees on either side, where there are several tiles."""
    padded: bool = False

    @property
    def pad(self) -> int:
        """Zeros before the first position."""
        return self.reach if self.padded else 0

    @property
    def padded_size(self) -> int:
        """Positions with the zeros around them."""
        return self.covered + 2 * self.reach if self.padded else self.size

    def window(self, index: int) -> slice:
        """Context positions that a tile sees, of the axis with its padding."""
        first = index * self.tile
        if self.padded:
            return slice(first, first + self.tile + 2 * self.reach)
        return slice(max(0, first - self.reach), min(self.size, first + self.tile + self.reach))

    def extent(self, index: int) -> int:
        """How many they are."""
        window: slice = self.window(index)
        return int(window.stop - window.start)

    @property
    def seen(self) -> bool:
        """Every tile sees the whole axis and nothing else."""
        return not self.padded and self.reach >= self.covered - self.tile

    @property
    def covered(self) -> int:
        """Queries of all tiles, the last one filled up."""
        return self.tile * self.tiles


@dataclass(frozen=True)
class Tiling:
    """A grid in tiles, and how many images are contracted at once."""

    y: Axis
    x: Axis
    chunk: int
    by_offset: bool = False
    """The scores are computed by offset, without embeddings."""

    @property
    def whole(self) -> bool:
        """One tile is the grid."""
        return self.y.tiles == 1 and self.x.tiles == 1

    @property
    def shared(self) -> bool:
        """One block of embeddings serves every tile."""
        return all(axis.tiles == 1 or axis.padded for axis in (self.y, self.x))

    @cached_property
    def rows(self) -> list[int]:
        """Rows of tiles, those that see most first: scratch that is large enough for one is so for the next."""
        return sorted(range(self.y.tiles), key=self.context, reverse=True)

    @property
    def windows(self) -> int:
        """Windows of a row of tiles."""
        return 1 if self.x.seen else self.x.tiles

    @property
    def tables(self) -> int:
        """Tables by offset of a row of tiles; where there are several, ``chunk`` must be 1."""
        return self.x.tiles // self.windows

    @property
    def queries(self) -> int:
        """N of a tile."""
        return self.y.tile * self.x.tile

    def context(self, row: int) -> int:
        """M of a window in a row of tiles."""
        return self.y.extent(row) * self.x.extent(0)

    def offsets(self, row: int) -> int:
        """O, of the queries of a tile to its window."""
        return (self.y.tile + self.y.extent(row) - 1) * (self.x.tile + self.x.extent(0) - 1)


def make_axis(size: int, extent: int, tile: int, padded: bool = True) -> Axis:
    """An axis of ``size`` positions in tiles of ``tile``, for a table that spans ``extent`` offsets."""
    if tile >= size:
        return Axis(size, size, 1)
    return Axis(size, tile, -(-size // tile), extent // 2, padded)


def embeddings(
    table: Tensor, tiling: Tiling, row: int = 0, content: bool = False, scratch: Scratch | None = None
) -> Tensor:
    """Embeddings [N, K, U * M] of one tile; with content [N, K, U * M + K].

    Args:
        table: [K, U, Rh, Rw].
        tiling: of the grid.
        row: of tiles, which counts where the rows are not padded.
        content: append the identity, by which the scores of K more positions of context are the queries: those of the
            content lambda.
        scratch: to write to; new memory by default.
    """
    y, x = tiling.y, tiling.x
    height, width = y.extent(row), x.extent(0)
    k, u = table.shape[:2]
    seen = u * height * width
    shape = (tiling.queries, k, seen + (k if content else 0))
    block = table.new_empty(shape) if scratch is None else scratch(shape)[0]
    offsets = offset_table(table, tiling, row).flip(2, 3)
    step = offsets.stride()
    view = offsets.as_strided(
        (y.tile, x.tile, k, u, height, width), (step[2], step[3], step[0], step[1], step[2], step[3])
    )
    block[..., :seen].unflatten(2, (u, height, width)).unflatten(0, (y.tile, x.tile)).copy_(view)
    if content:
        block[..., seen:] = torch.eye(k, dtype=table.dtype, device=table.device)
    return block


def embeddings_backward(gradient: Tensor, table: Tensor, tiling: Tiling, row: int = 0) -> Tensor:
    """Gradient [K, U, Rh, Rw] of the table from that of :func:`embeddings`, [N, K, U * M]."""
    y, x = tiling.y, tiling.x
    k, u = table.shape[:2]
    gradient = gradient.reshape(y.tile, x.tile, k, u, y.extent(row), x.extent(0))
    rows = _sum_diagonals(gradient.movedim(1, -2))  # [y, K, U, window, offsets]
    offsets = _sum_diagonals(rows.permute(1, 2, 4, 0, 3)).transpose(-1, -2)  # [K, U, offsets, offsets]
    return offset_table_backward(offsets.flip(2, 3), table, tiling, row)


def by_context(offsets: Tensor, scores: Tensor, tiling: Tiling, row: int = 0) -> None:
    """Write ``scores`` by context, [..., U * M], from those by offset, [..., U * O], of the same queries in order."""
    meetings = _meetings(offsets, tiling, row)
    scores.view(meetings.shape).copy_(meetings)


def by_offset(scores: Tensor, offsets: Tensor, tiling: Tiling, row: int = 0) -> Tensor:
    """The transpose of :func:`by_context`: write and return ``offsets``, zero where they meet no context."""
    meetings = _meetings(offsets.zero_(), tiling, row)
    meetings.copy_(scores.view(meetings.shape))
    return offsets


def _meetings(offsets: Tensor, tiling: Tiling, row: int) -> Tensor:
    """Of dense scores by offset, where query and context meet: a view [b * H, y, x, U, height, width]."""
    y, x = tiling.y, tiling.x
    height, width = y.extent(row), x.extent(0)
    u = offsets.shape[-1] // tiling.offsets(row)
    grid = offsets.view(-1, y.tile, x.tile, u, y.tile + height - 1, x.tile + width - 1)
    step = grid.stride()
    # Query i meets context j at offset j - i, and that of the last query and the first position is the first.
    first = grid.storage_offset() + (y.tile - 1) * step[4] + (x.tile - 1) * step[5]
    return grid.as_strided(
        (*grid.shape[:4], height, width), (step[0], step[1] - step[4], step[2] - step[5], *step[3:]), first
    )


def offset_table(table: Tensor, tiling: Tiling, row: int = 0, column: int = 0) -> Tensor:
    """Of a table [K, U, Rh, Rw], the offsets that a tile has, [K, U, y + height - 1, x + width - 1]; zeros beyond it.

    The first serves the last query and the first position of the window, along each axis. The column counts where the
    tiles of a row have tables of their own.
    """
    top, bottom = _margins(tiling.y, table.shape[2], row)
    left, right = _margins(tiling.x, table.shape[3], column)
    # Dense, as parameters of a channels-last network are not.
    return F.pad(table, (left, right, top, bottom)).contiguous()


def offset_table_backward(offsets: Tensor, table: Tensor, tiling: Tiling, row: int = 0, column: int = 0) -> Tensor:
    """Gradient of the table, for its shape [K, U, Rh, Rw], from that of :func:`offset_table`."""
    top, bottom = _margins(tiling.y, table.shape[2], row)
    left, right = _margins(tiling.x, table.shape[3], column)
    return F.pad(offsets, (-left, -right, -top, -bottom))


def _sum_diagonals(pairs: Tensor) -> Tensor:
    """Sums over the pairs of equal offset: [..., queries, context] to [..., queries + context - 1].

    Entry i + j takes query i and context j.
    """
    queries, context = pairs.shape[-2:]
    if pairs.device.type == "cpu":
        sums = pairs.new_zeros(*pairs.shape[:-2], queries + context - 1)
        for i in range(queries):
            sums[..., i : i + context] += pairs[..., i, :]
        return sums
    return _shift_and_sum(pairs)  # elsewhere each of those additions is a launch, which takes longer than it does


def _shift_and_sum(pairs: Tensor) -> Tensor:
    """:func:`_sum_diagonals` in a few calls: rows one longer than there are offsets, read as if they were not."""
    queries, context = pairs.shape[-2:]
    shifted = F.pad(pairs, (0, queries)).flatten(-2)[..., :-queries]
    return shifted.unflatten(-1, (queries, queries + context - 1)).sum(-2)


def _margins(axis: Axis, extent: int, index: int) -> tuple[int, int]:
    """Zeros before and after the table along an axis; negative where the tile does not reach its ends."""
    # The entry of the table, along the axis, of the tile's first query and its window's first position, which counts
    # the padding: the middle is offset 0.
    first = extent // 2 - axis.pad + axis.window(index).start - index * axis.tile
    return axis.tile - 1 - first, first + axis.extent(index) - extent


class _Kept:
    """The embeddings of one table, and the table that they were made of."""

    def __init__(self, table: Tensor) -> None:
        self.table = table.detach().clone()
        self.blocks: OrderedDict[tuple[Axis, Axis, torch.dtype, bool], list[Tensor]] = OrderedDict()


_KEPT = WeakTensorKeyDictionary()
_LOCK = threading.Lock()


def keeps_embeddings(table: Tensor) -> bool:
    """Whether :func:`kept_embeddings` can serve.

    The table is compared with what the embeddings were made of, so no edit is missed, not even one through ``.data``.
    That comparison waits for the device, so on others than the CPU, which build them fast, nothing is kept; nor inside
    a compiled graph.
    """
    return type(table) in (Tensor, nn.Parameter) and table.device.type == "cpu" and not torch.compiler.is_compiling()


def kept_embeddings(table: Tensor, tiling: Tiling, dtype: torch.dtype, content: bool) -> Iterator[tuple[int, Tensor]]:
    """Rows of tiles, each with its :func:`embeddings` in a dtype, whose context counts forwards.

    Built once for each tiling for as long as the table lives and stays as it is. Nothing of it is in a module, so it is
    neither saved, copied nor moved.
    """
    key = tiling.y, tiling.x, dtype, content
    with _LOCK:
        kept = _KEPT.get(table)
        if kept is None or kept.table.dtype != table.dtype or not torch.equal(kept.table, table):
            kept = _KEPT[table] = _Kept(table)
        if key not in kept.blocks:
            rows = range(1 if tiling.shared else tiling.y.tiles)
            kept.blocks[key] = [_forwards(table.detach().to(dtype), tiling, row, content) for row in rows]
        kept.blocks.move_to_end(key)
        while len(kept.blocks) > CACHED_SIZES:
            kept.blocks.popitem(last=False)
        blocks = kept.blocks[key]
    return ((row, blocks[0 if tiling.shared else row]) for row in tiling.rows)


def _forwards(table: Tensor, tiling: Tiling, row: int, content: bool) -> Tensor:
    """:func:`embeddings` whose context counts from the first position to the last."""
    block = embeddings(table, tiling, row, content)
    sizes = table.shape[1], tiling.y.extent(row), tiling.x.extent(0)
    for queries in block[..., : math.prod(sizes)].split(QUERIES_TURNED):
        queries.copy_(queries.unflatten(2, sizes).flip(3, 4).flatten(2))
    return block
