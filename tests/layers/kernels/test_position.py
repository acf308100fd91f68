"""The fused kernels against the float64 reference: outputs and all three gradients."""

import pytest
import torch

from lambdaresnet_zoo.layers import lambda_reference
from lambdaresnet_zoo.layers.contraction import expand_table
from lambdaresnet_zoo.layers.kernels import fused_position, launch

# batch, heads, K, U, V, height, width, scope
SHAPES = {
    "local": (2, 4, 16, 1, 20, 5, 7, (5, 3)),
    "intra-depth": (1, 2, 5, 3, 7, 3, 11, (3, 5)),
    "global": (1, 2, 16, 2, 18, 4, 6, (7, 11)),
    "table larger than the grid": (1, 3, 8, 1, 70, 4, 9, (23, 23)),
    "one pixel": (2, 2, 16, 1, 8, 1, 1, (3, 3)),
    "one head, scope 1": (1, 1, 3, 1, 5, 6, 5, (1, 1)),
    "strips": (1, 2, 16, 1, 16, 3, 21, (3, 3)),
    "deep queries": (1, 2, 100, 1, 3, 2, 3, (3, 5)),
}
LARGE = {  # shapes of real layers, for a GPU
    "c2": (3, 4, 16, 1, 16, 56, 56, (23, 23)),
    "c3": (5, 4, 16, 1, 32, 28, 28, (23, 23)),
    "c4": (9, 4, 16, 1, 64, 14, 14, (23, 23)),
    "c4 global": (9, 4, 16, 1, 64, 14, 14, (27, 27)),
    "c5": (17, 4, 16, 1, 128, 7, 7, (23, 23)),
    "c4 of detection": (1, 4, 16, 2, 64, 37, 50, (9, 9)),
}
on_cuda = pytest.mark.skipif("not torch.cuda.is_available() or os.environ.get('TRITON_INTERPRET')", reason="for a GPU")


def reference(queries, values, table, height, width):
    embeddings = expand_table(table, height, width).permute(2, 3, 0, 1)  # [N, M, K, U]
    out = lambda_reference(queries.transpose(2, 3), None, values.permute(0, 3, 1, 2), embeddings)
    return out.transpose(2, 3)


def assert_is_the_reference(inputs, height, width, tolerance):
    exact = [x.detach().to("cpu", torch.float64).requires_grad_() for x in inputs]
    wanted = reference(*exact, height, width)
    generator = torch.Generator().manual_seed(1)
    cotangent = torch.randn(wanted.shape, generator=generator).to(inputs[0].dtype)
    got = fused_position(*inputs, height, width)
    assert got.dtype == inputs[0].dtype
    pairs = [(got, wanted)]
    pairs += zip(
        torch.autograd.grad(got, inputs, cotangent.to(got.device)),
        torch.autograd.grad(wanted, exact, cotangent.double()),
        strict=True,
    )
    for (got, wanted), name in zip(pairs, ("output", "queries", "values", "table"), strict=True):
        assert got.shape == wanted.shape
        scale = wanted.abs().max().item()
        torch.testing.assert_close(
            got.to("cpu", torch.float64),
            wanted,
            rtol=tolerance,
            atol=tolerance * scale,
            msg=lambda m, n=name: f"{n}: {m}",
        )


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_float32(shape, draw_inputs):
    assert_is_the_reference(draw_inputs(*shape), *shape[5:7], tolerance=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [SHAPES["intra-depth"], SHAPES["global"]], ids=["local", "global"])
def test_half_precision(shape, dtype, draw_inputs):
    assert_is_the_reference(draw_inputs(*shape, dtype=dtype), *shape[5:7], tolerance=2e-2)


@on_cuda
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", LARGE.values(), ids=LARGE)
def test_shapes_of_real_layers(shape, dtype, draw_inputs):
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    assert_is_the_reference(draw_inputs(*shape, dtype=dtype), *shape[5:7], tolerance)


@pytest.mark.parametrize(
    ("limit", "processors", "chunked", "shared"), [(2**16, 1, True, False), (2**26, 10**6, False, True)]
)
def test_the_table_gradient_in_chunks_and_shares(limit, processors, chunked, shared, draw_inputs, monkeypatch):
    shape = (3, 2, 60, 1, 5, 3, 4, (3, 3))
    started = []
    start = launch._Shape.start

    def record(self, name, *rest, **more):
        started.append((name, self.count(self.queries), more))
        start(self, name, *rest, **more)

    monkeypatch.setattr(launch._Shape, "start", record)
    monkeypatch.setattr(launch, "PARTIAL_BYTES", limit)
    monkeypatch.setattr(launch, "_processors", lambda device: processors)
    assert_is_the_reference(draw_inputs(*shape), *shape[5:7], tolerance=1e-5)
    passes = [(tiles, more) for name, tiles, more in started if name == "table_kernel"]
    tiles, first = passes[0]
    assert (first["chunk"] < tiles) == chunked and (first["per_split"] < shape[0]) == shared
    assert sum(more["chunk"] for _, more in passes) == tiles


def test_results_repeat_to_the_bit(draw_inputs):
    shape = SHAPES["one head, scope 1"]

    def run():
        inputs = draw_inputs(*shape)
        out = fused_position(*inputs, *shape[5:7])
        return [out, *torch.autograd.grad(out.square().sum(), inputs)]

    for first, second in zip(run(), run(), strict=True):
        assert torch.equal(first, second)


def test_any_strides(draw_inputs):
    batch, heads, k, u, v, height, width, _ = shape = (2, 2, 8, 2, 5, 3, 4, (3, 3))
    queries, values, table = (x.detach() for x in draw_inputs(*shape))
    wanted = fused_position(queries, values, table, height, width)
    n = height * width
    map_ = values.reshape(batch, v * u, height, width).to(memory_format=torch.channels_last)
    last = map_.flatten(2).reshape(batch, v, u, n)
    padded = torch.zeros(batch, heads + 1, k, n + 3, device=queries.device)[:, 1:, :, 2:-1]
    strided = table.flip(0).transpose(0, 3).contiguous().transpose(0, 3).flip(0)
    assert torch.equal(fused_position(padded.copy_(queries), last, strided, height, width), wanted)
    first = queries[:1].expand(2, -1, -1, -1)
    assert torch.equal(fused_position(first, values, table, height, width)[0], wanted[0])


def test_output_lies_channels_last(draw_inputs):
    out = fused_position(*draw_inputs(*SHAPES["local"]), 5, 7)
    assert out.reshape(2, 80, 5, 7).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("empty", ["batch", "grid"])
def test_nothing_in_nothing_out(empty, draw_inputs):
    batch, height = (0, 2) if empty == "batch" else (2, 0)
    inputs = draw_inputs(batch, 2, 4, 1, 5, height, 3, (3, 3))
    out = fused_position(*inputs, height, 3)
    assert out.shape == (batch, 2, 5, height * 3)
    gradients = torch.autograd.grad(out.sum(), inputs)
    assert [g.shape for g in gradients] == [x.shape for x in inputs]
    assert not gradients[2].any()


def test_large_values_do_not_overflow_in_half_precision(draw_inputs):
    # The sum over the context passes 65504 on its way and comes back: it is held in float32.
    queries, values, table = (x.detach() for x in draw_inputs(1, 1, 16, 1, 16, 1, 4, (1, 7), dtype=torch.float16))
    values.copy_(torch.tensor([3e4, 3e4, 3e4, -9e4 / 1.5], device=values.device))
    table.fill_(1.0)
    queries.mul_(0.05)
    wanted = reference(queries.cpu().double(), values.cpu().double(), table.cpu().double(), 1, 4)
    got = fused_position(queries, values, table, 1, 4)
    assert got.isfinite().all()
    torch.testing.assert_close(got.cpu().double(), wanted, rtol=2e-2, atol=2e-2 * wanted.abs().max().item())
