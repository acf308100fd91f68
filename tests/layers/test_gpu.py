"""The layer on a GPU, in every order and dtype, against the float64 reference; half precision over many steps.

The kernels alone are tested in ``kernels``; where they are refused they are left out here, too.
"""

import pytest
import timm
import torch
from torch import nn

from lambdaresnet_zoo.layers import LambdaLayer, planned
from lambdaresnet_zoo.layers.contraction import plain_output
from lambdaresnet_zoo.layers.kernels import unavailable
from lambdaresnet_zoo.layers.plan import Plan, Shape, candidates

pytestmark = pytest.mark.skipif("not torch.cuda.is_available()", reason="for a GPU")

# batch, heads, K, V, U, height, width, scope
SHAPES = {
    "c2": (3, 4, 16, 16, 1, 56, 56, (23, 23)),
    "c4": (9, 4, 16, 64, 1, 14, 14, (23, 23)),
    "c4 small scope": (5, 4, 16, 64, 1, 20, 20, (7, 7)),
    "c5": (33, 4, 16, 128, 1, 7, 7, (23, 23)),
    "intra-depth, not square": (2, 3, 8, 24, 2, 9, 13, (5, 7)),
    "global": (2, 8, 16, 32, 1, 10, 11, (19, 21)),
    "detection": (1, 4, 16, 64, 1, 40, 50, (23, 23)),
}
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 2e-2}
NAMES = ("queries", "values", "table", "lambdas")
KERNEL = pytest.param(
    "kernel", marks=pytest.mark.skipif(bool(unavailable(torch.device("cuda"), torch.float16)), reason="refused")
)


def plans(shape: Shape, dtype: torch.dtype, training: bool) -> list[Plan]:
    """One of each order, and of the query order, by embeddings and by offset, with one tile, in rows and in patches."""
    found = {}
    for plan in candidates(shape, dtype, "cuda", training):
        if plan.note and "measured" not in plan.note:
            continue
        kind = (plan.method, plan.tiling and (plan.tiling.y.tiles > 1, plan.tiling.x.tiles > 1))
        found[kind] = plan
    return list(found.values())


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", SHAPES.values(), ids=SHAPES)
def test_every_order_is_the_reference(case, dtype, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # by default, what is float32 there is not
    batch, heads, k, v, u, height, width, scope = case
    n = height * width
    generator = torch.Generator().manual_seed(0)
    sizes = ((batch, heads, k, n), (batch, v, u, n), (k, u, *scope), (batch, k, v))
    given = [torch.randn(size, generator=generator).to("cuda", dtype) for size in sizes]
    given[2] = given[2].float()  # a parameter keeps its dtype under autocast
    cotangent = torch.randn(batch, heads, v, n, generator=generator).to("cuda", dtype)
    exact = [tensor.double().requires_grad_() for tensor in given]
    wanted = plain_output(*exact, height, width, "convolution" if n > 1000 else "lambda")
    wanted_gradients = torch.autograd.grad(wanted, exact, cotangent.double())
    kinds = plans(Shape(batch, heads, k, v, u, height, width, *scope), dtype, True)
    assert {plan.order for plan in kinds} >= {"lambda", "query", "convolution"}
    for plan in kinds:
        if plan.order == "kernel":
            leaves = [tensor.clone().requires_grad_() for tensor in given]
            output = planned.grid_output(*leaves, height, width, "kernel")
            found = torch.autograd.grad(output, leaves, cotangent)
        else:
            output = planned.run(plan, *given, height, width)
            found = planned.gradients(plan, cotangent, *given, height, width)
        assert output.dtype == dtype
        pairs = zip(("output", *NAMES), (output, *found), (wanted, *wanted_gradients), strict=True)
        for name, got, want in pairs:
            torch.testing.assert_close(
                got.double(),
                want,
                rtol=TOLERANCE[dtype],
                atol=TOLERANCE[dtype] * want.abs().max().item(),
                msg=lambda m, name=name, plan=plan: f"{name} of {plan}: {m}",
            )


@pytest.mark.parametrize("order", ["auto", "query", KERNEL])
def test_compiled_whole_it_is_the_same(order, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # its convolutions may be others than cudnn's
    torch.manual_seed(0)
    layer = LambdaLayer(64, scope=7, order=order).cuda()
    x = torch.randn(4, 64, 10, 12, device="cuda", requires_grad=True)
    compiled = torch.compile(layer, fullgraph=True)
    for mode in (True, False):
        layer.train(mode)
        torch.testing.assert_close(compiled(x), layer(x), rtol=1e-4, atol=1e-4)
    got = torch.autograd.grad(compiled(x).square().sum(), x)
    torch.testing.assert_close(got, torch.autograd.grad(layer(x).square().sum(), x), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("order", ["auto", "lambda", "convolution", KERNEL])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_thousand_steps_of_half_precision_have_no_nan(order, dtype, monkeypatch):
    monkeypatch.setenv("LAMBDARESNET_ZOO_IMPL", "" if order == "auto" else order)
    torch.manual_seed(0)
    model = timm.create_model("lambdaresnet26t", num_classes=10).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    scaler = torch.amp.GradScaler(enabled=dtype == torch.float16)
    templates = torch.randn(10, 3, 64, 64, device="cuda")
    losses = torch.empty(1000, device="cuda")
    for step in range(len(losses)):
        labels = torch.randint(0, 10, (32,), device="cuda")
        images = templates[labels] + torch.randn(32, 3, 64, 64, device="cuda")
        with torch.autocast("cuda", dtype):
            loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses[step] = loss.detach()
    assert losses.isfinite().all()
    assert losses[-100:].mean() < 0.3 * losses[:10].mean()
    assert all(parameter.isfinite().all() for parameter in model.parameters())
