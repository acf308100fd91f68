"""The module against the reference, outputs and gradients, for every option and every order."""

import copy
import io
import itertools
import shutil

import pytest
import torch
from torch import nn

from lambdaresnet_zoo.layers import LambdaLayer, lambda_reference
from lambdaresnet_zoo.layers.contraction import ORDERS, choose_order, content_lambda
from lambdaresnet_zoo.layers.lambda_layer import POOLS


def oracle(layer: LambdaLayer, x: torch.Tensor) -> torch.Tensor:
    """The layer by the reference: projections and norms are the layer's, the sums are not."""
    batch, _, height, width = x.shape
    n = height * width
    h, k, u, v = layer.num_heads, layer.query_depth, layer.intra_depth, layer.value_depth
    queries, keys, values = layer.qkv(x).split(layer.split_dims, dim=1)
    queries_map = layer.norm_q(queries)
    queries = queries_map.reshape(batch, h, k, n).transpose(2, 3)
    if layer.query_norm == "softmax":
        queries = queries.softmax(-1)
    elif layer.query_norm == "l2":
        queries = queries / queries.norm(dim=-1, keepdim=True)
    keys, values = layer.norm_k(keys), layer.norm_v(values)
    # torch's batch norm has wrong gradients for a batch of one if its incoming gradient is transposed.
    for projected in (queries_map, keys, values):
        if projected.numel():  # without content there are no keys
            projected.register_hook(torch.Tensor.contiguous)
    values = values.reshape(batch, v, u, n).permute(0, 3, 1, 2)
    keys = keys.reshape(batch, k, u, n).permute(0, 3, 1, 2) if keys.shape[1] else None
    embeddings = None
    if layer.position is not None:
        table = layer.position.table
        rows, columns = table.shape[2:]
        # One pair of positions at a time: where the context lies in the table, if it lies there.
        entries = []
        for (y, x_), (cy, cx) in itertools.product(itertools.product(range(height), range(width)), repeat=2):
            row, column = cy - y + rows // 2, cx - x_ + columns // 2
            inside = 0 <= row < rows and 0 <= column < columns
            entries.append(table[:, :, row, column] if inside else torch.zeros_like(table[:, :, 0, 0]))
        embeddings = torch.stack(entries).reshape(n, n, k, u)
    out = lambda_reference(queries, keys, values, embeddings, key_norm=layer.key_norm)
    if layer.position is not None and layer.position.bias is not None:
        out = out + torch.einsum("bhnk,k->bhn", queries, layer.position.bias)[..., None]
    return layer.pool(out.transpose(2, 3).reshape(batch, h * v, height, width))


def assert_layer_is_the_reference(layer: LambdaLayer, size: tuple[int, int], batch: int = 2) -> None:
    layer = layer.double().train()
    for parameter in layer.parameters():  # away from the ones and zeros of initialisation
        if parameter.ndim == 1:
            nn.init.normal_(parameter)
    x = torch.randn(batch, layer.dim, *size, dtype=torch.float64, requires_grad=True)
    inputs = [x, *layer.parameters()]
    expected = oracle(layer, x)
    cotangent = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, inputs, cotangent)
    for order in ("auto", *ORDERS):
        layer.order = order
        out = layer(x)
        torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9, msg=lambda m, o=order: f"{o}: {m}")
        for got, want in zip(torch.autograd.grad(out, inputs, cotangent), wanted, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8)


OPTIONS = [
    {},
    {"scope": 1},
    {"scope": 9, "intra_depth": 3},
    {"scope": None},
    {"scope": None, "intra_depth": 2},
    {"content": False},
    {"position": False},
    {"position": False, "intra_depth": 2},
    {"content": False, "intra_depth": 2, "scope": 5},
    {"key_norm": "l2"},
    {"key_norm": "none"},
    {"query_norm": "softmax"},
    {"query_norm": "l2"},
    {"norm_q": False},
    {"norm_v": False},
    {"norm_q": False, "norm_v": False, "qkv_bias": True},
    {"norm_k": True},
    {"norm_k": True, "norm_v": False, "key_norm": "none", "intra_depth": 2},
    {"position_bias": True},
    {"position_bias": True, "scope": None, "content": False},
    {"num_heads": 1},
    {"num_heads": 6},
    {"stride": 2},
    {"stride": 2, "pool": "avg2"},
    {"stride": 2, "pool": "avg3_counted"},
    {"pool_always": True},
    {"pool_always": True, "pool": "avg3_counted"},
]


@pytest.mark.parametrize("size", [(5, 6), (4, 4), (3, 7), (1, 5)])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(f"{k}={v}" for k, v in o.items()) or "default")
def test_every_option_is_the_reference(options, size):
    torch.manual_seed(0)
    layer = LambdaLayer(
        **{"dim": 8, "dim_out": 12, "feat_size": size, "num_heads": 2, "query_depth": 3, "scope": 5, **options}
    )
    assert_layer_is_the_reference(layer, size)


@pytest.mark.parametrize("scope", [3, 7, 23, None])
@pytest.mark.parametrize("dims", [(8, 8), (6, 16), (16, 4)])
@pytest.mark.parametrize("batch", [1, 3])
def test_scopes_widths_and_batches_are_the_reference(scope, dims, batch):
    torch.manual_seed(1)
    layer = LambdaLayer(*dims, feat_size=(6, 5), num_heads=4, query_depth=5, intra_depth=batch, scope=scope)
    assert_layer_is_the_reference(layer, (6, 5), batch)


@pytest.mark.parametrize("order", ["auto", *ORDERS])
def test_a_batch_of_no_images_gives_none(order):
    layer = LambdaLayer(8, 12, num_heads=2, query_depth=3, scope=3, order=order).eval()
    x = torch.randn(0, 8, 5, 4, requires_grad=True)
    with torch.no_grad():
        assert layer(x).shape == (0, 12, 5, 4)
    layer(x).sum().backward()
    assert x.grad.shape == x.shape
    assert layer.position.table.grad.eq(0).all()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    "options",
    [{}, {"intra_depth": 2}, {"scope": None}, {"stride": 2, "position_bias": True}, {"norm_k": True}],
)
def test_gradcheck(order, options, batch):
    torch.manual_seed(0)
    layer = LambdaLayer(
        **{"dim": 4, "feat_size": (3, 2), "num_heads": 2, "query_depth": 2, "scope": 3, "order": order, **options}
    )
    layer = layer.double()
    x = torch.randn(batch, 4, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), (x, *layer.parameters()), fast_mode=True)


def test_the_plan_uses_every_order_and_the_cheapest():
    def plan(heads, k, v, scope, size):
        queries, values = torch.empty(1, heads, k, size**2), torch.empty(1, v, 1, size**2)
        return choose_order(queries, values, torch.empty(k, 1, scope, scope), size, size)

    assert plan(4, 16, 128, 23, 14) == "query"
    assert plan(4, 16, 16, 7, 56) == "convolution"
    assert plan(64, 2, 2, 31, 8) == "lambda"


@pytest.mark.parametrize("order", ORDERS)
def test_position_lambda_is_translation_equivariant(order):
    """An object that moves within an empty image moves its output, and changes nothing else."""
    torch.manual_seed(0)
    layer = LambdaLayer(4, num_heads=2, query_depth=3, scope=5, content=False, norm_q=False, norm_v=False, order=order)
    x = torch.zeros(1, 4, 12, 13)
    x[:, :, 2:5, 3:6] = torch.randn(1, 4, 3, 3)
    moved = x.roll((4, 5), (2, 3))
    torch.testing.assert_close(layer(moved), layer(x).roll((4, 5), (2, 3)))
    assert layer(x).abs().max() > 0.1


def test_content_lambda_is_permutation_invariant():
    """Pixels in another order give the same outputs in that order."""
    torch.manual_seed(0)
    layer = LambdaLayer(4, num_heads=2, query_depth=3, position=False)
    x = torch.randn(2, 4, 5, 6)
    order = torch.randperm(30)
    shuffled = x.flatten(2)[:, :, order].reshape(2, 4, 5, 6)
    torch.testing.assert_close(layer(shuffled).flatten(2), layer(x).flatten(2)[:, :, order])


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (1, 1), (10, 3)])
def test_strides_round_up(size):
    for pool in POOLS:
        out = LambdaLayer(8, stride=2, pool=pool).eval()(torch.randn(1, 8, *size))
        assert out.shape[2:] == (-(-size[0] // 2), -(-size[1] // 2))


def test_pools_average_what_is_there():
    x = torch.arange(15.0).reshape(1, 1, 3, 5)
    three = LambdaLayer(1, stride=2, num_heads=1).pool(x)
    counted = LambdaLayer(1, stride=2, num_heads=1, pool="avg3_counted").pool(x)
    two = LambdaLayer(1, stride=2, num_heads=1, pool="avg2").pool(x)
    assert three[0, 0].tolist() == [[3.0, 4.5, 6.0], [8.0, 9.5, 11.0]]  # corners of 4, edges of 6 pixels
    ninths = torch.tensor([[12.0, 27, 24], [32, 57, 44]])  # the sums of the same pixels, over nine each time
    torch.testing.assert_close(counted[0, 0], ninths / 9)
    assert two[0, 0].tolist() == [[3.0, 5.0, 6.5], [10.5, 12.5, 14.0]]
    smooth = LambdaLayer(1, num_heads=1, pool_always=True).pool(x)
    smooth_counted = LambdaLayer(1, num_heads=1, pool="avg3_counted", pool_always=True).pool(x)
    pixels = torch.tensor([[4.0, 6, 6, 6, 4], [6, 9, 9, 9, 6], [4, 6, 6, 6, 4]])  # in each window
    sums = torch.tensor([[12.0, 21, 27, 33, 24], [33, 54, 63, 72, 51], [32, 51, 57, 63, 44]])
    torch.testing.assert_close(smooth[0, 0], sums / pixels)
    torch.testing.assert_close(smooth_counted[0, 0], sums / 9)
    for layer in (LambdaLayer(1, num_heads=1, stride=2), LambdaLayer(1, num_heads=1, stride=2, pool_always=True)):
        assert torch.equal(layer.pool(x), three)  # at stride 2 they pool anyway
    assert isinstance(LambdaLayer(1, num_heads=1, pool="avg3_counted").pool, nn.Identity)
    even = torch.randn(2, 3, 6, 8)
    assert torch.equal(LambdaLayer(1, stride=2, num_heads=1, pool="avg2").pool(even), nn.AvgPool2d(2, 2)(even))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [14, 64])
def test_autocast_stays_close_to_float64(dtype, size):
    torch.manual_seed(0)
    layer = LambdaLayer(32, query_depth=8, scope=7).train()
    x = torch.randn(2, 32, size, size)
    exact = copy.deepcopy(layer).double()(x.double())
    with torch.autocast("cpu", dtype=dtype):
        out = layer(x)
    assert (out.double() - exact).norm() / exact.norm() < 2e-2


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_content_sum_over_a_large_grid_is_as_in_float32(dtype, autocast):
    """The only rounding left is that of its inputs; with weights in half precision the error is 100 times this."""
    torch.manual_seed(0)
    keys, values = torch.randn(1, 2, 1, 300_000).to(dtype), torch.randn(1, 3, 1, 300_000).to(dtype) + 1
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        out = content_lambda(keys, values, "softmax")
    exact = keys.double().softmax(-1).flatten(2) @ values.double().flatten(2).transpose(1, 2)
    assert (out.double() - exact).norm() / exact.norm() < 2e-5


@pytest.mark.parametrize("query_norm", ["l2", "softmax"])
def test_a_zero_query_is_finite_in_half_precision(query_norm):
    layer = LambdaLayer(4, query_norm=query_norm, norm_q=False, scope=3).half()
    x = torch.zeros(1, 4, 3, 3, dtype=torch.float16)
    assert layer(x).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_modules_run_and_train(dtype):
    layer = LambdaLayer(16, scope=5).to(dtype)
    out = layer(torch.randn(2, 16, 6, 7, dtype=dtype))
    out.float().square().mean().backward()
    assert out.dtype == dtype
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scope": 4}, "scope must be odd and positive, or None for a global one, got 4"),
        ({"scope": 0}, "scope must be odd"),
        ({"scope": -3}, "scope must be odd"),
        ({"num_heads": 3}, "num_heads=3 does not divide dim_out=8"),
        ({"num_heads": 0}, "num_heads must be at least 1, got 0"),
        ({"dim_out": 6, "num_heads": 4}, "num_heads=4 does not divide dim_out=6"),
        ({"query_depth": 0}, "query_depth must be at least 1, got 0"),
        ({"intra_depth": 0}, "intra_depth must be at least 1, got 0"),
        ({"dim": 0}, "dim must be at least 1, got 0"),
        ({"scope": None}, r"feat_size is needed by a global scope \(scope=None\), got None"),
        ({"scope": None, "feat_size": (0, 4)}, "feat_size must be positive, got 0x4"),
        ({"stride": 3}, "stride must be 1 or 2, got 3"),
        ({"content": False, "position": False}, "content=False and position=False"),
        ({"position": False, "position_bias": True}, "position_bias=True needs position=True"),
        ({"content": False, "norm_k": True}, "norm_k=True needs content=True"),
        ({"key_norm": "l1"}, "key_norm must be one of softmax, l2, none, got 'l1'"),
        ({"query_norm": "l1"}, "query_norm must be one of none, softmax, l2, got 'l1'"),
        ({"pool": "max"}, "pool must be one of avg3, avg3_counted, avg2, got 'max'"),
        ({"pool": "avg2", "pool_always": True}, "pool_always=True needs a 3x3 pool, got pool='avg2'"),
        ({"order": "fft"}, "order must be one of auto, lambda, query, convolution, kernel, got 'fft'"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        LambdaLayer(**{"dim": 8, **options})


def test_state_dict_keys_are_frozen():
    layer = LambdaLayer(8, 12, feat_size=(3, 4), scope=None, qkv_bias=True, position_bias=True, intra_depth=2)
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    assert list(layer.state_dict()) == [
        "qkv.weight",
        "qkv.bias",
        *(f"norm_q.{key}" for key in norm),
        *(f"norm_v.{key}" for key in norm),
        "position.table",
        "position.bias",
    ]
    shapes = {key: tuple(value.shape) for key, value in layer.state_dict().items()}
    assert shapes["qkv.weight"] == (4 * 16 + 16 * 2 + 3 * 2, 8, 1, 1)
    assert shapes["position.table"] == (16, 2, 5, 7)
    normed = LambdaLayer(8, intra_depth=2, norm_k=True).state_dict()
    assert [key for key in normed if key.startswith("norm_k")] == [f"norm_k.{key}" for key in norm]
    assert normed["norm_k.weight"].shape == (16 * 2,)


def test_initialisation_is_the_papers():
    torch.manual_seed(0)
    layer = LambdaLayer(256, 512, query_depth=16)
    q, k, v = layer.qkv.weight.split(layer.split_dims)
    assert q.std().item() == pytest.approx((16 * 256) ** -0.5, rel=0.05)
    assert k.std().item() == pytest.approx(256**-0.5, rel=0.05)
    assert v.std().item() == pytest.approx(256**-0.5, rel=0.05)
    assert layer.position.table.std().item() == pytest.approx(1, rel=0.05)


def test_a_global_layer_takes_its_own_size_alone():
    layer = LambdaLayer(8, feat_size=(4, 6), scope=None)
    with pytest.raises(ValueError, match=r"feat_size 4x6 got 5x6: call set_feat_size"):
        layer(torch.randn(1, 8, 5, 6))


def test_a_resampled_table_keeps_its_shape_and_its_centre():
    layer = LambdaLayer(8, feat_size=(5, 4), scope=None).eval()
    before = layer.position.table.detach().clone()
    layer.set_feat_size((5, 4))
    assert torch.equal(layer.position.table, before)
    # Bicubic interpolation reproduces a plane: at twice the size every second entry is an old one.
    y, x = torch.meshgrid(torch.arange(9.0), torch.arange(7.0), indexing="ij")
    with torch.no_grad():
        layer.position.table.copy_((2 * y - x).expand_as(before))
    layer.set_feat_size((9, 7))
    table = layer.position.table.detach()
    assert table.shape[2:] == (17, 13)
    torch.testing.assert_close(table[0, 0, 4:-4:2, 4:-4:2], (2 * y - x)[2:-2, 2:-2], atol=1e-4, rtol=0)
    assert table[0, 0, 8, 6] == pytest.approx(float((2 * y - x)[4, 3]), abs=1e-4)
    assert layer(torch.randn(1, 8, 9, 7)).shape == (1, 8, 9, 7)


def test_resizing_keeps_frozen_parameters_frozen_and_their_dtype():
    layer = LambdaLayer(8, feat_size=4, scope=None).to(torch.bfloat16)
    layer.position.table.requires_grad_(False)
    layer.set_feat_size(6)
    assert not layer.position.table.requires_grad
    assert layer.position.table.dtype == torch.bfloat16
    local = LambdaLayer(8, scope=5)
    local.set_feat_size(6)
    assert local.position.table.shape[2:] == (5, 5)


def saved_and_loaded(script):
    buffer = io.BytesIO()
    torch.jit.save(script, buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)


@pytest.mark.parametrize(
    "options",
    [
        {"position_bias": True},
        {"scope": None, "feat_size": (6, 7)},
        {"position": False},
        {"content": False},
        {"stride": 2, "query_norm": "l2"},
        {"stride": 2, "pool": "avg2", "query_norm": "softmax"},
        {"stride": 2, "pool": "avg3_counted", "norm_k": True},
        {"pool": "avg3_counted", "pool_always": True},
    ],
)
def test_exports_scripts_and_traces(options):
    torch.manual_seed(0)
    layer = LambdaLayer(**{"dim": 8, "scope": 5, **options}).eval()
    x = torch.randn(2, 8, 6, 7)
    expected = layer(x)
    torch.testing.assert_close(saved_and_loaded(torch.jit.script(layer))(x), expected)
    torch.testing.assert_close(saved_and_loaded(torch.jit.trace(layer, x))(x), expected)
    torch.testing.assert_close(torch.fx.symbolic_trace(layer)(x), expected)
    torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), expected)


def test_a_scripted_layer_has_the_same_gradients():
    torch.manual_seed(0)
    layer = LambdaLayer(8, scope=5).double()
    script = torch.jit.script(layer)
    for batch in (1, 2):
        x = torch.randn(batch, 8, 6, 7, dtype=torch.float64, requires_grad=True)
        cotangent = torch.randn(batch, 8, 6, 7, dtype=torch.float64)
        (expected,) = torch.autograd.grad(layer(x), x, cotangent)
        (gradient,) = torch.autograd.grad(script(x), x, cotangent)
        torch.testing.assert_close(gradient, expected)


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a C++ compiler")
def test_compiles_to_machine_code_as_one_graph():
    torch.manual_seed(0)
    layer = LambdaLayer(8, scope=5, stride=2).eval()
    compiled = torch.compile(layer, fullgraph=True)
    for size in ((6, 7), (5, 9)):
        x = torch.randn(2, 8, *size)
        torch.testing.assert_close(compiled(x), layer(x))


def test_channels_last_gives_the_same():
    torch.manual_seed(0)
    layer = LambdaLayer(8, scope=5, stride=2).eval()
    x = torch.randn(2, 8, 6, 7)
    expected = layer(x)
    out = layer.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize(("size", "scope"), [(9, 5), (14, 23)])
def test_channels_last_trains_with_intra_depth(batch, size, scope):
    """The table [K, U, Rh, Rw] changes its format with the network."""
    torch.manual_seed(0)
    layer = LambdaLayer(64, scope=scope, intra_depth=4).double()
    other = copy.deepcopy(layer).to(memory_format=torch.channels_last)
    assert not other.position.table.is_contiguous()
    x = torch.randn(batch, 64, size, size, dtype=torch.float64)
    expected = layer(x)
    along = torch.randn_like(expected)
    found = other(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected)
    expected.backward(along)
    found.backward(along)
    for (name, want), got in zip(layer.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(got.grad, want.grad, rtol=1e-7, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}")


def test_the_largest_offsets_a_table_has_are_used():
    """A local scope sees r // 2 positions away and no further."""
    layer = LambdaLayer(4, num_heads=1, scope=5, content=False, norm_q=False, norm_v=False)
    x = torch.randn(1, 4, 1, 9, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(x)[0, :, 0, 4].sum(), x)
    assert (gradient[0].abs().sum((0, 1)) > 0).tolist() == [False, False, True, True, True, True, True, False, False]
