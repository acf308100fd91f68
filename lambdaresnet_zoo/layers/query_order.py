"""The query order in tiles and chunks: outputs and gradients with a scratch that stays in cache.

    scores[b,h,n,m] = sum_k q[b,h,n,k] e[n,m,k]        output[b,h,n,v] = sum_m scores[b,h,n,m] v[b,m,v]

The scores are never normalised and never kept: a chunk of images and a tile of queries at a time, they live in
one buffer that is written, read and overwritten, and the backward pass computes them anew. Forward, the content
lambda is K more positions of context, whose scores are the queries themselves: the output is written once.

Shapes: B batch, N query positions, M context positions, K query depth,
V value depth, U intra-depth, H heads.

    queries  [B, H, K, N]
    values   [B, V, U, M]
    table    [K, U, Rh, Rw]  see layers.contraction
    lambdas  [B, K, V]       content lambdas, with the position bias
    output   [B, H, V, N]
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from .contraction import chunks, content_gradients
from .grid import Tiles, Windows
from .scratch import Scratch
from .tiles import Tiling, cached_embeddings, embeddings, embeddings_backward

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
    tiles, context = Tiles(queries, tiling), Windows(values, tiling)
    output = (queries.new_empty if tiling.whole else queries.new_zeros)(batch, heads, v, n)
    sums = Tiles(output, tiling)
    scratch = Scratch(queries)
    for row, block in _blocks(table, tiling, queries.dtype, cache, content=lambdas is not None):
        for images in chunks(batch, tiling.chunk):
            q = tiles.by_position(images, row)  # [N, bH, K]
            windows = context.of(images, row)  # [b, V, UM]
            count, _, seen = windows.shape
            scores, by_head = scratch((*q.shape[:2], block.shape[2]), (count, heads, v, block.shape[2]))
            torch.bmm(q, block, out=scores)
            by_head[..., :seen] = windows.unsqueeze(1)
            if lambdas is not None:  # of an image, for each of its tiles and heads
                of_image = by_head.view(-1, tiling.x.tiles, heads, v, block.shape[2])
                of_image[..., seen:] = lambdas[images].transpose(1, 2)[:, None, None]
            repeated = by_head.flatten(0, 1)
            if tiling.whole:
                torch.bmm(repeated, scores.permute(1, 2, 0), out=output[images].view(-1, v, n))
            else:
                sums.add(torch.bmm(repeated, scores.permute(1, 2, 0)), images, row)
        del block  # before the next is built
    return output


def backward(
    gradient: Tensor, queries: Tensor, values: Tensor, table: Tensor, lambdas: Tensor | None, tiling: Tiling
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of queries, values, table and content lambdas from that of the output, [B, H, V, N]."""
    batch, heads = queries.shape[:2]
    v = values.shape[1]
    gradient = gradient.contiguous()
    tiles, context, gradients = Tiles(queries, tiling), Windows(values, tiling), Tiles(gradient, tiling)
    of_queries, of_lambdas = content_gradients(gradient, queries, lambdas)
    of_tiles = Tiles(of_queries, tiling)
    # Sums over tiles and over images are in float32 at least, that of the table in its own dtype, which is.
    of_context = Windows(values.new_zeros(values.shape, dtype=torch.promote_types(values.dtype, torch.float32)), tiling)
    of_table = torch.zeros_like(table, memory_format=torch.contiguous_format)
    scratch = Scratch(queries)
    for row, block in _blocks(table, tiling, queries.dtype, cache=False):
        of_block: Tensor | None = None
        for images in chunks(batch, tiling.chunk):
            q = tiles.by_position(images, row)  # [N, bH, K]
            windows = context.of(images, row)  # [b, V, UM]
            count, _, seen = windows.shape
            arriving = gradients.by_map(images, row)  # [bH, V, N]
            # The scores first, then their gradient, in the same buffer: no two maps are held at once.
            (buffer,) = scratch((*q.shape[:2], seen))
            torch.bmm(q, block, out=buffer)
            by_head = buffer.view(tiling.queries, count, heads, seen)
            by_image = arriving.view(count, heads, v, tiling.queries)
            of_windows = queries.new_zeros(count, v, seen)
            for head in range(heads):
                of_windows.baddbmm_(by_image[:, head], by_head[:, :, head].transpose(0, 1))
            of_context.add(of_windows, images, row)
            of_scores = buffer.view(count * heads, tiling.queries, seen)
            repeated = windows.unsqueeze(1).expand(-1, heads, -1, -1).reshape(-1, v, seen)
            torch.bmm(arriving.transpose(1, 2), repeated, out=of_scores)
            del repeated
            by_position = of_scores.transpose(0, 1)  # [N, bH, UM], no copy
            of_tiles.add(torch.bmm(by_position, block.transpose(1, 2)).permute(1, 2, 0), images, row)
            if of_block is not None and of_block.dtype == q.dtype:
                of_block.baddbmm_(q.transpose(1, 2), by_position)
            else:  # no zeros to add to, at first: a pass over fresh memory costs what a product does
                found = torch.bmm(q.transpose(1, 2), by_position).to(table.dtype)
                of_block = found if of_block is None else of_block.add_(found)
        del block  # before the next is built
        if of_block is not None:
            of_table += embeddings_backward(of_block, table, tiling, row)
            of_block = None
    return of_queries, of_context.values().to(values.dtype), of_table, of_lambdas


def _blocks(
    table: Tensor, tiling: Tiling, dtype: torch.dtype, cache: bool, content: bool = False
) -> Iterator[tuple[int, Tensor]]:
    """Rows of tiles, each with its embeddings [N, K, U * M], or [N, K, U * M + K] with content."""
    build = cached_embeddings if cache else _embeddings
    if tiling.shared:
        block = build(table, tiling, dtype, 0, content)
        yield from ((row, block) for row in range(tiling.y.tiles))
    else:
        yield from ((row, build(table, tiling, dtype, row, content)) for row in range(tiling.y.tiles))


def _embeddings(table: Tensor, tiling: Tiling, dtype: torch.dtype, row: int, content: bool) -> Tensor:
    return embeddings(table.to(dtype), tiling, row, content)
