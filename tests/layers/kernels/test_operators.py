"""The kernels as torch operators: registration, derivatives of any order, compilation, export, autocast."""

import pytest
import torch
from torch import nn

from lambdaresnet_zoo.layers.kernels import fused_position, operators
from lambdaresnet_zoo.layers.kernels.availability import interpreted

SHAPE = (2, 2, 4, 1, 5, 2, 3, (3, 3))
GRID = SHAPE[5:7]


class Position(nn.Module):
    def forward(self, queries, values, table):
        return fused_position(queries, values, table, *GRID)


def calls(inputs):
    """Arguments of each operator at one point."""
    queries, values, table = inputs
    cotangent = torch.ones_like(fused_position(*inputs, *GRID)).requires_grad_()
    rows, columns = table.shape[2:]
    return {
        operators.position_output: (queries, values, table, *GRID),
        operators.position_queries: (cotangent, values, table, *GRID),
        operators.position_values: (cotangent, queries, table, *GRID),
        operators.position_table: (cotangent, queries, values, rows, columns, table.dtype, *GRID),
    }


@pytest.mark.parametrize("operator", ["position_output", "position_queries", "position_values", "position_table"])
def test_registration(operator, draw_inputs):
    # The gradient of the table has a dtype of its own.
    dtype = torch.bfloat16 if operator == "position_table" else torch.float32
    operator = getattr(operators, operator)
    passed = torch.library.opcheck(operator, calls(draw_inputs(*SHAPE, dtype=dtype))[operator])
    assert set(passed.values()) == {"SUCCESS"} and len(passed) >= 4, passed


@pytest.mark.skipif(not interpreted(), reason="float64 runs under the interpreter alone")
def test_derivatives_of_first_and_second_order(draw_inputs):
    grid = (1, 2)
    inputs = draw_inputs(1, 2, 2, 1, 2, *grid, (1, 3), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *x: fused_position(*x, *grid), inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda *x: fused_position(*x, *grid), inputs, fast_mode=True)


def test_only_the_gradients_that_are_needed(draw_inputs, monkeypatch):
    asked = []
    derivative = operators._derivative
    monkeypatch.setattr(operators, "_derivative", lambda slot, *rest: asked.append(slot) or derivative(slot, *rest))
    queries, values, table = draw_inputs(*SHAPE)
    fused_position(queries.detach(), values, table.detach(), *GRID).sum().backward()
    assert asked == [operators.VALUES]
    assert values.grad is not None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_float32_table_keeps_its_dtype_and_its_gradient_is_not_rounded(dtype, draw_inputs):
    inputs = draw_inputs(*SHAPE, dtype=dtype)
    gradient = torch.autograd.grad(fused_position(*inputs, *GRID).sum(), inputs)[2]
    assert inputs[2].dtype == gradient.dtype == torch.float32
    assert not torch.equal(gradient, gradient.to(dtype).float())


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_whole(backend, dynamic, draw_inputs):
    torch.compiler.reset()
    compiled = torch.compile(Position(), fullgraph=True, backend=backend, dynamic=dynamic)
    inputs = draw_inputs(*SHAPE)
    out, wanted = compiled(*inputs), Position()(*inputs)
    assert torch.equal(out, wanted)
    pairs = zip(torch.autograd.grad(out.sum(), inputs), torch.autograd.grad(wanted.sum(), inputs), strict=True)
    assert all(torch.equal(got, want) for got, want in pairs)


def test_exports_as_one_operator_for_any_batch(draw_inputs):
    inputs = tuple(x.detach() for x in draw_inputs(*SHAPE))
    batch = torch.export.Dim("batch")
    program = torch.export.export(Position(), inputs, dynamic_shapes=({0: batch}, {0: batch}, None))
    names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    layout = {"aten.permute.default", "aten.contiguous.default"}
    assert [name for name in names if name not in layout] == ["lambdaresnet_zoo.position_output.default"]
    more = tuple(torch.cat([x, x[:1]]) for x in inputs[:2])
    assert torch.equal(program.module()(*more, inputs[2]), Position()(*more, inputs[2]))


def test_autocast_leaves_the_dtype_of_the_inputs(draw_inputs, device):
    inputs = draw_inputs(*SHAPE)
    with torch.autocast(device.type, torch.bfloat16):
        assert torch.equal(fused_position(*inputs, *GRID), fused_position(*inputs, *GRID).float())


def test_a_wrong_cotangent_is_refused(draw_inputs):
    queries, values, table = draw_inputs(*SHAPE)
    with pytest.raises(ValueError, match="the cotangent must be"):
        operators.position_table(torch.ones_like(queries), queries, values, 3, 3, table.dtype, *GRID)
