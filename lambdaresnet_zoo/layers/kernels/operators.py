"""The position part and its three gradients as torch operators over the Triton kernels.

With y the output and c its cotangent, <c, y> is linear in each of four tensors: cotangent, queries,
values and table. Each operator is its derivative by one of them, a function of the three others. So
the derivatives of an operator are these operators again, to any order, by one rule for all.

They are registered whether Triton is there or not, so that an exported program that names them
loads anywhere; to run one where the kernels cannot serve raises RuntimeError.

Shapes as in ``layers.contraction``; what they return is laid out by position, channels last.
"""

from typing import Any

import torch
from torch import Tensor

from .availability import unavailable

__all__ = ["fused_position"]

COTANGENT, QUERIES, VALUES, TABLE = range(4)
LIMIT = 2**31  # offsets within an image are 32 bits wide; from image to image, 64
FAR = 2**19  # half of what the kernels take for far beyond any table


def fused_position(queries: Tensor, values: Tensor, table: Tensor, height: int, width: int) -> Tensor:
    """Position part of the layer, [B, H, V, N], by a fused kernel (see ``layers.contraction.position_output``).

    Sums in float32, whatever the dtype; lambdas and their gradients are rounded to the dtype of the
    queries between two products, as the plain orders round them. Gradients are bit for bit the same
    from run to run. Differentiable to any order.

    No tensor of B N K V or B H N N elements is held: beside the results there are copies of what
    does not lie channels last, and about 64 MiB for the gradient of the table.

    Args:
        queries: [B, H, K, N].
        values: [B, V, U, N], of the dtype of the queries, which is the output's, under autocast too.
        table: [K, U, Rh, Rw], odd extents; of any floating dtype, which its gradient takes without
            being rounded to another.
        height: of the grid, N = height * width.
        width: of the grid.

    Raises:
        RuntimeError: the kernel cannot serve (see ``unavailable``).
        ValueError: shapes or dtypes do not fit, or a tensor has 2**31 elements or more for one image.
    """
    # Laid out once, for the backward pass too.
    return position_output(_by_position(QUERIES, queries), _by_position(VALUES, values), table, height, width)


@torch.library.custom_op("lambdaresnet_zoo::position_output", mutates_args=())
def position_output(queries: Tensor, values: Tensor, table: Tensor, height: int, width: int) -> Tensor:
    """Output [B, H, V, N]."""
    _check(queries, values, table, height, width)
    output = _empty_output(queries, values)
    if output.numel():
        from .launch import launch_output

        q, v, r = _queries(queries), _values(values), _table(table, values.dtype)
        launch_output(q, v, r, height, width, _cotangent(output))
    return output


@torch.library.custom_op("lambdaresnet_zoo::position_queries", mutates_args=())
def position_queries(cotangent: Tensor, values: Tensor, table: Tensor, height: int, width: int) -> Tensor:
    """Gradient of the queries [B, H, K, N]."""
    gradient = _empty_queries(cotangent, table)
    _check(gradient, values, table, height, width, cotangent)
    if gradient.numel():
        from .launch import launch_queries

        c, v, r = _cotangent(cotangent), _values(values), _table(table, values.dtype)
        launch_queries(c, v, r, height, width, _queries(gradient))
    return gradient


@torch.library.custom_op("lambdaresnet_zoo::position_values", mutates_args=())
def position_values(cotangent: Tensor, queries: Tensor, table: Tensor, height: int, width: int) -> Tensor:
    """Gradient of the values [B, V, U, N]."""
    gradient = _empty_values(cotangent, table)
    _check(queries, gradient, table, height, width, cotangent)
    if gradient.numel():
        from .launch import launch_values

        c, q, r = _cotangent(cotangent), _queries(queries), _table(table, queries.dtype)
        launch_values(c, q, r, height, width, _values(gradient))
    return gradient


@torch.library.custom_op("lambdaresnet_zoo::position_table", mutates_args=())
def position_table(
    cotangent: Tensor,
    queries: Tensor,
    values: Tensor,
    rows: int,
    columns: int,
    dtype: torch.dtype,
    height: int,
    width: int,
) -> Tensor:
    """Gradient of the table [K, U, rows, columns]."""
    gradient = _empty_table(queries, values, rows, columns, torch.promote_types(queries.dtype, torch.float32)).zero_()
    _check(queries, values, gradient, height, width, cotangent)
    if cotangent.numel():
        from .launch import launch_table

        c, q, v = _cotangent(cotangent), _queries(queries), _values(values)
        launch_table(c, q, v, height, width, _table(gradient, gradient.dtype))
    return gradient.to(dtype)


@position_output.register_fake
def _(queries: Tensor, values: Tensor, table: Tensor, height: int, width: int) -> Tensor:
    return _empty_output(queries, values)


@position_queries.register_fake
def _(cotangent: Tensor, values: Tensor, table: Tensor, height: int, width: int) -> Tensor:
    return _empty_queries(cotangent, table)


@position_values.register_fake
def _(cotangent: Tensor, queries: Tensor, table: Tensor, height: int, width: int) -> Tensor:
    return _empty_values(cotangent, table)


@position_table.register_fake
def _(
    cotangent: Tensor,
    queries: Tensor,
    values: Tensor,
    rows: int,
    columns: int,
    dtype: torch.dtype,
    height: int,
    width: int,
) -> Tensor:
    return _empty_table(queries, values, rows, columns, dtype)


def _derivative(slot: int, tensors: list[Tensor], height: int, width: int) -> Tensor:
    """Of <cotangent, output> by the tensor in ``slot``; ``tensors`` are all four, and its own gives shape and dtype."""
    others = [tensor for i, tensor in enumerate(tensors) if i != slot]
    if slot == TABLE:
        table = tensors[TABLE]
        return position_table(*others, table.shape[2], table.shape[3], table.dtype, height, width)
    return (position_output, position_queries, position_values)[slot](*others, height, width)


def _differentiable(operator: Any, slot: int) -> None:
    """Register the derivatives of the operator that is itself the derivative by ``slot``."""
    slots = [i for i in range(4) if i != slot]

    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:3])
        ctx.size = inputs[-2:]
        ctx.rest = len(inputs) - 3

    def backward(ctx: Any, gradient: Tensor) -> tuple:
        tensors = list(ctx.saved_tensors)
        # <gradient, derivative by slot> is <cotangent, output> with gradient in slot.
        tensors.insert(slot, _by_position(slot, gradient))
        needed = ctx.needs_input_grad[:3]
        gradients = [
            _derivative(i, tensors, *ctx.size) if need else None for i, need in zip(slots, needed, strict=True)
        ]
        return (*gradients, *[None] * ctx.rest)

    operator.register_autograd(backward, setup_context=setup_context)


_differentiable(position_output, COTANGENT)
_differentiable(position_queries, QUERIES)
_differentiable(position_values, VALUES)
_differentiable(position_table, TABLE)


def _check(
    queries: Tensor, values: Tensor, table: Tensor, height: int, width: int, cotangent: Tensor | None = None
) -> None:
    """Raise what ``fused_position`` says it raises; only shapes, dtypes and devices are looked at."""
    if queries.ndim != 4 or values.ndim != 4 or table.ndim != 4:
        raise ValueError(
            "queries, values and table must be [B, H, K, N], [B, V, U, N] and [K, U, Rh, Rw], "
            f"got {_shape(queries)}, {_shape(values)} and {_shape(table)}"
        )
    batch, heads, k, n = queries.shape
    v, u = values.shape[1:3]
    if n != height * width:
        raise ValueError(f"queries have {n} positions, the grid of {height}x{width} has {height * width}")
    if values.shape[0] != batch or values.shape[3] != n:
        raise ValueError(
            f"values must be [{batch}, V, U, {n}] as the queries are {_shape(queries)}, got {_shape(values)}"
        )
    if tuple(table.shape[:2]) != (k, u):
        raise ValueError(f"the table must be [K, U, ...] = [{k}, {u}, ...], got {_shape(table)}")
    if table.shape[2] % 2 == 0 or table.shape[3] % 2 == 0:
        raise ValueError(f"the table's extents must be odd, got {table.shape[2]}x{table.shape[3]}")
    if cotangent is not None and tuple(cotangent.shape) != (batch, heads, v, n):
        raise ValueError(f"the cotangent must be {(batch, heads, v, n)}, got {_shape(cotangent)}")
    if queries.dtype != values.dtype:
        raise ValueError(f"queries and values must have one dtype, got {queries.dtype} and {values.dtype}")
    if not queries.device == values.device == table.device:
        raise ValueError(f"tensors lie on {queries.device}, {values.device} and {table.device}: move them to one")
    if not table.is_floating_point():
        raise ValueError(f"the table must be floating, got {table.dtype}")
    within = max(n * heads * k, n * heads * v, n * u * v, n * width, table.numel())
    # A program owns 16 elements at the least, and their number is 32 bits wide, too.
    if within >= LIMIT or batch * n * u * v >= 16 * LIMIT or max(height, width, *table.shape[2:]) >= FAR:
        raise ValueError(
            f"too large for the kernels' index: queries {_shape(queries)}, values {_shape(values)}, "
            f"table {_shape(table)}; force another order"
        )
    reason = unavailable(queries.device, queries.dtype)
    if reason:
        raise RuntimeError(f"the fused kernel cannot serve: {reason}")


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


# Every tensor as the kernels read it, by position. A copy where it lies otherwise, a view where it was made so.
def _cotangent(tensor: Tensor) -> Tensor:
    return tensor.permute(0, 3, 1, 2).contiguous()


def _queries(tensor: Tensor) -> Tensor:
    return tensor.permute(0, 3, 1, 2).contiguous()


def _values(tensor: Tensor) -> Tensor:
    return tensor.permute(0, 2, 3, 1).contiguous()


def _by_position(slot: int, tensor: Tensor) -> Tensor:
    """The same tensor with the memory that the kernels want, so that each of them takes a view."""
    if slot == TABLE or tensor.ndim != 4:  # a wrong shape is told later
        return tensor
    return _values(tensor).permute(0, 3, 1, 2) if slot == VALUES else _queries(tensor).permute(0, 2, 3, 1)


def _table(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype).permute(2, 3, 1, 0).contiguous()


def _empty_output(queries: Tensor, values: Tensor) -> Tensor:
    batch, heads, _, n = queries.shape
    return queries.new_empty(batch, n, heads, values.shape[1]).permute(0, 2, 3, 1)


def _empty_queries(cotangent: Tensor, table: Tensor) -> Tensor:
    batch, heads, _, n = cotangent.shape
    return cotangent.new_empty(batch, n, heads, table.shape[0]).permute(0, 2, 3, 1)


def _empty_values(cotangent: Tensor, table: Tensor) -> Tensor:
    batch, _, v, n = cotangent.shape
    return cotangent.new_empty(batch, table.shape[1], n, v).permute(0, 3, 1, 2)


def _empty_table(queries: Tensor, values: Tensor, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    return queries.new_empty(rows, columns, values.shape[2], queries.shape[2], dtype=dtype).permute(3, 2, 0, 1)
