"""The projection: held against the convolution that it equals, outputs and gradients, in every form of its input."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lambdaresnet_zoo.layers.projection import Projection, project

FORMS = {
    "dense": lambda x: x,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "a view": lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
    "every other row": lambda x: x.repeat_interleave(2, 2)[:, :, ::2],
}


def case(batch=3, bias=True, dtype=torch.float64):
    torch.manual_seed(0)
    layer = Projection(5, 7, bias=bias, dtype=dtype)
    return layer, torch.randn(batch, 5, 3, 4, dtype=dtype)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize("form", FORMS)
def test_it_is_the_convolution(form, batch, bias):
    layer, x = case(batch, bias)
    x = FORMS[form](x).detach().requires_grad_()
    inputs = [x, *layer.parameters()]
    expected = F.conv2d(x, layer.weight, layer.bias)
    found = layer(x)
    torch.testing.assert_close(found, expected)
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), expected.detach())
    cotangent = torch.randn_like(expected)
    for got, want in zip(
        torch.autograd.grad(found, inputs, cotangent), torch.autograd.grad(expected, inputs, cotangent), strict=True
    ):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("bias", [True, False])
def test_its_gradients_have_gradients(bias):
    layer, x = case(bias=bias)
    inputs = [x.requires_grad_(), *layer.parameters()]
    assert torch.autograd.gradcheck(lambda x, weight, *rest: project(x, weight, *rest or (None,)), inputs)
    assert torch.autograd.gradgradcheck(lambda x, weight, *rest: project(x, weight, *rest or (None,)), inputs)


@pytest.mark.parametrize("frozen", ["input", "weight", "bias"])
def test_what_needs_no_gradient_gets_none(frozen):
    layer, x = case()
    tensors = {"input": x, "weight": layer.weight, "bias": layer.bias}
    for name, tensor in tensors.items():
        tensor.requires_grad_(name != frozen)
    layer(x).sum().backward()
    assert {name for name, tensor in tensors.items() if tensor.grad is None} == {frozen}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_the_convolutions(dtype):
    layer, x = case(dtype=torch.float32)
    x.requires_grad_()
    with torch.autocast("cpu", dtype):
        found, expected = layer(x), F.conv2d(x, layer.weight, layer.bias)
    assert found.dtype == expected.dtype == dtype
    torch.testing.assert_close(found, expected, atol=2e-2, rtol=2e-2)
    found.float().square().sum().backward()
    assert layer.weight.grad.dtype == x.grad.dtype == torch.float32
    exact, _ = case(dtype=torch.float32)
    exact(x).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, exact.weight.grad, atol=0.05, rtol=0.05)
    with torch.autocast("cpu", dtype):
        assert case()[0](case()[1]).dtype == torch.float64


def test_the_gradient_of_the_weight_is_summed_as_it_comes():
    """No matrix for each image: the peak of a backward pass does not grow with the batch."""

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                self.elements = max(self.elements, out.untyped_storage().nbytes() // out.element_size())
            return out

    layer = Projection(64, 64)
    x = torch.randn(8, 64, 2, 2)
    output = layer(x).sum()
    with Largest() as seen:
        output.backward()
    assert 0 < seen.elements <= 64 * 64


def test_it_is_a_convolution_to_others():
    layer, x = case(dtype=torch.float32)
    assert isinstance(layer, nn.Conv2d) and layer.weight.shape == (7, 5, 1, 1)
    assert list(layer.state_dict()) == ["weight", "bias"]
    torch.testing.assert_close(torch.jit.script(layer)(x), layer(x))
    program = torch.export.export(layer, (x,))
    assert any(node.target == torch.ops.aten.conv2d.default for node in program.graph.nodes)
    traced = torch.fx.symbolic_trace(layer)
    assert any(node.target is project for node in traced.graph.nodes)
    torch.testing.assert_close(traced(x), layer(x))
    called = []
    layer.register_forward_hook(lambda *_: called.append(1))
    layer(x)
    assert called
