"""Tiles, chunks, the cache and recomputation: held against the plain orders, outputs and gradients."""

import copy
import io
import itertools
import logging
import math
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from contractions import NAMES, tensors
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lambdaresnet_zoo.layers import LambdaLayer, planned, tiles
from lambdaresnet_zoo.layers.contraction import expand_table, plain_output
from lambdaresnet_zoo.layers.plan import Plan
from lambdaresnet_zoo.layers.scratch import KEPT_BYTES, Scratch, release
from lambdaresnet_zoo.layers.tiles import Tiling, embeddings, embeddings_backward, make_axis


def tilings(size, scope):
    """Every pair of tile sides, rows padded and clipped, by embeddings and by offset, one to three images at once."""
    (height, width), (rows, columns) = size, scope
    for tile_y, tile_x, padded, chunk, by_offset in itertools.product(
        {1, 2, 3, height}, {1, 2, 4, width}, (True, False), (1, 2, 3), (True, False)
    ):
        if tile_y <= height and tile_x <= width:
            y, x = make_axis(height, rows, tile_y, padded), make_axis(width, columns, tile_x)
            yield Tiling(y, x, chunk, by_offset)
            clipped = make_axis(width, columns, tile_x, padded=False)
            if by_offset and clipped.seen and chunk == 1:
                yield Tiling(y, clipped, chunk, by_offset)


@pytest.mark.parametrize(
    ("size", "scope", "u"),
    [
        ((5, 6), (3, 5), 1),
        ((4, 7), (7, 3), 2),
        ((3, 3), (1, 1), 1),
        ((3, 4), (9, 11), 1),
        ((7, 3), (5, 3), 1),
        ((3, 5), (9, 11), 2),
        ((3, 4), (3, 5), 1),
        ((3, 5), (5, 9), 2),
    ],
)
def test_every_tiling_is_the_plain_order(size, scope, u):
    given = tensors(size, scope, u=u)
    expected = plain_output(*given, *size, "lambda")
    cotangent = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, given, cotangent)
    held = [tensor.detach() for tensor in given]
    of_position = plain_output(*held[:3], None, *size, "lambda")
    count = 0
    for tiling in tilings(size, scope):
        plan = Plan("query", tiling, tiling.chunk, 0, 0)
        for lambdas, cache in itertools.product((held[3], None), (False, True)):  # kept embeddings count forwards
            output = planned.run(plan, *held[:3], lambdas, *size, cache=cache)
            plain = expected.detach() if lambdas is not None else of_position
            torch.testing.assert_close(output, plain, rtol=1e-10, atol=1e-10, msg=lambda m, t=tiling: f"{t}: {m}")
        found = planned.gradients(plan, cotangent, *held, *size)
        for name, got, want in zip(NAMES, found, wanted, strict=True):
            torch.testing.assert_close(
                got, want, rtol=1e-10, atol=1e-10, msg=lambda m, n=name, t=tiling: f"{n} {t}: {m}"
            )
        count += 1
    assert count >= 24


@pytest.mark.parametrize("order", ["lambda", "convolution"])
@pytest.mark.parametrize("chunk", [1, 2, 5])
@pytest.mark.parametrize(("size", "scope"), [((4, 5), (5, 3)), ((3, 4), (9, 7)), ((1, 6), (3, 11))])
def test_chunks_of_the_other_orders_are_the_plain_order(order, chunk, size, scope):
    given = tensors(size, scope, batch=5, u=2)
    expected = plain_output(*given, *size, "query")
    cotangent = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, given, cotangent)
    held = [tensor.detach() for tensor in given]
    plan = Plan(order, None, chunk, 0, 0)
    torch.testing.assert_close(planned.run(plan, *held, *size), expected.detach())
    of_position = plain_output(*held[:3], None, *size, "query")
    torch.testing.assert_close(planned.run(plan, *held[:3], None, *size), of_position)
    for got, want in zip(planned.gradients(plan, cotangent, *held, *size), wanted, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("size", [(3, 4), (1, 1), (1, 5)])
@pytest.mark.parametrize("scope", [(3, 3), (9, 7), (1, 5)])
def test_embeddings_are_the_expanded_table(size, scope):
    torch.manual_seed(0)
    table = torch.randn(2, 3, *scope, dtype=torch.float64)
    tiling = Tiling(make_axis(size[0], scope[0], size[0]), make_axis(size[1], scope[1], size[1]), 1)
    block = embeddings(table, tiling)
    expected = expand_table(table, *size).permute(2, 0, 1, 3).flip(3)  # [N, K, U, M], from the last of the context
    assert torch.equal(block, expected.flatten(2))
    with_content = embeddings(table, tiling, 0, True, Scratch(table, "test"))
    assert torch.equal(with_content[..., :-2], block) and (with_content[..., -2:] == torch.eye(2)).all()
    gradient = torch.randn_like(block)
    table.requires_grad_()
    expected = expand_table(table, *size).permute(2, 0, 1, 3).flip(3).flatten(2)
    wanted = torch.autograd.grad(expected, table, gradient)[0]
    torch.testing.assert_close(embeddings_backward(gradient, table, tiling), wanted)


def layer_and_input(**options):
    torch.manual_seed(0)
    layer = LambdaLayer(8, num_heads=2, query_depth=3, scope=5, **options).eval()
    return layer, torch.randn(2, 8, 4, 5)


def fresh(layer, x):
    """The output of a layer that has seen nothing yet."""
    with torch.no_grad():
        return copy.deepcopy(layer)(x)


def step(layer):
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    layer(torch.randn(2, 8, 4, 5)).square().mean().backward()
    optimizer.step()


EDITS = {
    "a training step": step,
    "an edit in place": lambda layer: layer.position.table.detach().mul_(2),
    "an edit through .data": lambda layer: layer.position.table.data.mul_(2),
    "load_state_dict": lambda layer: layer.load_state_dict(
        LambdaLayer(8, num_heads=2, query_depth=3, scope=5).state_dict()
    ),
    "another parameter": lambda layer: setattr(layer.position, "table", nn.Parameter(layer.position.table + 1)),
    "double()": lambda layer: layer.double(),
    "resize": lambda layer: layer.position.resize((3, 7)),
}


@pytest.mark.parametrize("edit", EDITS)
def test_kept_embeddings_never_go_stale(edit):
    layer, x = layer_and_input()
    with torch.no_grad():
        before = layer(x)
        assert layer.position.table in tiles._KEPT
        with torch.enable_grad():
            EDITS[edit](layer)
        x = x.to(layer.position.table.dtype)
        after = layer(x)
    assert not torch.allclose(after.float(), before, atol=1e-3) or edit == "double()"
    torch.testing.assert_close(after, fresh(layer, x))


def test_embeddings_are_built_once_per_size_in_evaluation(monkeypatch):
    layer, _ = layer_and_input()
    built = []
    plain = tiles.embeddings
    monkeypatch.setattr(tiles, "embeddings", lambda *args: built.append(args[2:]) or plain(*args))
    counts = []
    with torch.inference_mode():
        for size in ((4, 5), (4, 5), (6, 3), (4, 5), (6, 3)):
            layer(torch.randn(2, 8, *size))
            counts.append(len(built))
    assert 0 < counts[0] == counts[1] < counts[2] == counts[4]


def test_kept_embeddings_are_neither_saved_nor_copied():
    layer, x = layer_and_input()
    keys, size = list(layer.state_dict()), len(pickle.dumps(layer))
    with torch.no_grad():
        layer(x)
    assert list(layer.state_dict()) == keys and len(pickle.dumps(layer)) == size
    stream = io.BytesIO()
    torch.save(layer.state_dict(), stream)
    twin = copy.deepcopy(layer)
    assert twin.position.table not in tiles._KEPT
    kept = len(tiles._KEPT)
    del layer
    assert len(tiles._KEPT) == kept - 1  # they go with the table


def saved_bytes(layer, x):
    """Bytes that autograd keeps of a forward pass, parameters and the input apart."""
    kept = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in layer.parameters()} | {
        x.untyped_storage().data_ptr()
    }

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x)  # the backward pass, which computes anew, has its own
    return sum(kept.values())


@pytest.mark.parametrize("order", ["auto", "lambda", "query", "convolution"])
def test_training_keeps_neither_lambdas_nor_scores(order):
    layer = LambdaLayer(256, scope=7, order=order)
    x = torch.randn(4, 256, 12, 12, requires_grad=True)
    n, k, v = 144, 16, 64
    lambdas, scores = 4 * 4 * n * k * v, 4 * 4 * 4 * n * n  # bytes: b n k v, b h n m
    projections = 4 * sum(layer.split_dims) * n * 4
    assert saved_bytes(layer, x) < 3 * projections < min(lambdas, scores)


@pytest.mark.parametrize("order", ["query", "lambda"])
def test_gradients_of_gradients(order):
    torch.manual_seed(0)
    layer = LambdaLayer(4, num_heads=2, query_depth=2, scope=3, order=order, norm_q=False, norm_v=False).double()
    x = torch.randn(1, 4, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x, *_: layer(x), (x, *layer.parameters()), fast_mode=True)


def test_the_operators_of_compiled_graphs():
    given = tensors((3, 4), (3, 3), dtype=torch.float32)
    for lambdas in (given[3], None):
        arguments = (*given[:3], lambdas, 3, 4, "auto", 0.0, True)
        torch.library.opcheck(torch.ops.lambdaresnet_zoo.contract.default, arguments)


@pytest.mark.parametrize("scope", [(3, 3), (5, 7)])
def test_the_operators_of_compiled_graphs_elsewhere_than_on_a_cpu(scope, monkeypatch):
    monkeypatch.setattr(planned, "_in_few_calls", lambda tiling, _: tiling.whole)
    given = tensors((3, 4), scope, u=2, dtype=torch.float32)
    torch.library.opcheck(torch.ops.lambdaresnet_zoo.contract.default, (*given, 3, 4, "query", 0.0, True))
    compiled = torch.compile(lambda *all_of_it: planned.grid_output(*all_of_it, 3, 4, "query"), fullgraph=True)
    expected = plain_output(*given, 3, 4, "lambda")
    output = compiled(*given)
    torch.testing.assert_close(output, expected)
    along = torch.randn_like(expected)
    for found, wanted in zip(*(torch.autograd.grad(out, given, along) for out in (output, expected)), strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_compiled_layer_is_one_graph_right_for_every_size(dynamic):
    layer, _ = layer_and_input()
    layer.train()
    graphs = []
    compiled = torch.compile(
        layer, fullgraph=True, backend=lambda graph, _: graphs.append(graph) or graph, dynamic=dynamic
    )
    for size in ((4, 5), (6, 3), (20, 21)):
        x = torch.randn(2, 8, *size, requires_grad=True)
        out, expected = compiled(x), copy.deepcopy(layer)(x)
        torch.testing.assert_close(out, expected)
        cotangent = torch.randn_like(out)
        got, want = (torch.autograd.grad(o, x, cotangent)[0] for o in (out, expected))
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    if dynamic:
        assert len(graphs) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_trains_without_nan(dtype):
    torch.manual_seed(0)
    layer = nn.Sequential(
        LambdaLayer(16, scope=5), nn.BatchNorm2d(16), nn.ReLU(), LambdaLayer(16, scope=None, feat_size=6)
    )
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01, momentum=0.9)
    x, target = torch.randn(2, 8, 16, 6, 6)
    losses = []
    for _ in range(1000):
        with torch.autocast("cpu", dtype=dtype):
            loss = (layer(x).float() - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(layer.parameters(), 1.0, error_if_nonfinite=True)
        optimizer.step()
        losses.append(loss.item())
    assert all(math.isfinite(value) for value in losses) and losses[-1] < 1 < losses[0]


def test_that_no_kernel_serves_is_told_once_at_debug_level(caplog):
    layer, x = layer_and_input()
    planned._told.clear()
    with caplog.at_level(logging.DEBUG, logger="lambdaresnet_zoo"):
        layer(x), layer(x)
    assert [record.levelname for record in caplog.records if "no fused kernel" in record.message] == ["DEBUG"]


@pytest.mark.parametrize(("queries", "context"), [(1, 1), (1, 4), (3, 1), (4, 6)])
def test_sums_over_equal_offsets_are_one_on_every_device(queries, context):
    torch.manual_seed(0)
    pairs = torch.randn(2, queries, 3, context, dtype=torch.float64).transpose(1, 2)
    expected = torch.zeros(2, 3, queries + context - 1, dtype=torch.float64)
    for i, j in itertools.product(range(queries), range(context)):
        expected[..., i + j] += pairs[..., i, j]
    torch.testing.assert_close(tiles._sum_diagonals(pairs), expected)
    torch.testing.assert_close(tiles._shift_and_sum(pairs), expected)


def test_scratch_is_used_again_and_what_it_hands_out_at_once_is_apart():
    like = torch.zeros(1, dtype=torch.float64)
    with torch.inference_mode():  # what is made first there serves outside, too
        first, second = Scratch(like, "a use")((3, 5), (7,))
    assert not first.is_inference() and first.shape == (3, 5) and second.shape == (7,) and first.dtype == torch.float64
    first.fill_(1)
    second.fill_(2)
    assert first.eq(1).all()
    again = Scratch(like, "a use")
    assert again((5, 3))[0].data_ptr() == first.data_ptr()
    assert again((100,))[0].shape == (100,)
    others = Scratch(like, "another use"), Scratch(like.float(), "a use")
    assert len({scratch((4,))[0].data_ptr() for scratch in (again, *others)}) == 3


def test_scratch_is_kept_up_to_a_size_and_given_back():
    like = nn.Parameter(torch.zeros(1))
    large = KEPT_BYTES // 4 + 1

    def kept(use):
        handed = Scratch(like, use)._handed
        return 0 if handed is None else handed.buffer.numel()

    assert Scratch(like, "large")((large,))[0].shape == (large,)
    assert kept("large") == 0
    Scratch(like, "small")((7,))
    assert kept("small") >= 7
    release()
    assert kept("small") == 0
    with FakeTensorMode():  # as torch.export and timm's checks of shapes do
        Scratch(torch.zeros(1), "small")((7,))
    assert kept("small") == 0


def test_threads_that_compute_at_once_disturb_no_other():
    layer, _ = layer_and_input()
    inputs = [torch.randn(2, 8, 4, 5) for _ in range(4)]

    def passes(x):
        outputs = []
        for _ in range(25):
            with torch.no_grad():
                outputs.append(layer(x))
            x = x.detach().requires_grad_()
            outputs += torch.autograd.grad(layer(x).sin().sum(), x)
        return outputs

    expected = [passes(x)[:2] * 25 for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for outputs, wanted in zip(pool.map(passes, inputs), expected, strict=True):
            torch.testing.assert_close(outputs, wanted)
