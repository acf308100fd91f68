"""What the tests of `convert` share: names, and folders held against the models that they came from."""

import copy

import timm
import torch

NAME = "test_lambdaresnet"
TWINS = ("lambdaresnet50_leaderj1001", "lambdaresnet50_llll")  # the same tensors: their pools alone differ
FILES = {"README.md", "config.json", "lambdaresnet_zoo_remote.py", "model.safetensors"}


def outputs(model, size, channels=3):
    """In float64: rounding differs from one order of contraction to another, and deep networks amplify it."""
    x = torch.randn(2, channels, *((size, size) if isinstance(size, int) else size), generator=torch.manual_seed(0))
    with torch.inference_mode():
        return copy.deepcopy(model).eval().double()(x.double())


def load(folder, **kwargs):
    return timm.create_model(f"local-dir:{folder}", pretrained=True, **kwargs)


def assert_loads_as(folder, theirs, size=96, channels=3, tolerance=1e-5):
    """The folder's model gives the outputs of another, as do its classes and channels."""
    expected = outputs(theirs, size, channels)
    found = outputs(load(folder), size, channels)
    assert expected.std() > 0.01
    assert (found - expected).abs().max() <= tolerance * max(1, expected.abs().max())
