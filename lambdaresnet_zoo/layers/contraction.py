"""Three orders of contracting the position part of a lambda layer on a grid.

For each query, y[b,h,n,v] = sum_k q[b,h,n,k] * sum_mu e[n,m,k,u] * v[b,m,v,u]: one
trilinear sum, so the order is free, and the cheapest one depends on the shape.

    lambda order       (E V) then q     n m k v u + h n k v    holds b n k v
    query order        (q E) then V     h n m u (k + v)        holds b h n m u
    convolution order  (R * V) then q   n r^2 k v u + h n k v  holds b n k v

All three read the same relative table R, so outputs agree to rounding. They are plain here, for
graphs that are exported, scripted or traced, and to hold faster forms against; `layers.plan` picks
one for each shape, and `layers.planned` runs it in chunks.

Shapes: B batch, N query positions, M context positions, K query depth,
V value depth, U intra-depth, H heads. On a grid of h x w, N = M = h * w.

    queries  [B, H, K, N]
    keys     [B, K, U, M]
    values   [B, V, U, M]
    table    [K, U, Rh, Rw]  odd extents; entry (Rh//2 + dy, Rw//2 + dx) serves context
                             position m = n + (dy, dx); zero beyond the table
    output   [B, H, V, N]
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "ORDERS",
    "add_products",
    "choose_order",
    "chunks",
    "content_gradients",
    "content_lambda",
    "content_output",
    "convolution_order",
    "expand_table",
    "lambda_order",
    "plain_output",
    "query_order",
]

ORDERS = ("lambda", "query", "convolution")


def content_lambda(keys: Tensor, values: Tensor, key_norm: str) -> Tensor:
    """Content lambda [B, K, V]: normalised keys against values, summed over positions and u.

    Computed in float32 at least, outside autocast: rounding the softmax weights of a large grid to half
    precision adds an error that grows with the grid, and beyond 16,000 positions they are subnormal.

    Args:
        keys: [B, K, U, M], not normalised.
        values: [B, V, U, M].
        key_norm: ``softmax``, ``l2`` or ``none``, over M.
    """
    if torch.jit.is_scripting():  # TorchScript knows no autocast context with a runtime device
        return _content_lambda(keys, values, key_norm)
    device = keys.device.type  # not all know autocast: the meta device, on which timm checks shapes, raises
    known = torch.compiler.is_compiling() or torch.amp.is_autocast_available(device)  # no call that torch 2.11 compiles
    if known and torch.is_autocast_enabled(device):
        with torch.autocast(device_type=device, enabled=False):
            return _content_lambda(keys, values, key_norm)
    return _content_lambda(keys, values, key_norm)


def _content_lambda(keys: Tensor, values: Tensor, key_norm: str) -> Tensor:
    dtype = torch.promote_types(torch.promote_types(keys.dtype, values.dtype), torch.float32)
    if key_norm == "softmax":
        keys = keys.softmax(dim=-1, dtype=dtype)  # a GPU converts float16 as it goes
    elif key_norm == "l2":
        keys = F.normalize(keys.to(dtype), dim=-1)
    else:
        keys = keys.to(dtype)
    # This way round, as on a CPU products of the few rows that keys have are slower; and so it is read where it lies.
    return torch.bmm(values.to(dtype).flatten(2), keys.flatten(2).transpose(1, 2)).transpose(1, 2)


def content_output(queries: Tensor, lambdas: Tensor) -> Tensor:
    """Content lambdas [B, K, V], the same for every position, applied to queries [B, H, K, N]; returns [B, H, V, N]."""
    return lambdas.to(queries.dtype).transpose(1, 2).unsqueeze(1) @ queries


def content_gradients(gradient: Tensor, queries: Tensor, lambdas: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Gradients of queries and lambdas from that of :func:`content_output`; without lambdas, zeros and None."""
    if lambdas is None:
        return torch.zeros_like(queries, memory_format=torch.contiguous_format), None
    return lambdas.unsqueeze(1) @ gradient, (queries @ gradient.transpose(2, 3)).sum(1)


def add_products(sums: Tensor, left: Tensor, right: Tensor, first: bool) -> None:
    """Add a batch of matrix products to sums, of any dtype; the first ones are written over what is there."""
    if sums.dtype == left.dtype:
        sums.baddbmm_(left, right, beta=0 if first else 1)
    elif first:
        sums.copy_(torch.bmm(left, right))
    else:
        sums.add_(torch.bmm(left, right))


def plain_output(
    queries: Tensor, values: Tensor, table: Tensor, lambdas: Tensor | None, height: int, width: int, order: str
) -> Tensor:
    """Content and position part of the layer, [B, H, V, N], by an order as it is written below.

    Args:
        queries: [B, H, K, N].
        values: [B, V, U, N].
        table: [K, U, Rh, Rw].
        lambdas: content lambdas [B, K, V], with the position bias, or None.
        height: of the grid, N = height * width.
        width: of the grid.
        order: ``lambda``, ``query`` or ``convolution``.
    """
    if order == "query":
        output = query_order(queries, values, table, height, width)
    elif order == "lambda":
        output = lambda_order(queries, values, table, height, width)
    else:
        output = convolution_order(queries, values, table, height, width)
    if lambdas is not None:
        output = output + content_output(queries, lambdas)
    return output


def choose_order(
    queries: Tensor, values: Tensor, table: Tensor, height: int, width: int, element_cost: int = 48
) -> str:
    """The order with the fewest multiply-adds, memory traffic counted in: the plan of a scripted graph.

    Args:
        queries: [B, H, K, N].
        values: [B, V, U, N].
        table: [K, U, Rh, Rw].
        height: of the grid.
        width: of the grid.
        element_cost: what one element of an intermediate costs, in multiply-adds: these orders are
            bound by memory as much as by arithmetic.
    """
    heads, k = queries.shape[1], queries.shape[2]
    v, u = values.shape[1], values.shape[2]
    n = height * width
    window = min(table.shape[2], 2 * height - 1) * min(table.shape[3], 2 * width - 1)
    apply_lambda = heads * n * k * v + element_cost * n * k * v
    query_cost = heads * n * n * u * (k + v) + element_cost * heads * n * n * u
    lambda_cost = n * n * k * v * u + apply_lambda
    convolution_cost = n * window * k * v * u + apply_lambda
    if query_cost <= lambda_cost and query_cost <= convolution_cost:
        return "query"
    return "lambda" if lambda_cost < convolution_cost else "convolution"


def lambda_order(queries: Tensor, values: Tensor, table: Tensor, height: int, width: int) -> Tensor:
    """The paper's order with the dense table: every position's lambda, then the queries."""
    embeddings = expand_table(table, height, width)  # [K, U, N, M]
    k, u, n, m = embeddings.shape
    flat = embeddings.permute(2, 0, 1, 3).reshape(n * k, u * m)
    lambdas = flat.to(values.dtype) @ values.flatten(2).transpose(1, 2)  # [B, NK, V]
    lambdas = lambdas.reshape(values.shape[0], n, k, values.shape[1])
    return _apply(queries, lambdas)


def query_order(queries: Tensor, values: Tensor, table: Tensor, height: int, width: int) -> Tensor:
    """Queries against embeddings first: a map over the context, never normalised, then the values."""
    embeddings = expand_table(table, height, width)  # [K, U, N, M]
    k, u, n, m = embeddings.shape
    batch, heads, v = queries.shape[0], queries.shape[1], values.shape[1]
    # The map is large: laid out by position it is written once and read in place, never permuted.
    by_position = queries.permute(3, 0, 1, 2).reshape(n, batch * heads, k).contiguous()
    flat = embeddings.permute(2, 0, 1, 3).reshape(n, k, u * m)
    scores = torch.bmm(by_position, flat.to(queries.dtype)).transpose(0, 1)  # [BH, N, UM]
    by_head = values.flatten(2).unsqueeze(1).expand(-1, heads, -1, -1).reshape(batch * heads, v, u * m)
    output = torch.bmm(by_head, scores.transpose(1, 2))  # [BH, V, N]
    return output.reshape(batch, heads, v, n)


def convolution_order(queries: Tensor, values: Tensor, table: Tensor, height: int, width: int) -> Tensor:
    """Lambda convolution (section 2.2): the table as a convolution kernel over each value channel.

    The convolution is the 2-d one that every memory format and backend knows. Right for every size, so symbolic
    sizes take this one.
    """
    batch, v, u, n = values.shape
    k = table.shape[0]
    grid = values.reshape(batch * v, u, height, width)
    padding = [table.shape[2] // 2, table.shape[3] // 2]
    lambdas = F.conv2d(grid, table.to(values.dtype), padding=padding)  # [BV, K, h, w]
    lambdas = lambdas.reshape(batch, v, k, n).permute(0, 3, 2, 1)  # [B, N, K, V]
    return _apply(queries, lambdas)


def chunks(batch: int, size: int) -> Iterator[slice]:
    """Images that are contracted at once, ``size`` of them."""
    for start in range(0, batch, size):
        yield slice(start, start + size)


def expand_table(table: Tensor, height: int, width: int) -> Tensor:
    """Embeddings [K, U, N, M] of every pair of positions on a grid, from the relative table [K, U, Rh, Rw]."""
    dy = height - 1 - table.shape[2] // 2
    dx = width - 1 - table.shape[3] // 2
    table = F.pad(table, [dx, dx, dy, dy])  # to (2h-1, 2w-1): zeros beyond the scope, crops what is out of reach
    y = torch.arange(height, device=table.device)
    x = torch.arange(width, device=table.device)
    rows = y[None, :] - y[:, None] + height - 1  # [h, h]: query row, context row
    columns = x[None, :] - x[:, None] + width - 1
    index = rows[:, None, :, None] * (2 * width - 1) + columns[None, :, None, :]  # [h, w, h, w]
    n = height * width
    return table.flatten(2).index_select(2, index.reshape(-1)).reshape(table.shape[0], table.shape[1], n, n)


def _apply(queries: Tensor, lambdas: Tensor) -> Tensor:
    """Lambdas [B, N, K, V] applied to queries [B, H, K, N]; returns [B, H, V, N]."""
    output = torch.matmul(queries.permute(0, 3, 1, 2), lambdas)  # [B, N, H, V]
    return output.permute(0, 2, 3, 1)
