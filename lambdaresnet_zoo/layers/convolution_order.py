"""The convolution order on a CPU: lambdas of a few images at a time, applied where the convolution left them.

    lambdas[b,v,k,n] = sum_r R[k,r] v[b,v,n+r]        output[b,h,v,n] += sum_k q[b,h,k,n] lambdas[b,v,k,n]

The second sum runs along positions, K multiply-adds of whole maps. As matrix products, which are of H x K by K x V
and need the lambdas in another layout, it took two to ten times as long.

Shapes: B batch, N query positions, M context positions, K query depth,
V value depth, U intra-depth, H heads. On a grid of h x w, N = M = h * w.

    queries  [B, H, K, N]
    values   [B, V, U, M]
    table    [K, U, Rh, Rw]  see layers.contraction
    lambdas  [B, K, V]       content lambdas, with the position bias
    output   [B, H, V, N]
"""

import torch.nn.functional as F
from torch import Tensor

from .contraction import chunks, content_output

__all__ = ["forward"]


def forward(
    queries: Tensor, values: Tensor, table: Tensor, lambdas: Tensor | None, height: int, width: int, chunk: int
) -> Tensor:
    """Output [B, H, V, N] for queries [B, H, K, N], values [B, V, U, N] and content lambdas, of one dtype.

    Args:
        queries: [B, H, K, N].
        values: [B, V, U, N].
        table: [K, U, Rh, Rw].
        lambdas: [B, K, V] or None.
        height: of the grid, N = height * width.
        width: of the grid.
        chunk: images at once.
    """
    batch, heads, k, n = queries.shape
    v, u = values.shape[1:3]
    output = queries.new_zeros(batch, heads, v, n) if lambdas is None else content_output(queries, lambdas)
    # What no pair of positions is apart by is cut off.
    cut = [max(0, extent // 2 - side + 1) for extent, side in zip(table.shape[2:], (height, width), strict=True)]
    kernel = table[:, :, cut[0] : table.shape[2] - cut[0], cut[1] : table.shape[3] - cut[1]].to(values.dtype)
    padding = [extent // 2 for extent in kernel.shape[2:]]
    for images in chunks(batch, chunk):
        grid = values[images].reshape(-1, u, height, width)
        found = F.conv2d(grid, kernel, padding=padding).reshape(-1, 1, v, k, n)
        of_heads = queries[images].unsqueeze(2)  # [b, H, 1, K, N]
        chunked = output[images]
        for index in range(k):
            chunked.addcmul_(found[:, :, :, index], of_heads[:, :, :, index])
        del found  # before there are two
    return output
