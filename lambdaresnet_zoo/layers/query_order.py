"""The query order in tiles and chunks: outputs and gradients with a scratch that stays in cache.

    scores[b,h,n,m] = sum_k q[b,h,n,k] e[n,m,k]        output[b,h,n,v] = sum_m scores[b,h,n,m] v[b,m,v]

The scores are never normalised and never kept: a chunk of images and a tile of queries at a time, they live in
one buffer that is written, read and overwritten, and the backward pass computes them anew. In evaluation the content
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

from .contraction import add_products, chunks, content_gradients, content_output
from .grid import Tiles, Windows
from .scratch import Scratch
from .tiles import Tiling, embeddings, embeddings_backward, keeps_embeddings, kept_embeddings

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
    kept = cache and keeps_embeddings(table)
    tiles, context = Tiles(queries, tiling), Windows(values, tiling, forwards=kept)
    # Apart in training, so that the scratch is no larger than that of backward.
    appended, apart = (lambdas, None) if cache else (None, lambdas)
    if apart is None:
        output = (queries.new_empty if tiling.whole else queries.new_zeros)(batch, heads, v, n)
    else:
        output = content_output(queries, apart)
    sums = Tiles(output, tiling)
    scratch = Scratch(queries, "scores")
    for row, block in (kept_embeddings if kept else _blocks)(table, tiling, queries.dtype, appended is not None):
        for images in chunks(batch, tiling.chunk):
            q = tiles.by_position(images, row)  # [N, bH, K]
            windows = context.of(images, row)  # [b, V, UM]
            count, _, seen = windows.shape
            scores, by_head = scratch((*q.shape[:2], block.shape[2]), (count, heads, v, block.shape[2]))
            torch.bmm(q, block, out=scores)
            by_head[..., :seen] = windows.unsqueeze(1)
            if appended is not None:
                of_images = appended[images].transpose(1, 2).unsqueeze(1)
                by_head[..., seen:] = (
                    of_images if tiling.x.tiles == 1 else of_images.repeat_interleave(tiling.x.tiles, 0)
                )
            repeated = by_head.flatten(0, 1)
            if tiling.whole:
                output[images].view(-1, v, n).baddbmm_(repeated, scores.permute(1, 2, 0), beta=int(apart is not None))
            else:  # the faster way round, as adding goes over it anyway
                sums.add(torch.bmm(scores.transpose(0, 1), repeated.transpose(1, 2)).transpose(1, 2), images, row)
    return output


def backward(
    gradient: Tensor, queries: Tensor, values: Tensor, table: Tensor, lambdas: Tensor | None, tiling: Tiling
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of queries, values, table and content lambdas from that of the output, [B, H, V, N]."""
    batch, heads = queries.shape[:2]
    v = values.shape[1]
    gradient = gradient.contiguous()
    tiles, gradients, context = Tiles(queries, tiling), Tiles(gradient, tiling), Windows(values, tiling)
    of_queries, of_lambdas = content_gradients(gradient, queries, lambdas)
    of_tiles = Tiles(of_queries, tiling)
    of_context, of_table = context.sums(), torch.zeros_like(table, memory_format=torch.contiguous_format)
    scratch = Scratch(queries, "scores")
    sums_of_block = Scratch(table, "gradient of embeddings")
    for row, block in _blocks(table, tiling, queries.dtype):
        (of_block,) = sums_of_block(block.shape)
        for images in chunks(batch, tiling.chunk):
            q = tiles.by_position(images, row)  # [N, bH, K]
            arriving = gradients.by_map(images, row)  # [bH, V, N]
            count, seen = len(arriving) // heads, block.shape[2]
            # The scores first, then their gradient, in the same buffer: no two maps are held at once. And the sums of
            # values first, where then the values are.
            buffer, windows = scratch((*q.shape[:2], seen), (heads, count, v, seen))
            torch.bmm(q, block, out=buffer)
            scores = buffer.view(tiling.queries, count, heads, seen).permute(2, 1, 0, 3)  # [H, b, N, UM]
            by_head = arriving.view(count, heads, v, tiling.queries).transpose(0, 1)  # [H, b, V, N]
            for head in range(heads):
                windows[0].baddbmm_(by_head[head], scores[head], beta=min(head, 1))
            of_context.add(windows[0], images, row)
            windows = windows.view(count, heads, v, seen)
            windows[:] = context.of(images, row).unsqueeze(1)
            of_scores = buffer.view(count * heads, tiling.queries, seen)
            torch.bmm(arriving.transpose(1, 2), windows.flatten(0, 1), out=of_scores)
            by_position = of_scores.transpose(0, 1)  # [N, bH, UM], no copy
            of_tiles.add(torch.bmm(by_position, block.transpose(1, 2)).permute(1, 2, 0), images, row)
            add_products(of_block, q.transpose(1, 2), by_position, first=images.start == 0)
        if batch:
            of_table += embeddings_backward(of_block, table, tiling, row)
    return of_queries, of_context.values().to(values.dtype), of_table, of_lambdas


def _blocks(table: Tensor, tiling: Tiling, dtype: torch.dtype, content: bool = False) -> Iterator[tuple[int, Tensor]]:
    """Rows of tiles, each with its embeddings [N, K, U * M], or [N, K, U * M + K] with content.

    Each row's are written to where the last row's were.
    """
    table = table.to(dtype)
    scratch = Scratch(table, "embeddings")
    block: Tensor | None = None
    for row in tiling.rows:
        if block is None or not tiling.shared:
            block = embeddings(table, tiling, row, content, scratch)
        yield row, block
