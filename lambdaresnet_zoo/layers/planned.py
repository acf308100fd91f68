"""The planned contraction: content and position part of a lambda layer by the order that the plan picks.

Whatever the order, training keeps the inputs alone: the backward pass computes lambdas or scores anew, a chunk of
images at a time. Gradients of gradients go through the plain query order.

Shapes: B batch, N query positions, M context positions, K query depth,
V value depth, U intra-depth, H heads. On a grid of h x w, N = M = h * w.

    queries  [B, H, K, N]
    values   [B, V, U, M]
    table    [K, U, Rh, Rw]  see layers.contraction
    lambdas  [B, K, V]       content lambdas, with the position bias
    output   [B, H, V, N]
"""

import logging
from contextlib import nullcontext
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import convolution_order, offset_order, query_order, whole_query_order
from .contraction import choose_order, chunks, content_output, plain_output
from .kernels import fused_position, unavailable
from .plan import Plan, Shape, forced_order, make_plan
from .tiles import Tiling

__all__ = ["gradients", "grid_output", "run"]

_log = logging.getLogger(__name__)
_told: set[str] = set()


def grid_output(
    queries: Tensor,
    values: Tensor,
    table: Tensor,
    lambdas: Tensor | None,
    height: int,
    width: int,
    order: str = "auto",
    memory: float = 0.0,
) -> Tensor:
    """Output [B, H, V, N] of the layer.

    Where the sizes are not known, as in an exported or traced graph, the order is the convolution, which is right
    for every size; a compiled graph holds one node that plans when it runs.

    Args:
        queries: [B, H, K, N].
        values: [B, V, U, N].
        table: [K, U, Rh, Rw].
        lambdas: [B, K, V] or None.
        height: of the grid, N = height * width.
        width: of the grid.
        order: ``auto``, or an order to force (see ``layers.plan``).
        memory: budget of scratch in MiB; 0 for the plan's own.
    """
    if torch.jit.is_scripting():
        plain = choose_order(queries, values, table, height, width) if order == "auto" else order
        return plain_output(queries, values, table, lambdas, height, width, plain)
    else:  # TorchScript must not look beyond
        if torch.compiler.is_exporting() or torch.jit.is_tracing():
            plain = forced_order(order)
            plain = "convolution" if plain in ("auto", "kernel") else plain
            return plain_output(queries, values, table, lambdas, height, width, plain)
        training = torch.is_grad_enabled() and any(
            tensor is not None and tensor.requires_grad for tensor in (queries, values, table, lambdas)
        )
        if torch.compiler.is_compiling():
            return contract(queries, values, table, lambdas, height, width, order, memory, training)
        if training:
            plan = _plan(queries, values, table, height, width, order, memory, training=True)
            if plan.order == "kernel":  # has gradients of its own
                return _kernel(queries, values, table, lambdas, height, width)
            return _Contraction.apply(queries, values, table, lambdas, height, width, order, memory)
        return _forward(queries, values, table, lambdas, height, width, order, memory)


class _Contraction(torch.autograd.Function):
    """Saves what comes in; neither lambdas nor scores."""

    @staticmethod
    def forward(
        queries: Tensor,
        values: Tensor,
        table: Tensor,
        lambdas: Tensor | None,
        height: int,
        width: int,
        order: str,
        memory: float,
    ) -> Tensor:
        return _forward(queries, values, table, lambdas, height, width, order, memory, training=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.height, ctx.width, ctx.order, ctx.memory = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        queries, values, table, lambdas = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            # By aliases: one of these may be made of another, as content lambdas are of values; what it owes to that
            # one is added outside.
            aliases: list[Any] = [None if tensor is None else tensor.view_as(tensor) for tensor in ctx.saved_tensors]
            q, v, t, c = aliases
            output = plain_output(q, v, t, c, ctx.height, ctx.width, "query")
            wanted = [alias is not None and alias.requires_grad for alias in aliases]
            inputs = [alias for alias, want in zip(aliases, wanted, strict=True) if want]
            found = iter(torch.autograd.grad(output, inputs, gradient, create_graph=True))
            arriving: tuple[Tensor | None, ...] = tuple(next(found) if want else None for want in wanted)
        else:
            arriving = _backward(
                gradient, queries, values, table, lambdas, ctx.height, ctx.width, ctx.order, ctx.memory
            )
        return *arriving, None, None, None, None


@torch.library.custom_op("lambdaresnet_zoo::contract", mutates_args=())
def contract(
    queries: Tensor,
    values: Tensor,
    table: Tensor,
    lambdas: Tensor | None,
    height: int,
    width: int,
    order: str,
    memory: float,
    training: bool,
) -> Tensor:
    """:func:`grid_output` as one node of a compiled graph, which is told that the output is dense."""
    return _forward(queries, values, table, lambdas, height, width, order, memory, training).contiguous()


@contract.register_fake
def _(queries: Tensor, values: Tensor, table: Tensor, lambdas: Tensor | None, *_: Any) -> Tensor:
    batch, heads, _k, n = queries.shape
    return queries.new_empty(batch, heads, values.shape[1], n)


@torch.library.custom_op("lambdaresnet_zoo::contract_backward", mutates_args=())
def contract_backward(
    gradient: Tensor,
    queries: Tensor,
    values: Tensor,
    table: Tensor,
    lambdas: Tensor | None,
    height: int,
    width: int,
    order: str,
    memory: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of queries, values, table and lambdas (empty where there are none)."""
    found = _backward(gradient, queries, values, table, lambdas, height, width, order, memory)
    dense = [queries.new_empty(0) if tensor is None else tensor.contiguous() for tensor in found]
    return dense[0], dense[1], dense[2], dense[3]


@contract_backward.register_fake
def _(
    gradient: Tensor, queries: Tensor, values: Tensor, table: Tensor, lambdas: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    found = [tensor.new_empty(tensor.shape) for tensor in (queries, values, table)]
    return found[0], found[1], found[2], queries.new_empty(0 if lambdas is None else lambdas.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _Contraction.setup_context(ctx, inputs[:-1], output)


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    *found, of_lambdas = contract_backward(gradient, *ctx.saved_tensors, ctx.height, ctx.width, ctx.order, ctx.memory)
    return *found, None if ctx.saved_tensors[3] is None else of_lambdas, None, None, None, None, None


contract.register_autograd(_differentiate, setup_context=_save)


def _forward(
    queries: Tensor,
    values: Tensor,
    table: Tensor,
    lambdas: Tensor | None,
    height: int,
    width: int,
    order: str,
    memory: float,
    training: bool = False,
) -> Tensor:
    plan = _plan(queries, values, table, height, width, order, memory, training)
    return run(plan, queries, values, table, lambdas, height, width, cache=not training)


def run(
    plan: Plan,
    queries: Tensor,
    values: Tensor,
    table: Tensor,
    lambdas: Tensor | None,
    height: int,
    width: int,
    cache: bool = False,
) -> Tensor:
    """Output [B, H, V, N] by a plan; ``cache`` keeps the embeddings for the next call."""
    with _without_autocast(queries.device.type):
        if plan.order == "kernel":
            return _kernel(queries, values, table, lambdas, height, width)
        q, v, c = _computed(queries, values, lambdas)
        if plan.tiling is not None:
            order = _tiled_order(plan.tiling, q)
            kept = {"cache": cache} if order is query_order else {}  # the others keep nothing
            output = order.forward(q, v, table, c, plan.tiling, **kept)
        elif plan.order == "convolution" and q.device.type == "cpu":
            output = convolution_order.forward(q, v, table, c, height, width, plan.chunk)
        else:
            parts = [
                plain_output(q[i], v[i], table, None if c is None else c[i], height, width, plan.order)
                for i in chunks(q.shape[0], plan.chunk)
            ]
            output = torch.cat(parts) if parts else q.new_empty(0, q.shape[1], v.shape[1], q.shape[3])
        return output.to(queries.dtype)


def _backward(
    gradient: Tensor,
    queries: Tensor,
    values: Tensor,
    table: Tensor,
    lambdas: Tensor | None,
    height: int,
    width: int,
    order: str,
    memory: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    plan = _plan(queries, values, table, height, width, order, memory, training=True)
    return gradients(plan, gradient, queries, values, table, lambdas, height, width)


def gradients(
    plan: Plan,
    gradient: Tensor,
    queries: Tensor,
    values: Tensor,
    table: Tensor,
    lambdas: Tensor | None,
    height: int,
    width: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of queries, values, table and lambdas by a plan, from that of the output, [B, H, V, N]."""
    with _without_autocast(queries.device.type):
        q, v, c = _computed(queries, values, lambdas)
        g = gradient.to(q.dtype)
        # Where the table's gradient is summed; half precision would lose most of it.
        wide = table.to(torch.promote_types(torch.promote_types(table.dtype, q.dtype), torch.float32))
        if plan.tiling is not None:
            found = _tiled_order(plan.tiling, q).backward(g, q, v, wide, c, plan.tiling)
        else:
            found = _plain_gradients(g, q, v, wide, c, height, width, plan)
        of_lambdas = None if lambdas is None or found[3] is None else found[3].to(lambdas.dtype)
        return found[0].to(queries.dtype), found[1].to(values.dtype), found[2].to(table.dtype), of_lambdas


def _plain_gradients(
    gradient: Tensor,
    queries: Tensor,
    values: Tensor,
    table: Tensor,
    lambdas: Tensor | None,
    height: int,
    width: int,
    plan: Plan,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """By torch's own gradients of a plain order, a chunk of images at a time."""
    of_table = torch.zeros_like(table)
    parts: list[list[Tensor]] = [[], [], []]
    for images in chunks(queries.shape[0], plan.chunk):
        chunk = [None if t is None else t[images].detach().requires_grad_() for t in (queries, values, lambdas)]
        shared = table.detach().requires_grad_()
        q, v, c = chunk
        assert q is not None and v is not None
        with torch.enable_grad():
            if plan.order == "kernel":
                output = _kernel(q, v, shared, c, height, width)
            else:
                output = plain_output(q, v, shared, c, height, width, plan.order)
        inputs = [shared, *(t for t in chunk if t is not None)]
        found = torch.autograd.grad(output, inputs, gradient[images])
        of_table += found[0]
        for part, one in zip(parts, found[1:], strict=False):
            part.append(one)
    of_queries, of_values, of_lambdas = (
        torch.cat(part) if part else None if like is None else torch.zeros_like(like)
        for part, like in zip(parts, (queries, values, lambdas), strict=True)
    )
    assert of_queries is not None and of_values is not None
    return of_queries, of_values, of_table, of_lambdas


def _kernel(queries: Tensor, values: Tensor, table: Tensor, lambdas: Tensor | None, height: int, width: int) -> Tensor:
    output = fused_position(queries, values.to(queries.dtype), table, height, width)
    return output if lambdas is None else output + content_output(queries, lambdas)


def _plan(
    queries: Tensor,
    values: Tensor,
    table: Tensor,
    height: int,
    width: int,
    order: str,
    memory: float,
    training: bool,
) -> Plan:
    batch, heads, k, _ = queries.shape
    device = queries.device.type
    shape = Shape(batch, heads, k, values.shape[1], values.shape[2], height, width, table.shape[2], table.shape[3])
    if order == "auto" and device not in _told:
        _told.add(device)
        if reason := unavailable(queries.device, queries.dtype):
            _log.debug("no fused kernel: %s; the plain orders serve", reason)
    return make_plan(shape, queries.dtype, device, training, order, memory)


def _tiled_order(tiling: Tiling, queries: Tensor) -> ModuleType:
    if tiling.by_offset:
        return offset_order
    return whole_query_order if _in_few_calls(tiling, queries) else query_order


def _in_few_calls(tiling: Tiling, queries: Tensor) -> bool:
    return tiling.whole and queries.device.type != "cpu"


def _computed(queries: Tensor, values: Tensor, lambdas: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """In one dtype: on a CPU, half precision is contracted in float32, which is faster there and more exact."""
    found = {tensor.dtype for tensor in (queries, values, lambdas) if tensor is not None}
    if found == {torch.float32}:  # as it mostly is, and where maps are small each call counts
        return queries, values, lambdas
    dtype = torch.promote_types(queries.dtype, values.dtype)
    if queries.device.type == "cpu" and dtype in (torch.float16, torch.bfloat16):
        dtype = torch.float32
    return queries.to(dtype), values.to(dtype), None if lambdas is None else lambdas.to(dtype)


def _without_autocast(device: str) -> Any:
    """Products keep the dtype that they are given; not every device knows autocast."""
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.autocast(device_type=device, enabled=False)
    return nullcontext()
