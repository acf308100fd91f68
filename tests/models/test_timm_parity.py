"""timm's three lambda networks and ours, on equal weights: outputs, features and gradients."""

import pytest
import timm
import torch
from models.timm_models import PAIRS, perturbed

from lambdaresnet_zoo.models.lambdaresnet_public import from_timm


@pytest.fixture(params=PAIRS, scope="module")
def pair(request):
    """Ours and timm's."""
    theirs = perturbed(request.param)
    ours = timm.create_model(request.param)
    ours.load_state_dict(from_timm(theirs.state_dict()), strict=True)
    return ours.eval(), theirs


def test_outputs_are_equal(pair):
    ours, theirs = pair
    x = torch.randn(2, 3, 256, 256)
    with torch.inference_mode():
        expected = theirs(x)
        assert expected.abs().max() > 0.1
        assert (ours(x) - expected).abs().max() <= 1e-5


def test_features_and_gradients_are_equal(pair):
    ours, theirs = (model.double() for model in pair)
    # Two images: with one, torch's Conv3d gives timm's layer a gradient that differs from finite differences.
    x = torch.randn(2, 3, 256, 256, dtype=torch.float64, requires_grad=True)
    results = []
    for model in (ours, theirs):
        out, features = model.forward_intermediates(x)
        (gradient,) = torch.autograd.grad(out.square().mean(), x)
        results.append([out, *features, gradient])
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-8, atol=1e-10)
    ours.float()
    theirs.float()


@pytest.mark.parametrize("name", ["lambdaresnet26t", "lambdaresnet50ts"])
def test_other_even_sizes_are_equal(name):
    torch.manual_seed(1)
    theirs = timm.create_model(PAIRS[name]).eval()
    ours = timm.create_model(name).eval()
    ours.load_state_dict(from_timm(theirs.state_dict()), strict=True)
    x = torch.randn(1, 3, 128, 224)
    with torch.inference_mode():
        expected = theirs(x)
        assert (ours(x) - expected).abs().max() <= 1e-5
