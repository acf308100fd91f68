"""The query order by offset: outputs and gradients without embeddings, for few images in training.

    by_offset[b,h,n,o] = sum_k q[b,h,n,k] R[k,o]       scores[b,h,n,m] = by_offset[b,h,n,m-n]

Embeddings are as large as the grid squared and serve all images. For one image they are dearer to build, to read and to
differentiate than the scores themselves, which one product with the table gives, by offset; moved to their context,
they go on as in `query_order`. Of the offsets of a tile some meet no context, the more the larger it is.

Shapes: B batch, N query positions, M context positions, K query depth,
V value depth, U intra-depth, H heads; O offsets of a tile. Where every tile of a row sees all columns (see
layers.tiles), T are its tiles and b is one image: [T, b * H * N, ...] has the queries of one tile each, [b, H * N, ...]
those of all. Elsewhere T = 1, and b counts images and the tiles of a row.

    queries  [B, H, K, N]
    values   [B, V, U, M]
    table    [K, U, Rh, Rw]  see layers.contraction
    lambdas  [B, K, V]       content lambdas, with the position bias
    output   [B, H, V, N]
"""

import torch
from torch import Tensor

from .contraction import chunks, content_gradients, content_output
from .grid import Tiles, Windows
from .scratch import Scratch
from .tiles import Tiling, by_context, by_offset, offset_table, offset_table_backward

__all__ = ["backward", "forward"]


def forward(queries: Tensor, values: Tensor, table: Tensor, lambdas: Tensor | None, tiling: Tiling) -> Tensor:
    """Output [B, H, V, N] for queries [B, H, K, N], values [B, V, U, N], table and content lambdas, of one dtype."""
    batch, heads, k, n = queries.shape
    v = values.shape[1]
    tiles, context = Tiles(queries, tiling), Windows(values, tiling, forwards=True)
    output = queries.new_zeros(batch, heads, v, n) if lambdas is None else content_output(queries, lambdas)
    sums = Tiles(output, tiling)
    scratch = Scratch(queries, "scores")
    for row in tiling.rows:
        kernel = _tables(table.to(queries.dtype), tiling, row).flatten(2)  # [T, K, UO]
        for images in chunks(batch, tiling.chunk):
            q = tiles.by_map(images, row).transpose(1, 2).reshape(len(kernel), -1, k)  # [T, bHN, K]
            windows = context.of(images, row)  # [b, V, UM]
            _, scores = _scores(scratch, q, kernel, windows, tiling, row)  # [b, HN, UM]
            found = torch.bmm(windows, scores.transpose(1, 2))  # [b, V, HN]
            sums.add(found.unflatten(2, (-1, tiling.queries)).transpose(1, 2), images, row)
    return output


def backward(
    gradient: Tensor, queries: Tensor, values: Tensor, table: Tensor, lambdas: Tensor | None, tiling: Tiling
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of queries, values, table and content lambdas from that of the output, [B, H, V, N]."""
    batch, _, k, _ = queries.shape
    v = values.shape[1]
    gradient = gradient.contiguous()
    tiles, gradients, context = Tiles(queries, tiling), Tiles(gradient, tiling), Windows(values, tiling, forwards=True)
    of_queries, of_lambdas = content_gradients(gradient, queries, lambdas)
    of_tiles = Tiles(of_queries, tiling)
    of_context, of_table = context.sums(), torch.zeros_like(table, memory_format=torch.contiguous_format)
    scratch = Scratch(queries, "scores")
    for row in tiling.rows:
        tables = _tables(table.to(queries.dtype), tiling, row)
        kernel = tables.flatten(2)  # [T, K, UO]
        of_kernel = torch.zeros_like(kernel, dtype=table.dtype)
        for images in chunks(batch, tiling.chunk):
            q = tiles.by_map(images, row).transpose(1, 2).reshape(len(kernel), -1, k)  # [T, bHN, K]
            windows = context.of(images, row)  # [b, V, UM]
            arriving = gradients.by_map(images, row).transpose(1, 2).reshape(windows.shape[0], -1, v)  # [b, HN, V]
            offsets, scores = _scores(scratch, q, kernel, windows, tiling, row)
            of_context.add(torch.bmm(arriving.transpose(1, 2), scores), images, row)
            # Gradients take the place of what they are of.
            moved = by_offset(torch.bmm(arriving, windows, out=scores), offsets, tiling, row)  # [T, bHN, UO]
            of_q = torch.bmm(moved, kernel.transpose(1, 2)).view(-1, tiling.queries, k)
            of_tiles.add(of_q.transpose(1, 2), images, row)
            of_kernel += torch.bmm(q.transpose(1, 2), moved)
        for column, offsets in enumerate(of_kernel.view(tables.shape)):
            of_table += offset_table_backward(offsets, table, tiling, row, column)
    return of_queries, of_context.values().to(values.dtype), of_table, of_lambdas


def _tables(table: Tensor, tiling: Tiling, row: int) -> Tensor:
    """Of a table [K, U, Rh, Rw], the offsets of a row of tiles [T, K, U, ...], as of `offset_table`."""
    tables = [offset_table(table, tiling, row, column) for column in range(tiling.tables)]
    return tables[0].unsqueeze(0) if len(tables) == 1 else torch.stack(tables)


def _scores(scratch: Scratch, q: Tensor, kernel: Tensor, windows: Tensor, tiling: Tiling, row: int) -> list[Tensor]:
    """Of queries [T, b * H * N, K], tables [T, K, U * O] and windows [b, V, U * M]: scores by offset,
    [T, b * H * N, U * O], and by context, [b, H * N, U * M].
    """
    count, _, context = windows.shape
    offsets, scores = scratch((*q.shape[:2], kernel.shape[2]), (count, q.shape[:2].numel() // count, context))
    by_context(torch.bmm(q, kernel, out=offsets), scores, tiling, row)
    return [offsets, scores]
