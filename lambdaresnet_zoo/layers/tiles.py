"""Geometry of the query order on a grid: query tiles, the context window that each sees, its embeddings.

A tile of queries sees a window of the context. Along an axis that one tile covers, the window is the axis
itself. Along an axis with several tiles there are two forms: a *padded* one, where the values are padded with
zeros, every tile sees the same offsets, and one block of embeddings serves all; and an *unpadded* one, where each
tile sees the whole axis and has embeddings of its own, for scopes that reach across the grid.

Shapes: B batch, N query positions, M context positions, K query depth,
V value depth, U intra-depth, H heads. Here N are the queries of a tile, M the positions of its window.

    table       [K, U, Rh, Rw]  see layers.contraction
    embeddings  [N, K, U * M]   contiguous, what a batched matrix product over positions reads
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = [
    "Axis", "Tiling", "cached_embeddings", "embeddings", "embeddings_backward", "make_axis", "scores_backward",
]  # fmt: skip

CACHED_SIZES = 4  # tilings and types that are kept for one table


@dataclass(frozen=True)
class Axis:
    """One axis of the grid in tiles."""

    size: int
    """Positions of the grid."""
    tile: int
    """Queries of a tile."""
    tiles: int
    pad: int = 0
    """Zeros before the first position, where the axis is padded."""
    padded: bool = False

    @property
    def window(self) -> int:
        """Context positions that a tile sees."""
        return self.tile + 2 * self.pad if self.padded else self.size

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

    @property
    def whole(self) -> bool:
        """One tile is the grid."""
        return self.y.tiles == 1 and self.x.tiles == 1

    @property
    def shared(self) -> bool:
        """One block of embeddings serves every tile."""
        return all(axis.tiles == 1 or axis.padded for axis in (self.y, self.x))

    @property
    def queries(self) -> int:
        """N of a tile."""
        return self.y.tile * self.x.tile

    @property
    def context(self) -> int:
        """M of a window."""
        return self.y.window * self.x.window


def make_axis(size: int, extent: int, tile: int, padded: bool = True) -> Axis:
    """An axis of ``size`` positions in tiles of ``tile``, for a table that spans ``extent`` offsets."""
    if tile >= size:
        return Axis(size, size, 1)
    return Axis(size, tile, -(-size // tile), extent // 2 if padded else 0, padded)


def embeddings(table: Tensor, tiling: Tiling, row: int = 0) -> Tensor:
    """Embeddings [N, K, U * M] of one tile.

    Args:
        table: [K, U, Rh, Rw].
        tiling: of the grid.
        row: of tiles, which counts where the rows are not padded.
    """
    y, x = tiling.y, tiling.x
    k, u = table.shape[:2]
    top, bottom = _margins(y, table.shape[2], row)
    left, right = _margins(x, table.shape[3], 0)
    # Entry (j - i + tile - 1) of the padded table serves query i and context j. Counting queries from the last to the
    # first makes that a sum, and so a view with strides of the table; flip puts them back in order, once they are rows.
    padded = F.pad(table, (left, right, top, bottom)).contiguous()
    step = padded.stride()
    view = padded.as_strided(
        (y.tile, x.tile, k, u, y.window, x.window), (step[2], step[3], step[0], step[1], step[2], step[3])
    )
    return view.reshape(tiling.queries, k, u * tiling.context).flip(0)


def embeddings_backward(gradient: Tensor, table: Tensor, tiling: Tiling, row: int = 0) -> Tensor:
    """Gradient [K, U, Rh, Rw] of the table from that of :func:`embeddings`, [N, K, U * M]."""
    y, x = tiling.y, tiling.x
    k, u = table.shape[:2]
    gradient = gradient.reshape(y.tile, x.tile, k, u, y.window, x.window)
    rows = _sum_diagonals(gradient.movedim(1, -2))  # [y, K, U, window, offsets]
    padded = _sum_diagonals(rows.permute(1, 2, 4, 0, 3)).transpose(-1, -2)  # [K, U, offsets, offsets]
    return _within(padded, table, tiling, row)


def scores_backward(scores: Tensor, queries: Tensor, table: Tensor, tiling: Tiling, row: int = 0) -> Tensor:
    """Gradient [K, U, Rh, Rw] of the table from that of the scores, without embeddings.

    Scores are moved from their context to their offset, where one product with the queries sums them.

    Args:
        scores: gradient of the scores of one tile, [b * H, N, U * M].
        queries: of the tile, [N, b * H, K].
        table: [K, U, Rh, Rw], for its shape.
        tiling: of the grid.
        row: of tiles, which counts where the rows are not padded.
    """
    y, x = tiling.y, tiling.x
    k, u = table.shape[:2]
    maps = scores.shape[0]
    moved = scores.new_zeros(maps, y.tile, x.tile, u, y.tile + y.window - 1, x.tile + x.window - 1)
    step = moved.stride()
    moved.as_strided(  # query i and context j meet in entry j - i + tile - 1, as in embeddings
        (maps, y.tile, x.tile, u, y.window, x.window),
        (step[0], step[1] - step[4], step[2] - step[5], *step[3:]),
        (y.tile - 1) * step[4] + (x.tile - 1) * step[5],
    ).copy_(scores.view(maps, y.tile, x.tile, u, y.window, x.window))
    flat = queries.transpose(0, 1).reshape(-1, k)
    padded = (flat.T @ moved.view(flat.shape[0], -1)).view(k, *moved.shape[3:])
    return _within(padded, table, tiling, row)


def _within(padded: Tensor, table: Tensor, tiling: Tiling, row: int) -> Tensor:
    """Of the offsets that a tile has, those of the table; zero where a tile has none."""
    top, bottom = _margins(tiling.y, table.shape[2], row)
    left, right = _margins(tiling.x, table.shape[3], 0)
    return F.pad(padded, (-left, -right, -top, -bottom))


def _sum_diagonals(pairs: Tensor) -> Tensor:
    """Sums over the pairs of equal offset: [..., queries, context] to [..., queries + context - 1].

    Entry (j - i + queries - 1) takes query i and context j.
    """
    queries, context = pairs.shape[-2:]
    if pairs.device.type == "cpu":
        sums = pairs.new_zeros(*pairs.shape[:-2], queries + context - 1)
        for i in range(queries):
            sums[..., queries - 1 - i : queries - 1 - i + context] += pairs[..., i, :]
        return sums
    return _shift_and_sum(pairs)  # elsewhere each of those additions is a launch, which takes longer than it does


def _shift_and_sum(pairs: Tensor) -> Tensor:
    """:func:`_sum_diagonals` in a few calls: rows one longer than there are offsets, read as if they were not."""
    queries, context = pairs.shape[-2:]
    shifted = F.pad(pairs.flip(-2), (0, queries)).flatten(-2)[..., :-queries]
    return shifted.unflatten(-1, (queries, queries + context - 1)).sum(-2)


def _margins(axis: Axis, extent: int, index: int) -> tuple[int, int]:
    """Zeros before and after the table along an axis; negative where the tile does not reach its ends."""
    first = extent // 2 - axis.pad - (0 if axis.padded else index * axis.tile)  # the entry of query 0 and context 0
    return axis.tile - 1 - first, first + axis.window - extent


class _Kept:
    """The embeddings of one table, and the table that they were made of."""

    def __init__(self, table: Tensor) -> None:
        self.table = table.detach().clone()
        self.blocks: OrderedDict[tuple[Tiling, torch.dtype], dict[int, Tensor]] = OrderedDict()


_KEPT = WeakTensorKeyDictionary()
_LOCK = threading.Lock()


def cached_embeddings(table: Tensor, tiling: Tiling, dtype: torch.dtype, row: int = 0) -> Tensor:
    """:func:`embeddings` in a dtype, built once for each tiling for as long as the table lives and stays as it is.

    Nothing of it is in a module, so it is neither saved, copied nor moved. The table is compared with what the
    embeddings were made of, so no edit is missed, not even one through ``.data``. That comparison waits for the
    device, so on others than the CPU, which build them fast, nothing is kept; nor inside a compiled graph.
    """
    if type(table) not in (Tensor, nn.Parameter) or table.device.type != "cpu" or torch.compiler.is_compiling():
        return embeddings(table.to(dtype), tiling, row)
    key = (Tiling(tiling.y, tiling.x, 0), dtype)
    with _LOCK:
        kept = _KEPT.get(table)
        if kept is None or kept.table.dtype != table.dtype or not torch.equal(kept.table, table):
            kept = _KEPT[table] = _Kept(table)
        blocks = kept.blocks.setdefault(key, {})
        if row not in blocks:
            blocks[row] = embeddings(table.detach().to(dtype), tiling, row)
        kept.blocks.move_to_end(key)
        while len(kept.blocks) > CACHED_SIZES:
            kept.blocks.popitem(last=False)
        return blocks[row]
