"""Gradients of the layer as every caller asks for them, held against one another; and how exact each order is."""

import pytest
import torch
from contractions import NAMES, tensors
from torch.func import functional_call

from lambdaresnet_zoo.layers import LambdaLayer, planned
from lambdaresnet_zoo.layers.contraction import ORDERS, plain_output

OPTIONS = {
    "plain": {},
    "intra-depth": {"intra_depth": 2},
    "position bias, softmax queries": {"position_bias": True, "query_norm": "softmax"},
    "pooled to another depth": {"stride": 2, "dim_out": 12},
    "position alone": {"content": False},
}


def layer_of(**options):
    torch.manual_seed(0)
    return LambdaLayer(8, num_heads=2, query_depth=3, scope=5, **options).double().eval()


def images(batch=2):
    return torch.randn(batch, 8, 5, 6, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("order", ["auto", *ORDERS])
@pytest.mark.parametrize("batch", [2, 0])
def test_gradients_are_the_same_where_their_own_are_asked_for(options, order, batch):
    layer = layer_of(order=order, **options)
    inputs = [images(batch), *layer.parameters()]
    plain, with_graph = (
        torch.autograd.grad(layer(inputs[0]).sin().sum(), inputs, create_graph=create) for create in (False, True)
    )
    scripted = torch.autograd.grad(torch.jit.script(layer)(inputs[0]).sin().sum(), inputs)
    for found in (with_graph, scripted):
        for got, wanted in zip(found, plain, strict=True):
            torch.testing.assert_close(got, wanted)


def test_a_penalty_on_gradients_is_that_of_the_plain_order():
    queries, values, table, _ = given = tensors((3, 4), (3, 5), u=2)

    def penalty(contraction):
        lambdas = values.mean((2, 3))[:, None] * queries.mean((1, 3))[:, :, None]  # made of both, as content may be
        output = contraction(queries, values, table, lambdas)
        found = torch.autograd.grad(output.sin().sum(), given[:3], create_graph=True)
        return torch.autograd.grad(sum(each.square().sum() for each in found), given[:3])

    wanted = penalty(lambda *inputs: plain_output(*inputs, 3, 4, "lambda"))
    found = penalty(lambda *inputs: planned.grid_output(*inputs, 3, 4))
    for name, got, want in zip(NAMES, found, wanted, strict=False):
        torch.testing.assert_close(got, want, msg=lambda text, name=name: f"{name}: {text}")


def test_functional_gradients_are_those_of_autograd():
    layer, x = layer_of(), images()
    parameters = dict(layer.named_parameters())
    wanted = torch.autograd.grad(layer(x).sin().sum(), [x, *parameters.values()])
    held = {name: parameter.detach() for name, parameter in parameters.items()}
    of_parameters, of_x = torch.func.grad(
        lambda given, x: functional_call(layer, given, (x,)).sin().sum(), argnums=(0, 1)
    )(held, x.detach())
    for got, want in zip((of_x, *of_parameters.values()), wanted, strict=True):
        torch.testing.assert_close(got, want)
    output, backwards = torch.func.vjp(layer, x.detach())
    torch.testing.assert_close(backwards(layer(x).cos().detach())[0], wanted[0])
    torch.testing.assert_close(output, layer(x))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("order", ["auto", *ORDERS])
def test_each_order_is_exact_to_its_precision(order, dtype, tolerance, training):
    """Relative to the largest, as the float64 sums of the same, rounded, tensors."""
    size, scope = (9, 11), (7, 9)
    given = [tensor.detach().to(dtype) for tensor in tensors(size, scope, u=2, k=8, v=16, heads=4)]
    precise = [tensor.double().requires_grad_() for tensor in given]
    expected = plain_output(*precise, *size, "lambda")
    cotangent = torch.randn_like(expected).to(dtype)
    wanted = [expected, *torch.autograd.grad(expected, precise, cotangent.double(), retain_graph=True)]
    for tensor in given:
        tensor.requires_grad_(training)
    output = planned.grid_output(*given, *size, order)
    found = [output, *(torch.autograd.grad(output, given, cotangent) if training else ())]
    for name, got, want in zip(("output", *NAMES), found, wanted, strict=False):
        assert got.dtype == dtype
        error = (got.double() - want).abs().max() / want.abs().max()
        assert error < tolerance, f"{name}: {error:.1e}"
