"""The layers that are compared: each computes what it is said to."""

import pytest
import torch
from lambda_networks import LambdaLayer as LambdaNetworksLayer
from timm.layers.bottleneck_attn import BottleneckAttn
from timm.layers.lambda_layer import LambdaLayer as TimmLayer

from lambdaresnet_zoo.layers import lambda_reference
from lambdaresnet_zoo.layers.contraction import expand_table
from lambdaresnet_zoo.tasks.benchmark import peers
from lambdaresnet_zoo.tasks.benchmark.peers import PEERS, Shape, layers_for
from lambdaresnet_zoo.weights.benchmarks import BESIDE, UNFOLDED, ZOO

SHAPE = Shape(32, 6, 5)


def _timm(layer):
    """Projections and table [K, 1, r, r] of timm's layer, under the names of this package's."""
    table = layer.pos_emb.permute(2, 0, 1)[:, None] if layer.pos_emb is not None else layer.conv_lambda.weight[..., 0]
    bias = None if layer.conv_lambda is None else layer.conv_lambda.bias
    return layer.qkv.weight, layer.norm_q, layer.norm_v, table, bias


def _lambda_networks(layer):
    weight = torch.cat([layer.to_q.weight, layer.to_k.weight, layer.to_v.weight])
    if layer.local_contexts:
        return weight, layer.norm_q, layer.norm_v, layer.pos_conv.weight[:, :, 0], layer.pos_conv.bias
    return weight, layer.norm_q, layer.norm_v, layer.rel_pos_emb.permute(2, 3, 0, 1), None


def _reference(x, weight, norm_q, norm_v, table, bias):
    """The paper's sum with a layer's own parameters."""
    k, depth = peers.QUERY_DEPTH, x.shape[1] // peers.HEADS
    maps = torch.nn.functional.conv2d(x, weight)
    q, keys, v = maps.split([peers.HEADS * k, k, depth], dim=1)
    q, v = norm_q(q), norm_v(v)
    batch, _, height, width = x.shape
    queries = q.reshape(batch, peers.HEADS, k, -1).transpose(2, 3)
    embeddings = expand_table(table, height, width)[:, 0].permute(1, 2, 0)  # [N, M, K]
    out = lambda_reference(queries, keys.flatten(2).mT, v.flatten(2).mT, embeddings)
    if bias is not None:  # on the position lambdas, as their convolutions have it
        out = out + (queries @ bias).unsqueeze(-1)
    return out.transpose(2, 3).reshape(batch, -1, height, width)


@pytest.mark.parametrize("name", [name for name in PEERS if "attention" not in name])
def test_lambda_peers_compute_the_papers_sum(name):
    torch.manual_seed(0)
    layer = PEERS[name](SHAPE).double().eval()
    x = torch.randn(2, SHAPE.dim, SHAPE.size, SHAPE.size, dtype=torch.float64)
    own = _timm(layer) if isinstance(layer, TimmLayer) else _lambda_networks(layer)
    assert isinstance(layer, (TimmLayer, LambdaNetworksLayer))
    assert own[3].shape[-1] == (2 * SHAPE.size - 1 if "global" in name else SHAPE.scope)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), _reference(x, *own))


def test_this_packages_layer_computes_the_papers_sum():
    torch.manual_seed(0)
    layer = peers.zoo(SHAPE).double().eval()
    x = torch.randn(2, SHAPE.dim, SHAPE.size, SHAPE.size, dtype=torch.float64)
    with torch.no_grad():
        own = (layer.qkv.weight, layer.norm_q, layer.norm_v, layer.position.table, None)
        torch.testing.assert_close(layer(x), _reference(x, *own))


@pytest.mark.parametrize("depth", [None, peers.QUERY_DEPTH])
def test_fused_attention_is_the_plain_one(depth):
    torch.manual_seed(0)
    plain = peers.attention(SHAPE, depth).double()
    fused = peers.attention(SHAPE, depth, fused=True).double()
    fused.load_state_dict(plain.state_dict())
    inputs = [torch.randn(2, SHAPE.dim, SHAPE.size, SHAPE.size, dtype=torch.float64) for _ in range(2)]
    x, y = (inputs[0].clone().requires_grad_() for _ in range(2))
    outputs = plain(x), fused(y)
    for out in outputs:
        out.backward(inputs[1])
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(x.grad, y.grad)
    for (name, one), other in zip(plain.named_parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=name)


def test_attention_depends_on_relative_positions_by_the_query():
    """Logits by hand: q k / sqrt(depth), and q with the embeddings of a row and a column offset."""
    torch.manual_seed(0)
    layer = peers.attention(Shape(8, 3, None)).double()
    x = torch.randn(1, 8, 3, 3, dtype=torch.float64)
    q, k, v = layer.qkv(x).flatten(2)[0].reshape(3, peers.HEADS, -1, 9)
    position = layer.pos_embed
    rows, columns = torch.arange(9) // 3, torch.arange(9) % 3
    expected = torch.empty(peers.HEADS, 2, 9, dtype=torch.float64)
    for n in range(9):
        offsets = position.height_rel[rows - rows[n] + 2] + position.width_rel[columns - columns[n] + 2]
        logits = torch.einsum("hd,hdm->hm", q[..., n], k) * 2**-0.5 + q[..., n] @ offsets.T
        expected[..., n] = torch.einsum("hm,hdm->hd", logits.softmax(-1), v)
    torch.testing.assert_close(layer(x), expected.reshape(1, 8, 3, 3))


def test_who_is_compared_where():
    local, everywhere = layers_for(SHAPE), layers_for(Shape(32, 6, None))
    assert list(local) == [ZOO, UNFOLDED, *PEERS]
    assert list(layers_for(SHAPE, training=True)) == [ZOO, *PEERS]
    assert set(local) - set(everywhere) == {"timm", "lambda-networks"}
    for name, build in {**local, **everywhere}.items():
        layer = build()
        if isinstance(layer, BottleneckAttn):
            assert layer.dim_head_qk == (peers.QUERY_DEPTH if name == BESIDE else SHAPE.dim // peers.HEADS)
        assert layer(torch.randn(2, 32, 6, 6)).shape == (2, 32, 6, 6), name


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("512,14", "not DIM,SIZE,SCOPE"),
        ("512,x,23", "not DIM,SIZE,SCOPE"),
        ("12,14,23", "multiple of 8"),
        ("64,0,23", "at least 1"),
        ("64,7,4", "odd"),
    ],
)
def test_shapes_that_are_none(text, problem):
    with pytest.raises(ValueError, match=problem):
        Shape.parse(text)


def test_shapes_are_written_as_they_are_read():
    for text in ("512,14,23", "256,28,global"):
        assert str(Shape.parse(text)) == text
