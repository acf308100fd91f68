"""Batch norms folded into the projection, for evaluation: the same outputs, and what is not folded."""

import copy

import pytest
import torch
from timm.models import reparameterize_model
from torch import nn

from lambdaresnet_zoo.layers import LambdaLayer

FOLDED = [
    {},
    {"num_heads": 2, "intra_depth": 3, "dim_out": 12, "qkv_bias": True},
    {"norm_k": True, "norm_v": False, "stride": 2},
    {"norm_q": False, "scope": None, "feat_size": (5, 6), "position_bias": True},
    {"content": False},
    {"position": False, "query_norm": "softmax"},
]


@pytest.mark.parametrize("options", FOLDED, ids=str)
def test_folding_batch_norms_changes_no_output(options):
    torch.manual_seed(0)
    layer = LambdaLayer(8, **{"scope": 3, "query_depth": 4} | options).double()
    for norm in (layer.norm_q, layer.norm_k, layer.norm_v):
        if isinstance(norm, nn.BatchNorm2d):
            norm.eps = 0.1 * torch.rand(1).item()  # not of one value
            for value in (norm.running_mean, norm.weight, norm.bias):
                nn.init.normal_(value)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)
    layer.eval()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    folded = reparameterize_model(nn.Sequential(layer))[0]
    x = torch.randn(2, 8, 5, 6, dtype=torch.float64, requires_grad=True)
    expected, found = layer(x), folded(x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), expected, rtol=1e-12, atol=1e-12)
    along = torch.randn_like(expected)
    wanted = [torch.autograd.grad(out, x, along)[0] for out in (found, expected)]
    torch.testing.assert_close(*wanted, rtol=1e-10, atol=1e-10)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    kept = {name for name in before if not name.startswith("norm_")}
    assert set(folded.state_dict()) == kept | {"qkv.bias"}
    assert all(value.equal(before[name]) for name, value in layer.state_dict().items())  # the copy alone is folded
    torch.testing.assert_close(folded.fuse()(x), expected, rtol=1e-12, atol=1e-12)  # again: nothing is left to fold


def test_a_layer_without_batch_norms_is_left_as_it_is():
    layer = LambdaLayer(8, scope=3, norm_q=False, norm_v=False).eval()
    assert layer.fuse().qkv.bias is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_folding_in_half_precision_rounds_once(dtype):
    torch.manual_seed(0)
    layer = LambdaLayer(32, scope=3).eval()
    for norm in (layer.norm_q, layer.norm_v):
        for value in (norm.running_var, norm.weight):
            nn.init.uniform_(value, 0.5, 2.0)
    half = layer.to(dtype)
    exact = copy.deepcopy(half).double().fuse().qkv
    found = copy.deepcopy(half).fuse().qkv
    for name in ("weight", "bias"):
        rounding = {"rtol": 0.51 * torch.finfo(dtype).eps, "atol": torch.finfo(dtype).smallest_normal}
        torch.testing.assert_close(getattr(found, name).double(), getattr(exact, name), **rounding)


def test_a_norm_that_is_set_later_is_used():
    layer = LambdaLayer(8, scope=3, norm_q=False, norm_v=False).eval()
    x = torch.randn(2, 8, 5, 6)
    before = layer(x)
    layer.norm_v = nn.BatchNorm2d(2).eval()
    layer.norm_v.running_mean.fill_(1.0)
    assert not torch.allclose(layer(x), before)


def test_folded_layers_export_and_script():
    layer = LambdaLayer(8, scope=3, query_depth=4).eval().fuse()
    x = torch.randn(2, 8, 5, 6)
    program = torch.export.export(layer, (x,)).module()
    for form in (program, torch.jit.script(layer), torch.jit.trace(layer, x)):
        torch.testing.assert_close(form(x), layer(x))


def test_a_layer_in_training_is_not_folded():
    layer = LambdaLayer(8, scope=3)
    with pytest.raises(ValueError, match=r"batch norms are folded for evaluation alone: call eval\(\) first"):
        layer.fuse()
    assert isinstance(layer.norm_q, nn.BatchNorm2d)


def test_a_norm_of_another_kind_is_kept():
    layer = LambdaLayer(8, scope=3, query_depth=4)
    layer.norm_v = nn.GroupNorm(2, 2)
    nn.init.normal_(layer.norm_v.weight)
    layer.norm_q.running_mean.normal_()
    layer.eval()
    x = torch.randn(2, 8, 5, 6)
    torch.testing.assert_close(copy.deepcopy(layer).fuse()(x), layer(x))
    assert isinstance(layer.fuse().norm_v, nn.GroupNorm)
