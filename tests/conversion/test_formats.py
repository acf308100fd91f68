"""Weights in public layouts: layers against their ports, what is recognised, and what is refused."""

import itertools

import pytest
import timm
import torch
from lambda_networks import LambdaLayer as Lucidrains
from ports import DLi14, DLi14Layer, Leaderj1001, Leaderj1001V0, OldLucidrains, disturb, step

import lambdaresnet_zoo
from lambdaresnet_zoo.conversion.formats import translate
from lambdaresnet_zoo.errors import UserError
from lambdaresnet_zoo.layers import LambdaLayer


def assert_all_is_accounted_for(state, translation):
    """Every source key is a source, folded, or kept under its own name; every result says where it is from."""
    assert set(translation.sources) == set(translation.state)
    used = [key for sources in translation.sources.values() for key in sources.split(", ")]
    assert sorted([*used, *translation.folded]) == sorted(state)


def assert_layer_is_translated(theirs, size):
    """Outputs in float32; then gradients of all and running statistics, by a training step in float64."""
    dim = theirs.to_q.in_channels
    disturb(theirs, torch.randn(4, dim, *size))
    state = theirs.state_dict()
    translation = translate(state)
    assert_all_is_accounted_for(state, translation)
    assert translation.candidates == ()
    assert translation.folded == {}
    ours = LambdaLayer(**translation.layer).eval()
    ours.load_state_dict(translation.state, strict=True)
    x = torch.randn(2, dim, *size)
    with torch.inference_mode():
        expected = theirs(x)
        assert (ours(x) - expected).abs().max() <= 1e-5 * expected.abs().max()
    theirs, ours, x = theirs.double(), ours.double(), x.double()
    torch.testing.assert_close(step(ours, x), step(theirs, x), rtol=1e-8, atol=1e-9)
    after = translate(theirs.state_dict()).state
    for key, value in ours.state_dict().items():
        assert not torch.equal(value.float(), translation.state[key].float()) or "num_batches" in key, key
        torch.testing.assert_close(value, after[key], rtol=1e-8, atol=1e-9, msg=lambda m, key=key: f"{key}: {m}")
    return translation


@pytest.mark.parametrize("u", [1, 4])
@pytest.mark.parametrize("size", [(5, 5), (6, 9), (11, 3)])
@pytest.mark.parametrize("dim_out", [12, 20])
def test_lucidrains_local_layers(u, size, dim_out):
    torch.manual_seed(0)
    theirs = Lucidrains(12, dim_out=dim_out, dim_k=3, heads=4, dim_u=u, r=5)
    translation = assert_layer_is_translated(theirs, size)
    assert translation.format == "lambda-networks 0.2 to 0.4 layer, local"
    assert translation.layer["scope"] == 5


@pytest.mark.parametrize("u", [1, 4])
@pytest.mark.parametrize("n", [4, 5])
@pytest.mark.filterwarnings("ignore:torch.meshgrid")
def test_lucidrains_global_layers(u, n):
    torch.manual_seed(0)
    theirs = Lucidrains(12, dim_out=20, dim_k=3, heads=2, dim_u=u, n=n)
    translation = assert_layer_is_translated(theirs, (n, n))
    assert translation.format == "lambda-networks 0.4 layer, global"
    assert translation.layer["feat_size"] == (n, n)


@pytest.mark.parametrize("u", [1, 4])
@pytest.mark.parametrize("size", [(5, 5), (6, 9)])
def test_lucidrains_local_layers_before_pos_conv(u, size):
    torch.manual_seed(0)
    translation = assert_layer_is_translated(OldLucidrains(12, 20, k=3, u=u, heads=4, r=5), size)
    assert translation.format == "lambda-networks 0.1 layer, local"


def tied(table, height, width):
    """[N, N, K, U] embeddings whose entry for a pair depends on its offset alone, a pair at a time."""
    places = list(itertools.product(range(height), range(width)))
    rows = [[table[:, :, cy - y + height - 1, cx - x + width - 1] for cy, cx in places] for y, x in places]
    return torch.stack([torch.stack(row) for row in rows])


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (2, 4), (5, 3), (6, 1)])
def test_untied_embeddings_that_are_relative_become_a_table(size):
    height, width = size
    theirs = OldLucidrains(12, 20, k=3, u=1, heads=4, n=height * width)
    table = torch.randn(3, 1, 2 * height - 1, 2 * width - 1)
    theirs.pos_emb.data = tied(table, height, width)
    if width == 1 and height > 1:  # a column reads like a row, or like any other shape
        with pytest.raises(UserError, match="of 6x6 pairs fit grids of more than one shape"):
            translate(theirs.state_dict())
        return
    translation = translate(theirs.state_dict())
    assert translation.format == "lambda-networks 0.0 to 0.3 layer, global"
    assert_all_is_accounted_for(theirs.state_dict(), translation)
    assert torch.equal(translation.state["position.table"], table)
    assert translation.layer["feat_size"] == size
    disturb(theirs, torch.randn(4, 12, *size))
    ours = LambdaLayer(**translation.layer).eval()
    ours.load_state_dict(translate(theirs.state_dict()).state, strict=True)
    x = torch.randn(2, 12, *size)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_untied_embeddings_that_are_not_relative_are_refused():
    theirs = OldLucidrains(12, 20, k=3, u=1, heads=4, n=9)
    with pytest.raises(UserError, match="of 9x9 pairs do not depend on their offset alone"):
        translate(theirs.state_dict())
    theirs.pos_emb.data = tied(torch.randn(3, 1, 5, 5), 3, 3)
    theirs.pos_emb.data[4, 4, 0, 0] += 1e-6  # exactly, or not at all
    with pytest.raises(UserError, match="do not depend on their offset alone"):
        translate(theirs.state_dict())


def test_global_embeddings_whose_channel_order_is_unknown_are_refused():
    theirs = OldLucidrains(12, 20, k=3, u=2, heads=4, n=4)
    theirs.pos_emb.data = tied(torch.randn(3, 2, 3, 3), 2, 2)
    with pytest.raises(UserError, match=r"intra-depth 2 cannot be converted: .*before release 0\.2"):
        translate(theirs.state_dict())


@pytest.mark.parametrize("u", [1, 3])
def test_channel_orders_of_d_li14(u):
    """Its networks have an intra-depth of one; its layer orders channels for any."""
    torch.manual_seed(0)
    theirs = DLi14((1, 1, 1, 1))
    theirs.layer2[0].conv2 = layer = DLi14Layer(128, 2, u=u, r=5)
    disturb(layer, torch.randn(4, 128, 9, 7))
    state = translate(theirs.state_dict()).state
    ours = LambdaLayer(128, stride=2, pool="avg3_counted", position_bias=True, intra_depth=u, scope=5).eval()
    prefix = "stages.1.0.self_attn."
    ours.load_state_dict({key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)})
    x = torch.randn(2, 128, 9, 7)
    with torch.inference_mode():
        expected = layer(x)
        assert (ours(x) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("port", [DLi14, Leaderj1001, Leaderj1001V0])
def test_networks_are_accounted_for(port):
    theirs = port((2, 1, 1, 1))
    state = theirs.state_dict() | {"layer1.0.conv2.extra": torch.zeros(1), "teacher.weight": torch.zeros(1)}
    translation = translate(state)
    assert_all_is_accounted_for(state, translation)
    assert {"layer1.0.conv2.extra", "teacher.weight"} < set(translation.state)
    assert len(translation.candidates) == (5 if port is DLi14 else 7)  # no depth fits: any of them
    folded = {f"layer{n}.0.shortcut.0.bias": f"into stages.{n - 1}.0.shortcut.bn.running_mean" for n in range(1, 5)}
    assert translation.folded == ({} if port is DLi14 else folded)


@pytest.mark.parametrize(
    ("port", "name", "value"),
    [
        (Leaderj1001, "lambdaresnet18_leaderj1001", "values.0.weight"),
        (Leaderj1001V0, "lambdaresnet18_leaderj1001_v0", "values.weight"),
    ],
)
def test_missing_tensors_stay_missing(port, name, value):
    """Of an incomplete projection nothing is joined, and old checkpoints count no batches."""
    state = {k: v for k, v in port((2, 2, 2, 2)).state_dict().items() if "num_batches_tracked" not in k}
    del state["layer1.1.conv2.0.keys.0.weight"], state["layer2.0.shortcut.1.running_mean"]
    translation = translate(state)
    assert_all_is_accounted_for(state, translation)
    assert translation.candidates == (name,)
    own = timm.create_model(name, device="meta").state_dict()
    missing = {key for key in own.keys() - translation.state.keys() if "num_batches_tracked" not in key}
    assert missing == {"stages.0.1.self_attn.qkv.weight", "stages.1.0.shortcut.bn.running_mean"}
    assert translation.state.keys() - own.keys() == {
        "layer1.1.conv2.0.queries.0.weight",
        f"layer1.1.conv2.0.{value}",
        "stages.1.0.shortcut.conv.bias",
    }


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("lambda_resnet26t", "lambdaresnet26t"),
        ("lambda_resnet26rpt_256", "lambdaresnet26rpt_256"),
        ("lambda_resnet50ts", "lambdaresnet50ts"),
    ],
)
def test_timms_networks(theirs, ours):
    state = timm.create_model(theirs).state_dict()
    translation = translate(state)
    assert translation.format == "timm lambda network"
    assert translation.candidates == (ours,)
    assert_all_is_accounted_for(state, translation)
    timm.create_model(ours).load_state_dict(translation.state, strict=True)


@pytest.mark.parametrize("name", ["lambdaresnet26t", "lambdaresnet32px_conv", "lambda_mobilenetv2_100"])
def test_our_own_networks(name):
    state = timm.create_model(name, device="meta").state_dict()
    translation = translate(state)
    assert translation.format == "LambdaResNet Zoo"
    assert translation.state == state
    assert translation.sources == {key: key for key in state}
    assert translation.candidates == tuple(lambdaresnet_zoo.list_models())
    assert translation.layer is None


@pytest.mark.parametrize("name", lambdaresnet_zoo.list_models())
def test_every_model_is_recognised(name):
    assert translate(timm.create_model(name, device="meta").state_dict()).format == "LambdaResNet Zoo"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dim_out": 12, "num_heads": 3, "query_depth": 5, "intra_depth": 2, "scope": 3},
        {"scope": None, "feat_size": (3, 4)},
        {"content": False},
        {"norm_k": True, "qkv_bias": True, "position_bias": True},
    ],
)
def test_our_own_layers(options):
    state = LambdaLayer(8, **options).state_dict()
    translation = translate(state)
    assert translation.format == "LambdaResNet Zoo layer"
    assert translation.candidates == ()
    ours = LambdaLayer(**translation.layer)
    ours.load_state_dict(translation.state, strict=True)
    for name in ("dim", "dim_out", "num_heads", "query_depth", "intra_depth", "scope"):
        assert getattr(ours, name) == getattr(LambdaLayer(8, **options), name)


def state_of(name):
    return timm.create_model(name, device="meta").state_dict()


def lucidrains(**changes):
    state = Lucidrains(12, dim_k=3, r=5).state_dict() | changes
    return {key: value for key, value in state.items() if value is not None}


def leaderj1001(embedding, port=Leaderj1001):
    return port((1, 1, 1, 1)).state_dict() | {"layer1.0.conv2.0.embedding": embedding}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: {}, "unknown layout of weights: known are LambdaResNet Zoo, timm lambda network, "
         "d-li14/lambda.pytorch, leaderj1001/LambdaNetworks, earlier leaderj1001/LambdaNetworks, lambda-networks 0.4, "
         ".*; the keys here are none$"),
        (lambda: state_of("resnet18"), r"the keys here are conv1.weight, bn1.weight, bn1.bias, \.\.\.$"),
        (lambda: state_of("mobilenetv2_100"), "unknown layout"),
        (lambda: state_of("halonet26t"), "unknown layout"),
        (lambda: {"net.to_q.weight": torch.zeros(1)}, "unknown layout.*the keys here are net.to_q.weight$"),
        (lambda: lucidrains(**{"to_k.weight": None}), "look like lambda-networks 0.2 to 0.4 layer, local, but there is "
         "no qkv.weight"),
        (lambda: lucidrains(**{"norm_q.weight": torch.ones(10)}), "shapes do not fit: .*depth 3, intra-depth 1"),
        (lambda: lucidrains(**{"pos_conv.weight": torch.ones(3, 1, 5, 5)}), r"shapes do not fit: .*\[3, 1, 5, 5\]"),
        (lambda: leaderj1001(torch.ones(16, 1)), "look like leaderj1001/LambdaNetworks, but shapes do not fit"),
        (lambda: leaderj1001(torch.ones(16, 1), Leaderj1001V0), "look like earlier leaderj1001/LambdaNetworks, but "),
        (lambda: leaderj1001(torch.ones(16, 4, 1, 7, 7)), "intra-depth 4 cannot be converted: its content "
         r"part reads values as \(v u\)"),
        (lambda: leaderj1001(torch.ones(16, 4, 1, 7, 7), Leaderj1001V0), "of earlier leaderj1001/LambdaNetworks with "
         "intra-depth 4 cannot be converted"),
    ],
)  # fmt: skip
def test_what_cannot_be_converted_is_refused_in_one_line(make, message):
    with pytest.raises(UserError, match=message) as error:
        translate(make())
    assert "\n" not in str(error.value)


def test_the_source_is_not_changed():
    networks = [port((1, 1, 1, 1)) for port in (Leaderj1001, Leaderj1001V0)]
    for theirs in (Lucidrains(12, dim_k=3, r=5, dim_u=2), *networks):
        state = theirs.state_dict()
        before = {key: value.clone() for key, value in state.items()}
        translate(state)
        assert state.keys() == before.keys()
        assert all(torch.equal(value, before[key]) for key, value in state.items())
