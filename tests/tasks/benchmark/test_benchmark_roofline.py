"""Operations as they are counted, by hand."""

import pytest
import torch
from torch import nn

from lambdaresnet_zoo.layers import LambdaLayer
from lambdaresnet_zoo.layers.projection import Projection
from lambdaresnet_zoo.tasks.benchmark import peers, roofline
from lambdaresnet_zoo.tasks.benchmark.compare import Limits, Setting
from lambdaresnet_zoo.tasks.benchmark.peers import Shape

CPU = Setting(torch.device("cpu"), limits=Limits(repeats=1))
SHAPE = Shape(32, 6, 5)
N, K, V, H = 36, peers.QUERY_DEPTH, 8, peers.HEADS


@pytest.mark.parametrize(("mode", "passes"), [("forward", 1), ("training", 3)])
def test_run_operations_of_a_projection(mode, passes):
    for projection in (nn.Conv2d(32, 32, 1), Projection(32, 32)):  # which adds the gradients of images in place
        assert roofline.run_flops(projection, SHAPE, 2, mode, CPU) == passes * 2 * 2 * N * 32 * 32


def test_run_operations_of_attention():
    layer = peers.attention(SHAPE)
    projections = N * 32 * 3 * 32
    logits = H * N * N * V + 2 * H * N * V * 11  # with keys, and with 11 offsets of rows and of columns
    assert roofline.run_flops(layer, SHAPE, 2, "forward", CPU) == 2 * 2 * (projections + logits + H * N * N * V)


def test_run_operations_are_those_of_the_order_taken():
    """timm's local layer convolves, padding counted, and its global one takes every pair."""
    local = peers.timm_local(SHAPE)
    common = N * 32 * (H * K + K + V) + N * K * V + 2 * H * N * K * V
    assert roofline.run_flops(local, SHAPE, 2, "forward", CPU) == 2 * 2 * (common + N * 25 * K * V)
    everywhere = peers.timm_global(SHAPE)
    assert roofline.run_flops(everywhere, SHAPE, 2, "forward", CPU) == 2 * 2 * (common + N * N * K * V)


def test_run_operations_of_the_layer_by_queries():
    layer = LambdaLayer(32, num_heads=H, query_depth=K, scope=5, order="query")
    content = N * K * V + H * N * K * V
    position = H * N * N * (K + V)
    projection = N * 32 * (H * K + K + V)
    forward = projection + content + position + H * N * K * K  # content's scores, by an identity
    assert roofline.run_flops(layer, SHAPE, 2, "forward", CPU) == 2 * 2 * forward


@pytest.mark.parametrize("scope", [5, None])
def test_nominal_operations(scope):
    pairs = 0
    for query in range(N):
        for context in range(N):
            reach = max(abs(query // 6 - context // 6), abs(query % 6 - context % 6))
            pairs += scope is None or reach <= scope // 2
    adds = N * 32 * (H * K + K + V) + N * K * V + pairs * K * V + 2 * H * N * K * V
    assert roofline.nominal_flops(Shape(32, 6, scope), 3, "forward") == 2 * 3 * adds
    assert roofline.nominal_flops(Shape(32, 6, scope), 3, "training") == 3 * 2 * 3 * adds


def test_the_row_agrees_with_itself(monkeypatch):
    monkeypatch.setitem(roofline.MATMUL, "cpu", 256)
    (row,) = roofline.measure(SHAPE, 2, "forward", CPU)
    assert set(row) == set(roofline.FIELDS) and row["status"] == "measured"
    rate = 2 * 256**3 / 1e6 / float(row["milliseconds_matmul"])
    assert float(row["gflops_matmul"]) == pytest.approx(rate, rel=0.01)
    share = float(row["gflops_run"]) / rate
    assert float(row["share_run"]) == pytest.approx(share, rel=0.05, abs=1e-4)  # of one round
    assert float(row["gflop_run"]) * 1e9 >= 2 * 2 * N * 32 * (H * K + K + V)
