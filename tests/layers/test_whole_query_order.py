"""The query order in few calls: held against the plain orders, and its calls counted. Here on a CPU; tests of the GPU
run it there.
"""

from collections import Counter

import pytest
import torch
from contractions import NAMES, tensors
from torch.utils._python_dispatch import TorchDispatchMode

from lambdaresnet_zoo.layers import planned, query_order, whole_query_order
from lambdaresnet_zoo.layers.contraction import plain_output
from lambdaresnet_zoo.layers.plan import Plan
from lambdaresnet_zoo.layers.tiles import Tiling, make_axis

FREE = {
    "_unsafe_view", "alias", "as_strided", "detach", "empty", "empty_like", "expand", "new_empty", "permute",
    "promote_types", "select", "slice", "split_with_sizes", "transpose", "unsqueeze", "view",
}  # fmt: skip
"""Operators that launch nothing."""


def held(*given, **options):
    return [tensor.detach() for tensor in tensors(*given, **options)]


def whole(size, scope, chunk):
    height, width = size
    return Tiling(make_axis(height, scope[0], height), make_axis(width, scope[1], width), chunk)


@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize("chunk", [1, 2, 3])
@pytest.mark.parametrize(("size", "scope", "u"), [((5, 6), (3, 5), 1), ((4, 7), (7, 3), 2), ((3, 4), (9, 11), 2)])
def test_it_is_the_plain_order(size, scope, u, chunk, batch):
    given = tensors(size, scope, batch, u)
    without = [tensor.detach() for tensor in given]
    tiling = whole(size, scope, chunk)
    for some, fixed in ((given, without), ([*given[:3], None], [*without[:3], None])):
        expected = plain_output(*some, *size, "lambda")
        cotangent = torch.randn_like(expected)
        leaves = [tensor for tensor in some if tensor is not None]
        wanted = torch.autograd.grad(expected, leaves, cotangent)
        torch.testing.assert_close(whole_query_order.forward(*fixed, tiling), expected.detach(), rtol=1e-10, atol=1e-10)
        found = whole_query_order.backward(cotangent, *fixed, tiling)
        assert (found[3] is None) == (fixed[3] is None)
        for name, got, want in zip(NAMES, found, wanted, strict=False):
            torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


def test_the_gradient_of_the_table_is_summed_in_its_own_precision():
    size, scope, batch = (6, 5), (7, 5), 512
    given = held(size, scope, batch, dtype=torch.float32)
    q, v, table, lambdas = (tensor.bfloat16() for tensor in given)
    exact = [tensor.double().requires_grad_() for tensor in (q, v, table, lambdas)]
    expected = plain_output(*exact, *size, "lambda")
    cotangent = torch.randn_like(expected).bfloat16()
    wanted = torch.autograd.grad(expected, exact, cotangent.double())
    found = whole_query_order.backward(cotangent, q, v, table.float(), lambdas, whole(size, scope, 1))
    assert found[2].dtype == torch.float32
    off = {
        name: float((got.double() - want).norm() / want.norm())
        for name, got, want in zip(NAMES, found, wanted, strict=True)
    }
    assert max(off.values()) < 2e-2
    assert off["table"] < 5e-3  # 512 sums, each rounded to 8 bits, would be off by more


class Calls(TorchDispatchMode):
    """Counts operators that launch something."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        name = operator.overloadpacket.__name__
        if name not in FREE and operator.namespace == "aten":
            self.found[name] += 1
        return operator(*args, **(kwargs or {}))


def calls(work):
    with Calls() as counted:
        work()
    assert counted.found["bmm"]  # else nothing was seen
    return sum(counted.found.values())


def test_elsewhere_than_on_a_cpu_it_serves_whole_grids_in_fewer_calls():
    size, scope = (14, 14), (23, 23)
    given = held(size, scope, batch=32, dtype=torch.float32, device="meta")
    cotangent = torch.empty(32, 2, 4, 14 * 14, device="meta")
    tiling = whole(size, scope, 32)
    plan = Plan("query", tiling, 32, 0, 0)
    forward = calls(lambda: planned.run(plan, *given, *size))
    backward = calls(lambda: planned.gradients(plan, cotangent, *given, *size))
    assert forward == calls(lambda: whole_query_order.forward(*given, tiling))
    assert forward < calls(lambda: query_order.forward(*given, tiling, cache=True))
    assert backward == calls(lambda: whole_query_order.backward(cotangent, *given, tiling))
    assert backward < 0.8 * calls(lambda: query_order.backward(cotangent, *given, tiling))


def test_on_a_cpu_and_for_tiles_it_does_not_serve(monkeypatch):
    for name in ("forward", "backward"):
        monkeypatch.delattr(whole_query_order, name)
    size, scope = (4, 6), (3, 3)
    tiled = Tiling(make_axis(4, 3, 2), make_axis(6, 3, 3), 3)
    for device, tiling in (("cpu", whole(size, scope, 3)), ("meta", tiled)):
        given = held(size, scope, device=device)
        plan = Plan("query", tiling, 3, 0, 0)
        output = planned.run(plan, *given, *size)
        planned.gradients(plan, torch.empty_like(output), *given, *size)
