"""The query order in tiles and chunks: outputs and gradients with a scratch that stays in cache.

    scores[b,h,n,m] = sum_k q[b,h,n,k] e[n,m,k]        output[b,h,n,v] = sum_m scores[b,h,n,m] v[b,m,v]

The scores are never normalised and never kept: a chunk of images and a tile of queries at a time, they live in
one buffer that is written, read and overwritten, and the backward pass computes them anew. The content lambda,
the same for every query, is applied in the same pass.

Shapes: B batch, N query positions, M context positions, K query depth,
V value depth, U intra-depth, H heads.

    queries  [B, H, K, N]
    values   [B, V, U, M]
    table    [K, U, Rh, Rw]  see layers.contraction
    lambdas  [B, K, V]       content lambdas, with the position bias
    output   [B, H, V, N]
"""

from collections.abc import Iterator, Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from .tiles import Axis, Tiling, cached_embeddings, embeddings, embeddings_backward, scores_backward

__all__ = ["backward", "forward"]


def forward(
    queries: Tensor, values: Tensor, table: Tensor, lambdas: Tensor | None, tiling: Tiling, cache: bool = False
) -> Tensor:
    """Output [B, H, V, N] for queries [B, H, K, N], values [B, V, U, N], table and content lambdas, of one dtype.

    Args:
        queries: [B, H, K, N].
        values: [B, V, U, N].
        table: [K, U, Rh, Rw].
        lambdas: [B, K, V] or None.
        tiling: of the grid.
        cache: keep the embeddings for the next call.
    """
    batch, heads, _, n = queries.shape
    v = values.shape[1]
    grid = _Grid(queries, values, tiling)
    if lambdas is None:
        output = queries.new_empty(batch, heads, v, n) if tiling.whole else queries.new_zeros(batch, heads, v, n)
    else:
        output = lambdas.transpose(1, 2).unsqueeze(1) @ queries
    maps = output.view(batch, heads, v, tiling.y.size, tiling.x.size)
    scores = queries.new_empty(0)
    for row, block in _blocks(table, tiling, queries.dtype, cache):
        for images in grid.chunks():
            q = grid.tile_queries(images, row)  # [N, bH, K]
            windows = grid.windows(images, row)  # [b, V, UM]
            scores = _scores(scores, q, block)
            repeated = windows.unsqueeze(1).expand(-1, heads, -1, -1).reshape(-1, v, windows.shape[2])
            if tiling.whole:
                flat = output[images].view(-1, v, n)
                torch.baddbmm(flat, repeated, scores.permute(1, 2, 0), beta=float(lambdas is not None), out=flat)
            else:
                grid.add_tiles(maps, torch.bmm(repeated, scores.permute(1, 2, 0)), images, row)
        del block  # before the next is built
    return output


def backward(
    gradient: Tensor, queries: Tensor, values: Tensor, table: Tensor, lambdas: Tensor | None, tiling: Tiling
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of queries, values, table and content lambdas from that of the output, [B, H, V, N]."""
    batch, heads, k, n = queries.shape
    v, u = values.shape[1:3]
    grid = _Grid(queries, values, tiling)
    gradient = gradient.contiguous()
    if lambdas is None:
        of_queries, of_lambdas = torch.zeros_like(queries, memory_format=torch.contiguous_format), None
    else:
        of_queries = lambdas.unsqueeze(1) @ gradient
        of_lambdas = (queries @ gradient.transpose(2, 3)).sum(1)
    query_maps = of_queries.view(batch, heads, k, tiling.y.size, tiling.x.size)
    gradients = _Grid(gradient, values, tiling)
    # Sums over tiles and over images are in float32 at least, that of the table in its own dtype, which is.
    wide = torch.promote_types(values.dtype, torch.float32)
    of_values = grid.padded_values.new_zeros(grid.padded_values.shape, dtype=wide)
    of_table = torch.zeros_like(table, memory_format=torch.contiguous_format)
    buffer = queries.new_empty(0)
    for row, block in _blocks(table, tiling, queries.dtype, cache=False):
        of_block: Tensor | None = None
        for images in grid.chunks():
            q = grid.tile_queries(images, row)  # [N, bH, K]
            windows = grid.windows(images, row)  # [b, V, UM]
            count, _, context = windows.shape
            arriving = gradients.tile_maps(images, row)  # [bH, V, N]
            # The scores first, then their gradient, in the same buffer: no two maps are held at once.
            buffer = _scores(buffer, q, block)
            by_head = buffer.view(tiling.queries, count, heads, context)
            by_image = arriving.view(count, heads, v, tiling.queries)
            of_windows = queries.new_zeros(count, v, context)
            for head in range(heads):
                of_windows.baddbmm_(by_image[:, head], by_head[:, :, head].transpose(0, 1))
            grid.add_windows(of_values, of_windows, images, row)
            of_scores = buffer.view(count * heads, tiling.queries, context)
            repeated = windows.unsqueeze(1).expand(-1, heads, -1, -1).reshape(-1, v, context)
            torch.bmm(arriving.transpose(1, 2), repeated, out=of_scores)
            del repeated
            by_position = of_scores.transpose(0, 1)  # [N, bH, UM], no copy
            grid.add_tiles(query_maps, torch.bmm(by_position, block.transpose(1, 2)).permute(1, 2, 0), images, row)
            if _few_scores(count * heads, k, tiling, queries):
                of_table += scores_backward(of_scores, q, table, tiling, row)
                continue
            if of_block is None:  # not zeros to add to: a pass over fresh memory costs what a product does
                of_block = torch.bmm(q.transpose(1, 2), by_position).to(table.dtype)
            elif of_block.dtype == q.dtype:
                of_block.baddbmm_(q.transpose(1, 2), by_position)
            else:
                of_block += torch.bmm(q.transpose(1, 2), by_position)
        del block  # before the next is built
        if of_block is not None:
            of_table += embeddings_backward(of_block, table, tiling, row)
            of_block = None
    return of_queries, grid.cropped(of_values).reshape(batch, v, u, n).to(values.dtype), of_table, of_lambdas


class _Grid:
    """Queries and values on their grid, in tiles and windows."""

    def __init__(self, queries: Tensor, values: Tensor, tiling: Tiling) -> None:
        self.tiling = tiling
        y, x = tiling.y, tiling.x
        short = (0, x.covered - x.size, 0, y.covered - y.size)
        self.queries = _pad(queries.unflatten(3, (y.size, x.size)), short)
        self.padding = (*_around(x, short[1]), *_around(y, short[3]))
        self.values = values

    @cached_property
    def padded_values(self) -> Tensor:
        """[B, V, U, h', w'], as the windows are cut from it."""
        return _pad(self.values.unflatten(3, (self.tiling.y.size, self.tiling.x.size)), self.padding)

    def chunks(self) -> Iterator[slice]:
        """Images that are contracted at once."""
        for start in range(0, self.queries.shape[0], self.tiling.chunk):
            yield slice(start, start + self.tiling.chunk)

    def tile_queries(self, images: slice, row: int) -> Tensor:
        """[N, b * H, K] contiguous, b counting images and the tiles of a row."""
        tiles = self._tiles(self.queries[images], row)  # [b, H, K, y, tiles, x]
        shape = (self.tiling.queries, -1, tiles.shape[2])
        # Not a view, even where one would do: matrix products of strided positions are ten times slower.
        return tiles.permute(3, 5, 0, 4, 1, 2).reshape(shape).contiguous()

    def tile_maps(self, images: slice, row: int) -> Tensor:
        """[b * H, D, N] of maps [B, H, D, h, w]: the queries as they came."""
        tiles = self._tiles(self.queries[images], row)
        return tiles.permute(0, 4, 1, 2, 3, 5).reshape(-1, tiles.shape[2], self.tiling.queries)

    def windows(self, images: slice, row: int) -> Tensor:
        """[b, V, U * M], the context that each tile of a row sees."""
        y, x = self.tiling.y, self.tiling.x
        values = self.padded_values[images]
        if y.padded:
            values = values[:, :, :, row * y.tile : row * y.tile + y.window]
        if x.tiles == 1:
            return values.reshape(values.shape[0], values.shape[1], -1)
        windows = values.unfold(4, x.window, x.tile)  # [b, V, U, y, tiles, x]
        return windows.permute(0, 4, 1, 2, 3, 5).reshape(-1, values.shape[1], values.shape[2] * self.tiling.context)

    def add_tiles(self, maps: Tensor, tiles: Tensor, images: slice, row: int) -> None:
        """Add [b * H, D, N] to maps [B, H, D, h, w]."""
        y, x = self.tiling.y, self.tiling.x
        heads, depth = maps.shape[1:3]
        tiles = tiles.reshape(-1, x.tiles, heads, depth, y.tile, x.tile).permute(0, 2, 3, 4, 1, 5)
        region = maps[images, :, :, row * y.tile : (row + 1) * y.tile]
        region += tiles.reshape(*tiles.shape[:4], x.covered)[:, :, :, : region.shape[3], : x.size]

    def add_windows(self, padded: Tensor, windows: Tensor, images: slice, row: int) -> None:
        """Add [b, V, U * M] to padded values [B, V, U, h', w']; windows overlap."""
        y, x = self.tiling.y, self.tiling.x
        rows = padded[images]
        if y.padded:
            rows = rows[:, :, :, row * y.tile : row * y.tile + y.window]
        windows = windows.reshape(-1, x.tiles, *rows.shape[1:4], x.window)
        for tile in range(x.tiles):
            rows[..., tile * x.tile : tile * x.tile + x.window] += windows[:, tile]

    def cropped(self, padded: Tensor) -> Tensor:
        """Padded values without their padding."""
        return _pad(padded, [-size for size in self.padding])

    def _tiles(self, maps: Tensor, row: int) -> Tensor:
        y, x = self.tiling.y, self.tiling.x
        return maps[:, :, :, row * y.tile : (row + 1) * y.tile].unflatten(4, (x.tiles, x.tile))


def _pad(maps: Tensor, padding: Sequence[int]) -> Tensor:
    return F.pad(maps, list(padding)) if any(padding) else maps  # torch copies where there is none, too


def _around(axis: Axis, short: int) -> tuple[int, int]:
    return (axis.pad, axis.pad + short) if axis.padded else (0, 0)


def _blocks(table: Tensor, tiling: Tiling, dtype: torch.dtype, cache: bool) -> Iterator[tuple[int, Tensor]]:
    """Rows of tiles, each with its embeddings [N, K, U * M]."""
    build = cached_embeddings if cache else _embeddings
    if tiling.shared:
        block = build(table, tiling, dtype)
        yield from ((row, block) for row in range(tiling.y.tiles))
    else:
        yield from ((row, build(table, tiling, dtype, row)) for row in range(tiling.y.tiles))


def _embeddings(table: Tensor, tiling: Tiling, dtype: torch.dtype, row: int = 0) -> Tensor:
    return embeddings(table.to(dtype), tiling, row)


def _few_scores(maps: int, k: int, tiling: Tiling, queries: Tensor) -> bool:
    """Whether scores by offset are fewer than embeddings, as with one image: a gradient then skips the latter.

    On a CPU, where it was measured: the backward pass of one image of 7 to 28 pixels takes a fifth to a third less.
    """
    y, x = tiling.y, tiling.x
    offsets = (y.tile + y.window - 1) * (x.tile + x.window - 1)
    return queries.device.type == "cpu" and maps * offsets <= k * tiling.context


def _scores(buffer: Tensor, queries: Tensor, block: Tensor) -> Tensor:
    """Scores [N, bH, UM] in a buffer that is used again where it fits."""
    n, rows, _ = queries.shape
    if buffer.ndim != 3 or buffer.shape[1] != rows:
        buffer = queries.new_empty(n, rows, block.shape[2])
    return torch.bmm(queries, block, out=buffer)
