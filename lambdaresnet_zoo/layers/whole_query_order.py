"""The query order over the whole grid in few calls, for devices where each call is a launch.

    scores[b,h,n,m] = sum_k q[b,h,n,k] e[n,m,k]        output[b,h,n,v] = sum_m scores[b,h,n,m] v[b,m,v]

The first sum is a product for each position, over images and heads; the second one for each image, over heads and
positions. The scores lie by image, [B, H, N, U * M], and the first product writes them there, with strides: then values
are not repeated for each head, as on a CPU, where products of strided matrices take many times as long, and each
gradient is one product. Gradients are written where what they are of is no longer needed.

Shapes: B batch, N query positions, M context positions, K query depth,
V value depth, U intra-depth, H heads. On a grid of h x w, N = M = h * w; context counts backwards (see layers.tiles).

    queries  [B, H, K, N]
    values   [B, V, U, M]
    table    [K, U, Rh, Rw]  see layers.contraction
    lambdas  [B, K, V]       content lambdas, with the position bias
    output   [B, H, V, N]
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from .contraction import add_products, chunks
from .grid import Windows
from .tiles import Tiling, embeddings, embeddings_backward

__all__ = ["backward", "forward"]


def forward(queries: Tensor, values: Tensor, table: Tensor, lambdas: Tensor | None, tiling: Tiling) -> Tensor:
    """Output [B, H, V, N] for queries [B, H, K, N], values [B, V, U, N], table and content lambdas, of one dtype."""
    batch, heads, _, n = queries.shape
    output = queries.new_empty(batch, heads, values.shape[1], n)
    block = embeddings(table.to(queries.dtype), tiling)  # [N, K, UM]
    windows = Windows(values, tiling).of(slice(None), row=0)  # [B, V, UM]
    for images in _chunks(queries, tiling):
        q = _by_head(queries[images])
        found = torch.bmm(_scores(q, block), windows[images].transpose(1, 2))  # [b, HN, V]
        if lambdas is not None:
            found.baddbmm_(q, lambdas[images])
        output[images] = _by_channel(found, heads)
    return output


def backward(
    gradient: Tensor, queries: Tensor, values: Tensor, table: Tensor, lambdas: Tensor | None, tiling: Tiling
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of queries, values, table and content lambdas from that of the output, [B, H, V, N]."""
    heads, _, n = queries.shape[1:]
    block = embeddings(table.to(queries.dtype), tiling)  # [N, K, UM]
    windows = Windows(values, tiling).of(slice(None), row=0)  # [B, V, UM]
    of_block, of_windows = torch.empty_like(block, dtype=table.dtype), torch.empty_like(windows)
    of_queries = torch.empty_like(queries, memory_format=torch.contiguous_format)
    of_lambdas = None if lambdas is None else torch.empty_like(lambdas, memory_format=torch.contiguous_format)
    for images in _chunks(queries, tiling):
        q, arriving = _by_head(queries[images]), _by_head(gradient[images])
        scores = _scores(q, block)  # [b, HN, UM]
        torch.bmm(arriving.transpose(1, 2), scores, out=of_windows[images])
        by_position = _by_position(torch.bmm(arriving, windows[images], out=scores), n)  # [N, bH, UM]
        of_q = torch.empty_like(q)
        torch.bmm(by_position, block.transpose(1, 2), out=_by_position(of_q, n))
        if lambdas is not None and of_lambdas is not None:
            of_q.baddbmm_(arriving, lambdas[images].transpose(1, 2))
            torch.bmm(q.transpose(1, 2), arriving, out=of_lambdas[images])
        of_queries[images] = _by_channel(of_q, heads)
        add_products(of_block, _by_position(q, n).transpose(1, 2), by_position, first=images.start == 0)
    of_table = embeddings_backward(of_block, table, tiling)
    return of_queries, of_windows.view(values.shape).flip(3), of_table, of_lambdas


def _chunks(queries: Tensor, tiling: Tiling) -> Iterator[slice]:
    return chunks(max(1, queries.shape[0]), tiling.chunk)


def _scores(q: Tensor, block: Tensor) -> Tensor:
    """[b, H * N, U * M] of queries [b, H * N, K] and embeddings [N, K, U * M]."""
    scores = q.new_empty(*q.shape[:2], block.shape[2])
    torch.bmm(_by_position(q, len(block)), block, out=_by_position(scores, len(block)))
    return scores


def _by_head(maps: Tensor) -> Tensor:
    """[b, H, D, N] to [b, H * N, D], dense."""
    return maps.transpose(2, 3).contiguous().flatten(1, 2)


def _by_position(maps: Tensor, n: int) -> Tensor:
    """[b, H * N, D] as a view [N, b * H, D]."""
    return maps.view(-1, n, maps.shape[2]).transpose(0, 1)


def _by_channel(maps: Tensor, heads: int) -> Tensor:
    """[b, H * N, D] as a view [b, H, D, N]."""
    return maps.unflatten(1, (heads, -1)).transpose(2, 3)
