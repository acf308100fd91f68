"""The part *roofline*: the rate at which the layer computes, over that of a large matrix product in the same run."""

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ...weights.benchmarks import MEASURED
from .compare import Setting, compare
from .layer import KEY, MODES, key_of, one_pass
from .peers import HEADS, QUERY_DEPTH, Shape, zoo

__all__ = ["BATCHES", "FIELDS", "KEY", "MODES", "measure", "nominal_flops", "run_flops"]

FIELDS = (
    *KEY, "status", "gflop_run", "gflop_nominal", "gflops_run", "gflops_nominal", "gflops_matmul",
    "share_run", "share_nominal", "milliseconds", "milliseconds_matmul", "matmul", "rounds",
)  # fmt: skip
BATCHES = {"cpu": (8, 32), "cuda": (32, 256)}
MATMUL = {"cpu": 2048, "cuda": 8192}
"""Rows and columns of the matrices."""
LAYER, PRODUCT = "layer", "product"


def _in_place(_: torch.Size, left: torch.Size, right: torch.Size, **__: Any) -> int:
    return 2 * left.numel() * right[-1]


IN_PLACE = {torch.ops.aten.addmm_: _in_place, torch.ops.aten.baddbmm_: _in_place}
"""Products that torch does not count by itself: what is added to, and two factors."""


def run_flops(layer: nn.Module, shape: Shape, batch: int, mode: str, setting: Setting) -> int:
    """Floating-point operations of the matrix products and convolutions that one pass really runs.

    Counted by torch as they are dispatched, two for a multiply-add, so it is the count of the order of contraction
    that the layer took, with what it computes again in the backward pass. A convolution counts its padding, which it
    may skip: its rate can seem to be above that of a product. What is not a product (batch norm, softmax, copies)
    counts nothing, nor does a kernel that torch does not know.
    """
    x, gradient = _input(shape, batch, mode, setting)
    work = one_pass(layer, x, gradient, setting)
    with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter:
        work()
    return int(counter.get_total_flops())


def nominal_flops(shape: Shape, batch: int, mode: str) -> int:
    """Floating-point operations by the paper's order, two for a multiply-add.

    Projections n d (h k + k + v), content lambda n k v, position lambdas p k v for the p pairs of query and context
    in scope, and both applied, 2 h n k v; the backward pass as twice the forward one.
    """
    n, k, v = shape.size**2, QUERY_DEPTH, shape.dim // HEADS
    reach = shape.size if shape.scope is None else shape.scope // 2
    along = sum(min(at + reach, shape.size - 1) - max(at - reach, 0) + 1 for at in range(shape.size))
    adds = n * shape.dim * (HEADS * k + k + v) + n * k * v + along**2 * k * v + 2 * HEADS * n * k * v
    return 2 * batch * adds * (3 if mode == "training" else 1)


def measure(shape: Shape, batch: int, mode: str, setting: Setting) -> list[dict[str, Any]]:
    """The row of a shape: ``share_run`` of the matrix-multiply rate by what was run, ``share_nominal`` by the paper.

    Both shares are medians over rounds of the layer and the product in turn.
    """
    torch.manual_seed(0)
    device = setting.device
    side = MATMUL[device.type]
    dtype = getattr(torch, setting.amp) if setting.amp else torch.float32
    matrix = torch.randn(side, side, device=device, dtype=dtype)

    def layer_pass() -> Any:
        return one_pass(zoo(shape).to(device), *_input(shape, batch, mode, setting), setting)

    found = compare(LAYER, {LAYER: layer_pass, PRODUCT: lambda: partial(torch.mm, matrix, matrix)}, setting)
    row: dict[str, Any] = {**dict.fromkeys(FIELDS, ""), **key_of(shape, batch, mode), "matmul": f"{side}x{side}x{side}"}
    row["status"] = found[LAYER]["status"]
    if found[LAYER]["status"] == MEASURED:
        row |= {name: found[LAYER][name] for name in ("milliseconds", "rounds")}
        row["milliseconds_matmul"] = found[PRODUCT]["milliseconds"]
        row["gflops_matmul"] = f"{2 * side**3 / 1e6 / float(row['milliseconds_matmul']):.2f}"
        counts = {
            "run": run_flops(zoo(shape).to(device), shape, batch, mode, setting),
            "nominal": nominal_flops(shape, batch, mode),
        }
        for name, count in counts.items():
            row[f"gflop_{name}"] = f"{count / 1e9:.4f}"
            row[f"gflops_{name}"] = f"{count / 1e6 / float(row['milliseconds']):.2f}"
            row[f"share_{name}"] = f"{count / (2 * side**3) * float(found[PRODUCT]['times_zoo']):.4f}"
    return [row]


def _input(shape: Shape, batch: int, mode: str, setting: Setting) -> tuple[torch.Tensor, torch.Tensor | None]:
    x = torch.randn(batch, shape.dim, shape.size, shape.size, device=setting.device, requires_grad=mode == "training")
    return x, torch.randn_like(x, requires_grad=False) if mode == "training" else None
