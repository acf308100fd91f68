"""The networks of d-li14 and leaderj1001 on translated weights, against their ports in plain torch."""

import pytest
import timm
import torch
from ports import DLi14, Leaderj1001, Leaderj1001V0, disturb, shortcut_biases, step

from lambdaresnet_zoo.conversion.formats import translate
from lambdaresnet_zoo.models.lambdaresnet_ports import NETWORKS
from lambdaresnet_zoo.models.network import lambda_layers

PORTS = {"dli14": DLi14, "leaderj1001": Leaderj1001, "leaderj1001_v0": Leaderj1001V0}
SMALL = ["lambdaresnet26_dli14", "lambdaresnet18_leaderj1001", "lambdaresnet18_leaderj1001_v0"]


def port(name):
    """The plain module of a registered model's depths."""
    return PORTS[name.split("_", 1)[1]](tuple(map(len, NETWORKS[name].blocks)))


@pytest.fixture(scope="module", params=SMALL)
def pair(request):
    """The port, as if trained, and ours with its weights.

    In float64 from the start: deep networks amplify what orders round, and what the translation does,
    which takes biases into batch norms.
    """
    torch.manual_seed(0)
    theirs = port(request.param).double()
    disturb(theirs, torch.randn(2, 3, 96, 96, dtype=torch.float64))
    ours = timm.create_model(request.param).double().eval()
    ours.load_state_dict(translate(theirs.state_dict()).state, strict=True)
    return ours, theirs


@pytest.mark.parametrize("size", [(96, 96), (97, 130), pytest.param((224, 224), marks=pytest.mark.slow)])
def test_outputs_are_equal(pair, size):
    ours, theirs = pair
    x = torch.randn(1, 3, *size, dtype=torch.float64)
    with torch.inference_mode():
        expected = theirs(x)
        assert (ours(x) - expected).abs().max() <= 1e-10 * expected.abs().max()
        other = theirs(x.flip(3))
    assert (other - expected).abs().max() > 1e-2 * expected.abs().max()  # it depends on the input


@pytest.mark.parametrize("name", SMALL)
def test_a_training_step_is_equal(name):
    """Gradients of the input and of every parameter, and the running statistics, in one step of descent."""
    torch.manual_seed(0)
    x = torch.randn(3, 3, 64, 79, dtype=torch.float64)
    theirs = port(name).double()
    disturb(theirs, x)
    before = translate(theirs.state_dict()).state
    ours = timm.create_model(name, drop_rate=0.3 if isinstance(theirs, Leaderj1001) else 0).double()
    ours.load_state_dict(before, strict=True)
    before = {key: value.clone() for key, value in before.items()}
    torch.testing.assert_close(step(ours, x), step(theirs, x), rtol=1e-7, atol=1e-9)
    after = translate(theirs.state_dict()).state
    for key, value in ours.state_dict().items():
        assert not torch.equal(value, before[key]), key
        torch.testing.assert_close(value, after[key], rtol=1e-7, atol=1e-9, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("name", NETWORKS)
def test_every_depth_is_complete(name):
    with torch.device("meta"):
        theirs = port(name)
    ours = timm.create_model(name, device="meta")
    translation = translate(theirs.state_dict())
    assert translation.candidates == (name,)
    shapes = {key: value.shape for key, value in translation.state.items()}
    assert shapes == {key: value.shape for key, value in ours.state_dict().items()}
    biases = shortcut_biases(theirs)
    assert len(biases) == len(translation.folded) == (4 if "leaderj1001" in name else 0)
    count = sum(parameter.numel() for parameter in theirs.parameters()) - sum(bias.numel() for bias in biases)
    assert sum(parameter.numel() for parameter in ours.parameters()) == count


def test_the_networks_differ_in_their_stems():
    for name, reduction in zip(SMALL, (4, 4, 2), strict=True):
        model = timm.create_model(name, device="meta")
        assert model.stem(torch.empty(1, 3, 64, 64, device="meta")).shape[2:] == (64 // reduction, 64 // reduction)
        assert model.get_submodule(model.default_cfg["first_conv"]).in_channels == 3
        assert not hasattr(model.stages[0][0], "se")
        model.set_input_size(96)  # any size works: nothing to do, and no error


@pytest.mark.parametrize("options", [{}, {"scope": 7}])
def test_where_the_networks_pool(options):
    """Strides of the 3x3 pools, layer by layer; an option of the layers changes none of it."""
    pools = {
        "lambdaresnet26_dli14": [0, 0, 2, 0, 2, 0, 2, 0],
        "lambdaresnet18_leaderj1001": [1, 0, 2, 0, 2, 0, 2, 0],
        "lambdaresnet18_leaderj1001_v0": [2, 0, 2, 0, 2, 0, 2, 0],
    }
    for name, strides in pools.items():
        layers = lambda_layers(timm.create_model(name, device="meta", self_attn_kwargs=options))
        assert [getattr(layer.pool, "stride", 0) for layer in layers] == strides
        assert all(layer.pool.count_include_pad for layer in layers if hasattr(layer.pool, "stride"))
        assert {layer.scope for layer in layers} == {options.get("scope", 23)}
